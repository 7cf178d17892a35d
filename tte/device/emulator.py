"""QEMU as the board: its command line, and the named pipes through which the firmware talks by semihosting."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tte import toolchain
from tte.board import Board
from tte.device import flashfile
from tte.device.link import ProcessLink
from tte.errors import BoardError

_FLASH = "flash"  # as firmware/src/medium_semihost.c opens it in its working directory
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
def running(
    elf: Path, board: Board, *, icount: bool, uart: bool = False, flash: Path | None = None
) -> Iterator[ProcessLink]:
    """QEMU running `elf`; ended, and its pipes removed, on leaving. `uart`: as `command`.

    Args:
        flash: the file that is the flash of a program that keeps trained state (`tte.device.flashfile`); None: it has
            one that was never used, and goes with it.

    Raises:
        BoardError, ToolchainError: as `command`.
        DataError: `flash` is another board's, or in use.
    """
    words = command(elf, board, icount=icount, uart=uart)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tte-qemu-")))
        if flash and board.flash:
            stack.enter_context(flashfile.held(flash, board.flash))
            (folder / _FLASH).symlink_to(flash.resolve())
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
