"""FlatBuffers, read with every offset checked and written in one forward pass, if need be in front of an older file's objects.

Facts of the format: https://flatbuffers.dev/internals/ . Little endian. A table starts with a signed 32-bit distance back
to its vtable; the vtable holds its own size, the table's size and one 16-bit offset a field slot (0 = absent). Strings,
vectors and sub-tables are reached by an unsigned 32-bit distance forward from where the distance is stored; each vector
starts with a 32-bit element count.

A file is untrusted. Nothing here recurses, each access is compared with the file's length first, and because offsets may
share targets, the tables opened and the vector bytes read are also bounded in total (see `Source`).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from tte.errors import ModelError

Array = npt.NDArray[Any]

MAX_BYTES = 2**31 - 1  # FlatBuffers' own limit: distances to a vtable are signed 32 bits
_STRUCTS = {code: struct.Struct("<" + code) for code in "?bBhHiIqQf"}
_U16 = _STRUCTS["H"]
_I32 = _STRUCTS["i"]
_U32 = _STRUCTS["I"]


class Source:
    """The bytes of one file, with bounded reading.

    Offsets may point many times at the same place, so a small file could describe endless work. A well-formed file spends
    at least 4 bytes (its offset) on each table and hardly shares vectors, so reading stops with `ModelError` after
    `size / 4 + 64` tables, or `4 * size + 4096` bytes of strings and vectors.
    """

    def __init__(self, data: bytes, where: str) -> None:
        self.data = data
        self.where = where
        self.size = len(data)
        if self.size > MAX_BYTES:
            raise ModelError("the file is too large for the format", where=where, limit=f"{MAX_BYTES} bytes")
        self._tables_left = self.size // 4 + 64
        self._bytes_left = 4 * self.size + 4096

    def fail(self, position: int, label: str, expected: str) -> NoReturn:
        """Raise `ModelError` naming the file, the byte offset, the object and what was expected there."""
        raise ModelError(
            f"not a valid model: byte {position}: {label}: expected {expected}",
            where=self.where,
            remedy="export the model again; the file is damaged, or is no TensorFlow Lite model",
        )

    def unpack(self, code: str, position: int, label: str) -> Any:
        """The scalar of struct `code` at `position`."""
        packer = _STRUCTS[code]
        if position < 0 or position + packer.size > self.size:
            self.fail(position, label, f"{packer.size} bytes inside the file of {self.size} bytes")
        return packer.unpack_from(self.data, position)[0]

    def follow(self, position: int, label: str) -> int:
        """The target of the forward offset stored at `position`; there is room for 4 bytes at the target."""
        distance: int = self.unpack("I", position, label)
        target = position + distance
        if distance < 4 or target + 4 > self.size:
            self.fail(position, label, f"an offset from 4 to {self.size - position - 4}, found {distance}")
        return target

    def spend_table(self, position: int, label: str) -> None:
        """Count one opened table."""
        self._tables_left -= 1
        if self._tables_left < 0:
            self.fail(position, label, "no more tables than a file of this size can hold (offsets share targets)")

    def vector(self, position: int, itemsize: int, label: str) -> tuple[int, int]:
        """(first byte, element count) of the vector at `position`, inside the file and the reading budget."""
        count: int = self.unpack("I", position, label)
        start = position + 4
        if count * itemsize > self.size - start:
            self.fail(position, label, f"at most {(self.size - start) // itemsize} elements, found {count}")
        self._bytes_left -= count * itemsize
        if self._bytes_left < 0:
            self.fail(position, label, "vectors no larger in total than 4 times the file (offsets share targets)")
        return start, count

    def view(self, position: int, count: int, dtype: npt.DTypeLike) -> Array:
        """A read-only array [count] of `dtype` over checked bytes; copied only where the bytes are not aligned."""
        array = np.frombuffer(self.data, dtype, count, position) if count else np.zeros(0, dtype)
        if not array.flags.aligned:
            array = array.copy()
        array.flags.writeable = False
        return array

    def root(self, identifier: bytes, label: str) -> Table:
        """The root table.

        Raises:
            ModelError: the file does not carry the 4-byte `identifier`, or its root lies outside.
        """
        if self.size < 8 or self.data[4:8] != identifier:
            self.fail(4, "file identifier", repr(identifier.decode("ascii")))
        return Table(self, self.follow(0, label), label)


class Table:
    """One table of a `Source`; `label` names it in messages.

    Every accessor raises `ModelError` where a field or its target leaves the table or the file.
    """

    __slots__ = ("_offsets", "_size", "label", "position", "source")

    def __init__(self, source: Source, position: int, label: str) -> None:
        source.spend_table(position, label)
        self.source = source
        self.position = position
        self.label = label
        vtable = position - source.unpack("i", position, label)
        if vtable < 0 or vtable + 4 > source.size:
            source.fail(position, label, "a vtable inside the file")
        length = source.unpack("H", vtable, label)
        self._size: int = source.unpack("H", vtable + 2, label)
        if length < 4 or length % 2 or vtable + length > source.size:
            source.fail(vtable, label, f"an even vtable size, at least 4 and inside the file, found {length}")
        if self._size < 4 or position + self._size > source.size:
            source.fail(vtable + 2, label, f"a table of at least 4 bytes inside the file, found {self._size}")
        self._offsets: tuple[int, ...] = struct.unpack_from(f"<{length // 2 - 2}H", source.data, vtable + 4)

    def fail(self, expected: str) -> NoReturn:
        """Raise `ModelError` about this table as a whole."""
        self.source.fail(self.position, self.label, expected)

    def present(self) -> tuple[int, ...]:
        """Slots that are set."""
        return tuple(slot for slot, offset in enumerate(self._offsets) if offset)

    def _field(self, slot: int, size: int) -> int:
        """File position of a field of `size` bytes, or 0 where it is absent."""
        offset = self._offsets[slot] if slot < len(self._offsets) else 0
        if not offset:
            return 0
        if offset < 4 or offset + size > self._size:
            self.fail(f"field {slot} inside the table of {self._size} bytes, found offset {offset}")
        return self.position + offset

    def scalar(self, slot: int, code: str, default: Any) -> Any:
        """The scalar of struct `code` in `slot`, or `default`."""
        position = self._field(slot, _STRUCTS[code].size)
        return self.source.unpack(code, position, self.label) if position else default

    def _target(self, slot: int, name: str) -> int:
        position = self._field(slot, 4)
        return self.source.follow(position, f"{self.label} {name}") if position else 0

    def has(self, slot: int) -> bool:
        """Whether `slot` is set."""
        return self._field(slot, 1) != 0

    def target(self, slot: int, name: str) -> int:
        """File position of the string, vector or sub-table in `slot`; 0 where absent."""
        return self._target(slot, name)

    def table(self, slot: int, name: str) -> Table | None:
        """The sub-table in `slot`, or None."""
        target = self._target(slot, name)
        return Table(self.source, target, f"{self.label} {name}") if target else None

    def tables(self, slot: int, name: str) -> list[Table]:
        """The vector of tables in `slot`; empty where absent."""
        target = self._target(slot, name)
        if not target:
            return []
        start, count = self.source.vector(target, 4, f"{self.label} {name}s")
        tables = []
        for index in range(count):
            label = f"{name} {index}"
            tables.append(Table(self.source, self.source.follow(start + 4 * index, label), label))
        return tables

    def array(self, slot: int, dtype: npt.DTypeLike, name: str) -> Array | None:
        """The vector of scalars in `slot` as a read-only array, or None."""
        target = self._target(slot, name)
        if not target:
            return None
        start, count = self.source.vector(target, np.dtype(dtype).itemsize, f"{self.label} {name}")
        return self.source.view(start, count, dtype)

    def text(self, slot: int, name: str) -> str:
        """The string in `slot`, or ""; bytes that are not UTF-8 come out as backslash escapes."""
        target = self._target(slot, name)
        if not target:
            return ""
        start, count = self.source.vector(target, 1, f"{self.label} {name}")
        if start + count >= self.source.size or self.source.data[start + count] != 0:
            self.source.fail(start + count, f"{self.label} {name}", "a string closed by a zero byte")
        return self.source.data[start : start + count].decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Scalar:
    """A scalar to write: struct `code` and value."""

    code: str
    value: int | float | bool


@dataclass(frozen=True, eq=False)
class Vector:
    """A vector of scalars to write; the first element is placed at a multiple of `alignment` bytes of the file."""

    values: Array
    alignment: int = 4


@dataclass(frozen=True)
class Kept:
    """An object at a position of an older file, which `pack` places whole behind the new objects."""

    position: int


@dataclass(frozen=True)
class TableVector:
    """A vector of tables to write."""

    items: tuple[TableNode | Kept, ...]


@dataclass(frozen=True)
class TableNode:
    """A table to write: field slot -> value. Leave a slot out for its default."""

    fields: Mapping[int, Scalar | str | Vector | TableVector | TableNode | Kept]


class _Writer:
    """Places each object behind the one that refers to it, so every offset points forward, as the format demands."""

    def __init__(self) -> None:
        self.out = bytearray()
        self.pending: deque[tuple[int, str | Vector | TableVector | TableNode]] = deque()
        self.kept: list[tuple[int, Kept]] = []
        self.vtables: dict[bytes, int] = {}

    def align(self, alignment: int, ahead: int = 0) -> None:
        """Pad so that the position `ahead` bytes from here is a multiple of `alignment`."""
        self.out.extend(bytes(-(len(self.out) + ahead) % alignment))

    def refer(self, node: str | Vector | TableVector | TableNode | Kept, position: int) -> None:
        if isinstance(node, Kept):
            self.kept.append((position, node))
        else:
            self.pending.append((position, node))

    def place(self, node: str | Vector | TableVector | TableNode) -> int:
        if isinstance(node, TableNode):
            return self.place_table(node)
        if isinstance(node, TableVector):
            self.align(4)
            position = len(self.out)
            self.out += _U32.pack(len(node.items)) + bytes(4 * len(node.items))
            for index, item in enumerate(node.items):
                self.refer(item, position + 4 + 4 * index)
            return position
        if isinstance(node, Vector):
            self.align(max(4, node.alignment, node.values.itemsize), ahead=4)
            position = len(self.out)
            little = node.values.astype(node.values.dtype.newbyteorder("<"), copy=False)
            self.out += _U32.pack(node.values.size) + little.tobytes()
            return position
        self.align(4)
        position = len(self.out)
        encoded = node.encode("utf-8")
        self.out += _U32.pack(len(encoded)) + encoded + b"\0"
        return position

    def place_table(self, node: TableNode) -> int:
        sizes = {slot: _STRUCTS[v.code].size if isinstance(v, Scalar) else 4 for slot, v in node.fields.items()}
        offsets: dict[int, int] = {}
        size = 4
        for slot in sorted(sizes, key=lambda s: (-sizes[s], s)):
            size += -size % sizes[slot]
            offsets[slot] = size
            size += sizes[slot]
        slots = max(offsets, default=-1) + 1
        vtable = struct.pack(f"<{slots + 2}H", 4 + 2 * slots, size, *(offsets.get(slot, 0) for slot in range(slots)))
        if vtable not in self.vtables:
            self.align(2)
            self.vtables[vtable] = len(self.out)
            self.out += vtable
        self.align(max([4, *sizes.values()]))
        position = len(self.out)
        self.out += bytes(size)
        _I32.pack_into(self.out, position, position - self.vtables[vtable])
        for slot, value in node.fields.items():
            if isinstance(value, Scalar):
                _STRUCTS[value.code].pack_into(self.out, position + offsets[slot], value.value)
            else:
                self.refer(value, position + offsets[slot])
        return position


#: An older file starts at a multiple of this behind new objects, so that what it aligned stays aligned.
KEPT_ALIGNMENT = 64


def pack(root: TableNode, identifier: bytes, behind: bytes = b"") -> bytes:
    """The file that holds `root`, deterministic: the same tree gives the same bytes.

    Args:
        root: the root table.
        identifier: 4 bytes, stored at byte 4.
        behind: the older file that `Kept` objects are of. All its offsets are distances, so its objects may move together;
            and a distance only points forward, so it comes last.

    Raises:
        ModelError: more than `MAX_BYTES`.
    """
    writer = _Writer()
    writer.out += bytes(4) + identifier
    writer.refer(root, 0)
    while writer.pending:
        position, node = writer.pending.popleft()
        target = writer.place(node)
        if len(writer.out) > MAX_BYTES:
            raise ModelError("the model is too large for a .tflite file", limit=f"{MAX_BYTES} bytes")
        _U32.pack_into(writer.out, position, target - position)
    if behind:
        writer.align(KEPT_ALIGNMENT)
    base = len(writer.out)
    if base + len(behind) > MAX_BYTES:
        raise ModelError("the model is too large for a .tflite file", limit=f"{MAX_BYTES} bytes")
    for position, kept in writer.kept:
        _U32.pack_into(writer.out, position, base + kept.position - position)
    return bytes(writer.out + behind)
