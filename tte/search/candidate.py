"""What a search chooses from, and what it learns about each choice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from tte.training.scheme import LayerUpdate, UpdateScheme


@dataclass(frozen=True)
class Candidate:
    """What trains beside the head, which always trains whole.

    Attributes:
        biases: layers whose bias trains, sorted.
        weights: layers whose weights train, sorted, each with the channels of the last weight axis that do (ascending;
            empty: all).
    """

    biases: tuple[str, ...] = ()
    weights: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def updates(self, head: str) -> dict[str, LayerUpdate]:
        """What of each layer trains, by name."""
        chosen = dict(self.weights)
        names = {*self.biases, *chosen} - {head}
        found = {n: LayerUpdate(n in self.biases, n in chosen, chosen.get(n, ())) for n in sorted(names)}
        return {**found, head: LayerUpdate(True, True)}

    def scheme(self, name: str) -> UpdateScheme:
        """The candidate as an update scheme."""
        whole = {n: 1.0 for n, channels in self.weights if not channels}
        return UpdateScheme(name, frozenset(self.biases), whole, channels={n: c for n, c in self.weights if c})

    @property
    def key(self) -> str:
        """16 hex digits that name the candidate, the same on every machine."""
        text = json.dumps([list(self.biases), [[n, list(c)] for n, c in self.weights]])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Layer:
    """A layer that may train.

    Attributes:
        index: its place in the model, 0 being the first.
        channels: of the last weight axis; the choice `channels[:n]` of `ranking` is the best n of them.
        ranking: channels by rank, best first, for each rule ("norm", "fisher", "random").
        weights, biases: how many there are.
        macs: multiply-accumulates of its forward pass.
    """

    name: str
    index: int
    channels: int
    ranking: Mapping[str, tuple[int, ...]]
    weights: int
    biases: int
    macs: int


@dataclass(frozen=True)
class Price:
    """What a candidate costs on the device: RAM of the whole program (bytes), and predicted instructions a training step."""

    ram_bytes: int
    instructions: int


class Bench(Protocol):
    """What a strategy may ask. Questions asked together run in parallel; answers are kept, so asking again is free."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers that may train, in the model's order, without the head."""

    def accuracy(self, asked: list[tuple[Candidate, int]], samples: int) -> list[float]:
        """Accuracy on the validation samples after one pass over `samples` training samples, for (candidate, seed)."""

    def price(self, asked: list[Candidate]) -> list[Price]:
        """The planner's own figures."""

    def fisher(self) -> Mapping[str, tuple[float, ...]]:
        """Fisher information of each layer's weight channels and, under `NAME/bias`, of its biases."""

    def say(self, text: str) -> None:
        """A line for whoever watches."""


@dataclass(frozen=True)
class Limits:
    """What a scheme must stay within, and what the search may spend.

    Attributes:
        ram_bytes, instructions: of a `Price`, inclusive; None: no limit.
        samples: training samples of one whole run.
        seeds: runs by which what is reported is measured.
    """

    ram_bytes: int | None
    instructions: int | None
    samples: int
    seeds: int

    def allow(self, price: Price) -> bool:
        """Whether a price stays within both limits."""
        ram, instructions = self.ram_bytes, self.instructions
        return (ram is None or price.ram_bytes <= ram) and (instructions is None or price.instructions <= instructions)


@dataclass(frozen=True)
class Contribution:
    """What training one thing gains: accuracy (0..1), or the strategy's own score; against what, `Found.notes` say.

    Attributes:
        part: "bias" (this layer's), "biases" (this layer's and those of all layers behind it) or "weights".
        fraction: of the layer's channels, for weights.
    """

    layer: str
    part: str
    fraction: float
    gain: float


@dataclass(frozen=True)
class Measured:
    """A candidate with its price and its accuracy, 0..1, for each seed."""

    name: str
    candidate: Candidate
    price: Price
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.accuracies) / max(1, len(self.accuracies))

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; 0 for a single one."""
        n = len(self.accuracies)
        return (sum((a - self.mean) ** 2 for a in self.accuracies) / (n - 1)) ** 0.5 if n > 1 else 0.0


@dataclass(frozen=True)
class Found:
    """What a strategy found.

    Attributes:
        candidate: its choice; it stays within the limits.
        contributions: what it measured of single layers, if it did.
        front: candidates measured whole (all samples, all seeds); the choice is among them.
        notes: sentences for people: what was done, what was cut short, what the figures are not.
    """

    candidate: Candidate
    contributions: tuple[Contribution, ...] = ()
    front: tuple[Measured, ...] = ()
    notes: tuple[str, ...] = ()
