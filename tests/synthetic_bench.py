"""A bench that computes nothing: known contributions that add up, noise, and prices like a planner's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from tte.search.candidate import Candidate, Layer, Price

T = TypeVar("T")
HEAD_RAM, HEAD_INSTRUCTIONS = 20_000, 1_000_000


@dataclass
class Synthetic:
    """Layers with drawn sizes and gains.

    Attributes:
        noise: standard deviation of a run of 1,000 samples, in accuracy.
        hidden: bytes of the forward pass's peak, below which saved inputs and errors cost nothing (0: prices are additive).
        saturates: the sum of gains s counts as 0.3 * (1 - exp(-s / 0.3)).
        runs, prices: how many were asked for.
    """

    count: int = 12
    seed: int = 0
    noise: float = 0.0
    hidden: int = 0
    saturates: bool = False
    runs: int = 0
    prices: int = 0
    said: list[str] = field(default_factory=list)
    mode: str = "r4"
    validation: int = 1000

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.layers: tuple[Layer, ...] = tuple(self._layer(rng, i) for i in range(self.count))
        self.bias_gain = {x.name: float(rng.uniform(0, 0.01)) for x in self.layers}
        self.weight_gain = {x.name: float(rng.exponential(0.02)) for x in self.layers}
        self.saved = {x.name: int(rng.integers(500, 4000)) for x in self.layers}
        self.worth = {x.name: rng.dirichlet(np.full(x.channels, 0.5)) for x in self.layers}

    @staticmethod
    def _layer(rng: np.random.Generator, index: int) -> Layer:
        channels, biases = (int(c) for c in rng.choice([16, 32, 48, 64], 2))
        ranking = {rule: tuple(int(c) for c in rng.permutation(channels)) for rule in ("norm", "fisher", "random")}
        return Layer(f"block{index}/conv", index, channels, ranking, channels * biases, biases, channels * biases * 64)

    def share(self, name: str, channels: tuple[int, ...]) -> float:
        """The share of a layer's weights that trains."""
        return len(channels) / next(x.channels for x in self.layers if x.name == name) if channels else 1.0

    def truth(self, c: Candidate) -> float:
        """Accuracy without noise."""
        gain = sum(self.bias_gain[n] for n in c.biases) + sum(self.weight_gain[n] * self.share(n, w) ** 0.5 for n, w in c.weights)
        return 0.5 + (0.3 * (1 - np.exp(-gain / 0.3)) if self.saturates else gain)

    def accuracy(self, asked: list[tuple[Candidate, int]], samples: int) -> list[float]:
        self.runs += len(asked)
        return [self.truth(c) + self._noise(c, s, samples) for c, s in asked]

    def losses(self, asked: list[tuple[Candidate, int]], samples: int) -> list[float]:
        return [4 - 3.3 * (self.truth(c) + self._noise(c, s + 1000, samples)) for c, s in asked]

    def class_rate(self, candidates: list[Candidate]) -> list[float]:
        return [c.rate or 0.01 for c in candidates]

    def near(self, rate: float) -> list[float]:
        return [r for r in (rate / 2, rate * 2) if 0.002 < r < 0.03]

    def _noise(self, c: Candidate, seed: int, samples: int) -> float:
        digest = hashlib.sha256(f"{c.key} {seed} {samples}".encode()).digest()
        drawn = np.random.default_rng(list(digest)).normal()
        return float(drawn * self.noise * (1000 / samples) ** 0.5) if self.noise else 0.0

    def one_price(self, c: Candidate) -> Price:
        """State, all weights where channels are drawn anew; the arena: saved inputs, and errors back to the cut, or the
        forward pass's peak."""
        sizes = {x.name: x for x in self.layers}
        trained = {*c.biases, *dict(c.weights)}
        state = sum(4 * sizes[n].biases for n in c.biases)
        saved = instructions = 0
        for n, channels in c.weights:
            share = self.share(n, channels)
            state += round(1.5 * share * sizes[n].weights) + round((1 - share) * sizes[n].weights * bool(c.redraw))
            saved += round(share * self.saved[n])
            instructions += round(2 * share * sizes[n].macs)
        back = self.count - min((sizes[n].index for n in trained), default=self.count)
        instructions += 30_000 * back + sum(1000 * sizes[n].biases for n in c.biases)
        arena = max(HEAD_RAM, HEAD_RAM - self.hidden + saved + 700 * back)
        return Price(arena + state, HEAD_INSTRUCTIONS + instructions)

    def price(self, asked: list[Candidate]) -> list[Price]:
        self.prices += len(asked)
        return [self.one_price(c) for c in asked]

    def fisher(self) -> Mapping[str, tuple[float, ...]]:
        """Information that tells something of the gains."""
        rng = np.random.default_rng(self.seed + 1)
        found = {x.name: tuple(self.weight_gain[x.name] * float(rng.uniform(0.5, 2)) * self.worth[x.name]) for x in self.layers}
        return found | {f"{x.name}/bias": (self.bias_gain[x.name],) * x.biases for x in self.layers}

    def map(self, job: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> list[T]:
        return [job(*a) for a in arguments]

    def say(self, text: str) -> None:
        self.said.append(text)
