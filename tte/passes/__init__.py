"""Graph to graph: each pass takes a verified graph and gives one."""

from __future__ import annotations

from collections.abc import Callable

from tte.ir import Graph, verify
from tte.passes.dead import eliminate_dead
from tte.passes.fold_pad import fold_pad

Pass = Callable[[Graph], Graph]

#: What every imported model goes through.
NORMALISE: tuple[Pass, ...] = (fold_pad, eliminate_dead)


def run(passes: tuple[Pass, ...], graph: Graph) -> Graph:
    """The passes one after the other, the graph verified before and after each."""
    verify(graph)
    for step in passes:
        graph = verify(step(graph))
    return graph
