"""A conversation with a device: infer, train, read and write the trained state."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tte.board import Board, FlashArea
from tte.device import emulator, flashfile, protocol
from tte.device.exchange import Exchange
from tte.device.learning import Learning
from tte.device.link import ByteLink, ProcessLink
from tte.device.protocol import (
    STORED_TEXTS,
    Command,
    Counters,
    Description,
    Evaluated,
    Opened,
    Part,
    Stored,
    TraceStep,
    TrainResult,
)
from tte.errors import DeviceError

_FLASH = "TTE_FLASH"  # read by firmware/src/medium_host.c
DEFAULT_TIMEOUT_S = 300.0  # for one answer: minutes of emulation


@dataclass(frozen=True)
class Profile:
    """Instructions of one call, by a program built for it; counted in the model's code alone.

    Attributes:
        instructions: of the whole call.
        steps: of each step of the plan, by its index; what lies round the steps (the call itself, the label) is the rest.
        stages: of each stage of a segment, by (step, stage); within the step's own count.
    """

    instructions: int
    steps: dict[int, int]
    stages: dict[tuple[int, int], int]


class Session(Learning):
    """A conversation over a link; use it as a context manager, which closes the link on leaving.

    Every method raises DeviceError if the device dies, faults, hangs or answers nonsense, and its subclass DeviceReset if
    it has forgotten the session; all is over then. A device that refuses a request raises DeviceError as well, and goes on.

    Args:
        link: the byte stream; closed on leaving.
        timeout_s: how long the device may be silent, in seconds.
        ends: the program was started for this conversation alone: it is ended on leaving.
    """

    def __init__(
        self, link: AbstractContextManager[ByteLink], timeout_s: float = DEFAULT_TIMEOUT_S, *, ends: bool = True
    ) -> None:
        self._ends = ends
        self._stack = ExitStack()
        self._link = self._stack.enter_context(link)
        self._exchange = Exchange(self._link, timeout_s)
        self._description: Description | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if self._ends and kind is None and not self._exchange.lost:
                self.quit()

    @property
    def retries(self) -> int:
        """How often a request was sent again, since no answer came."""
        return self._exchange.retries

    @property
    def heard(self) -> int:
        """Bytes that have come from the device, of any kind."""
        return self._exchange.heard

    def open(self, timeout_s: float | None = None) -> Opened:
        """Opens a new session, as the first request does by itself; `timeout_s`: how long to wait for this answer."""
        self._description = None
        return self._exchange.open(timeout_s)

    @property
    def opened(self) -> Opened:
        """What the device said when the session was opened."""
        return self._exchange.opened or self.open()

    def describe(self) -> Description:
        """The model on the device; asked for once."""
        if self._description is None:
            self._description = protocol.parse_description(self._exchange.ask(Command.DESCRIBE))
        return self._description

    def infer(self, x: NDArray[np.int8]) -> NDArray[np.int8]:
        """Runs the model on `x`, of any shape with as many int8 elements as its input; returns the flat int8 output."""
        about = self.describe()
        output = self._exchange.ask(Command.INFER, data=_bytes(x, about.input_bytes, "input"))
        protocol.expect_size(output, about.output_bytes)
        return np.frombuffer(output, np.int8).copy()

    def train(
        self,
        x: NDArray[np.int8],
        label: int | None = None,
        target: NDArray[np.int8] | None = None,
        *,
        on_step: Callable[[TraceStep], None] | None = None,
    ) -> TrainResult:
        """One train step on the sample `x` with its label, or with its target where the model regresses.

        Args:
            on_step: called with the arena after each step of the plan, if the program was built with traces.
        """
        model = self.describe()
        if not model.trains:
            raise DeviceError(f"the model {model.name!r} was built for inference only")
        wanted = "a target" if model.target_bytes else "a label"
        if (label is None) != bool(model.target_bytes) or (target is None) == bool(model.target_bytes):
            raise DeviceError(f"the model {model.name!r} learns from {wanted}, and from nothing else")
        arguments = (label or 0).to_bytes(4, "little", signed=True)
        data = _bytes(x, model.input_bytes, "input")
        if target is not None:
            data = _bytes(target, model.target_bytes, "target") + data
        return protocol.parse_trained(self._exchange.ask(Command.TRAIN, arguments, data, on_step), model.logits_bytes)

    def evaluate(
        self, x: NDArray[np.int8], label: int = 0, target: NDArray[np.int8] | None = None, *, new: bool = False
    ) -> Evaluated:
        """Runs the model on the sample `x`; the device compares the output with its label, or its target, and counts.

        Args:
            new: begin the counts again, with this sample.
        """
        data = _bytes(x, self.describe().input_bytes, "input")
        if target is not None or self.describe().target_bytes:
            data += _bytes(np.zeros(0) if target is None else target, self.describe().target_bytes, "target")
        arguments = protocol.evaluate(label, new=new)
        return protocol.parse_evaluated(self._exchange.ask(Command.EVALUATE, arguments, data))

    def profile_infer(self, x: NDArray[np.int8]) -> Profile:
        """`infer`, counted step by step.

        Raises:
            DeviceError: also if the program was not built for it (`Project.env(profile=True)`).
        """
        self.infer(x)
        parts = self._exchange.parts
        return _profile(parts, self.counters().infer_instructions)

    def profile_train(
        self, x: NDArray[np.int8], label: int | None = None, target: NDArray[np.int8] | None = None
    ) -> Profile:
        """`train`, counted step by step.

        Raises:
            DeviceError: also if the program was not built for it (`Project.env(profile=True)`).
        """
        total = self.train(x, label, target).instructions
        return _profile(self._exchange.parts, total)

    def read_state(self) -> bytes:
        """The trained state: weights, biases and residuals, as the generated header lays them out."""
        state = self._exchange.ask(Command.READ_STATE)
        protocol.expect_size(state, self.describe().state_bytes)
        return state

    def write_state(self, state: bytes) -> None:
        """Replaces the trained state by one of the same build."""
        self._exchange.ask(Command.WRITE_STATE, self.describe().hash.encode("ascii"), state)

    def save(self) -> int:
        """Keeps the trained state in the device's flash; gives its step counter. Raises DeviceError if that fails."""
        return self._stored(Command.SAVE)

    def restore(self) -> int:
        """Goes back to what was kept; gives the step counter.

        Raises:
            DeviceError: there is nothing to go back to. A state that was damaged in flash leaves the initial one.
        """
        return self._stored(Command.RESTORE)

    def _stored(self, command: Command) -> int:
        result, step = protocol.parse_stored(self._exchange.ask(command))
        if result is not Stored.OK:
            remedy = "save something first: `tte device save`, or --save-every" if result is Stored.EMPTY else ""
            raise DeviceError(f"the device cannot {command.name.lower()}: {STORED_TEXTS.get(result, result.name)}", remedy=remedy)
        return step

    def reset(self) -> None:
        """Begins again with the state that the program was built with."""
        self._exchange.ask(Command.RESET)

    def set_control(self, learning_rate: int, seed: int, step: int) -> None:
        """Sets the learning-rate factor (Q15: 32768 is one), the seed and the step counter of the PRNG."""
        self._exchange.ask(Command.SET_CONTROL, protocol.control(learning_rate, seed, step))

    def counters(self) -> Counters:
        """Run-time settings, instruction counts, stack use, and what the link did."""
        return protocol.parse_counters(self._exchange.ask(Command.COUNTERS))

    def quit(self) -> None:
        """Ends the program; raises DeviceError if it does not end well (a sanitizer may complain on leaving)."""
        self._exchange.ask(Command.QUIT)
        self._exchange.lost = True
        status = self._link.wait()
        if status:
            raise DeviceError(f"the device's program ended with exit status {status}")


