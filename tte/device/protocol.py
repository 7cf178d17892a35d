"""What the frames of the device protocol mean (firmware/PROTOCOL.md); all numbers little endian."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from tte.errors import DeviceError

_OPENED = struct.Struct("<IIII")
_DESCRIPTION = struct.Struct("<8I16s")
_TRAINED = struct.Struct("<iQI")
_COUNTERS = struct.Struct("<IIIQQ2I6I")
_CONTROL = struct.Struct("<III")
_EVALUATE = struct.Struct("<iI")
_EVALUATED = struct.Struct("<IIIQ")
_STORED = struct.Struct("<II")
_PART = struct.Struct("<IIQ")
_WINDOW = struct.Struct("<I")
MOST_RATE = 32768
"""The learning-rate factor of one, Q15: there is none above."""


class Kind(IntEnum):
    """What a frame is: the host sends the first two, the device the others."""

    REQUEST = 1
    DATA = 2
    ANSWER = 16
    WANT = 17
    TRACE = 18
    PROFILE = 19
    FAULT = 20


class Command(IntEnum):
    """What a request asks for."""

    OPEN = 1
    DESCRIBE = 2
    INFER = 3
    TRAIN = 4
    EVALUATE = 5
    READ_STATE = 6
    WRITE_STATE = 7
    SET_CONTROL = 8
    COUNTERS = 9
    SAVE = 10
    RESTORE = 11
    RESET = 12
    QUIT = 13
    HOLD_OUT = 14
    SET_LEARNER = 15
    LEARNER = 16


class Status(IntEnum):
    """How a request ended."""

    OK = 0
    BAD_REQUEST = 1
    NO_SESSION = 2
    BAD_SEQUENCE = 3
    OTHER_VERSION = 4
    NOT_BUILT_IN = 5
    NO_STATE = 6
    OTHER_MODEL = 7
    REFUSED = 8


class Stored(IntEnum):
    """How keeping or finding trained state in flash ended: firmware/src/store.h."""

    OK = 0
    BUSY = 1
    EMPTY = 2
    NO_FLASH = 3
    TOO_LARGE = 4
    OTHER_VERSION = 5
    OTHER_MODEL = 6
    OTHER_LENGTH = 7
    DAMAGED = 8
    CHANGED = 9
    ERASE_FAILED = 10
    PROGRAM_FAILED = 11
    VERIFY_FAILED = 12
    READ_FAILED = 13
    IDLE = 14


#: For people: why there is no state, or it could not be kept.
STORED_TEXTS = {
    Stored.EMPTY: "nothing was ever saved",
    Stored.NO_FLASH: "there is no flash to keep it in",
    Stored.TOO_LARGE: "the flash area does not hold the state twice",
    Stored.OTHER_VERSION: "what is kept is of another layout",
    Stored.OTHER_MODEL: "what is kept belongs to another model or build",
    Stored.OTHER_LENGTH: "what is kept has another size",
    Stored.DAMAGED: "what is kept was damaged since it was saved",
    Stored.CHANGED: "the state changed while it was being saved",
    Stored.ERASE_FAILED: "a sector could not be erased",
    Stored.PROGRAM_FAILED: "the flash could not be programmed",
    Stored.VERIFY_FAILED: "the flash does not hold what was programmed",
    Stored.READ_FAILED: "the flash could not be read",
}


@dataclass(frozen=True)
class Opened:
    """The answer to OPEN.

    Attributes:
        frame_bytes: the largest payload the device takes, in bytes.
        credit: bytes of data that may follow a request unasked.
        step: of its random numbers: training steps since its state was new.
        found: whether it began with a state from its flash, or why not.
    """

    frame_bytes: int
    credit: int
    step: int
    found: int


@dataclass(frozen=True)
class Description:
    """The model on the device: sizes of its tensors, arena and trained state in bytes; `hash` identifies it.

    Attributes:
        input_rows: rows in which the program takes its input; 0: as a whole.
        note: model, scheme and numerics, for people.
        board: the board that the program was built for, or "host".
    """

    input_bytes: int
    output_bytes: int
    logits_bytes: int
    target_bytes: int
    state_bytes: int
    arena_bytes: int
    trains: bool
    input_rows: int
    hash: str
    name: str
    note: str
    board: str


@dataclass(frozen=True, eq=False)
class TrainResult:
    """One train step: the loss (unit: the generated header's), the logits before the step, the instructions it took.

    `instructions` is 0 where the machine does not count them, or the program sends traces. `step` is the counter after it.
    """

    loss: int
    instructions: int
    logits: NDArray[np.int8]
    step: int = 0


@dataclass(frozen=True)
class Evaluated:
    """What the device found since the count was begun.

    Attributes:
        largest: index of the largest output of this sample, the first of equals.
        samples, right: samples evaluated, and how many had their label there.
        squares: sum of squared differences to the targets, in the output's steps squared.
    """

    largest: int
    samples: int
    right: int
    squares: int


@dataclass(frozen=True)
class Counters:
    """Run-time settings (learning rate as a factor in Q15), instructions of the last calls, stack use in bytes, the link.

    `stack_bytes` is the deepest the stack has been, `stack_reserve_bytes` what is kept for it; both 0 on the host.
    `evaluated` and `right` count EVALUATE. Since reset the link has brought `frames` frames and `damaged_frames` others;
    `repeated_requests` came again and were not executed again, and data was missing `gaps` times.
    """

    learning_rate: int
    seed: int
    step: int
    infer_instructions: int
    train_instructions: int
    stack_bytes: int
    stack_reserve_bytes: int
    evaluated: int
    right: int
    frames: int
    damaged_frames: int
    repeated_requests: int
    gaps: int


@dataclass(frozen=True, eq=False)
class TraceStep:
    """The arena right after one step of the plan."""

    index: int
    arena: NDArray[np.uint8]


@dataclass(frozen=True)
class Part:
    """Instructions of a step of the plan; or, with `stage`, of one row of a stage of the segment whose step comes next.

    A segment's step has what its stages leave: the end of the loop over its rows.
    """

    stage: bool
    index: int
    instructions: int


def request(window: int, arguments: bytes) -> bytes:
    """Payload of a REQUEST: `window` is how many bytes of answer may be sent at once."""
    return _WINDOW.pack(window) + arguments


def control(learning_rate: int, seed: int, step: int) -> bytes:
    """Arguments of SET_CONTROL."""
    return _CONTROL.pack(learning_rate, seed, step)


def evaluate(label: int, *, new: bool) -> bytes:
    """Arguments of EVALUATE; `new` begins a new count."""
    return _EVALUATE.pack(label, int(new))


def parse_opened(payload: bytes) -> Opened:
    """Answer to OPEN."""
    expect_size(payload, _OPENED.size)
    opened = Opened(*_OPENED.unpack(payload))
    if not 0 < opened.frame_bytes <= 65536:
        raise DeviceError(f"the device takes frames of {opened.frame_bytes} bytes")
    return opened


def parse_description(payload: bytes) -> Description:
    """Answer to DESCRIBE."""
    if len(payload) < _DESCRIPTION.size:
        raise DeviceError("the device does not speak this protocol", remedy="build and load the firmware again")
    inputs, outputs, logits, target, state, arena, trains, rows, digest = _DESCRIPTION.unpack_from(payload)
    name, note, board = map(text, (*payload[_DESCRIPTION.size :].split(b"\0"), b"", b"", b"")[:3])
    hexadecimal = text(digest)
    # Both become part of file names.
    if not re.fullmatch(r"[0-9a-f]{16}", hexadecimal) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", name):
        raise DeviceError("the device describes no program of tte", remedy="build and load the firmware again")
    return Description(
        inputs, outputs, logits, target, state, arena, bool(trains), rows, hexadecimal, name, note, board
    )  # fmt: skip


def text(payload: bytes) -> str:
    """What a device says, fit for a terminal: of others than printable ASCII characters and newlines a question mark is left."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in payload.decode("ascii", "replace"))


def parse_trained(payload: bytes, logits_bytes: int) -> TrainResult:
    """Answer to TRAIN."""
    expect_size(payload, _TRAINED.size + logits_bytes)
    loss, instructions, step = _TRAINED.unpack_from(payload)
    return TrainResult(loss, instructions, np.frombuffer(payload, np.int8, offset=_TRAINED.size).copy(), step)


def parse_evaluated(payload: bytes) -> Evaluated:
    """Answer to EVALUATE."""
    expect_size(payload, _EVALUATED.size)
    found = Evaluated(*_EVALUATED.unpack(payload))
    if not 0 <= found.right <= found.samples or not found.samples:
        raise DeviceError(f"the device counts {found.right:,} right of {found.samples:,} samples")
    return found


def parse_stored(payload: bytes) -> tuple[Stored, int]:
    """Answer to SAVE and RESTORE: how it ended, and the step counter."""
    expect_size(payload, _STORED.size)
    result, step = _STORED.unpack(payload)
    if result not in set(Stored):
        raise DeviceError(f"the device answered with the unknown result {result}")
    return Stored(result), step


def parse_counters(payload: bytes) -> Counters:
    """Answer to COUNTERS."""
    expect_size(payload, _COUNTERS.size)
    counters = Counters(*_COUNTERS.unpack(payload))
    if counters.learning_rate > MOST_RATE:
        raise DeviceError(f"the device has a learning-rate factor of {counters.learning_rate:,}", limit=f"{MOST_RATE:,}")
    return counters


def parse_trace(payload: bytes) -> TraceStep:
    """A TRACE message."""
    (index,) = struct.unpack_from("<I", payload)
    return TraceStep(index, np.frombuffer(payload, np.uint8, offset=4).copy())


def parse_part(payload: bytes) -> Part:
    """A PROFILE message."""
    expect_size(payload, _PART.size)
    kind, index, instructions = _PART.unpack(payload)
    return Part(kind == 1, index, instructions)


def expect_size(payload: bytes, size: int) -> None:
    """Raises DeviceError unless an answer has so many bytes."""
    if len(payload) != size:
        raise DeviceError(f"the device answered with {len(payload)} bytes instead of {size}")
