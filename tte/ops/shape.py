"""Operators that move bytes: RESHAPE and its kin, PAD, CONCATENATION, and the slices that are their gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tte.ir import Node, Shape, TensorType
from tte.ops.base import Array, Control, Cotangent, Inferred, Kernel, Op, Rows, Tape, Types, require
from tte.ops.pool import alike

#: Nested axes that the generated C of PAD and SLICE handles.
_AXES = 4


@dataclass(frozen=True)
class Reshape(Op):
    """RESHAPE, SQUEEZE, EXPAND_DIMS: the input's bytes under another shape."""

    title = "RESHAPE"
    view = True
    shape: Shape = ()

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        require(len(ins) == 1, f"{self.title} takes one input, got {len(ins)}")
        fits = ins[0].elements == math.prod(self.shape)
        require(fits, f"{ins[0].elements} elements do not fit the shape {self.shape}")
        return ((self.shape, ins[0].dtype),)

    def constraint(self, t: Types) -> str:
        return alike(self.title, t)

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        return (xs[0].reshape(self.shape),)

    def gradient(self, tape: Tape, node: Node, g: Cotangent) -> None:
        x = node.inputs[0]
        if tape.wants(x):
            shape = tape.type(x).shape
            gx = tape.alike(node, shape, g)
            tape.emit(node, "dX", Reshape(shape), (g.e,), (gx.e,))
            tape.send(x, gx)


