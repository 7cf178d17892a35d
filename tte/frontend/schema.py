"""A .tflite file as plain records: `read` and `write`.

Source of the facts: tensorflow/lite/schema/schema.fbs, schema version 3, file identifier "TFL3". What is read here is only
known to be well-formed (indices, lengths, types and quantisation fit together); whether the operators can run is the
importer's question.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np

from tte.errors import ModelError
from tte.frontend.flatbuffer import Array, Scalar, Source, Table, TableNode, TableVector, Vector, pack
from tte.frontend.records import RawModel, RawOperator, RawSubgraph, RawTensor
from tte.frontend.schema_tables import OPERATOR_CODES, OPERATOR_NAMES, OPTIONS, TENSOR_TYPES, OptionField, OptionValue

IDENTIFIER = b"TFL3"
SCHEMA_VERSION = 3
MAX_TENSOR_BYTES = 2**31 - 1  # sizes and offsets of tensors stay within int32, in LiteRT as in the generated C
MAX_RANK = 32  # NumPy's, in every version; LiteRT's kernels stop far below
BUFFER_ALIGNMENT = 16  # LiteRT reads weights in place and expects this alignment
_PACKED_BITS = {"int4": 4, "uint4": 4, "int2": 2}
_BYTES_ONLY = {"bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}
_UNSIZED = {"string", "resource", "variant"}
_ABSENT_QUANTISATION: tuple[Array, Array] = (np.zeros(0, np.float32), np.zeros(0, np.int64))

__all__ = [
    "RawModel", "RawOperator", "RawSubgraph", "RawTensor", "operator_fields", "read", "tensor_bytes", "tensor_fields", "write",
]  # fmt: skip


def read(data: bytes, where: str) -> RawModel:
    """Parse a .tflite file.

    Args:
        data: the file's bytes. Constant arrays of the result are read-only views of it.
        where: the file's name, for messages.

    Raises:
        ModelError: damaged file, another format or schema version, several subgraphs, sparse or externally stored tensors,
            or records that contradict each other. Names the file, the byte offset and what was expected.
    """
    source = Source(data, where)
    root = source.root(IDENTIFIER, "model")
    version = root.scalar(0, "I", 0)
    if version != SCHEMA_VERSION:
        root.fail(f"schema version {SCHEMA_VERSION}, found {version}")
    codes = [_read_opcode(table) for table in root.tables(1, "operator code")]
    subgraphs = root.tables(2, "subgraph")
    if len(subgraphs) != 1:
        root.fail(f"one subgraph, found {len(subgraphs)} (control flow is not supported)")
    buffers = [_read_buffer(table) for table in root.tables(4, "buffer")]
    graph = subgraphs[0]
    tensors = tuple(_read_tensor(table, buffers) for table in graph.tables(0, "tensor"))
    operators = tuple(_read_operator(table, codes, len(tensors)) for table in graph.tables(3, "operator"))
    subgraph = RawSubgraph(
        name=graph.text(4, "name"),
        tensors=tensors,
        operators=operators,
        inputs=_indices(graph, 1, "inputs", len(tensors), lowest=0),
        outputs=_indices(graph, 2, "outputs", len(tensors), lowest=0),
    )
    return RawModel(subgraph, root.text(3, "description"))


def _integers(table: Table, slot: int, name: str) -> tuple[int, ...]:
    array = table.array(slot, "<i4", name)
    return () if array is None else tuple(array.tolist())


def _indices(table: Table, slot: int, name: str, count: int, lowest: int) -> tuple[int, ...]:
    indices = _integers(table, slot, name)
    for index in indices:
        if not lowest <= index < count:
            table.fail(f"{name}: tensor indices from {lowest} to {count - 1}, found {index}")
    return indices


def _read_opcode(table: Table) -> tuple[int, str, int]:
    """(builtin code, custom code, version). Codes above 127 only fit the newer field; older files set only the other."""
    code = max(table.scalar(0, "b", 0), table.scalar(3, "i", 0))
    if code < 0:
        table.fail(f"an operator code of at least 0, found {code}")
    return code, table.text(1, "custom code"), table.scalar(2, "i", 1)


def _read_buffer(table: Table) -> Array:
    """The buffer's bytes, uint8. Files beyond 2 GB keep the bytes behind the tables, at (offset, size) of the file."""
    offset, size = table.scalar(1, "Q", 0), table.scalar(2, "Q", 0)
    if offset > 1 or size > 1:  # 0 and 1 are placeholders: the bytes are in the vector
        if offset + size > table.source.size:
            table.fail(f"bytes inside the file of {table.source.size} bytes, found {size} at {offset}")
        return table.source.view(offset, size, np.uint8)
    data = table.array(0, np.uint8, "data")
    return np.zeros(0, np.uint8) if data is None else data


