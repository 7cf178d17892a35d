"""QEMU as the board: its command line, and the named pipes through which the firmware talks by semihosting."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tte import toolchain
from tte.board import Board
from tte.device.link import ProcessLink
from tte.errors import BoardError


def command(elf: Path, board: Board, *, icount: bool) -> list[str]:
    """QEMU's command line; the firmware opens the pipes `to_device` and `from_device` in the working directory.

    Args:
        icount: time is instructions executed: they can be counted, and every run is the same. A third as fast.

    Raises:
        BoardError: the board has no emulator.
        ToolchainError: QEMU is not installed.
    """
    if not board.emulator:
        raise BoardError("the board has no emulator", where=board.name, remedy="choose another board")
    qemu = toolchain.require(toolchain.QEMU)
    words = [qemu, "-M", board.emulator.machine, "-display", "none", "-monitor", "none", "-serial", "none"]
    words += ["-semihosting-config", "enable=on,target=native,arg=tte,arg=to_device,arg=from_device"]
    if icount:
        words += ["-icount", f"shift={board.emulator.icount_shift}"]
    return [*words, "-kernel", str(elf.resolve())]


@contextmanager
def running(elf: Path, board: Board, *, icount: bool) -> Iterator[ProcessLink]:
    """QEMU running `elf`; ended, and its pipes removed, on leaving.

    Raises:
        BoardError, ToolchainError: as `command`.
    """
    words = command(elf, board, icount=icount)
    with tempfile.TemporaryDirectory(prefix="tte-qemu-") as temporary:
        folder = Path(temporary)
        fifos = (folder / "to_device", folder / "from_device")
        for fifo in fifos:
            os.mkfifo(fifo, 0o600)
        what = f"the emulator ({board.emulator.machine if board.emulator else ''})"
        link = ProcessLink(words, what=what, folder=folder, fifos=fifos)
        try:
            yield link
        finally:
            link.close()
