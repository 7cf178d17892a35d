"""Constant channels rewritten: nothing that a layer gives changes, masks included."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cases import Case, conv, depthwise

from tte.ir import Builder, Graph, QuantParams, TensorType, verify
from tte.passes.settle import settle
from tte.reference import Executor


def _with_dead_channels(graph: Graph, random: np.random.Generator) -> Graph:
    """The graph's layer with a mask, and scales, weights and biases as converters leave them in pruned channels."""
    node = graph.nodes[0]
    w, b = (graph.tensors[n] for n in node.inputs[1:])
    assert w.data is not None and b.data is not None and w.type.quant is not None
    axis = 3 if w.type.shape[0] == 1 and w.type.shape[3] == b.type.elements else 0
    count = b.type.elements
    factors = random.choice([1.0, 1e-7, 3e-9, 1e-10, 2e3, 1e5], count)
    scales = tuple(float(s) for s in np.broadcast_to(w.type.quant.scale, count) * factors)
    weights, biases = np.moveaxis(w.data.copy(), axis, 0), b.data.copy().ravel()
    weights[random.random(count) < 0.5] = 0
    biases[:] = random.choice([0, 5, -(2**31), 2**31 - 1, 1 << 30, -(1 << 30), 9 << 24], count)
    builder = Builder.of(graph)
    kind = replace(w.type, quant=QuantParams(scales, (0,) * count, axis))
    builder.tensors[w.name] = replace(w, type=kind, data=np.ascontiguousarray(np.moveaxis(weights, 0, axis)))
    builder.tensors[b.name] = replace(b, data=biases.reshape(b.data.shape))
    mask = builder.add("mask", TensorType(graph.type(node.outputs[0]).shape, "bit"))
    builder.nodes = [replace(node, op=replace(node.op, mask=True), outputs=(*node.outputs, mask))]
    return verify(builder.graph(graph.inputs, (*graph.outputs, mask)))


@pytest.mark.parametrize("activation", ["NONE", "RELU6"])
@pytest.mark.parametrize("layer", [conv, depthwise])
def test_nothing_changes(layer: object, activation: str) -> None:
    made = conv(7, 6, 3, 24, activation=activation) if layer is conv else depthwise(7, 6, 24, 1, activation=activation)
    settled = 0
    for seed in range(12):
        random = np.random.default_rng(seed)
        before = _with_dead_channels(Case("dead", made).graph(), random)
        after = verify(settle(before))
        settled += sum(len(n.op.settled) for n in after.nodes)  # type: ignore[attr-defined]
        shape = before.type(before.inputs[0]).shape
        for x in (random.integers(-128, 128, shape), np.full(shape, -128), np.full(shape, 127)):
            feed = {before.inputs[0]: x.astype(np.int8)}
            old, new = Executor(before).run(feed), Executor(after).run(feed)
            assert all((old[name] == new[name]).all() for name in before.outputs)
    assert settled > 20
