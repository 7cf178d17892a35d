"""Boards: what ships is sound, a user's own file works, and a bad one gives one clear message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tte import board, resources
from tte.errors import BoardError

# board: (core, flash, RAM), from the makers' data sheets
FACTS = {
    "stm32f746": ("cortex-m7", 1 << 20, 320 << 10),
    "nucleo_f446re": ("cortex-m4", 512 << 10, 128 << 10),
    "nrf52840": ("cortex-m4", 960 << 10, 256 << 10),
    "rp2040": ("cortex-m0plus", 2 << 20, 264 << 10),
    "mps2-an500": ("cortex-m7", 1 << 20, 320 << 10),
    "mps2-an386": ("cortex-m4", 960 << 10, 256 << 10),
    "mps2-an385": ("cortex-m0plus", 2 << 20, 264 << 10),
    "netduinoplus2": ("cortex-m4", 1 << 20, 128 << 10),
    "microbit": ("cortex-m0", 256 << 10, 16 << 10),
}


@pytest.mark.parametrize("name", sorted(FACTS))
def test_board_that_ships(name: str) -> None:
    assert name in board.names()
    loaded = board.load(name)
    assert (loaded.core, loaded.flash_bytes, loaded.ram_bytes) == FACTS[name]
    assert loaded.emulator, "every board that ships can be emulated"
    sources = json.loads(loaded.manifest)["tte"]["source"]
    assert all(text.startswith("https://") for text in sources.values()) and "memory" in sources
    assert loaded.is_emulated == (loaded.link == "semihost")
    assert loaded.flash and "flash" in sources


def _changed(path: str, value: Any) -> str:
    """The STM32F746's file with one field changed, or left out where `value` is None."""
    fields = json.loads((resources.path("boards") / "stm32f746.json").read_text())
    *sections, last = path.split(".")
    place = fields
    for section in sections:
        place = place[section]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return json.dumps(fields)


def test_own_board_by_path_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.json"
    file.write_text(_changed("upload.maximum_ram_size", 65536))
    assert board.load(file).ram_bytes == board.load(str(file)).ram_bytes == 65536
    with pytest.raises(BoardError, match="unknown board 'mine'"):
        board.load("mine")
    monkeypatch.setenv("TTE_BOARDS", str(tmp_path))
    assert board.load("mine").ram_bytes == 65536
    assert "mine" in board.names() and "stm32f746" in board.names()


BAD = {
    "not JSON": "{",
    "not an object": "[]",
    "deep": "[" * 100_000,
    "no name": _changed("name", None),
    "no tte": _changed("tte", None),
    "no RAM": _changed("upload.maximum_ram_size", None),
    "RAM is text": _changed("upload.maximum_ram_size", "lots"),
    "RAM is true": _changed("upload.maximum_ram_size", True),
    "RAM is negative": _changed("upload.maximum_ram_size", -5),
    "RAM is odd": _changed("upload.maximum_ram_size", 65537),
    "core": _changed("build.cpu", "z80"),
    "protocol": _changed("upload.protocol", "smoke signals"),
    "protocols": _changed("upload.protocols", [1]),
    "origin": _changed("tte.ram_org", "0xgg"),
    "link": _changed("tte.link.driver", "../../evil"),
    "link setting": _changed("tte.link.baud", []),
    "emulator": _changed("tte.emulator", 3),
    "counter": _changed("tte.emulator.counter", "abacus"),
    "flash driver": _changed("tte.flash.driver", "flash_punch_cards"),
    "flash model on a real board": _changed("tte.flash.driver", "flash_model"),
    "flash outside": _changed("tte.flash.org", "0x080f0000"),
    "flash over the vectors": _changed("tte.flash.org", "0x08000000"),
    "flash between sectors": _changed("tte.flash.org", "0x08009000"),
    "flash of one sector": _changed("tte.flash.sectors", [[1, 32768]]),
    "flash of many runs": _changed("tte.flash.sectors", [[1, 32768]] * 5),
    "flash without sectors": _changed("tte.flash.sectors", []),
    "flash of no pairs": _changed("tte.flash.sectors", [32768, 32768]),
    "flash of nothing": _changed("tte.flash.sectors", [[0, 32768]]),
    "flash of true": _changed("tte.flash.sectors", [[True, 32768]]),
    "flash unit": _changed("tte.flash.unit", 24),
    "flash unit too large": _changed("tte.flash.unit", 512),
    "flash endurance": _changed("tte.flash.endurance", None),
    "extra source": _changed("tte.extra_sources", ["../main.c"]),
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_bad_board(text: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(BoardError, match=r"bad\.json"):
        board.load(file)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("stm32f764", "did you mean stm32f746"),
        ("mps2_an500", "did you mean mps2-an500"),
        ("nope.json", "no such board file"),
        ("", "unknown board"),
        ("../boards/stm32f746", "unknown board"),
    ],
)
def test_unknown_board(name: str, says: str) -> None:
    with pytest.raises(BoardError, match=says):
        board.load(name)


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    file = tmp_path / "binary.json"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BoardError, match="cannot read"):
        board.load(file)
