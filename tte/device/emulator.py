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

_UART_RETRY_S = 5.0  # QEMU's UART holds back what does not fit, and loses nothing


def command(elf: Path, board: Board, *, icount: bool, uart: bool = False) -> list[str]:
    """QEMU's command line; the firmware opens the pipes `to_device` and `from_device` in the working directory.

    Args:
        uart: the machine's serial port is QEMU's standard input and output instead; a reset ends QEMU.
        icount: time is instructions executed: they can be counted, and every run is the same. A third as fast.

    Raises:
        BoardError: the board has no emulator.
        ToolchainError: QEMU is not installed.
    """
    if not board.emulator:
        raise BoardError("the board has no emulator", where=board.name, remedy="choose another board")
    qemu = toolchain.require(toolchain.QEMU)
    words = [qemu, "-M", board.emulator.machine, "-display", "none", "-monitor", "none"]
    words += ["-serial", "stdio", "-no-reboot"] if uart else ["-serial", "none"]
    words += ["-semihosting-config", "enable=on,target=native,arg=tte,arg=to_device,arg=from_device"]
    if icount:
        words += ["-icount", f"shift={board.emulator.icount_shift}"]
    return [*words, "-kernel", str(elf.resolve())]


@contextmanager
def running(elf: Path, board: Board, *, icount: bool, uart: bool = False) -> Iterator[ProcessLink]:
    """QEMU running `elf`; ended, and its pipes removed, on leaving. `uart`: as `command`.

    Raises:
        BoardError, ToolchainError: as `command`.
    """
    words = command(elf, board, icount=icount, uart=uart)
    with tempfile.TemporaryDirectory(prefix="tte-qemu-") as temporary:
        folder = Path(temporary)
        fifos = (folder / "to_device", folder / "from_device")
        what = f"the emulator ({board.emulator.machine if board.emulator else ''})"
        if uart:
            link = ProcessLink(words, what=what, folder=folder, retry_s=_UART_RETRY_S)
        else:
            for fifo in fifos:
                os.mkfifo(fifo, 0o600)
            link = ProcessLink(words, what=what, folder=folder, fifos=fifos)
        try:
            yield link
        finally:
            link.close()
