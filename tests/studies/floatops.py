"""The operators without weights, in float: forward, and the gradient by hand. See `studies.floatlayers`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from studies.floatlayers import Convolution, Depthwise, Part, Real, Windows
from tte.errors import ModelError
from tte.ir import Graph, Node, TensorType
from tte.ops.elementwise import Elementwise, Mul, Sub
from tte.ops.linear import Linear
from tte.ops.pool import AveragePool2D, MaxPool2D, Mean, valid_taps
from tte.ops.shape import Concatenation, Pad, Reshape
from tte.ops.table import Table
from tte.training.scheme import LayerUpdate

_ACTIVATIONS = {"RELU": (0.0, math.inf), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0)}


def limits(y: TensorType, activation: str, saturate: bool) -> tuple[float, float]:
    """The real limits of an output.

    Args:
        saturate: the ends of int8 limit it. If not, they do so only where the range starts or ends at zero: there they
            are an activation that the converter folded into the range.
    """
    low, high = _ACTIVATIONS.get(activation, (-math.inf, math.inf))
    if saturate or y.zero_point in (-128, 127):
        low, high = max(low, (-128 - y.zero_point) * y.scale), min(high, (127 - y.zero_point) * y.scale)
    return low, high


class Pair(Part):
    """ADD, SUB and MUL of two values that may broadcast."""

    def __init__(self, graph: Graph, node: Node) -> None:
        self.op, rank = node.op, len(graph.type(node.outputs[0]).shape)
        self.shapes = [graph.type(n).shape for n in node.inputs]
        self.aligned = [(1,) * (rank - len(s)) + s for s in self.shapes]

    def value(self, xs: Sequence[Real]) -> Real:
        self.a, self.b = (x.reshape(len(x), *s) for x, s in zip(xs, self.aligned, strict=True))
        if isinstance(self.op, Mul):
            return np.asarray(self.a * self.b)
        return np.asarray(self.a - self.b if isinstance(self.op, Sub) else self.a + self.b)

    def pull(self, g: Real, wanted: Sequence[bool]) -> list[Real]:
        if isinstance(self.op, Mul):
            parts = [g * self.b, g * self.a]
        else:
            parts = [g, -g if isinstance(self.op, Sub) else g]
        found = []
        for part, aligned, shape in zip(parts, self.aligned, self.shapes, strict=True):
            axes = tuple(i + 1 for i, d in enumerate(aligned) if d == 1 and part.shape[i + 1] != 1)
            found.append((part.sum(axes) if axes else part).reshape(len(part), *shape))
        return found


class AveragePool(Part):
    """AVERAGE_POOL_2D: taps outside the input do not count."""

    def __init__(self, graph: Graph, node: Node) -> None:
        g = node.op.geometry(graph.type(node.inputs[0]))
        self.windows, self.shapes = Windows(g), (graph.type(node.inputs[0]).shape, graph.type(node.outputs[0]).shape)
        self.share = 1.0 / valid_taps(g)[..., None]

    def value(self, xs: Sequence[Real]) -> Real:
        x = xs[0]
        total = self.windows.gather(x.reshape(len(x), *self.shapes[0][1:])).sum((3, 4))
        return (total * self.share.astype(x.dtype)).reshape(len(x), *self.shapes[1])

    def pull(self, g: Real, wanted: Sequence[bool]) -> list[Real]:
        e = g.reshape(len(g), *self.shapes[1][1:]) * self.share.astype(g.dtype)
        return [self.windows.spread(e).sum((3, 4)).reshape(len(g), *self.shapes[0])]


class MaxPool(Part):
    """MAX_POOL_2D; the gradient goes to the first of equals."""

    def __init__(self, graph: Graph, node: Node) -> None:
        g = node.op.geometry(graph.type(node.inputs[0]))
        self.windows, self.shapes = Windows(g), (graph.type(node.inputs[0]).shape, graph.type(node.outputs[0]).shape)

    def value(self, xs: Sequence[Real]) -> Real:
        patches = self.windows.gather(xs[0].reshape(len(xs[0]), *self.shapes[0][1:]), -np.inf)
        self.flat = patches.reshape(*patches.shape[:3], -1, patches.shape[-1])
        return self.flat.max(3).reshape(len(patches), *self.shapes[1])

    def pull(self, g: Real, wanted: Sequence[bool]) -> list[Real]:
        g_ = self.windows.g
        first = np.arange(g_.k_h * g_.k_w)[:, None] == self.flat.argmax(3)[:, :, :, None]
        e = g.reshape(len(g), *self.shapes[1][1:])[:, :, :, None] * first
        return [self.windows.scatter(e.reshape(*e.shape[:3], g_.k_h, g_.k_w, -1)).reshape(len(g), *self.shapes[0])]


class Average(Part):
    """MEAN over axes."""

    def __init__(self, graph: Graph, node: Node) -> None:
        self.axes = tuple(a + 1 for a in node.op.axes)
        self.x_shape, self.y_shape = graph.type(node.inputs[0]).shape, graph.type(node.outputs[0]).shape
        self.kept, self.terms = node.op.kept(self.x_shape), node.op.terms(self.x_shape)

    def value(self, xs: Sequence[Real]) -> Real:
        return np.asarray(xs[0].mean(self.axes)).reshape(len(xs[0]), *self.y_shape)

    def pull(self, g: Real, wanted: Sequence[bool]) -> list[Real]:
        return [np.broadcast_to((g / self.terms).reshape(len(g), *self.kept), (len(g), *self.x_shape))]


class Shaped(Part):
    """RESHAPE and its kin."""

    def __init__(self, graph: Graph, node: Node) -> None:
        self.x_shape, self.y_shape = graph.type(node.inputs[0]).shape, graph.type(node.outputs[0]).shape

    def value(self, xs: Sequence[Real]) -> Real:
        return xs[0].reshape(len(xs[0]), *self.y_shape)

    def pull(self, g: Real, wanted: Sequence[bool]) -> list[Real]:
        return [g.reshape(len(g), *self.x_shape)]


class Padded(Part):
    """PAD and PADV2."""

    def __init__(self, graph: Graph, node: Node) -> None:
        x = graph.type(node.inputs[0])
        self.pads = ((0, 0), *node.op.pads)
        self.fill = float(x.scale * (node.op.value - x.zero_point))
        self.inside = (slice(None), *(slice(b, b + d) for (b, _), d in zip(node.op.pads, x.shape, strict=True)))

    def value(self, xs: Sequence[Real]) -> Real:
        return np.pad(xs[0], self.pads, constant_values=self.fill)

    def pull(self, g: Real, wanted: Sequence[bool]) -> list[Real]:
        return [g[self.inside]]


class Joined(Part):
    """CONCATENATION."""

    def __init__(self, graph: Graph, node: Node) -> None:
        self.axis = node.op.axis + 1
        self.cuts = np.cumsum([graph.type(n).shape[node.op.axis] for n in node.inputs])[:-1].tolist()

    def value(self, xs: Sequence[Real]) -> Real:
        count = max(map(len, xs))
        return np.concatenate([np.broadcast_to(x, (count, *x.shape[1:])) for x in xs], self.axis)

    def pull(self, g: Real, wanted: Sequence[bool]) -> list[Real]:
        return list(np.split(g, self.cuts, self.axis))


def _logistic(x: Real) -> Real:
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * x))


#: Function of the input, and its slope; alpha: LEAKY_RELU's slope below zero.
_CURVES: dict[str, tuple[Callable[[Real, float], Real], Callable[[Real, float], Real]]] = {
    "LEAKY_RELU": (
        lambda x, a: np.where(x < 0, x * x.dtype.type(a), x),
        lambda x, a: np.where(x < 0, a, 1).astype(x.dtype),
    ),
    "LOGISTIC": (lambda x, a: _logistic(x), lambda x, a: np.asarray(_logistic(x) * _logistic(-x))),
    "TANH": (lambda x, a: np.tanh(x), lambda x, a: np.asarray(1 - np.tanh(x) ** 2)),
    "HARD_SWISH": (
        lambda x, a: np.asarray(x * np.clip(x / 6 + 0.5, 0, 1)),
        lambda x, a: np.where(np.abs(x) < 3, x / 3 + 0.5, x > 0).astype(x.dtype),
    ),
}


class Curve(Part):
    """Operators of one input that are tables in int8; those that only clamp or requantise are the identity."""

    def __init__(self, graph: Graph, node: Node) -> None:
        self.curve, self.alpha = _CURVES.get(node.op.kind), node.op.alpha

    def value(self, xs: Sequence[Real]) -> Real:
        return self.curve[0](xs[0], self.alpha) if self.curve else xs[0]

    def pull(self, g: Real, wanted: Sequence[bool]) -> list[Real]:
        return [np.asarray(g * self.curve[1](self.xs[0], self.alpha)) if self.curve else g]


_PARTS: tuple[tuple[type, Callable[[Graph, Node], Part]], ...] = (
    (Elementwise, Pair), (AveragePool2D, AveragePool), (MaxPool2D, MaxPool), (Mean, Average), (Reshape, Shaped),
    (Pad, Padded), (Concatenation, Joined), (Table, Curve),
)  # fmt: skip
_CLAMPED = (Linear, Elementwise, Mean, Table)


def part_of(graph: Graph, node: Node, update: LayerUpdate, head: bool, saturate: bool, dtype: Any) -> Part:
    op = node.op
    if isinstance(op, Linear):
        part: Part = (Depthwise if op.title == "DEPTHWISE_CONV_2D" else Convolution)(graph, node, update, dtype)
    else:
        maker = next((make for kind, make in _PARTS if isinstance(op, kind)), None)
        if maker is None:
            raise ModelError(
                f"{op.title} has no float counterpart", where=node.name, remedy="write one in studies/floatops.py"
            )
        part = maker(graph, node)
    if isinstance(op, _CLAMPED) and not head:  # the loss reads the head's sums before any clamp
        activation = op.kind if isinstance(op, Table) and op.kind in _ACTIVATIONS else getattr(op, "activation", "NONE")
        part.low, part.high = limits(graph.type(node.outputs[0]), activation, saturate)
    return part
