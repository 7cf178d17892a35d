"""A conversation with a device: infer, train, read and write the trained state."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tte.board import Board
from tte.device import emulator, protocol
from tte.device.link import ProcessLink
from tte.device.protocol import Command, Counters, Description, Part, Status, TraceStep, TrainResult
from tte.errors import DeviceError

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


class Session:
    """A conversation over a link; use it as a context manager, which ends the program on leaving.

    Every method raises DeviceError if the device dies, faults, hangs or answers nonsense; all is over then.

    Args:
        link: the program; closed on leaving.
        timeout_s: how long one answer may take, in seconds.
    """

    def __init__(self, link: AbstractContextManager[ProcessLink], timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._stack = ExitStack()
        self._link = self._stack.enter_context(link)
        self._timeout_s = timeout_s
        self._description: Description | None = None
        self._parts: list[Part] = []
        self._lost = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if kind is None and not self._lost:
                self.quit()

    def _ask(self, command: Command, payload: bytes = b"", on_step: Callable[[TraceStep], None] | None = None) -> bytes:
        if self._lost:
            raise DeviceError("the conversation with the device is over")
        self._parts = []
        self._lost = True  # until the whole answer is here: what is left of a broken one would be taken for the next
        self._link.write(protocol.request(command, payload), self._timeout_s)
        while True:
            status, length = protocol.HEADER.unpack(self._link.read(protocol.HEADER.size, self._timeout_s))
            answer = self._link.read(length, self._timeout_s)
            if status == Status.TRACE:
                if on_step:
                    on_step(protocol.parse_trace(answer))
                continue
            if status == Status.PROFILE:
                self._parts.append(protocol.parse_part(answer))
                continue
            if status == Status.FAULT:
                raise DeviceError(f"the device stopped: {answer.decode('ascii', 'replace').strip()}")
            if status not in (Status.OK, Status.BAD_REQUEST):
                raise DeviceError(f"the device answered with the unknown status {status}")
            self._lost = False
            if status == Status.BAD_REQUEST:
                raise DeviceError(
                    f"the device refuses {command.name.lower()} with {len(payload)} bytes",
                    remedy="is the firmware on it the one that was built for this model?",
                )
            return answer

    def describe(self) -> Description:
        """The model on the device; asked for once."""
        if self._description is None:
            self._description = protocol.parse_description(self._ask(Command.DESCRIBE))
        return self._description

    def infer(self, x: NDArray[np.int8]) -> NDArray[np.int8]:
        """Runs the model on `x`, of any shape with as many int8 elements as its input; returns the flat int8 output."""
        output = self._ask(Command.INFER, _bytes(x, self.describe().input_bytes, "input"))
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
        payload = (label or 0).to_bytes(4, "little", signed=True)
        if target is not None:
            payload += _bytes(target, model.target_bytes, "target")
        payload += _bytes(x, model.input_bytes, "input")
        return protocol.parse_trained(self._ask(Command.TRAIN, payload, on_step), model.logits_bytes)

    def profile_infer(self, x: NDArray[np.int8]) -> Profile:
        """`infer`, counted step by step.

        Raises:
            DeviceError: also if the program was not built for it (`Project.env(profile=True)`).
        """
        self.infer(x)
        parts = self._parts
        return _profile(parts, self.counters().infer_instructions)

    def profile_train(
        self, x: NDArray[np.int8], label: int | None = None, target: NDArray[np.int8] | None = None
    ) -> Profile:
        """`train`, counted step by step.

        Raises:
            DeviceError: also if the program was not built for it (`Project.env(profile=True)`).
        """
        total = self.train(x, label, target).instructions
        return _profile(self._parts, total)

    def read_state(self) -> bytes:
        """The trained state: weights, biases and residuals, as the generated header lays them out."""
        return self._ask(Command.READ_STATE)

    def write_state(self, state: bytes) -> None:
        """Replaces the trained state."""
        self._ask(Command.WRITE_STATE, state)

    def set_control(self, learning_rate: int, seed: int, step: int) -> None:
        """Sets the learning-rate factor (Q15: 32768 is one), the seed and the step counter of the PRNG."""
        self._ask(Command.SET_CONTROL, protocol.control(learning_rate, seed, step))

    def counters(self) -> Counters:
        """Run-time settings, instruction counts and stack use."""
        return protocol.parse_counters(self._ask(Command.COUNTERS))

    def quit(self) -> None:
        """Ends the program; raises DeviceError if it does not end well (a sanitizer may complain on leaving)."""
        self._ask(Command.QUIT)
        self._lost = True
        status = self._link.wait()
        if status:
            raise DeviceError(f"the device's program ended with exit status {status}")


def open_host(program: Path, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Session:
    """Starts a program made by `tte.native.build_host`.

    Raises:
        DeviceError: it cannot be started.
    """
    # the programs have no heap, and the search for leaks fails where a process may not trace another
    environment = {**os.environ, "ASAN_OPTIONS": f"detect_leaks=0:{os.environ.get('ASAN_OPTIONS', '')}"}
    return Session(closing(ProcessLink([str(program)], what="the program", environment=environment)), timeout_s)


def open_qemu(elf: Path, board: Board, *, icount: bool = True, timeout_s: float = DEFAULT_TIMEOUT_S) -> Session:
    """Starts the firmware `elf`, built for the board's emulator, in QEMU.

    Args:
        icount: count instructions; a third as fast, and every run is the same.

    Raises:
        BoardError: the board has no emulator.
        ToolchainError: QEMU is not installed.
        DeviceError: it cannot be started.
    """
    return Session(emulator.running(elf, board, icount=icount), timeout_s)


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
