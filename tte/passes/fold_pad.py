"""Folds PAD into the convolution that reads it: taps outside the image count as zero either way."""

from __future__ import annotations

from dataclasses import replace

from tte.ir import Graph, Node
from tte.ops.linear import Conv2D
from tte.ops.shape import Pad


def fold_pad(graph: Graph) -> Graph:
    """Drops a PAD with the zero point over height and width when convolutions alone read it."""
    folded: dict[str, tuple[str, tuple[int, int, int, int]]] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        pads = _spatial_pads(graph, node)
        readers = graph.consumers(node.outputs[0])
        if pads and node.outputs[0] not in graph.outputs and all(isinstance(r.op, Conv2D) for r in readers):
            folded[node.outputs[0]] = (node.inputs[0], pads)
        elif node.inputs and node.inputs[0] in folded:
            source, extra = folded[node.inputs[0]]
            window = node.op.window
            pad = tuple(a + b for a, b in zip(window.pad, extra, strict=True))
            op = replace(node.op, window=replace(window, pad=pad))
            nodes.append(replace(node, op=op, inputs=(source, *node.inputs[1:])))
        else:
            nodes.append(node)
    return graph.with_nodes(nodes)


def _spatial_pads(graph: Graph, node: Node) -> tuple[int, int, int, int] | None:
    """(top, bottom, left, right) of a PAD that only adds zero points around the image; None otherwise."""
    if not isinstance(node.op, Pad) or len(node.op.pads) != 4:
        return None
    x = graph.type(node.inputs[0])
    (n0, n1), (top, bottom), (left, right), (c0, c1) = node.op.pads
    if n0 or n1 or c0 or c1 or node.op.value != x.zero_point:
        return None
    return top, bottom, left, right
