"""Damaged and hostile .tflite files: refused by one clear error or read, and soon."""

from __future__ import annotations

import signal
import struct
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite_builder import with_tensor
from tflite_cases import build_case, residual, shared_model

from tte.errors import ModelError
from tte.frontend.flatbuffer import Scalar, TableNode, TableVector, Vector, pack
from tte.frontend.schema import read, write
from tte.frontend.schema_tables import OPERATOR_NAMES

SECONDS_EACH = 2.0  # guard for one damaged file; typical is 1 to 5 ms
SECONDS_HANG = 60


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    """End a test that hangs."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"longer than {SECONDS_HANG} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS_HANG)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _survives(data: bytes) -> bool:
    """Whether a damaged file is refused; it must be refused by ModelError or read, and soon."""
    start = time.perf_counter()
    try:
        model = read(data, "damaged")
    except ModelError as error:
        assert "damaged" in str(error)
        refused = True
    else:
        refused = False
        try:
            write(model)
        except ModelError:
            pass
    assert time.perf_counter() - start < SECONDS_EACH
    return refused


def _mutations(data: bytes, rng: np.random.Generator, count: int) -> list[bytes]:
    """Bit flips, bytes and 32-bit words set to awkward values, and pieces copied elsewhere."""
    made = []
    words = [0, 1, 0x7F, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFC, len(data), len(data) - 4]
    for i in range(count):
        damaged = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(0, len(data) - 4))
            if i % 4 == 0:
                damaged[at] ^= 1 << int(rng.integers(0, 8))
            elif i % 4 == 1:
                damaged[at] = int(rng.integers(0, 256))
            elif i % 4 == 2:
                at -= at % 4
                damaged[at : at + 4] = int(rng.choice(words)).to_bytes(4, "little")
            else:
                size = int(rng.integers(1, 64))
                piece = data[(source := int(rng.integers(0, len(data)))) : source + size]
                damaged[at : at + len(piece)] = piece
        made.append(bytes(damaged[: len(data)]))
    return made


def _structure(data: bytes) -> bytes:
    """The same model with its constants' bytes cut short, so that random damage hits structure more than weights."""
    model = read(data, "real")
    for index, tensor in enumerate(model.subgraph.tensors):
        if tensor.data is not None and tensor.data.size > 64:
            model = with_tensor(model, index, data=None)
    return write(model)


def test_truncation_at_every_length() -> None:
    data = build_case(residual)
    assert not _survives(data)
    refused = [_survives(data[:length]) for length in range(len(data))]
    assert all(refused[: len(data) - 16])  # the last object may end before the file's padding does


@pytest.mark.parametrize("name", ["built", "kws_ref_model", "pretrainedResnet_quant"])
def test_mutations(name: str) -> None:
    data = build_case(residual) if name == "built" else _structure(shared_model(name))
    rng = np.random.default_rng(11)
    refused = sum(_survives(damaged) for damaged in _mutations(data, rng, 3000 if name == "built" else 1500))
    assert refused > 100


def test_mutations_of_an_untouched_real_file() -> None:
    data = shared_model("vww_96_int8")
    rng = np.random.default_rng(12)
    for damaged in _mutations(data, rng, 200):
        _survives(damaged)
    for length in rng.integers(0, len(data), 100):
        _survives(data[:length])


@settings(max_examples=300, deadline=1000)
@given(st.binary(max_size=400))
def test_random_bytes(data: bytes) -> None:
    _survives(data)
    _survives(data[:4] + b"TFL3" + data[8:])
    _survives(b"\x08\0\0\0TFL3" + data)


def _file(tensor: dict[int, object], buffers: tuple[dict[int, object], ...] = ({},), **graph: object) -> bytes:
    """A file with one int8 tensor [2], fields of which are replaced by `tensor`."""
    node = TableNode({0: Vector(np.asarray([2], np.int32)), 1: Scalar("b", 9), **tensor})  # type: ignore[dict-item]
    subgraph = TableNode({0: TableVector((node,)), **{int(k[1:]): v for k, v in graph.items()}})  # type: ignore[dict-item]
    made = tuple(TableNode(b) for b in buffers)  # type: ignore[arg-type]
    return pack(TableNode({0: Scalar("I", 3), 2: TableVector((subgraph,)), 4: TableVector(made)}), b"TFL3")


def _ints(*values: int) -> Vector:
    return Vector(np.asarray(values, np.int32))


def _quantisation(scales: list[float], zero_points: list[int], **more: object) -> TableNode:
    fields = {int(k[1:]): v for k, v in more.items()}
    return TableNode({
        2: Vector(np.asarray(scales, np.float32)), 3: Vector(np.asarray(zero_points, np.int64)), **fields
    })  # type: ignore[dict-item]  # fmt: skip


