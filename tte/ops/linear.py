"""CONV_2D, DEPTHWISE_CONV_2D and FULLY_CONNECTED: everything that multiplies by weights.

They share one geometry: a fully connected layer is a 1x1 convolution over its rows. Weights may be split along their
last axis into the channels that train (RAM) and those that are frozen (flash): then the inputs are
`x, trained weights, frozen weights, bias` instead of `x, weights, bias`, and `trained` lists the channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tte.errors import ModelError
from tte.fixed import I64, as_i64, quantize_multiplier, requantise, wrap32
from tte.ir import Node, Shape, TensorType
from tte.ops import conv_dsp, depthwise_dsp
from tte.ops.base import (
    Array,
    Control,
    Cotangent,
    Inferred,
    Kernel,
    Op,
    Rows,
    Tape,
    Types,
    activation_range,
    require,
)
from tte.ops.phases import mask_zeros, once


@dataclass(frozen=True)
class Geometry:
    """Sizes of a windowed product, in elements. `pad` is (top, left); taps outside the input count as zero."""

    in_h: int
    in_w: int
    in_c: int
    out_h: int
    out_w: int
    out_c: int
    k_h: int = 1
    k_w: int = 1
    stride_h: int = 1
    stride_w: int = 1
    dil_h: int = 1
    dil_w: int = 1
    pad_h: int = 0
    pad_w: int = 0
    depthwise: bool = False

    @property
    def multiplier(self) -> int:
        """Output channels per input channel of a depthwise convolution."""
        return self.out_c // self.in_c if self.depthwise else 1

    @property
    def weight_shape(self) -> Shape:
        """OHWI; depthwise 1HWO."""
        last = self.out_c if self.depthwise else self.in_c
        return (1 if self.depthwise else self.out_c, self.k_h, self.k_w, last)

    @property
    def terms(self) -> int:
        """Products summed into one output."""
        return self.k_h * self.k_w * (1 if self.depthwise else self.in_c)

    @property
    def macs(self) -> int:
        return self.out_h * self.out_w * self.out_c * self.terms

    def params(self) -> dict[str, int | str | bool]:
        """The geometry as template constants."""
        return {k: getattr(self, k) for k in self.__dataclass_fields__} | {"multiplier": self.multiplier}

    def padded(self, x: I64) -> I64:
        """`x` [H, W, C], less its zero point, with zeros around it so that every tap is inside."""
        h = (self.out_h - 1) * self.stride_h + (self.k_h - 1) * self.dil_h + 1
        w = (self.out_w - 1) * self.stride_w + (self.k_w - 1) * self.dil_w + 1
        canvas = np.zeros((max(h, self.pad_h + self.in_h), max(w, self.pad_w + self.in_w), self.in_c), np.int64)
        canvas[self.pad_h : self.pad_h + self.in_h, self.pad_w : self.pad_w + self.in_w] = x
        return canvas

    def tap(self, canvas: I64, ky: int, kx: int) -> I64:
        """The view [out_h, out_w, C] of a padded canvas that tap (ky, kx) multiplies."""
        y, x = ky * self.dil_h, kx * self.dil_w
        return canvas[
            y : y + (self.out_h - 1) * self.stride_h + 1 : self.stride_h,
            x : x + (self.out_w - 1) * self.stride_w + 1 : self.stride_w,
        ]

    def accumulate(self, x: I64, w: I64) -> I64:
        """`sum w * x` [out_h, out_w, out_c]; x [in_h, in_w, in_c] has no zero point, w has `weight_shape`."""
        canvas = self.padded(x)
        acc = np.zeros((self.out_h, self.out_w, self.out_c))
        for ky in range(self.k_h):
            for kx in range(self.k_w):
                v = self.tap(canvas, ky, kx).astype(np.float64)
                # Integer products in float64 are exact below 2**53, and the matrix product is far faster.
                if self.depthwise:
                    acc += np.repeat(v, self.multiplier, axis=2) * w[0, ky, kx]
                else:
                    acc += v @ w[:, ky, kx].T.astype(np.float64)
        return acc.astype(np.int64)


def join_channels(trained: tuple[int, ...], parts: Sequence[Array]) -> Array:
    """The whole weight tensor from its trained and frozen slices along the last axis (or the only part)."""
    if not trained:
        return parts[0]
    w_t, w_f = parts
    size = w_t.shape[-1] + w_f.shape[-1]
    whole = np.empty((*w_t.shape[:-1], size), w_t.dtype)
    whole[..., list(trained)] = w_t
    whole[..., frozen_channels(trained, size)] = w_f
    return whole


def frozen_channels(trained: tuple[int, ...], size: int) -> list[int]:
    """The channels of `size` that are not in `trained`, ascending."""
    chosen = set(trained)
    return [c for c in range(size) if c not in chosen]


def channel_table(trained: tuple[int, ...], size: int) -> Array:
    """Trained channels, then frozen ones, as uint16: the index list that carries the choice to the device."""
    return np.array([*trained, *frozen_channels(trained, size)], np.uint16)


#: Mantissa and shift of 2**-22.
SETTLED = (1 << 30, -21)


@dataclass(frozen=True)
class Linear(Op):
    """What the three weighted operators share.

    Attributes:
        activation: fused activation, by TFLite's name.
        mask: a second output, one bit an element: 1 where the value before clamping lay within the limits.
        acc: a further output, the int32 accumulators (the head's, for the loss).
        trained: channels of the last weight axis that lie in the trained slice; empty: the weights are one tensor.
        settled: output channels that cannot vary, and are requantised by `SETTLED` (`tte.passes.settle`).
    """

    activation: str = "NONE"
    mask: bool = False
    acc: bool = False
    trained: tuple[int, ...] = ()
    settled: tuple[int, ...] = ()

    #: MultiplyByQuantizedMultiplier's rounding, as measured against LiteRT.
    rounding = "double"

    def geometry(self, x: TensorType, w: TensorType) -> Geometry:
        raise NotImplementedError

    def output_shape(self, x: TensorType, w: TensorType) -> Shape:
        raise NotImplementedError

    def joined(self, ins: Sequence[TensorType]) -> TensorType:
        """The type of the whole weight tensor."""
        if not self.trained:
            return ins[1]
        size = ins[1].shape[-1] + ins[2].shape[-1]
        return replace(ins[1], shape=(*ins[1].shape[:-1], size))

    def site(self, ins: Sequence[TensorType]) -> Geometry:
        return self.geometry(ins[0], self.joined(ins))

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        require(len(ins) == (4 if self.trained else 3), f"{self.title} takes x, weights, bias, got {len(ins)} inputs")
        w, b = self.joined(ins), ins[-1]
        require(ins[0].dtype == "int8" and w.dtype == "int8", f"int8 input and weights, got {ins[0].dtype}, {w.dtype}")
        require(b.dtype == "int32" and b.elements == self.site(ins).out_c, f"one int32 bias a channel, got {b}")
        shape = self.output_shape(ins[0], w)
        extra = [(shape, "bit")] * self.mask + [(shape, "int32")] * self.acc
        return ((shape, "int8"), *extra)

    def multipliers(self, t: Types) -> tuple[Array, Array]:
        """Output multipliers, int32 mantissas and shifts [out_c]. Source: TFLite's Prepare of each operator."""
        sx, sy, scales = t.ins[0].scale, t.outs[0].scale, weight_scales(t.ins[1], self.site(t.ins).out_c)
        pairs = [quantize_multiplier(self.real_multiplier(sx, s, sy, t.ins[1])) for s in scales]
        for channel in self.settled:
            pairs[channel] = SETTLED
        return np.array([m for m, _ in pairs], np.int32), np.array([s for _, s in pairs], np.int8)

    def real_multiplier(self, sx: float, sw: float, sy: float, w: TensorType) -> float:
        return sx * sw / sy

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        geometry = self.site(t.ins)
        w = join_channels(self.trained, xs[1:-1]).reshape(geometry.weight_shape)
        x = as_i64(xs[0]).reshape(geometry.in_h, geometry.in_w, geometry.in_c) - t.ins[0].zero_point
        acc = wrap32(geometry.accumulate(x, as_i64(w)) + as_i64(xs[-1]))
        v = requantise(acc, *self.multipliers(t), self.rounding) + t.outs[0].zero_point
        low, high = activation_range(self.activation, t.outs[0])
        shape = t.outs[0].shape
        outs: list[Array] = [np.clip(v, low, high).astype(np.int8).reshape(shape)]
        if self.mask:
            outs.append(((v >= low) & (v <= high)).reshape(shape))
        if self.acc:
            outs.append(acc.astype(np.int32).reshape(shape))
        return tuple(outs)

    def gradient(self, tape: Tape, node: Node, g: Cotangent) -> None:
        from tte.ops.linear_grad import InputGrad

        g = tape.masked(node, g)
        weights = node.inputs[1:-1]
        x, w = tape.type(node.inputs[0]), tape.type(weights[0])
        geometry = self.site(tuple(tape.type(n) for n in node.inputs))
        if tape.wants(node.inputs[0]):
            # dX comes first: it must read the weights before their own update (numerics, B3).
            scale = tape.type(g.e).scale * max(weight_scales(w, geometry.out_c))
            gx = tape.error(node, x.shape, scale)
            tape.emit(node, "dX", InputGrad(geometry, x.shape, self.trained), (g.e, g.k, *weights), (gx.e, gx.k))
            tape.send(node.inputs[0], gx)
        tape.update(node, g)

    def macs(self, t: Types) -> int:
        return self.site(t.ins).macs

    def rows(self, t: Types) -> Rows | None:
        g = self.site(t.ins)
        if len(t.ins[0].shape) != 4:
            return None
        return Rows(g.stride_h, -g.pad_h, (g.k_h - 1) * g.dil_h - g.pad_h, whole=True)

    def optional_outputs(self) -> tuple[int, ...]:
        return tuple(range(1, 1 + self.mask + self.acc))

    def without(self, output: int) -> Linear:
        return replace(self, mask=False) if self.mask and output == 1 else replace(self, acc=False)

    def kernel(self, t: Types) -> Kernel:
        geometry = self.site(t.ins)
        low, high = activation_range(self.activation, t.outs[0])
        mantissas, shifts = self.multipliers(t)
        last = geometry.weight_shape[-1]
        params = geometry.params() | {
            "x_zero": t.ins[0].zero_point,
            "y_zero": t.outs[0].zero_point,
            "y_min": low,
            "y_max": high,
            "rounding": self.rounding,
            "mask": self.mask,
            "acc": self.acc,
            "trained": len(self.trained),
            "rows": False,
        }
        tables = [("multiplier", mantissas), ("shift", shifts)]
        if self.trained:
            tables.append(("channel", channel_table(self.trained, last)))
        g, taps, pixels = geometry, geometry.k_h * geometry.k_w, geometry.out_h * geometry.out_w
        clear = mask_zeros(t.outs[0].elements, self.mask)
        if g.depthwise:
            phases = once(pixels, 40 + g.out_c * (75 + 11 * taps), clear)
            return Kernel("depthwise_conv2d", params, tuple(tables), phases=phases)
        channel = 60 + 10 * taps + 5.5 * g.terms
        phases = once(pixels, 60 + g.out_c * channel, clear)
        if pixels == 1:
            phases = once(g.out_c, channel + 30 * taps + g.terms, clear)
        return Kernel("conv2d", params, tuple(tables), phases=phases)

    def fast_kernels(self, t: Types) -> tuple[Kernel, ...]:
        return self._fast(t, None)

    def fast_row_kernels(self, t: Types, x_ring: int, y_ring: int) -> tuple[Kernel, ...]:
        return self._fast(t, (x_ring, y_ring))

    def _fast(self, t: Types, rings: tuple[int, int] | None) -> tuple[Kernel, ...]:
        geometry, portable = self.site(t.ins), self.kernel(t)
        if geometry.depthwise:
            return depthwise_dsp.kernels(geometry, portable.params, portable.tables, self.trained, rings)
        return conv_dsp.kernels(geometry, portable.params, portable.tables, rings)


def weight_scales(w: TensorType, channels: int) -> tuple[float, ...]:
    """One scale per output channel, whether the weights are quantised per tensor or per channel."""
    if w.quant is None:
        raise ModelError("weights without quantisation parameters")
    scales = w.quant.scale
    if len(scales) == 1:
        return scales * channels
    require(len(scales) == channels, f"{len(scales)} weight scales for {channels} output channels")
    return scales


#: Far above any network's; keeps every index within int32, and damaged files from asking for terabytes.
_STEP_LIMIT = 4096


@dataclass(frozen=True)
class Window:
    """Stride, dilation and explicit padding (top, bottom, left, right) of a sliding window."""

    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)

    def out(self, size: tuple[int, int], kernel: tuple[int, int]) -> tuple[int, int]:
        """Output height and width.

        Raises:
            ModelError: the window does not fit into the padded input, or its steps are beyond reason.
        """
        largest = max(*self.stride, *self.dilation, *self.pad)
        require(largest <= _STEP_LIMIT, f"strides, dilations and padding of at most {_STEP_LIMIT}, got {largest}")
        result = []
        for axis in (0, 1):
            total = size[axis] + self.pad[2 * axis] + self.pad[2 * axis + 1]
            reach = (kernel[axis] - 1) * self.dilation[axis] + 1
            require(total >= reach, f"a window of {reach} does not fit into {total}")
            result.append((total - reach) // self.stride[axis] + 1)
        return result[0], result[1]

    def geometry(self, x: TensorType, w: TensorType, out_c: int) -> Geometry:
        """The geometry of this window over x [1, H, W, C] with weights [., kh, kw, .]."""
        h, width = self.out((x.shape[1], x.shape[2]), (w.shape[1], w.shape[2]))
        (_, in_h, in_w, in_c), (_, k_h, k_w, _) = x.shape, w.shape
        return Geometry(
            in_h, in_w, in_c, h, width, out_c, k_h, k_w, *self.stride, *self.dilation, self.pad[0], self.pad[2]
        )


@dataclass(frozen=True)
class Conv2D(Linear):
    """CONV_2D: x [1, H, W, I], w [O, kh, kw, I], b [O] -> y [1, H', W', O]."""

    title = "CONV_2D"
    window: Window = Window()

    def geometry(self, x: TensorType, w: TensorType) -> Geometry:
        require(len(x.shape) == 4 and x.shape[0] == 1, f"batch 1, rank 4 input, got {x}")
        require(len(w.shape) == 4 and w.shape[3] == x.shape[3], f"weights {w.shape} do not fit input {x.shape}")
        return self.window.geometry(x, w, w.shape[0])

    def output_shape(self, x: TensorType, w: TensorType) -> Shape:
        g = self.geometry(x, w)
        return (1, g.out_h, g.out_w, g.out_c)


@dataclass(frozen=True)
class DepthwiseConv2D(Conv2D):
    """DEPTHWISE_CONV_2D: x [1, H, W, C], w [1, kh, kw, C * m], b [C * m] -> y [1, H', W', C * m]."""

    title = "DEPTHWISE_CONV_2D"

    def geometry(self, x: TensorType, w: TensorType) -> Geometry:
        require(len(x.shape) == 4 and x.shape[0] == 1, f"batch 1, rank 4 input, got {x}")
        fits = len(w.shape) == 4 and w.shape[0] == 1 and w.shape[3] > 0 and w.shape[3] % x.shape[3] == 0
        require(fits, f"weights {w.shape} do not fit input {x.shape}")
        return replace(self.window.geometry(x, w, w.shape[3]), depthwise=True)


@dataclass(frozen=True)
class FullyConnected(Linear):
    """FULLY_CONNECTED: x [..., K], w [O, K], b [O] -> y [rows, O] (or x's leading dimensions kept)."""

    title = "FULLY_CONNECTED"
    rounding = "single"
    keep_dims: bool = False

    def geometry(self, x: TensorType, w: TensorType) -> Geometry:
        require(len(w.shape) == 2 and w.shape[1] > 0, f"weights of rank 2, got {w.shape}")
        out_c, in_c = w.shape
        require(x.elements % in_c == 0, f"{x.elements} inputs are no multiple of {in_c} weights a row")
        rows = x.elements // in_c
        return Geometry(rows, 1, in_c, rows, 1, out_c)

    def output_shape(self, x: TensorType, w: TensorType) -> Shape:
        if self.keep_dims:
            require(x.shape[-1] == w.shape[1], f"input {x.shape} does not end in {w.shape[1]}")
            return (*x.shape[:-1], w.shape[0])
        return (x.elements // w.shape[1], w.shape[0])

    def real_multiplier(self, sx: float, sw: float, sy: float, w: TensorType) -> float:
        if w.quant is not None and len(w.quant.scale) == 1:
            # TFLite's GetQuantizedConvolutionMultipler forms this product in float32.
            return float(np.float32(np.float32(sx) * np.float32(sw))) / sy
        return sx * sw / sy
