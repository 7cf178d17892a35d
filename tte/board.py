"""Boards: one JSON file each, a PlatformIO board manifest with a section `tte` (see `boards/stm32f746.json`)."""

from __future__ import annotations

import difflib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tte import resources
from tte.errors import BoardError

CORES = ("cortex-m0", "cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55")
DSP_CORES = ("cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55")
LINKS = ("uart_stm32", "uart_nrf52", "uart_rp2040")
EMULATED_LINKS = ("uart_cmsdk",)
COUNTERS = ("cmsdk", "tim2", "nrf51", "none")
FLASHES = ("flash_stm32f4", "flash_stm32f7", "flash_nrf52", "flash_rp2040", "flash_model")
FLASH_RUNS_MAX, FLASH_UNIT_MAX = 4, 256  # as in firmware/src/flash.h


@dataclass(frozen=True)
class Emulator:
    """The QEMU machine that runs a board's program, with the board's own memory sizes.

    Attributes:
        machine: QEMU's `-M`.
        flash_org, ram_org: addresses of flash and RAM on that machine.
        counter: which timer counts instructions: the firmware's `counter_<counter>.c`.
        icount_shift: QEMU's `-icount shift=`: an instruction takes 2**shift ns of virtual time, as the counter expects.
        mpu: the machine has an Armv7-M MPU, which then enforces the board's limits.
        link: the firmware's driver for the machine's own serial port, without `.c`; empty: semihosting alone.
        link_settings: that driver's constants, sorted by name.
    """

    machine: str
    flash_org: int
    ram_org: int
    counter: str
    icount_shift: int
    mpu: bool
    link: str = ""
    link_settings: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class FlashArea:
    """Sectors of a board's flash that may keep trained state; sizes in bytes.

    Attributes:
        driver: the firmware's driver of the flash controller, without `.c`.
        org: address of the first sector.
        first: the chip's own number of that sector.
        unit: what is programmed at once, a power of two.
        writes: how often a unit may be programmed between two erases; 0: as often as one likes.
        endurance: erases that a sector is made for; 0: not known.
        runs: (count, size) of equal sectors in a row, by address.
    """

    driver: str
    org: int
    first: int
    unit: int
    writes: int
    endurance: int
    runs: tuple[tuple[int, int], ...]

    @property
    def nbytes(self) -> int:
        return sum(count * size for count, size in self.runs)


@dataclass(frozen=True)
class Renode:
    """How Renode plays a board.

    Attributes:
        platform: its description of the chip, a path among Renode's own files.
        uart: the serial port in it that is the board's link.
        overlay: lines that change the description.
    """

    platform: str
    uart: str
    overlay: tuple[str, ...]


@dataclass(frozen=True)
class Board:
    """A board's facts; sizes in bytes.

    Attributes:
        name: the name by which commands know it: the file's name without `.json`.
        title: its name for people.
        core: GCC's `-mcpu`, such as "cortex-m7".
        flash_bytes, ram_bytes: what a program may use.
        flash_org, ram_org: where they begin.
        stack_bytes: what is kept for the stack.
        upload_protocols: how PlatformIO may upload; ("qemu",) for an emulated board.
        link: the firmware's driver for the line to the host, without `.c`.
        link_settings: that driver's constants, sorted by name.
        extra_sources: further firmware files this board needs.
        flash: where trained state may be kept, if its file says so.
        emulator: its stand-in in QEMU, or the machine that it is.
        renode: how Renode plays it, if its file says so.
        official: (platform, board) of PlatformIO's own registry, if it has the board.
        manifest: the JSON text itself, which PlatformIO reads.
    """

    name: str
    title: str
    url: str
    core: str
    flash_bytes: int
    ram_bytes: int
    flash_org: int
    ram_org: int
    stack_bytes: int
    upload_protocols: tuple[str, ...]
    link: str
    link_settings: tuple[tuple[str, int], ...]
    extra_sources: tuple[str, ...]
    flash: FlashArea | None
    emulator: Emulator | None
    renode: Renode | None
    official: tuple[str, str] | None
    manifest: str

    @property
    def target(self) -> str:
        """What code is generated for: "dsp" where the core has Armv7E-M's SIMD instructions."""
        return "dsp" if self.core in DSP_CORES else "portable"

    @property
    def is_emulated(self) -> bool:
        """The board exists in QEMU only; there is nothing to upload to."""
        return self.upload_protocols == ("qemu",)


