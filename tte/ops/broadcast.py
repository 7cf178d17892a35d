"""Strides of tensors that broadcast against each other, reduced to at most four loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tte.ir import Shape
from tte.ops.base import require

#: Nested loops of the generated C.
LOOPS = 4


@dataclass(frozen=True)
class Loops:
    """Loop counts, outermost first, and each tensor's step in elements a loop (0 where it is repeated)."""

    dims: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    def params(self, names: Sequence[str]) -> dict[str, int | str | bool]:
        """Template constants: `d0`.. for the counts, `<name>0`.. for the strides of each tensor."""
        rows = (self.dims, *self.strides)
        return {f"{n}{i}": v for n, row in zip(("d", *names), rows, strict=True) for i, v in enumerate(row)}


def broadcast_shape(shapes: Sequence[Shape]) -> Shape:
    """The shape that `shapes` broadcast to, by NumPy's rule.

    Raises:
        ModelError: they do not.
    """
    try:
        return tuple(np.broadcast_shapes(*shapes))
    except ValueError:
        pass
    require(False, f"shapes {' and '.join(map(str, shapes))} do not broadcast")
    return ()


def reduced_axes(shape: Shape, full: Shape) -> tuple[int, ...]:
    """The axes of `full` along which a tensor of `shape` is repeated."""
    aligned = (1,) * (len(full) - len(shape)) + shape
    return tuple(i for i, (a, d) in enumerate(zip(aligned, full, strict=True)) if a == 1 and d != 1)


def loops(full: Shape, shapes: Sequence[Shape]) -> Loops:
    """The loops over `full` in which each of `shapes` (broadcastable to it) is walked; neighbours are merged.

    Raises:
        ModelError: more than four loops are left.
    """
    rows = [_strides(s, full) for s in shapes]
    dims: list[int] = []
    steps: list[list[int]] = []
    for i, d in enumerate(full):
        if d == 1:
            continue
        here = [row[i] for row in rows]
        if dims and all(s[0] == h * d for s, h in zip(zip(steps[-1]), here, strict=True)):
            dims[-1] *= d
            steps[-1] = here
        else:
            dims.append(d)
            steps.append(here)
    require(len(dims) <= LOOPS, f"broadcasting over {len(dims)} groups of axes; at most {LOOPS} are supported")
    missing = LOOPS - len(dims)
    dims = [1] * missing + dims
    steps = [[0] * len(rows)] * missing + steps
    return Loops(tuple(dims), tuple(tuple(s[j] for s in steps) for j in range(len(rows))))


def _strides(shape: Shape, full: Shape) -> tuple[int, ...]:
    aligned = (1,) * (len(full) - len(shape)) + shape
    return tuple(
        0 if a == 1 and d != 1 else math.prod(aligned[i + 1 :])
        for i, (a, d) in enumerate(zip(aligned, full, strict=True))
    )
