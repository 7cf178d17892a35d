"""The run loop: samples go to a device one by one, it learns, and held-out samples say how well.

It knows neither emulator nor C: a device is anything with the three calls of `Device`. A seed settles the whole run.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tte.data import Dataset
from tte.errors import DataError

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


class Device(Protocol):
    """The part of a device session that a run needs."""

    def infer(self, x: Int8) -> Int8: ...
    def train(self, x: Int8, label: int | None, target: Int8 | None) -> TrainResult: ...
    def set_control(self, learning_rate: int, seed: int, step: int) -> None: ...


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then half a cosine down to zero, in whole steps of the factor eta.

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
class Point:
    """One evaluation, after `step` training steps; `loss`: mean training loss since the evaluation before."""

    step: int
    accuracy: float | None
    error: float | None
    loss: float | None
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
        losses: training loss of each step (nats, or mean squared error), before the step changed anything.
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
    losses: tuple[float, ...]
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


def loss_unit(dataset: Dataset) -> float:
    """One unit of the device's integer loss in nats, or in mean squared error (real units squared)."""
    if dataset.output is None:
        return CROSS_ENTROPY_LOSS_SCALE
    return dataset.output.scale**2 / math.prod(dataset.output.shape)


@dataclass
class _Progress:
    """The run so far; turns into a RunLog at any time."""

    steps: int
    total: int
    on_event: Callable[[Event], None]
    done: int = 0
    curve: list[Point] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    instructions: list[int] = field(default_factory=list)

    def tell(self, kind: Kind) -> None:
        self.done += kind != "score"
        last = self.curve[-1] if self.curve else None
        self.on_event(
            Event(
                kind,
                self.done,
                self.total,
                len(self.losses),
                self.steps,
                Score(last.accuracy, last.error, last.samples) if last else None,
                statistics.fmean(self.losses[-50:]) if self.losses else None,
                self.instructions[-1] if self.instructions else 0,
            )
        )

    def evaluate(self, device: Device, dataset: Dataset, indices: NDArray[np.int64]) -> None:
        score = evaluate(device, dataset, indices, lambda: self.tell("evaluate"))
        recent = self.losses[self.curve[-1].step :] if self.curve else []
        loss = statistics.fmean(recent) if recent else None
        self.curve.append(Point(len(self.losses), score.accuracy, score.error, loss, score.samples))
        self.tell("score")


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
    order = np.random.default_rng([seed, 0]).permutation(dataset.test_count)
    during, final = order[:eval_samples], order[:final_samples]
    every = eval_every or -(-planned // 10)
    evaluations = (planned - 1) // every
    progress = _Progress(planned, planned + 2 * len(final) + evaluations * len(during), on_event)
    started = time.monotonic()
    interrupted = False
    try:
        progress.evaluate(device, dataset, final)
        rate = None
        for step, index in zip(range(planned), _order(dataset.train_count, seed), strict=False):
            if (wanted := schedule.factor(step, planned)) != rate:
                device.set_control(learning_rate=wanted, seed=seed & 0xFFFFFFFF, step=(first_step + step) % 2**32)
                rate = wanted
            sample = dataset.train(index)
            label = sample.label if sample.target is None else None
            result = device.train(sample.x, label, sample.target)
            progress.losses.append(result.loss * scale)
            progress.instructions.append(result.instructions)
            progress.tell("train")
            if (step + 1) % every == 0 and step + 1 < planned:
                progress.evaluate(device, dataset, during)
        progress.evaluate(device, dataset, final)
    except KeyboardInterrupt:
        interrupted = True
    return _log(progress, dataset, seed, interrupted, time.monotonic() - started, len(during), len(final))


def _order(count: int, seed: int) -> Iterator[int]:
    """Endless: each pass is a permutation of its own, drawn from the seed and the pass."""
    epoch = 0
    while True:
        epoch += 1
        yield from (int(i) for i in np.random.default_rng([seed, epoch]).permutation(count))


def _log(
    run: _Progress, dataset: Dataset, seed: int, interrupted: bool, seconds: float, during: int, final: int
) -> RunLog:
    counts = run.instructions if any(run.instructions) else []
    before = run.curve[0] if run.curve else None
    after = run.curve[-1] if not interrupted else None
    notes = [*dataset.notes, f"evaluated before and after on {final:,} held-out samples, during the run on {during:,}"]
    if interrupted:
        notes.append(f"stopped by the user after {len(run.losses):,} of {run.steps:,} steps; not evaluated after that")
    return RunLog(
        accuracy_before=before.accuracy if before else None,
        accuracy_after=after.accuracy if after else None,
        error_before=before.error if before else None,
        error_after=after.error if after else None,
        instructions_per_step=round(statistics.median(counts)) if counts else None,
        instructions_min=min(counts) if counts else None,
        instructions_max=max(counts) if counts else None,
        steps=len(run.losses),
        seconds=round(seconds, 3),
        seed=seed,
        interrupted=interrupted,
        curve=tuple(run.curve),
        losses=tuple(run.losses),
        notes=tuple(notes),
    )


class Display:
    """Progress for people: a bar on a terminal, elsewhere a plain line after each evaluation.

    Use as a context manager and pass as `on_event`. Writes to standard error by default, so that `--json` stays clean.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(compact=True),
                console=self._console,
            )
            self._task = self._bar.add_task("measuring", text="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        if self._bar:
            doing = "learning " if event.kind == "train" else "measuring"
            self._bar.update(
                self._task, completed=event.done, total=event.total, description=doing, text=describe(event)
            )
        elif event.kind == "score":
            self._console.print(describe(event), highlight=False, soft_wrap=True)


def describe(event: Event) -> str:
    """One line: step, held-out accuracy (or error), loss, instructions."""
    parts = [f"step {event.step}/{event.steps}"]
    if event.score and event.score.accuracy is not None:
        parts.append(f"accuracy {100 * event.score.accuracy:.1f} %")
    if event.score and event.score.error is not None:
        parts.append(f"error {event.score.error:.4g}")
    if event.loss is not None:
        parts.append(f"loss {event.loss:.3g}")
    if event.instructions:
        parts.append(f"{event.instructions:,} instructions/step")
    return "  ".join(parts)
