"""Trained state as a file: what a device has learnt, and for which program.

Layout, little endian: 8 bytes "TTESTATE", u32 version (1), 16 bytes of the program's hash in hexadecimal
(`tte.codegen.model_hash`), u32 learning-rate factor (Q15), u32 seed and u32 step of the random numbers, u32 size of the
state in bytes, the state as the generated header lays it out, u32 CRC-32 (ISO-HDLC, as zlib's) of all before it.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from tte import files
from tte.device.session import Session
from tte.errors import DataError, DeviceError

MAGIC = b"TTESTATE"
VERSION = 1
FULL_RATE = 32768
_HEAD = struct.Struct("<8sI16sIIII")
_CRC = struct.Struct("<I")
#: No board has as much RAM; a file of more is none of ours.
_LIMIT = 1 << 28
_READINGS = 10  # of a state that changes meanwhile


@dataclass(frozen=True)
class State:
    """What a device has learnt.

    Attributes:
        hash: the program it belongs to, 16 hexadecimal digits.
        learning_rate: factor on the build's learning rate, Q15: 0 to 32768.
        seed, step: of the random numbers; `step` is the number of training steps, modulo 2**32.
        data: weights, biases, residuals and held sums (`tte.codegen.state_slots`).
    """

    hash: str
    learning_rate: int
    seed: int
    step: int
    data: bytes


def pack(state: State) -> bytes:
    """The file of a state."""
    digest = state.hash.encode("ascii")
    head = _HEAD.pack(MAGIC, VERSION, digest, state.learning_rate, state.seed, state.step, len(state.data))
    return head + state.data + _CRC.pack(zlib.crc32(head + state.data))


def parse(content: bytes, where: str) -> State:
    """The state in a file, which may hold anything.

    Args:
        where: the file's name, for messages.

    Raises:
        DataError: it is no state file, one of another version, cut off, or damaged.
    """
    if content[: len(MAGIC)] != MAGIC:
        raise DataError(
            "is no state file", where=where, remedy="give a file that `tte run --save-state` or `tte device pull` wrote"
        )
    if len(content) < _HEAD.size + _CRC.size:
        raise _damaged(f"{len(content)} bytes, less than its head", where)
    _, version, digest, rate, seed, step, size = _HEAD.unpack_from(content)
    if version != VERSION:
        raise DataError(f"a state file of version {version}, tte reads version {VERSION}", where=where)
    wanted = _HEAD.size + size + _CRC.size
    if size > _LIMIT or len(content) != wanted:
        raise _damaged(f"{len(content):,} bytes, its head asks for {wanted:,}", where)
    if _CRC.unpack_from(content, wanted - _CRC.size)[0] != zlib.crc32(content[: -_CRC.size]):
        raise _damaged("its checksum does not fit its contents", where)
    if not re.fullmatch(rb"[0-9a-f]{16}", digest) or rate > FULL_RATE:
        raise _damaged("its head holds no program's hash or no learning-rate factor", where)
    return State(digest.decode("ascii"), rate, seed, step, content[_HEAD.size : -_CRC.size])


def _damaged(what: str, where: str) -> DataError:
    return DataError(f"the state file is damaged: {what}", where=where, remedy="save the state again")


def load(path: Path) -> State:
    """The state in a file.

    Raises:
        DataError: as `parse`, or the file cannot be read.
    """
    try:
        return parse(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path)) from None


def save(path: Path, state: State) -> None:
    """Writes a state file, whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    files.write(path, pack(state))


def require(state: State, program: str, size: int, where: str) -> None:
    """Raises DeviceError unless a state belongs to the program of that hash, and has the size of its state."""
    if state.hash != program or len(state.data) != size:
        raise DeviceError(
            f"the state was learnt by another program ({state.hash}, {len(state.data):,} bytes), not by this one "
            f"({program}, {size:,} bytes)",
            where=where,
            remedy="use the build folder that the device was built from: another scheme, board or version of tte lays "
            "the state out otherwise",
        )


def pull(device: Session) -> State:
    """What a device has learnt; of one that learns by itself, what it had at one step.

    Raises:
        DeviceError: the device fails, or has nothing that trains, or never stops learning.
    """
    about, now = device.describe(), device.counters()
    if not about.trains:
        raise DeviceError(f"the model {about.name!r} was built for inference only: it has no trained state")
    for _ in range(_READINGS):
        before, data, now = now, device.read_state(), device.counters()
        if (before.learning_rate, before.seed, before.step) == (now.learning_rate, now.seed, now.step):
            return State(about.hash, now.learning_rate, now.seed, now.step, data)
    raise DeviceError(
        f"the device learns while its state is read, {_READINGS} times now",
        limit=f"{len(data):,} bytes must come between two of its steps", remedy="let it rest, or a faster line",
    )  # fmt: skip


def push(device: Session, state: State, where: str) -> None:
    """Gives a device a state, with its learning-rate factor, seed and step.

    Raises:
        DeviceError: the device fails, or the state is another program's.
    """
    about = device.describe()
    require(state, about.hash, about.state_bytes, where)
    device.write_state(state.data)
    device.set_control(state.learning_rate, state.seed, state.step)
