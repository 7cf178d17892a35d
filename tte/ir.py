"""The intermediate representation: typed tensors, nodes, graphs, a verifier and a printer.

A graph is a frozen value. A pass takes one and gives another; `verify` holds before and after every pass.
This room knows no operator: an operator is whatever offers `infer` and a name.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tte.errors import ModelError

Array = NDArray[Any]
Shape = tuple[int, ...]

#: Bits an element takes in memory, and the NumPy type that holds it in the reference executor.
DTYPES: Mapping[str, tuple[int, type]] = {
    "bit": (1, np.bool_),
    "int4": (4, np.int8),
    "int8": (8, np.int8),
    "uint8": (8, np.uint8),
    "int16": (16, np.int16),
    "uint16": (16, np.uint16),
    "int32": (32, np.int32),
    "float32": (32, np.float32),
}


@dataclass(frozen=True)
class QuantParams:
    """`real = scale * (q - zero_point)`, per tensor (axis None) or per slice of `axis`.

    For an error tensor the scale is the compile-time factor C, and its run-time exponent k is a tensor of its own:
    `real = C * 2**-k * q`.
    """

    scale: tuple[float, ...]
    zero_point: tuple[int, ...] = (0,)
    axis: int | None = None

    def __str__(self) -> str:
        if len(self.scale) == 1:
            return f"scale {self.scale[0]:.6g} zero point {self.zero_point[0]}"
        return f"{len(self.scale)} scales {min(self.scale):.3g}..{max(self.scale):.3g} on axis {self.axis}"


@dataclass(frozen=True)
class TensorType:
    """Shape, element type and quantisation of a tensor."""

    shape: Shape
    dtype: str
    quant: QuantParams | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory; bits and nibbles are packed."""
        return (self.elements * DTYPES[self.dtype][0] + 7) // 8

    @property
    def scale(self) -> float:
        """The scale of a per-tensor quantised tensor."""
        if self.quant is None or len(self.quant.scale) != 1:
            raise ModelError(f"a per-tensor scale is needed, the tensor has {self.quant}")
        return self.quant.scale[0]

    @property
    def zero_point(self) -> int:
        """The zero point of a per-tensor quantised tensor."""
        if self.quant is None or len(set(self.quant.zero_point)) != 1:
            raise ModelError(f"a per-tensor zero point is needed, the tensor has {self.quant}")
        return self.quant.zero_point[0]

    def __str__(self) -> str:
        dims = "x".join(map(str, self.shape)) or "scalar"
        return f"{self.dtype}[{dims}]" + (f" ({self.quant})" if self.quant else "")


class Role(enum.Enum):
    """Where a tensor lives: given by the caller, in flash, in RAM between steps, or in the arena."""

    INPUT = "input"
    CONST = "const"
    PARAM = "param"
    VALUE = "value"


@dataclass(frozen=True, eq=False)
class Tensor:
    """A named tensor; `data` holds the contents of a CONST and the initial contents of a PARAM."""

    name: str
    type: TensorType
    role: Role = Role.VALUE
    data: Array | None = None


