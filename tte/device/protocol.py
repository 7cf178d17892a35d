"""The device protocol, twin of firmware/src/main.c; all numbers little endian.

Request: u32 command, u32 length, payload. Response: u32 status, u32 length, payload.

Programs built for it send more before the response proper, any number of times, each with header and payload:
TRACE (TTE_TRACE), after each step of a train step: u32 index of the step in the plan, the arena.
PROFILE (TTE_PROFILE), after each step of INFER and TRAIN (kind 0) and each row of a stage of a segment (kind 1): u32 kind,
u32 index of the step or stage, u64 instructions since the last PROFILE or the call's begin. A step's stages come before it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from tte.errors import DeviceError

VERSION = 1
HEADER = struct.Struct("<II")
_DESCRIPTION = struct.Struct("<8I16s")
_TRAINED = struct.Struct("<iQ")
_COUNTERS = struct.Struct("<IIIQQII")
_CONTROL = struct.Struct("<III")
_PART = struct.Struct("<IIQ")


class Command(IntEnum):
    """What a request asks for."""

    DESCRIBE = 1
    INFER = 2
    TRAIN = 3
    READ_STATE = 4
    WRITE_STATE = 5
    SET_CONTROL = 6
    COUNTERS = 7
    QUIT = 8


class Status(IntEnum):
    """What a response is: TRACE and PROFILE tell of one step of a call, before the response proper."""

    OK = 0
    BAD_REQUEST = 1
    TRACE = 2
    PROFILE = 3
    FAULT = 127


@dataclass(frozen=True)
class Description:
    """The model on the device: sizes of its tensors, arena and trained state in bytes; `hash` identifies it."""

    input_bytes: int
    output_bytes: int
    logits_bytes: int
    target_bytes: int
    state_bytes: int
    arena_bytes: int
    trains: bool
    hash: str
    name: str


@dataclass(frozen=True, eq=False)
class TrainResult:
    """One train step: the loss (unit: the generated header's), the logits before the step, the instructions it took.

    `instructions` is 0 where the machine does not count them, or the program sends traces.
    """

    loss: int
    instructions: int
    logits: NDArray[np.int8]


@dataclass(frozen=True)
class Counters:
    """Run-time settings (learning rate as a factor in Q15), instructions of the last calls, stack use in bytes.

    `stack_bytes` is the deepest the stack has been, `stack_reserve_bytes` what is kept for it; both 0 on the host.
    """

    learning_rate: int
    seed: int
    step: int
    infer_instructions: int
    train_instructions: int
    stack_bytes: int
    stack_reserve_bytes: int


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


def request(command: Command, payload: bytes = b"") -> bytes:
    """The bytes of a request."""
    return HEADER.pack(command, len(payload)) + payload


def control(learning_rate: int, seed: int, step: int) -> bytes:
    """Payload of SET_CONTROL."""
    return _CONTROL.pack(learning_rate, seed, step)


def parse_description(payload: bytes) -> Description:
    """Payload of DESCRIBE's response.

    Raises:
        DeviceError: it is of another protocol version.
    """
    if len(payload) < _DESCRIPTION.size:
        raise DeviceError("the device does not speak this protocol", remedy="build and load the firmware again")
    version, inputs, outputs, logits, target, state, arena, trains, digest = _DESCRIPTION.unpack_from(payload)
    if version != VERSION:
        raise DeviceError(
            f"the device speaks version {version} of the protocol, tte version {VERSION}",
            remedy="build and load the firmware again",
        )
    name = payload[_DESCRIPTION.size :].decode("ascii", "replace")
    hexadecimal = digest.decode("ascii", "replace")
    return Description(inputs, outputs, logits, target, state, arena, bool(trains), hexadecimal, name)


def parse_trained(payload: bytes, logits_bytes: int) -> TrainResult:
    """Payload of TRAIN's response."""
    _expect_size(payload, _TRAINED.size + logits_bytes)
    loss, instructions = _TRAINED.unpack_from(payload)
    return TrainResult(loss, instructions, np.frombuffer(payload, np.int8, offset=_TRAINED.size).copy())


def parse_counters(payload: bytes) -> Counters:
    """Payload of COUNTERS' response."""
    _expect_size(payload, _COUNTERS.size)
    return Counters(*_COUNTERS.unpack(payload))


def parse_trace(payload: bytes) -> TraceStep:
    """Payload of a TRACE response."""
    (index,) = struct.unpack_from("<I", payload)
    return TraceStep(index, np.frombuffer(payload, np.uint8, offset=4).copy())


def parse_part(payload: bytes) -> Part:
    """Payload of a PROFILE response."""
    _expect_size(payload, _PART.size)
    kind, index, instructions = _PART.unpack(payload)
    return Part(kind == 1, index, instructions)


def _expect_size(payload: bytes, size: int) -> None:
    if len(payload) != size:
        raise DeviceError(f"the device answered with {len(payload)} bytes instead of {size}")
