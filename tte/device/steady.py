"""A device that goes on learning after its session was lost: it was reset, or another program has talked to it.

A line that is only cut needs nothing of this: the session goes on when the line is there again, and the device answers a
request that it has executed already with the answer it gave (firmware/PROTOCOL.md). Here the session is gone, and the
device's own step counter says where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tte.device import statefile
from tte.device.aids import Aids, status
from tte.device.exchange import DeviceReset
from tte.device.learning import Status
from tte.device.link import LinkLost
from tte.device.protocol import TrainResult
from tte.device.session import Session
from tte.device.statefile import State
from tte.errors import DeviceError
from tte.history import History

Int8 = NDArray[np.int8]
_T = TypeVar("_T")
_MANY = 1 << 32  # frames: more than a device counts
_OPENINGS = 20  # of a session, when the device is reset again meanwhile


class Moved(DeviceError):
    """The device is at another training step than its host thought: the run goes on from there.

    Attributes:
        step: the device's step counter.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"the device is at training step {step}, after it was reset or used by another program")
        self.step = step


class Kept:
    """Where a run can go on from: the state it began with, and the steps at which the device was told to save.

    Attributes:
        base: the state with which the run began.
    """

    def __init__(self, base: State) -> None:
        self.base = base
        self._saved: set[int] = set()

    def control(self, factor: int) -> None:
        """The device is about to be told a learning-rate factor (Q15)."""

    def saving(self, step: int) -> None:
        """The device is about to be told to save, its counter at `step`."""
        self._saved.add(step)

    def back_to(self, step: int) -> None:
        """The device has come up at this step: what it was told to save later is not there."""
        self._saved = {one for one in self._saved if (one - self.base.step) % 2**32 <= (step - self.base.step) % 2**32}

    def __contains__(self, step: int) -> bool:
        """Whether a device that comes up at this step has a state of this run, saved by it."""
        return step in self._saved