@dataclass(frozen=True, eq=False)
class Node:
    """One operator applied to named tensors. A PARAM among the outputs is changed in place."""

    name: str
    op: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in an order that can be executed, and every tensor they name."""

    name: str
    tensors: Mapping[str, Tensor]
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def type(self, name: str) -> TensorType:
        return self.tensors[name].type

    def types(self, names: Sequence[str]) -> tuple[TensorType, ...]:
        return tuple(self.tensors[n].type for n in names)

    def data(self, name: str) -> Array:
        """The contents of a CONST or the initial contents of a PARAM."""
        data = self.tensors[name].data
        if data is None:
            raise ModelError("the tensor has no contents at compile time", where=name)
        return data

    def of_role(self, role: Role) -> tuple[Tensor, ...]:
        return tuple(t for t in self.tensors.values() if t.role is role)

    def producer(self, name: str) -> Node | None:
        return next((n for n in self.nodes if name in n.outputs), None)

    def consumers(self, name: str) -> tuple[Node, ...]:
        return tuple(n for n in self.nodes if name in n.inputs)

    def mutated(self, node: Node) -> tuple[str, ...]:
        """The PARAMs that a node changes in place."""
        return tuple(o for o in node.outputs if self.tensors[o].role is Role.PARAM)

    def with_nodes(self, nodes: Sequence[Node], **changes: Any) -> Graph:
        """The graph with other nodes, less the tensors nothing names any more."""
        graph = replace(self, nodes=tuple(nodes), **changes)
        named = {n for node in graph.nodes for n in (*node.inputs, *node.outputs)} | {*graph.inputs, *graph.outputs}
        return replace(graph, tensors={k: v for k, v in graph.tensors.items() if k in named})

    def renamed(self, names: Mapping[str, str]) -> Graph:
        """The graph with some tensors under other names; nodes keep theirs."""

        def new(old: Sequence[str]) -> tuple[str, ...]:
            return tuple(names.get(n, n) for n in old)

        tensors = {names.get(k, k): replace(t, name=names.get(k, k)) for k, t in self.tensors.items()}
        nodes = tuple(replace(n, inputs=new(n.inputs), outputs=new(n.outputs)) for n in self.nodes)
        return Graph(self.name, tensors, nodes, new(self.inputs), new(self.outputs))

    def text(self) -> str:
        """The graph for people: one line a node, then constants and parameters."""
        lines = [f"graph {self.name}({', '.join(self.inputs)}) -> {', '.join(self.outputs)}"]
        for i, node in enumerate(self.nodes):
            outs = ", ".join(f"%{o}: {self.type(o)}" for o in node.outputs)
            lines.append(f"  {i:3} {outs} = {node.op}({', '.join('%' + x for x in node.inputs)})  # {node.name}")
        for t in self.tensors.values():
            if t.role is not Role.VALUE:
                lines.append(f"  {t.role.value:6} %{t.name}: {t.type}")
        return "\n".join(lines) + "\n"


def verify(graph: Graph) -> Graph:
    """The graph itself, if it is well formed.

    Raises:
        ModelError: a tensor is undefined, defined twice, used before its definition, or read after an update changed it
            (unless it is changed once more); or an operator's own shape rule disagrees with the declared types.
    """
    defined = {t.name for t in graph.tensors.values() if t.role is not Role.VALUE}
    changed: dict[str, str] = {}
    for name, tensor in graph.tensors.items():
        if name != tensor.name:
            raise ModelError(f"tensor {tensor.name} is filed under another name", where=name)
        if tensor.data is not None and tuple(tensor.data.shape) != tensor.type.shape:
            raise ModelError(f"contents have shape {tensor.data.shape}, type is {tensor.type}", where=name)
    for node in graph.nodes:
        for name in node.inputs:
            if name not in defined:
                raise ModelError(f"reads {name}, which nothing before it computes", where=node.name)
            if name in changed and name not in graph.mutated(node):
                raise ModelError(f"reads {name} after {changed[name]} changed it", where=node.name)
        for name in node.outputs:
            role = graph.tensors[name].role
            if role is Role.PARAM and name in node.inputs:
                changed[name] = node.name
            elif role is not Role.VALUE or name in defined:
                raise ModelError(f"writes {name}, which is already there", where=node.name)
            defined.add(name)
        want = node.op.infer(graph.types(node.inputs))
        have = tuple((t.shape, t.dtype) for t in graph.types(node.outputs))
        if want != have:
            raise ModelError(f"{node.op.title} gives {want}, the tensors are declared {have}", where=node.name)
    for name in graph.outputs:
        if name not in defined:
            raise ModelError("the graph's output is computed by nothing", where=name)
    return graph


@dataclass
class Builder:
    """Collects tensors and nodes; hands out names that are unique within the graph."""

    name: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)

    @classmethod
    def of(cls, graph: Graph) -> Builder:
        return cls(graph.name, dict(graph.tensors), list(graph.nodes))

    def unique(self, wish: str) -> str:
        names = (wish if i == 0 else f"{wish}.{i}" for i in _count())
        return next(n for n in names if n not in self.tensors)

    def add(self, wish: str, type: TensorType, role: Role = Role.VALUE, data: Array | None = None) -> str:
        """A new tensor; gives its name."""
        name = self.unique(wish)
        self.tensors[name] = Tensor(name, type, role, data)
        return name

    def emit(self, name: str, op: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Node:
        """A new node at the end; gives it."""
        node = Node(name, op, tuple(inputs), tuple(outputs))
        self.nodes.append(node)
        return node

    def graph(self, inputs: Sequence[str], outputs: Sequence[str]) -> Graph:
        empty = Graph(self.name, self.tensors, (), tuple(inputs), tuple(outputs))
        return empty.with_nodes(self.nodes)


def _count() -> Iterator[int]:
    i = 0
    while True:
        yield i
        i += 1
