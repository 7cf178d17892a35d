"""Strategies on benches whose truth is known."""

from __future__ import annotations

import itertools

import pytest
from synthetic_bench import HEAD_RAM, Synthetic

from tte.errors import ModelError
from tte.search import evolution, knapsack
from tte.search.candidate import Limits, Measured, Price
from tte.search.costs import fit, within
from tte.search.desk import FRACTIONS, Desk, Pick
from tte.search.gains import Gains, rising
from tte.search.strategies import STRATEGIES

_LIMITS = Limits(HEAD_RAM + 12_000, 4_000_000, 1000, 2)


def _noisy(seed: int = 0, count: int = 12) -> Synthetic:
    return Synthetic(count, seed, noise=0.01, hidden=8000, saturates=True)


@pytest.mark.parametrize("name", [n for n in STRATEGIES if n != "full"])
@pytest.mark.parametrize(
    "limits",
    [_LIMITS, Limits(HEAD_RAM + 3000, None, 400, 1), Limits(None, 2_000_000, 400, 1), Limits(HEAD_RAM, None, 8, 1)],
    ids=["both", "ram", "instructions", "nothing"],
)
def test_stays_within_the_limits_and_repeats_itself(name: str, limits: Limits) -> None:
    bench = _noisy(count=7)
    found = STRATEGIES[name](bench, limits, 3)
    assert limits.allow(bench.one_price(found.candidate))
    assert found.candidate in [m.candidate for m in found.front]
    for m in found.front:
        assert m.price == bench.one_price(m.candidate)
        assert limits.allow(m.price)
        assert len(m.accuracies) == limits.seeds
    assert STRATEGIES[name](_noisy(count=7), limits, 3) == found


@pytest.mark.parametrize("name", STRATEGIES)
def test_without_limits(name: str) -> None:
    found = STRATEGIES[name](_noisy(count=5), Limits(None, None, 100, 2), 0)
    assert found.front[0].mean > 0.4
    if name in ("full", "last-k"):
        assert len(found.candidate.weights) > 1


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_model_of_a_head_alone(name: str) -> None:
    found = STRATEGIES[name](Synthetic(0), Limits(None, None, 100, 1), 0)
    assert found.candidate.key == Pick().candidate([]).key


def test_what_cannot_fit_is_said() -> None:
    with pytest.raises(ModelError, match="head alone needs"):
        STRATEGIES["auto"](_noisy(), Limits(HEAD_RAM - 1, None, 100, 1), 0)
    with pytest.raises(ModelError, match="training everything needs"):
        STRATEGIES["full"](_noisy(), _LIMITS, 0)


def _brute_force(bench: Synthetic, gains: Gains, limits: Limits) -> float:
    """The largest sum of gains among all picks whose price fits."""
    names = [x.name for x in bench.layers]
    best = 0.0
    for fractions in itertools.product((0.0, *FRACTIONS), repeat=len(names)):
        weights = {n: f for n, f in zip(names, fractions, strict=True) if f}
        for mask in itertools.product((False, True), repeat=len(names)):
            pick = Pick(frozenset(n for n, on in zip(names, mask, strict=True) if on), weights)
            if (value := gains.of(pick)) > best and limits.allow(bench.one_price(pick.candidate(bench.layers))):
                best = value
    return best


def _true_gains(bench: Synthetic) -> Gains:
    return Gains(bench.bias_gain, {n: {f: g * f**0.5 for f in FRACTIONS} for n, g in bench.weight_gain.items()})


@pytest.mark.parametrize("seed", range(6))
def test_knapsack_finds_the_optimum(seed: int) -> None:
    bench = Synthetic(4, seed)
    limits = Limits(HEAD_RAM + 3000 + 2500 * seed, None if seed % 2 else 1_600_000, 100, 1)
    desk, gains = Desk(bench, limits, 0), _true_gains(bench)
    costs = fit(desk)
    pick, value = within(desk, costs, limits, lambda asked: knapsack.solve(costs, gains, asked))
    assert value == pytest.approx(_brute_force(bench, gains, limits), abs=1e-9)
    assert value == pytest.approx(gains.of(pick))


def test_evolution_comes_close_to_the_optimum() -> None:
    bench = Synthetic(10, 5)
    limits = Limits(HEAD_RAM + 15_000, None, 100, 1)
    desk, gains = Desk(bench, limits, 0), _true_gains(bench)
    costs = fit(desk)
    best = knapsack.solve(costs, gains, limits, all_biases=True)[1]
    found = evolution.evolve(costs, gains, limits, 0)
    assert 0.9 * best < found[1] <= best + 1e-9
    assert limits.allow(costs.estimate(found[0]))
    assert evolution.evolve(costs, gains, limits, 0) == found


def test_the_model_of_prices_is_exact_where_prices_are_additive() -> None:
    bench = Synthetic(6, 2)
    costs = fit(Desk(bench, Limits(None, None, 100, 1), 0))
    pick = Pick(frozenset(["block2/conv", "block5/conv"]), {"block1/conv": 0.5, "block4/conv": 1.0})
    assert costs.estimate(pick) == bench.one_price(pick.candidate(bench.layers))


def test_hidden_costs_are_found_out() -> None:
    """Single layers look cheap below the forward pass's peak: together they are not."""
    bench = Synthetic(10, 1, hidden=9000)
    limits = Limits(HEAD_RAM + 14_000, None, 100, 1)
    desk, gains = Desk(bench, limits, 0), _true_gains(bench)
    costs = fit(desk)
    first = knapsack.solve(costs, gains, limits)[0]
    assert not limits.allow(bench.one_price(first.candidate(bench.layers)))
    pick, value = within(desk, costs, limits, lambda asked: knapsack.solve(costs, gains, asked))
    assert limits.allow(bench.one_price(pick.candidate(bench.layers)))
    assert value > 0.8 * gains.of(first)


@pytest.mark.parametrize("seed", range(2))
def test_auto_beats_the_baselines(seed: int) -> None:
    limits = Limits(HEAD_RAM + 12_000, None, 1000, 3)
    bench = _noisy(seed, 16)
    truth = {n: bench.truth(STRATEGIES[n](bench, limits, 0).candidate) for n in ("auto", "last-k", "bias")}
    assert truth["auto"] > max(truth["last-k"], truth["bias"])


@pytest.mark.slow
def test_runs_stay_below_what_a_search_may_take() -> None:
    """42 layers: the search's promise is 40 minutes for 500 whole runs."""
    bench = _noisy(count=42)
    STRATEGIES["auto"](bench, Limits(HEAD_RAM + 30_000, None, 1000, 2), 0)
    assert bench.runs <= 500


def test_rising() -> None:
    assert rising([1.0, 3.0, 2.0, 4.0]) == [1.0, 2.5, 2.5, 4.0]
    assert rising([3.0, 2.0, 1.0]) == [2.0, 2.0, 2.0]
    assert rising([]) == []


def test_spread() -> None:
    assert Measured("x", Pick().candidate([]), Price(1, 1), (0.5, 0.7)).spread == pytest.approx(0.02**0.5)
