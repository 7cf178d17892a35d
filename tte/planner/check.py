"""An independent proof of a plan: it runs both calls and watches who owns every byte.

It shares no code with the planner: no live ranges, no conflicts. Writing a tensor takes its bytes; reading one
demands that every byte still belongs to it. What the planner thinks is of no interest here.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tte.errors import TteError
from tte.ir import Role
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

    def demand(name: str, reader: str) -> None:
        if graph.tensors[name].role in (Role.VALUE, Role.INPUT):
            wrong = owner[span(name)] != ids[name]
            if wrong.any():
                thief = names.get(int(owner[span(name)][wrong][0]), "nothing yet")
                raise PlanError(f"{reader} reads {name}, whose bytes hold {thief}", where=graph.name)

    for name in graph.inputs:
        owner[span(name)] = ids[name]
    for name in graph.inputs:
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
        reads = [(span(n), n) for n in node.inputs if graph.tensors[n].role in (Role.VALUE, Role.INPUT)]
        for index, name in enumerate(values):
            allowed = {node.inputs[i] for o, i in node.op.inplace if o == node.outputs.index(name)}
            for other, source in reads:
                if _meet(span(name), other) and not (source in allowed and span(name).start == other.start):
                    raise PlanError(f"writes {name} over its own input {source}", where=node.name)
            for later in values[index + 1 :]:
                if _meet(span(name), span(later)):
                    raise PlanError(f"outputs {name} and {later} overlap", where=node.name)
        size = node.op.kernel(plan.program.types(node)).workspace
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


def _meet(a: slice, b: slice) -> bool:
    return bool(a.start < b.stop and b.start < a.stop)
