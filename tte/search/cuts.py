"""Where the frozen prefix may end: a few places, so that schemes share features."""

from __future__ import annotations

from collections.abc import Sequence

from tte.planner.arena import Plan
from tte.search.twin import route
from tte.training.scheme import LayerUpdate

#: Places at most. More save arithmetic in every measurement, fewer save features.
_MOST = 8


def places(plan: Plan, layers: Sequence[str]) -> tuple[int, ...]:
    """Steps at which prefixes end, ascending: of all choices of so many, the one that computes least again.

    A scheme whose first trained layer lies behind a place computes what is between anew in every step. Each layer counts
    alike as the first one. The first and the last layer's own places are always there; others whose features are larger
    than the model's input never.

    Args:
        layers: those that may train, in order.
    """
    program = plan.program
    index = {n.name: i for i, n in enumerate(program.graph.nodes[: program.shared])}
    at = sorted(index[name] for name in layers)
    work = [0]
    for node in program.graph.nodes[: program.shared]:
        work.append(work[-1] + node.op.macs(program.types(node)))
    most = program.graph.type(program.graph.inputs[0]).nbytes
    allowed = [0, *(i for i in range(1, len(at) - 1) if _feature_bytes(plan, at[i], layers, index) <= most), len(at) - 1]
    allowed = sorted(set(allowed))
    # best[k][j]: the least work for layers before at[j], the last of k places being at[j].
    best: list[dict[int, tuple[int, tuple[int, ...]]]] = [{0: (0, (0,))}]
    for _ in range(min(_MOST, len(allowed)) - 1):
        after: dict[int, tuple[int, tuple[int, ...]]] = {}
        for j in allowed:
            ways = [(c + _again(work, at, i, j), (*chosen, j)) for i, (c, chosen) in best[-1].items() if i < j]
            if ways:
                after[j] = min(ways)
        best.append(after)
    ends = [found[len(at) - 1] for found in best if len(at) - 1 in found]
    return tuple(at[i] for i in min(ends)[1])


def _again(work: Sequence[int], at: Sequence[int], i: int, j: int) -> int:
    """MACs computed anew by schemes whose first layer is i..j-1, with a place at i."""
    return sum(work[at[k]] - work[at[i]] for k in range(i, j))


def _feature_bytes(plan: Plan, cut: int, layers: Sequence[str], index: dict[str, int]) -> int:
    last = max(layers, key=lambda name: index[name])
    way = route(plan, {last: LayerUpdate(bias=True)}, cut)
    return sum(plan.program.graph.type(t).nbytes for t in way.features)