def _stored_bytes(dtype: str, elements: int) -> int | None:
    """Bytes that `elements` of `dtype` take in a buffer; None where the type does not determine it."""
    if dtype in _UNSIZED:
        return None
    if dtype in _PACKED_BITS:
        return (elements * _PACKED_BITS[dtype] + 7) // 8
    return elements * (_BYTES_ONLY[dtype] if dtype in _BYTES_ONLY else np.dtype(dtype).itemsize)


def _is_numpy(dtype: str) -> bool:
    return dtype not in _UNSIZED and dtype not in _PACKED_BITS and dtype not in _BYTES_ONLY


def _read_tensor(table: Table, buffers: list[Array]) -> RawTensor:
    code = table.scalar(1, "b", 0)
    if not 0 <= code < len(TENSOR_TYPES):
        table.fail(f"a tensor type from 0 to {len(TENSOR_TYPES) - 1}, found {code}")
    dtype = TENSOR_TYPES[code]
    shape = _integers(table, 0, "shape")
    if any(dimension < 0 for dimension in shape):
        table.fail(f"dimensions of at least 0, found {list(shape)}")
    if len(shape) > MAX_RANK:
        table.fail(f"at most {MAX_RANK} dimensions, found {len(shape)}")
    largest = math.prod(max(1, dimension) for dimension in shape)  # a zero must not hide dimensions that overflow
    if (_stored_bytes(dtype, largest) or largest) > MAX_TENSOR_BYTES:
        table.fail(f"a tensor of at most {MAX_TENSOR_BYTES} bytes, found {dtype} {list(shape)}")
    signature = _integers(table, 7, "shape signature")
    if signature and (len(signature) != len(shape) or any(s not in (-1, d) for s, d in zip(signature, shape, strict=True))):
        table.fail(f"a shape signature of -1 or the shape's {list(shape)}, found {list(signature)}")
    if table.has(6):
        table.fail("a dense tensor, found a sparse one (export without sparsity)")
    if table.scalar(10, "I", 0):
        table.fail("a tensor stored in this file, found a reference to an external one")
    scales, zero_points, axis = _read_quantisation(table, shape, dtype)
    return RawTensor(
        name=table.text(3, "name"),
        shape=shape,
        dtype=dtype,
        data=_contents(table, buffers, shape, dtype),
        scales=scales,
        zero_points=zero_points,
        quantized_dimension=axis,
        is_variable=table.scalar(5, "?", False),
        shape_signature=signature,
    )


def _contents(table: Table, buffers: list[Array], shape: tuple[int, ...], dtype: str) -> Array | None:
    size = _stored_bytes(dtype, math.prod(shape))
    index = table.scalar(2, "I", 0)
    if index >= max(len(buffers), 1):
        table.fail(f"a buffer index below {len(buffers)}, found {index}")
    stored = buffers[index] if buffers else np.zeros(0, np.uint8)
    if size == 0 and stored.size == 0:
        return np.zeros(shape if _is_numpy(dtype) else 0, dtype if _is_numpy(dtype) else np.uint8)
    if stored.size == 0:
        return None
    if size is not None and stored.size != size:
        table.fail(f"{size} bytes of data for {dtype} {list(shape)}, found {stored.size}")
    if not _is_numpy(dtype):
        return stored
    array = stored.view(np.dtype(dtype).newbyteorder("<")).reshape(shape)
    if not array.flags.aligned:
        array = array.copy()
        array.flags.writeable = False
    return array


def _read_quantisation(table: Table, shape: tuple[int, ...], dtype: str) -> tuple[Array, Array, int]:
    quantisation = table.table(4, "quantisation")
    if quantisation is None:
        return (*_ABSENT_QUANTISATION, 0)
    if quantisation.scalar(4, "B", 0):
        quantisation.fail("scales and zero points, found another kind of quantisation (custom or blockwise)")
    scales = quantisation.array(2, "<f4", "scales")
    if scales is None or scales.size == 0:  # minima and maxima alone are a record of the converter's
        return (*_ABSENT_QUANTISATION, 0)
    zero_points = quantisation.array(3, "<i8", "zero points")
    if zero_points is None or zero_points.size == 0:
        zero_points = np.zeros(scales.size, np.int64)
    if zero_points.size != scales.size:
        quantisation.fail(f"as many zero points as scales ({scales.size}), found {zero_points.size}")
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        quantisation.fail("finite scales above 0")
    if dtype in ("int8", "uint8", "int16"):
        limits = np.iinfo(dtype)
        if zero_points.min() < limits.min or zero_points.max() > limits.max:
            quantisation.fail(f"zero points from {limits.min} to {limits.max} for {dtype}")
    axis = quantisation.scalar(6, "i", 0)
    if scales.size > 1 and (not 0 <= axis < len(shape) or shape[axis] != scales.size):
        expected = f"one scale, or one for each index of a dimension of {list(shape)}"
        quantisation.fail(f"{expected}; found {scales.size} for dimension {axis}")
    return scales, zero_points, axis


