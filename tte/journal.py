"""What a run on a device has seen, in a file beside: a run that was killed goes on, and with the same arguments only.

Lines of JSON, each written as it happens; a last line that is cut off counts for nothing. The first has the run's arguments
and the state that the device had at its beginning; then, in order: {"control": factor}, {"saving": device's step counter},
{"step": n, "loss": x, "instructions": i, "counter": c} after n steps, {"point": {...}} for an evaluation, {"moved": c} where
the device was found at another step counter, {"end": true}.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Self

from tte import files
from tte.device import statefile
from tte.device.session import Session
from tte.device.statefile import State
from tte.device.steady import Kept
from tte.errors import DataError, DeviceError
from tte.history import History, Point

FORMAT = 1


class Journal(History, Kept):
    """A run's history, and where it can go on from, also in a file; a context manager, which closes the file on leaving.

    Attributes:
        path: the file.
        factors: the last two learning-rate factors that the device was told, or was to be told.
    """

    def __init__(self, path: Path, base: State) -> None:
        History.__init__(self, base.step)
        Kept.__init__(self, base)
        self.path = path
        self.factors: list[int] = []
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            with contextlib.suppress(OSError):  # what cannot be written was said when it was to be
                self._file.close()

    def learnt(self, loss: float | None, instructions: int, counter: int) -> None:
        """As `History`."""
        super().learnt(loss, instructions, counter)
        self._write({"step": self.step, "loss": loss, "instructions": instructions, "counter": counter})

    def measured(self, point: Point) -> None:
        """As `History`."""
        super().measured(point)
        self._write({"point": asdict(point)})

    def moved_to(self, counter: int) -> None:
        """As `History`; and what was to be saved later than that never was."""
        super().moved_to(counter)
        self.back_to(counter)
        self._write({"moved": counter})

    def control(self, factor: int) -> None:
        """As `Kept`."""
        self.factors = [*self.factors, factor][-2:]
        self._write({"control": factor})

    def saving(self, step: int) -> None:
        """As `Kept`."""
        super().saving(step)
        self._write({"saving": step})

    def end(self) -> None:
        """The run is complete."""
        self._write({"end": True})

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            return  # being read
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise DataError(f"cannot be written ({error.strerror})", where=str(self.path)) from None

    def append(self) -> Self:
        """Opens the file, to go on."""
        try:
            self._file = self.path.open("a", encoding="utf-8")
            _lock(self._file, self.path)
        except OSError as error:
            raise DataError(f"cannot be written ({error.strerror})", where=str(self.path)) from None
        return self


def _lock(file: IO[str], path: Path) -> None:
    """Takes the file for this run, until it is closed. Raises DataError where another run has it, OSError where none can."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(
            "another run is being written down here", where=str(path),
            remedy="end that one first, or give this one --journal FILE",
        ) from None  # fmt: skip


def _refuse_one_in_use(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as file:
        _lock(file, path)


def begin(path: Path, arguments: dict[str, Any], base: State) -> Journal:
    """A new journal, in place of an older one.

    Args:
        arguments: all that decides the run, as JSON.
        base: the device's state at its beginning.

    Raises:
        DataError: it cannot be written, or another run is being written there.
    """
    if path.is_file():
        _refuse_one_in_use(path)
    head = {"tte": FORMAT, "arguments": arguments, "base": base64.b64encode(statefile.pack(base)).decode("ascii")}
    files.write(path, (json.dumps(head) + "\n").encode())
    return Journal(path, base).append()


def unfinished(path: Path, arguments: dict[str, Any]) -> Journal | None:
    """The journal of a run that was stopped, to go on from; None if there is none, or its run is complete.

    Raises:
        DataError: it is of a run with other arguments, being written by another run, or no journal.
    """
    if path.is_file():
        _refuse_one_in_use(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path)) from None
    end = content.rfind(b"\n") + 1
    try:
        head, *lines = [json.loads(line) for line in content[:end].splitlines()]
        if head["tte"] != FORMAT:
            raise ValueError
        journal = Journal(path, statefile.parse(base64.b64decode(head["base"]), str(path)))
        for line in lines:
            _replay(journal, line)
        before = dict(head["arguments"])
    except (ValueError, KeyError, TypeError, DataError):
        raise DataError("is no journal of a run, or damaged", where=str(path), remedy="--fresh begins a new run") from None
    if lines and "end" in lines[-1]:
        return None
    if before != arguments:
        names = sorted(n for n in {**before, **arguments} if before.get(n) != arguments.get(n))
        differ = ", ".join(f"{n} {before.get(n)} there, {arguments.get(n)} now" for n in names)
        raise DataError(
            f"a run with other arguments was not finished ({journal.step:,} steps done): {differ}", where=str(path),
            remedy="give its arguments to go on, or --fresh to begin a new run from what the device has learnt",
        )  # fmt: skip
    if end < len(content):
        files.write(path, content[:end])
    return journal


def take_up(
    journal: Journal, session: Session, *, seed: int, steps: int, most: int = 1, saves_itself: bool = False,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Goes on with a run at the step that its device has.

    The device's state is one of this run if it has the run's seed and a factor it was told last, and is where the journal
    ends, or one step further: that step's answer was lost with the host. Or the run had it saved; or it is the one that
    the run began with.

    Args:
        seed: of the run, 32 bits.
        steps: of the whole run.
        most: by how much one step of the run can move the device's counter.
        saves_itself: the device saves without being told to; the run has begun with a save.

    Raises:
        DeviceError: the device's state is none of the run's.
    """
    now, before = session.counters(), journal.step
    if now.step == journal.first:
        is_own = session.read_state() == journal.base.data
    else:
        is_where_it_was = (now.step - journal.counter) % 2**32 <= most * (journal.step < steps)
        is_current = is_where_it_was and now.seed == seed and now.learning_rate in journal.factors
        is_own = is_current or ((saves_itself or now.step in journal) and journal.steps_at(now.step) is not None)
    if not is_own:
        raise DeviceError(
            f"the device is at step {now.step}, with a state that is none of the run that was stopped "
            f"(steps {journal.first} to {journal.counter})",
            where=str(journal.path),
            remedy="`tte device push` a state that was pulled from this run, or --fresh: a new run from what it has learnt",
        )
    if now.step != journal.counter:
        journal.moved_to(now.step)
    if journal.step < before:
        say(f"the device was reset meanwhile: {before - journal.step} steps are done again")
    say(f"going on at step {journal.step} of {steps}")


def _replay(journal: Journal, line: dict[str, Any]) -> None:
    if "step" in line:
        if line["step"] != journal.step + 1:
            raise ValueError
        journal.learnt(line["loss"], int(line["instructions"]), int(line["counter"]))
    elif "point" in line:
        journal.measured(Point(**line["point"]))
    elif "moved" in line:
        journal.moved_to(int(line["moved"]))
    elif "control" in line:
        journal.control(int(line["control"]))
    elif "saving" in line:
        journal.saving(int(line["saving"]))
    elif "end" not in line:
        raise ValueError
