"""Keeping a few channels of an activation: all that a sparse weight update needs of its layer's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tte.ir import TensorType
from tte.ops.base import Array, Control, Inferred, Kernel, Op, Rows, Types, require
from tte.ops.phases import once


@dataclass(frozen=True)
class SelectChannels(Op):
    """`x [.., C], [table] -> y [.., channels]`, for the backward pass alone: the forward pass reads x itself.

    Attributes:
        channels: those to keep; empty: those that the table (uint16) lists when it runs.
    """

    title = "SELECT_CHANNELS"
    eager = True
    not_differentiable = "it stands in the forward pass of a training graph, behind which nothing is differentiated"
    channels: tuple[int, ...] = ()

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        if self.channels:
            count, fits = len(self.channels), len(ins) == 1 and max(self.channels) < ins[0].shape[-1]
        else:
            count, fits = ins[1].elements, ins[1].dtype == "uint16" and ins[1].elements <= ins[0].shape[-1]
        require(ins[0].dtype == "int8" and fits, f"no such channels in {ins[0]}")
        return (((*ins[0].shape[:-1], count), "int8"),)

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        return (np.ascontiguousarray(xs[0][..., list(self.channels) or xs[1].ravel()]),)

    def rows(self, t: Types) -> Rows | None:
        return Rows() if len(t.ins[0].shape) == 4 and t.ins[0].shape[0] == 1 else None

    def kernel(self, t: Types) -> Kernel:
        in_c, channels = t.ins[0].shape[-1], t.outs[0].shape[-1]
        pixels = t.ins[0].elements // in_c
        params: dict[str, int | str | bool] = {"pixels": pixels, "in_c": in_c, "channels": channels}
        tables = (("channel", np.array(self.channels, np.uint16)),) if self.channels else ()
        work = 20 + pixels * (5 + 6 * channels)
        return Kernel("select_channels", params, tables, instructions=work, phases=once(pixels, 10 + 6 * channels))
