"""Which stretches of the forward pass run row by row: the fewest that bring the peak down.

A stretch costs no extra arithmetic, only shorter calls, and saves every tensor inside it. The choice is exact for its
model of memory: dynamic programming over all ways of cutting the forward order into whole steps and segments. The
planner then prices the chosen program for real.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

from tte.errors import ModelError
from tte.ir import Graph, Node, Role, TensorType
from tte.ops.base import Types
from tte.ops.segment import Segment
from tte.planner import kernels
from tte.planner.schedule import ALIGN, Program, buffers, last_reads, live_bytes


@dataclass(frozen=True)
class _Cut:
    """The best way to run the first nodes of a program: the peak, the number of streamed nodes, and the last cut."""

    peak: int
    streamed: int
    start: int


_IMPOSSIBLE = _Cut(1 << 62, 1 << 30, 0)


def stream(program: Program, budget: int = 0, rows: bool = False) -> Program:
    """The program with segments.

    Args:
        budget: a peak in bytes that is low enough: beyond it, streaming less is preferred.
        rows: the caller supplies the model's input row by row.

    Raises:
        ModelError: `rows`, and the input is needed whole.
    """
    search = _search(program, rows)
    floor = max([budget, *search.live[program.shared :]])
    best = search.cuts(0)
    if best[-1].peak >= _IMPOSSIBLE.peak:
        raise ModelError(
            "the operators that read the model's input cannot all run row by row",
            where=program.graph.name,
            remedy="build without --rows",
        )
    limit = max(floor, best[-1].peak)
    chosen = search.cuts(limit)
    spans, end = [], program.shared
    while end:
        start = chosen[end].start
        spans.append((start, end))
        end = start
    return search.apply(spans[::-1])


@functools.lru_cache(maxsize=4)
def _search(program: Program, rows: bool) -> _Search:
    """The search for a program: what it simulates serves every budget."""
    return _Search(program, rows)


class _Search:
    def __init__(self, program: Program, rows: bool) -> None:
        self.program, self.graph = program, program.graph
        self.nodes = program.graph.nodes[: program.shared]
        self.last = last_reads(program)
        self.live = live_bytes(buffers(program), len(program.graph.nodes))
        self.root = _roots(program.graph)
        self.born = {name: i for i, n in enumerate(program.graph.nodes) for name in n.outputs}
        self.supplied = next(iter(program.graph.inputs)) if rows else ""
        self.streamable = [self._streamable(n) for n in self.nodes]
        self.segments: dict[tuple[int, int], tuple[Segment, int]] = {}
        if rows:
            self._check_rows()

    def _check_rows(self) -> None:
        name = self.supplied
        readers = [i for i, n in enumerate(self.graph.nodes) if name in n.inputs]
        whole = [i for i in readers if i >= len(self.nodes) or not self.streamable[i]]
        if whole or len(self.graph.type(name).shape) != 4:
            where = self.graph.nodes[whole[0]].name if whole else name
            raise ModelError("needs the model's input whole", where=where, remedy="build without --rows")

    def _streamable(self, node: Node) -> bool:
        types = self.program.types(node)
        return not node.op.view and len(types.outs[0].shape) == 4 and node.op.rows(types) is not None

    def cuts(self, limit: int) -> list[_Cut]:
        """For every number of leading nodes the best cut: lowest peak where `limit` is 0, else fewest streamed nodes
        among those whose peak stays within the limit."""
        best = [_Cut(0, 0, 0)]
        for end in range(1, len(self.nodes) + 1):
            found = _IMPOSSIBLE
            for start in range(end - 1, -1, -1):
                if end - start > 1 and not self.streamable[start]:
                    break
                if end - start > 1 and not self.streamable[end - 1]:
                    break
                if found.peak <= limit and end - start >= found.streamed and end - start > 1:
                    break  # low enough, and whatever starts earlier streams no fewer nodes
                cost = self._cost(start, end)
                if cost is None:
                    continue
                streamed = best[start].streamed + self._is_segment(start, end) * (end - start)
                cut = _Cut(max(best[start].peak, cost), streamed, start)
                key = (max(cut.peak, limit), cut.streamed) if limit else (cut.peak, cut.streamed)
                if key < ((max(found.peak, limit), found.streamed) if limit else (found.peak, found.streamed)):
                    found = cut
                if end - start > 1 and self._least(start, end) > max(found.peak, limit):
                    break
            best.append(found)
        return best

    def _is_segment(self, start: int, end: int) -> bool:
        return end - start > 1 or (bool(self.supplied) and start == 0)

    def _cost(self, start: int, end: int) -> int | None:
        """Bytes live while nodes [start, end) run; None where they cannot run so."""
        if self.supplied and start == 0 and (self.last[self.supplied] >= end or not all(self.streamable[:end])):
            return None  # all readers of the supplied rows must be in the first segment
        if not self._is_segment(start, end):
            return self.live[start] - self._supplied_bytes(start)
        segment, scratch = self._segment(start, end)
        alive = {self.root[n] for n in self._through(start)} | {self.root[n] for n in segment.kept}
        return scratch + sum(_size(self.graph.type(n)) for n in alive)

    def _least(self, start: int, end: int) -> int:
        """Bytes that any segment up to `end` takes which starts no later: it holds the same rolling buffers, and more."""
        segment, scratch = self._segment(start, end)
        return scratch + sum(_size(self.graph.type(n)) for n in {self.root[n] for n in segment.kept})

    def _supplied_bytes(self, step: int) -> int:
        """What the layer-by-layer figure counts for an input that is not there."""
        inside = self.supplied and self.last[self.supplied] >= step
        return _size(self.graph.type(self.supplied)) if inside else 0

    def _through(self, start: int) -> list[str]:
        """Tensors made before `start` that are read at it or later."""
        names = [n for n in self.graph.inputs if n != self.supplied]
        names += [n for n, i in self.born.items() if i < start and self.graph.tensors[n].role is Role.VALUE]
        return [n for n in names if self.last.get(n, 0) >= start]

    def _segment(self, start: int, end: int) -> tuple[Segment, int]:
        if (start, end) not in self.segments:
            nodes = self.nodes[start:end]
            results = {*self.program.outputs, *self.program.kept}
            needed = {n for n, step in self.last.items() if step >= end} | results
            segment = make_segment(self.graph, nodes, needed, self.supplied if start == 0 else "")
            scratch = kernels.choose(segment, Types((), ()), self.program.target).workspace
            self.segments[start, end] = segment, scratch
        return self.segments[start, end]

    def apply(self, spans: Sequence[tuple[int, int]]) -> Program:
        """The program with these spans of nodes."""
        nodes: list[Node] = []
        for start, end in spans:
            if not self._is_segment(start, end):
                nodes.append(self.nodes[start])
                continue
            segment, _ = self._segment(start, end)
            name = f"{self.nodes[start].name}..{self.nodes[end - 1].name}"
            nodes.append(Node(name, segment, segment.outer, segment.kept))
        saved = len(self.nodes) - len(nodes)
        graph = self.graph.with_nodes([*nodes, *self.graph.nodes[self.program.shared :]])
        shared, forward = self.program.shared - saved, self.program.forward - saved
        return replace(self.program, graph=graph, shared=shared, forward=forward, supplied=self.supplied)


def make_segment(graph: Graph, nodes: Sequence[Node], needed: Set[str], supplied: str = "") -> Segment:
    """The segment of consecutive nodes; of what they make, `needed` is kept whole."""
    made = {o for n in nodes for o in n.outputs}
    outer = dict.fromkeys(i for n in nodes for i in n.inputs if i not in made)
    kept = tuple(o for n in nodes for o in n.outputs if o in needed)
    types = {name: graph.type(name) for name in (*made, *outer)}
    return Segment(tuple(nodes), types, tuple(outer), kept, supplied)


def _roots(graph: Graph) -> dict[str, str]:
    """Every tensor's own name, or through views that of the tensor whose bytes it shows."""
    root = {name: name for name in graph.tensors}
    for node in graph.nodes:
        if node.op.view:
            root[node.outputs[0]] = root[node.inputs[0]]
    return root


def _size(t: TensorType) -> int:
    return -(-max(1, t.nbytes) // ALIGN) * ALIGN
