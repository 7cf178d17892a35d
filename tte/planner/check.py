"""An independent proof of a plan: it runs both calls and watches who owns every byte.

It shares no code with the planner: no live ranges, no conflicts. Writing a tensor takes its bytes; reading one
demands that every byte still belongs to it. What the planner thinks is of no interest here.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from tte.errors import TteError
from tte.ir import Role
from tte.ops.segment import Segment
from tte.planner.arena import Plan


class PlanError(TteError):
    """A plan in which one live tensor would overwrite another: a defect of the planner, never of the model."""


def check(plan: Plan) -> None:
    """Proves that inference and training read only bytes that still hold what was written.

    Raises:
        PlanError: naming the step, the tensor and who took its bytes.
    """
    program = plan.program
    _run(plan, program.infer_steps, program.outputs)
    if program.trains:
        _run(plan, program.train_steps, program.kept)


def _run(plan: Plan, steps: Iterable[int], results: Iterable[str]) -> None:
    graph = plan.program.graph
    ids = {name: i + 1 for i, name in enumerate(graph.tensors)}
    names = {i: name for name, i in ids.items()}
    scratch = len(ids) + 1
    names[scratch] = "a workspace"
    owner = np.zeros(plan.arena_bytes, np.int64)

    def span(name: str) -> slice:
        start = plan.offsets[name]
        if start < 0 or start % 4 or start + graph.type(name).nbytes > plan.arena_bytes:
            raise PlanError(f"offset {start} is outside the arena or misaligned", where=name)
        return slice(start, start + graph.type(name).nbytes)

    def in_arena(name: str) -> bool:
        return graph.tensors[name].role in (Role.VALUE, Role.INPUT) and name != plan.program.supplied

    def demand(name: str, reader: str) -> None:
        if in_arena(name):
            wrong = owner[span(name)] != ids[name]
            if wrong.any():
                thief = names.get(int(owner[span(name)][wrong][0]), "nothing yet")
                raise PlanError(f"{reader} reads {name}, whose bytes hold {thief}", where=graph.name)

    given = [name for name in graph.inputs if in_arena(name)]
    for name in given:
        owner[span(name)] = ids[name]
    for name in given:
        demand(name, "the caller")
    for step in steps:
        node = graph.nodes[step]
        for name in node.inputs:
            demand(name, node.name)
        values = [o for o in node.outputs if graph.tensors[o].role is Role.VALUE]
        if node.op.view:
            if span(values[0]).start != span(node.inputs[0]).start:
                raise PlanError("a view lies elsewhere than its source", where=node.name)
            ids[values[0]] = ids[node.inputs[0]]
            continue
        reads = [(span(n), n) for n in node.inputs if in_arena(n)]
        for index, name in enumerate(values):
            allowed = {node.inputs[i] for o, i in node.op.inplace if o == node.outputs.index(name)}
            for other, source in reads:
                if _meet(span(name), other) and not (source in allowed and span(name).start == other.start):
                    raise PlanError(f"writes {name} over its own input {source}", where=node.name)
            for later in values[index + 1 :]:
                if _meet(span(name), span(later)):
                    raise PlanError(f"outputs {name} and {later} overlap", where=node.name)
        size = plan.program.kernel(node).workspace
        if isinstance(node.op, Segment):
            _check_rows(node.op, node.name, size)
        if size:
            start = plan.workspaces.get(step, -1)
            if start < 0 or start % 4 or start + size > plan.arena_bytes:
                raise PlanError("the workspace is missing, misaligned or outside the arena", where=node.name)
            area = slice(start, start + size)
            for used in [s for s, _ in reads] + [span(v) for v in values]:
                if _meet(area, used):
                    raise PlanError("the workspace overlaps what the step reads or writes", where=node.name)
            owner[area] = scratch
        for name in values:
            owner[span(name)] = ids[name]
    for name in results:
        demand(name, "the caller")


def _check_rows(segment: Segment, where: str, workspace: int) -> None:
    """Proves a segment's order of rows: every row that a step reads is there, no row is computed beyond a tensor's
    end, and no two rolling buffers share bytes or lie outside the workspace.
    """
    rings = segment.order.rings
    taken = sorted((r.offset, r.offset + r.nbytes) for r in rings.values())
    if any(end > start for (_, end), (start, _) in pairwise(taken)):
        raise PlanError("two rolling buffers overlap", where=where)
    if taken and (taken[0][0] < 0 or taken[-1][1] > workspace):
        raise PlanError("a rolling buffer lies outside the workspace", where=where)
    supplied = segment.supplied
    heights = [segment.type(n.outputs[0]).shape[1] for n in segment.nodes]
    heights += [segment.type(supplied).shape[1]] if supplied else []
    slots: dict[str, dict[int, int]] = {name: {} for name in (*rings, *segment.kept)}
    done = [0] * len(heights)
    for stage in segment.order.stages:
        row = done[stage]
        outputs: tuple[str, ...] = (supplied,)
        done[stage] += 1
        if done[stage] > heights[stage]:
            raise PlanError(f"stage {stage} computes row {row}, beyond its last", where=where)
        if stage < len(segment.nodes):
            node, rule, outputs = segment.nodes[stage], segment.rule(stage), segment.nodes[stage].outputs
            for name in (n for n in node.inputs if n in slots):
                height, held = segment.type(name).shape[1], slots[name]
                rows = range(max(0, row * rule.stride + rule.first), min(height, row * rule.stride + rule.last + 1))
                for r in rows:
                    if held.get(r % (rings[name].rows if name in rings else height)) != r:
                        raise PlanError(f"{node.name} row {row} reads row {r} of {name}, which is not there", where=where)
        for name in outputs:
            height = segment.type(name).shape[1]
            slots[name][row % (rings[name].rows if name in rings else height)] = row
    for name in segment.kept:
        if len(slots[name]) != segment.type(name).shape[1]:
            raise PlanError(f"{name} is not complete", where=where)
    if supplied and done[-1] != heights[-1]:
        raise PlanError(f"takes {done[-1]} of the {heights[-1]} rows of {supplied}", where=where)


def _meet(a: slice, b: slice) -> bool:
    return bool(a.start < b.stop and b.start < a.stop)
