"""AVERAGE_POOL_2D, MAX_POOL_2D and MEAN.

Source of the formulas: TFLite's reference integer_ops/pooling.h and reduce.h (QuantizedMeanOrSum); rounding as measured
(tests/test_ops.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tte.fixed import I64, INT32_MAX, as_i64, bit_length, quantize_multiplier, requantise
from tte.ir import Node, Shape, TensorType
from tte.ops.base import Array, Control, Cotangent, Inferred, Kernel, Op, Rows, Tape, Types, require
from tte.ops.broadcast import loops
from tte.ops.linear import Geometry, Window
from tte.ops.phases import Phase, chunk, loop_chunks, once, zeros


@dataclass(frozen=True)
class Pool(Op):
    """`x [1, H, W, C] -> y [1, H', W', C]` over a sliding window; taps outside the input do not count.

    Attributes:
        size: window height and width.
        window: stride and explicit padding; no dilation.
    """

    size: tuple[int, int] = (1, 1)
    window: Window = Window()
    #: Instructions of a tap of a window (see `tte.ops.phases.Phase`).
    per_tap: ClassVar[float] = 7.5

    def geometry(self, x: TensorType) -> Geometry:
        """The window as a depthwise geometry.

        Raises:
            ModelError: the window does not fit, or lies in the padding altogether.
        """
        require(x.dtype == "int8" and len(x.shape) == 4 and x.shape[0] == 1, f"int8, batch 1, rank 4 input, got {x}")
        pad, size = self.window.pad, self.size
        require(
            max(pad[:2]) < size[0] and max(pad[2:]) < size[1], f"padding {pad} is no smaller than the window {size}"
        )
        h, w = self.window.out((x.shape[1], x.shape[2]), size)
        (in_h, in_w, c), (k_h, k_w), (s_h, s_w) = x.shape[1:], size, self.window.stride
        return Geometry(in_h, in_w, c, h, w, c, k_h, k_w, s_h, s_w, 1, 1, pad[0], pad[2], depthwise=True)

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        require(len(ins) == 1, f"{self.title} takes one input, got {len(ins)}")
        g = self.geometry(ins[0])
        return (((1, g.out_h, g.out_w, g.out_c), "int8"),)

    def constraint(self, t: Types) -> str:
        return alike(self.title, t)

    def kernel(self, t: Types) -> Kernel:
        g = self.geometry(t.ins[0])
        instructions = t.outs[0].elements * (12 + 7 * g.k_h * g.k_w)  # measured: 5 to 10 a tap
        params = window_params(g) | {"rows": False}
        phases = once(g.out_h * g.out_w, 85 + g.in_c * (16 + self.per_tap * g.k_h * g.k_w))
        return Kernel(self.title.lower().removesuffix("_2d"), params, instructions=instructions, phases=phases)

    def rows(self, t: Types) -> Rows | None:
        g = self.geometry(t.ins[0])
        return Rows(g.stride_h, -g.pad_h, g.k_h - 1 - g.pad_h, whole=True)


def alike(title: str, t: Types) -> str:
    """Why inputs and output are not quantised alike; empty where they are (TFLite allows 1e-6 between the scales)."""
    y = t.outs[0]
    for x in t.ins:
        if abs(x.scale - y.scale) > 1e-6 or x.zero_point != y.zero_point:
            return f"{title} does not requantise: input and output must have the same scale and zero point"
    return ""


def window_params(g: Geometry) -> dict[str, int | str | bool]:
    """The geometry of a pool as template constants."""
    names = ("in_h", "in_w", "out_h", "out_w", "k_h", "k_w", "stride_h", "stride_w", "pad_h", "pad_w")
    return {n: getattr(g, n) for n in names} | {"channels": g.in_c}


def valid_taps(g: Geometry) -> I64:
    """How many taps of each window lie inside the input, [out_h, out_w]."""
    sides = []
    for out, size, k, stride, pad in (
        (g.out_h, g.in_h, g.k_h, g.stride_h, g.pad_h),
        (g.out_w, g.in_w, g.k_w, g.stride_w, g.pad_w),
    ):
        start = np.arange(out) * stride - pad
        sides.append(np.minimum(start + k, size) - np.maximum(start, 0))
    return np.outer(*sides)


def overlap(g: Geometry) -> int:
    """The largest number of windows that share an element."""
    return math.ceil(g.k_h / g.stride_h) * math.ceil(g.k_w / g.stride_w)


@dataclass(frozen=True)
class AveragePool2D(Pool):
    """AVERAGE_POOL_2D: the mean over the valid taps, half away from zero."""

    title = "AVERAGE_POOL_2D"

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        g = self.geometry(t.ins[0])
        canvas = g.padded(as_i64(xs[0])[0])
        acc = np.zeros((g.out_h, g.out_w, g.in_c), np.int64)
        for ky in range(g.k_h):
            for kx in range(g.k_w):
                acc += g.tap(canvas, ky, kx)
        n = valid_taps(g)[..., None]
        y = np.sign(acc) * ((np.abs(acc) + n // 2) // n)
        return (y[None].astype(np.int8),)

    def gradient(self, tape: Tape, node: Node, g: Cotangent) -> None:
        from tte.ops.pool_grad import AveragePoolGrad

        x = node.inputs[0]
        if tape.wants(x):
            geometry = self.geometry(tape.type(x))
            gx = tape.error(node, tape.type(x).shape, tape.type(g.e).scale / int(valid_taps(geometry).min()))
            tape.emit(node, "dX", AveragePoolGrad(geometry), (g.e, g.k), (gx.e, gx.k))
            tape.send(x, gx)


@dataclass(frozen=True)
class MaxPool2D(Pool):
    """MAX_POOL_2D: the largest valid tap."""

    title = "MAX_POOL_2D"
    per_tap = 9.5

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        g = self.geometry(t.ins[0])
        # Padded elements must never win.
        canvas = g.padded(as_i64(xs[0])[0] + 128) - 128
        y = np.full((g.out_h, g.out_w, g.in_c), -128, np.int64)
        for ky in range(g.k_h):
            for kx in range(g.k_w):
                y = np.maximum(y, g.tap(canvas, ky, kx))
        return (y[None].astype(np.int8),)

    def gradient(self, tape: Tape, node: Node, g: Cotangent) -> None:
        from tte.ops.pool_grad import MaxPoolGrad

        x = node.inputs[0]
        if not tape.wants(x):
            return
        op = MaxPoolGrad(self.geometry(tape.type(x)))
        if op.sums:
            gx = tape.error(node, tape.type(x).shape, tape.type(g.e).scale)
            tape.emit(node, "dX", op, (x, g.e, g.k), (gx.e, gx.k))
        else:
            gx = tape.alike(node, tape.type(x).shape, g)
            tape.emit(node, "dX", op, (x, g.e), (gx.e,))
        tape.send(x, gx)


@dataclass(frozen=True)
class Mean(Op):
    """MEAN: `x -> y, [mask]` over `axes` (ascending, not negative).

    Attributes:
        mask: a second output, one bit an element: 1 where the value before clamping lay within int8.
    """

    title = "MEAN"
    axes: tuple[int, ...] = ()
    keep_dims: bool = False
    mask: bool = False

    def kept(self, x: Shape) -> Shape:
        """The output's shape with the reduced axes kept as 1."""
        return tuple(1 if i in self.axes else d for i, d in enumerate(x))

    def terms(self, x: Shape) -> int:
        return math.prod(x[a] for a in self.axes)

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        require(len(ins) == 1 and ins[0].dtype == "int8", f"{self.title} takes one int8 input")
        x = ins[0].shape
        require(all(0 <= a < len(x) for a in self.axes), f"axes {self.axes} of a tensor of rank {len(x)}")
        require(self.terms(x) * 255 <= INT32_MAX, f"the sum of {self.terms(x)} values can pass int32")
        loops(x, [self.kept(x)])
        shape = self.kept(x) if self.keep_dims else tuple(d for i, d in enumerate(x) if i not in self.axes)
        return ((shape, "int8"), *([(shape, "bit")] * self.mask))

    def multiplier(self, t: Types) -> tuple[int, int]:
        """Mantissa and shift of `sx / (sy * N)`: N is divided out of the mantissa after raising it."""
        m, s = quantize_multiplier(t.ins[0].scale / t.outs[0].scale)
        n = self.terms(t.ins[0].shape)
        raised = min(bit_length(n) - 1, 32, 31 + s)
        return (m << raised) // n, s - raised

    def constraint(self, t: Types) -> str:
        if t.ins[0].scale / t.outs[0].scale >= 2**21:
            return f"the output scale {t.outs[0].scale:.3g} is too small for the input's"
        return ""

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        acc = as_i64(xs[0]).sum(self.axes) - self.terms(t.ins[0].shape) * t.ins[0].zero_point
        v = (requantise(acc, *self.multiplier(t)) + t.outs[0].zero_point).reshape(t.outs[0].shape)
        y: Array = np.clip(v, -128, 127).astype(np.int8)
        return (y, (v >= -128) & (v <= 127)) if self.mask else (y,)

    def optional_outputs(self) -> tuple[int, ...]:
        return (1,) if self.mask else ()

    def without(self, output: int) -> Mean:
        return replace(self, mask=False)

    def kernel(self, t: Types) -> Kernel:
        x, outputs = t.ins[0].shape, t.outs[0].elements
        m, s = self.multiplier(t)
        walk = loops(x, [self.kept(x)])
        params = walk.params(("y",)) | {
            "y_elements": outputs,
            "offset": -self.terms(x) * t.ins[0].zero_point,
            "y_m": m,
            "y_s": s,
            "y_zero": t.outs[0].zero_point,
            "mask": self.mask,
            "mask_bytes": (outputs + 7) // 8,
        }
        add, finish = 7 * t.ins[0].elements, 30 * outputs
        pieces = loop_chunks(walk.dims)
        phases = Phase(pieces, 60 + 7 * chunk(walk.dims[3]), pieces, zeros(4 * outputs)), Phase(1, 20 + 36 * outputs)
        return Kernel("mean", params, workspace=4 * outputs, instructions=add + finish, phases=phases)

    def gradient(self, tape: Tape, node: Node, g: Cotangent) -> None:
        from tte.ops.pool_grad import MeanGrad

        g = tape.masked(node, g)
        x = node.inputs[0]
        if tape.wants(x):
            shape = tape.type(x).shape
            gx = tape.error(node, shape, tape.type(g.e).scale / self.terms(shape))
            tape.emit(node, "dX", MeanGrad(shape, self.kept(shape)), (g.e, g.k), (gx.e, gx.k))
            tape.send(x, gx)
