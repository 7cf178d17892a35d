"""A .tflite file with a few of its tensors and operators changed; everything else in it stays as it is.

Contents that keep their size are overwritten where they lie. For what else changes, new objects are written in front of the
old file, which stays whole behind them: FlatBuffers' offsets are distances, so its objects may move together, and only the
tables on the way from the root to a changed object are written anew. So metadata, signatures and whatever else a file
carries are kept. Where constants fall out of use (a classifier that was replaced), the file is written anew without them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from tte.errors import ModelError
from tte.frontend.compact import compacted, unused_bytes
from tte.frontend.flatbuffer import Kept, Scalar, Source, Table, TableNode, TableVector, Vector, pack
from tte.frontend.records import RawModel, RawOperator, RawTensor
from tte.frontend.schema import (
    BUFFER_ALIGNMENT,
    IDENTIFIER,
    operator_fields,
    read,
    tensor_bytes,
    tensor_fields,
)

# What the fields of the tables on the way are: a scalar's struct code, or "*" for an offset.
# Source: tensorflow/lite/schema/schema.fbs, schema version 3.
_MODEL = {0: "I", **dict.fromkeys(range(1, 8), "*")}
_SUBGRAPH = {**dict.fromkeys(range(5), "*"), 5: "i"}
_TENSOR = {0: "*", 1: "b", 2: "I", 3: "*", 4: "*", 5: "?", 6: "*", 7: "*", 8: "?", 9: "*", 10: "I"}
_OPERATOR = {
    0: "I", 1: "*", 2: "*", 3: "B", 4: "*", 5: "*", 6: "b", 7: "*", 8: "*", 9: "Q", 10: "Q", 11: "B", 12: "*", 13: "i",
}  # fmt: skip

Node = Scalar | str | Vector | TableVector | TableNode | Kept


def patched(data: bytes, before: RawModel, after: RawModel, where: str) -> bytes:
    """The file `data`, which `before` was read from, with what `after` has in place of it.

    A tensor or operator of `after` is changed where it is another object than that of `before` at its index; further tensors
    are added. Operators keep their number, kind and outputs.

    Args:
        where: the file's name, for messages.

    Raises:
        ModelError: the file's layout does not allow it: a newer schema's fields in a table that must change, contents kept
            behind the tables, or parts that the file shares unforeseen.
    """
    result = _Patch(data, before, after, where).result()
    if unused_bytes(result, where) > unused_bytes(data, where):
        result = compacted(result, where)
    _compare(read(result, where), after, where)
    return result


class _Patch:
    def __init__(self, data: bytes, before: RawModel, after: RawModel, where: str) -> None:
        self.data, self.before, self.after, self.where = data, before, after, where
        source = Source(data, where)
        self.root = source.root(IDENTIFIER, "model")
        self.graph = self.root.tables(2, "subgraph")[0]
        self.tensors = self.graph.tables(0, "tensor")
        self.operators = self.graph.tables(3, "operator")
        self.buffers = self.root.tables(4, "buffer")
        self.users = [t.scalar(2, "I", 0) for t in self.tensors]
        self.spans = [self._span(b) for b in self.buffers]
        self.added: list[bytes] = []

    def result(self) -> bytes:
        old, new = self.before.subgraph, self.after.subgraph
        out = bytearray(self.data)
        nodes: dict[int, TableNode] = {}
        for i, tensor in enumerate(new.tensors):
            if i < len(old.tensors) and tensor is old.tensors[i]:
                continue
            place = self._own_place(i, tensor) if i < len(old.tensors) else None
            if place is not None:
                out[place : place + len(tensor_bytes(tensor))] = tensor_bytes(tensor)
            else:
                nodes[i] = self._tensor(i, tensor)
        operators = {
            i: self._operator(i, op) for i, op in enumerate(new.operators) if op is not old.operators[i]
        }
        if not nodes and not operators:
            return bytes(out)
        return self._in_front(bytes(out), nodes, operators)

    # ---- in place

    def _own_place(self, index: int, tensor: RawTensor) -> int | None:
        """Where the tensor's contents lie, if they alone change, keep their size, and belong to no other tensor."""
        old = self.before.subgraph.tensors[index]
        if old.data is None or tensor.data is None or not _alike(old, tensor):
            return None
        mine = self.users[index]
        first, size = self.spans[mine]
        if size != len(tensor_bytes(tensor)) or self.users.count(mine) != 1:
            return None
        others = (span for i, span in enumerate(self.spans) if i != mine)
        return None if any(at < first + size and first < at + length for at, length in others) else first

    def _span(self, buffer: Table) -> tuple[int, int]:
        """First byte and size of a buffer's contents."""
        if self._behind(buffer):
            return buffer.scalar(1, "Q", 0), buffer.scalar(2, "Q", 0)
        at = buffer.target(0, "data")
        return self.root.source.vector(at, 1, "data") if at else (0, 0)

    @staticmethod
    def _behind(buffer: Table) -> bool:
        """Whether the contents lie at an absolute place of the file, behind the tables; 0 and 1 stand for neither."""
        return bool(buffer.scalar(1, "Q", 0) > 1 or buffer.scalar(2, "Q", 0) > 1)

    # ---- in front

    def _in_front(self, behind: bytes, tensors: Mapping[int, TableNode], operators: Mapping[int, TableNode]) -> bytes:
        if any(map(self._behind, self.buffers)):
            raise ModelError(
                "its constants lie behind the tables, in the layout for files above 2 GB",
                where=self.where,
                remedy="convert the model again without buffer offsets",
            )
        added = range(len(self.tensors), len(self.after.subgraph.tensors))
        subgraph: dict[int, Node] = {}
        if tensors:
            subgraph[0] = TableVector((*_replaced(self.tensors, tensors), *(tensors[i] for i in added)))
        if operators:
            subgraph[3] = TableVector(tuple(_replaced(self.operators, operators)))
        root: dict[int, Node] = {2: TableVector((self._copied(self.graph, _SUBGRAPH, subgraph),))}
        if self.added:
            more = (TableNode({0: Vector(np.frombuffer(b, np.uint8), BUFFER_ALIGNMENT)}) for b in self.added)
            root[4] = TableVector((*_replaced(self.buffers, {}), *more))
        return pack(self._copied(self.root, _MODEL, root), IDENTIFIER, behind)

    def _copied(self, table: Table, kinds: Mapping[int, str], changes: Mapping[int, Node | None]) -> TableNode:
        """The table anew: what it refers to is kept, but for `changes` (None: the field is left out)."""
        fields: dict[int, Node] = {}
        for slot in table.present():
            if slot in changes:
                continue
            if slot not in kinds:
                table.fail(f"fields that this toolchain knows, found field {slot} (a newer schema)")
            code = kinds[slot]
            kept = code == "*"
            fields[slot] = Kept(table.target(slot, "field")) if kept else Scalar(code, table.scalar(slot, code, 0))
        return TableNode({**fields, **{slot: node for slot, node in changes.items() if node is not None}})

    def _tensor(self, index: int, tensor: RawTensor) -> TableNode:
        old = self.before.subgraph.tensors[index] if index < len(self.tensors) else None
        same_data = old is not None and tensor.data is old.data
        number = self.users[index] if same_data else self._buffer(tensor)
        fields = tensor_fields(tensor, number)
        if old is None:
            return TableNode(fields)
        changes: dict[int, Node | None] = {2: fields[2]}
        if tensor.shape != old.shape or tensor.shape_signature != old.shape_signature:
            changes |= {0: fields[0], 7: fields.get(7)}
        if not (np.array_equal(tensor.scales, old.scales) and tensor.quantized_dimension == old.quantized_dimension):
            changes[4] = fields.get(4)
        return self._copied(self.tensors[index], _TENSOR, changes)

    def _buffer(self, tensor: RawTensor) -> int:
        """The number of a new buffer with the tensor's contents; 0, the empty one, where it has none."""
        if tensor.data is None:
            return 0
        self.added.append(tensor_bytes(tensor))
        return len(self.buffers) + len(self.added) - 1

    def _operator(self, index: int, operator: RawOperator) -> TableNode:
        fields, old = operator_fields(operator), self.before.subgraph.operators[index]
        changes: dict[int, Node | None] = {1: fields[1]}
        if operator.options != old.options:
            changes |= {3: fields[3], 4: fields[4]}
        return self._copied(self.operators[index], _OPERATOR, changes)


