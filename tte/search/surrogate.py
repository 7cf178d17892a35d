"""What all runs so far say of every layer's gain: Bayesian linear regression over what a candidate trains.

Measuring one layer at a time wastes runs: with 1,000 validation samples the noise of a run is as large as what a layer gains.
Candidates in which many things train at once tell of all of them, as in a factorial design (Fisher, "The Design of
Experiments", 1935), and of what each is worth in company.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tte.search.candidate import Candidate, Layer
from tte.search.desk import FRACTIONS, channels
from tte.search.gains import Gains

KINDS = ("depthwise", "widens", "narrows")
# Standard deviations, in accuracy, of what is believed beforehand: of a kind's gain for a whole layer (and what it gains
# or loses from the first to the last layer), of what Fisher information tells, and of a layer's own deviations.
_KIND, _SLOPE, _FISHER, _WEIGHTS, _BIAS = 0.01, 0.02, 0.01, 0.006, 0.002


class Surrogate:
    """Accuracy = a + b * (what biases gain together) + for each layer whose weights train, its gain times `part`, + deviations.

    A layer's gain: its kind's, linear in its place, plus what its Fisher information tells, plus its own deviation. `part` of
    a fraction f of its channels is sqrt(f), moved towards the square root of the Fisher information that the chosen
    channels hold, as far as the runs say so. All coefficients are normal and learnt.

    Args:
        layers: those that may be chosen.
        curve: what each bias gains, from runs of ever more biases.
        fisher: as `tte.search.candidate.Bench.fisher` gives it.
        noise: standard deviation of one run's score.
    """

    def __init__(
        self, layers: Sequence[Layer], curve: Mapping[str, float], fisher: Mapping[str, Sequence[float]], noise: float
    ) -> None:
        self._layers = {x.name: x for x in layers}
        self._names = list(self._layers)
        self._curve, self._noise = curve, max(noise, 1e-4)
        self._information = {n: np.array(fisher.get(n, ())) for n in self._names}
        roots = np.array([float(v.sum()) ** 0.5 for v in self._information.values()])
        self._told = dict(zip(self._names, roots / max(float(roots.mean()), 1e-30) if len(roots) else roots, strict=True))
        last = max([1, *(x.index for x in layers)])
        self._place = {x.name: x.index / last - 0.5 for x in layers}
        count, kinds = len(self._names), len(KINDS)
        spread = [1e3, 0.5, *[_KIND] * kinds, *[_SLOPE] * kinds, _FISHER, 0.5, *[_BIAS] * count, *[_WEIGHTS] * count, _KIND]
        self._mean = np.zeros(len(spread))
        self._mean[1], self._mean[2 + 2 * kinds], self._mean[3 + 2 * kinds] = 1.0, 0.005, 0.5
        self._precision = np.diag(np.array(spread) ** -2.0)
        self._target = self._precision @ self._mean
        #: Scores that were learnt from.
        self.scores: list[float] = []

    def learn(self, candidate: Candidate, score: float) -> None:
        """One run's score."""
        x = self._features(candidate)
        self.scores.append(score)
        self._precision += np.outer(x, x) / self._noise**2
        self._target += x * score / self._noise**2

    def mean(self, rule: str = "norm") -> Gains:
        """Gains as they most likely are, for channels chosen by a rule (a key of `Layer.ranking`)."""
        return self._gains(np.linalg.solve(self._precision, self._target), rule)

    def draw(self, rng: np.random.Generator, rule: str = "norm") -> Gains:
        """Gains as they may be: a sample of the posterior."""
        lower = np.linalg.cholesky(self._precision)
        mean = np.linalg.solve(self._precision, self._target)
        return self._gains(mean + np.linalg.solve(lower.T, rng.standard_normal(len(mean))), rule)

    def predict(self, candidates: Sequence[Candidate]) -> list[float]:
        """Scores as they most likely are."""
        mean = np.linalg.solve(self._precision, self._target)
        return [float(self._features(c) @ mean) for c in candidates]

    def _gains(self, values: NDArray[np.floating[Any]], rule: str) -> Gains:
        kinds, count = len(KINDS), len(self._names)
        slope, told, held = max(0.0, float(values[1])), float(values[2 + 2 * kinds]), float(values[3 + 2 * kinds])
        own_bias, own = values[4 + 2 * kinds : 4 + 2 * kinds + count], values[4 + 2 * kinds + count : -1]
        bias = {n: slope * self._curve.get(n, 0.0) + float(d) for n, d in zip(self._names, own_bias, strict=True)}
        weights: dict[str, Mapping[float, float]] = {}
        for n, d in zip(self._names, own, strict=True):
            at = KINDS.index(self._layers[n].kind)
            whole = float(values[2 + at]) + float(values[2 + kinds + at]) * self._place[n] + told * self._told[n] + float(d)
            layer = self._layers[n]
            parts = {f: self._parts(n, channels(layer, f, rule)) for f in FRACTIONS}
            weights[n] = {f: whole * size + held * _UNIT * (known - size) for f, (size, known) in parts.items()}
        return Gains(bias, weights)

    def _features(self, candidate: Candidate) -> NDArray[np.float64]:
        kinds = len(KINDS)
        x = np.zeros(len(self._mean))
        x[0], x[1] = 1.0, sum(self._curve.get(n, 0.0) for n in candidate.biases)
        biases, weights = 4 + 2 * kinds, 4 + 2 * kinds + len(self._names)
        for n in candidate.biases:
            if n in self._layers:
                x[biases + self._names.index(n)] = 1.0
        for n, chosen in candidate.weights:
            if n not in self._layers:
                continue
            at = KINDS.index(self._layers[n].kind)
            size, known = self._parts(n, chosen)
            x[2 + at] += size
            x[2 + kinds + at] += self._place[n] * size
            x[2 + 2 * kinds] += self._told[n] * size
            x[3 + 2 * kinds] += _UNIT * (known - size)
            x[weights + self._names.index(n)] = size
            x[-1] += size if candidate.redraw and chosen else 0.0
        return x

    def _parts(self, name: str, chosen: Iterable[int]) -> tuple[float, float]:
        """Square roots of the share of channels that train, and of the Fisher information that they hold."""
        chosen, information = list(chosen), self._information[name]
        if not chosen:
            return 1.0, 1.0
        size = (len(chosen) / self._layers[name].channels) ** 0.5
        total = float(information.sum())
        return size, (float(information[chosen].sum()) / total) ** 0.5 if total > 0 else size


#: What a whole layer's weights may gain: the unit of the gain by choosing channels.
_UNIT = 0.01
