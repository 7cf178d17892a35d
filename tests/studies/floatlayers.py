"""Layers with weights as float layers that learn: no rounding of weights, activations or errors.

Forward and backward are written by hand on NumPy, for speed on one sample at a time. A value is [n, *shape of its tensor],
n being the samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from tte.ir import Graph, Node
from tte.ops.linear import Geometry, weight_scales
from tte.training.scheme import LayerUpdate

Real = NDArray[np.floating[Any]]


# ---- windows


class Windows:
    """How a convolution or a pool walks its input."""

    def __init__(self, g: Geometry) -> None:
        self.g = g

    def gather(self, x: Real, fill: float = 0.0) -> Real:
        """x [n, h, w, c] as patches [n, out h, out w, kh, kw, c], a view; `fill` outside."""
        g = self.g
        h = max(g.pad_h + g.in_h, (g.out_h - 1) * g.stride_h + (g.k_h - 1) * g.dil_h + 1)
        w = max(g.pad_w + g.in_w, (g.out_w - 1) * g.stride_w + (g.k_w - 1) * g.dil_w + 1)
        canvas = (
            np.full((len(x), h, w, x.shape[-1]), fill, x.dtype)
            if fill
            else np.zeros((len(x), h, w, x.shape[-1]), x.dtype)
        )
        canvas[:, g.pad_h : g.pad_h + g.in_h, g.pad_w : g.pad_w + g.in_w] = x
        n, sy, sx, c = canvas.strides
        shape = (len(x), g.out_h, g.out_w, g.k_h, g.k_w, x.shape[-1])
        return as_strided(canvas, shape, (n, sy * g.stride_h, sx * g.stride_w, sy * g.dil_h, sx * g.dil_w, c))

    def scatter(self, patches: Real) -> Real:
        """The transpose of `gather`: patches [n, out h, out w, kh, kw, c] summed into [n, h, w, c]."""
        g = self.g
        h = max(g.pad_h + g.in_h, (g.out_h - 1) * g.stride_h + (g.k_h - 1) * g.dil_h + 1)
        w = max(g.pad_w + g.in_w, (g.out_w - 1) * g.stride_w + (g.k_w - 1) * g.dil_w + 1)
        canvas = np.zeros((len(patches), h, w, patches.shape[-1]), patches.dtype)
        for ky in range(g.k_h):
            rows = slice(ky * g.dil_h, ky * g.dil_h + (g.out_h - 1) * g.stride_h + 1, g.stride_h)
            for kx in range(g.k_w):
                columns = slice(kx * g.dil_w, kx * g.dil_w + (g.out_w - 1) * g.stride_w + 1, g.stride_w)
                canvas[:, rows, columns] += patches[:, :, :, ky, kx]
        return canvas[:, g.pad_h : g.pad_h + g.in_h, g.pad_w : g.pad_w + g.in_w]

    def spread(self, e: Real) -> Real:
        """e [n, out h, out w, c] as [n, h, w, kh, kw, c], a view: what each tap, last tap first, carries to each input."""
        g = self.g
        lengths = (g.in_h + (g.k_h - 1) * g.dil_h, g.in_w + (g.k_w - 1) * g.dil_w)
        canvas = np.zeros((len(e), *lengths, e.shape[-1]), e.dtype)
        y, rows = _placed(lengths[0], g.out_h, g.stride_h, (g.k_h - 1) * g.dil_h - g.pad_h)
        x, columns = _placed(lengths[1], g.out_w, g.stride_w, (g.k_w - 1) * g.dil_w - g.pad_w)
        canvas[:, y, x] = e[:, rows, columns]
        n, sy, sx, c = canvas.strides
        shape = (len(e), g.in_h, g.in_w, g.k_h, g.k_w, e.shape[-1])
        return as_strided(canvas, shape, (n, sy, sx, sy * g.dil_h, sx * g.dil_w, c))


def _placed(length: int, count: int, stride: int, start: int) -> tuple[slice, slice]:
    """Of `count` items at start, start + stride, ...: the places within `length`, and which items those are."""
    first = max(0, -(start // stride))
    last = min(count, (length - 1 - start) // stride + 1)
    return slice(first * stride + start, (last - 1) * stride + start + 1, stride), slice(first, last)


# ---- parts


class Part:
    """One operator; remembers its last forward pass for the backward pass."""

    low, high = -math.inf, math.inf

    def forward(self, xs: Sequence[Real]) -> Real:
        """The output."""
        self.xs = xs
        self.raw = self.y = self.value(xs)
        if self.low > -math.inf or self.high < math.inf:
            self.y = np.maximum(self.raw, self.low)
            np.minimum(self.y, self.high, out=self.y)
        return self.y

    def backward(self, g: Real, wanted: Sequence[bool]) -> list[Real]:
        """Gradients of the inputs; anything where none is wanted."""
        return self.pull(g if self.y is self.raw else g * (self.raw == self.y), wanted)

    def value(self, xs: Sequence[Real]) -> Real:
        """The output before clamping."""
        raise NotImplementedError

    def pull(self, g: Real, wanted: Sequence[bool]) -> list[Real]:
        """The gradients of the inputs for that of the value before clamping."""
        raise NotImplementedError


class Weighted(Part):
    """Base of the layers with weights.

    Attributes:
        w, b: real weights in the order that is fast to compute with, and real biases.
        dw, db: gradients of the last backward pass, of what trains.
    """

    def __init__(self, graph: Graph, node: Node, update: LayerUpdate, dtype: Any) -> None:
        self.update, self.g = update, node.op.site(graph.types(node.inputs))
        self.windows, self.y_shape = Windows(self.g), graph.type(node.outputs[0]).shape
        self.x_shape = graph.type(node.inputs[0]).shape
        w = graph.type(node.inputs[1])
        self.w_shape, scales = w.shape, np.array(weight_scales(w, self.g.out_c))
        data = graph.data(node.inputs[1]).reshape(self.g.weight_shape)
        self.start = self.ordered(data * (scales if self.g.depthwise else scales.reshape(-1, 1, 1, 1))).astype(dtype)
        # A bias step is the product of the scales of input and weights: numerics A2.
        self.start_b = (graph.data(node.inputs[-1]).ravel() * scales * graph.type(node.inputs[0]).scale).astype(dtype)
        self.reset()

    def reset(self) -> None:
        """The initial weights and biases."""
        self.w, self.b = self.start.copy(), self.start_b.copy()

    def learn(self, rate: float) -> None:
        """Plain SGD on what trains."""
        if self.update.weights:
            self.w[self.chosen] -= self.dw * self.w.dtype.type(rate)
        if self.update.bias:
            self.b -= self.db * self.b.dtype.type(rate)

    #: Index of the weights that train.
    chosen: Any

    def ordered(self, w: Real) -> Real:
        """Weights in the geometry's order (OHWI or 1HWO), as `w` has them."""
        raise NotImplementedError

    def weights(self) -> Real:
        """The weights as the model orders them."""
        raise NotImplementedError

    def _image(self, x: Real) -> Real:
        return x.reshape(len(x), self.g.in_h, self.g.in_w, self.g.in_c)


