"""The frozen cut: the place in a training step's forward pass before which nothing depends on what trains.

What crosses it, the *latent*, stands for the sample: a step that begins there with a stored latent gives what a step on
the whole sample gives.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from tte.ir import Node, Role, TensorType
from tte.ops.segment import Segment
from tte.planner.arena import Plan
from tte.planner.schedule import Program
from tte.steps import work
from tte.training.autodiff import TRUTH

#: Of the work behind the deepest cut, the fraction that a replayed step may take more for a smaller latent.
_SLACK = 8


@dataclass(frozen=True)
class Part:
    """A tensor of the latent: where it lies in the latent, in bytes."""

    name: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Cut:
    """A place between two steps.

    Attributes:
        step: the first step behind it; 0: the latent is the input.
        parts: what was written before it and is read behind it. Where the caller supplies the input's rows and nothing is
            before the cut, the input itself, though it never lies in the arena.
        nbytes: size of the latent.
        work, whole: instructions expected of a training step from the cut on, and from its beginning.
    """

    step: int
    parts: tuple[Part, ...]
    nbytes: int
    work: int
    whole: int

    @property
    def key(self) -> int:
        """32 bits that tell latents of this cut from those of another cut of the same program."""
        return zlib.crc32(repr((self.step, [(p.name, p.offset, p.nbytes) for p in self.parts])).encode())


def frozen_cut(plan: Plan) -> Cut:
    """The cut of a program that trains: of those from which a step takes at most an eighth more work than from the deepest
    cut, the one with the smallest latent, and of these the deepest."""
    found = tuple(cuts(plan))
    limit = found[-1].work + found[-1].work // _SLACK
    return min((c for c in found if c.work <= limit), key=lambda c: (c.nbytes, -c.step))


def cuts(plan: Plan) -> Iterator[Cut]:
    """Every place for a cut that leaves code on both sides, and the beginning; the deepest last."""
    program = plan.program
    cost = {i: n for i, n in work(program).items() if not program.shared <= i < program.forward}
    whole = sum(cost.values())
    last = next((i for i in range(program.shared) if _changes(program, program.graph.nodes[i])), program.shared)
    for step in range(last + 1):
        if step and program.graph.nodes[step - 1].op.view:
            continue
        parts = tuple(_parts(plan, step))
        behind = sum(n for index, n in cost.items() if index >= step)
        yield Cut(step, parts, sum(p.nbytes for p in parts), behind, whole)


def _changes(program: Program, node: Node) -> bool:
    """Whether what a node computes can change as the program learns."""
    tensors = program.graph.tensors
    if any(tensors[n].role is Role.PARAM for n in node.inputs):
        return True
    return not node.op.view and not isinstance(node.op, Segment) and program.kernel(node).control


def _parts(plan: Plan, step: int) -> Iterator[Part]:
    """What is in use on both sides of the place before `step`."""
    program, at = plan.program, 0
    graph = program.graph
    written = {name for node in graph.nodes[:step] for name in node.outputs} | set(graph.inputs) - {TRUTH}
    if program.supplied and not step:
        yield Part(program.supplied, 0, graph.type(program.supplied).nbytes)
        return
    for buffer in plan.buffers:
        # In place or as views, tensors follow each other in a buffer: the last one written is what is there.
        there = [name for name in buffer.tensors if name in written]
        if not there or not buffer.first - (there[0] in graph.inputs) < step <= buffer.last:
            continue
        kind: TensorType = graph.type(there[-1])
        yield Part(there[-1], at, kind.nbytes)
        at += kind.nbytes
