"""A small tape: the backward nodes of one graph, and their values, for tests of single operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tte.ir import Graph, Node, QuantParams, Role, Shape, TensorType
from tte.ops.base import Control, Cotangent, Op, Types
from tte.ops.error import ApplyMask

SEED_SCALE, SEED_EXPONENT = 0.37, 5


@dataclass
class Backward:
    """Implements `tte.ops.base.Tape` by running every node as it is emitted.

    Attributes:
        graph: the forward graph; every tensor that is no constant is wanted.
        values: contents of all tensors, forward and backward.
        emitted: backward nodes with the types they were emitted with.
        sent: the gradients that arrived at each forward tensor.
    """

    graph: Graph
    values: dict[str, np.ndarray] = field(default_factory=dict)
    types: dict[str, TensorType] = field(default_factory=dict)
    masks: dict[str, str] = field(default_factory=dict)
    emitted: list[tuple[Node, Types]] = field(default_factory=list)
    sent: dict[str, list[Cotangent]] = field(default_factory=dict)

    def run(self, inputs: Sequence[np.ndarray], rng: np.random.Generator) -> Backward:
        """Forward with masks, then backward from a random error of the output."""
        self.types = {t.name: t.type for t in self.graph.tensors.values()}
        self.values = {t.name: t.data for t in self.graph.tensors.values() if t.data is not None}
        self.values.update(zip(self.graph.inputs, inputs, strict=True))
        for node in self.graph.nodes:
            op, outputs = node.op, list(node.outputs)
            if hasattr(op, "mask"):
                op = replace(op, mask=True)
                self.masks[node.name] = self._tensor("mask", TensorType(self.types[outputs[0]].shape, "bit"))
                outputs.append(self.masks[node.name])
            self._execute(op, node.inputs, outputs)
        (out,) = self.graph.outputs
        g = self._cotangent(self.types[out].shape, SEED_SCALE, self._tensor("k", TensorType((), "int32")))
        self.values[g.e] = rng.integers(-127, 128, self.types[out].shape).astype(np.int8)
        self.values[g.k] = np.asarray(SEED_EXPONENT, np.int32)
        self.send(out, g)
        for node in reversed(self.graph.nodes):
            for g in self.sent.get(node.outputs[0], []):
                node.op.gradient(self, node, g)
        return self

    def gradient(self, name: str) -> np.ndarray:
        """The real gradient of a forward tensor, float64."""
        total = np.zeros(self.types[name].shape)
        for g in self.sent.get(name, []):
            total += self.real(g).reshape(total.shape)
        return total

    def real(self, g: Cotangent) -> np.ndarray:
        """`C * 2**-k * e`."""
        return self.step(g) * self.values[g.e].astype(np.float64)

    def step(self, g: Cotangent) -> float:
        """The real value of one unit of an error tensor."""
        return self.types[g.e].scale * 2.0 ** -int(self.values[g.k])

    def _tensor(self, wish: str, type_: TensorType) -> str:
        name = f"{wish}#{len(self.types)}"
        self.types[name] = type_
        return name

    def _cotangent(self, shape: Shape, scale: float, k: str) -> Cotangent:
        return Cotangent(self._tensor("e", TensorType(shape, "int8", QuantParams((scale,)))), k)

    def _execute(self, op: Op, inputs: Sequence[str], outputs: Sequence[str]) -> Types:
        types = Types(tuple(self.types[n] for n in inputs), tuple(self.types[n] for n in outputs))
        assert op.infer(types.ins) == tuple((t.shape, t.dtype) for t in types.outs)
        results = op.reference(types, [self.values[n] for n in inputs], Control())
        for name, value in zip(outputs, results, strict=True):
            assert value.shape == self.types[name].shape
            self.values[name] = value
        return types

    # ---- tte.ops.base.Tape

    def type(self, name: str) -> TensorType:
        return self.types[name]

    def wants(self, name: str) -> bool:
        return self.graph.tensors[name].role is not Role.CONST

    def masked(self, node: Node, g: Cotangent) -> Cotangent:
        masked = self.alike(node, self.types[g.e].shape, g)
        self.emit(node, "mask", ApplyMask(), (g.e, self.masks[node.name]), (masked.e,))
        return masked

    def error(self, node: Node, shape: Shape, scale: float, what: str = "error") -> Cotangent:
        return self._cotangent(shape, scale, self._tensor("k", TensorType((), "int32")))

    def alike(self, node: Node, shape: Shape, g: Cotangent, what: str = "error") -> Cotangent:
        return self._cotangent(shape, self.types[g.e].scale, g.k)

    def emit(self, node: Node, what: str, op: Op, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        types = self._execute(op, inputs, outputs)
        self.emitted.append((Node(f"{node.name}/{what}", op, tuple(inputs), tuple(outputs)), types))

    def send(self, name: str, g: Cotangent) -> None:
        self.sent.setdefault(name, []).append(g)

    def update(self, node: Node, g: Cotangent) -> None:
        """Nothing trains here."""
