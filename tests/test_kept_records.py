"""Kept state, written here as firmware/src/store.h lays it out: whole records are found, whatever lies beside them; all else
is refused with its reason, and saving works over it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_keeping import toy
from toy import X, needs_host

from tte import board, keeping, native
from tte.device import flashfile, session
from tte.device.session import Session
from tte.errors import DeviceError

pytestmark = needs_host

#: Where slots begin (sectors of the STM32F746's flash that hold one record), bytes of the area and of a record of 8 bytes.
SLOTS, AREA, RECORD = (0, 32768, 65536, 98304), 229_376, 76
MODEL, VERSION = b"0123456789abcdef", 2 | 56 << 16
NOTHING, DAMAGED = "nothing was ever saved", "what is kept was damaged since it was saved"
OTHERS = ("what is kept is of another layout", "what is kept belongs to another model or build", "what is kept has another size")
Found = tuple[bytes, int, int, int]  # state, learning rate, seed, step


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Session, Path]]:
    """The toy with sanitizers, and its flash, which the program reads anew at every RESTORE."""
    path = tmp_path_factory.mktemp("junk") / "flash"
    area = keeping.area_for(board.load("stm32f746"), 8)
    assert area.nbytes == AREA
    with session.open_host(native.build_host(toy(tmp_path_factory.mktemp("kept"))), flash=(path, area)) as device:
        yield device, path


def record(
    sequence: int, state: bytes, *, length: int | None = None, version: int = VERSION, model: bytes = MODEL, rate: int = 32768,
    seed: int = 0, step: int = 1, guard: int | None = None, second: bool = True,
) -> bytes:  # fmt: skip
    """A record for units of four bytes; its header whole, whatever it says."""
    size = len(state) if length is None else length
    named = sequence if guard is None else guard
    header = struct.pack("<4I16s5I", 0x6B657474, version, sequence, 1, model, size, rate, seed, step, named)
    body = header + struct.pack("<I", zlib.crc32(header)) + state + b"\xff" * (-len(state) % 4)
    return body + struct.pack("<III", zlib.crc32(body), 0x5AA50FF0, 0x0FF05AA5 if second else 0xFFFFFFFF)


def flash_with(*pieces: tuple[int, bytes]) -> bytearray:
    content = bytearray(flashfile.new(keeping.area_for(board.load("stm32f746"), 8)))
    for at, piece in pieces:
        fits = piece[: AREA - at]
        content[at : at + len(fits)] = fits
    return content


def restore(running: tuple[Session, Path], content: bytes) -> Found | str:
    """What a device finds that starts with this flash, or why it finds nothing."""
    device, path = running
    path.write_bytes(content)
    device.reset()
    initial = device.read_state()
    try:
        step = device.restore()
    except DeviceError as error:
        words = str(error).split("cannot restore: ")[1].splitlines()[0]
        assert device.read_state() == initial and device.counters().step == 0
        return words
    now = device.counters()
    assert now.step == step
    return device.read_state(), now.learning_rate, now.seed, now.step


def saving_works(running: tuple[Session, Path]) -> None:
    device, _ = running
    device.train(X, 3)
    learnt, step = device.read_state(), device.save()
    device.reset()
    assert device.restore() == step and device.read_state() == learnt


OLD, NEW = record(6, b"the old."), record(7, b"the new.", rate=20_000, seed=77, step=9)
IN_OLD, IN_NEW = (b"the old.", 32768, 0, 1), (b"the new.", 20_000, 77, 9)


@pytest.mark.parametrize("at", [*SLOTS, *(slot + RECORD for slot in SLOTS), 3 * RECORD])
def test_a_record_is_found_wherever_it_may_lie(at: int, running: tuple[Session, Path]) -> None:
    """At the start of a slot, or after others in it; beside them an older one elsewhere."""
    slot = max(s for s in SLOTS if s <= at)
    before = [(place, record(2 + place // RECORD % 3, b"very old")) for place in range(slot, at, RECORD)]
    for older in ([], [((slot + 32768) % 131_072, OLD)]):
        assert restore(running, flash_with(*before, *older, (at, NEW))) == IN_NEW
    saving_works(running)


def test_sequence_numbers_wrap(running: tuple[Session, Path]) -> None:
    old, new = (record(sequence, state) for sequence, state in ((2**32 - 1, b"the old."), (0, b"the new.")))
    assert restore(running, flash_with((0, new), (32768, old))) == (b"the new.", 32768, 0, 1)


def test_numbers_that_go_round_end_the_search(running: tuple[Session, Path]) -> None:
    """Each is later than the one before, and the first than the last; none has a commit word."""
    sequences = (0, 0x60000000, 0xC0000000)
    torn = [(at, record(n, b"the torn")[:-8]) for at, n in zip(SLOTS, sequences, strict=False)]
    assert restore(running, flash_with(*torn)) == NOTHING
    saving_works(running)


@pytest.mark.parametrize(("old_at", "new_at"), [(0, RECORD), (65536, 0), (32768, 98304)])
def test_one_changed_bit_gives_the_record_before(old_at: int, new_at: int, running: tuple[Session, Path]) -> None:
    whole = flash_with((old_at, OLD), (new_at, NEW))
    assert restore(running, whole) == IN_NEW
    for bit in range(8 * RECORD):
        content = bytearray(whole)
        content[new_at + bit // 8] ^= 1 << bit % 8
        is_second = bit >= 8 * (RECORD - 4)
        assert restore(running, content) == (IN_NEW if is_second else IN_OLD), f"bit {bit}"
    saving_works(running)


def changed(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


_OTHER_MODEL = record(7, b"the new.", model=b"fedcba9876543210")
REFUSED = {
    "empty": (b"", NOTHING),
    "zero": (b"\0" * AREA, NOTHING),
    "no commit word": (NEW[:-8] + b"\xff" * 8, NOTHING),
    "header alone": (NEW[:56], NOTHING),
    "header damaged": (changed(NEW, 8), NOTHING),
    "state damaged": (changed(NEW, 59), DAMAGED),
    "checksum damaged": (changed(NEW, 64), DAMAGED),
    "both damaged": (changed(NEW, 57) + changed(OLD, 57), DAMAGED),
    "other layout": (record(7, b"the new.", version=3 | 56 << 16), OTHERS[0]),
    "other model": (_OTHER_MODEL, OTHERS[1]),
    "other length": (record(7, b"the new one."), OTHERS[2]),
    "other model, damaged": (changed(_OTHER_MODEL, 57), NOTHING),
    "endless": (record(7, b"the new.", length=2**32 - 1), NOTHING),
}


@pytest.mark.parametrize(("piece", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_record_is_refused_with_the_reason(piece: bytes, reason: str, running: tuple[Session, Path]) -> None:
    assert restore(running, flash_with((32768, piece))) == reason
    saving_works(running)


_NUMBERS = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 7, 8, 9, 2**31, 2**32 - 1]))
_RECORDS = st.builds(
    record, _NUMBERS, st.binary(min_size=8, max_size=8), length=st.one_of(st.none(), _NUMBERS),
    version=st.one_of(st.just(VERSION), _NUMBERS), step=_NUMBERS, rate=st.integers(0, 32768), seed=_NUMBERS,
)  # fmt: skip
_WHOLE = st.builds(
    record, st.integers(0, 9), st.binary(min_size=8, max_size=8), step=_NUMBERS, guard=st.one_of(st.integers(0, 9), _NUMBERS),
    second=st.booleans(),
)  # fmt: skip
_STARTS = st.sampled_from([at + RECORD * i for at in SLOTS for i in range(3)])
_PLACES = st.one_of(_STARTS, st.sampled_from([4, AREA - 4]), st.integers(0, AREA - 1))
_JUNK = st.lists(st.tuples(_PLACES, st.binary(min_size=1, max_size=80)), max_size=6)


@given(pieces=_JUNK)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_junk_is_no_record(pieces: list[tuple[int, bytes]], running: tuple[Session, Path]) -> None:
    content = flash_with(*pieces)
    assume(b"ttek" not in content)
    assert restore(running, content) == NOTHING
    saving_works(running)


def ours(content: bytes) -> Iterator[tuple[int, Found | None]]:
    """Sequence number and content (None: not complete, or damaged) of the records with this model's headers, in each slot up to
    the first place that has none."""
    for slot, end in zip(SLOTS, (*SLOTS[1:], AREA), strict=True):
        for at in range(slot, end - RECORD + 1, RECORD):
            fields = struct.unpack("<4I16s6I", content[at : at + 56])
            magic, version, sequence, _, model, length, rate, seed, step, _, crc = fields
            if (magic, version, model, length) != (0x6B657474, VERSION, MODEL, 8) or crc != zlib.crc32(content[at : at + 52]):
                break
            is_whole = struct.unpack("<2I", content[at + 64 : at + 72]) == (zlib.crc32(content[at : at + 64]), 0x5AA50FF0)
            yield sequence, (bytes(content[at + 56 : at + 64]), rate, seed, step) if is_whole else None


_PIECES = st.one_of(st.tuples(_STARTS, _WHOLE), st.tuples(_PLACES, st.one_of(_RECORDS, st.binary(min_size=1, max_size=80))))


@given(pieces=st.lists(_PIECES, max_size=8))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_newest_whole_record_is_found_among_others(pieces: list[tuple[int, bytes]], running: tuple[Session, Path]) -> None:
    """Whatever else lies there: no fault; the newest, where sequence numbers are as the firmware gives them."""
    content = flash_with(*pieces)
    records = list(ours(content))
    numbers = [sequence for sequence, _ in records]
    oldest = [first for first in numbers if all((n - first) % 2**32 < 2**31 for n in numbers)]
    found, whole = restore(running, content), {n: one for n, one in records if one}
    if whole and oldest and len(set(numbers)) == len(numbers):
        assert found == whole[max(whole, key=lambda n: (n - oldest[0]) % 2**32)]
    elif whole:
        assert found in (*(one for _, one in records if one), NOTHING, DAMAGED, *OTHERS)
    else:
        assert found in (NOTHING, DAMAGED, *OTHERS)
    saving_works(running)
