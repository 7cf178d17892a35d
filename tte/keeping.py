"""Which flash keeps a device's trained state: its slots, the firmware's files for it, and where the program may not lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tte.board import Board, FlashArea
from tte.errors import BoardError

HEADERS = ("crc32.h", "flash.h", "flash_model.h", "flash_stm32.h", "kept.h", "store.h", "store_record.h")
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
# Of a record beside the state (firmware/src/store.h): header; CRC, commit word, second commit word, each by itself.
_HEADER_BYTES, _WORD_BYTES, _TRAILER_WORDS = 56, 4, 3
# Of past samples (firmware/src/replay_flash.c): before each, and before those of a sector; and how many records have numbers.
_PAST_HEAD_BYTES, _PAST_SECTOR_BYTES = 16, 8
_MOST_PAST_RECORDS = 0xFFFF


def record_bytes(area: FlashArea, state_bytes: int) -> int:
    """What a record of `state_bytes` takes in flash: header, state and trailer, each part in whole units."""
    return sum(_whole(area, part) for part in (_HEADER_BYTES, state_bytes, *[_WORD_BYTES] * _TRAILER_WORDS))


def _whole(area: FlashArea, nbytes: int) -> int:
    """`nbytes` in whole units of programming."""
    return -(-nbytes // area.unit) * area.unit


def _slot_sizes(area: FlashArea, state_bytes: int, past: int = 0) -> Iterator[int]:
    """Bytes of each slot: sectors in a row, as few as hold a record, from the area's sector `past` on (as store.c counts)."""
    need, room = record_bytes(area, state_bytes), 0
    for size in [size for count, size in area.runs for _ in range(count)][past:]:
        room += size
        if room >= need:
            yield room
            room = 0


def slots(area: FlashArea, state_bytes: int, past: int = 0) -> int:
    """How many slots the area gives, without its first `past` sectors."""
    return sum(1 for _ in _slot_sizes(area, state_bytes, past))


def past_room(area: FlashArea, sectors: int, sample_bytes: int) -> int:
    """How many past samples of `sample_bytes` the area's first sectors hold: one of them is always being written anew, and an
    eighth of the others stays free (as replay_flash.c counts). Sectors that would hold more records than the firmware can
    number stay unused."""
    size = area.runs[0][1]
    each = max(0, size - _whole(area, _PAST_SECTOR_BYTES)) // _whole(area, _PAST_HEAD_BYTES + sample_bytes)
    each = min(each, _MOST_PAST_RECORDS // 2)
    room = max(0, min(sectors, _MOST_PAST_RECORDS // max(each, 1)) - 1) * each
    return max(0, room - (room // 8 if room >= 8 else 1))


@dataclass(frozen=True)
class Past:
    """Past samples that are to lie in flash: how many, and the bytes of one, with its target if it has one."""

    count: int
    sample_bytes: int


@dataclass(frozen=True)
class Kept:
    """What it takes to keep a state in a board's flash, and how often that can be done.

    Attributes:
        address, flash_bytes: the flash that is left to it, and to past samples.
        slots: places that are erased by themselves.
        record_bytes: what a save takes.
        records: saves that fit into each slot between two erases of it.
        endurance: erases that a sector is made for; 0: not known.
        past_sectors: sectors at the start that hold past samples.
    """

    address: int
    flash_bytes: int
    slots: int
    record_bytes: int
    records: tuple[int, ...]
    endurance: int
    past_sectors: int

    @property
    def saves(self) -> tuple[int, int]:
        """Saves until every sector was erased as often as it is made for: with a reset before each, and without any.

        The first save after a reset erases a slot, those that follow are appended while they fit (store.h). Wear is spread
        evenly (store_save.c: choose).
        """
        return self.endurance * self.slots, self.endurance * sum(self.records)


def kept(board: Board, state_bytes: int, past: Past | None = None) -> Kept:
    """What keeping `state_bytes` takes of a board, whose flash holds past samples as well if there are any.

    Raises:
        BoardError: as `area_for`; or the past samples do not fit beside the state.
    """
    area = area_for(board, state_bytes)
    sectors = _past_sectors(board, area, state_bytes, past) if past else 0
    record, sizes = record_bytes(area, state_bytes), tuple(_slot_sizes(area, state_bytes, sectors))
    records = tuple(size // record for size in sizes)
    return Kept(area.org, area.nbytes, len(sizes), record, records, area.endurance, sectors)


def _past_sectors(board: Board, area: FlashArea, state_bytes: int, past: Past) -> int:
    """The fewest sectors that hold the past samples: of the first run, as they must be of one size."""
    most, room = 0, 0
    for sectors in range(2, area.runs[0][0] + 1):
        if slots(area, state_bytes, sectors) < 2:
            break
        most, room = sectors, past_room(area, sectors, past.sample_bytes)
        if room >= past.count:
            return sectors
    size = past.sample_bytes
    raise BoardError(
        f"the flash for trained state, {area.nbytes:,} bytes, does not hold {past.count:,} past samples of {size:,} bytes beside "
        f"{state_bytes:,} bytes twice: a sector is kept free, and an eighth of the others",
        where=board.name,
        limit=f"{room:,} samples, --replay {room * size}, in {most} sectors of {area.runs[0][1]:,} bytes",
        remedy=("fewer of them (--replay), " if room else "")
        + "train fewer layers (--update), give tte.flash more sectors in the board's JSON, or leave out --replay-in flash",
    )


def largest_state(area: FlashArea) -> int:
    """The most bytes of state that the area holds twice."""
    low, high = -1, area.nbytes
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if slots(area, middle) >= 2 else (low, middle)
    return low


def area_for(board: Board, state_bytes: int) -> FlashArea:
    """The board's area, which holds `state_bytes` twice.

    Raises:
        BoardError: it has none, or a smaller one.
    """
    area = board.flash
    if area is None:
        raise BoardError(
            "the board's file names no flash to keep trained state in", where=board.name,
            remedy="add a section tte.flash to the board's JSON, or leave out --keep",
        )  # fmt: skip
    if slots(area, state_bytes) < 2:
        raise BoardError(
            f"the flash for trained state, {area.nbytes:,} bytes, does not hold {state_bytes:,} bytes twice: one is written "
            "while the other holds",
            where=board.name,
            limit=f"{max(largest_state(area), 0):,} bytes of state",
            remedy="train fewer layers (--update), give tte.flash more sectors in the board's JSON, or leave out --keep",
        )
    return area


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


def area_source(area: FlashArea, past_sectors: int) -> str:
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
        .past = {past_sectors}u,
        .runs = {{{runs}}},
    }};
    return &area;
}}
"""
