"""Dead-node elimination: what no output and no update needs goes, and with it what was saved for it."""

from __future__ import annotations

from dataclasses import replace

from tte.ir import Graph, Node


def eliminate_dead(graph: Graph) -> Graph:
    """Keeps the nodes that an output or a changed parameter depends on; drops optional outputs nobody reads."""
    needed = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if not graph.mutated(node) and not needed.intersection(node.outputs):
            continue
        for index in reversed(node.op.optional_outputs()):
            if node.outputs[index] not in needed:
                outputs = (*node.outputs[:index], *node.outputs[index + 1 :])
                node = replace(node, op=node.op.without(index), outputs=outputs)
        needed.update(node.inputs)
        kept.append(node)
    return graph.with_nodes(kept[::-1])
