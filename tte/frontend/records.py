"""What a .tflite file holds, as plain records (`tte.frontend.schema` reads and writes them)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tte.frontend.flatbuffer import Array
from tte.frontend.schema_tables import OptionValue


def _no_scales() -> Array:
    return np.zeros(0, np.float32)


def _no_zero_points() -> Array:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class RawTensor:
    """One tensor as the file holds it.

    Args:
        name: as stored; may be empty and need not be unique (a tensor's identity is its index).
        shape: dimensions, each >= 0; () is a scalar.
        dtype: lower-case type name ("int8", "int32", "float32", ... of `TENSOR_TYPES`).
        data: constant contents, read-only: an array of `shape` and `dtype` where NumPy has the type, else the raw bytes
            as uint8 [bytes]. None for a tensor without stored contents. A tensor of no elements always has an empty array.
        scales: float32 [0] not quantised, [1] per tensor, or [shape[quantized_dimension]]; finite and > 0.
        zero_points: int64 of the same length as `scales`.
        quantized_dimension: axis of `scales`; without meaning where there is at most one.
        is_variable: state kept between invocations.
        shape_signature: as `shape`, with -1 for dimensions unknown at conversion; () where not stored.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: Array | None = None
    scales: Array = field(default_factory=_no_scales)
    zero_points: Array = field(default_factory=_no_zero_points)
    quantized_dimension: int = 0
    is_variable: bool = False
    shape_signature: tuple[int, ...] = ()


@dataclass(frozen=True)
class RawOperator:
    """One operator: name (`OPERATOR_NAMES`, else "BUILTIN_<code>"), tensor indices (-1: absent input) and options.

    `options` holds every field of the operator's row in `OPTIONS`, defaults filled in, enumerations by name; it is empty
    for an operator without a row. `custom_code` and `custom_options` are set for "CUSTOM" only.
    """

    opcode: str
    builtin_code: int
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, OptionValue]
    custom_code: str = ""
    custom_options: bytes = b""


@dataclass(frozen=True)
class RawSubgraph:
    """Tensors, operators in execution order, and the tensor indices of the graph's inputs and outputs."""

    name: str
    tensors: tuple[RawTensor, ...]
    operators: tuple[RawOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class RawModel:
    """A .tflite file of one subgraph. Metadata and signatures are not kept."""

    subgraph: RawSubgraph
    description: str = ""
