"""The file that is a program's flash memory in QEMU and on this computer: it outlasts the program, also one that is killed.

Layout, as firmware/src/flash_model.c has it, 32-bit words little endian: the area's bytes; erases of each sector (words);
how often each unit was programmed since (bytes); three words: magic, bytes in a unit, sectors.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tte.board import FlashArea
from tte.errors import DataError

_MAGIC = 0x6E6F7266
_TAIL = struct.Struct("<III")
_DELETE = "delete the file: the device then begins as it was built"


def new(area: FlashArea) -> bytes:
    """A flash memory that was never used."""
    sectors = sum(count for count, _ in area.runs)
    counts = bytes(4 * sectors + area.nbytes // area.unit)
    return b"\xff" * area.nbytes + counts + _tail(area)


def _tail(area: FlashArea) -> bytes:
    return _TAIL.pack(_MAGIC, area.unit, sum(count for count, _ in area.runs))


def erases(content: bytes, area: FlashArea) -> tuple[int, ...]:
    """How often each sector was erased."""
    return struct.unpack_from(f"<{sum(count for count, _ in area.runs)}I", content, area.nbytes)


@contextmanager
def held(path: Path, area: FlashArea) -> Iterator[None]:
    """Makes the file, or checks the one that is there, and keeps other programs off it.

    Raises:
        DataError: it belongs to a board with another flash, is no such file, is in use, or cannot be read or made.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise DataError(f"the flash's file cannot be opened ({error.strerror})", where=str(path)) from None
    with os.fdopen(descriptor, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError("another program uses this flash", where=str(path), remedy="end that one first") from None
        fresh = new(area)
        content = file.read(len(fresh) + 1)
        if not content:
            _fill(file, fresh, path)
        else:
            _refuse_other(content, area, path)
        yield


def _fill(file: IO[bytes], content: bytes, path: Path) -> None:
    """Writes it whole or not at all, past the buffer: of what a full disk left in there closing would fail once more."""
    try:
        if os.pwrite(file.fileno(), content, 0) == len(content):
            return
        what = "No space left on device"
    except OSError as error:
        what = error.strerror or str(error)
    os.ftruncate(file.fileno(), 0)
    raise DataError(f"the flash's file cannot be written ({what})", where=str(path))


def _refuse_other(content: bytes, area: FlashArea, path: Path) -> None:
    wanted = len(new(area))
    if len(content) != wanted:
        what = f"the flash's file is of another board, or cut off: this board's has {wanted:,} bytes"
    elif content[-_TAIL.size :] != _tail(area):
        what = "the flash's file is of a board with other sectors, or damaged"
    else:
        return
    raise DataError(what, where=str(path), remedy=_DELETE)
