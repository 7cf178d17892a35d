"""What training a layer gains: measured by short runs, smoothed by what must hold of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tte.search.candidate import Contribution
from tte.search.desk import FRACTIONS, HEAD, Desk, Pick


@dataclass(frozen=True)
class Gains:
    """Gains in accuracy, by layer name; sums of them stand for a scheme's, which they are not quite.

    Attributes:
        bias: of each layer's bias.
        weights: of each layer's weights, by fraction of its channels.
    """

    bias: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, Mapping[float, float]] = field(default_factory=dict)

    def contributions(self) -> tuple[Contribution, ...]:
        """The same, for a report."""
        found = [Contribution(n, "bias", 1.0, g) for n, g in self.bias.items()]
        return (*found, *(Contribution(n, "weights", f, g) for n, by in self.weights.items() for f, g in by.items()))

    def of(self, pick: Pick) -> float:
        """The sum over a pick."""
        sums = sum(self.bias.get(n, 0.0) for n in pick.biases)
        return sums + sum(self.weights.get(n, {}).get(f, 0.0) for n, f in pick.weights.items())


@dataclass(frozen=True)
class Analysis:
    """A contribution analysis.

    Attributes:
        gains: smoothed.
        raw: as measured; `biases` against the head alone, `weights` against the biases of all these layers.
        noise: standard error of one measured gain, 0 where single runs tell nothing of it.
        runs: how many there were, and of how many samples.
    """

    gains: Gains
    raw: tuple[Contribution, ...]
    noise: float
    runs: int
    samples: int

    def weights(self) -> dict[tuple[str, float], float]:
        """Measured gains of weights, by layer and fraction."""
        return {(c.layer, c.fraction): c.gain for c in self.raw if c.part == "weights"}


def analyse(desk: Desk, names: Sequence[str], fractions: Sequence[float], samples: int, seeds: Sequence[int]) -> Analysis:
    """Contribution analysis after TTE (Lin et al., NeurIPS 2022).

    Biases: the gain of training the biases of the last k layers over training the head alone, for every k. Weights: the
    gain of each layer's weights alone over the biases of all these layers. The reference runs with all of the search's seeds.

    Gains of ever more biases, and of a larger fraction, are made never to fall (pool adjacent violators), since with
    few seeds differences between neighbours are mostly noise; between pools the bias gain is interpolated.
    """
    if not names:
        return Analysis(Gains(), (), 0.0, 0, samples)
    every = frozenset(names)
    tails = [Pick(frozenset(names[i:])).candidate(desk.layers) for i in range(len(names))]
    grid = [(n, f) for n in names for f in fractions]
    picks = [Pick(every, {n: f}).candidate(desk.layers) for n, f in grid]
    reference = desk.runs([HEAD, tails[0]], samples, desk.seeds)
    references = [sum(r) / len(r) for r in reference]
    found = desk.runs([*tails, *picks], samples, seeds)
    means = [sum(r) / len(r) for r in found]
    over_head = [m - references[0] for m in means[: len(tails)]]
    over_bias = dict(zip(grid, (m - references[1] for m in means[len(tails) :]), strict=True))
    curve = _ramp(rising(over_head[::-1]))  # of the last 1, 2, ... layers
    bias = dict(zip(reversed(names), np.diff([0.0, *curve]).tolist(), strict=True))
    weights = {n: dict(zip(fractions, rising([over_bias[n, f] for f in fractions]), strict=True)) for n in names}
    raw = [Contribution(n, "biases", 1.0, g) for n, g in zip(names, over_head, strict=True)]
    raw += [Contribution(n, "weights", f, g) for (n, f), g in over_bias.items()]
    noise = standard_error([*reference, *found], len(seeds))
    runs = len(found) * len(seeds) + 2 * len(desk.seeds)
    return Analysis(Gains(bias, weights), tuple(raw), noise, runs, samples)


def standard_error(runs: Sequence[Sequence[float]], count: int) -> float:
    """Of a mean over `count` seeds: variance between seeds, pooled over candidates; 0 where none ran twice."""
    free = sum(len(r) - 1 for r in runs)
    squares = sum(float(np.var(r)) * len(r) for r in runs)
    return math.sqrt(squares / free / count) if free else 0.0


def rising(values: Sequence[float]) -> list[float]:
    """The closest sequence, by least squares, that never falls: pool adjacent violators."""
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (b, m), (a, n) = pools.pop(), pools.pop()
            pools.append(((a * n + b * m) / (n + m), n + m))
    return [v for v, n in pools for _ in range(n)]


def _ramp(values: Sequence[float]) -> list[float]:
    """A curve that rises between the middles of its level stretches, from 0 before the first: the same ends."""
    middles: list[tuple[float, float]] = [(0.0, 0.0)]
    at = 0
    while at < len(values):
        level = [i for i in range(at, len(values)) if values[i] == values[at]]
        middles.append((1 + (level[0] + level[-1]) / 2, values[at]))
        at = level[-1] + 1
    x, y = zip(*middles, strict=True)
    return [float(v) for v in np.interp(np.arange(1, len(values) + 1), x, y)]


def with_prior(analysis: Analysis, fisher: Mapping[str, Sequence[float]], fractions: Sequence[float]) -> Gains:
    """Gains drawn towards what the layers' Fisher information predicts, as far as noise explains the difference.

    Empirical Bayes: weights' gains at fraction 1 are regressed on the logarithm of Fisher information; the excess of the
    residual variance over the noise's is what is believed of a measured difference. The gain of a fraction f is that of
    the whole times f**p, with one p for all layers, by least squares over the fractions (ascending). Bias gains keep half
    of their measured place and share the rest out by Fisher information: on the curve neighbours can hardly be told apart.
    """
    names = list(analysis.gains.bias)
    if not names:
        return analysis.gains
    by = analysis.weights()
    measured = np.array([[by[n, f] for f in fractions] for n in names])
    shares = np.array(fractions)
    totals, power = measured.sum(axis=0), 0.0
    if len(shares) > 1 and totals[-1] > 0:
        power = math.log(float(np.clip(totals[0] / totals[-1], shares[0] / shares[-1], 1.0))) / math.log(shares[0] / shares[-1])
    law = (shares / shares[-1]) ** power
    whole = measured @ law / float(law @ law)  # least squares
    information = np.log([sum(fisher.get(n, ())) + 1e-30 for n in names])
    believed = whole
    if len(names) > 3 and np.ptp(information) > 0:
        line = np.polyval(np.polyfit(information, whole, 1), information)
        residual = float(((whole - line) ** 2).sum()) / (len(names) - 2)
        noise = analysis.noise**2 / float(law @ law)
        trust = max(0.0, 1.0 - noise / residual) if residual > 0 else 1.0
        believed = trust * whole + (1 - trust) * line
    between = sorted({*FRACTIONS, *fractions})
    weights = {n: {f: float(g) * (f / fractions[-1]) ** power for f in between} for n, g in zip(names, believed, strict=True)}
    total = sum(analysis.gains.bias.values())
    parts = np.array([sum(fisher.get(f"{n}/bias", ())) for n in names])
    parts = parts / parts.sum() if parts.sum() > 0 else np.full(len(names), 1 / len(names))
    bias = {n: 0.5 * analysis.gains.bias[n] + 0.5 * total * float(s) for n, s in zip(names, parts, strict=True)}
    return Gains(bias, weights)