def open_host(
    program: Path, *, timeout_s: float = DEFAULT_TIMEOUT_S, flash: tuple[Path, FlashArea] | None = None
) -> Session:
    """Starts a program made by `tte.native.build_host`.

    Args:
        flash: the file that is the flash of a program that keeps trained state, and its area; None: it has none.

    Raises:
        DeviceError: it cannot be started.
        DataError: `flash` is another board's, or in use.
    """
    return Session(_host(program, flash), timeout_s)


@contextmanager
def _host(program: Path, flash: tuple[Path, FlashArea] | None) -> Iterator[ByteLink]:
    # the programs have no heap, and the search for leaks fails where a process may not trace another
    environment = {**os.environ, "ASAN_OPTIONS": f"detect_leaks=0:{os.environ.get('ASAN_OPTIONS', '')}"}
    environment.pop(_FLASH, None)
    with ExitStack() as stack:
        if flash:
            stack.enter_context(flashfile.held(*flash))
            environment[_FLASH] = str(flash[0].resolve())
        link = ProcessLink([str(program)], what="the program", environment=environment)
        yield stack.enter_context(closing(link))


def open_qemu(
    elf: Path, board: Board, *, icount: bool = True, uart: bool = False, timeout_s: float = DEFAULT_TIMEOUT_S,
    flash: Path | None = None,
) -> Session:  # fmt: skip
    """Starts the firmware `elf`, built for the board's emulator, in QEMU.

    Args:
        icount: count instructions; a third as fast, and every run is the same.
        uart: `elf` speaks over the machine's serial port (`Project.env(uart=True)`), instead of by semihosting.
        flash: the file that is the flash of a program that keeps trained state; None: one that goes with it.

    Raises:
        BoardError: the board has no emulator.
        ToolchainError: QEMU is not installed.
        DeviceError: it cannot be started.
    """
    return Session(emulator.running(elf, board, icount=icount, uart=uart, flash=flash), timeout_s)


def _profile(parts: list[Part], total: int) -> Profile:
    if not parts:
        raise DeviceError("the device does not count its steps", remedy="build the firmware's environment *_profile")
    steps: dict[int, int] = {}
    stages: dict[tuple[int, int], int] = {}
    rows: dict[int, int] = {}
    for part in parts:
        if part.stage:
            rows[part.index] = rows.get(part.index, 0) + part.instructions
        else:
            steps[part.index] = part.instructions + sum(rows.values())
            stages |= {(part.index, stage): count for stage, count in sorted(rows.items())}
            rows = {}
    return Profile(total, steps, stages)


def _bytes(values: NDArray[Any], count: int, what: str) -> bytes:
    """The elements of an int8 array, in C order."""
    if values.dtype != np.int8 or values.size != count:
        raise DeviceError(f"the model's {what} is {count} int8 elements, not {values.size} of {values.dtype}")
    return np.ascontiguousarray(values).tobytes()
