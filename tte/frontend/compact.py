"""A .tflite file without the bytes that nothing refers to: written anew, object by object, in the same order.

Metadata, signatures and whatever else the schema of the tables below names are kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tte.frontend.flatbuffer import Scalar, Source, Table, TableNode, TableVector, Vector, pack
from tte.frontend.schema import BUFFER_ALIGNMENT, IDENTIFIER
from tte.frontend.schema_tables import OPERATOR_NAMES, OPTIONS

# Field slot -> a scalar's struct code; "str"; a vector's element type with its byte order; a table's name; "[name]".
# Source: tensorflow/lite/schema/schema.fbs, schema version 3. "Options" are those of the operator.
_TABLES: Mapping[str, Mapping[int, str]] = {
    "Model": {
        0: "I", 1: "[OperatorCode]", 2: "[SubGraph]", 3: "str", 4: "[Buffer]", 5: "<i4", 6: "[Metadata]", 7: "[SignatureDef]",
    },
    "OperatorCode": {0: "b", 1: "str", 2: "i", 3: "i"},
    "SubGraph": {0: "[Tensor]", 1: "<i4", 2: "<i4", 3: "[Operator]", 4: "str", 5: "i"},
    "Tensor": {0: "<i4", 1: "b", 2: "I", 3: "str", 4: "Quantization", 5: "?", 7: "<i4", 8: "?"},
    "Quantization": {0: "<f4", 1: "<f4", 2: "<f4", 3: "<i8", 4: "B", 6: "i"},
    "Operator": {0: "I", 1: "<i4", 2: "<i4", 3: "B", 4: "Options", 5: "|u1", 6: "b", 7: "|u1", 8: "<i4"},
    "Buffer": {0: "|u1"},
    "Metadata": {0: "str", 1: "I"},
    "SignatureDef": {0: "[TensorMap]", 1: "[TensorMap]", 2: "str", 4: "I"},
    "TensorMap": {0: "str", 1: "I"},
}  # fmt: skip

_Node = Scalar | str | Vector | TableVector | TableNode


class _UnknownError(Exception):
    """The file has fields that the tables above lack."""


def compacted(data: bytes, where: str) -> bytes:
    """The file less what is unreachable, the contents of unused buffers among it; the file itself if it holds unknown fields.

    Buffers keep their numbers.

    Raises:
        ModelError: the file is damaged.
    """
    copier = _Copier(data, where)
    try:
        return pack(copier.table(copier.root, "Model"), IDENTIFIER)
    except _UnknownError:
        return data


def unused_bytes(data: bytes, where: str) -> int:
    """The size of the buffers that no tensor and no metadata refers to, in bytes."""
    copier = _Copier(data, where)
    dead = (b for i, b in enumerate(copier.root.tables(4, "buffer")) if i not in copier.used)
    return sum(0 if (a := b.array(0, np.uint8, "data")) is None else a.size for b in dead)


class _Copier:
    def __init__(self, data: bytes, where: str) -> None:
        self.root = Source(data, where).root(IDENTIFIER, "model")
        codes = [max(t.scalar(0, "b", 0), t.scalar(3, "i", 0)) for t in self.root.tables(1, "operator code")]
        self.opcodes = [OPERATOR_NAMES[c] if 0 <= c < len(OPERATOR_NAMES) else "" for c in codes]
        listed = self.root.array(5, "<i4", "metadata buffers")
        self.used = set() if listed is None else set(listed.tolist())
        self.used |= {t.scalar(1, "I", 0) for t in self.root.tables(6, "metadata")}
        for graph in self.root.tables(2, "subgraph"):
            self.used |= {t.scalar(2, "I", 0) for t in graph.tables(0, "tensor")}

    def table(self, table: Table, kind: str, opcode: str = "") -> TableNode:
        """A table anew, with all that it refers to."""
        kinds = _TABLES[kind] if kind != "Options" else self._options(opcode)
        fields: dict[int, _Node] = {}
        for slot in table.present():
            if slot not in kinds:
                raise _UnknownError
            code = kinds[slot]
            node = self._field(table, slot, code, kind)
            if node is not None:
                fields[slot] = node
        return TableNode(fields)

    @staticmethod
    def _options(opcode: str) -> Mapping[int, str]:
        if opcode not in OPTIONS:
            raise _UnknownError
        return {row.slot: "<i4" if row.code == "[i]" else row.code for row in OPTIONS[opcode].fields}

    def _field(self, table: Table, slot: int, code: str, kind: str) -> _Node | None:
        if code == "str":
            return table.text(slot, "text")
        if code[0] in "<|":
            array = table.array(slot, code, "vector")
            return None if array is None else Vector(array, BUFFER_ALIGNMENT if kind == "Buffer" else 4)
        if code[0] == "[":
            name = code[1:-1]
            return TableVector(tuple(self._item(t, i, name) for i, t in enumerate(table.tables(slot, name))))
        if code in _TABLES or code == "Options":
            inner = table.table(slot, code)
            return None if inner is None else self.table(inner, code, self._opcode(table) if code == "Options" else "")
        return Scalar(code, table.scalar(slot, code, 0))

    def _item(self, table: Table, index: int, kind: str) -> TableNode:
        return TableNode({}) if kind == "Buffer" and index not in self.used else self.table(table, kind)

    def _opcode(self, operator: Table) -> str:
        index = operator.scalar(0, "I", 0)
        return self.opcodes[index] if index < len(self.opcodes) else ""