def merge_axes(shape: Shape, pads: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """`shape` and `pads` with unpadded axes merged into the one before, as exactly four axes.

    Raises:
        ModelError: more than four axes are left.
    """
    sizes: list[int] = []
    amounts: list[tuple[int, int]] = []
    for d, (before, after) in zip(shape, pads, strict=True):
        if sizes and (before, after) == (0, 0):
            sizes[-1] *= d
            amounts[-1] = (amounts[-1][0] * d, amounts[-1][1] * d)
        elif sizes and sizes[-1] == 1 and amounts[-1] == (0, 0):
            sizes[-1], amounts[-1] = d, (before, after)
        else:
            sizes.append(d)
            amounts.append((before, after))
    require(len(sizes) <= _AXES, f"padding or slicing of {len(sizes)} groups of axes; at most {_AXES} are supported")
    missing = _AXES - len(sizes)
    return (1,) * missing + tuple(sizes), ((0, 0),) * missing + tuple(amounts)


@dataclass(frozen=True)
class Pad(Op):
    """PAD and PADV2: `x -> y`, surrounded by a constant.

    Attributes:
        pads: (before, after) for each axis.
        value: what is put around, as stored (PAD: the zero point).
    """

    title = "PAD"
    pads: tuple[tuple[int, int], ...] = ()
    value: int = 0

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        require(len(ins) == 1 and ins[0].dtype == "int8", f"{self.title} takes one int8 input")
        require(len(self.pads) == len(ins[0].shape), f"{len(self.pads)} pairs of padding for {ins[0]}")
        require(all(p >= 0 for pair in self.pads for p in pair), f"padding of at least 0, got {self.pads}")
        merge_axes(ins[0].shape, self.pads)
        return ((tuple(d + b + a for d, (b, a) in zip(ins[0].shape, self.pads, strict=True)), "int8"),)

    def constraint(self, t: Types) -> str:
        return alike(self.title, t)

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        return (np.pad(xs[0], self.pads, constant_values=self.value),)

    def gradient(self, tape: Tape, node: Node, g: Cotangent) -> None:
        x = node.inputs[0]
        if tape.wants(x):
            _send_slice(tape, node, g, x, tuple(before for before, _ in self.pads), "dX")

    def kernel(self, t: Types) -> Kernel:
        sizes, pads = merge_axes(t.ins[0].shape, self.pads)
        params = _axes_params(sizes, pads) | {"value": self.value, "y_elements": t.outs[0].elements}
        return Kernel("pad", params)

    def rows(self, t: Types) -> Rows | None:
        x = t.ins[0].shape
        if len(x) != 4 or x[0] != 1 or any(p for axis in (0, 3) for p in self.pads[axis]):
            return None
        top = self.pads[1][0]
        return Rows(1, -top, -top, whole=True)

    def row_kernel(self, t: Types, x_ring: int, y_ring: int) -> Kernel:
        (_, in_h, in_w, channels), (left, right) = t.ins[0].shape, self.pads[2]
        params: dict[str, int | str | bool] = {
            "in_h": in_h, "in_bytes": in_w * channels, "top": self.pads[1][0], "value": self.value,
            "left_bytes": left * channels, "right_bytes": right * channels, "x_ring": x_ring, "y_ring": y_ring,
        }  # fmt: skip
        return Kernel("pad_row", params)


def _axes_params(sizes: Sequence[int], pads: Sequence[tuple[int, int]]) -> dict[str, int | str | bool]:
    """`x0`.. the inner sizes, `y0`.. the outer ones, `at0`.. where the inner ones begin."""
    params: dict[str, int | str | bool] = {}
    for i, (d, (before, after)) in enumerate(zip(sizes, pads, strict=True)):
        params |= {f"x{i}": d, f"y{i}": d + before + after, f"at{i}": before}
    return params


@dataclass(frozen=True)
class Slice(Op):
    """`e -> e_x`: the box of `shape` that starts at `begin`; the exponent is shared."""

    title = "SLICE"
    begin: tuple[int, ...] = ()
    shape: Shape = ()

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        full = ins[0].shape
        ends = [b + d for b, d in zip(self.begin, self.shape, strict=True)]
        require(len(full) == len(ends) and all(e <= f for e, f in zip(ends, full, strict=True)), "slice outside")
        return ((self.shape, ins[0].dtype),)

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        return (xs[0][tuple(slice(b, b + d) for b, d in zip(self.begin, self.shape, strict=True))].copy(),)

    def kernel(self, t: Types) -> Kernel:
        rest = [
            (b, f - b - d) for b, d, f in zip(self.begin, self.shape, t.ins[0].shape, strict=True)
        ]  # what is cut off before and after
        return Kernel("slice", _axes_params(*merge_axes(self.shape, rest)))


def _send_slice(tape: Tape, node: Node, g: Cotangent, name: str, begin: tuple[int, ...], what: str) -> None:
    shape = tape.type(name).shape
    gx = tape.alike(node, shape, g)
    tape.emit(node, what, Slice(begin, shape), (g.e,), (gx.e,))
    tape.send(name, gx)


@dataclass(frozen=True)
class Concatenation(Op):
    """CONCATENATION: `x0, x1, ... -> y` along `axis` (not negative); all quantised alike."""

    title = "CONCATENATION"
    axis: int = 0

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        require(bool(ins) and all(x.dtype == "int8" for x in ins), f"{self.title} takes int8 inputs")
        first = ins[0].shape
        require(0 <= self.axis < len(first), f"axis {self.axis} of a tensor of rank {len(first)}")
        rest = {(len(x.shape), x.shape[: self.axis], x.shape[self.axis + 1 :]) for x in ins}
        require(len(rest) == 1, f"shapes {', '.join(str(x.shape) for x in ins)} do not join along axis {self.axis}")
        size = sum(x.shape[self.axis] for x in ins)
        return (((*first[: self.axis], size, *first[self.axis + 1 :]), "int8"),)

    def constraint(self, t: Types) -> str:
        # TFLite's int8 kernel never requantises either; its Prepare demands equal parameters.
        return alike(self.title, t)

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        return (np.concatenate(xs, self.axis),)

    def gradient(self, tape: Tape, node: Node, g: Cotangent) -> None:
        start = 0
        for i, name in enumerate(node.inputs):
            shape = tape.type(name).shape
            if tape.wants(name):
                begin = tuple(start if a == self.axis else 0 for a in range(len(shape)))
                _send_slice(tape, node, g, name, begin, f"dX{i}")
            start += shape[self.axis]

    def kernel(self, t: Types) -> Kernel:
        runs = [math.prod(x.shape[self.axis :]) for x in t.ins]
        outer = math.prod(t.outs[0].shape[: self.axis])
        return Kernel("concatenation", {"outer": outer, "runs": " ".join(map(str, runs))})
