"""Training a changing choice of a layer's channels: an update whose channels are a table in RAM, and the draw of another.

The layer's weights are one whole tensor in RAM, for what was learnt must stay. Only the k channels of the last weight axis
that the table lists (ascending) train; residuals and held sums belong to them alone, `[.., k]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tte.fixed import I64, as_i64, random16, random32, random_key
from tte.ir import TensorType
from tte.ops.base import Array, Control, Inferred, Kernel, Op, Types, require
from tte.ops.linear_grad import MODES, WeightUpdate
from tte.ops.phases import Phase

#: The streams 4 * op + {1, 2, 3} are those of weights, biases and errors.
_REDRAW_STREAM = 0
#: Channels that a table of uint16 can name.
_CHANNEL_LIMIT = 1 << 16


@dataclass(frozen=True)
class DrawnUpdate(WeightUpdate):
    """The weight update of the channels that a table names: `x, e, k, w, [residual], [held], table -> w, [residual], [held]`.

    It is the update of `WeightUpdate` with `trained` as the table is now, but w is whole.

    Attributes:
        drawn: channels that the table lists.
    """

    drawn: int = 0

    @property
    def partial(self) -> bool:
        return True

    @property
    def channels(self) -> int:
        return self.drawn

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        *state, table = ins[3:]
        shape = self.geometry.weight_shape
        require(table.dtype == "uint16" and table.elements == self.drawn < shape[-1], f"table {table} does not fit")
        require(bool(state) and state[0].elements == math.prod(shape), "the weights are not whole")
        part = replace(state[0], shape=(*shape[:-1], self.drawn))
        super().infer((*ins[:3], part, *state[1:]))
        return tuple((s.shape, s.dtype) for s in state)

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        *state, table = xs[3:]
        chosen = [int(c) for c in table]
        now = WeightUpdate(self.stream, self.rate, self.mode, self.batch, self.geometry, tuple(chosen), self.gathered)
        part, *others = now.reference(t, [*xs[:3], state[0][..., chosen], *state[1:]], control)
        w = state[0].copy()
        w[..., chosen] = part
        return (w, *others)

    def kernel(self, t: Types) -> Kernel:
        kernel, g = super().kernel(t), self.geometry
        weights = math.prod(g.weight_shape[:-1]) * self.drawn
        # Counted on Cortex-M7: products, pixels and taps; a weight's step and its random number. A convolution skips errors of
        # 0, which a RELU6 makes many: this is between the 6 of a product where there are none and the least that was counted.
        products = 8 if g.depthwise else 4
        work = 100 + products * (self.macs(t) + 2 * self.macs(t) // self.drawn) + 70 * weights
        return replace(kernel, params={**kernel.params, "drawn": self.drawn}, instructions=work)

    def fast_kernels(self, t: Types) -> tuple[Kernel, ...]:
        return ()


@dataclass(frozen=True)
class Redraw(Op):
    """Every so many steps the k channels that train are drawn anew: `w, [residual], table -> w, [residual], table`, in place.

    It runs behind the layer's update, in steps with `(step + 1) mod 2**32 mod every == 0`; in others nothing changes. With
    `key = random_key(seed, step, 4 * stream)`, C the size of the last axis of w, and N its elements:

    - The choice is uniform among all sets of k channels, by selection sampling (Knuth, TAOCP 2, 3.4.2, algorithm S): for
      c = 0, 1, .., C - 1, m being what is still missing (k at first), c is chosen where
      `(random32(key, (N + 1) // 2 + c) * (C - c)) >> 32 < m`. It comes out ascending, and needs no memory but the result.
    - A channel that stays keeps its weights and residuals; one that comes starts with residuals of 0.
    - A channel that leaves does not lose what its residuals r (in units of 2**-bits of a weight step) hold: each is rounded
      into its weight at random, `w = clamp(w + ((r + u) >> bits), -127, 127)` with
      `u = random16(key, j) & (2**bits - 1)`, j the weight's linear index in w. So E[w] stays what w and r were together,
      but where it lies beyond 127. Where r is 0, w is left alone.

    Held sums of a batch are 0 whenever it runs: `every` must be a multiple of the batch (`tte.training.autodiff` sees to
    it).

    Attributes:
        stream: ordinal of the forward layer, as of its updates.
        every: steps between draws.
        mode: residual mode.
    """

    title = "REDRAW"
    stream: int
    every: int
    mode: str

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        require(len(ins) == 2 + (MODES[self.mode] > 0), "state does not fit the residual mode")
        w, table = ins[0], ins[-1]
        size = w.shape[-1]
        require(table.dtype == "uint16" and 0 < table.elements < size <= _CHANNEL_LIMIT, f"table {table} does not fit {w}")
        require(all(r.shape == (*w.shape[:-1], table.elements) for r in ins[1:-1]), "residuals do not fit")
        return tuple((s.shape, s.dtype) for s in ins)

    def due(self, control: Control) -> bool:
        """Whether this step ends with a draw."""
        return (control.step + 1) % 2**32 % self.every == 0

    def key(self, control: Control) -> int:
        """The key of a step's random numbers."""
        return random_key(control.seed, control.step, 4 * self.stream + _REDRAW_STREAM)

    def choice(self, key: int, weights: int, size: int, count: int) -> list[int]:
        """`count` of `size` channels, ascending, for a tensor of so many weights."""
        first, chosen = (weights + 1) // 2, list[int]()
        for c, h in enumerate(random32(key, first + np.arange(size)).tolist()):
            if h * (size - c) >> 32 < count - len(chosen):
                chosen.append(c)
        return chosen

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        if not self.due(control):
            return tuple(xs)
        w, old = as_i64(xs[0]), [int(c) for c in xs[-1].ravel()]
        key = self.key(control)
        new = self.choice(key, w.size, w.shape[-1], len(old))
        table = np.array(new, xs[-1].dtype).reshape(xs[-1].shape)
        bits = MODES[self.mode]
        if not bits:
            return xs[0], table
        residual: I64 = np.zeros(w.shape, np.int64)
        residual[..., old] = as_i64(xs[1])
        moved = residual[..., new].astype(xs[1].dtype)
        residual[..., new] = 0
        u = random16(key, np.arange(w.size).reshape(w.shape)) & ((1 << bits) - 1)
        folded = np.where(residual == 0, w, np.clip(w + ((residual + u) >> bits), -127, 127))
        return folded.astype(xs[0].dtype), moved, table

    def kernel(self, t: Types) -> Kernel:
        w, count = t.ins[0], t.ins[-1].elements
        rows, size, residual = w.elements // w.shape[-1], w.shape[-1], MODES[self.mode] > 0
        shape = np.array([rows, size, count, self.every, 4 * self.stream + _REDRAW_STREAM], np.int32)
        # The mean over many steps; counted on Cortex-M7: of a channel, and of a residual.
        work = 30 + (19 * size + (75 if self.mode == "r4" else 55) * rows * count * residual) // self.every
        # The new table; and a row of residuals.
        workspace = count * (3 if residual else 2)
        # A step in which it is due: first the draw, then rows of residuals.
        phases = (Phase(rows, 30 + {"r4": 80, "r8": 60}.get(self.mode, 0) * count, rows, 250 + 20 * size + 2 * count),)
        tables = (("shape", shape),)
        return Kernel("redraw", {"mode": self.mode}, tables, workspace, control=True, instructions=work, phases=phases)
