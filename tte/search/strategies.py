"""Strategies that look for an update scheme: each a function of a bench, the limits and a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from tte.errors import ModelError
from tte.search import evolution, knapsack
from tte.search.candidate import Bench, Candidate, Contribution, Found, Limits
from tte.search.costs import Costs, fit, greedy, within
from tte.search.desk import FRACTIONS, HEAD, Desk, Pick, fisher_items, fisher_scores, tail
from tte.search.gains import Analysis, analyse, standard_error
from tte.search.refine import auto

_RUNS = 120  # whole runs that one analysis may take

Strategy = Callable[[Bench, Limits, int], Found]


def last_k(bench: Bench, limits: Limits, seed: int) -> Found:
    """Baseline: weights and biases of the last k layers (and the head), every k that fits; the most accurate is chosen."""
    desk = Desk(bench, limits, seed)
    tails = [tail(desk.names, k, whole=True) for k in range(1, len(desk.names) + 1)]
    fit = tails[: desk.deepest(tails)]
    sizes = {f"last-{k}": c for k, c in enumerate([HEAD, *fit]) if limits.allow(desk.price([c])[0])}
    front = desk.measure(sizes)
    best = max(front, key=lambda m: (m.mean, -m.price.ram_bytes))
    return Found(best.candidate, (), front, (f"{best.name} is the most accurate of {len(front)} that fit",))


def bias(bench: Bench, limits: Limits, seed: int) -> Found:
    """Baseline: biases of as many last layers as fit, as in TinyTL (Cai et al., NeurIPS 2020), and the head."""
    desk = Desk(bench, limits, seed)
    tails = [tail(desk.names, k, whole=False) for k in range(1, len(desk.names) + 1)]
    count = desk.deepest(tails)
    chosen = {f"bias-{count}": tails[count - 1]} if count else {"last-0": HEAD}
    front = desk.measure(chosen)
    return Found(front[0].candidate, (), front, (f"biases of the last {count} of {len(tails)} layers fit",))


def full(bench: Bench, limits: Limits, seed: int) -> Found:
    """Baseline: everything trains.

    Raises:
        ModelError: that exceeds the limits.
    """
    desk = Desk(bench, limits, seed)
    everything = tail(desk.names, len(desk.names), whole=True)
    price = desk.price([everything])[0]
    if not limits.allow(price):
        raise ModelError(
            f"training everything needs {price.ram_bytes:,} bytes of RAM and {price.instructions:,} instructions a step",
            where="strategy full",
            limit=desk.limit,
            remedy="a higher limit, or another strategy",
        )
    return Found(everything, (), desk.measure({"full": everything}))


def contribution(bench: Bench, limits: Limits, seed: int) -> Found:
    """TTE's contribution analysis and evolutionary search (Lin et al., NeurIPS 2022).

    Gains of the biases of the last k layers, and of each layer's weights at 1/8, 1/4, 1/2 and 1 of its channels; then the
    largest sum of gains within the limits. TTE adds up memory by formula; here that only guides, and the planner decides.
    """
    desk = Desk(bench, limits, seed)
    costs = fit(desk)
    found = _analysis(desk, costs)
    pick, value = within(desk, costs, limits, lambda asked: evolution.evolve(costs, found.gains, asked, seed))
    return _found(desk, pick, "contribution", found.raw, [_about(found), f"sum of gains {100 * value:.1f} points"])


def knapsack_search(bench: Bench, limits: Limits, seed: int) -> Found:
    """The exact optimum of the problem that TTE searches by evolution, with each bias a choice of its own.

    The same contribution analysis as `contribution`; an integer program over {nothing, bias, weights at a fraction} for
    each layer and the cut; solved again with shifted limits until the planner's own figures fit.
    """
    desk = Desk(bench, limits, seed)
    costs = fit(desk)
    found = _analysis(desk, costs)
    pick, value = within(desk, costs, limits, lambda asked: knapsack.solve(costs, found.gains, asked))
    return _found(desk, pick, "knapsack", found.raw, [_about(found), f"sum of gains {100 * value:.1f} points"])


def sensitivity(bench: Bench, limits: Limits, seed: int) -> Found:
    """Layer-by-layer sensitivity after PockEngine (Zhu et al., MICRO 2023): one layer trains at a time.

    From the last layer to the first that fits, the gain over the head alone of a layer's bias, and of its bias and
    weights. Greedy: the largest gains first, each at the largest fraction that still fits; gains below the noise are
    left out.
    """
    desk = Desk(bench, limits, seed)
    costs = fit(desk)
    names = costs.names[::-1]
    seeds = desk.seeds[: max(1, _RUNS // max(1, 2 * len(names)))]
    base, *found = desk.runs(
        [HEAD, *(Candidate((n,)) for n in names), *(Candidate((n,), ((n, ()),)) for n in names)], limits.samples, seeds
    )
    noise = standard_error([base, *found], len(seeds))
    gains = [sum(r) / len(r) - sum(base) / len(base) for r in found]
    what = [(n, part) for part in ("bias", "weights") for n in names]
    raw = [Contribution(n, part, 1.0, g) for (n, part), g in zip(what, gains, strict=True)]
    chosen = sorted((c for c in raw if c.gain > noise), key=lambda c: -c.gain)  # stable: ties fall to the later layer
    items = [
        [Pick(frozenset([c.layer]))] if c.part == "bias" else [Pick(frozenset([c.layer]), {c.layer: f}) for f in FRACTIONS[::-1]]
        for c in chosen
    ]
    notes = [f"{len(found) * len(seeds)} runs of single layers; {len(chosen)} gains exceed the noise of {100 * noise:.2f} points"]
    pick = within(desk, costs, limits, partial(greedy, costs, items))[0]
    return _found(desk, pick, "sensitivity", raw, notes)


def fisher(bench: Bench, limits: Limits, seed: int) -> Found:
    """Fisher information by memory and compute after TinyTrain (Kwon et al., ICML 2024): no training runs.

    Layers enter by TinyTrain's score, each with its bias and the largest fraction of its channels, the most informative
    ones, that still fits.
    """
    desk = Desk(bench, limits, seed)
    scores = fisher_scores(desk, bench.fisher())
    costs, items = fit(desk), fisher_items(scores)
    pick = within(desk, costs, limits, partial(greedy, costs, items))[0]
    return _found(desk, pick, "fisher", scores, ["scores are Fisher information by memory and compute, no accuracies"])


def _analysis(desk: Desk, costs: Costs) -> Analysis:
    """The contribution analysis with as many seeds, and as long runs, as its budget allows."""
    each = max(1, len(costs.names) * (1 + len(FRACTIONS)))
    seeds = desk.seeds[: max(1, _RUNS // each)]
    samples = max(1, min(desk.limits.samples, desk.limits.samples * _RUNS // each))
    return analyse(desk, costs.names, FRACTIONS, samples, seeds)


def _about(found: Analysis) -> str:
    noise = f", standard error {100 * found.noise:.2f} points" if found.noise else ""
    return f"contributions from {found.runs} runs of {found.samples} samples{noise}; sums of them overstate what a scheme gains"


def _found(desk: Desk, pick: Pick, name: str, contributions: Iterable[Contribution], notes: Sequence[str]) -> Found:
    candidate = pick.candidate(desk.layers)
    front = desk.measure({name: candidate})
    notes = [*notes, f"{desk.spent:.0f} whole runs' worth of training"]
    return Found(candidate, tuple(contributions), front, tuple(notes))


#: By the name that `tte search --strategy` takes.
STRATEGIES: dict[str, Strategy] = {
    "auto": auto,
    "last-k": last_k,
    "bias": bias,
    "full": full,
    "contribution": contribution,
    "sensitivity": sensitivity,
    "fisher": fisher,
    "knapsack": knapsack_search,
}
