"""Backward and update operators of the weighted layers: dX, dW with its in-place update, and the bias update.

The arithmetic is the numerics' B4 (dX), B5 (dW) and B6 (update). Weights are int8 in RAM with no float copy; what
rounding would lose is kept by stochastic rounding and, in the residual modes, by a residual a weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tte.fixed import (
    I64,
    INT32_MAX,
    as_i64,
    quantize_multiplier16,
    random16,
    random_key,
    round_shift,
    to_int8,
)
from tte.ir import Shape, TensorType
from tte.ops import conv_dsp, depthwise_dsp
from tte.ops.base import Array, Control, Inferred, Kernel, Op, Types, require
from tte.ops.linear import Geometry, channel_table, join_channels, weight_scales
from tte.ops.phases import PER_PIECE, Phases, once, parts, twice

#: Residual modes: bits of residual a weight.
MODES = {"sr": 0, "r4": 4, "r8": 8, "nearest": 0}
_BATCH_LIMIT = 1 << 30
#: Products that an int32 sum holds whatever their values: error times weight (dX), error times input (dW).
_MAX_TERMS, _MAX_POSITIONS = INT32_MAX // (127 * 127), INT32_MAX // (127 * 255)
_WEIGHT_STREAM, _BIAS_STREAM = 1, 2


@dataclass(frozen=True)
class InputGrad(Op):
    """dX of a weighted layer: `e [y], k, weights -> e_x [x], k_x`, with exact block-floating requantisation.

    Attributes:
        x_shape: shape of the layer's input.
        trained: as in the forward operator; the weights are then two inputs.
        buffered: keep all int32 accumulators (4 bytes an element) instead of computing them twice, once for the
            maximum and once for the result. The bytes that come out are the same.
    """

    title = "INPUT_GRAD"
    geometry: Geometry
    x_shape: Shape
    trained: tuple[int, ...] = ()
    buffered: bool = False

    @property
    def x_elements(self) -> int:
        g = self.geometry
        return g.in_h * g.in_w * g.in_c

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        g = self.geometry
        require(ins[0].elements == g.out_h * g.out_w * g.out_c, f"error {ins[0]} does not fit {g}")
        require(self.terms <= _MAX_TERMS, f"dX sums {self.terms} products an element; at most {_MAX_TERMS} fit int32")
        return ((self.x_shape, "int8"), ((), "int32"))

    @property
    def terms(self) -> int:
        """Products summed into one element of dX, at most."""
        g = self.geometry
        return g.k_h * g.k_w * (g.multiplier if g.depthwise else g.out_c)

    def prescale(self, t: Types) -> tuple[I64, int]:
        """`R_c = round(2**f * sw[c] / max sw)` and f, chosen so that no int32 accumulator can overflow."""
        g, terms = self.geometry, self.terms
        scales = np.array(weight_scales(t.ins[2], g.out_c))
        f = min(8, math.floor(math.log2((2**31 - 1) / (127 * 127 * terms))))
        return np.rint(scales / scales.max() * 2.0**f).astype(np.int64), f

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        g = self.geometry
        r, f = self.prescale(t)
        w = as_i64(join_channels(self.trained, xs[2:])).reshape(g.weight_shape)
        e = as_i64(xs[0]).reshape(g.out_h, g.out_w, g.out_c) * r
        canvas = g.padded(np.zeros((g.in_h, g.in_w, g.in_c), np.int64))
        for ky in range(g.k_h):
            for kx in range(g.k_w):
                if g.depthwise:
                    part = (e * w[0, ky, kx]).reshape(g.out_h, g.out_w, g.in_c, g.multiplier).sum(3)
                else:
                    part = (e.astype(np.float64) @ w[:, ky, kx].astype(np.float64)).astype(np.int64)
                view = g.tap(canvas, ky, kx)
                view += part
        acc = canvas[g.pad_h : g.pad_h + g.in_h, g.pad_w : g.pad_w + g.in_w]
        e_x, s = to_int8(acc)
        return e_x.astype(np.int8).reshape(t.outs[0].shape), np.array(int(xs[1]) + f - s, np.int32)

    def macs(self, t: Types) -> int:
        return self.geometry.macs * (1 if self.buffered else 2)

    def kernel(self, t: Types) -> Kernel:
        g = self.geometry
        r, f = self.prescale(t)
        params = g.params() | {"f": f, "trained": len(self.trained), "buffered": self.buffered}
        tables = [("prescale", r.astype(np.int16))]
        if self.trained:
            tables.append(("channel", channel_table(self.trained, g.weight_shape[-1])))
        workspace = 4 * (self.x_elements if self.buffered else g.in_c)
        template = "depthwise_input_grad" if g.depthwise else "conv2d_input_grad"
        return Kernel(template, params, tuple(tables), workspace, phases=self.phases())

    def phases(self) -> Phases:
        """The portable kernels' pieces: of each pass, every pixel."""
        g = self.geometry
        taps = g.k_h * g.k_w
        met = math.ceil(g.k_h / g.stride_h) * math.ceil(g.k_w / g.stride_w)  # taps that meet an error, at most
        if g.depthwise:
            cost = 30 + 17 * g.in_c + 11 * taps + met * g.out_c * (18 if self.trained else 14.5)
        else:
            cost = 120 + 20 * g.in_c + 12 * taps + met * g.out_c * (10 + (7.5 if self.trained else 6.7) * g.in_c)
        return twice(g.in_h * g.in_w, cost, 75 + 16 * g.in_c if self.buffered else cost + 10 + 8 * g.in_c)

    def fast_kernels(self, t: Types) -> tuple[Kernel, ...]:
        g = self.geometry
        r, f = self.prescale(t)
        if g.depthwise:
            return depthwise_dsp.input_grad_kernels(g, self.trained, self.buffered, f, self.kernel(t).tables)
        return conv_dsp.input_grad_kernels(g, len(self.trained), self.buffered, f, r, self.kernel(t).tables[1:])


