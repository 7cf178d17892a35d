"""SOFTMAX over the last axis, in gemmlowp's fixed-point arithmetic.

Source: TFLite reference/softmax.h and gemmlowp fixedpoint.h (exp_on_negative_values, one_over_one_plus_x_for_x_in_0_1).
Formats: scaled differences Q5.26, exponentials Q0.31, their sum Q12.19.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tte.fixed import I64, INT32_MAX, INT32_MIN, as_i64, quantize_multiplier, rounding_divide_by_pot, srdhm
from tte.ir import TensorType
from tte.ops.base import Array, Control, Inferred, Kernel, Op, Types, require
from tte.ops.phases import once

_INTEGER_BITS = 5
_SUM_BITS = 12
#: (exponent of two, exp(-2**exponent) in Q0.31): the factors by which the exponential is put together.
_FACTORS = (
    (-2, 1672461947),
    (-1, 1302514674),
    (0, 790015084),
    (1, 290630308),
    (2, 39332535),
    (3, 720401),
    (4, 242),
)


def exp_negative(a: I64) -> I64:
    """exp of Q5.26 values <= 0, in Q0.31."""
    fraction = 31 - _INTEGER_BITS
    quarter = 1 << (fraction - 2)
    low = (a & (quarter - 1)) - quarter
    # Fourth-order Taylor polynomial around -1/8 on [-1/4, 0).
    x = (low << _INTEGER_BITS) + (1 << 28)
    x2 = srdhm(x, x)
    x3, x4 = srdhm(x2, x), srdhm(x2, x2)
    tail = rounding_divide_by_pot(srdhm(rounding_divide_by_pot(x4, 2) + x3, 715827883) + x2, 1)
    y = 1895147668 + srdhm(1895147668, x + tail)
    rest = low - a
    for exponent, factor in _FACTORS:
        y = np.where(rest & (1 << (fraction + exponent)), srdhm(y, factor), y)
    return np.where(a == 0, INT32_MAX, y)


def reciprocal(total: int) -> tuple[int, int]:
    """1 / total for a sum in Q12.19: mantissa in Q0.31 and the shift that goes with it."""
    headroom = 32 - total.bit_length()
    v = (total << headroom) - (1 << 31)
    one = v + INT32_MAX
    half = (abs(one) + 1) // 2 * (1 if one >= 0 else -1)
    x = 1515870810 + int(srdhm(half, -1010580540))
    for _ in range(3):  # Newton
        error = (1 << 29) - int(srdhm(half, x))
        x += min(max(int(srdhm(x, error)) << 2, INT32_MIN), INT32_MAX)
    return min(max(x << 1, INT32_MIN), INT32_MAX), _SUM_BITS - headroom


@dataclass(frozen=True)
class Softmax(Op):
    """SOFTMAX: `x -> y`, y of scale 1/256 and zero point -128."""

    title = "SOFTMAX"
    not_differentiable = "SOFTMAX has a gradient only as the last operator, where the loss replaces it"
    inplace = ((0, 0),)
    beta: float = 1.0

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        require(len(ins) == 1 and ins[0].dtype == "int8", f"{self.title} takes one int8 input")
        require(len(ins[0].shape) >= 1 and ins[0].shape[-1] > 0, f"at least one class, got {ins[0]}")
        require(ins[0].shape[-1] < 1 << _SUM_BITS, f"at most {(1 << _SUM_BITS) - 1} classes, got {ins[0].shape[-1]}")
        return ((ins[0].shape, "int8"),)

    def scaling(self, x: TensorType) -> tuple[int, int, int]:
        """Mantissa and shift of beta * scale in Q5.26, and the lowest difference that counts."""
        real = min(self.beta * x.scale * 2.0 ** (31 - _INTEGER_BITS), 2.0**31 - 1)
        m, s = quantize_multiplier(real)
        return m, s, -math.floor(31 * 2.0 ** (31 - _INTEGER_BITS) / 2.0**s)

    def constraint(self, t: Types) -> str:
        if t.outs[0].zero_point != -128 or abs(t.outs[0].scale - 1 / 256) > 1e-6:
            return "the output of SOFTMAX must have scale 1/256 and zero point -128"
        if self.beta * t.ins[0].scale * 2.0 ** (31 - _INTEGER_BITS) <= 1:
            return f"beta {self.beta:.3g} times the input's scale {t.ins[0].scale:.3g} is too small"
        return ""

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        m, s, lowest = self.scaling(t.ins[0])
        x = as_i64(xs[0])
        d = x - x.max(axis=-1, keepdims=True)
        counts = d >= lowest
        e = np.where(counts, exp_negative(srdhm(np.maximum(d, lowest) << s, m)), 0)
        total = rounding_divide_by_pot(e, _SUM_BITS).sum(axis=-1)
        y = np.full(x.shape, -128, np.int64)
        for row in np.ndindex(total.shape):
            scale, shift = reciprocal(int(total[row]))
            p = rounding_divide_by_pot(srdhm(scale, e[row]), shift + 31 - 8)
            y[row] = np.where(counts[row], np.clip(p - 128, -128, 127), -128)
        return (y.astype(np.int8),)

    def kernel(self, t: Types) -> Kernel:
        m, s, lowest = self.scaling(t.ins[0])
        classes = t.ins[0].shape[-1]
        rows = t.ins[0].elements // classes
        params = {"rows": rows, "classes": classes, "x_m": m, "x_s": s, "lowest": lowest}
        return Kernel("softmax", params, phases=once(1, rows * (300 + 310 * classes)))
