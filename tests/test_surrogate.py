"""The search's model of what layers are worth, its random candidates and its small changes."""

from __future__ import annotations

import random

import numpy as np
import pytest
from synthetic_bench import HEAD_RAM, Synthetic

from tte.search import design
from tte.search.candidate import Candidate, Limits
from tte.search.costs import fit
from tte.search.desk import FRACTIONS, REDRAW, REDRAWN, Desk, Pick
from tte.search.moves import moved
from tte.search.refine import at_other_rates
from tte.search.surrogate import Surrogate

_LIMITS = Limits(HEAD_RAM + 12_000, None, 1000, 2)


def _known(bench: Synthetic, runs: int, noise: float) -> tuple[Surrogate, Desk]:
    desk = Desk(bench, _LIMITS, 0)
    known = Surrogate(bench.layers, dict.fromkeys(desk.names, 0.005), bench.fisher(), noise)
    costs = fit(desk)
    for candidate in design.draw(desk, costs, range(1, len(costs.names) + 1), runs, random.Random(1)):
        known.learn(candidate, bench.accuracy([(candidate, 0)], 1000)[0])
    return known, desk


@pytest.mark.parametrize("seed", range(3))
def test_many_runs_tell_what_each_layer_is_worth(seed: int) -> None:
    bench = Synthetic(10, seed, noise=0.003)
    known, _ = _known(bench, 200, 0.003)
    gains = known.mean()
    found = np.array([gains.weights[n][1.0] for n in gains.weights])
    truth = np.array([bench.weight_gain[n] for n in gains.weights])
    assert np.corrcoef(found, truth)[0, 1] > 0.85
    candidates = [Candidate(), Candidate((), ((bench.layers[3].name, ()),)), Candidate((), ((bench.layers[7].name, ()),))]
    assert known.predict(candidates) == pytest.approx([bench.truth(c) for c in candidates], abs=0.03)


def test_draws_scatter_round_the_mean_and_less_with_more_runs() -> None:
    bench, spread = Synthetic(8, 1, noise=0.01), []
    for runs in (5, 60):
        known, _ = _known(bench, runs, 0.01)
        dice = np.random.default_rng(0)
        drawn = np.array([[g for by in known.draw(dice).weights.values() for g in by.values()] for _ in range(200)])
        mean = np.array([g for by in known.mean().weights.values() for g in by.values()])
        assert np.abs(drawn.mean(0) - mean).max() < 0.004
        spread.append(drawn.std(0).mean())
    assert spread[1] < spread[0]


def test_random_candidates_fit_and_use_little_and_much_of_what_the_limits_allow() -> None:
    bench = Synthetic(12, 4)
    desk = Desk(bench, _LIMITS, 0)
    found = design.draw(desk, fit(desk), range(1, 13), 30, random.Random(3))
    prices = [bench.one_price(c).ram_bytes for c in found]
    assert len(found) == 30 and all(_LIMITS.allow(bench.one_price(c)) for c in found)
    assert min(prices) < HEAD_RAM + 0.5 * 12_000 < HEAD_RAM + 0.85 * 12_000 < max(prices)
    assert {c.redraw for c in found} == {0, REDRAW}
    assert found == design.draw(desk, fit(desk), range(1, 13), 30, random.Random(3))


def test_changes_are_small_and_stay_in_the_space() -> None:
    names = [f"layer{i}" for i in range(6)]
    rng, pick, seen = random.Random(0), Pick(frozenset(names[3:]), {names[4]: 0.5}), set()
    for _ in range(300):
        new = moved(rng, pick, names)
        assert new.biases <= set(names) and set(new.weights) <= set(names) and set(new.weights.values()) <= set(FRACTIONS)
        changed = {n for n in names if new.weights.get(n) != pick.weights.get(n)}
        assert len(changed) <= 6
        seen.add(new.rule)
    assert seen == {"norm", "fisher", "random", REDRAWN}
    assert moved(rng, Pick(), []) == Pick()


def test_asking_again_changes_nothing() -> None:
    bench = Synthetic(6, 2, noise=0.02)
    desk = Desk(bench, _LIMITS, 0)
    tails = [Candidate(tuple(sorted(desk.names[-k:]))) for k in range(1, 7)]
    first = desk.scores(tails, 1000, desk.seeds)
    spent = desk.spent
    measured = desk.measure({str(i): c for i, c in enumerate(tails)})
    worth = [desk.worth(m) for m in measured]
    assert worth == [sum(s) / len(s) for s in desk.scores(tails, 1000, desk.seeds)] == [desk.worth(m) for m in measured]
    assert spent == desk.spent == len(tails) * _LIMITS.seeds and len(first) == len(tails)


class _Rated(Synthetic):
    """Learns best at a rate of its own."""

    def accuracy(self, asked: list[tuple[Candidate, int]], samples: int) -> list[float]:
        found = super().accuracy(asked, samples)
        return [a - 0.02 * abs(np.log2((c.rate or 0.01) / 0.0025)) for a, (c, _) in zip(found, asked, strict=True)]

    def losses(self, asked: list[tuple[Candidate, int]], samples: int) -> list[float]:
        return [4 - 3.3 * a for a in self.accuracy(asked, samples)]

    def near(self, rate: float) -> list[float]:
        return [r for r in (rate / 2, rate * 2) if 0.0005 < r < 0.1]


def test_rates_go_on_while_that_is_better() -> None:
    bench = _Rated(5, 0)
    desk = Desk(bench, _LIMITS, 0)
    start = desk.measure({"a": Candidate((bench.layers[-1].name,))})
    tried = [m.candidate.rate for m in at_other_rates(desk, start)]
    assert sorted(tried) == [0.00125, 0.0025, 0.005, 0.02]