@dataclass(frozen=True)
class Update(Op):
    """What the two update operators share.

    Attributes:
        stream: ordinal of the forward layer; names its random numbers.
        rate: base learning rate, folded into the tables.
        mode: "r4" (4-bit residual, stochastic), "r8" (8-bit residual, no random numbers), "sr", or "nearest".
        batch: samples whose steps are summed (int32, saturating) before they are applied; 1: online.
    """

    stream: int
    rate: float
    mode: str
    batch: int = 1

    def step_table(self, factors: Sequence[float]) -> tuple[Array, Array]:
        """Mantissas in [2**14, 2**15) (0 for a zero factor), int16, and exponents of `rate * factor`, int8 where they fit."""
        pairs = [quantize_multiplier16(self.rate * f) for f in factors]
        exponents = np.array([t for _, t in pairs], np.int16)
        small = exponents.astype(np.int8)
        return np.array([m for m, _ in pairs], np.int16), small if (small == exponents).all() else exponents

    def due(self, control: Control) -> bool:
        """Whether this step ends a batch; the counter has 32 bits, as on the device."""
        return (control.step + 1) % 2**32 % self.batch == 0

    def batched(self, d: I64, held: Array, control: Control) -> tuple[I64, Array]:
        """Adds the step to the held sum; gives what is to be applied now and what stays held."""
        total = np.clip(as_i64(held) + d, -_BATCH_LIMIT, _BATCH_LIMIT)
        if self.due(control):
            return total, np.zeros_like(held)
        return np.zeros_like(total), total.astype(np.int32)