def _read_operator(table: Table, codes: list[tuple[int, str, int]], tensors: int) -> RawOperator:
    index = table.scalar(0, "I", 0)
    if index >= len(codes):
        table.fail(f"an operator code index below {len(codes)}, found {index}")
    code, custom, version = codes[index]
    name = OPERATOR_NAMES[code] if code < len(OPERATOR_NAMES) else f"BUILTIN_{code}"
    table.label += f" ({name})"
    is_custom = name == "CUSTOM"
    blob = table.array(5, np.uint8, "custom options") if is_custom else None
    return RawOperator(
        opcode=name,
        builtin_code=code,
        version=version,
        inputs=_indices(table, 1, "inputs", tensors, lowest=-1),
        outputs=_indices(table, 2, "outputs", tensors, lowest=0),
        options=_read_options(table, name),
        custom_code=custom if is_custom else "",
        custom_options=b"" if blob is None else blob.tobytes(),
    )


def _read_options(table: Table, name: str) -> dict[str, OptionValue]:
    known = OPTIONS.get(name)
    if known is None:
        return {}
    union = table.scalar(3, "B", 0)
    options = table.table(4, "options") if union else None
    if options is None and known.fields and name != "RESHAPE":  # RESHAPE may take its shape from an input alone
        table.fail("an options table")
    if union not in (0, known.union):
        table.fail(f"options of kind {known.union}, found {union}")
    values: dict[str, OptionValue] = {}
    slots = {row.slot for row in known.fields}
    if options is not None and not slots.issuperset(options.present()):
        options.fail(f"option fields {sorted(slots)}, found {list(options.present())} (a newer schema)")
    for row in known.fields:
        values[row.name] = row.default if options is None else _read_option(options, row)
    return values


def _read_option(options: Table, row: OptionField) -> OptionValue:
    if row.code == "[i]":
        return _integers(options, row.slot, row.name)
    if row.names:
        number: int = options.scalar(row.slot, row.code, row.names.index(str(row.default)))
        if not 0 <= number < len(row.names):
            options.fail(f"{row.name} from 0 ({row.names[0]}) to {len(row.names) - 1}, found {number}")
        return row.names[number]
    value = options.scalar(row.slot, row.code, row.default)
    if isinstance(value, float) and not math.isfinite(value):
        options.fail(f"{row.name} to be finite, found {value}")
    if row.minimum is not None and isinstance(value, int) and value < row.minimum:
        options.fail(f"{row.name} of at least {row.minimum}, found {value}")
    return cast(OptionValue, value)


def write(model: RawModel) -> bytes:
    """The .tflite file of `model`, deterministic; equal constants share one buffer, aligned to 16 bytes.

    Raises:
        ModelError: an operator whose options this toolchain does not know (nothing is left out silently), an option of a
            wrong name or value, or records that `read` would refuse.
    """
    graph = model.subgraph
    codes: dict[tuple[int, str, int], int] = {}
    buffers: dict[bytes, int] = {b"": 0}  # buffer 0 is empty by convention: "no contents"
    tensors = tuple(_tensor_node(tensor, buffers) for tensor in graph.tensors)
    operators = tuple(_operator_node(operator, codes) for operator in graph.operators)
    subgraph = TableNode({
        0: TableVector(tensors),
        1: _int_vector(graph.inputs),
        2: _int_vector(graph.outputs),
        3: TableVector(operators),
        4: graph.name,
    })  # fmt: skip
    root = TableNode({
        0: Scalar("I", SCHEMA_VERSION),
        1: TableVector(tuple(_opcode_node(*code) for code in codes)),
        2: TableVector((subgraph,)),
        3: model.description,
        4: TableVector(tuple(
            TableNode({0: Vector(np.frombuffer(data, np.uint8), BUFFER_ALIGNMENT)} if data else {}) for data in buffers
        )),
    })  # fmt: skip
    data = pack(root, IDENTIFIER)
    read(data, "the model to be written")
    return data