class Convolution(Weighted):
    """CONV_2D and FULLY_CONNECTED, as one matrix product; w is [kh * kw * in, out]; `turned` its transpose while frozen."""

    def __init__(self, graph: Graph, node: Node, update: LayerUpdate, dtype: Any) -> None:
        super().__init__(graph, node, update, dtype)
        g = self.g
        self.pointwise = (g.k_h, g.k_w, g.stride_h, g.stride_w, g.pad_h, g.pad_w) == (1, 1, 1, 1, 0, 0)
        self.pointwise &= (g.in_h, g.in_w) == (g.out_h, g.out_w)
        taps = np.arange(g.k_h * g.k_w)[:, None] * g.in_c
        self.chosen = (taps + np.array(update.channels)).ravel() if update.channels else slice(None)
        # A product with a transpose that lies in memory as such takes half the time.
        self.turned = np.ascontiguousarray(self.start.T)

    def ordered(self, w: Real) -> Real:
        return np.ascontiguousarray(w.transpose(1, 2, 3, 0).reshape(-1, self.g.out_c))

    def weights(self) -> Real:
        g = self.g
        return self.w.reshape(g.k_h, g.k_w, g.in_c, g.out_c).transpose(3, 0, 1, 2).reshape(self.w_shape)

    def value(self, xs: Sequence[Real]) -> Real:
        x = xs[0]
        self.rows = (
            x.reshape(-1, self.g.in_c)
            if self.pointwise
            else self.windows.gather(self._image(x)).reshape(-1, len(self.w))
        )
        y: Real = self.rows @ self.w
        y += self.b
        return y.reshape(len(x), *self.y_shape)

    def pull(self, g: Real, wanted: Sequence[bool]) -> list[Real]:
        e = g.reshape(-1, self.g.out_c)
        if self.update.weights:
            self.dw = self.rows[:, self.chosen].T @ e
        if self.update.bias:
            self.db = e.sum(0)
        if not wanted[0]:
            return [g]
        back: Real = e @ (self.w.T if self.update.weights else self.turned)
        if not self.pointwise:
            back = self.windows.scatter(
                back.reshape(len(g), self.g.out_h, self.g.out_w, self.g.k_h, self.g.k_w, self.g.in_c)
            )
        return [back.reshape(len(g), *self.x_shape)]


class Depthwise(Weighted):
    """DEPTHWISE_CONV_2D; w is [kh, kw, out]."""

    def __init__(self, graph: Graph, node: Node, update: LayerUpdate, dtype: Any) -> None:
        super().__init__(graph, node, update, dtype)
        self.chosen = (slice(None), slice(None), np.array(update.channels) if update.channels else slice(None))

    def ordered(self, w: Real) -> Real:
        return np.ascontiguousarray(w[0])

    def weights(self) -> Real:
        return self.w.reshape(self.w_shape)

    def value(self, xs: Sequence[Real]) -> Real:
        image = self._image(xs[0])
        if self.g.multiplier > 1:
            image = np.repeat(image, self.g.multiplier, 3)
        self.patches = self.windows.gather(image)
        y: Real = np.einsum("nhwyxc,yxc->nhwc", self.patches, self.w)
        y += self.b
        return y.reshape(len(image), *self.y_shape)

    def pull(self, g: Real, wanted: Sequence[bool]) -> list[Real]:
        e = g.reshape(len(g), self.g.out_h, self.g.out_w, self.g.out_c)
        if self.update.weights:
            which = self.chosen[-1]
            self.dw = np.einsum("nhwyxc,nhwc->yxc", self.patches[..., which], e[..., which])
        if self.update.bias:
            self.db = e.sum((0, 1, 2))
        if not wanted[0]:
            return [g]
        back: Real = np.einsum("nhwyxc,yxc->nhwc", self.windows.spread(e), self.w[::-1, ::-1])
        if self.g.multiplier > 1:
            back = back.reshape(*back.shape[:3], self.g.in_c, self.g.multiplier).sum(-1)
        return [back.reshape(len(g), *self.x_shape)]