def _replaced(tables: Iterable[Table], new: Mapping[int, TableNode]) -> list[TableNode | Kept]:
    return [new.get(i) or Kept(t.position) for i, t in enumerate(tables)]


def _alike(a: RawTensor, b: RawTensor) -> bool:
    """Whether two tensors differ in nothing but their contents."""
    plain = ("name", "shape", "dtype", "is_variable", "shape_signature")
    return (
        all(getattr(a, name) == getattr(b, name) for name in plain)
        and np.array_equal(a.scales.astype(np.float32), b.scales.astype(np.float32))
        and np.array_equal(a.zero_points, b.zero_points)
        and (a.quantized_dimension == b.quantized_dimension or a.scales.size <= 1)
    )


def _compare(found: RawModel, wanted: RawModel, where: str) -> None:
    """Raises unless the file that was made says what it should: nothing else may have changed with what it shares."""
    have, want = found.subgraph, wanted.subgraph
    graph = (have.operators, have.inputs, have.outputs) == (want.operators, want.inputs, want.outputs)
    pairs = list(zip(have.tensors, want.tensors, strict=False))
    tensors = len(have.tensors) == len(want.tensors) and all(
        _alike(a, b) and tensor_bytes(a) == tensor_bytes(b) for a, b in pairs
    )
    if not (graph and tensors):
        raise ModelError(
            "its parts are laid out so that they cannot be changed one by one",
            where=where,
            remedy="convert the model again with TensorFlow's own converter",
        )