class Steady:
    """The calls of `tte.run.Device` on a device that may be reset meanwhile.

    After a loss the device goes on from what it had saved, if this run had it saved; else it is given the state again with
    which the run began. Each of the calls then raises Moved, and DeviceError where nothing can be done.

    Args:
        session: with the device at a step of this run; opened.
        kept: where the run can go on from.
        history: of the run, which says how many steps are done.
        save_every: training steps of this run between saves in the device's flash, also at its beginning; 0: none. A device that
            saves by itself (`Aids.saves_itself`) is told to only at the beginning and the end.
        steps: after so many of this run it saves, too, if it saves at all, when it has been told the learning-rate factor with
            which it may go on by itself; 0: not known.
        aids: guard and replay, which the device is given at the beginning, and again after a reset; None: neither.
        given: it has them already.
        say: told what was lost.
    """

    def __init__(
        self, session: Session, kept: Kept, history: History, *, save_every: int = 0, steps: int = 0,
        aids: Aids | None = None, given: bool = False, say: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._session, self._kept, self._history, self._say = session, kept, history, say
        self._aids, self._has_aids = aids, given or aids is None
        self._most = aids.most_steps if aids else 1
        self._saves_itself = aids is not None and aids.saves_itself
        self._save_every, self._steps = save_every, steps
        self._step = session.opened.step
        self._frames = -1  # that the device has had since it was reset, no fewer than requests; -1: not known

    def _begin(self) -> None:
        now = self._session.counters()
        self._step, self._frames = now.step, now.frames
        self._give_aids()
        if (self._save_every or self._saves_itself) and self._step not in self._kept:
            self._save()

    @property
    def step(self) -> int:
        """The device's step counter, as far as is known."""
        return self._step

    def infer(self, x: Int8) -> Int8:
        """As `Session.infer`."""
        return self._guarded(lambda: self._session.infer(x))

    def train(self, x: Int8, label: int | None, target: Int8 | None) -> TrainResult:
        """As `Session.train`; and saves when it is time."""
        result = self._guarded(lambda: self._session.train(x, label, target), steps=self._most)
        moved, self._step = (result.step - self._step) % 2**32, result.step
        if not 1 <= moved <= self._most:
            raise DeviceError(
                f"the device did {moved} steps on one sample: another program has changed how it learns",
                limit=f"{self._most} at most", remedy="start again; nobody else may train it meanwhile",
            )  # fmt: skip
        done = self._history.step + 1
        if self._save_every and not self._saves_itself and done % self._save_every == 0 and done != self._steps:
            self._save_now()
        return result

    def learner(self) -> Status | None:
        """What guard and replay have done; None where neither is built in, or the session is lost: the run is over."""
        try:
            return status(self._session) if self._aids else None
        except DeviceReset:
            return None

    def set_control(self, learning_rate: int, seed: int, step: int) -> None:
        """As `Session.set_control`."""
        self._kept.control(learning_rate)
        self._guarded(lambda: self._session.set_control(learning_rate, seed, step))
        self._step = step
        if self._save_every and 0 < self._steps == self._history.step:
            self._save_now()

    def _save_now(self) -> None:
        step = self._step
        for _ in range(_OPENINGS):
            try:
                return self._guarded(self._save)
            except Moved as moved:  # at the same step nobody knows whether it was told
                if moved.step != step:
                    raise
        raise DeviceError(
            f"the session was lost {_OPENINGS} times while the device was told to save", remedy="let no other program talk to it"
        )

    def _save(self) -> None:
        self._kept.saving(self._step)
        self._session.save()

    def _guarded(self, call: Callable[[], _T], steps: int = 0) -> _T:
        """The answer of a call that moves the step counter by so many steps."""
        try:
            if self._frames < 0:
                self._begin()
            self._frames += 1
            return call()
        except DeviceReset:
            pass
        for _ in range(_OPENINGS):
            try:
                self._step = step = self._found(steps)
                self._give_aids()
                self._frames = self._session.counters().frames
            except DeviceReset:
                continue
            raise Moved(step)
        raise DeviceError(
            f"the device was reset {_OPENINGS} times while a session was opened", remedy="check its power supply"
        )

    def _found(self, steps: int) -> int:
        """Opens a new session; gives the step at which the device is, or has been put. A call could move it by `steps`."""
        step = self._session.open().step
        if self._session.describe().hash != self._kept.base.hash:
            raise DeviceError("the device now runs a program of another build", remedy="flash the one it had, and start again")
        if 0 <= self._frames <= self._session.counters().frames and (step - self._step) % 2**32 <= steps:
            self._say(f"another program has talked to the device; going on at step {step}")
            return step
        self._frames = _MANY  # it was reset, whatever it says if it is reset once more
        self._has_aids = self._aids is None
        base, at = self._kept.base, step
        again = f"{self._history.step - (self._history.steps_at(step) or 0)} steps are done again"
        # Saved at the beginning, it holds nothing older: what it saved by itself is of this run.
        by_itself = self._saves_itself and self._history.steps_at(step) is not None
        if step != base.step and (by_itself or step in self._kept):
            text = f"with what it had saved at step {step}: {again}"
        elif step == base.step and self._has(base):
            text = f"at step {step}: all {again}"
        else:
            statefile.push(self._session, base, "the state that this run began with")
            text, at = (
                f"at step {step} with a state that is none of this run: it has the state again that the run began with, step "
                f"{base.step}; {self._history.step} steps are done again"
            ), base.step
        self._kept.back_to(at)
        forgets = "; what it had in RAM for guard and replay is gone, so the result is another than without the reset"
        self._say(f"the device was reset, and came up {text}{forgets if self._aids else ''}")
        return at

    def _give_aids(self) -> None:
        if self._aids and not self._has_aids:
            self._aids.give(self._session)
            self._has_aids = True

    def _has(self, state: State) -> bool:
        """Whether the device's state is this one; none is where it was broken off while it was written."""
        try:
            return self._session.read_state() == state.data
        except (DeviceReset, LinkLost):
            raise
        except DeviceError:
            return False
