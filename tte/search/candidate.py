"""What a search chooses from, and what it learns about each choice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from tte.training.scheme import LayerUpdate, UpdateScheme

T = TypeVar("T")


@dataclass(frozen=True)
class Candidate:
    """What trains beside the head, which always trains whole.

    Attributes:
        biases: layers whose bias trains, sorted.
        weights: layers whose weights train, sorted, each with the channels of the last weight axis that do (ascending;
            empty: all).
        mode: residual kept for each weight ("r4", "r8", "sr"); empty: as the search was told.
        rate: learning rate; 0: that of the candidate's class, see `tte.search.bench.Workbench.class_rate`.
        redraw: where some channels of a layer train, others are drawn every so many steps; 0: never.
    """

    biases: tuple[str, ...] = ()
    weights: tuple[tuple[str, tuple[int, ...]], ...] = ()
    mode: str = ""
    rate: float = 0.0
    redraw: int = 0

    def updates(self, head: str) -> dict[str, LayerUpdate]:
        """What of each layer trains, by name."""
        chosen = dict(self.weights)
        names = {*self.biases, *chosen} - {head}
        found = {}
        for n in sorted(names):
            some = chosen.get(n, ())
            found[n] = LayerUpdate(n in self.biases, n in chosen, some, self.redraw if some else 0)
        return {**found, head: LayerUpdate(True, True)}

    def scheme(self, name: str) -> UpdateScheme:
        """The candidate as an update scheme."""
        whole = {n: 1.0 for n, channels in self.weights if not channels}
        channels = {n: c for n, c in self.weights if c}
        return UpdateScheme(
            name, frozenset(self.biases), whole, channels=channels, mode=self.mode, rate=self.rate, redraw=self.redraw
        )

    @property
    def structure(self) -> Candidate:
        """The candidate without its learning rate: what its price depends on."""
        return replace(self, rate=0.0)

    @property
    def key(self) -> str:
        """16 hex digits that name the candidate, the same on every machine."""
        how = [self.mode, self.rate, self.redraw] if self.mode or self.rate or self.redraw else []
        text = json.dumps([list(self.biases), [[n, list(c)] for n, c in self.weights], *how])
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

    @property
    def kind(self) -> str:
        """"depthwise", "widens" (at least as many outputs as inputs) or "narrows": layers of a kind learn alike."""
        if self.weights < self.channels * self.biases:
            return "depthwise"
        return "widens" if self.biases >= self.channels else "narrows"


@dataclass(frozen=True)
class Price:
    """What a candidate costs on the device: RAM of the whole program (bytes), and predicted instructions a training step."""

    ram_bytes: int
    instructions: int


class Bench(Protocol):
    """What a strategy may ask. Questions asked together run in parallel; answers are kept, so asking again is free."""

    @property
    def mode(self) -> str:
        """The residual mode of candidates that name none."""

    @property
    def validation(self) -> int:
        """Samples that accuracy is measured on."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers that may train, in the model's order, without the head."""

    def accuracy(self, asked: list[tuple[Candidate, int]], samples: int) -> list[float]:
        """Accuracy on the validation samples after `samples` training steps, for (candidate, seed)."""

    def losses(self, asked: list[tuple[Candidate, int]], samples: int) -> list[float]:
        """Of the same runs, the mean loss (nats) on samples not learnt from: the last quarter's, each before its step; in
        several passes the validation samples."""

    def class_rate(self, candidates: list[Candidate]) -> list[float]:
        """The learning rate of each."""

    def near(self, rate: float) -> list[float]:
        """The learning rates beside one that may be tried, too."""

    def price(self, asked: list[Candidate]) -> list[Price]:
        """The planner's own figures."""

    def fisher(self) -> Mapping[str, tuple[float, ...]]:
        """Fisher information of each layer's weight channels and, under `NAME/bias`, of its biases."""

    def map(self, job: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> list[T]:
        """`job` with each of the arguments, in parallel; nothing is kept."""

    def say(self, text: str) -> None:
        """A line for whoever watches."""


@dataclass(frozen=True)
class Limits:
    """What a scheme must stay within, and what the search may spend.

    Attributes:
        ram_bytes, instructions: of a `Price`, inclusive; None: no limit.
        samples: training steps of one whole run; more than there are training samples: several passes.
        seeds: runs by which what is reported is measured.
        modes: residual modes that may be chosen beside the search's own.
    """

    ram_bytes: int | None
    instructions: int | None
    samples: int
    seeds: int
    modes: tuple[str, ...] = ()

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
