"""`auto`: a short-list from the integer program, successive halving, then local search by real accuracy and real prices."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from tte.search import knapsack
from tte.search.candidate import Bench, Candidate, Found, Limits, Measured, Price
from tte.search.costs import Costs, fit, greedy, within
from tte.search.desk import FRACTIONS, HEAD, Desk, Pick, fisher_items, fisher_scores, tail
from tte.search.gains import Gains, analyse, with_prior
from tte.search.surrogate import Surrogate

_SCREENED = (0.25, 1.0)  # fractions measured; the others lie on a power law between
_SCREENING = 170  # whole runs' worth that the analysis may take
_RUNS = 420  # whole runs' worth of training in all; the last round may pass it
_ROUNDS, _PATIENCE = 12, 6  # of local search; those in a row that may find nothing
_NEIGHBOURS, _DRAWN, _TRIED = 12, 6, 60  # candidates measured a round; knapsacks and neighbours drawn for them
_GAP = 0.005  # gains are uncertain: their optimum need not be exact
_FINALISTS, _HOPEFUL = 4, 3  # measured whole: of the short-list, of a round's neighbours
_FRONT = 6  # points below the best, at most
RULES = ("norm", "fisher", "random")


def auto(bench: Bench, limits: Limits, seed: int) -> Found:
    """tte's own: what others' strategies propose, decided by accuracy.

    1. Contribution analysis (TTE) by short runs and few fractions, drawn towards Fisher information (TinyTrain) as far as the
       noise explains the difference.
    2. A short-list: exact knapsacks over these gains (as they are; with all biases behind the cut; by Fisher-ranked and
       random channels; with the cut forced late), TinyTrain's own choice, the largest `last-k` and `bias` that fit.
    3. Successive halving (Jamieson and Talwalkar, 2016): longer runs and more seeds for the better half.
    4. Local search: knapsacks over gains drawn from what all whole runs so far tell (Thompson sampling), and neighbours of
       the best (add, drop, grow, shrink, swap); first with one seed against the best's run with that seed, then
       with all. It ends when some rounds in a row find nothing better, or the runs are spent.
    5. The same knapsacks at the RAM of `last-k`, for the front.

    Validation accuracy chooses among many, so the chosen one's own is a little too good; the test set tells.
    """
    desk = Desk(bench, limits, seed)
    costs = fit(desk)
    names, notes = costs.names, []
    each = max(1, len(names) * (1 + len(_SCREENED)))
    seeds = desk.seeds[: max(1, _SCREENING // each)]
    samples = max(1, min(limits.samples, limits.samples * _SCREENING // each))
    bench.say(f"contributions of {len(names)} layers")
    information = bench.fisher()
    found = analyse(desk, names, _SCREENED, samples, seeds)
    gains = with_prior(found, information, _SCREENED)
    notes.append(f"contributions from {found.runs} runs of {samples} samples, drawn towards Fisher information")
    bench.say("short-list")
    proposals = _shortlist(desk, costs, gains)
    proposals["fisher"] = greedy(desk, costs, fisher_items(fisher_scores(desk, information)))
    measured = _halving(desk, proposals)
    best = _best(measured)
    notes.append(f"short-list of {len(proposals)}: {best.name} won with {100 * best.mean:.1f} % on the validation samples")
    bench.say("local search")
    known = Surrogate(desk.layers, gains, found.noise * len(seeds) ** 0.5)
    for m in measured:
        known.learn(m.candidate, m.accuracies)
    better = _local(desk, costs, best, proposals[best.name], known, seed)
    notes.append(f"local search made it better {len(better)} times")
    best = better[-1] if better else best
    bench.say("front")
    lower = _lower(desk, costs, gains, best.price)
    front = {m.candidate: m for m in (*desk.measure(lower), *measured, *better)}
    notes.append(f"{desk.spent:.0f} whole runs' worth of training")
    notes.append("the best of many on the same validation samples: its own accuracy there is a little too good")
    return Found(best.candidate, found.raw, tuple(front.values()), tuple(notes))


def _shortlist(desk: Desk, costs: Costs, gains: Gains) -> dict[str, Pick]:
    """Proposals that fit, by name; equal ones once."""
    count = len(costs.names)
    variants: dict[str, dict[str, Any]] = {"knapsack": {}, "knapsack, all biases": {"all_biases": True}}
    variants |= {f"knapsack, {rule}": {"rule": rule} for rule in ("fisher", "random")}
    variants |= {f"knapsack from layer {count * part // 4}": {"first": count * part // 4} for part in (1, 2, 3)}
    picks = {n: within(desk, costs, desk.limits, partial(_solve, costs, gains, v))[0] for n, v in variants.items()}
    flat = Gains(gains.bias, {n: {f: g**0.5 for f, g in by.items() if g > 0} for n, by in gains.weights.items()})
    picks["knapsack, many layers"] = within(desk, costs, desk.limits, partial(_solve, costs, flat, {}))[0]
    for name, whole in (("last", True), ("bias", False)):
        tails = [tail(desk.names, k, whole=whole) for k in range(1, len(desk.names) + 1)]
        last = desk.names[len(tails) - desk.deepest(tails) :]
        picks[f"{name}-{len(last)}"] = Pick(frozenset(last), dict.fromkeys(last, 1.0) if whole else {})
    once = {p.candidate(desk.layers): n for n, p in reversed(picks.items())}
    fit = desk.fits(list(once))
    return {n: picks[n] for (_, n), ok in reversed(list(zip(once.items(), fit, strict=True))) if ok} or {"last-0": Pick()}


def _solve(costs: Costs, gains: Gains, settings: dict[str, Any], limits: Limits) -> tuple[Pick, float]:
    return knapsack.solve(costs, gains, limits, **{"gap": _GAP, **settings})


def _halving(desk: Desk, proposals: Mapping[str, Pick]) -> tuple[Measured, ...]:
    """The better half of the proposals twice over, then those that are left measured whole."""
    alive = {n: p.candidate(desk.layers) for n, p in proposals.items()}
    whole = desk.limits.samples
    for samples, seeds, left in ((whole // 4, 1, (len(alive) + 1) // 2), (whole // 2, 2, _FINALISTS)):
        if len(alive) > _FINALISTS:
            means = desk.means(list(alive.values()), max(1, samples), desk.seeds[:seeds])
            order = sorted(zip(means, alive, strict=True), key=lambda x: -x[0])  # stable: ties fall to the earlier proposal
            alive = {n: alive[n] for _, n in order[: max(left, _FINALISTS)]}
    return desk.measure(alive)


def _best(measured: Iterable[Measured]) -> Measured:
    return max(measured, key=lambda m: (m.mean, -m.price.ram_bytes))


def _local(desk: Desk, costs: Costs, best: Measured, pick: Pick, known: Surrogate, seed: int) -> list[Measured]:
    """Ever better candidates, the best last: half of those tried are knapsacks over drawn gains, half neighbours of the best."""
    found: list[Measured] = []
    seen, rng, dice = {best.candidate}, random.Random(seed), np.random.default_rng([seed, 0x7507])
    unlucky = 0
    for round in range(_ROUNDS):
        room, settings = _looser(desk, costs, pick), {"rule": pick.rule}
        drawn = [_solve(costs, known.draw(dice), settings, room)[0] for _ in range(_DRAWN)]
        moved = [_moved(rng, pick, costs.names) for _ in range(_TRIED)]
        near = {p.candidate(desk.layers): p for p in (*drawn, *moved)}
        near = {c: p for c, p in near.items() if c not in seen and costs.likely(p, desk.limits)}
        asked = list(near)[: 3 * _NEIGHBOURS // 2]
        asked = [c for c, ok in zip(asked, desk.fits(asked), strict=True) if ok][:_NEIGHBOURS]
        if not asked or desk.spent >= _RUNS or unlucky == _PATIENCE:
            break
        seen |= set(asked)
        first = desk.means(asked, desk.limits.samples, desk.seeds[:1])
        order = sorted(range(len(asked)), key=lambda i: -first[i])
        hopeful = [asked[i] for i in order if first[i] > best.accuracies[0]][:_HOPEFUL]
        measured = desk.measure({f"auto-{round}-{i}": c for i, c in enumerate(hopeful)})
        whole = {m.candidate: m.accuracies for m in measured}
        for c, accuracy in zip(asked, first, strict=True):
            known.learn(c, whole.get(c, (accuracy,)))
        unlucky += 1
        if measured and _best(measured).mean > best.mean:
            best = _best(measured)
            pick, unlucky = near[best.candidate], 0
            found.append(best)
            desk.bench.say(f"round {round + 1}: {100 * best.mean:.1f} %, {best.price.ram_bytes:,} bytes of RAM")
    return found


def _looser(desk: Desk, costs: Costs, pick: Pick) -> Limits:
    """Limits for the model that are the real ones as far as its error for a pick tells."""
    real, guess, limits = desk.price([pick.candidate(desk.layers)])[0], costs.estimate(pick), desk.limits
    ram, instructions = limits.ram_bytes, limits.instructions
    return replace(
        limits,
        ram_bytes=None if ram is None else ram - (real.ram_bytes - guess.ram_bytes),
        instructions=None if instructions is None else instructions - (real.instructions - guess.instructions),
    )


def _moved(rng: random.Random, pick: Pick, names: Sequence[str]) -> Pick:
    """A neighbour: one to three random changes."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        pick = _changed(rng, pick, names)
    return pick


