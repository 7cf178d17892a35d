"""The strategy `auto`: many candidates measured briefly, a model of what each layer is worth, and the best measured whole."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from tte.search import design, knapsack
from tte.search.candidate import Bench, Candidate, Contribution, Found, Limits, Measured
from tte.search.costs import Costs, fit, greedy, weight_bytes, within
from tte.search.desk import HEAD, Desk, Pick, fisher_items, fisher_scores, tail
from tte.search.gains import Gains, rising, standard_error
from tte.search.moves import moved
from tte.search.surrogate import Surrogate

_DEPTHS = 6  # places where the error may stop that are tried first
_ABOUT = 0.01  # accuracy by which depths may differ and be about as good
_SHORT = 0.5  # of a whole run: what candidates are measured by until the last round
_DRAWN, _ROUNDS, _BATCH, _THOMPSON = 24, 6, 8, 5  # candidates drawn at random; rounds of so many; knapsacks among those
_TRIED = 60  # neighbours drawn for the rest of a round
_GAP = 0.01  # gains are uncertain: their optimum need not be exact
_FINALISTS = (6, 3, 2)  # measured whole with one seed, with all seeds, at other rates
_FRONT = 3  # points below the best, beside those at the RAM of `last-k`
_POOR, _RETRIES = 0.04, 2  # accuracy below the usual at which a lower learning rate is tried; how often
_DOUBT = 0.012  # noise of a run where seeds do not tell


def auto(bench: Bench, limits: Limits, seed: int) -> Found:
    """tte's own.

    1. How deep: biases of the last k layers, for a few k. Their curve is what each bias gains.
    2. Candidates drawn at random, cheap ones and such as the limits just allow, and those of TinyTrain and of a knapsack over
       Fisher information. From all runs `Surrogate` learns what each layer is worth in company.
    3. Rounds: knapsacks over gains drawn from what is believed (Thompson sampling), and neighbours of the best (add, drop,
       grow, shrink, swap).
    4. The most promising measured whole: successive halving over seeds (Jamieson and Talwalkar, 2016), the best also in other
       residual modes and at half and twice the learning rate.
    5. For the front: knapsacks at less RAM, and `last-k`.

    Runs are judged by accuracy and by loss (`Desk.scores`). Validation samples choose among many, so the chosen one's own
    accuracy is a little too good; the test set tells.
    """
    desk = Desk(bench, limits, seed)
    short = max(1, min(limits.samples, max(round(limits.samples * _SHORT), min(limits.samples, 500))))
    information = bench.fisher()
    bench.say("how deep to train")
    known, cuts, depths = _depths(desk, information, short)
    bench.say("prices of single layers")
    costs = fit(desk, max(cuts, default=0))
    bench.say("candidates drawn at random")
    picks = _first(desk, costs, cuts, known, information, seed)
    scores = _learn(desk, known, picks, list(picks), short)
    _rounds(desk, costs, known, picks, scores, short, seed)
    bench.say("the best, measured whole")
    measured = _finals(desk, costs, known, picks, scores)
    best = _best(desk, measured)
    bench.say("front")
    front = {m.candidate: m for m in (*_front(desk, costs, known, best), *measured)}
    gains = known.mean()
    contributions = [*depths, *(c for c in gains.contributions() if c.part == "bias" or c.fraction == 1.0)]
    notes = [
        f"{len(scores)} candidates measured by {short} samples, {len(measured)} by {limits.samples} and {limits.seeds} seeds",
        f"{desk.spent:.0f} whole runs' worth of training",
        "contributions of single layers are what a regression over all runs says they are worth in company",
        "the best of many on the same validation samples: its own accuracy there is a little too good",
    ]
    return Found(best.candidate, tuple(contributions), tuple(front.values()), tuple(notes))


def _depths(
    desk: Desk, information: Mapping[str, Sequence[float]], short: int
) -> tuple[Surrogate, list[int], list[Contribution]]:
    """What is known from biases alone, where the error may stop (how many layers from the end), and what was measured."""
    names = desk.affordable()
    count = len(names)
    grid = sorted({round(count * i / (_DEPTHS - 1)) for i in range(_DEPTHS)})
    tails = [Pick(frozenset(names[count - k :])).candidate(desk.layers) for k in grid]
    fitting = desk.fits(tails)
    grid = [k for k, ok in zip(grid, fitting, strict=True) if ok]
    tails = [c for c, ok in zip(tails, fitting, strict=True) if ok]
    seeds = desk.seeds[:2]
    runs = desk.scores(tails, short, seeds)
    means = [sum(r) / len(r) for r in runs]
    # Of depths that are about as good the least: it costs less on the device, and less to search.
    at = next(i for i, m in enumerate(means) if m >= max(means) - _ABOUT)
    step = max(1, count // (_DEPTHS - 1))
    deepest = min(grid[at] + step, count)
    curve = np.interp(np.arange(count + 1), grid, rising(means))
    bias = {n: float(curve[count - i] - curve[count - i - 1]) for i, n in enumerate(names)}
    noise = standard_error(runs, 1) if len(seeds) > 1 else _DOUBT
    chosen = set(names[count - deepest :])
    known = Surrogate([x for x in desk.layers if x.name in chosen], bias, information, noise)
    for candidate, run in zip(tails, runs, strict=True):
        for score in run:
            known.learn(candidate, score)
    # Twice as often about as deep as the best of them as less deep.
    near = list(range(max(1, grid[at] - step), deepest + 1)) if count else []
    measured = [Contribution(names[count - k], "biases", 1.0, m - means[0]) for k, m in zip(grid, means, strict=True) if k]
    return known, near * 2 + list(range(1, deepest + 1)), measured


def _first(
    desk: Desk, costs: Costs, cuts: Sequence[int], known: Surrogate, information: Mapping[str, Sequence[float]], seed: int
) -> dict[Candidate, Pick]:
    """The first candidates: others' proposals, and random ones."""
    tiny_train = partial(greedy, costs, fisher_items(fisher_scores(desk, information)))
    picks = [
        within(desk, costs, desk.limits, tiny_train)[0],
        *(_solved(desk, costs, known.mean(rule), rule) for rule in ("norm", "fisher")),
    ]
    found = {p.candidate(desk.layers): p for p in (Pick(), *picks)}
    found = {c: found[c] for c, ok in zip(found, desk.fits(list(found)), strict=True) if ok}
    return found | design.draw(desk, costs, cuts, _DRAWN, random.Random(seed))


