"""What a search chooses from, and what it learns about each choice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from tte.training.scheme import LayerUpdate


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
