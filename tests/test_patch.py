"""A .tflite file changed in part, or written anew without what fell out of use."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import DIGITS
from oracle import Oracle
from tflite_builder import GraphBuilder
from tflite_cases import SHARED_MODELS, shared_model

from tte.errors import ModelError
from tte.frontend import patch
from tte.frontend.compact import _Copier, compacted, unused_bytes
from tte.frontend.flatbuffer import Kept, Scalar, Source, TableNode, TableVector, pack
from tte.frontend.records import RawModel
from tte.frontend.schema import IDENTIFIER, read


def metadata(data: bytes) -> list[tuple[str, bytes]]:
    """Names and contents of a file's metadata."""
    root = Source(data, "m").root(IDENTIFIER, "model")
    buffers = root.tables(4, "buffer")
    found = []
    for table in root.tables(6, "metadata"):
        contents = buffers[table.scalar(1, "I", 0)].array(0, np.uint8, "data")
        found.append((table.text(0, "name"), b"" if contents is None else contents.tobytes()))
    return found


def same(a: bytes, b: bytes) -> None:
    """Both say the same, to us and to LiteRT."""
    patch._compare(read(a, "a"), read(b, "b"), "a")
    assert metadata(a) == metadata(b)
    one, other = Oracle(a), Oracle(b)
    assert one.interpreter.get_signature_list() == other.interpreter.get_signature_list()
    x = one.random_inputs(np.random.default_rng(0))
    out = one.interpreter.get_output_details()[0]["index"]
    assert np.array_equal(one.run(x)[out], other.run(x)[out])


@pytest.mark.parametrize("name", ["digits", *SHARED_MODELS])
def test_compacted(name: str) -> None:
    data = DIGITS.read_bytes() if name == "digits" else shared_model(name)
    made = compacted(data, name)
    same(made, data)
    assert compacted(made, name) == made and len(made) <= 1.01 * len(data)
    assert metadata(made) or name != "digits"


def test_unused_contents_go() -> None:
    raw = read(DIGITS.read_bytes(), "m")
    weights = max(range(len(raw.subgraph.tensors)), key=lambda i: _bytes(raw, i))
    smaller = replace(raw.subgraph.tensors[weights], shape=(1,), data=np.zeros(1, np.int8), scales=np.ones(1, np.float32),
                      zero_points=np.zeros(1, np.int64))  # fmt: skip
    after = _with(raw, weights, smaller)
    made = patch.patched(DIGITS.read_bytes(), raw, after, "m")
    assert unused_bytes(made, "m") == 0 and len(made) < DIGITS.stat().st_size - _bytes(raw, weights) + 500
    assert metadata(made) == metadata(DIGITS.read_bytes())


def _bytes(raw: RawModel, tensor: int) -> int:
    data = raw.subgraph.tensors[tensor].data
    return 0 if data is None else data.nbytes


def _with(raw: RawModel, index: int, tensor: object) -> RawModel:
    tensors = list(raw.subgraph.tensors)
    tensors[index] = tensor  # type: ignore[call-overload]
    return replace(raw, subgraph=replace(raw.subgraph, tensors=tuple(tensors)))


def _two_layers() -> tuple[bytes, RawModel]:
    """Weights are tensors 1 and 4."""
    b = GraphBuilder(5)
    b.fully_connected(b.fully_connected(b.input((1, 6)), 6), 6)
    data = b.build()
    return data, read(data, "m")


def _negated(raw: RawModel, index: int) -> RawModel:
    old = raw.subgraph.tensors[index]
    assert old.data is not None
    return _with(raw, index, replace(old, data=-old.data))


def test_a_buffer_under_two_numbers() -> None:
    """Offsets may share their targets: what one tensor learnt must not become another's."""
    data, raw = _two_layers()
    step = patch._Patch(data, raw, raw, "m")
    first, second = (step.users[i] for i in (1, 4))
    buffers = [Kept(step.buffers[first if i == second else i].position) for i in range(len(step.buffers))]
    data = pack(step._copied(step.root, patch._MODEL, {4: TableVector(tuple(buffers))}), IDENTIFIER, data)
    raw = read(data, "m")
    assert np.array_equal(raw.subgraph.tensors[1].data, raw.subgraph.tensors[4].data)  # type: ignore[arg-type]
    made = read(patch.patched(data, raw, _negated(raw, 1), "m"), "m")
    assert np.array_equal(made.subgraph.tensors[1].data, -made.subgraph.tensors[4].data)  # type: ignore[arg-type,operator]


def test_contents_behind_the_tables() -> None:
    """The layout for files above 2 GB: changed in place; what needs another place is refused."""
    data, raw = _two_layers()
    copier = _Copier(data, "m")
    number = patch._Patch(data, raw, raw, "m").users[1]
    root = copier.table(copier.root, "Model")
    weights = raw.subgraph.tensors[1].data
    assert weights is not None
    for place in (0, len(data) + 4096):  # the first only to learn the size
        buffers = list(root.fields[4].items)  # type: ignore[union-attr]
        buffers[number] = TableNode({1: Scalar("Q", place), 2: Scalar("Q", weights.nbytes)})
        moved = pack(TableNode({**root.fields, 4: TableVector(tuple(buffers))}), IDENTIFIER)
    moved += bytes(place - len(moved)) + weights.tobytes()
    raw = read(moved, "m")
    made = patch.patched(moved, raw, _negated(raw, 1), "m")
    assert made[:place] == moved[:place] and made[place:] == (-weights).tobytes()
    with pytest.raises(ModelError, match="files above 2 GB"):
        patch.patched(moved, raw, _with(raw, 1, replace(raw.subgraph.tensors[1], shape=(6, 6), scales=np.ones(6))), "m")


def test_fields_of_a_newer_schema() -> None:
    """A tensor with one stays as it is, and its contents may change in place; it is not written anew without it."""
    data, raw = _two_layers()
    step = patch._Patch(data, raw, raw, "m")
    newer = step._copied(step.tensors[1], patch._TENSOR, {60: Scalar("I", 9)})
    tensors = TableVector(tuple(patch._replaced(step.tensors, {1: newer})))
    graph = step._copied(step.graph, patch._SUBGRAPH, {0: tensors})
    data = pack(step._copied(step.root, patch._MODEL, {2: TableVector((graph,))}), IDENTIFIER, data)
    raw = read(data, "m")
    assert len(patch.patched(data, raw, _negated(raw, 1), "m")) == len(data)
    assert compacted(data, "m") == data
    with pytest.raises(ModelError, match="found field 60"):
        patch.patched(data, raw, _with(raw, 1, replace(raw.subgraph.tensors[1], scales=np.ones(6))), "m")


@settings(max_examples=300, deadline=None)
@given(st.integers(0), st.integers(1, 255))
def test_damaged_files(place: int, value: int) -> None:
    """A byte changed among the tables: a message, or a file that can be read."""
    data = bytearray(DIGITS.read_bytes())
    data[place % len(data)] ^= value
    try:
        made = compacted(bytes(data), "m")
        read(made, "m")
    except ModelError:
        pass