class _Section:
    """A JSON object whose fields are taken with their type checked; errors name file and field."""

    def __init__(self, fields: dict[str, Any], file: Path, place: str = "") -> None:
        self._fields, self._file, self._place = fields, file, place

    def _bad(self, field: str, problem: str) -> BoardError:
        return BoardError(
            f"the board's field {self._place}{field} {problem}",
            where=str(self._file),
            remedy="compare it with one of the boards that come with tte",
        )

    def _get(self, field: str, kinds: type | tuple[type, ...], meaning: str) -> Any:
        if field not in self._fields:
            raise self._bad(field, "is missing")
        value = self._fields[field]
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise self._bad(field, f"must be {meaning}, not {value!r}")
        return value

    def text(self, field: str, choices: tuple[str, ...] = ()) -> str:
        value = str(self._get(field, str, "text"))
        if choices and value not in choices:
            raise self._bad(field, f"must be one of {', '.join(choices)}, not {value!r}")
        return value

    def number(self, field: str, low: int = 0, high: int = 2**32 - 1) -> int:
        value = self._get(field, (int, str), "a number")
        try:
            number = int(value, 0) if isinstance(value, str) else int(value)
        except ValueError:
            raise self._bad(field, f"must be a number, not {value!r}") from None
        if not low <= number <= high:
            raise self._bad(field, f"must lie in {low} .. {high}, not {number}")
        return number

    def flag(self, field: str) -> bool:
        return bool(self._get(field, bool, "true or false"))

    def texts(self, field: str) -> tuple[str, ...]:
        value = self._get(field, list, "a list of text")
        if not all(isinstance(item, str) for item in value):
            raise self._bad(field, "must be a list of text")
        return tuple(value)

    def pairs(self, field: str, most: int) -> tuple[tuple[int, int], ...]:
        """A list of 1 to `most` pairs of numbers, each at least 1."""
        value = self._get(field, list, "a list of pairs of numbers")
        good = [p for p in value if isinstance(p, list) and len(p) == 2 and all(type(n) is int and 0 < n < 2**31 for n in p)]
        if not 0 < len(value) <= most or len(good) != len(value):
            raise self._bad(field, f"must be a list of 1 to {most} pairs of positive numbers, not {value!r}")
        return tuple((first, second) for first, second in good)

    def section(self, field: str) -> _Section:
        return _Section(self._get(field, dict, "an object"), self._file, f"{self._place}{field}.")

    def __contains__(self, field: str) -> bool:
        return field in self._fields

    def numbers(self) -> tuple[tuple[str, int], ...]:
        """All fields but `driver`, as numbers."""
        return tuple((field, self.number(field)) for field in sorted(self._fields) if field != "driver")


def _emulator(section: _Section) -> Emulator:
    link = section.section("link") if "link" in section else None
    return Emulator(
        machine=section.text("machine"),
        flash_org=section.number("flash_org"),
        ram_org=section.number("ram_org"),
        counter=section.text("counter", COUNTERS),
        icount_shift=section.number("icount_shift", 0, 10),
        mpu=section.flag("mpu"),
        link=link.text("driver", EMULATED_LINKS) if link else "",
        link_settings=link.numbers() if link else (),
    )


def _renode(section: _Section, file: Path) -> Renode:
    """The texts go into scripts: none may hold more than it seems to."""
    found = Renode(
        platform=section.text("platform"),
        uart=section.text("uart"),
        overlay=section.texts("overlay") if "overlay" in section else (),
    )
    good = {
        "platform": re.fullmatch(r"\w[\w/-]*\.repl", found.platform),
        "uart": re.fullmatch(r"\w+", found.uart),
        "overlay": all(re.fullmatch(r"[ -~]+", line) for line in found.overlay),
    }
    for field, matches in good.items():
        if not matches:
            raise BoardError(f"the board's field tte.renode.{field} is not a name or lines of plain text", where=str(file))
    return found


def _flash(section: _Section) -> FlashArea:
    return FlashArea(
        driver=section.text("driver", FLASHES),
        org=section.number("org"),
        first=section.number("first_sector", 0, 65535) if "first_sector" in section else 0,
        unit=section.number("unit", 1, FLASH_UNIT_MAX),
        writes=section.number("writes", 0, 254),
        endurance=section.number("endurance"),
        runs=section.pairs("sectors", FLASH_RUNS_MAX),
    )


