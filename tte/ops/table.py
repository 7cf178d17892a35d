"""Operators of one int8 input that become a table of 256 entries: activations, requantisation, clamps.

The table is computed at compile time by the exact formula of TFLite's reference kernel, so the device runs one kernel
for all of them. The gradient is another table: the derivative of the real function, 0 where the output was clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tte.fixed import I64, as_i64, quantize_multiplier, requantise, rounding_divide_by_pot, to_int8
from tte.ir import Node, TensorType
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
    same_rows,
)
from tte.ops.phases import chunk, chunks, once, twice

F64 = NDArray[np.float64]
#: Bits of the fraction in a derivative table; 127 * 2**14 fits int32 with room.
DERIVATIVE_BITS = 14
_INPUTS = np.arange(-128, 128)
#: Output scale and zero point that TFLite prescribes.
_FIXED_OUTPUTS = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}


@dataclass(frozen=True)
class Table(Op):
    """`x int8 -> y int8`, element by element, by a table.

    Attributes:
        kind: TFLite's operator name, or "CLAMP" (a fused activation on its own, same quantisation on both sides).
        activation: CLAMP's activation, by TFLite's name.
        alpha: LEAKY_RELU's slope below zero.
    """

    inplace = ((0, 0),)
    kind: str = "QUANTIZE"
    activation: str = "NONE"
    alpha: float = 0.0

    @property
    def title(self) -> str:  # type: ignore[override]
        return self.kind

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        require(len(ins) == 1 and ins[0].dtype == "int8", f"{self.kind} takes one int8 input")
        return ((ins[0].shape, "int8"),)

    def limits(self, t: Types) -> tuple[int, int]:
        """Smallest and largest output."""
        if self.kind in ("RELU", "RELU6", "RELU_N1_TO_1"):
            return activation_range(self.kind, t.outs[0])
        return activation_range(self.activation, t.outs[0])

    def unclamped(self, t: Types) -> I64:
        """Outputs for -128..127 before clamping."""
        return _VALUES[self.kind](self, t.ins[0], t.outs[0])

    def values(self, t: Types) -> Array:
        """The table, int8 [256], indexed by x + 128."""
        return np.clip(self.unclamped(t), *self.limits(t)).astype(np.int8)

    def derivative(self, t: Types) -> F64:
        """dy/dx of the real function for -128..127, 0 where the output is clipped."""
        v, (low, high) = self.unclamped(t), self.limits(t)
        real = (_INPUTS - t.ins[0].zero_point).astype(np.float64) * t.ins[0].scale
        slope = _DERIVATIVES.get(self.kind, _one)(self, real)
        return np.where((v >= low) & (v <= high), slope, 0.0)

    def constraint(self, t: Types) -> str:
        if t.ins[0].scale / t.outs[0].scale >= 2**22:
            return f"the output scale {t.outs[0].scale:.3g} is too small for the input's"
        scale, zero = _FIXED_OUTPUTS.get(self.kind, (t.outs[0].scale, t.outs[0].zero_point))
        if (t.outs[0].scale, t.outs[0].zero_point) != (scale, zero):
            return f"the output of {self.kind} must have scale {scale} and zero point {zero}"
        if self.kind == "CLAMP" and t.ins[0].quant != t.outs[0].quant:
            return "input and output of a clamp must be quantised alike"
        if self.kind == "HARD_SWISH" and _hard_swish_multipliers(t.ins[0], t.outs[0])[1] > 0:
            return f"the output scale {t.outs[0].scale:.3g} is too small for the input's"
        return ""

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        return (self.values(t)[as_i64(xs[0]) + 128],)

    def gradient(self, tape: Tape, node: Node, g: Cotangent) -> None:
        x = node.inputs[0]
        if not tape.wants(x):
            return
        slope = self.derivative(Types((tape.type(x),), (tape.type(node.outputs[0]),)))
        steep = float(np.abs(slope).max())
        if set(np.unique(slope)) <= {0.0, 1.0}:
            gx = tape.alike(node, tape.type(x).shape, g)
            tape.emit(node, "dX", TableMask(tuple(int(v) for v in slope)), (x, g.e), (gx.e,))
        else:
            gx = tape.error(node, tape.type(x).shape, tape.type(g.e).scale * steep)
            slopes = tuple(int(v) for v in np.rint(slope / steep * 2**DERIVATIVE_BITS))
            tape.emit(node, "dX", TableGrad(slopes), (x, g.e, g.k), (gx.e, gx.k))
        tape.send(x, gx)

    def rows(self, t: Types) -> Rows | None:
        return same_rows(t)

    def kernel(self, t: Types) -> Kernel:
        n = t.ins[0].elements
        return Kernel("table", {"elements": n}, (("table", self.values(t)),), phases=once(chunks(n), 10 + 6.5 * chunk(n)))


@dataclass(frozen=True)
class TableMask(Op):
    """`x, e -> e_x`: e where the table's output was not clipped, 0 elsewhere; the exponent is shared.

    Attributes:
        passes: 1 or 0 for x = -128..127.
    """

    title = "TABLE_MASK"
    inplace = ((0, 0), (0, 1))
    passes: tuple[int, ...] = ()

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        require(ins[0].elements == ins[1].elements, f"error {ins[1]} does not fit {ins[0]}")
        return ((ins[0].shape, "int8"),)

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        keep = np.array(self.passes)[as_i64(xs[0]) + 128]
        return ((as_i64(xs[1]).reshape(keep.shape) * keep).astype(np.int8),)

    def kernel(self, t: Types) -> Kernel:
        packed = np.packbits(np.array(self.passes, np.uint8), bitorder="little")
        n = t.ins[0].elements
        return Kernel("table_mask", {"elements": n}, (("passes", packed),), phases=once(chunks(n), 10 + 13 * chunk(n)))


@dataclass(frozen=True)
class TableGrad(Op):
    """`x, e, k -> e_x, k_x`: `acc = e * D[x]`, then block-floating requantisation, `k_x = k + 14 - s`.

    Attributes:
        slopes: D for x = -128..127, the derivative over its largest magnitude, Q14. That magnitude is in C.
    """

    title = "TABLE_GRAD"
    inplace = ((0, 0), (0, 1))
    slopes: tuple[int, ...] = ()

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        require(ins[0].elements == ins[1].elements, f"error {ins[1]} does not fit {ins[0]}")
        return ((ins[0].shape, "int8"), ((), "int32"))

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        slope = np.array(self.slopes, np.int64)[as_i64(xs[0]) + 128]
        e, s = to_int8(as_i64(xs[1]).reshape(slope.shape) * slope)
        return e.astype(np.int8), np.asarray(int(xs[2]) + DERIVATIVE_BITS - s, np.int32)

    def kernel(self, t: Types) -> Kernel:
        n = t.ins[0].elements
        tables = (("slope", np.array(self.slopes, np.int16)),)
        phases = twice(chunks(n), 20 + 18 * chunk(n), 40 + 22 * chunk(n))
        return Kernel("table_grad", {"elements": n, "f": DERIVATIVE_BITS}, tables, phases=phases)


# ---- values: the reference kernels' formulas. Sources: activations.cc, hard_swish.h, leaky_relu.h, requantize.h.


def _float_ratio(x: TensorType, y: TensorType) -> float:
    return float(np.float32(x.scale) / np.float32(y.scale))


def _relu(op: Table, x: TensorType, y: TensorType) -> I64:
    return requantise(_INPUTS - x.zero_point, *quantize_multiplier(_float_ratio(x, y))) + y.zero_point


def _quantize(op: Table, x: TensorType, y: TensorType) -> I64:
    return requantise(_INPUTS - x.zero_point, *quantize_multiplier(x.scale / y.scale)) + y.zero_point


def _leaky_relu(op: Table, x: TensorType, y: TensorType) -> I64:
    v = as_i64(_INPUTS - x.zero_point)
    alpha = float(np.float32(x.scale) * np.float32(op.alpha) / np.float32(y.scale))
    above = requantise(v, *quantize_multiplier(_float_ratio(x, y)))
    below = requantise(v, *quantize_multiplier(alpha))
    return np.where(v >= 0, above, below) + y.zero_point


def _clamp(op: Table, x: TensorType, y: TensorType) -> I64:
    return as_i64(_INPUTS)


def _through_float(function: Callable[[Array], Array]) -> Callable[[Table, TensorType, TensorType], I64]:
    """Dequantise, apply in float32, quantise rounding half away from zero (PopulateLookupTable)."""

    def values(op: Table, x: TensorType, y: TensorType) -> I64:
        real = np.float32(x.scale) * (_INPUTS - x.zero_point).astype(np.float32)
        with np.errstate(over="ignore"):
            scaled = function(real) * (np.float32(1) / np.float32(y.scale))
        scaled = np.clip(scaled.astype(np.float64), -1e9, 1e9)
        rounded = np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)
        return as_i64(rounded) + y.zero_point

    return values


def _sigmoid(v: Array) -> Array:
    one = np.float32(1)
    return one / (one + np.exp(-v))


def _high_mul16(a: I64, b: int, rounding: bool) -> I64:
    """`a * b / 2**15` on int16, division towards zero, with or without rounding half away from zero."""
    ab = a * b
    if rounding:
        ab = ab + np.where(ab >= 0, 1 << 14, 1 - (1 << 14))
    return np.minimum(np.where(ab >= 0, ab >> 15, -((-ab) >> 15)), 32767)


def _hard_swish_multipliers(x: TensorType, y: TensorType) -> tuple[int, int, int, int]:
    """int16 mantissa and shift to the output scale, and to the scale 3 / 2**15 of the clipped factor."""
    fine = np.float32(1.0 / 128.0) * np.float32(x.scale)
    to_y = quantize_multiplier(float(fine / np.float32(y.scale)))
    to_relu = quantize_multiplier(float(fine / np.float32(3.0 / 32768.0)))
    half = [min((m + (1 << 15)) >> 16, 32767) for m, _ in (to_y, to_relu)]
    return half[0], to_y[1], half[1], to_relu[1]


def _hard_swish(op: Table, x: TensorType, y: TensorType) -> I64:
    m_y, s_y, m_relu, s_relu = _hard_swish_multipliers(x, y)
    fine = as_i64(_INPUTS - x.zero_point) << 7
    scaled = _high_mul16(fine, m_y, rounding=True)
    relu = fine
    if s_relu > 0:
        relu = np.clip(relu << min(s_relu - 1, 30), -32768, 32767)
    relu = _high_mul16(relu, m_relu, rounding=True)
    if s_relu > 0:
        relu = np.clip(relu << 1, -32768, 32767)
    elif s_relu < 0:
        relu = rounding_divide_by_pot(relu, -s_relu)
    relu = (relu + (1 << 15)) >> 1
    product = relu * scaled
    product = np.where(product >= 0, product >> 15, -((-product) >> 15))
    return rounding_divide_by_pot(product, max(-s_y, 0)) + y.zero_point


_VALUES: dict[str, Callable[[Table, TensorType, TensorType], I64]] = {
    "RELU": _relu,
    "RELU6": _relu,
    "RELU_N1_TO_1": _relu,
    "LEAKY_RELU": _leaky_relu,
    "HARD_SWISH": _hard_swish,
    "LOGISTIC": _through_float(_sigmoid),
    "TANH": _through_float(np.tanh),
    "QUANTIZE": _quantize,
    "CLAMP": _clamp,
}
#: TFLite operators that are tables (CLAMP is this project's own).
TABLE_OPERATORS = tuple(k for k in _VALUES if k != "CLAMP")


def _one(op: Table, x: F64) -> F64:
    return np.ones_like(x)


def _d_sigmoid(op: Table, x: F64) -> F64:
    return np.asarray(0.25 / np.cosh(np.clip(x / 2, -300, 300)) ** 2)


def _d_tanh(op: Table, x: F64) -> F64:
    return np.asarray(1 / np.cosh(np.clip(x, -300, 300)) ** 2)


def _d_hard_swish(op: Table, x: F64) -> F64:
    return np.where(x <= -3, 0.0, np.where(x >= 3, 1.0, (2 * x + 3) / 6))


def _d_leaky_relu(op: Table, x: F64) -> F64:
    return np.where(x >= 0, 1.0, op.alpha)


_DERIVATIVES: dict[str, Callable[[Table, F64], F64]] = {
    "LEAKY_RELU": _d_leaky_relu,
    "HARD_SWISH": _d_hard_swish,
    "LOGISTIC": _d_sigmoid,
    "TANH": _d_tanh,
}
