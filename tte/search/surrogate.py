"""What all whole runs so far say of every layer's gain: Bayesian linear regression around measured contributions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tte.search.candidate import Candidate, Layer
from tte.search.gains import Gains

_DOUBT = 0.5  # a layer's gain within a scheme differs from the measured one by so much of their root mean square


class Surrogate:
    """Accuracy = a + s * (sum of gains) + sum of d over what trains, with a and s free and each d normal around 0.

    s makes up for sums of single gains that overstate what they are worth together, d for what a layer is worth in company.

    Args:
        gains: measured, or drawn towards a prior.
        noise: standard deviation of one run.
    """

    def __init__(self, layers: Sequence[Layer], gains: Gains, noise: float) -> None:
        self._layers = {x.name: x for x in layers}
        self._gains = gains
        self._names = [n for n in self._layers if n in gains.bias]
        self._noise = max(noise, 1e-4)
        whole = [max(gains.weights.get(n, {}).values(), default=0.0) for n in self._names]
        biases = [gains.bias[n] for n in self._names]
        doubt = [_DOUBT * max(1e-4, float(np.sqrt(np.mean(np.square(x))))) if x else 1.0 for x in (biases, whole)]
        count = len(self._names)
        self._precision = np.diag([1e-6, 1.0, *[doubt[0] ** -2] * count, *[doubt[1] ** -2] * count])
        self._mean = np.array([0.0, 1.0, *[0.0] * (2 * count)])
        self._rows: list[NDArray[np.float64]] = []
        self._values: list[float] = []

    def learn(self, candidate: Candidate, accuracies: Sequence[float]) -> None:
        """Whole runs of a candidate."""
        for accuracy in accuracies:
            self._rows.append(self._features(candidate))
            self._values.append(accuracy)

    def draw(self, rng: np.random.Generator) -> Gains:
        """Gains as they may be: a sample of the posterior."""
        precision, target = self._precision.copy(), self._precision @ self._mean
        if self._rows:
            x, y = np.array(self._rows), np.array(self._values)
            precision += x.T @ x / self._noise**2
            target = target + x.T @ y / self._noise**2
        mean = np.linalg.solve(precision, target)
        lower = np.linalg.cholesky(precision)
        drawn = mean + np.linalg.solve(lower.T, rng.standard_normal(len(mean)))
        return self._as_gains(drawn)

    def _as_gains(self, values: NDArray[np.float64]) -> Gains:
        count, slope = len(self._names), max(0.0, float(values[1]))
        d_bias, d_weights = values[2 : 2 + count], values[2 + count :]
        bias = {n: slope * self._gains.bias[n] + float(d) for n, d in zip(self._names, d_bias, strict=True)}
        weights: dict[str, Mapping[float, float]] = {}
        for n, d in zip(self._names, d_weights, strict=True):
            by = self._gains.weights.get(n, {})
            weights[n] = {f: slope * g + float(d) * _part(f) for f, g in by.items()}
        return Gains(bias, weights)

    def _features(self, candidate: Candidate) -> NDArray[np.float64]:
        shares = {n: (len(c) / self._layers[n].channels if c else 1.0) for n, c in candidate.weights}
        total = sum(self._gains.bias.get(n, 0.0) for n in candidate.biases)
        for n, share in shares.items():
            by = self._gains.weights.get(n, {})
            total += by[_nearest(by, share)] if by else 0.0
        own = [float(n in candidate.biases) for n in self._names]
        return np.array([1.0, total, *own, *(_part(shares.get(n, 0.0)) for n in self._names)])


def _part(fraction: float) -> float:
    """How a layer's own deviation shrinks with the fraction of its channels that trains."""
    return float(np.sqrt(fraction))


def _nearest(fractions: Iterable[float], wanted: float) -> float:
    return min(fractions, key=lambda f: abs(f - wanted))
