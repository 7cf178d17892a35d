"""Kernels cut into pieces: phases, whose pieces cost the same, and the sizes of pieces that kernels have in common.

A kernel that can be cut takes a `tte_piece` as its last argument (`argument()` in templates/kernels/_slices.j2), does the
pieces from `from` to `to` and keeps there what passes from one to the next. Its result does not depend on the ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: What makes a piece, where a kernel can be cut anywhere: elements (a multiple of 32, so that masks are cut between words),
#: int32 sums that become results, channels of a tap's update, biases. Templates read them as `per_piece`.
PER_PIECE = {"elements": 512, "sums": 4096, "channels": 16, "biases": 4, "fast_biases": 8}


#: Instructions of a byte of memory that is set to zero, and of setting any.
_PER_ZERO, _ZEROS = 0.6, 20


@dataclass(frozen=True)
class Phase:
    """Pieces that cost the same.

    Costs, here and where kernels are made, are instructions as QEMU counts them on a Cortex-M7 of code built with -O2, near
    the most that was seen of a kind of kernel; without what any call of a kernel takes.

    Attributes:
        count: how many.
        cost: instructions of the most costly of them.
        every: before each so many pieces something is prepared for them; 0: never. Only in the first phase.
        extra: instructions that that takes.
    """

    count: int
    cost: float
    every: int = 0
    extra: float = 0.0


Phases = tuple[Phase, ...]


def parts(count: int, size: int) -> int:
    """Groups of at most `size` that `count` makes."""
    return -(-count // size)


def once(count: int, cost: float, extra: float = 0.0) -> Phases:
    """So many pieces of this cost; the first takes `extra` more."""
    return (Phase(count, cost, count if extra else 0, extra),)


def twice(count: int, cost: float, result: float) -> Phases:
    """So many pieces for the largest sum, and as many for the result, each at its cost."""
    return Phase(count, cost), Phase(count, result)


def uncut(phases: Phases, rows: int = 1) -> Phases:
    """The same work in one piece, for one of so many rows."""
    total = sum(p.count * p.cost + (parts(p.count, p.every) * p.extra if p.every else 0.0) for p in phases)
    return (Phase(1, total / rows),) if phases else ()


def chunks(elements: int) -> int:
    """Pieces of an elementwise kernel."""
    return parts(elements, PER_PIECE["elements"])


def chunk(elements: int) -> int:
    """Elements of its largest piece."""
    return min(elements, PER_PIECE["elements"])


def loop_chunks(dims: Sequence[int]) -> int:
    """Pieces of four nested loops of these counts, the outermost first: the innermost, in parts."""
    d0, d1, d2, d3 = dims
    return d0 * d1 * d2 * chunks(d3)


def zeros(nbytes: int) -> float:
    """Instructions that set so many bytes."""
    return _ZEROS + _PER_ZERO * nbytes


def mask_zeros(elements: int, mask: bool) -> float:
    """Instructions that clear an activation's mask, if there is one."""
    return zeros((elements + 7) // 8) if mask else 0.0
