"""An additive model of prices, from real prices of single layers: what a search looks at before it asks the planner.

A scheme's cost is the cut's (how far back the error must go), plus each bias's, plus each layer's weights' by fraction.
Trained state and instructions are additive in truth. The arena is the largest need of any step and is not: what a
layer's saved input needs may hide below the forward pass's peak as long as it is alone. `within` therefore asks the
model within several limits, and takes the best of what it found that fits by its real price.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tte.ops.linear_grad import MODES
from tte.search.candidate import Candidate, Limits, Price
from tte.search.desk import HEAD, REDRAWN, Desk, Pick, merged

_SHARES = (0.4, 0.55, 0.7, 0.8, 0.88, 0.95, 1.0, 1.06, 1.14, 1.25)  # of what limits leave: see `within`
_BETWEEN = 6  # parts of the last gap between shares
_OPTIMISM = 0.97  # of an estimate: what it may be too high by
_CLOSE = 0.01  # a gap that is not worth another round


@dataclass(frozen=True)
class Costs:
    """The model; every figure in bytes of RAM and instructions a training step.

    Attributes:
        names: the layers whose training fits at all, first to last; what follows is by name.
        head: the head alone.
        cut: the error goes back to this layer, beyond `head`.
        bias: the bias trains.
        weights: all weights train; a fraction costs in proportion.
        sizes: bytes of all weights, which channels that are drawn anew need in RAM.
    """

    names: tuple[str, ...]
    head: Price
    cut: Mapping[str, Price]
    bias: Mapping[str, Price]
    weights: Mapping[str, Price]
    sizes: Mapping[str, int] = field(default_factory=dict)

    def estimate(self, pick: Pick) -> Price:
        """What a pick costs by the model."""
        ram, instructions = self.head.ram_bytes, self.head.instructions
        trained = pick.biases | {n for n, f in pick.weights.items() if f > 0}
        parts: list[tuple[float, Price]] = [(1.0, self.bias[n]) for n in pick.biases]
        parts += [(f, self.weights[n]) for n, f in pick.weights.items()]
        parts += [(1.0, self.cut[next(n for n in self.names if n in trained)])] if trained else []
        ram += round(sum(f * p.ram_bytes for f, p in parts))
        if pick.rule == REDRAWN:
            ram += round(sum((1 - f) * self.sizes.get(n, 0) for n, f in pick.weights.items() if f > 0))
        return Price(ram, instructions + round(sum(f * p.instructions for f, p in parts)))


    def likely(self, pick: Pick, limits: Limits) -> bool:
        """Whether a pick's real price may stay within limits, even though the model is a little wrong."""
        if not {*pick.biases, *pick.weights} <= {*self.names}:
            return False
        price = self.estimate(pick)
        return limits.allow(Price(int(_OPTIMISM * price.ram_bytes), int(_OPTIMISM * price.instructions)))


def fit(desk: Desk, most: int | None = None) -> Costs:
    """The model for the layers that a search may afford: 3 real prices a layer.

    Args:
        most: of these, the last so many.

    With `tail(i)` the biases of layer i and all behind it, and `one(i)` the bias of layer i alone, tail(i) - one(i) is
    what the biases behind i cost, and its differences are each layer's.
    """
    names = desk.affordable()
    names = names if most is None else names[len(names) - min(most, len(names)) :]
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
    return Costs(tuple(names), head, cut, bias, weights, {x.name: x.weights for x in desk.layers})


def _minus(a: Price, b: Price) -> Price:
    return Price(max(0, a.ram_bytes - b.ram_bytes), max(0, a.instructions - b.instructions))


Solve = Callable[[Limits], tuple[Pick, float]]


def within(desk: Desk, costs: Costs, limits: Limits, solve: Solve) -> tuple[Pick, float]:
    """The best pick found whose real price stays within the limits.

    The model is asked within several shares of what the limits leave beside the head, some above 1 as it may be too
    pessimistic; all that it finds is priced at once. Then again between the largest share that fits and the next.

    Args:
        solve: the best pick by the model within limits, and its value.

    Returns:
        The pick and its value; training the head alone, of value 0, where nothing else fits.
    """
    best: tuple[Pick, float] = (Pick(), 0.0)
    shares: Sequence[float] = _SHARES
    for _ in range(2):
        found = desk.bench.map(solve, [(_share(costs, limits, s),) for s in shares])
        candidates = [pick.candidate(desk.layers) for pick, _ in found]
        once = list(dict.fromkeys(candidates))
        fit = dict(zip(once, (limits.allow(p) for p in desk.price(once)), strict=True))
        fitting = [(s, f) for s, c, f in zip(shares, candidates, found, strict=True) if fit[c]]
        best = max([best, *(f for _, f in fitting)], key=lambda b: b[1])
        low = max((s for s, _ in fitting), default=0.0)
        high = min((s for s in shares if s > low), default=low)
        if high - low < _CLOSE or (limits.ram_bytes is None and limits.instructions is None):
            break
        shares = [low + (high - low) * i / _BETWEEN for i in range(1, _BETWEEN)]
    return best


def _share(costs: Costs, limits: Limits, share: float) -> Limits:
    """A share of what limits leave beside the head."""
    ram, instructions = (
        None if bound is None else own + round(share * (bound - own))
        for bound, own in ((limits.ram_bytes, costs.head.ram_bytes), (limits.instructions, costs.head.instructions))
    )
    return replace(limits, ram_bytes=ram, instructions=instructions)


def weight_bytes(mode: str) -> float:
    """RAM of a weight that trains: itself and its residual."""
    return 1 + MODES[mode] / 8


def greedy(costs: Costs, items: Sequence[Sequence[Pick]], limits: Limits) -> tuple[Pick, float]:
    """Adds of each item, in turn, the first option with which everything still fits by the model.

    Returns:
        The pick, and how much trains: of picks within several limits the largest counts most (see `within`).
    """
    have = Pick(rule=items[0][0].rule) if items else Pick()
    for options in items:
        grown = (merged(have, o) for o in options if {*o.biases, *o.weights} <= {*costs.names})
        have = next((g for g in grown if limits.allow(costs.estimate(g))), have)
    return have, len(have.biases) + sum(have.weights.values())
