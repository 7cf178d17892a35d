"""Losses: softmax cross-entropy on the head's accumulators, and mean squared error on an int8 output.

Each gives the error of its input, the error's exponent, and the loss as an integer with a stated unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tte.fixed import INT32_MAX, as_i64, log2_q8, quantize_multiplier, requantise, to_int8
from tte.ir import TensorType
from tte.ops.base import Array, Control, Inferred, Kernel, Op, Types, require

#: floor(2**(15 - i/256) + 1/2): powers of two in steps of 1/256, Q15.
POWERS = np.floor(2.0 ** (15 - np.arange(256) / 256) + 0.5).astype(np.uint16)


@dataclass(frozen=True)
class Loss(Op):
    """`prediction, truth -> e, k, loss`."""

    #: The real value of one unit of the loss output, as text for the generated header.
    unit: ClassVar[str] = ""

    def error_scale(self, x: TensorType) -> float:
        """The compile-time factor C of the error this loss gives for a prediction of type x."""
        raise NotImplementedError

    def loss_scale(self, x: TensorType) -> float:
        """What one unit of the loss output is worth (nats, or squared real units)."""
        raise NotImplementedError


@dataclass(frozen=True)
class SoftmaxCrossEntropy(Loss):
    """Cross-entropy of softmax(x) against a class label, in integers (numerics B1).

    x is int32 [.., N] with a scale per class (the head's accumulators) or int8 with one scale; label is int32.
    Probabilities are Q15 powers of two; the largest error is 8e-4 for 2 classes, 4e-3 for 1,000.
    """

    title = "SOFTMAX_CROSS_ENTROPY"
    unit = "1/256 bit"

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        require(ins[0].dtype in ("int32", "int8"), f"logits must be int32 or int8, got {ins[0]}")
        require(ins[0].elements == ins[0].shape[-1] and ins[0].elements <= 1 << 15, f"one row of logits, got {ins[0]}")
        return ((ins[0].shape, "int8"), ((), "int32"), ((), "int32"))

    def error_scale(self, x: TensorType) -> float:
        return 1.0

    def loss_scale(self, x: TensorType) -> float:
        return math.log(2) / 256

    def multipliers(self, x: TensorType) -> tuple[Array, Array]:
        """Logit units to Q8 of log2."""
        assert x.quant is not None
        scales = x.quant.scale * (x.elements // len(x.quant.scale))
        pairs = [quantize_multiplier(s * math.log2(math.e) * 256) for s in scales]
        return np.array([m for m, _ in pairs], np.int32), np.array([s for _, s in pairs], np.int8)

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        x = as_i64(xs[0]).ravel()
        if t.ins[0].dtype == "int8":
            x = x - t.ins[0].zero_point
        m, shift = self.multipliers(t.ins[0])
        limit = INT32_MAX >> np.maximum(as_i64(shift), 0)  # a logit too large for its left shift saturates
        logit = requantise(np.clip(x, -limit, limit), m, shift)
        distance = logit.max() - logit
        octave = distance >> 8
        p = np.where(octave > 15, 0, as_i64(POWERS)[distance & 255] >> np.minimum(octave, 63))
        total = int(p.sum())
        g = ((p << 15) + (total >> 1)) // total
        label = int(xs[1])
        g[label] -= 1 << 15
        e, s = to_int8(g)
        loss = min(int(distance[label]) + log2_q8(total) - 15 * 256, INT32_MAX)
        return e.astype(np.int8).reshape(t.outs[0].shape), _scalar(15 - s), _scalar(loss)

    def kernel(self, t: Types) -> Kernel:
        m, shift = self.multipliers(t.ins[0])
        x = t.ins[0]
        zero = x.zero_point if x.dtype == "int8" else 0
        params: dict[str, int | str | bool] = {"classes": x.elements, "x_type": f"{x.dtype}_t", "x_zero": zero}
        tables = (("multiplier", m), ("shift", shift), ("powers", POWERS))
        return Kernel("softmax_cross_entropy", params, tables, workspace=4 * x.elements)


@dataclass(frozen=True)
class MeanSquaredError(Loss):
    """`mean((y - target)**2)` over an int8 output, target in the output's own quantisation."""

    title = "MEAN_SQUARED_ERROR"
    unit = "squared output steps, summed"

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        require(ins[0].dtype == ins[1].dtype == "int8", f"int8 output and target, got {ins[0]}, {ins[1]}")
        require(ins[0].elements == ins[1].elements <= 32768, f"target {ins[1]} does not fit output {ins[0]}")
        return ((ins[0].shape, "int8"), ((), "int32"), ((), "int32"))

    def error_scale(self, x: TensorType) -> float:
        return 2 * x.scale / x.elements

    def loss_scale(self, x: TensorType) -> float:
        return x.scale**2 / x.elements

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        g = as_i64(xs[0]).ravel() - as_i64(xs[1]).ravel()
        e, s = to_int8(g)
        return e.astype(np.int8).reshape(t.outs[0].shape), _scalar(-s), _scalar(int((g * g).sum()))

    def kernel(self, t: Types) -> Kernel:
        return Kernel("mean_squared_error", {"elements": t.ins[0].elements})


def _scalar(v: int) -> Array:
    return np.array(v, np.int32)
