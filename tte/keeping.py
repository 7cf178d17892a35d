"""Which flash keeps a device's trained state: its slots, the firmware's files for it, and where the program may not lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tte.board import Board, FlashArea
from tte.errors import BoardError

HEADERS = ("crc32.h", "flash.h", "flash_model.h", "flash_split.h", "flash_stm32.h", "kept.h", "store.h", "store_record.h")
HOST_SOURCES = ("crc32.c", "kept.c", "store.c", "store_save.c", "flash_model.c", "medium_host.c", "flash_area.c")
_ENGINE = ("crc32.c", "kept.c", "store.c", "store_save.c")
_DRIVERS = {
    "flash_stm32f4": ("flash_stm32.c", "flash_stm32f4.c", "flash_mapped.c"),
    "flash_stm32f7": ("flash_stm32.c", "flash_stm32f7.c", "flash_mapped.c"),
    "flash_nrf52": ("flash_nrf52.c", "flash_mapped.c"),
    "flash_rp2040": ("flash_rp2040.c", "flash_mapped.c"),
    "flash_model": ("flash_model.c", "medium_semihost.c"),
}
AREA_SOURCE = "flash_area.c"
# Of a record beside the state (firmware/src/store.h): header and trailer.
_HEADER_BYTES, _TRAILER_BYTES = 52, 8


def record_bytes(area: FlashArea, state_bytes: int) -> int:
    """What a record of `state_bytes` takes in flash: header, state and trailer, each in whole units."""
    return sum(-(-part // area.unit) * area.unit for part in (_HEADER_BYTES, state_bytes, _TRAILER_BYTES))


def _slot_sizes(area: FlashArea, state_bytes: int) -> Iterator[int]:
    """Bytes of each slot: sectors in a row, as few as hold a record, from the area's start on (as store.c counts)."""
    need, room = record_bytes(area, state_bytes), 0
    for count, size in area.runs:
        for _ in range(count):
            room += size
            if room >= need:
                yield room
                room = 0


def slots(area: FlashArea, state_bytes: int) -> int:
    """How many slots the area gives."""
    return sum(1 for _ in _slot_sizes(area, state_bytes))


@dataclass(frozen=True)
class Kept:
    """What it takes to keep a state in a board's flash, and how often that can be done.

    Attributes:
        address, flash_bytes: the flash that is left to it, and to past samples.
        slots: places that are erased by themselves.
        record_bytes: what a save takes.
        records: saves that fit into each slot between two erases of it.
        endurance: erases that a sector is made for; 0: not known.
    """

    address: int
    flash_bytes: int
    slots: int
    record_bytes: int
    records: tuple[int, ...]
    endurance: int

    @property
    def saves(self) -> tuple[int, int]:
        """Saves until every sector was erased as often as it is made for: with a reset before each, and without any.

        The first save after a reset erases a slot, those that follow are appended while they fit (store.h). Wear is spread
        evenly (store_save.c: choose).
        """
        return self.endurance * self.slots, self.endurance * sum(self.records)


def kept(board: Board, state_bytes: int, past_bytes: int = 0) -> Kept:
    """What keeping `state_bytes` takes of a board, whose flash holds `past_bytes` of past samples as well.

    Raises:
        BoardError: as `area_for`.
    """
    whole = area_for(board, state_bytes, past_bytes)
    area, record = without_tail(whole, past_bytes), record_bytes(whole, state_bytes)
    sizes = tuple(_slot_sizes(area, state_bytes))
    return Kept(area.org, whole.nbytes, len(sizes), record, tuple(size // record for size in sizes), area.endurance)


def without_tail(area: FlashArea, wanted: int) -> FlashArea:
    """The area without the sectors at its end that hold `wanted` bytes of past samples (as flash_split.c shares it out).

    They are the last of the last run of two at least; what lies behind them is left out, too. The same where there is none.
    """
    most = max((i for i, (count, _) in enumerate(area.runs) if count >= 2), default=None)
    if not wanted or most is None:
        return area
    count, size = area.runs[most]
    rest = count - min(max(2, -(-wanted // size)), count)
    return replace(area, runs=(*area.runs[:most], *(((rest, size),) if rest else ())))


def largest_state(area: FlashArea) -> int:
    """The most bytes of state that the area holds twice."""
    low, high = -1, area.nbytes
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if slots(area, middle) >= 2 else (low, middle)
    return low


def area_for(board: Board, state_bytes: int, past_bytes: int = 0) -> FlashArea:
    """The board's area, which holds `state_bytes` twice beside `past_bytes` of past samples.

    Raises:
        BoardError: it has none, or a smaller one.
    """
    if board.flash is None:
        raise BoardError(
            "the board's file names no flash to keep trained state in", where=board.name,
            remedy="add a section tte.flash to the board's JSON, or leave out --keep",
        )  # fmt: skip
    area = without_tail(board.flash, past_bytes)
    if slots(area, state_bytes) < 2:
        beside = f" beside {past_bytes:,} of past samples" if past_bytes else ""
        raise BoardError(
            f"the flash for trained state, {board.flash.nbytes:,} bytes, does not hold {state_bytes:,} bytes twice{beside}: "
            "one is written while the other holds",
            where=board.name,
            limit=f"{max(largest_state(area), 0):,} bytes of state",
            remedy="train fewer layers (--update), give tte.flash more sectors in the board's JSON, or leave out "
            + ("--replay-in flash" if past_bytes else "--keep"),
        )
    return board.flash


def program_memory(board: Board, start: int, *, keeps: bool) -> tuple[tuple[str, int, int], ...]:
    """The linker's regions of flash, (name, origin, bytes), for a program whose flash begins at `start`.

    FLASH takes the program. Where kept sectors lie below it, HEAD is what is left before them, for what must lie at the
    very start. Of kept sectors before and behind which there is room, the larger side becomes FLASH.
    """
    if not keeps or board.flash is None:
        return (("FLASH", start, board.flash_bytes),)
    before = board.flash.org - board.flash_org
    behind = board.flash_bytes - before - board.flash.nbytes
    if before >= behind:
        return (("FLASH", start, before),)
    return (("HEAD", start, before), ("FLASH", start + before + board.flash.nbytes, behind))


def sources(board: Board, *, emulated: bool) -> tuple[str, ...]:
    """The firmware's C files that keep state on a board, or on the QEMU machine that stands in for it."""
    assert board.flash
    return (*_ENGINE, AREA_SOURCE, *_DRIVERS["flash_model" if emulated else board.flash.driver])


def area_source(area: FlashArea) -> str:
    """The C file that tells the firmware the area: `flash_board` of flash.h."""
    runs = ", ".join(f"{{{count}u, {size}u}}" for count, size in area.runs)
    return f"""\
/* Where this board keeps trained state. Written by tte from the board's JSON. */
#include "flash.h"

const flash_area *flash_board(void)
{{
    static const flash_area area = {{
        .base = 0x{area.org:08x}u,
        .first = {area.first}u,
        .unit = {area.unit}u,
        .writes = {area.writes}u,
        .endurance = {area.endurance}u,
        .runs = {{{runs}}},
    }};
    return &area;
}}
"""
