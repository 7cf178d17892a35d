"""Saves for the backward pass only those channels of an activation that a sparse weight update reads."""

from __future__ import annotations

from dataclasses import replace

from tte.ir import Builder, Graph, Node, Role
from tte.ops.linear_grad import WeightUpdate
from tte.ops.loss import Loss
from tte.ops.select import SelectChannels


def save_channels(graph: Graph) -> Graph:
    """Gives a weight update that reads few channels of its layer's input a copy of just those.

    An input that another backward node reads stays whole, and so does the model's own input.
    """
    builder = Builder.of(graph)
    chosen: dict[str, Node] = {}
    updates = [n for n in graph.nodes if _sparse(n)]
    backward = {n.name for n in graph.nodes[_first_backward(graph) :]}
    for node in updates:
        x = node.inputs[0]
        others = [r for r in graph.consumers(x) if r.name in backward and r is not node]
        if others or graph.tensors[x].role is not Role.VALUE or x in graph.outputs:
            continue
        t = graph.type(x)
        if t.shape[-1] != node.op.geometry.in_c:
            continue  # a fully connected layer that flattens its input: its channels are no channels of x
        kept = builder.add(f"{x}/trained channels", replace(t, shape=(*t.shape[:-1], node.op.channels)))
        table = () if node.op.trained else (node.inputs[-1],)
        chosen[node.name] = Node(f"{x}/select", SelectChannels(node.op.trained), (x, *table), (kept,))
    nodes: list[Node] = []
    made = {n.inputs[0]: n for n in chosen.values()}
    for node in graph.nodes:
        if node.name in chosen and _sparse(node):
            kept = chosen[node.name].outputs[0]
            node = replace(node, op=replace(node.op, gathered=True), inputs=(kept, *node.inputs[1:]))
        nodes.append(node)
        nodes += [made[o] for o in node.outputs if o in made]
    return replace(graph, tensors=builder.tensors).with_nodes(nodes)


def _sparse(node: Node) -> bool:
    """Whether a node updates a choice of channels that is a choice of its input's channels too."""
    op = node.op
    return isinstance(op, WeightUpdate) and op.partial and not op.gathered and op.geometry.multiplier == 1


def _first_backward(graph: Graph) -> int:
    """Index of the first node behind the forward pass: the loss."""
    return next((i for i, n in enumerate(graph.nodes) if isinstance(n.op, Loss)), len(graph.nodes))
