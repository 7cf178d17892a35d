"""Float64 forward and reverse mode of a quantised graph, straight-through: the oracle of the integer gradients.

Written without any backward operator of `tte`. Forward values are the dequantised integers that the reference executor
gave; a gradient passes a rounding unchanged and a clamp only where the unclamped value lay within the limits, which is
decided here from the real values. Gradients are with respect to real (dequantised) tensors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from tte.ir import Graph, Node, Role, TensorType
from tte.ops.elementwise import Elementwise, Mul, Sub
from tte.ops.linear import Linear
from tte.ops.loss import Loss, SoftmaxCrossEntropy
from tte.ops.pool import AveragePool2D, MaxPool2D, Mean
from tte.ops.shape import Concatenation, Pad, Reshape
from tte.ops.table import Table

F64 = NDArray[np.float64]
Values = Mapping[str, np.ndarray]


def dequantised(t: TensorType, q: np.ndarray, scale: float | F64 | None = None) -> F64:
    """`scale * (q - zero point)`, per tensor or per slice of the type's axis; `scale` overrides the type's."""
    assert t.quant is not None or scale is not None
    if scale is None:
        scales = np.array(t.quant.scale)
        shape = [1] * q.ndim
        if scales.size > 1:
            shape[t.quant.axis or 0] = scales.size
        scale = scales.reshape(shape)
    zero = t.quant.zero_point[0] if t.quant is not None else 0
    return np.asarray(scale) * (q.astype(np.float64) - zero)


# ---- convolution, by explicit windows


class Window:
    """How a weighted layer or a pool walks its input: [out h, out w, taps] index arrays into a zero-padded image."""

    def __init__(self, x: TensorType, out: tuple[int, ...], k: tuple[int, int], op: object) -> None:
        window = getattr(op, "window", None)
        stride, dilation, pad = (window.stride, window.dilation, window.pad) if window else ((1, 1), (1, 1), (0, 0, 0, 0))
        self.size = x.shape[1:3] if len(x.shape) == 4 else (out[0], 1)
        self.depth = x.shape[-1]
        self.out = out[1:3] if len(out) == 4 else (out[0], 1)
        rows = np.arange(self.out[0])[:, None] * stride[0] - pad[0] + np.arange(k[0]) * dilation[0]
        cols = np.arange(self.out[1])[:, None] * stride[1] - pad[2] + np.arange(k[1]) * dilation[1]
        self.rows, self.cols = rows, cols
        self.inside = (
            ((rows >= 0) & (rows < self.size[0]))[:, None, :, None]
            & ((cols >= 0) & (cols < self.size[1]))[None, :, None, :]
        )

    def gather(self, x: F64, fill: float = 0.0) -> F64:
        """Patches [out h, out w, kh, kw, C]; `fill` outside."""
        rows, cols = np.clip(self.rows, 0, self.size[0] - 1), np.clip(self.cols, 0, self.size[1] - 1)
        patches = x.reshape(*self.size, -1)[rows[:, None, :, None], cols[None, :, None, :]]
        return np.where(self.inside[..., None], patches, fill)

    def scatter(self, patches: F64) -> F64:
        """The transpose of `gather`: [h, w, C]."""
        image = np.zeros((*self.size, patches.shape[-1]))
        rows, cols = np.clip(self.rows, 0, self.size[0] - 1), np.clip(self.cols, 0, self.size[1] - 1)
        full = np.where(self.inside[..., None], patches, 0.0)
        np.add.at(image, (rows[:, None, :, None], cols[None, :, None, :]), full)
        return image


class Layer:
    """A weighted node in real units. Weights are [O, kh, kw, I], depthwise [kh, kw, I, multiplier]."""

    def __init__(self, graph: Graph, node: Node, values: Values) -> None:
        op: Linear = node.op
        self.node, self.x_type = node, graph.type(node.inputs[0])
        self.x = dequantised(self.x_type, values[node.inputs[0]])
        w_type = graph.type(node.inputs[1])
        parts = [values[n] for n in node.inputs[1:-1]]
        w = parts[0]
        if op.trained:
            w = np.zeros((*parts[0].shape[:-1], parts[0].shape[-1] + parts[1].shape[-1]))
            chosen = np.isin(np.arange(w.shape[-1]), op.trained)
            w[..., chosen], w[..., ~chosen] = parts
        self.depthwise = op.title == "DEPTHWISE_CONV_2D"
        self.w_shape = w.shape
        out_axis = w.ndim - 1 if self.depthwise else 0
        shape = [1] * w.ndim
        shape[out_axis] = -1
        assert w_type.quant is not None
        scales = np.broadcast_to(w_type.quant.scale, (w.shape[out_axis],)).astype(np.float64)
        self.w = w.astype(np.float64) * scales.reshape(shape)
        self.b = values[node.inputs[-1]] * scales * self.x_type.scale
        self.units = scales * self.x_type.scale
        y = graph.type(node.outputs[0])
        self.y_shape = y.shape
        if w.ndim == 4:
            self.window = Window(self.x_type, y.shape, (w.shape[1], w.shape[2]), op)
        else:
            rows = self.x.size // w.shape[1]
            flat = TensorType((1, rows, 1, w.shape[1]), "int8")
            self.window = Window(flat, (1, rows, 1, w.shape[0]), (1, 1), None)

    def _kernel(self) -> F64:
        k = (self.w.shape[1], self.w.shape[2]) if self.w.ndim == 4 else (1, 1)
        return self.w.reshape(*k, self.window.depth, -1) if self.depthwise else self.w.reshape(-1, *k, self.window.depth)

    def forward(self, x: F64 | None = None) -> F64:
        """The real output before activation and rounding."""
        patches = self.window.gather(self.x if x is None else x)
        rule = "hwykc,ykcm->hwcm" if self.depthwise else "hwykc,oykc->hwo"
        return np.einsum(rule, patches, self._kernel(), optimize=True).reshape(self.y_shape) + self.b

    def _error(self, g: F64) -> F64:
        g = g.reshape(*self.window.out, -1)
        return g.reshape(*self.window.out, self.window.depth, -1) if self.depthwise else g

    def d_input(self, g: F64) -> F64:
        rule = "hwcm,ykcm->hwykc" if self.depthwise else "hwo,oykc->hwykc"
        patches = np.einsum(rule, self._error(g), self._kernel(), optimize=True)
        return self.window.scatter(patches).reshape(self.x_type.shape)

    def d_weights(self, g: F64) -> F64:
        """In the shape of the whole weight tensor."""
        rule = "hwcm,hwykc->ykcm" if self.depthwise else "hwo,hwykc->oykc"
        return np.einsum(rule, self._error(g), self.window.gather(self.x), optimize=True).reshape(self.w_shape)

    def d_bias(self, g: F64) -> F64:
        return g.reshape(-1, self.b.size).sum(0)


# ---- clipping


def unclipped(real: F64, y: TensorType, activation: str) -> NDArray[np.bool_]:
    """Where the value before clamping, rounded to a step of y, lies within the limits of int8 and the activation."""
    limits = {"RELU": (0.0, np.inf), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0)}
    low, high = (np.floor(v / y.scale + 0.5) + y.zero_point for v in limits.get(activation, (-np.inf, np.inf)))
    q = np.floor(real / y.scale + 0.5) + y.zero_point
    return (q >= max(low, -128)) & (q <= min(high, 127))


def _reduced_to(g: F64, shape: tuple[int, ...]) -> F64:
    aligned = (1,) * (g.ndim - len(shape)) + shape
    axes = tuple(i for i, (a, d) in enumerate(zip(aligned, g.shape, strict=True)) if a == 1 and d != 1)
    return g.sum(axes).reshape(shape)


def _sigmoid(x: F64) -> F64:
    return 0.5 * (1 + np.tanh(x / 2))


#: kind -> (function, derivative) of the real input.
_CURVES: dict[str, tuple[Callable[[F64, float], F64], Callable[[F64, float], F64]]] = {
    "LEAKY_RELU": (lambda x, a: np.where(x >= 0, x, a * x), lambda x, a: np.where(x >= 0, 1.0, a)),
    "LOGISTIC": (lambda x, a: _sigmoid(x), lambda x, a: _sigmoid(x) * (1 - _sigmoid(x))),
    "TANH": (lambda x, a: np.tanh(x), lambda x, a: 1 - np.tanh(x) ** 2),
    "HARD_SWISH": (
        lambda x, a: x * np.clip(x + 3, 0, 6) / 6,
        lambda x, a: np.select([x <= -3, x >= 3], [0.0, 1.0], x / 3 + 0.5),
    ),
}


# ---- reverse mode over a graph


def forward_nodes(graph: Graph) -> tuple[Node, ...]:
    """The nodes before the loss of a training graph."""
    end = next(i for i, n in enumerate(graph.nodes) if isinstance(n.op, Loss))
    return graph.nodes[:end]


def loss_of(graph: Graph, values: Values) -> tuple[str, float, F64]:
    """The tensor the loss reads, the loss (nats, or mean squared real units), and its gradient."""
    node = next(n for n in graph.nodes if isinstance(n.op, Loss))
    name, truth = node.inputs
    x = dequantised(graph.type(name), values[name])
    if isinstance(node.op, SoftmaxCrossEntropy):
        shifted = x - x.max()
        p = np.exp(shifted) / np.exp(shifted).sum()
        label = int(values[truth])
        g = p.copy()
        g.ravel()[label] -= 1
        return name, float(np.log(np.exp(shifted).sum()) - shifted.ravel()[label]), g
    difference = x - dequantised(graph.type(name), values[truth]).reshape(x.shape)
    return name, float((difference**2).mean()), 2 * difference / difference.size


def gradients(graph: Graph, values: Values, seeds: Mapping[str, F64]) -> dict[str, F64]:
    """Gradients of the real value of every tensor that a trained tensor reaches, from those of `seeds`.

    Args:
        graph: a training graph; only its forward nodes are read.
        values: every tensor's integers, parameters as they were before the step.
        seeds: gradients by tensor name. The seed of a head's accumulators passes no clamp.
    """
    nodes = forward_nodes(graph)
    reached = {t.name for t in graph.of_role(Role.PARAM)}
    for node in nodes:
        if reached.intersection(node.inputs):
            reached.update(node.outputs)
    g: dict[str, F64] = defaultdict(lambda: np.zeros(()))
    for name, seed in seeds.items():
        g[name] = g[name] + seed
    for node in reversed(nodes):
        if any(o in g for o in node.outputs):
            for name, part in _pull(graph, node, values, g).items():
                if name in reached:
                    g[name] = g[name] + part
    return dict(g)


def _pull(graph: Graph, node: Node, values: Values, g: Mapping[str, F64]) -> dict[str, F64]:
    """What the errors of a node's outputs give to its inputs."""
    op, name = node.op, node.inputs[0]
    y = graph.type(node.outputs[0])
    dy = np.broadcast_to(g.get(node.outputs[0], np.zeros(())), y.shape)
    if isinstance(op, Linear):
        layer = Layer(graph, node, values)
        dy = dy * unclipped(layer.forward(), y, op.activation)
        for extra in node.outputs[1:]:  # the accumulators, before any clamp
            dy = dy + g.get(extra, 0.0)
        dw = layer.d_weights(dy)
        mine = {node.inputs[1]: dw[..., list(op.trained)] if op.trained else dw}
        return {name: layer.d_input(dy), **mine, node.inputs[-1]: layer.d_bias(dy)}
    xs = [dequantised(graph.type(n), values[n]) for n in node.inputs]
    if isinstance(op, Elementwise):
        a, b = xs
        product, sign = isinstance(op, Mul), -1 if isinstance(op, Sub) else 1
        dy = dy * unclipped(a * b if product else a + sign * b, y, op.activation)
        parts = (dy * b, dy * a) if product else (dy, sign * dy)
        result: dict[str, F64] = {}
        for n, x, part in zip(node.inputs, xs, parts, strict=True):
            result[n] = result.get(n, 0.0) + _reduced_to(part, x.shape)
        return result
    x, x_type = xs[0], graph.type(name)
    if isinstance(op, Mean):
        keep = tuple(1 if i in op.axes else d for i, d in enumerate(x.shape))
        dy = (dy * unclipped(x.mean(op.axes).reshape(y.shape), y, "NONE")).reshape(keep)
        return {name: np.broadcast_to(dy * dy.size / x.size, x.shape)}
    if isinstance(op, AveragePool2D | MaxPool2D):
        window = Window(x_type, y.shape, op.size, op)
        error = dy[0][:, :, None, None, :]
        if isinstance(op, AveragePool2D):
            share = window.inside / window.inside.sum((2, 3), keepdims=True)
            return {name: window.scatter(error * share[..., None])[None]}
        patches = window.gather(x, -np.inf)
        flat = patches.reshape(*patches.shape[:2], -1, patches.shape[-1])
        first = np.arange(flat.shape[2])[:, None] == flat.argmax(2)[:, :, None]
        return {name: window.scatter(error * first.reshape(patches.shape))[None]}
    if isinstance(op, Table):
        f, slope = _CURVES.get(op.kind, (lambda v, a: v, lambda v, a: np.ones_like(v)))
        limits = op.kind if op.kind in ("RELU", "RELU6", "RELU_N1_TO_1") else op.activation
        return {name: dy * slope(x, op.alpha) * unclipped(f(x, op.alpha), y, limits)}
    if isinstance(op, Reshape):
        return {name: dy.reshape(x.shape)}
    if isinstance(op, Pad):
        return {name: dy[tuple(slice(b, b + d) for (b, _), d in zip(op.pads, x.shape, strict=True))]}
    if isinstance(op, Concatenation):
        cuts = np.cumsum([v.shape[op.axis] for v in xs])[:-1]
        result = {}
        for n, part in zip(node.inputs, np.split(dy, cuts, op.axis), strict=True):
            result[n] = result.get(n, 0.0) + part
        return result
    raise NotImplementedError(op.title)