@dataclass(frozen=True)
class WeightUpdate(Update):
    """dW of a weighted layer, applied at once: `x, e, k, w, [residual], [held] -> w, [residual], [held]`, in place.

    Attributes:
        gathered: x holds only the trained channels (see `SelectChannels`).

    Each weight's gradient `A = sum e * (x - zx)` is computed and consumed: there is no dW tensor. With `trained`, w
    holds only those channels of the last axis; the random numbers are indexed as in the whole tensor.
    """

    title = "WEIGHT_UPDATE"
    geometry: Geometry = Geometry(1, 1, 1, 1, 1, 1)
    trained: tuple[int, ...] = ()
    gathered: bool = False

    @property
    def channels(self) -> int:
        """Channels of the last weight axis that train."""
        return len(self.trained) or self.geometry.weight_shape[-1]

    @property
    def partial(self) -> bool:
        """Whether it reads only some channels of its input."""
        return bool(self.trained)

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        state = ins[3:]
        require(len(state) == 1 + (MODES[self.mode] > 0) + (self.batch > 1), "state does not fit the residual mode")
        g = self.geometry
        require(state[0].elements == math.prod(g.weight_shape[:-1]) * self.channels, f"weights {state[0]} do not fit")
        positions = g.out_h * g.out_w
        require(positions <= _MAX_POSITIONS, f"dW sums {positions} products; at most {_MAX_POSITIONS} fit int32")
        return tuple((s.shape, s.dtype) for s in state)

    def linear_index(self) -> I64:
        """Index of every trained weight in the whole tensor, in the shape of the trained slice."""
        shape = self.geometry.weight_shape
        whole = np.arange(math.prod(shape)).reshape(shape)
        return whole[..., list(self.trained)] if self.trained else whole

    def factors(self, t: Types) -> list[float]:
        """`sx * C / sw[c]`: the real gradient in units of one weight step (QAS is implicit)."""
        sx, c = t.ins[0].scale, t.ins[1].scale
        return [sx * c / s for s in weight_scales(t.ins[3], self.geometry.out_c)]

    def gradient_sums(self, t: Types, x: Array, e: Array) -> I64:
        """A in the shape of the trained slice."""
        g = self.geometry
        if self.gathered:
            whole = np.full((g.in_h, g.in_w, g.in_c), t.ins[0].zero_point, np.int64)
            whole[..., list(self.trained)] = as_i64(x).reshape(g.in_h, g.in_w, -1)
            x = whole
        canvas = g.padded(as_i64(x).reshape(g.in_h, g.in_w, g.in_c) - t.ins[0].zero_point).astype(np.float64)
        e2 = as_i64(e).reshape(-1, g.out_c).astype(np.float64)
        a = np.zeros(g.weight_shape)
        for ky in range(g.k_h):
            for kx in range(g.k_w):
                v = g.tap(canvas, ky, kx).reshape(-1, g.in_c)  # type: ignore[arg-type]
                if g.depthwise:
                    a[0, ky, kx] = (e2 * np.repeat(v, g.multiplier, axis=1)).sum(0)
                else:
                    a[:, ky, kx] = e2.T @ v
        return (a[..., list(self.trained)] if self.trained else a).astype(np.int64)

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        g = self.geometry
        a = self.gradient_sums(t, xs[0], xs[1])
        m, exponent = self.step_table(self.factors(t))
        if g.depthwise:
            m, exponent = (v[list(self.trained)] if self.trained else v for v in (m, exponent))
        else:
            m, exponent = (v.reshape(-1, 1, 1, 1) for v in (m, exponent))
        scaled = (as_i64(m) * control.learning_rate) >> 15
        d = np.clip(round_shift(a * scaled, int(xs[2]) - as_i64(exponent) - 1), -(1 << 23), 1 << 23)
        state = [v.reshape(a.shape) for v in xs[3:]]
        held: list[Array] = []
        if self.batch > 1:
            d, keep = self.batched(d, state[-1], control)
            held = [keep]
        residual = state[1] if MODES[self.mode] else None
        u = random16(random_key(control.seed, control.step, 4 * self.stream + _WEIGHT_STREAM), self.linear_index())
        new = [*apply_step(self.mode, state[0], residual, d, u), *held]
        return tuple(v.reshape(x.shape).astype(x.dtype) for v, x in zip(new, xs[3:], strict=True))

    def macs(self, t: Types) -> int:
        return self.geometry.macs * self.channels // self.geometry.weight_shape[-1]

    def kernel(self, t: Types) -> Kernel:
        g = self.geometry
        m, exponent = self.step_table(self.factors(t))
        params = g.params() | {
            "x_zero": t.ins[0].zero_point,
            "trained": len(self.trained),
            "drawn": 0,
            "gathered": self.gathered,
            "mode": self.mode,
            "batch": self.batch,
            "stream": 4 * self.stream + _WEIGHT_STREAM,
            "step_type": f"{exponent.dtype}_t",
        }
        tables = [("step_m", m), ("step_t", exponent)]
        # The 2-d kernel needs the list for the random numbers alone where x holds nothing else.
        if self.trained and (g.depthwise or not self.gathered or self.mode in ("r4", "sr")):
            tables.append(("channel", channel_table(self.trained, g.weight_shape[-1])))
        taps, pixels = g.k_h * g.k_w, g.out_h * g.out_w
        if g.depthwise:
            width = min(self.channels, PER_PIECE["channels"])
            phases = once(taps * parts(self.channels, width), 30 + 110 * width + pixels * (4 + 13 * width))
            return Kernel("depthwise_weight_update", params, tuple(tables), 4 * self.channels, control=True, phases=phases)
        phases = once(g.out_c * taps, 60 + self.per_weight * self.channels + pixels * (8 + 6.5 * self.channels))
        return Kernel("conv2d_weight_update", params, tuple(tables), 4 * self.channels, control=True, phases=phases)

    @property
    def per_weight(self) -> int:
        """Instructions that apply a step to a weight (see `tte.ops.phases.Phase`)."""
        return (60 if self.mode == "nearest" else 85) + (20 if self.batch > 1 else 0)

    def fast_kernels(self, t: Types) -> tuple[Kernel, ...]:
        if self.geometry.depthwise:
            return depthwise_dsp.weight_update_kernels(self.geometry, self.kernel(t), self.trained)
        return conv_dsp.weight_update_kernels(self.geometry, self.kernel(t), self.channels)


