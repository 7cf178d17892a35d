"""The classifier at a model's end: finding it, and replacing it by a fresh one with another number of classes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tte.errors import ModelError
from tte.ir import Builder, Graph, Node, QuantParams, Role, Tensor, TensorType
from tte.ops.linear import FullyConnected, Linear, weight_scales

#: What may stand between the head and the model's output without changing which class wins.
_TAIL = ("SOFTMAX", "RESHAPE")


@dataclass(frozen=True)
class Head:
    """Where a loss attaches.

    Attributes:
        logits: the tensor before any softmax.
        node: the weighted layer that computes it (through views); None if something else does.
        softmax: whether a softmax follows.
    """

    logits: str
    node: Node | None
    softmax: bool


def find(graph: Graph) -> Head:
    """The head of a graph with one output.

    Raises:
        ModelError: the graph has several outputs.
    """
    if len(graph.outputs) != 1:
        raise ModelError(f"training needs a model with one output, this one has {len(graph.outputs)}", where=graph.name)
    name, softmax = graph.outputs[0], False
    producer = graph.producer(name)
    while producer is not None and producer.op.title in _TAIL and len(producer.inputs) == 1:
        softmax |= producer.op.title == "SOFTMAX"
        name = producer.inputs[0]
        producer = graph.producer(name)
    logits = name
    while producer is not None and producer.op.view:
        producer = graph.producer(producer.inputs[0])
    return Head(logits, producer if producer is not None and isinstance(producer.op, Linear) else None, softmax)


def replace_head(graph: Graph, classes: int, seed: int) -> Graph:
    """The graph with a fresh head of `classes` outputs: small random int8 weights, zero biases.

    The new weights get the median scale of the old ones, so that a trained head of the same strength fits, and the
    logits keep their quantisation. Initial weights are uniform within 1/sqrt(inputs) in real units.

    Raises:
        ModelError: the model does not end in a fully connected layer or a 1x1 convolution on one pixel.
    """
    if not 2 <= classes <= 32768:
        raise ModelError(f"{classes} classes", where="--classes", limit="2 to 32768")
    head = find(graph)
    node = head.node
    geometry = node.op.site(graph.types(node.inputs)) if node is not None else None
    if node is None or geometry is None or geometry.depthwise or geometry.out_h * geometry.out_w != 1:
        raise ModelError(
            "the model does not end in a classifier (a fully connected layer, or a 1x1 convolution on one pixel)",
            where=node.name if node else head.logits,
            remedy="train it as it is, without --classes",
        )
    old_w = graph.type(node.inputs[1])
    scale = float(np.float32(np.median(weight_scales(old_w, geometry.out_c))))
    shape = (classes, *old_w.shape[1:])
    bound = 1 / np.sqrt(geometry.terms) / scale
    random = np.random.Generator(np.random.PCG64(seed)).uniform(-bound, bound, shape)
    w = np.clip(np.rint(random), -127, 127).astype(np.int8)
    quant = QuantParams((scale,) * classes, (0,) * classes, 0)
    builder = Builder.of(graph)
    builder.nodes = []
    others = {i for n in graph.nodes if n is not node for i in n.inputs}
    w_name, b_name = (builder.unique(n) if n in others else n for n in (node.inputs[1], node.inputs[-1]))
    builder.tensors[w_name] = Tensor(w_name, TensorType(shape, "int8", quant), Role.CONST, w)
    bias = TensorType((classes,), "int32")
    builder.tensors[b_name] = Tensor(b_name, bias, Role.CONST, np.zeros(classes, np.int32))
    fresh = replace(node, inputs=(node.inputs[0], w_name, b_name))
    for other in graph.nodes:
        new = fresh if other is node else other
        builder.nodes.append(_resized(builder, new, geometry.out_c, classes) if _after(graph, node, other) else new)
    return builder.graph(graph.inputs, graph.outputs)


def _after(graph: Graph, head: Node, node: Node) -> bool:
    """Whether `node` is the head or lies between it and the output."""
    return node is head or graph.nodes.index(node) > graph.nodes.index(head)


def _resized(builder: Builder, node: Node, old: int, new: int) -> Node:
    """The node with the class dimension of its output (and of a view's own shape) changed."""
    op = node.op
    if op.view and getattr(op, "shape", None):
        op = replace(op, shape=tuple(new if d == old else d for d in op.shape))
    if isinstance(op, FullyConnected) and op.keep_dims:
        op = replace(op, keep_dims=False)
    types = op.infer(tuple(builder.tensors[n].type for n in node.inputs))
    for name, (shape, _) in zip(node.outputs, types, strict=True):
        tensor = builder.tensors[name]
        builder.tensors[name] = replace(tensor, type=replace(tensor.type, shape=shape))
    return replace(node, op=op)