BYTES = {0: Vector(np.zeros(3, np.uint8))}
BAD_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "negative dimension": (lambda: _file({0: _ints(-1)}), "dimensions of at least 0"),
    "overflow": (lambda: _file({0: _ints(*[2**31 - 1] * 4)}), "at most 2147483647 bytes"),
    "overflow hidden by zero": (lambda: _file({0: _ints(0, *[2**31 - 1] * 4)}), "at most 2147483647 bytes"),
    "rank": (lambda: _file({0: _ints(*[1] * 33)}), "at most 32 dimensions"),
    "type": (lambda: _file({1: Scalar("b", 99)}), "a tensor type from 0"),
    "buffer index": (lambda: _file({2: Scalar("I", 7)}), "buffer index"),
    "data length": (lambda: _file({2: Scalar("I", 1)}, ({}, BYTES)), "2 bytes of data"),
    "external buffer outside": (
        lambda: _file({2: Scalar("I", 1)}, ({}, {1: Scalar("Q", 1000), 2: Scalar("Q", 2)})), "bytes inside the file"
    ),
    "external tensor": (lambda: _file({10: Scalar("I", 1)}), "stored in this file"),
    "sparse": (lambda: _file({6: TableNode({})}), "dense tensor"),
    "shape signature": (lambda: _file({7: _ints(3)}), "shape signature"),
    "zero points": (lambda: _file({4: _quantisation([1.0], [1, 2])}), "as many zero points"),
    "zero point range": (lambda: _file({4: _quantisation([1.0], [128])}), "from -128 to 127"),
    "scale": (lambda: _file({4: _quantisation([float("nan")], [0])}), "finite scales"),
    "zero scale": (lambda: _file({4: _quantisation([0.0], [0])}), "finite scales"),
    "channels": (lambda: _file({4: _quantisation([1.0] * 3, [0] * 3)}), "found 3 for dimension 0"),
    "quantised dimension": (lambda: _file({4: _quantisation([1.0] * 2, [0] * 2, f6=Scalar("i", 1))}), "dimension 1"),
    "quantisation kind": (lambda: _file({4: _quantisation([1.0], [0], f4=Scalar("B", 2))}), "another kind"),
    "graph input": (lambda: _file({}, f1=_ints(-1)), "inputs: tensor indices"),
    "graph output": (lambda: _file({}, f2=_ints(1)), "outputs: tensor indices"),
    "operator code": (lambda: _file({}, f3=TableVector((TableNode({}),))), "operator code index below 0"),
    "schema version": (lambda: pack(TableNode({0: Scalar("I", 2)}), b"TFL3"), "schema version 3"),
    "no subgraph": (lambda: pack(TableNode({0: Scalar("I", 3)}), b"TFL3"), "one subgraph, found 0"),
    "identifier": (lambda: pack(TableNode({0: Scalar("I", 3)}), b"TFL2"), "TFL3"),
    "empty file": (lambda: b"", "TFL3"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_with_the_reason(name: str) -> None:
    make, expected = BAD_FILES[name]
    with pytest.raises(ModelError, match=expected) as caught:
        read(make(), "bad.tflite")
    assert "bad.tflite" in str(caught.value) and "byte " in str(caught.value)


def test_bytes_behind_the_tables_are_found() -> None:
    """Buffers of files beyond 2 GB lie at (offset, size) of the file."""

    def made(offset: int) -> bytes:
        return _file({2: Scalar("I", 1)}, ({}, {1: Scalar("Q", offset), 2: Scalar("Q", 2)}))

    end = len(made(99))
    tensor = read(made(end) + b"\x05\xff", "x").subgraph.tensors[0]
    np.testing.assert_array_equal(tensor.data, np.asarray([5, -1], np.int8))


def _loose_table(blobs: dict[int, bytes]) -> bytes:
    """A table of 7 slots at byte 20 of the result, its vtable in front; each set slot refers to its blob behind."""
    used = sorted(blobs)
    size = 4 + 4 * len(used)
    vtable = struct.pack("<9Hxx", 18, size, *[4 + 4 * used.index(slot) if slot in blobs else 0 for slot in range(7)])
    table, tail = struct.pack("<i", 20), b""
    for index, slot in enumerate(used):
        table += struct.pack("<I", size + len(tail) - 4 - 4 * index)
        tail += blobs[slot]
    return vtable + table + tail


SHARED_OFFSETS = {
    "tensors of 32 dimensions": (0, {0: struct.pack("<33I", 32, *[1] * 32)}),
    "tensors with a sub-table": (0, {4: struct.pack("<iHH", -4, 4, 4)}),
    "operators of 1000 inputs": (3, {1: struct.pack("<I1000i", 1000, *[-1] * 1000)}),
}


@pytest.mark.parametrize("name", SHARED_OFFSETS)
def test_shared_offsets_do_not_multiply_work(name: str) -> None:
    """200,000 offsets to one table."""
    slot, blobs = SHARED_OFFSETS[name]
    count = 200_000
    subgraph = TableNode({slot: _ints(*[0] * count)})  # a vector of offsets is laid out as one of integers
    codes = TableVector((TableNode({0: Scalar("b", OPERATOR_NAMES.index("RELU"))}),))
    data = bytearray(pack(TableNode({0: Scalar("I", 3), 1: codes, 2: TableVector((subgraph,))}), b"TFL3"))
    start = data.index(count.to_bytes(4, "little")) + 4
    target = len(data) + 20
    data[start : start + 4 * count] = (target - start - 4 * np.arange(count)).astype("<u4").tobytes()
    began = time.perf_counter()
    with pytest.raises(ModelError, match="offsets share targets"):
        read(bytes(data) + _loose_table(blobs), "hostile")
    assert time.perf_counter() - began < 5 * SECONDS_EACH
