"""ADD, SUB and MUL of two tensors, with broadcasting.

Source of the formulas: TFLite's add.cc, sub.cc, mul.cc (Prepare) and their reference kernels; the rounding of each was
settled by measurement (tests/test_ops.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tte.fixed import I64, as_i64, quantize_multiplier, requantise
from tte.ir import Node, TensorType
from tte.ops.affine import Affine, fit
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
from tte.ops.broadcast import broadcast_shape, loops
from tte.ops.phases import chunk, loop_chunks, mask_zeros, once

#: Bits by which ADD and SUB raise their inputs before rescaling them to a common scale.
LEFT_SHIFT = 20


@dataclass(frozen=True)
class Elementwise(Op):
    """`a, b -> y, [mask]`; a and b broadcast against each other.

    Attributes:
        activation: fused activation, by TFLite's name.
        mask: a second output, one bit an element: 1 where the value before clamping lay within the limits.
    """

    # Only where the element counts agree, that is where the input is not repeated.
    inplace = ((0, 0), (0, 1))
    activation: str = "NONE"
    mask: bool = False

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        require(len(ins) == 2, f"{self.title} takes two inputs, got {len(ins)}")
        require(all(t.dtype == "int8" for t in ins), f"int8 inputs, got {ins[0].dtype} and {ins[1].dtype}")
        shape = broadcast_shape([t.shape for t in ins])
        loops(shape, [t.shape for t in ins])
        return ((shape, "int8"), *([(shape, "bit")] * self.mask))

    def multipliers(self, t: Types) -> dict[str, int]:
        """Mantissas and shifts, as template constants."""
        raise NotImplementedError

    def unclamped(self, t: Types, a: I64, b: I64) -> I64:
        """The value before clamping; a and b are less their zero points."""
        raise NotImplementedError

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        a, b = (as_i64(x) - i.zero_point for x, i in zip(xs, t.ins, strict=True))
        v = self.unclamped(t, a, b) + t.outs[0].zero_point
        low, high = activation_range(self.activation, t.outs[0])
        y: Array = np.clip(v, low, high).astype(np.int8)
        return (y, (v >= low) & (v <= high)) if self.mask else (y,)

    def optional_outputs(self) -> tuple[int, ...]:
        return (1,) if self.mask else ()

    def without(self, output: int) -> Elementwise:
        return replace(self, mask=False)

    def rows(self, t: Types) -> Rows | None:
        return same_rows(t)

    def kernel(self, t: Types) -> Kernel:
        shape = t.outs[0].shape
        low, high = activation_range(self.activation, t.outs[0])
        walk = loops(shape, [i.shape for i in t.ins])
        pieces, width = loop_chunks(walk.dims), chunk(walk.dims[3])
        clear = mask_zeros(t.outs[0].elements, self.mask)
        params = walk.params(("a", "b")) | {
            "operator": self.title,
            "a_zero": t.ins[0].zero_point,
            "b_zero": t.ins[1].zero_point,
            "y_zero": t.outs[0].zero_point,
            "y_min": low,
            "y_max": high,
            "mask": self.mask,
            "mask_bytes": (t.outs[0].elements + 7) // 8,
        }
        if form := self.affine(t):
            own = ("a_zero", "b_zero", "y_zero", "mask_bytes", "operator")
            params = {k: v for k, v in params.items() if k not in own} | {
                "a_k": form.ka, "b_k": form.kb, "c": form.c, "shift": form.shift
            }  # fmt: skip
            work = 20 + (16 if self.mask else 9) * t.outs[0].elements
            plain = walk.dims[:3] == (1, 1, 1) and all(steps[3] == 1 for steps in walk.strides)
            each = 9.5 + 8 * self.mask + 5 * (low > -128 or high < 127) + 4 * (not plain)
            phases = once(pieces, 80 + each * width, 0.0 if plain else clear)
            return Kernel("affine", params, instructions=work, phases=phases)
        phases = once(pieces, 50 + self.per_element(self.mask) * width, clear)
        return Kernel("elementwise", params | self.multipliers(t), phases=phases)

    @staticmethod
    def per_element(mask: bool) -> int:
        """Instructions of an element where there is no affine form (see `tte.ops.phases.Phase`)."""
        return 60 if mask else 45

    def affine(self, t: Types) -> Affine | None:
        """The operator as one multiply-add, where that is exact."""
        return None


@dataclass(frozen=True)
class Add(Elementwise):
    """ADD: `y = a + b`."""

    title = "ADD"
    sign = 1

    def real_multipliers(self, t: Types) -> tuple[float, float, float]:
        """Of a, of b and of their sum; both inputs are first brought to twice the larger scale, raised by 20 bits."""
        common = 2 * max(t.ins[0].scale, t.ins[1].scale)
        return t.ins[0].scale / common, t.ins[1].scale / common, common / (t.outs[0].scale * 2**LEFT_SHIFT)

    def multipliers(self, t: Types) -> dict[str, int]:
        (am, a_s), (bm, bs), (ym, ys) = map(quantize_multiplier, self.real_multipliers(t))
        return {"a_m": am, "a_s": a_s, "b_m": bm, "b_s": bs, "y_m": ym, "y_s": ys}

    def unclamped(self, t: Types, a: I64, b: I64) -> I64:
        q = self.multipliers(t)
        a = requantise(a << LEFT_SHIFT, q["a_m"], q["a_s"])
        b = requantise(b << LEFT_SHIFT, q["b_m"], q["b_s"])
        return requantise(a + self.sign * b, q["y_m"], q["y_s"])

    def affine(self, t: Types) -> Affine | None:
        a = np.arange(-128, 128, dtype=np.int64)
        zeros = [i.zero_point for i in t.ins]
        wanted = self.unclamped(t, a[:, None] - zeros[0], a[None, :] - zeros[1]) + t.outs[0].zero_point
        low, high = activation_range(self.activation, t.outs[0])
        # One beyond each limit, so that a mask tells what is clamped.
        wanted = np.clip(wanted, low - 1, high + 1)
        ra, rb = (i.scale / t.outs[0].scale for i in t.ins)
        rb *= self.sign
        return fit(wanted, ra, rb, t.outs[0].zero_point - ra * zeros[0] - rb * zeros[1])

    def constraint(self, t: Types) -> str:
        if self.real_multipliers(t)[2] >= 1:
            return f"the output scale {t.outs[0].scale:.3g} is too small for the inputs' scales"
        return ""

    def gradient(self, tape: Tape, node: Node, g: Cotangent) -> None:
        from tte.ops.elementwise_grad import BroadcastGrad, Negate

        g = tape.masked(node, g)
        for i, name in enumerate(node.inputs):
            if not tape.wants(name):
                continue
            shape, sign = tape.type(name).shape, self.sign if i else 1
            if tape.type(g.e).elements != tape.type(name).elements:
                gx = tape.error(node, shape, tape.type(g.e).scale)
                tape.emit(node, f"d{'ab'[i]}", BroadcastGrad(shape, sign=sign), (g.e, g.k), (gx.e, gx.k))
                tape.send(name, gx)
            elif sign < 0:
                gx = tape.alike(node, shape, g)
                tape.emit(node, "db", Negate(shape), (g.e,), (gx.e,))
                tape.send(name, gx)
            else:
                tape.send(name, g)


@dataclass(frozen=True)
class Sub(Add):
    """SUB: `y = a - b`."""

    title = "SUB"
    sign = -1


@dataclass(frozen=True)
class Mul(Elementwise):
    """MUL: `y = a * b`."""

    title = "MUL"

    @staticmethod
    def per_element(mask: bool) -> int:
        return 41 if mask else 29

    def real_multiplier(self, t: Types) -> float:
        # TFLite forms this in float32 before it widens it.
        a, b, y = (np.float32(x.scale) for x in (*t.ins, t.outs[0]))
        return float(a * b / y)

    def multipliers(self, t: Types) -> dict[str, int]:
        m, s = quantize_multiplier(self.real_multiplier(t))
        return {"y_m": m, "y_s": s}

    def unclamped(self, t: Types, a: I64, b: I64) -> I64:
        q = self.multipliers(t)
        return requantise(a * b, q["y_m"], q["y_s"])

    def constraint(self, t: Types) -> str:
        # 255 * 255 < 2**16, and the rescaled product plus a zero point has to stay within int32.
        if self.real_multiplier(t) >= 2**14:
            return f"the output scale {t.outs[0].scale:.3g} is too small for the inputs' scales"
        return ""

    def macs(self, t: Types) -> int:
        return t.outs[0].elements

    def gradient(self, tape: Tape, node: Node, g: Cotangent) -> None:
        from tte.ops.elementwise_grad import BroadcastGrad

        g = tape.masked(node, g)
        for i, name in enumerate(node.inputs):
            if not tape.wants(name):
                continue
            other, shape = node.inputs[1 - i], tape.type(name).shape
            gx = tape.error(node, shape, tape.type(g.e).scale * tape.type(other).scale)
            tape.emit(node, f"d{'ab'[i]}", BroadcastGrad(shape, product=True), (g.e, g.k, other), (gx.e, gx.k))
            tape.send(name, gx)
