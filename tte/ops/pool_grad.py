"""Gradients of the pools and of MEAN: int8 error tensors with a run-time exponent (`dL/dx = C * 2**-k * e`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tte.fixed import I64, INT32_MAX, as_i64, to_int8
from tte.ir import Shape, TensorType
from tte.ops.base import Array, Control, Inferred, Kernel, Op, Types, require
from tte.ops.broadcast import loops
from tte.ops.linear import Geometry
from tte.ops.phases import chunk, loop_chunks, once, twice, zeros
from tte.ops.pool import overlap, valid_taps, window_params


@dataclass(frozen=True)
class PoolGrad(Op):
    """What both pool gradients share: the forward geometry."""

    geometry: Geometry = Geometry(1, 1, 1, 1, 1, 1)

    @property
    def x_shape(self) -> Shape:
        g = self.geometry
        return (1, g.in_h, g.in_w, g.in_c)

    def fits(self, e: TensorType) -> None:
        """Raises ModelError unless `e` has as many elements as the pool's output."""
        g = self.geometry
        require(e.elements == g.out_h * g.out_w * g.out_c, f"error {e} does not fit {g}")

    def scattered(self, parts: Sequence[tuple[int, int, I64]]) -> I64:
        """The sum [in_h, in_w, C] of values [out_h, out_w, C], each sent back to its tap (ky, kx)."""
        g = self.geometry
        canvas = g.padded(np.zeros((g.in_h, g.in_w, g.in_c), np.int64))
        for ky, kx, part in parts:
            view = g.tap(canvas, ky, kx)
            view += part
        return canvas[g.pad_h : g.pad_h + g.in_h, g.pad_w : g.pad_w + g.in_w]


@dataclass(frozen=True)
class AveragePoolGrad(PoolGrad):
    """`e [y], k -> e_x [x], k_x`: every window's error to each of its n valid taps, divided by n.

    The factor C of e_x is e's over the smallest n; `acc = sum e * R[n]`, `R[n] = round(2**f * smallest / n)`; then
    block-floating requantisation, `k_x = k + f - s`.
    """

    title = "AVERAGE_POOL_GRAD"

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        self.fits(ins[0])
        require(127 * overlap(self.geometry) <= INT32_MAX, "the sum over overlapping windows can pass int32")
        return ((self.x_shape, "int8"), ((), "int32"))

    def prescale(self) -> tuple[I64, int]:
        """R for n = 0 .. kh * kw (0 for an n that does not occur), and f."""
        g = self.geometry
        counts = np.unique(valid_taps(g))
        f = 0 if len(counts) == 1 else min(14, int(math.log2(INT32_MAX / (127 * overlap(g)))))
        table = np.zeros(g.k_h * g.k_w + 1, np.int64)
        table[counts] = np.rint(2.0**f * counts.min() / counts)
        return table, f

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        g = self.geometry
        table, f = self.prescale()
        scaled = as_i64(xs[0]).reshape(g.out_h, g.out_w, g.out_c) * table[valid_taps(g)][..., None]
        acc = self.scattered([(ky, kx, scaled) for ky in range(g.k_h) for kx in range(g.k_w)])
        e, s = to_int8(acc)
        return e.astype(np.int8).reshape(self.x_shape), np.asarray(int(xs[1]) + f - s, np.int32)

    def kernel(self, t: Types) -> Kernel:
        table, f = self.prescale()
        params = window_params(self.geometry) | {"f": f, "uneven": f > 0}
        terms = overlap(self.geometry)
        instructions = t.outs[0].elements * (20 + (40 if f else 8) * terms)
        tables = (("prescale", table.astype(np.int16)),) if f else ()
        g = self.geometry
        windows = min(math.ceil(g.k_h / g.stride_h), g.out_h) * min(math.ceil(g.k_w / g.stride_w), g.out_w)
        largest = 100 + g.in_c * (18 + (24 if f else 8) * windows)
        phases = twice(g.in_h * g.in_w, largest, largest + 10 + 4 * g.in_c)
        return Kernel("average_pool_grad", params, tables, instructions=instructions, phases=phases)


@dataclass(frozen=True)
class MaxPoolGrad(PoolGrad):
    """`x, e [y] -> e_x [x]`: every window's error to its first largest element, found again from x.

    Where windows overlap, the inputs are `x, e, k` and the outputs `e_x, k_x`: the sums are requantised,
    `k_x = k - s`. Where they do not, nothing is summed and the exponent is shared.
    """

    title = "MAX_POOL_GRAD"

    @property
    def sums(self) -> bool:
        return overlap(self.geometry) > 1

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        require(len(ins) == 2 + self.sums, f"{self.title} takes x, e and, where windows overlap, k")
        self.fits(ins[1])
        require(127 * overlap(self.geometry) <= INT32_MAX, "the sum over overlapping windows can pass int32")
        out = (self.x_shape, "int8")
        return (out, ((), "int32")) if self.sums else (out,)

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        g = self.geometry
        canvas = g.padded(as_i64(xs[0])[0] + 129)  # 0, the padding, is below every element
        taps = [(ky, kx) for ky in range(g.k_h) for kx in range(g.k_w)]
        first = np.argmax([g.tap(canvas, ky, kx) for ky, kx in taps], axis=0)
        e = as_i64(xs[1]).reshape(g.out_h, g.out_w, g.out_c)
        acc = self.scattered([(ky, kx, np.where(first == i, e, 0)) for i, (ky, kx) in enumerate(taps)])
        if not self.sums:
            return (acc.astype(np.int8).reshape(self.x_shape),)
        e_x, s = to_int8(acc)
        return e_x.astype(np.int8).reshape(self.x_shape), np.asarray(int(xs[2]) - s, np.int32)

    def kernel(self, t: Types) -> Kernel:
        g = self.geometry
        # With overlap the sums of one channel at a time are held, and made twice: for the maximum, for the result.
        workspace = 4 * g.in_h * g.in_w if self.sums else 0
        outputs, taps, inputs = g.out_h * g.out_w, g.k_h * g.k_w, g.in_h * g.in_w
        if self.sums:
            phases = once(2 * g.in_c, 300 + outputs * (20 + 13 * taps) + 13 * inputs)
        else:
            phases = once(g.in_c, 60 + outputs * (45 + 15 * taps), zeros(inputs * g.in_c))
        return Kernel("max_pool_grad", window_params(g) | {"sums": self.sums}, workspace=workspace, phases=phases)


@dataclass(frozen=True)
class MeanGrad(Op):
    """`e, k -> e_x, k_x`: e repeated along the reduced axes; the factor C of e_x is e's over the number of terms.

    Attributes:
        shape: of x.
        kept: e's shape with the reduced axes kept as 1.
    """

    title = "MEAN_GRAD"
    shape: Shape = ()
    kept: Shape = ()

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        require(ins[0].elements == math.prod(self.kept), f"error {ins[0]} does not fit {self.kept}")
        loops(self.shape, [self.kept])
        return ((self.shape, "int8"), ((), "int32"))

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        e = np.broadcast_to(np.reshape(xs[0], self.kept), self.shape).astype(np.int8)
        return e, np.asarray(int(xs[1]), np.int32)

    def kernel(self, t: Types) -> Kernel:
        walk = loops(self.shape, [self.kept])
        return Kernel("mean_grad", walk.params(("e",)), phases=once(loop_chunks(walk.dims), 30 + 5 * chunk(walk.dims[3])))
