"""Steps cut into pieces: what the pieces of a kernel (`tte.ops.phases`) are expected to take on a core."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tte.ops.base import Kernel

#: What is added to predictions, so that a slice keeps to its budget.
_MARGIN = 1.15
#: What a core without the instructions of Armv7-M takes of them more: the most that was counted of random graphs, Cortex-M0+
#: beside Cortex-M7; products of 64 bits are calls there.
_SMALL_CORE = 2.1
#: Rows of segments take somewhat more: what kernels prepare is prepared for every row.
_ROW_MARGIN = 1.1
#: Instructions of a kernel's call, whatever its pieces: counted on Cortex-M7, with what finds its pieces.
_CALL = 200


@dataclass(frozen=True)
class Pieces:
    """A step's pieces: the first `turn` of them are expected to take `cost` instructions each, the others `late`; each
    `every`th of the first (if that is not 0), number 0 among them, takes `extra` more."""

    count: int
    cost: int
    turn: int
    late: int
    every: int = 0
    extra: int = 0

    @property
    def largest(self) -> int:
        return max(self.cost + self.extra, self.late)


def pieces(kernel: Kernel, work: float, target: str) -> Pieces:
    """How a kernel is cut.

    Args:
        work: instructions that it is expected to take, where it has no phases.
        target: of `tte.planner.kernels.TARGETS`.
    """
    margin = _margin(target)
    if not kernel.phases:
        return Pieces(1, _price(margin * work), 1, 1)
    first, *rest = kernel.phases
    late = _price(margin * max((p.cost for p in rest), default=0.0))
    return Pieces(_count(kernel), _price(margin * first.cost), first.count, late, first.every, math.ceil(margin * first.extra))


def call_price(target: str) -> int:
    """Instructions of each call of a kernel, beside its pieces."""
    return _price(_margin(target) * _CALL)


def row_price(kernel: Kernel, work: float, target: str) -> int:
    """Instructions to count on for a segment's row.

    Args:
        kernel: of the row.
        work: instructions that it is expected to take, where it has no phases.
    """
    cost = sum(p.count * p.cost for p in kernel.phases) or work
    return _price(_ROW_MARGIN * _margin(target) * cost)


def sliced(kernel: Kernel) -> bool:
    """Whether the kernel can do its pieces one range after the other."""
    return _count(kernel) > 1


def _count(kernel: Kernel) -> int:
    return sum(p.count for p in kernel.phases)


def _margin(target: str) -> float:
    return _MARGIN * (_SMALL_CORE if target == "portable" else 1.0)


def _price(instructions: float) -> int:
    return max(1, math.ceil(instructions))
