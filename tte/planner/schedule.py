"""The order of steps, and how long every tensor's bytes are needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tte.ir import Graph, Node, Role
from tte.ops.base import Kernel, Types
from tte.ops.segment import Segment
from tte.planner import kernels

#: Every buffer starts at a multiple of this, so that int32 views are aligned.
ALIGN = 8


@dataclass(frozen=True, eq=False)
class Program:
    """A graph whose nodes stand in the order they run.

    `infer` runs nodes [0, forward); `train` runs [0, shared) and then [forward, end): what inference alone needs (a
    softmax, say) stands between the two.

    Attributes:
        outputs: the model's outputs, valid after `infer`.
        kept: tensors valid after a training step (logits, loss); empty for inference alone.
        supplied: an input that is never there whole: the caller supplies its rows.
        target: what code is generated for (`tte.planner.kernels.TARGETS`).
        scratch: by node name the scratch memory, in bytes, that its kernel may take; others take the least.
    """

    graph: Graph
    shared: int
    forward: int
    outputs: tuple[str, ...]
    kept: tuple[str, ...]
    supplied: str = ""
    target: str = "portable"
    scratch: Mapping[str, int] = field(default_factory=dict)

    @property
    def trains(self) -> bool:
        return self.forward < len(self.graph.nodes)

    @property
    def infer_steps(self) -> range:
        return range(self.forward)

    @property
    def train_steps(self) -> tuple[int, ...]:
        return (*range(self.shared), *range(self.forward, len(self.graph.nodes)))

    def types(self, node: Node) -> Types:
        return Types(self.graph.types(node.inputs), self.graph.types(node.outputs))

    def kernel(self, node: Node, target: str = "") -> Kernel:
        """The kernel that computes a node (for a segment: its memory; see `stage_kernels`).

        Args:
            target: another target than the program's own: the kernel then fits into the program's memory all the same.
        """
        scratch = self.scratch.get(node.name, 0)
        return kernels.choose(node.op, self.types(node), target or self.target, scratch)

    def stage_kernels(self, node: Node, target: str = "") -> tuple[Kernel, ...]:
        """The kernels of a segment's stages."""
        assert isinstance(node.op, Segment)
        return kernels.stages(node.op, target or self.target, self.scratch.get(node.name, 0))


@dataclass(frozen=True)
class Buffer:
    """Bytes that one or more tensors share, one after the other (in place) or as views.

    Attributes:
        tensors: their names in order; empty for a step's workspace.
        first, last: the steps between which the bytes hold something that is still needed, both included.
    """

    label: str
    tensors: tuple[str, ...]
    nbytes: int
    first: int
    last: int

    @property
    def size(self) -> int:
        """Bytes it takes in the arena."""
        return -(-self.nbytes // ALIGN) * ALIGN

    def overlaps(self, other: Buffer) -> bool:
        """Whether the two are needed at the same time."""
        return self.first <= other.last and other.first <= self.last


def schedule(graph: Graph, outputs: Sequence[str], kept: Sequence[str] = (), target: str = "portable") -> Program:
    """Orders a graph: what both inference and training need, then inference alone, then training.

    Within each part the order is the graph's (`tte.planner.order` may better it): autodiff emits mask, dX, bias and
    weight update of a layer before it goes on to the layer below, so every update runs as early as its inputs (and dX,
    which reads the old weights) allow.

    Args:
        outputs: what inference gives.
        kept: what a training step gives beside its changed parameters; empty for a graph that only infers.
        target: what code is generated for.
    """
    nodes = graph.nodes
    infer = _ancestors(graph, outputs)
    updated = [o for n in nodes for o in graph.mutated(n)]
    train = _ancestors(graph, [*updated, *kept]) if kept else infer
    # What is saved early is saved in both calls: a copy more in inference, but the same places for both.
    made = {o for i in infer for o in nodes[i].outputs}
    made |= {t.name for t in graph.of_role(Role.PARAM)}
    infer |= {i for i, n in enumerate(nodes) if n.op.eager and i in train and made.issuperset(n.inputs)}
    shared = [n for i, n in enumerate(nodes) if i in infer and i in train]
    alone = [n for i, n in enumerate(nodes) if i in infer and i not in train]
    rest = [n for i, n in enumerate(nodes) if i not in infer and i in train]
    ordered = graph.with_nodes([*shared, *alone, *rest])
    return Program(ordered, len(shared), len(shared) + len(alone), tuple(outputs), tuple(kept), target=target)


def _ancestors(graph: Graph, targets: Iterable[str]) -> set[int]:
    """Indices of the nodes that the targets depend on (a changed parameter depends on what changes it)."""
    needed, found = set(targets), set()
    for index in range(len(graph.nodes) - 1, -1, -1):
        node = graph.nodes[index]
        if needed.intersection(node.outputs):
            found.add(index)
            needed.update(n for n in node.inputs if graph.tensors[n].role is Role.VALUE)
    return found


def buffers(program: Program) -> tuple[Buffer, ...]:
    """Live ranges of everything in the arena; views and in-place results share their input's buffer."""
    graph = program.graph
    last_read = last_reads(program)
    home: dict[str, int] = {}
    found: list[Buffer] = []

    def place(name: str, step: int) -> None:
        home[name] = len(found)
        nbytes = max(1, graph.type(name).nbytes)
        found.append(Buffer(name, (name,), nbytes, step, max(step, last_read.get(name, step))))

    def join(name: str, buffer: int, step: int) -> None:
        home[name] = buffer
        old = found[buffer]
        last = max(old.last, step, last_read.get(name, step))
        found[buffer] = replace(old, tensors=(*old.tensors, name), last=last)

    for name in graph.inputs:
        if name != program.supplied:
            place(name, 0)
    for step, node in enumerate(graph.nodes):
        taken: set[int] = set()
        for index, name in enumerate(node.outputs):
            if graph.tensors[name].role is not Role.VALUE:
                continue
            if node.op.view and node.inputs[0] in home:
                join(name, home[node.inputs[0]], step)
                continue
            for out, source in node.op.inplace:
                buffer = home.get(node.inputs[source]) if out == index else None
                if buffer is None or buffer in taken:
                    continue
                others = [i for i, x in enumerate(node.inputs) if home.get(x) == buffer and i != source]
                fits = graph.type(name).nbytes <= graph.type(node.inputs[source]).nbytes
                results = {*program.kept, *(program.outputs if step < program.forward else ())}
                free = found[buffer].last <= step and not results.intersection(found[buffer].tensors)
                if fits and free and not others:
                    taken.add(buffer)
                    join(name, buffer, step)
                    break
            else:
                place(name, step)
        workspace = program.kernel(node).workspace if not node.op.view else 0
        if workspace:
            found.append(Buffer(f"{node.name} (workspace)", (), workspace, step, step))
    return tuple(found)


def last_reads(program: Program) -> dict[str, int]:
    """The last step that reads each tensor; outputs stay until the end of the call that gives them."""
    last: dict[str, int] = {}
    for step, node in enumerate(program.graph.nodes):
        for name in node.inputs:
            last[name] = step
    for name in program.outputs:
        last[name] = max(last.get(name, 0), program.forward - 1)
    for name in program.kept:
        last[name] = len(program.graph.nodes) - 1
    return last


def live_bytes(found: Iterable[Buffer], steps: int) -> list[int]:
    """Bytes needed at every step: their maximum is a lower bound of any arena for this order."""
    total = [0] * steps
    for b in found:
        for step in range(b.first, b.last + 1):
            total[step] += b.size
    return total