def apply_step(mode: str, w: Array, residual: Array | None, d: I64, u: I64) -> list[I64]:
    """The new weights (and residuals) after a step `d` in Q16 of one weight step, `u` 16 random bits each."""
    w64 = as_i64(w)
    if mode in ("sr", "nearest"):
        u = u if mode == "sr" else np.full_like(u, 1 << 15)
        return [np.where(d == 0, w64, np.clip(w64 - ((d + u) >> 16), -127, 127))]
    assert residual is not None
    if mode == "r4":
        bits, move = 4, (d + (u & 4095)) >> 12
    else:
        bits, move = 8, (d + 128) >> 8
    half = 1 << (bits - 1)
    total = np.clip((w64 << bits) + as_i64(residual) - move, -(127 << bits) - half, (127 << bits) + half - 1)
    new = np.clip((total + half) >> bits, -127, 127)
    left = np.clip(total - (new << bits), -half, half - 1)
    return [np.where(d == 0, w64, new), np.where(d == 0, as_i64(residual), left)]


@dataclass(frozen=True)
class BiasUpdate(Update):
    """The bias update: `e, k, b, [held] -> b, [held]`, in place; b is int32 in units of `sx * sw[c]`.

    Attributes:
        units: `sx * sw[c]`, the real value of one step of each bias.
        channels: output channels.
    """

    title = "BIAS_UPDATE"
    units: tuple[float, ...] = ()

    @property
    def channels(self) -> int:
        return len(self.units)

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        require(len(ins) == 3 + (self.batch > 1), "state does not fit the batch")
        require(ins[0].elements % self.channels == 0 and ins[2].elements == self.channels, f"bias {ins[2]} does not fit")
        return tuple((s.shape, s.dtype) for s in ins[2:])

    def factors(self, t: Types) -> list[float]:
        return [t.ins[0].scale / unit for unit in self.units]

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        total = as_i64(xs[0]).reshape(-1, self.channels).sum(0)
        m, exponent = self.step_table(self.factors(t))
        scaled = (as_i64(m) * control.learning_rate) >> 15
        d = np.clip(round_shift(total * scaled, int(xs[1]) - as_i64(exponent) + 7), -_BATCH_LIMIT, _BATCH_LIMIT)
        held: list[Array] = []
        if self.batch > 1:
            d, keep = self.batched(d, xs[3], control)
            held = [keep]
        u: I64 = np.full(self.channels, 128)
        if self.mode in ("sr", "r4"):
            key = random_key(control.seed, control.step, 4 * self.stream + _BIAS_STREAM)
            u = random16(key, np.arange(self.channels)) & 255
        b = as_i64(xs[2])
        new = np.where(d == 0, b, np.clip(b - ((d + u) >> 8), -(1 << 30), 1 << 30))
        return (new.astype(np.int32), *held)

    def kernel(self, t: Types) -> Kernel:
        m, exponent = self.step_table(self.factors(t))
        params: dict[str, int | str | bool] = {
            "pixels": (pixels := t.ins[0].elements // self.channels),
            "channels": self.channels,
            "mode": self.mode,
            "batch": self.batch,
            "stream": 4 * self.stream + _BIAS_STREAM,
            "step_type": f"{exponent.dtype}_t",
        }
        instructions = 50 + self.channels * (100 + pixels * 9 // 4)
        tables, phases = (("step_m", m), ("step_t", exponent)), self.phases(pixels)
        return Kernel("bias_update", params, tables, control=True, instructions=instructions, phases=phases)

    def fast_kernels(self, t: Types) -> tuple[Kernel, ...]:
        m, exponent = self.step_table(self.factors(t))
        pixels, channels = t.ins[0].elements // self.channels, self.channels
        shape = np.array([pixels, channels, 4 * self.stream + _BIAS_STREAM], np.int32)
        tables = (("step_m", m), ("step_t", exponent), ("shape", shape))
        instructions = 50 + channels * 78 + pixels * (channels // 8 * 9 + channels % 8 * 6)
        params: dict[str, int | str | bool] = {"mode": self.mode, "batch": self.batch, "step_type": f"{exponent.dtype}_t"}
        size = PER_PIECE["fast_biases"]
        rest = channels % size
        full = 30 + 85 * size + 10.2 * pixels if channels >= size else 0.0
        phases = once(parts(channels, size), max(full, 90 + rest * (65 + 6.4 * pixels)))
        return (Kernel("dsp/bias_update", params, tables, 0, True, "dsp", instructions, phases),)

    def phases(self, pixels: int) -> Phases:
        """The portable kernel's pieces."""
        size = PER_PIECE["biases"]
        cost = 30 + min(size, self.channels) * (80 + (3.3 if self.channels % 4 == 0 else 5) * pixels)
        return once(parts(self.channels, size), cost)
