"""Guard and replay in a run that a host leads: what is held out for the guard, and what the device is told before it begins."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tte.data import Dataset
from tte.device.exchange import Refused
from tte.device.learning import Settings, Status
from tte.device.session import Session
from tte.errors import DataError, DeviceError

CHECK_EVERY = 50
"""Fresh samples between two checks, if the user does not say."""
SAVE_CHECKS = 10
"""Checks between two saves of a device whose guard goes back to what it saved, if the user does not say."""
_FULL_FACTOR = 32768
_STREAM = (0, 1)  # of random numbers, beside those of the order (a pass) and of evaluations (0) in tte.run


@dataclass(frozen=True)
class Wanted:
    """What a user wants of guard and replay; None: what the program was built for.

    Attributes:
        replay_steps: past samples behind each fresh one; 0: none.
        guard_every: fresh samples between two checks; 0: none.
        guard_limit: how far the score may fall: right answers, or squared steps of the output.
    """

    replay_steps: int | None = None
    guard_every: int | None = None
    guard_limit: int | None = None


@dataclass(frozen=True, eq=False)
class Aids:
    """Guard and replay of one run.

    Attributes:
        settings: as the device is to have them.
        dataset: all samples, those to check on among the training samples.
        held_out: int64 [n], training samples that are not learnt from, but checked on. If `settings` have it save, it is for the
            guard to go back to.
    """

    settings: Settings
    dataset: Dataset
    held_out: NDArray[np.int64]

    def give(self, session: Session) -> None:
        """Holds the samples out on the device, in place of others, and tells it how to learn; past samples stay.

        Raises:
            DeviceError: from the device.
        """
        session.set_learner(Settings(), clear_held_out=True)
        for index in self.held_out.tolist():
            sample = self.dataset.train(index)
            session.hold_out(sample.x, None if sample.target is not None else sample.label, sample.target)
        session.set_learner(self.settings)

    def are_given(self, session: Session) -> bool:
        """Whether the device has them already: it was not reset since."""
        return session.learner_settings() == self.settings and session.learner().held_out == len(self.held_out)

    @property
    def saves_itself(self) -> bool:
        """Whether the device saves when it finds its state in order."""
        return self.settings.save_every > 0

    @property
    def most_steps(self) -> int:
        """By how much one fresh sample can move the device's step counter."""
        return 1 + self.settings.replays

    def arguments(self) -> dict[str, Any]:
        """What of them decides a run, as JSON."""
        s = self.settings
        return {"replay_steps": s.replays, "guard_every": s.check_every, "guard_limit": s.limit,
                "guard_saves": s.save_every, "held_out": len(self.held_out)}  # fmt: skip


def status(session: Session) -> Status | None:
    """What guard and replay do on the device; None where they were not built in, or while it has no state.

    Raises:
        DeviceError: from the device.
    """
    try:
        return session.learner()
    except Refused:
        return None


def has_guard(now: Status) -> bool:
    """Whether the program was built with a guard."""
    return now.room > 0


def has_replay(now: Status) -> bool:
    """Whether the program was built with replay."""
    return bool(now.by_class)


def plan(
    session: Session, dataset: Dataset, wanted: Wanted, seed: int, save_every: int | None = None
) -> tuple[Aids | None, Dataset]:
    """Guard and replay for a run, and the samples that it learns from; None where neither is built in.

    The guard's samples are drawn from the training samples: as many as the device has room for, a tenth of them at most.

    Args:
        save_every: training steps between saves, if the user says: a device whose guard goes back to them saves itself, when a
            check finds its state in order.

    Raises:
        DeviceError: something is wanted that was not built in.
        DataError: there are too few samples for a guard.
    """
    now = status(session)
    guards, replays = now is not None and has_guard(now), now is not None and has_replay(now)
    if wanted.replay_steps and not replays:
        raise _not_built("replay, which --replay-steps asks for", "--replay SIZE")
    if (wanted.guard_every or wanted.guard_limit is not None) and not guards:
        raise _not_built("a guard, which --guard-every and --guard-limit ask for", "--guard SAMPLES")
    if now is None:
        return None, dataset
    steps = wanted.replay_steps if wanted.replay_steps is not None else int(replays)
    every = wanted.guard_every if wanted.guard_every is not None else CHECK_EVERY * guards
    if not every:
        return Aids(Settings(replays=steps), dataset, np.zeros(0, np.int64)), dataset
    held = _held_out(dataset, now.room, seed)
    limit = wanted.guard_limit if wanted.guard_limit is not None else _limit(dataset, len(held))
    saves = (save_every or SAVE_CHECKS * every) if session.goes_back_to_flash() else 0
    aids = Aids(Settings(limit=limit, check_every=every, replays=steps, save_every=saves), dataset, held)
    return aids, _without(dataset, held, now.room, seed)


def _limit(dataset: Dataset, held: int) -> int:
    """Three in a hundred right answers, with which tests/studies/guard.py measures; or one squared step of each output."""
    if dataset.output is not None:
        return int(held * np.prod(dataset.output.shape))
    return max(1, round(0.03 * held))


def _held_out(dataset: Dataset, room: int, seed: int) -> NDArray[np.int64]:
    count = min(room, dataset.train_count // 10)
    if not count:
        raise DataError(
            "too few samples to hold some out for the guard", limit=f"{dataset.train_count} training samples, a tenth at most",
            remedy="--guard-every 0 learns without it",
        )  # fmt: skip
    return np.random.default_rng([seed, *_STREAM]).permutation(dataset.train_count)[:count]


def _without(dataset: Dataset, held: NDArray[np.int64], room: int, seed: int) -> Dataset:
    left = np.setdiff1d(np.arange(dataset.train_count), held)
    note = (
        f"guard: {len(held):,} of {dataset.train_count:,} training samples, chosen by seed {seed}, are held out on the device "
        f"(room for {room:,}) and not learnt from"
    )
    return dataclasses.replace(
        dataset, x_train=dataset.x_train[left], y_train=None if dataset.y_train is None else dataset.y_train[left],
        notes=(*dataset.notes, note),
    )  # fmt: skip


def _not_built(what: str, option: str) -> DeviceError:
    return DeviceError(f"the device's program was built without {what}", remedy=f"build and flash it with `tte build {option}`")


def lines(now: Status) -> dict[str, str]:
    """A line for people on each part that is built in."""
    found = {}
    if has_guard(now):
        checked = f", {now.checks:,} checks, the last score {now.score:,} (best mean {now.best:,.1f})" if now.checks else ""
        found["guard"] = (
            f"{now.held_out:,} of {now.room:,} samples held out{checked}, learning taken back {_times(now.restores)}, "
            f"learning rate x {now.factor / _FULL_FACTOR:.4g}"
        )
    if has_replay(now):
        classes = " ".join(f"{label}:{count}" for label, count in enumerate(now.by_class) if count)
        by_class = f" (by class {classes})" if len(now.by_class) > 1 and classes else ""
        cost = f", the last in {now.replay_instructions:,} instructions" if now.replay_instructions else ""
        found["replay"] = (
            f"{now.past:,} of {now.places:,} past samples held{by_class}, {now.replayed:,} learnt from again{cost}"
        )
    return found


def notes(now: Status) -> tuple[str, ...]:
    """What a reader of a run's log must know: how often learning was taken back, and how much was learnt again."""
    return tuple(f"{part} since the device was started: {text}" for part, text in lines(now).items())


def _times(count: int) -> str:
    return {0: "never", 1: "once"}.get(count, f"{count:,} times")
