"""An additive model of prices, from real prices of single layers: what a search looks at before it asks the planner.

A scheme's cost is the cut's (how far back the error must go), plus each bias's, plus each layer's weights' by fraction.
Trained state and instructions are additive in truth. The arena is the largest need of any step and is not: what a
layer's saved input needs may hide below the forward pass's peak as long as it is alone. `within` therefore asks for
the real price of what it found, shifts the limits by the error, and looks again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tte.search.candidate import Candidate, Limits, Price
from tte.search.desk import HEAD, Desk, Pick, merged

_ROUNDS = 10  # of shifting the limits
_OPTIMISM = 0.97  # of an estimate: what it may be too high by
_CLOSE = 0.004  # of a limit: what is left is not worth another round


@dataclass(frozen=True)
class Costs:
    """The model; every figure in bytes of RAM and instructions a training step.

    Attributes:
        names: the layers whose training fits at all, first to last; what follows is by name.
        head: the head alone.
        cut: the error goes back to this layer, beyond `head`.
        bias: the bias trains.
        weights: all weights train; a fraction costs in proportion.
    """

    names: tuple[str, ...]
    head: Price
    cut: Mapping[str, Price]
    bias: Mapping[str, Price]
    weights: Mapping[str, Price]

    def estimate(self, pick: Pick) -> Price:
        """What a pick costs by the model."""
        ram, instructions = self.head.ram_bytes, self.head.instructions
        trained = pick.biases | {n for n, f in pick.weights.items() if f > 0}
        parts: list[tuple[float, Price]] = [(1.0, self.bias[n]) for n in pick.biases]
        parts += [(f, self.weights[n]) for n, f in pick.weights.items()]
        parts += [(1.0, self.cut[next(n for n in self.names if n in trained)])] if trained else []
        ram += round(sum(f * p.ram_bytes for f, p in parts))
        return Price(ram, instructions + round(sum(f * p.instructions for f, p in parts)))


    def likely(self, pick: Pick, limits: Limits) -> bool:
        """Whether a pick's real price may stay within limits, even though the model is a little wrong."""
        if not {*pick.biases, *pick.weights} <= {*self.names}:
            return False
        price = self.estimate(pick)
        return limits.allow(Price(int(_OPTIMISM * price.ram_bytes), int(_OPTIMISM * price.instructions)))


def fit(desk: Desk) -> Costs:
    """The model for the layers that a search may afford: 3 real prices a layer.

    With `tail(i)` the biases of layer i and all behind it, and `one(i)` the bias of layer i alone, tail(i) - one(i) is
    what the biases behind i cost, and its differences are each layer's.
    """
    names = desk.affordable()
    head = desk.price([HEAD])[0]
    if not names:
        return Costs((), head, {}, {}, {})
    sizes = {x.name: x.biases for x in desk.layers}
    one = desk.price([Candidate((n,)) for n in names])
    tail = desk.price([Candidate(tuple(sorted(names[i:]))) for i in range(len(names))])
    full = desk.price([Candidate((), ((n, ()),)) for n in names])
    behind = [_minus(t, o) for t, o in zip(tail, one, strict=True)]
    bias = {n: _minus(behind[i], behind[i + 1]) for i, n in enumerate(names[1:]) if i + 1 < len(names)}
    total = max(1, sum(sizes[n] for n in names[1:]))
    share = [sum(getattr(p, key) for p in bias.values()) / total for key in ("ram_bytes", "instructions")]
    bias[names[0]] = Price(round(share[0] * sizes[names[0]]), round(share[1] * sizes[names[0]]))
    cut = {n: _minus(_minus(p, bias[n]), head) for n, p in zip(names, one, strict=True)}
    weights = {n: _minus(_minus(p, cut[n]), head) for n, p in zip(names, full, strict=True)}
    return Costs(tuple(names), head, cut, bias, weights)


def _minus(a: Price, b: Price) -> Price:
    return Price(max(0, a.ram_bytes - b.ram_bytes), max(0, a.instructions - b.instructions))


Solve = Callable[[Limits], tuple[Pick, float]]


def within(desk: Desk, costs: Costs, limits: Limits, solve: Solve) -> tuple[Pick, float]:
    """The best pick found whose real price stays within the limits.

    Args:
        solve: the best pick by the model within limits, and its value.

    Returns:
        The pick and its value; training the head alone, of value 0, where nothing else fits.
    """
    best: tuple[Pick, float] = (Pick(), 0.0)
    bounds = (limits.ram_bytes, limits.instructions)
    shift = [0, 0]
    for _ in range(_ROUNDS):
        asked = [None if x is None else x - s for x, s in zip(bounds, shift, strict=True)]
        if any(x is not None and x < 0 for x in asked):
            break
        pick, value = solve(replace(limits, ram_bytes=asked[0], instructions=asked[1]))
        real, guess = desk.price([pick.candidate(desk.layers)])[0], costs.estimate(pick)
        used, error = _figures(real), [a - b for a, b in zip(_figures(real), _figures(guess), strict=True)]
        if limits.allow(real):
            best = max(best, (pick, value), key=lambda b: b[1])
            slack = [x is None or (s - e) / 2 > _CLOSE * x for x, s, e in zip(bounds, shift, error, strict=True)]
            if not any(ok for x, ok in zip(bounds, slack, strict=True) if x is not None):
                break  # the limits that were asked for are the real ones, as far as is known
            shift = [min(s, (s + e) // 2) for s, e in zip(shift, error, strict=True)]  # half way: the next error is another
        else:
            over = [x is not None and u > x for x, u in zip(bounds, used, strict=True)]
            least = [s + max(1, (x or 0) // 100) for s, x in zip(shift, bounds, strict=True)]
            shift = [max(e, m) if o else s for s, e, m, o in zip(shift, error, least, over, strict=True)]
    return best


def greedy(desk: Desk, costs: Costs, items: Sequence[Sequence[Pick]]) -> Pick:
    """Adds of each item, in turn, the first option with which everything still fits; the model says what is worth asking."""
    have = Pick(rule=items[0][0].rule) if items else Pick()
    for options in items:
        grown = [g for o in options if costs.likely(g := merged(have, o), desk.limits)]
        for pair in (grown[i : i + 2] for i in range(0, len(grown), 2)):
            fitting = [g for g, ok in zip(pair, desk.fits([g.candidate(desk.layers) for g in pair]), strict=True) if ok]
            if fitting:
                have = fitting[0]
                break
    return have


def _figures(price: Price) -> tuple[int, int]:
    return price.ram_bytes, price.instructions