def _changed(rng: random.Random, pick: Pick, names: Sequence[str]) -> Pick:
    if not names:
        return pick
    weights, one = dict(pick.weights), rng.choice(names)
    move = rng.choice(("fraction", "fraction", "swap", "bias", "cut", "rule"))
    if move == "fraction":
        steps = (0.0, *FRACTIONS)
        at = min(range(len(steps)), key=lambda i: abs(steps[i] - weights.get(one, 0.0)))
        weights[one] = rng.choice([steps[i] for i in (at - 1, at + 1, at + 2) if 0 <= i < len(steps)])
    elif move == "swap" and weights:
        weights[one] = weights.pop(rng.choice(sorted(weights)))
    elif move == "bias":
        return replace(pick, biases=pick.biases ^ {one})
    elif move == "cut":  # biases from here on, or none before
        at = names.index(one)
        behind = frozenset(names[at:])
        return replace(pick, biases=rng.choice((pick.biases & behind, pick.biases | behind)))
    elif move == "rule":
        return replace(pick, rule=rng.choice(RULES))
    return replace(pick, weights={n: f for n, f in weights.items() if f})


def _lower(desk: Desk, costs: Costs, gains: Gains, best: Price) -> dict[str, Candidate]:
    """Knapsacks at the RAM of `last-k` for some k below the best, where the front is compared with it."""
    found = {"last-0": HEAD}
    tails = [tail(desk.names, k, whole=True) for k in range(1, len(desk.names) + 1)]
    sizes = sorted({p.ram_bytes for p in desk.price(tails[: desk.deepest(tails)]) if p.ram_bytes < best.ram_bytes})
    step = max(1, -(-len(sizes) // _FRONT))
    for size in sizes[::step]:
        limits = replace(desk.limits, ram_bytes=size)
        pick = within(desk, costs, limits, partial(_solve, costs, gains, {}))[0]
        candidate = pick.candidate(desk.layers)
        if candidate not in found.values():
            found[f"auto below {size:,}"] = candidate
    return found
