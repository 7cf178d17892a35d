"""Output channels that cannot vary: pruned networks are full of them, with scales and biases at the ends of their range.

Such a channel gets a bias and a multiplier that give the same value by ordinary numbers, so that the short form of
requantisation serves it too (see `tte_scale` in templates/tte_dsp.h).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tte.fixed import requantise
from tte.ir import Builder, Graph, Node, Role
from tte.ops.base import Types
from tte.ops.linear import SETTLED, Linear

#: The sums that vary must stay below half a step of the multiplier that replaces a channel's own: 2**-22.
_STILL = 1 << 21


def settle(graph: Graph) -> Graph:
    """Rewrites the constant channels of layers whose weights and biases never change; what they compute stays the same."""
    builder = Builder.of(graph)
    builder.nodes = [_settled(graph, builder, node) for node in graph.nodes]
    return replace(graph, tensors=builder.tensors).with_nodes(builder.nodes)


def _settled(graph: Graph, builder: Builder, node: Node) -> Node:
    op = node.op
    if not isinstance(op, Linear) or op.acc or op.trained or op.rounding != "double":
        return node
    if any(graph.tensors[n].role is not Role.CONST for n in node.inputs[1:]):
        return node
    t = Types(graph.types(node.inputs), graph.types(node.outputs))
    m, s = op.multipliers(t)
    odd = np.flatnonzero((m < 1 << 30) | (s > -1))
    if not odd.size:
        return node
    w, bias = graph.data(node.inputs[1]).astype(np.int64), graph.data(node.inputs[2]).astype(np.int64)
    rows = (w.reshape(-1, w.shape[-1]).T if op.site(t.ins).depthwise else w.reshape(w.shape[0], -1))[odd]
    zero = t.ins[0].zero_point
    # A tap outside the input counts as zero, which lies between these ends.
    low = np.minimum(rows * (-128 - zero), rows * (127 - zero)).sum(1)
    high = np.maximum(rows * (-128 - zero), rows * (127 - zero)).sum(1)
    b = bias.ravel()[odd]
    sums = [np.clip(b + v, -(2**31), 2**31 - 1) for v in (low, high)]
    ends = [requantise(v, m[odd], s[odd], op.rounding) + t.outs[0].zero_point for v in sums]
    # Beyond int8 all values are one: clipped.
    first, last = (np.clip(v, -129, 128) for v in ends)
    still = (first == last) & (np.maximum(-low, high) < _STILL) & (b + low >= -(2**31)) & (b + high < 2**31)
    if not still.any():
        return node
    chosen = odd[still]
    data = bias.copy()
    data.ravel()[chosen] = (first[still] - t.outs[0].zero_point) << 22
    name = builder.add(f"{node.inputs[2]}/settled", graph.type(node.inputs[2]), Role.CONST, data.astype(np.int32))
    settled = replace(op, settled=tuple(int(c) for c in chosen))
    assert settled.multipliers(t)[1][chosen[0]] == SETTLED[1]
    return replace(node, op=settled, inputs=(*node.inputs[:2], name))
