"""The run loop: samples go to a device one by one, it learns, and held-out samples say how well.

It knows neither emulator nor C: a device is anything with the three calls of `Device`. A seed settles the whole run: what
comes at which step follows from the step alone, so that a device which lost some steps (Moved) goes on from where it is.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tte.data import Dataset
from tte.device.steady import Moved
from tte.errors import DataError
from tte.history import History, Point

Int8 = NDArray[np.int8]

FULL_RATE = 32768
"""The learning-rate factor eta that leaves the compiled learning rate as it is (Q15, 1.0)."""

CROSS_ENTROPY_LOSS_SCALE = math.log(2) / 256
"""Nats in a unit of the device's cross-entropy loss, which counts 1/256 bit."""

Kind = Literal["evaluate", "train", "score"]

_HOLDS = 100  # the factor changes at most this often in a run


class TrainResult(Protocol):
    """What a device answers to a training sample."""

    @property
    def loss(self) -> int: ...
    @property
    def instructions(self) -> int: ...
    @property
    def logits(self) -> Int8: ...
    @property
    def step(self) -> int: ...


class Device(Protocol):
    """The part of a device session that a run needs."""

    def infer(self, x: Int8) -> Int8: ...
    def train(self, x: Int8, label: int | None, target: Int8 | None) -> TrainResult: ...
    def set_control(self, learning_rate: int, seed: int, step: int) -> None: ...


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then half a cosine down to zero, in whole steps of the factor eta; after the run it is `peak`, for a
    device that goes on by itself.

    Attributes:
        peak: largest factor, 1..32768 (Q15 of the learning rate that was compiled in).
        warm_up: share of the run that warms up, 0 to below 1.
    """

    peak: int = FULL_RATE
    warm_up: float = 0.05

    def __post_init__(self) -> None:
        if not (1 <= self.peak <= FULL_RATE and 0 <= self.warm_up < 1):
            raise ValueError(f"peak {self.peak} or warm_up {self.warm_up} out of range")

    def factor(self, step: int, steps: int) -> int:
        """eta for `step` of `steps`, 0..peak; constant over hundredths of the run, each taking its middle's value."""
        if step >= steps:
            return self.peak
        hold = max(1, steps // _HOLDS)
        at = min(step // hold * hold + hold / 2, steps) / steps
        if at < self.warm_up:
            share = at / self.warm_up
        else:
            share = (1 + math.cos(math.pi * (at - self.warm_up) / (1 - self.warm_up))) / 2
        return round(self.peak * share)


@dataclass(frozen=True)
class Score:
    """Held-out quality: a classifier's `accuracy`, 0..1; or `error`, the mean squared error in real units squared."""

    accuracy: float | None
    error: float | None
    samples: int


@dataclass(frozen=True)
class Event:
    """Progress, for whoever watches: one sample is done, or (kind "score") an evaluation is complete.

    Attributes:
        kind: what the sample was for; "score": `score` is new.
        done, total: samples done and planned in the whole run, evaluations included.
        step, steps: training steps done and planned.
        score: the latest complete evaluation.
        loss: mean training loss of the last 50 steps.
        instructions: instructions of the last training step; 0 where the device cannot count.
    """

    kind: Kind
    done: int
    total: int
    step: int
    steps: int
    score: Score | None
    loss: float | None
    instructions: int


@dataclass(frozen=True)
class RunLog:
    """What happened in a run; every field is JSON.

    Attributes:
        accuracy_before, accuracy_after: share of held-out samples that are right, 0..1; None for mean squared error
            models; an interrupted run has no `after`.
        error_before, error_after: mean squared error, real units squared; None for classifiers.
        curve: every evaluation in order; the first and the last are `before` and `after`.
        losses: training loss of each step (nats, or mean squared error), before the step changed anything; None where
            the answer was lost with the line to the device.
        instructions_per_step: median; None where the device cannot count.
        steps: training steps done.
        seconds: wall-clock time of the run.
        seed: of the order of the samples, and of the device's random numbers.
        interrupted: the user stopped the run.
        notes: what a reader must know to read the figures.
    """

    accuracy_before: float | None
    accuracy_after: float | None
    error_before: float | None
    error_after: float | None
    instructions_per_step: int | None
    instructions_min: int | None
    instructions_max: int | None
    steps: int
    seconds: float
    seed: int
    interrupted: bool
    curve: tuple[Point, ...]
    losses: tuple[float | None, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain lists, numbers and strings."""
        return dataclasses.asdict(self)


def evaluate(
    device: Device, dataset: Dataset, indices: NDArray[np.int64], watch: Callable[[], None] = lambda: None
) -> Score:
    """Run inference on the held-out samples `indices`; `watch` is called after each.

    The class is the output's largest value, the first of equals. Squared errors are summed as integers.
    """
    right, squares, values = 0, 0, 0
    for index in indices:
        sample = dataset.test(int(index))
        out = device.infer(sample.x).reshape(-1)
        if sample.target is None:
            right += int(out.argmax()) == sample.label
        else:
            difference = out.astype(np.int64) - sample.target.reshape(-1)
            squares += int((difference * difference).sum())
            values += out.size
        watch()
    if dataset.output is None:
        return Score(right / len(indices), None, len(indices))
    return Score(None, squares / values * dataset.output.scale**2, len(indices))


def evaluated(dataset: Dataset, seed: int) -> NDArray[np.int64]:
    """All held-out samples, in the order in which evaluations of some of them take the first."""
    return np.random.default_rng([seed, 0]).permutation(dataset.test_count)


def loss_unit(dataset: Dataset) -> float:
    """One unit of the device's integer loss in nats, or in mean squared error (real units squared)."""
    if dataset.output is None:
        return CROSS_ENTROPY_LOSS_SCALE
    return dataset.output.scale**2 / math.prod(dataset.output.shape)


@dataclass
class _Walk:
    """One run: what happens at which step. The history says how far it is."""

    device: Device
    dataset: Dataset
    history: History
    steps: int
    every: int
    during: NDArray[np.int64]
    final: NDArray[np.int64]
    on_event: Callable[[Event], None]

    def tell(self, kind: Kind, measured: int = 0) -> None:
        """`measured`: samples of an evaluation that is under way."""
        past = self.history
        last = past.curve[-1] if past.curve else None
        self.on_event(
            Event(
                kind,
                past.step + sum(point.samples for point in past.curve) + measured,
                self.steps + 2 * len(self.final) + (self.steps - 1) // self.every * len(self.during),
                past.step,
                self.steps,
                Score(last.accuracy, last.error, last.samples) if last else None,
                past.loss(max(0, past.step - 50)),
                past.instructions[-1] if past.instructions else 0,
            )
        )

    def due(self) -> NDArray[np.int64]:
        """The held-out samples of the evaluation that is due; none, where none is."""
        step, curve = self.history.step, self.history.curve
        if curve and (curve[-1].step == step or (step % self.every and step < self.steps)):
            return self.final[:0]
        return self.during if curve and step < self.steps else self.final

    def evaluate(self, indices: NDArray[np.int64]) -> None:
        count = itertools.count(1)
        score = evaluate(self.device, self.dataset, indices, lambda: self.tell("evaluate", next(count)))
        past = self.history
        loss = past.loss(past.curve[-1].step) if past.curve else None
        past.measured(Point(past.step, score.accuracy, score.error, loss, score.samples))
        self.tell("score")

    def go(self, seed: int, schedule: Schedule, scale: float) -> None:
        """To the end, unless the device moves: raises Moved then."""
        rate, order = None, _Order(self.dataset.train_count, seed)
        while True:
            step = self.history.step
            if (wanted := schedule.factor(step, self.steps)) != rate:
                self.device.set_control(learning_rate=wanted, seed=seed & 0xFFFFFFFF, step=self.history.counter)
                rate = wanted
            if len(indices := self.due()):
                self.evaluate(indices)
            if step >= self.steps:
                return
            sample = self.dataset.train(order(step))
            result = self.device.train(sample.x, sample.label if sample.target is None else None, sample.target)
            self.history.learnt(result.loss * scale, result.instructions, result.step)
            self.tell("train")


def run(
    device: Device,
    dataset: Dataset,
    *,
    epochs: int = 1,
    steps: int | None = None,
    seed: int = 0,
    schedule: Schedule = Schedule(),
    loss_scale: float | None = None,
    eval_every: int | None = None,
    eval_samples: int | None = 200,
    final_samples: int | None = None,
    first_step: int = 0,
    history: History | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> RunLog:
    """Let `device` learn from `dataset`, one sample at a time in a seeded order.

    Args:
        epochs: passes over the training samples; `steps` overrides it.
        steps: training steps.
        seed: order of the samples, choice of the evaluated ones, and the device's random numbers (32 bits of it).
        schedule: learning-rate factor over the run; the device is told only when it changes.
        loss_scale: one unit of the device's loss in the log's unit; None: `loss_unit(dataset)`.
        eval_every: training steps between evaluations; None: ten evaluations in the run.
        eval_samples: held-out samples of each evaluation during the run; None: all.
        final_samples: held-out samples of the first and last evaluation; None: all.
        first_step: the device's step counter at the first step: what it has learnt before has used the random numbers below.
        history: what this run has seen already; it goes on from there, and knows the first step.
        on_event: called after each sample and each evaluation.

    Returns:
        The log; after Ctrl-C (KeyboardInterrupt) the log so far, `interrupted` set. The device is then not asked again.

    Raises:
        DataError: no steps, or evaluations of nothing.
        DeviceError: from the device.
    """
    scale = loss_unit(dataset) if loss_scale is None else loss_scale
    planned = steps if steps is not None else epochs * dataset.train_count
    if planned < 1:
        raise DataError("nothing to learn: the run has no steps", remedy="give --steps or --epochs of at least 1")
    if any(n is not None and n < 1 for n in (eval_samples, final_samples, eval_every)):
        raise DataError("evaluations need at least one sample and one step between them")
    order = evaluated(dataset, seed)
    during, final = order[:eval_samples], order[:final_samples]
    past = History(first_step) if history is None else history
    walk = _Walk(device, dataset, past, planned, eval_every or -(-planned // 10), during, final, on_event)
    started = time.monotonic()
    interrupted = False
    try:
        while True:
            try:
                walk.go(seed, schedule, scale)
                break
            except Moved as moved:
                past.moved_to(moved.step)
    except KeyboardInterrupt:
        interrupted = True
    return _log(past, planned, dataset, seed, interrupted, time.monotonic() - started, len(during), len(final))


class _Order:
    """Which training sample comes at which step: each pass is a permutation of its own, drawn from the seed and the pass."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        self._pass, self._drawn = -1, np.zeros(0, np.int64)

    def __call__(self, step: int) -> int:
        number, at = divmod(step, self._count)
        if number != self._pass:
            self._pass, self._drawn = number, np.random.default_rng([self._seed, number + 1]).permutation(self._count)
        return int(self._drawn[at])


def _log(
    run: History, planned: int, dataset: Dataset, seed: int, interrupted: bool, seconds: float, during: int, final: int
) -> RunLog:
    counts = [count for count in run.instructions if count]
    before = run.curve[0] if run.curve else None
    after = run.curve[-1] if not interrupted else None
    notes = [*dataset.notes, f"evaluated before and after on {final:,} held-out samples, during the run on {during:,}"]
    if interrupted:
        notes.append(f"stopped by the user after {run.step:,} of {planned:,} steps; not evaluated after that")
    return RunLog(
        accuracy_before=before.accuracy if before else None,
        accuracy_after=after.accuracy if after else None,
        error_before=before.error if before else None,
        error_after=after.error if after else None,
        instructions_per_step=round(statistics.median(counts)) if counts else None,
        instructions_min=min(counts) if counts else None,
        instructions_max=max(counts) if counts else None,
        steps=run.step,
        seconds=round(seconds, 3),
        seed=seed,
        interrupted=interrupted,
        curve=tuple(run.curve),
        losses=tuple(run.losses),
        notes=tuple(notes),
    )