def _refuse_bad_flash(board: Board, file: Path) -> None:
    """Raises BoardError unless the area for trained state lies inside the flash, and leaves the vectors their place."""
    area = board.flash
    if area is None:
        return
    start, end = board.flash_org, board.flash_org + board.flash_bytes
    problem = ""
    if area.unit & (area.unit - 1) or any(size % area.unit for _, size in area.runs):
        problem = "unit must be a power of two that divides every sector's size"
    elif sum(count for count, _ in area.runs) < 2:
        problem = "sectors must be two at least: one is written while the other holds"
    elif not start + 1024 <= area.org <= end - area.nbytes:
        problem = f"org and sectors must lie within the flash, behind its first 1,024 bytes: {start:#x} .. {end:#x}"
    elif (area.org - start) % area.runs[0][1]:
        problem = "org must be a multiple of the first sector's size, from the start of the flash"
    elif (area.driver == "flash_model") != board.is_emulated:
        problem = "driver is flash_model for emulated boards, and for them only"
    if problem:
        raise BoardError(f"the board's field tte.flash.{problem}", where=str(file))


def _parse(file: Path, text: str) -> Board:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BoardError(f"the board file is not JSON: {error}", where=str(file)) from None
    if not isinstance(fields, dict):
        raise BoardError("the board file must hold a JSON object", where=str(file))
    top = _Section(fields, file)
    build, upload, tte = top.section("build"), top.section("upload"), top.section("tte")
    protocols = upload.texts("protocols")
    upload.text("protocol", protocols)
    emulated = protocols == ("qemu",)
    link = None if emulated else tte.section("link")
    official = tte.section("official") if "official" in tte else None
    board = Board(
        name=file.stem,
        title=top.text("name"),
        url=top.text("url"),
        core=build.text("cpu", CORES),
        flash_bytes=upload.number("maximum_size", 1024),
        ram_bytes=upload.number("maximum_ram_size", 1024),
        flash_org=tte.number("flash_org"),
        ram_org=tte.number("ram_org"),
        stack_bytes=tte.number("stack_bytes", 256),
        upload_protocols=protocols,
        link=link.text("driver", LINKS) if link else "semihost",
        link_settings=link.numbers() if link else (),
        extra_sources=tte.texts("extra_sources") if "extra_sources" in tte else (),
        flash=_flash(tte.section("flash")) if "flash" in tte else None,
        renode=_renode(tte.section("renode"), file) if "renode" in tte else None,
        emulator=_emulator(tte.section("emulator")) if emulated or "emulator" in tte else None,
        official=(official.text("platform"), official.text("board")) if official else None,
        manifest=text,
    )
    for source in board.extra_sources:
        if not re.fullmatch(r"\w+\.c", source):
            raise BoardError(f"the board's field tte.extra_sources names {source!r}", where=str(file), limit="NAME.c")
    for field, value in (("upload.maximum_ram_size", board.ram_bytes), ("tte.stack_bytes", board.stack_bytes)):
        if value % 32:
            raise BoardError(f"the board's field {field} must be a multiple of 32", where=str(file))
    _refuse_bad_flash(board, file)
    return board


def _folders() -> list[Path]:
    """Where boards are looked for: the folders in TTE_BOARDS, then those that come with tte."""
    own = [Path(part) for part in os.environ.get("TTE_BOARDS", "").split(os.pathsep) if part]
    return [*own, resources.path("boards")]


def names() -> tuple[str, ...]:
    """All boards' names, sorted."""
    return tuple(sorted({file.stem for folder in _folders() for file in folder.glob("*.json")}))


def load(name_or_path: str | Path) -> Board:
    """Reads a board, by its name or by the path of its JSON file.

    Raises:
        BoardError: there is no such board, or its file is not as it should be.
    """
    given = str(name_or_path)
    is_path = given.endswith(".json")
    if not is_path and not re.fullmatch(r"[\w-]+", given):
        files = []
    elif is_path:
        files = [Path(given)]
    else:
        files = [folder / f"{given}.json" for folder in _folders()]
    for file in files:
        if not file.is_file():
            continue
        try:
            return _parse(file, file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise BoardError(f"cannot read the board file: {error}", where=str(file)) from None
    if is_path:
        raise BoardError("there is no such board file", where=given)
    plain = {known.lower().replace("-", "_"): known for known in names()}
    close = difflib.get_close_matches(given.lower().replace("-", "_"), plain, n=1, cutoff=0.5)
    guess = f"did you mean {plain[close[0]]}? " if close else ""
    raise BoardError(
        f"unknown board {given!r}",
        remedy=f"{guess}known: {', '.join(names())}; or give a JSON file, or put one into a folder named in TTE_BOARDS",
    )
