"""A chain of operators that runs row by row: every tensor between them is a rolling buffer of a few rows.

No value is computed twice, and the results are those of the operators run whole, one after the other. The order of row
steps is found here by simulation: a row is computed when somebody needs it, and a buffer holds the rows that somebody
still needs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tte.errors import ModelError
from tte.ir import Node, TensorType
from tte.ops.base import Array, Control, Inferred, Kernel, Op, Rows, Types

_ALIGN = 8


@dataclass(frozen=True)
class Ring:
    """A rolling buffer: `rows` rows of `row_bytes` bytes at `offset` in the segment's workspace; row r is at r % rows."""

    rows: int
    row_bytes: int
    offset: int

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes


@dataclass(frozen=True)
class RowOrder:
    """Which stage computes its next row, step after step, and the rolling buffers this needs, by tensor."""

    stages: tuple[int, ...]
    rings: Mapping[str, Ring]


@dataclass(frozen=True, eq=False)
class Segment(Op):
    """Nodes that run row by row.

    Attributes:
        nodes: the stages, in an order that could be executed whole.
        types: of every tensor that the stages name.
        outer: names of the segment's inputs: activations from outside, weights, biases.
        kept: names of its outputs, which exist whole: what others read.
        supplied: one of `outer` that does not exist whole: the caller supplies its rows in order. It is the stage
            number `len(nodes)`.
    """

    title = "SEGMENT"
    nodes: tuple[Node, ...] = ()
    types: Mapping[str, TensorType] | None = None
    outer: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    supplied: str = ""

    def type(self, name: str) -> TensorType:
        assert self.types is not None
        return self.types[name]

    def types_of(self, node: Node) -> Types:
        return Types(tuple(map(self.type, node.inputs)), tuple(map(self.type, node.outputs)))

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        return tuple((self.type(name).shape, self.type(name).dtype) for name in self.kept)

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        values = dict(zip(self.outer, xs, strict=True))
        for node in self.nodes:
            results = node.op.reference(self.types_of(node), [values[n] for n in node.inputs], control)
            values.update(zip(node.outputs, results, strict=True))
        return tuple(values[name] for name in self.kept)

    def macs(self, t: Types) -> int:
        return sum(n.op.macs(self.types_of(n)) for n in self.nodes)

    def kernel(self, t: Types) -> Kernel:
        """Its scratch memory is all the rolling buffers. Codegen writes the order of rows itself."""
        return Kernel("segment", {}, workspace=sum(-(-r.nbytes // _ALIGN) * _ALIGN for r in self.order.rings.values()))

    def rule(self, index: int) -> Rows:
        """How stage `index` works row by row."""
        rule: Rows | None = self.nodes[index].op.rows(self.types_of(self.nodes[index]))
        if rule is None:
            raise ModelError("does not work row by row", where=self.nodes[index].name)
        return rule

    def held(self, name: str) -> int:
        """Rows of a tensor that exist at once: of its rolling buffer, or all."""
        ring = self.order.rings.get(name)
        return ring.rows if ring else self.type(name).shape[1]

    @functools.cached_property
    def order(self) -> RowOrder:
        made = {o for n in self.nodes for o in n.outputs} | ({self.supplied} if self.supplied else set())
        stages = tuple(
            _Stage(self.rule(i), tuple(t for t in n.inputs if t in made), n.outputs) for i, n in enumerate(self.nodes)
        )
        shapes = tuple((t, self.type(t).shape[1], self.type(t).nbytes) for t in self.types or () if t in made)
        return _simulated(stages, shapes, frozenset(self.kept), self.supplied)

    def __str__(self) -> str:
        inner = "; ".join(f"{', '.join(n.outputs)} = {n.op}({', '.join(n.inputs)})" for n in self.nodes)
        return f"SEGMENT[{inner}{', rows of ' + self.supplied if self.supplied else ''}]"


@dataclass(frozen=True)
class _Stage:
    """What the order of rows depends on: how a node works row by row, and which of the segment's tensors it reads and makes."""

    rule: Rows
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


# Plans for many schemes of one model ask again and again: their forward passes differ in a few nodes.
@functools.lru_cache(maxsize=16384)
def _simulated(
    stages: tuple[_Stage, ...], shapes: tuple[tuple[str, int, int], ...], kept: frozenset[str], supplied: str
) -> RowOrder:
    return _Simulation(stages, {t: (rows, size) for t, rows, size in shapes}, kept, supplied).run()


class _Simulation:
    """Runs a segment's rows on demand and watches what each buffer must hold.

    Args:
        shapes: rows and bytes of every tensor made inside, or supplied.
    """

    def __init__(
        self, nodes: tuple[_Stage, ...], shapes: Mapping[str, tuple[int, int]], kept: frozenset[str], supplied: str
    ) -> None:
        self.nodes, self.shapes, self.kept, self.supplied = nodes, shapes, kept, supplied
        self.rules = [n.rule for n in nodes]
        self.maker = {o: i for i, n in enumerate(nodes) for o in n.outputs}
        self.heights = [shapes[n.outputs[0]][0] for n in nodes]
        if supplied:
            self.maker[supplied] = len(nodes)
            self.heights.append(shapes[supplied][0])
        self.done = [0] * len(self.heights)
        self.readers = {t: [i for i, n in enumerate(nodes) if t in n.inputs] for t in self.maker}
        self.rows = dict.fromkeys(self.maker, 1)
        self.stages: list[int] = []

    def run(self) -> RowOrder:
        for i in reversed(range(len(self.nodes))):
            if self.kept.intersection(self.nodes[i].outputs):
                while self.done[i] < self.heights[i]:
                    self._make(i)
        rings: dict[str, Ring] = {}
        at = 0
        for name in self.maker:
            if name not in self.kept:
                rows, size = self.shapes[name]
                rings[name] = Ring(self.rows[name], size // rows, at)
                at += -(-rings[name].nbytes // _ALIGN) * _ALIGN
        if self.supplied:
            # The caller's rows come in order and complete: those that nothing reads are taken and dropped.
            source = len(self.nodes)
            self.stages += [source] * (self.heights[source] - self.done[source])
        return RowOrder(tuple(self.stages), rings)

    def _make(self, stage: int) -> None:
        """Computes the next row of a stage, and first whatever rows it reads."""
        row = self.done[stage]
        if stage < len(self.nodes):
            _, last = self._reads(stage, row)
            for name in self.nodes[stage].inputs:
                while self.done[self.maker[name]] <= min(last, self.heights[self.maker[name]] - 1):
                    self._make(self.maker[name])
        self.stages.append(stage)
        self.done[stage] += 1
        outputs = self.nodes[stage].outputs if stage < len(self.nodes) else (self.supplied,)
        for name in outputs:
            oldest = min((self._oldest(reader, row) for reader in self.readers[name]), default=row)
            self.rows[name] = max(self.rows[name], row - oldest + 1)

    def _reads(self, stage: int, row: int) -> tuple[int, int]:
        rule = self.rules[stage]
        return max(0, row * rule.stride + rule.first), row * rule.stride + rule.last

    def _oldest(self, reader: int, row: int) -> int:
        """The oldest row that a reader's next row still needs; `row` if it needs no more."""
        return min(row, self._reads(reader, self.done[reader])[0]) if self.done[reader] < self.heights[reader] else row