def _int_vector(values: tuple[int, ...]) -> Vector:
    return Vector(np.asarray(values, np.int32))


def _opcode_node(code: int, custom: str, version: int) -> TableNode:
    fields: dict[int, Scalar | str] = {0: Scalar("b", min(code, 127)), 2: Scalar("i", version), 3: Scalar("i", code)}
    return TableNode({**fields, 1: custom} if custom else fields)


def tensor_bytes(tensor: RawTensor) -> bytes:
    """The contents of a tensor as a buffer holds them; empty where it has none.

    Raises:
        ModelError: they are of another shape or type than the tensor.
    """
    if tensor.data is None:
        return b""
    expected = tensor.shape if _is_numpy(tensor.dtype) else tensor.data.shape
    dtype = np.dtype(tensor.dtype if _is_numpy(tensor.dtype) else np.uint8)
    if tensor.data.shape != expected or tensor.data.dtype != dtype:
        raise ModelError(
            f"tensor {tensor.name!r} is {tensor.dtype} {list(tensor.shape)} but holds "
            f"{tensor.data.dtype} {list(tensor.data.shape)}"
        )
    return tensor.data.astype(dtype.newbyteorder("<"), copy=False).tobytes()


def tensor_fields(tensor: RawTensor, buffer: int) -> dict[int, Scalar | str | Vector | TableNode]:
    """The fields of a tensor's table, by slot; its contents are those of buffer number `buffer`."""
    fields: dict[int, Scalar | str | Vector | TableNode] = {
        0: _int_vector(tensor.shape),
        1: Scalar("b", TENSOR_TYPES.index(tensor.dtype)),
        2: Scalar("I", buffer),
        3: tensor.name,
    }
    if tensor.scales.size:
        fields[4] = TableNode({
            2: Vector(tensor.scales.astype(np.float32)),
            3: Vector(tensor.zero_points.astype(np.int64)),
            6: Scalar("i", tensor.quantized_dimension),
        })  # fmt: skip
    if tensor.is_variable:
        fields[5] = Scalar("?", True)
    if tensor.shape_signature:
        fields[7] = _int_vector(tensor.shape_signature)
    return fields


def _tensor_node(tensor: RawTensor, buffers: dict[bytes, int]) -> TableNode:
    return TableNode(tensor_fields(tensor, buffers.setdefault(tensor_bytes(tensor), len(buffers))))


def _operator_node(operator: RawOperator, codes: dict[tuple[int, str, int], int]) -> TableNode:
    key = (operator.builtin_code, operator.custom_code, operator.version)
    return TableNode({0: Scalar("I", codes.setdefault(key, len(codes))), **operator_fields(operator)})


def operator_fields(operator: RawOperator) -> dict[int, Scalar | Vector | TableNode]:
    """The fields of an operator's table, by slot, but for the index of its code.

    Raises:
        ModelError: its options are not known, or have a wrong name or value.
    """
    fields: dict[int, Scalar | Vector | TableNode] = {1: _int_vector(operator.inputs), 2: _int_vector(operator.outputs)}
    if operator.opcode == "CUSTOM":
        if operator.custom_options:
            fields[5] = Vector(np.frombuffer(operator.custom_options, np.uint8))
        return fields
    table = OPTIONS.get(operator.opcode)
    if table is None or OPERATOR_CODES[operator.opcode] != operator.builtin_code:
        raise ModelError(
            f"operator {operator.opcode} ({operator.builtin_code}) cannot be written: its options are not known"
        )
    unknown = operator.options.keys() - {row.name for row in table.fields}
    if unknown:
        raise ModelError(f"operator {operator.opcode} has no option {', '.join(sorted(unknown))}")
    if table.union:
        fields[3] = Scalar("B", table.union)
        fields[4] = TableNode({row.slot: _option_value(operator, row) for row in table.fields})
    return fields


def _option_value(operator: RawOperator, row: OptionField) -> Scalar | Vector:
    value = operator.options.get(row.name, row.default)
    if isinstance(value, tuple):
        return _int_vector(value)
    if row.names:
        if value not in row.names:
            raise ModelError(
                f"operator {operator.opcode}: {row.name} is one of {', '.join(row.names)}; found {value!r}"
            )
        value = row.names.index(str(value))
    elif isinstance(value, str):
        raise ModelError(f"operator {operator.opcode}: {row.name} is a number; found {value!r}")
    return Scalar(row.code, value)
