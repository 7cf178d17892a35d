"""The serial drivers of real boards, on QEMU's machines that have the same peripheral."""

from __future__ import annotations

import json
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import pytest
from toy import TOY, WRITE_PAST_RAM, X, converse, needs_qemu

from tte import board, firmware, pioproject, toolchain
from tte.board import Board
from tte.device import session
from tte.device.link import ProcessLink
from tte.device.session import Session
from tte.errors import BoardError, DeviceError


def _nucleo(folder: Path) -> Board:
    """The board's program runs unchanged on an STM32F405: same memory map, same USART2."""
    del folder
    return board.load("nucleo_f446re")


def _microbit_by_serial_port(folder: Path) -> Board:
    """A user's own board in one JSON file: the micro:bit's nRF51 has the nRF52's UART."""
    fields = json.loads(board.load("microbit").manifest)
    fields["upload"] |= {"protocol": "pyocd", "protocols": ["pyocd"]}
    fields["tte"].pop("flash")  # modelled
    fields["tte"]["link"] = {"driver": "uart_nrf52", "tx_pin": 24, "rx_pin": 25, "baud": 115200}
    (folder / "mine.json").write_text(json.dumps(fields))
    return board.load(folder / "mine.json")


CASES = {
    "uart_stm32": (_nucleo, ["-M", "netduinoplus2", "-serial", "null", "-serial", "stdio"]),
    "uart_nrf52": (_microbit_by_serial_port, ["-M", "microbit", "-serial", "stdio"]),
}


@needs_qemu
@pytest.mark.parametrize("driver", CASES)
def test_conversation_over_serial_port(driver: str, tmp_path: Path) -> None:
    make, machine = CASES[driver]
    loaded = make(tmp_path)
    assert loaded.link == driver and not loaded.is_emulated
    elf = firmware.build(pioproject.generate_project(tmp_path / "project", TOY, loaded, name="toy")).elf
    command = [toolchain.require(toolchain.QEMU), *machine, "-display", "none", "-monitor", "none", "-kernel", str(elf)]
    # what arrives before the port is open is lost, as on a board: so requests are repeated
    with closing(ProcessLink(command, what="the emulated board", retry_s=0.5)) as link:
        device = Session(nullcontext(link), timeout_s=60)
        assert converse(device) == [0, 0, 0, 0]
        assert device.describe().board == loaded.name
        if driver == "uart_nrf52":  # QEMU's STM32F405 has more RAM than this board
            with pytest.raises(DeviceError, match="the device stopped: fault: address unknown, program counter"):
                device.train(X, WRITE_PAST_RAM)
        else:
            assert device.infer(np.zeros(64, np.int8)).shape == (4,)


@needs_qemu
def test_conversation_over_the_emulators_own_uart(tmp_path: Path) -> None:
    loaded = board.load("mps2-an386")
    project = pioproject.generate_project(tmp_path, TOY, loaded, name="toy")
    elf = firmware.build(project, project.env(emulated=True, uart=True)).elf
    with session.open_qemu(elf, loaded, uart=True, timeout_s=60) as device:
        counts = converse(device)
        assert 20_000 <= counts[3] - counts[2] < 20_010
    says = "the device stopped: fault: memory protection, address 0x20040000"
    with session.open_qemu(elf, loaded, uart=True, timeout_s=60) as device, pytest.raises(DeviceError, match=says):
        device.train(X, WRITE_PAST_RAM)
    with pytest.raises(BoardError, match="no serial port"):
        pioproject.generate_project(tmp_path, TOY, board.load("microbit"), name="toy").env(emulated=True, uart=True)
