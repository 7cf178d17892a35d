"""A quantised model's layers behind a cut as a float network that learns.

Weights and biases start as the int8 model's real values; clamps stay, as real limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studies.floatlayers import Part, Real, Weighted
from studies.floatops import part_of
from tte.errors import ModelError
from tte.ir import Graph, Node, Role, Tensor, TensorType
from tte.ops.linear import Linear
from tte.training.head import Head
from tte.training.scheme import LayerUpdate


def dequantised(t: TensorType, q: NDArray[Any], dtype: Any) -> Real:
    """`scale * (q - zero point)` of an 8-bit tensor, per tensor."""
    return (q.astype(dtype) - t.zero_point) * dtype(t.scale)


class FloatNet:
    """The nodes from a cut to the logits.

    Args:
        graph: the inference graph with the task's head.
        cut: tensors that are given to it.
        updates: what trains, by layer.
        saturate: see `limits`.
        dtype: float32, or float64 for checks.

    Raises:
        ModelError: an operator or a scheme has no float counterpart here, or what the network needs lies before the cut.
    """

    def __init__(
        self, graph: Graph, head: Head, cut: Sequence[str], updates: Mapping[str, LayerUpdate], saturate: bool = True,
        dtype: Any = np.float32,
    ) -> None:  # fmt: skip
        needed: list[Node] = []
        wanted = {head.logits} - set(cut)
        for node in reversed(graph.nodes):
            if wanted.intersection(node.outputs):
                needed.insert(0, node)
                wanted |= {n for n in node.inputs if graph.tensors[n].role is not Role.CONST} - set(cut)
        made = {o for n in needed for o in n.outputs}
        if (short := wanted - made) or (short := set(updates) - {n.name for n in needed}):
            raise ModelError("it lies before the cut", where=sorted(short)[0])
        if drawn := [n for n, u in updates.items() if u.redraw]:
            raise ModelError("channels that are drawn anew have no float counterpart", where=drawn[0])
        self.logits, frozen = head.logits, LayerUpdate()
        self.nodes, self.parts, self.wants = needed, list[Part](), list[tuple[bool, ...]]()
        self.trained: dict[str, Weighted] = {}
        self.constants = {n: _constant(graph.tensors[n], dtype) for x in needed for n in x.inputs
                          if graph.tensors[n].role is Role.CONST and not isinstance(x.op, Linear)}  # fmt: skip
        moves: set[str] = set()
        for node in needed:
            is_head = head.node is not None and node.name == head.node.name
            part = part_of(graph, node, updates.get(node.name, frozen), is_head, saturate, dtype)
            self.parts.append(part)
            self.wants.append(tuple(n in moves for n in node.inputs))
            if node.name in updates and isinstance(part, Weighted):
                self.trained[node.name] = part
            if node.name in updates or moves.intersection(node.inputs):
                moves |= set(node.outputs)
        self.moves = moves

    def reset(self) -> None:
        """The initial weights and biases."""
        for part in self.trained.values():
            part.reset()

    def forward(self, values: Mapping[str, Real]) -> Real:
        """Logits [n, classes] for the tensors of the cut, each [n, *shape]."""
        found = {**self.constants, **values}
        for node, part in zip(self.nodes, self.parts, strict=True):
            count = 1 if isinstance(part, Weighted) else len(node.inputs)
            found[node.outputs[0]] = part.forward([found[n] for n in node.inputs[:count]])
        out = found[self.logits]
        return out.reshape(len(out), -1)

    def gradients(self, values: Mapping[str, Real], label: int) -> float:
        """Cross-entropy (nats) of one sample; its gradients are then in the parts of `trained`."""
        logits = self.forward(values)[0]
        shifted = logits - logits.max()
        p = np.exp(shifted)
        total = p.sum()
        g = p / total
        g[label] -= 1
        self._backward(g)
        return float(np.log(total) - shifted[label])

    def step(self, values: Mapping[str, Real], label: int, rate: float) -> float:
        """One step of plain SGD; gives the loss before it."""
        loss = self.gradients(values, label)
        for part in self.trained.values():
            part.learn(rate)
        return loss

    def _backward(self, g: Real) -> None:
        errors: dict[str, Real] = {self.logits: g}
        for node, part, wants in zip(reversed(self.nodes), reversed(self.parts), reversed(self.wants), strict=True):
            if node.outputs[0] not in self.moves or node.outputs[0] not in errors:
                continue
            error = errors.pop(node.outputs[0]).reshape(part.y.shape)
            for name, wanted, back in zip(node.inputs, wants, part.backward(error, wants), strict=False):
                if wanted:
                    errors[name] = errors[name] + back if name in errors else back


def _constant(tensor: Tensor, dtype: Any) -> Real:
    assert tensor.data is not None
    return dequantised(tensor.type, tensor.data, dtype)[None]
