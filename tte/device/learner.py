"""What a device decides while it learns: which past samples it holds and learns from again, and whether it takes learning back.

The twin of firmware/src/replay.c and guard.c, decision for decision, in integers. What is held and learnt from is the
device's business: here a sample is its label, a place a number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from tte.fixed import random32, random_key

FULL_FACTOR = 32768
"""The guard's learning-rate factor of one, Q15."""
LEAST_FACTOR = 256
"""The guard lowers the learning rate no further."""

#: The draws' stream; those of the plan's operators are small.
_STREAM = 0xFFFFFFFF


def draw(seed: int, count: int, index: int, limit: int) -> int:
    """A random number below `limit`: the `index`-th of those that belong to the sample `count`."""
    return int(random32(random_key(seed, count, _STREAM), index)) * limit >> 32


@dataclass
class Memory:
    """Places for past samples, and which of them a fresh one takes. A sample stays in its place as long as it is held.

    A full memory stays balanced by class: A. Chrysakis, M.-F. Moens, "Online Continual Learning from Imbalanced Data", ICML
    2020, Algorithm 1. With one class that is J. S. Vitter's reservoir ("Random Sampling with a Reservoir", ACM TOMS 11(1),
    1985, Algorithm R). Or it is a ring, that holds the newest samples.

    Attributes:
        places: how many samples it can hold.
        classes: labels are below it; a model that learns from targets has one class.
        ring: whether it is a ring.
        labels: of the samples that are held, by place.
        doubted: the places of those that came since the guard last found the device in order.
        seen, held: samples by class that were offered, and are held.
        full: classes that were the largest when the memory was full.
        count: samples offered in all, modulo 2^32.
        following: where a ring goes on.
    """

    places: int
    classes: int
    ring: bool = False
    labels: dict[int, int] = field(default_factory=dict)
    doubted: set[int] = field(default_factory=set)
    seen: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    full: list[bool] = field(default_factory=list)
    count: int = 0
    following: int = 0

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Holds nothing, and has seen nothing."""
        self.labels, self.doubted = {}, set()
        self.seen, self.held, self.full = [0] * self.classes, [0] * self.classes, [False] * self.classes
        self.count = self.following = 0

    def choose(self, label: int, seed: int) -> int:
        """Where a sample of this label would go; -1: nowhere. Changes nothing."""
        if self.places == 0:
            return -1
        if self.ring:
            return self.following
        if len(self.labels) < self.places:
            return next(place for place in range(self.places) if place not in self.labels)
        if self.full[label]:
            index = draw(seed, self.count, 0, self.seen[label] + 1)
            return self._find(label, index) if index < self.held[label] else -1
        largest = self.held.index(max(self.held))
        return self._find(largest, draw(seed, self.count, 0, self.held[largest]))

    def take(self, label: int, place: int) -> None:
        """The sample went to the place that `choose` gave."""
        self.count = (self.count + 1) % 2**32
        self.seen[label] += 1
        if place < 0:
            return
        if place in self.labels:
            self.held[self.labels[place]] -= 1
        self.held[label] += 1
        self.labels[place] = label
        self.doubted.add(place)
        self.following = (place + 1) % self.places
        if len(self.labels) == self.places:
            most = max(self.held)
            self.full = [f or n == most for f, n in zip(self.full, self.held, strict=True)]

    def pick(self, index: int, seed: int) -> int:
        """The place of the `index`-th sample to learn from again behind the last that was taken; -1: there is none."""
        return sorted(self.labels)[draw(seed, self.count, 1 + index, len(self.labels))] if self.labels else -1

    def drop(self, place: int, *others: dict[int, Any]) -> None:
        """Forgets a sample, and what else belongs to its place.

        Which class is the largest is found anew when the memory is full again, or one that is far from it could grow no more.
        A ring goes on behind the newest that is left.
        """
        self.held[self.labels[place]] -= 1
        self.doubted.discard(place)
        for values in (self.labels, *others):
            del values[place]
        self.full = [False] * self.classes
        while self.labels and (self.following - 1) % self.places not in self.labels:
            self.following = (self.following - 1) % self.places

    def trust(self) -> None:
        """The guard found the device in order."""
        self.doubted = set()

    def forget(self, *others: dict[int, Any]) -> None:
        """The guard took learning back: what came since it last found the device in order is dropped, as by `drop`."""
        for place in sorted(self.doubted):
            self.drop(place, *others)

    def _find(self, label: int, index: int) -> int:
        """The `index`-th place that holds the label."""
        return [place for place, one in sorted(self.labels.items()) if one == label][index]


class Verdict(IntEnum):
    """What a check has found."""

    NOTHING = 0  # neither worth keeping nor bad enough
    GOOD = 1  # the state becomes the one to go back to
    BAD = 2  # the device goes back to that one


@dataclass
class Guard:
    """Whether a device that learns has become worse, by its score on held-out samples.

    A single score is noisy, and the best of many is luck: what counts is the best that a running mean of scores has been.

    Attributes:
        limit: how far a score may fall below that, in units of the score.
        factor: on the learning rate, Q15: halved when learning is taken back, raised by 1/32 at every other check.
        mean, best: of scores, in 1/256; None before the first.
        restores: how often learning was taken back.
    """

    limit: int
    factor: int = FULL_FACTOR
    mean: int | None = None
    best: int = 0
    restores: int = 0

    def judge(self, score: int) -> Verdict:
        """What follows from a score: right answers, or less the squared error."""
        value = score * 256
        if self.mean is None:
            self.mean = self.best = value
            return Verdict.GOOD
        if value < self.best - self.limit * 256:
            self.factor = max(self.factor >> 1, LEAST_FACTOR)
            self.restores += 1
            return Verdict.BAD
        self.mean += (value - self.mean) >> 3
        self.best = max(self.best, self.mean)
        self.factor = min(self.factor + (self.factor >> 5), FULL_FACTOR)
        return Verdict.GOOD if value >= self.best else Verdict.NOTHING