def _learn(
    desk: Desk, known: Surrogate, picks: dict[Candidate, Pick], asked: Iterable[Candidate], short: int
) -> dict[Candidate, float]:
    """Short runs; the scores. What learns much less than most is run again at lower rates, and kept with the best of them."""
    tried = {c: c for c in asked}
    scores = dict(zip(tried, (run[0] for run in desk.scores(list(tried), short, desk.seeds[:1])), strict=True))
    best = dict(scores)
    usual = sorted([*scores.values(), *known.scores])[(len(scores) + len(known.scores)) // 2]
    for _ in range(_RETRIES):
        poor = [c for c in tried if scores[c] < usual - _POOR]
        rates = desk.bench.class_rate([tried[c] for c in poor])
        lower = {c: min(desk.bench.near(rate), default=rate) for c, rate in zip(poor, rates, strict=True)}
        again = [replace(c, rate=lower[c]) for c in poor if lower[c] < rates[poor.index(c)]]
        for c, run in zip(again, desk.scores(again, short, desk.seeds[:1]), strict=True):
            origin = next(p for p in poor if p.structure == c.structure)
            tried[origin], scores[origin] = c, run[0]
            best[c] = run[0]
    found = {}
    for c in tried:
        runs = {x: s for x, s in best.items() if x.structure == c.structure}
        chosen = max(runs, key=lambda x: runs[x])
        found[chosen] = runs[chosen]
        picks[chosen] = picks[c]
        if runs[chosen] > usual - 2 * _POOR:  # what never learnt says nothing of single layers
            known.learn(chosen, runs[chosen])
    return found


def _rounds(
    desk: Desk, costs: Costs, known: Surrogate, picks: dict[Candidate, Pick], scores: dict[Candidate, float], short: int,
    seed: int,
) -> None:  # fmt: skip
    """Adds to picks and scores."""
    rng, dice = random.Random(seed + 1), np.random.default_rng([seed, 0x7507])
    for round in range(_ROUNDS):
        best = _order(known, scores)[0]
        room = _looser(desk, costs, best, picks[best])
        drawn = desk.bench.map(_drawn, [(costs, room, *_draw(known, dice)) for _ in range(2 * _THOMPSON)])
        near = [moved(rng, picks[best], costs.names) for _ in range(_TRIED)]
        near = [p for p in near if costs.likely(p, desk.limits)]
        expected = known.predict([p.candidate(desk.layers) for p in near])
        near = [near[i] for i in sorted(range(len(near)), key=lambda i: -expected[i])]
        chosen = _fresh(desk, drawn, scores, _THOMPSON)
        chosen |= _fresh(desk, near, scores | dict.fromkeys(chosen, 0.0), _BATCH - len(chosen))
        if not chosen:
            break
        picks |= chosen
        scores |= _learn(desk, known, picks, chosen, short)
        best = _order(known, scores)[0]
        desk.bench.say(f"round {round + 1} of {_ROUNDS}: {100 * known.predict([best])[0]:.1f} % expected after {short} samples")


def _draw(known: Surrogate, dice: np.random.Generator) -> tuple[Gains, str]:
    rule = str(dice.choice(["norm", "fisher"]))
    return known.draw(dice, rule), rule


def _drawn(costs: Costs, limits: Limits, gains: Gains, rule: str) -> Pick:
    return knapsack.solve(costs, gains, limits, rule=rule, gap=_GAP)[0]


def _fresh(desk: Desk, picks: Iterable[Pick], seen: Mapping[Candidate, float], count: int) -> dict[Candidate, Pick]:
    """The first so many picks that fit and were not measured yet."""
    known = {c.structure for c in seen}
    asked = {c: p for p in picks if (c := p.candidate(desk.layers)) not in known}
    some = list(asked)[: 2 * count]
    fitting = [c for c, ok in zip(some, desk.fits(some), strict=True) if ok]
    return {c: asked[c] for c in fitting[:count]}


def _order(known: Surrogate, scores: Mapping[Candidate, float]) -> list[Candidate]:
    """Those measured, by what is believed of them and what was measured, the best first."""
    believed = dict(zip(scores, known.predict(list(scores)), strict=True))
    return sorted(scores, key=lambda c: -(believed[c] + scores[c]))


def _looser(desk: Desk, costs: Costs, candidate: Candidate, pick: Pick) -> Limits:
    """Limits for the model that are the real ones as far as its error for a pick tells."""
    real, guess, limits = desk.price([candidate])[0], costs.estimate(pick), desk.limits
    ram, instructions = limits.ram_bytes, limits.instructions
    return replace(
        limits,
        ram_bytes=None if ram is None else ram - (real.ram_bytes - guess.ram_bytes),
        instructions=None if instructions is None else instructions - (real.instructions - guess.instructions),
    )


def _solved(desk: Desk, costs: Costs, gains: Gains, rule: str, limits: Limits | None = None, mode: str = "") -> Pick:
    """The exact knapsack within real prices."""

    def solve(asked: Limits) -> tuple[Pick, float]:
        pick, value = knapsack.solve(costs, gains, asked, rule=rule, gap=_GAP)
        return replace(pick, mode=mode), value

    return within(desk, costs, limits or desk.limits, solve)[0]


def _best_rule(desk: Desk, costs: Costs, known: Surrogate, limits: Limits | None = None, mode: str = "") -> Candidate:
    """The knapsack over the most likely gains, by the rule for channels of which more is expected."""
    asked = limits or desk.limits
    values = {rule: knapsack.solve(costs, known.mean(rule), asked, rule=rule, gap=_GAP)[1] for rule in ("norm", "fisher")}
    rule = max(values, key=lambda r: values[r])
    return _solved(desk, costs, known.mean(rule), rule, asked, mode).candidate(desk.layers)


def _finals(
    desk: Desk, costs: Costs, known: Surrogate, picks: Mapping[Candidate, Pick], scores: Mapping[Candidate, float]
) -> list[Measured]:
    """Whole runs of the most promising."""
    many, some, few = _FINALISTS
    asked = list(dict.fromkeys([_best_rule(desk, costs, known), *_order(known, scores)[:many]]))
    asked = [c for c, ok in zip(asked, desk.fits(asked), strict=True) if ok]
    for mode in desk.limits.modes:
        other = _best_rule(desk, _in_mode(desk, costs, mode), known, mode=mode)
        asked += [other] if desk.fits([other])[0] else []
    first = desk.scores(asked, desk.limits.samples, desk.seeds[:1])
    order = sorted(range(len(asked)), key=lambda i: -first[i][0])
    measured = desk.measure({f"auto-{i}": asked[at] for i, at in enumerate(order[:some])})
    best = sorted(measured, key=lambda m: -desk.worth(m))[:few]
    return [*measured, *at_other_rates(desk, best)]


def at_other_rates(desk: Desk, measured: Iterable[Measured]) -> list[Measured]:
    """Whole runs of candidates at half and twice their learning rate, and on from there while it gets better.

    The range test's runs are short, and classes of schemes share its rates: for those that matter this settles it.
    """
    alive, found, seen = {m: m for m in measured}, dict[Candidate, Measured](), set[Candidate]()
    while alive:  # at most as many rounds as there are rates
        rates = desk.bench.class_rate([m.candidate for m in alive])
        seen |= {replace(m.candidate, rate=r) for m, r in zip(alive, rates, strict=True)}
        tried = {
            replace(m.candidate, rate=r): (f"{start.name} at {r:g}", start, m)
            for (m, start), rate in zip(alive.items(), rates, strict=True)
            for r in desk.bench.near(rate)
        }
        new = {c: t for c, t in tried.items() if c not in seen}
        seen |= set(new)
        runs = {m.candidate: m for m in desk.measure({name: c for c, (name, _, _) in new.items()})}
        found |= runs
        alive = {}
        for candidate, (_, start, before) in new.items():
            if desk.worth(runs[candidate]) > desk.worth(before):
                alive[runs[candidate]] = start
    return list(found.values())


def _in_mode(desk: Desk, costs: Costs, mode: str) -> Costs:
    """Costs where weights keep another residual."""
    own = weight_bytes(mode) - weight_bytes(desk.bench.mode)
    sizes = {x.name: x.weights for x in desk.layers}
    weights = {n: replace(p, ram_bytes=max(0, p.ram_bytes + round(own * sizes[n]))) for n, p in costs.weights.items()}
    return replace(costs, weights=weights)


def _best(desk: Desk, measured: Iterable[Measured]) -> Measured:
    return max(measured, key=lambda m: (desk.worth(m), -m.price.ram_bytes))


def _front(desk: Desk, costs: Costs, known: Surrogate, best: Measured) -> list[Measured]:
    """Knapsacks at less RAM, `last-k` and, below each, what was found for it."""
    tails = {f"last-{k}": tail(desk.names, k, whole=True) for k in range(1, len(desk.names) + 1)}
    fit = list(tails)[: desk.deepest(tails.values())]
    prices = dict(zip(fit, desk.price([tails[n] for n in fit]), strict=True))
    below = {n: tails[n] for n, p in prices.items() if desk.limits.allow(p)}
    floor, top = costs.head.ram_bytes, best.price.ram_bytes
    sizes = {prices[n].ram_bytes for n in below}
    sizes |= {floor + (top - floor) * i // (_FRONT + 1) for i in range(1, _FRONT + 1)}
    asked = {"last-0": HEAD, **below}
    for size in sorted(s for s in sizes if s < top):
        candidate = _best_rule(desk, costs, known, replace(desk.limits, ram_bytes=size))
        if candidate not in asked.values():
            asked[f"auto below {size:,}"] = candidate
    return list(desk.measure(asked))
