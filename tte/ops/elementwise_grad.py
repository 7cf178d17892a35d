"""Gradients of ADD, SUB and MUL: int8 error tensors with a run-time exponent (`dL/dx = C * 2**-k * e`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tte.fixed import INT32_MAX, as_i64, to_int8
from tte.ir import Shape, TensorType
from tte.ops.base import Array, Control, Inferred, Kernel, Op, Types, require
from tte.ops.broadcast import broadcast_shape, loops, reduced_axes
from tte.ops.phases import Phase, chunk, chunks, loop_chunks, once, twice, zeros


@dataclass(frozen=True)
class Negate(Op):
    """`e -> -e`, for the subtrahend; the exponent is shared."""

    title = "NEGATE"
    inplace = ((0, 0),)
    shape: Shape = ()

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        return ((self.shape, "int8"),)

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        return ((-as_i64(xs[0])).astype(np.int8).reshape(self.shape),)

    def kernel(self, t: Types) -> Kernel:
        n = t.outs[0].elements
        return Kernel("negate", {"elements": n}, phases=once(chunks(n), 10 + 5 * chunk(n)))


@dataclass(frozen=True)
class BroadcastGrad(Op):
    """`e [y], k, [other] -> e_x, k_x`: `e` (times `other` less its zero point), summed where x was repeated.

    `acc = sign * sum e * (other - z)`; then block-floating requantisation, `k_x = k - s`. The factor C of e_x is e's
    (times other's scale).

    Attributes:
        shape: of x.
        product: the third input is there (MUL).
        sign: -1 for the subtrahend of SUB.
    """

    title = "BROADCAST_GRAD"
    # Only where the element counts agree, that is where nothing is summed.
    inplace = ((0, 0),)
    shape: Shape = ()
    product: bool = False
    sign: int = 1

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        full = ins[0].shape
        require(len(ins) == 2 + self.product, f"{self.title} takes e, k and MUL's other factor, got {len(ins)} inputs")
        require(broadcast_shape([self.shape, full]) == full, f"{self.shape} does not broadcast to {full}")
        terms = ins[0].elements // TensorType(self.shape, "int8").elements
        largest = terms * 127 * (255 if self.product else 1)
        require(largest <= INT32_MAX, f"the sum of {terms} products can pass int32")
        return ((self.shape, "int8"), ((), "int32"))

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        acc = self.sign * as_i64(xs[0])
        if self.product:
            acc = acc * (as_i64(xs[2]) - t.ins[2].zero_point)
        acc = acc.sum(reduced_axes(self.shape, acc.shape)).reshape(self.shape)
        e, s = to_int8(acc)
        return e.astype(np.int8), np.asarray(int(xs[1]) - s, np.int32)

    def macs(self, t: Types) -> int:
        return t.ins[0].elements * (1 if self._sums(t) else 2) * self.product

    def _sums(self, t: Types) -> bool:
        return t.outs[0].elements != t.ins[0].elements

    def kernel(self, t: Types) -> Kernel:
        names, shapes = ["x"], [self.shape]
        if self.product:
            names, shapes = ["x", "o"], [self.shape, t.ins[2].shape]
        walk, results, sums = loops(t.ins[0].shape, shapes), t.outs[0].elements, self._sums(t)
        params = walk.params(names) | {
            "product": self.product,
            "sign": self.sign,
            "o_zero": t.ins[2].zero_point if self.product else 0,
            "sums": sums,
            "x_elements": results,
        }
        pieces = loop_chunks(walk.dims)
        width = chunk(walk.dims[3])
        phases = twice(pieces, 30 + 18 * width, 40 + 19 * width)
        if sums:
            phases = Phase(pieces, 50 + 8 * width, pieces, zeros(4 * results)), Phase(1, 30 + 22.5 * results)
        return Kernel("broadcast_grad", params, workspace=4 * results if sums else 0, phases=phases)
