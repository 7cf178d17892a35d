"""Runs a graph in NumPy integers, one operator after the other: the oracle of training, clear rather than fast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from tte.errors import DataError
from tte.ir import DTYPES, Array, Graph, Node, Role
from tte.ops.base import Control, Types


class Executor:
    """A graph with its own copy of every parameter, which training steps change.

    Attributes:
        params: current contents of every PARAM by name.
        control: learning-rate factor, seed and step counter.
    """

    def __init__(self, graph: Graph, control: Control = Control()) -> None:
        self.graph = graph
        self.control = control
        self.params = {t.name: graph.data(t.name).copy() for t in graph.of_role(Role.PARAM)}

    def steps(self, inputs: Mapping[str, Array]) -> Iterator[tuple[Node, dict[str, Array]]]:
        """Runs node by node; after each gives the node and its outputs (changed parameters included).

        Raises:
            DataError: an input is missing or has the wrong shape or type.
        """
        values = {t.name: self.graph.data(t.name) for t in self.graph.of_role(Role.CONST)}
        values.update(self.params)
        for name in self.graph.inputs:
            values[name] = self._checked(name, inputs.get(name))
        for node in self.graph.nodes:
            types = Types(self.graph.types(node.inputs), self.graph.types(node.outputs))
            results = node.op.reference(types, [values[n] for n in node.inputs], self.control)
            outputs = dict(zip(node.outputs, results, strict=True))
            values.update(outputs)
            self.params.update({n: outputs[n] for n in self.graph.mutated(node)})
            yield node, outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Every tensor the graph computes, by name."""
        result: dict[str, Array] = {}
        for _, outputs in self.steps(inputs):
            result.update(outputs)
        return result

    def train(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """`run`, then one step more on the counter, which has 32 bits as on the device."""
        result = self.run(inputs)
        self.control = replace(self.control, step=(self.control.step + 1) % 2**32)
        return result

    def _checked(self, name: str, value: Array | None) -> Array:
        want = self.graph.type(name)
        if value is None:
            raise DataError("the input is missing", where=name, limit=str(want))
        value = np.asarray(value)
        if value.shape != want.shape or value.dtype != DTYPES[want.dtype][1]:
            raise DataError(f"got {value.dtype}{list(value.shape)}", where=name, limit=str(want))
        return value


def pack(value: Array, dtype: str) -> bytes:
    """The bytes a tensor has on the device: little endian, bits and nibbles packed low first."""
    flat = np.ascontiguousarray(value).ravel()
    if dtype == "bit":
        return np.packbits(flat.astype(np.uint8), bitorder="little").tobytes()
    if dtype == "int4":
        nibbles = (np.append(flat, 0) if flat.size % 2 else flat).astype(np.uint8) & 15
        return (nibbles[0::2] | nibbles[1::2] << 4).astype(np.uint8).tobytes()
    return flat.astype(np.dtype(DTYPES[dtype][1]).newbyteorder("<")).tobytes()


def unpack(data: bytes, shape: tuple[int, ...], dtype: str) -> Array:
    """The inverse of `pack`."""
    count = int(np.prod(shape, dtype=np.int64))
    if dtype == "bit":
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[:count]
        return bits.astype(np.bool_).reshape(shape)
    if dtype == "int4":
        raw = np.frombuffer(data, np.uint8)
        nibbles = np.stack([raw & 15, raw >> 4], axis=1).ravel()[:count].astype(np.int8)
        return np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.int8).reshape(shape)
    kind = np.dtype(DTYPES[dtype][1]).newbyteorder("<")
    return np.frombuffer(data, kind, count).astype(DTYPES[dtype][1]).reshape(shape)
