"""What a run has seen, step by step."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Point:
    """One evaluation, after `step` training steps; `loss`: mean training loss since the evaluation before."""

    step: int
    accuracy: float | None
    error: float | None
    loss: float | None
    samples: int


@dataclass
class History:
    """What a run has seen so far; whoever keeps it can go on from it later (`tte.journal`).

    A step of a run is one fresh sample. The device's own counter may grow by more: it counts past samples, too.

    Attributes:
        first: the device's step counter at the beginning.
        curve: the evaluations.
        losses: of each training step; None where its answer was lost.
        instructions: of each training step; 0 where the device cannot count.
        counters: the device's step counter after each training step, modulo 2**32.
    """

    first: int = 0
    curve: list[Point] = field(default_factory=list)
    losses: list[float | None] = field(default_factory=list)
    instructions: list[int] = field(default_factory=list)
    counters: list[int] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Training steps done."""
        return len(self.losses)

    @property
    def counter(self) -> int:
        """The device's step counter, as far as is known."""
        return self.counters[-1] if self.counters else self.first

    def learnt(self, loss: float | None, instructions: int, counter: int) -> None:
        """One training step more; `counter`: the device's, after it."""
        self.losses.append(loss)
        self.instructions.append(instructions)
        self.counters.append(counter)

    def measured(self, point: Point) -> None:
        """One evaluation more."""
        self.curve.append(point)

    def steps_at(self, counter: int) -> int | None:
        """Training steps done when the device's counter was this; None: it never was, as far as is known."""
        if counter == self.first:
            return 0
        return self.counters.index(counter) + 1 if counter in self.counters else None

    def moved_to(self, counter: int) -> None:
        """The device's counter is another: what it has forgotten goes; else it has done one step, whose answer was lost."""
        step = self.steps_at(counter)
        if step is None:
            self.losses.append(None)
            self.instructions.append(0)
            self.counters.append(counter)
            return
        del self.losses[step:], self.instructions[step:], self.counters[step:]
        self.curve = [point for point in self.curve if point.step <= step]

    def loss(self, since: int) -> float | None:
        """Mean of the losses that are known from step `since` on."""
        known = [loss for loss in self.losses[since:] if loss is not None]
        return statistics.fmean(known) if known else None
