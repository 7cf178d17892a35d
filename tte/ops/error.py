"""Operators on error tensors: masks, and the sum where a tensor feeds several readers.

An error tensor is int8 with a run-time exponent (see `tte.ops.base.Cotangent`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tte.fixed import I64, as_i64, quantize_multiplier16, round_shift, to_int8
from tte.ir import TensorType
from tte.ops.base import Array, Control, Inferred, Kernel, Op, Types, require
from tte.ops.phases import chunk, chunks, once, twice

#: Exponents further apart than this contribute nothing to a sum of 16-bit values.
_MERGE_REACH = 20


@dataclass(frozen=True)
class ApplyMask(Op):
    """`e, bits -> e` where the bit is set, 0 elsewhere (numerics B2)."""

    title = "APPLY_MASK"
    inplace = ((0, 0),)

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        require(ins[1].dtype == "bit" and ins[0].elements == ins[1].elements, f"mask {ins[1]} does not fit {ins[0]}")
        return ((ins[0].shape, "int8"),)

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        return (np.where(xs[1].reshape(xs[0].shape), xs[0], 0).astype(np.int8),)

    def kernel(self, t: Types) -> Kernel:
        n = t.ins[0].elements
        phases = once(chunks(n), 40 + 2.75 * chunk(n))
        return Kernel("apply_mask", {"elements": n}, instructions=20 + 11 * n // 4, phases=phases)

    def fast_kernels(self, t: Types) -> tuple[Kernel, ...]:
        n = t.ins[0].elements
        shape = ("shape", np.array([n], np.int32))
        work = 20 + 11 * n // 8 + 11 * (n % 32)
        phases = once(chunks(n), 30 + 1.4 * chunk(n) + 12 * (n % 32))
        return (Kernel("dsp/apply_mask", {}, (shape,), needs="dsp", instructions=work, phases=phases),)


@dataclass(frozen=True)
class Merge(Op):
    """The sum of two errors of one tensor: `ea, ka, eb, kb -> e, k` with ea's compile-time factor (numerics B7)."""

    title = "MERGE"
    inplace = ((0, 0), (0, 2))

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        require(ins[0].shape == ins[2].shape, f"errors {ins[0]} and {ins[2]} have different shapes")
        return ((ins[0].shape, "int8"), ((), "int32"))

    def ratio(self, t: Types) -> tuple[int, int]:
        """`C_b / C_a` as mantissa and exponent."""
        return quantize_multiplier16(t.ins[2].scale / t.ins[0].scale)

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        m, exponent = self.ratio(t)
        ka, kb = int(xs[1]), int(xs[3]) - exponent
        k = min(ka, kb)
        a = _align(as_i64(xs[0]) << 8, ka - k)
        b = _align((as_i64(xs[2]) * m + 64) >> 7, kb - k)
        e, s = to_int8(a + b)
        return e.astype(np.int8), np.array(k + 8 - s, np.int32)

    def kernel(self, t: Types) -> Kernel:
        m, exponent = self.ratio(t)
        n = t.ins[0].elements
        phases = twice(chunks(n), 60 + 13.5 * chunk(n), 80 + 20 * chunk(n))
        params: dict[str, int | str | bool] = {"elements": n, "ratio_m": m, "ratio_t": exponent}
        return Kernel("merge", params, instructions=150 + 25 * n, phases=phases)


def _align(v: I64, distance: int) -> I64:
    return np.zeros_like(v) if distance > _MERGE_REACH else round_shift(v, distance)
