"""Which kernel computes a step: of those that an operator offers, the one with the fewest predicted instructions that the
core can run and the scratch memory allows. The only place that chooses."""

from __future__ import annotations

import functools
from dataclasses import replace

from tte.ops.base import Kernel, Op, Types
from tte.ops.segment import Segment

#: What code may be generated for: any core, or those with the SIMD instructions of Armv7E-M (M4, M7, M33).
TARGETS = {"portable": frozenset({""}), "dsp": frozenset({"", "dsp"})}
_ALIGN = 8


def choose(op: Op, types: Types, target: str, scratch: int = 0) -> Kernel:
    """The kernel of a whole step.

    Args:
        target: one of `TARGETS`.
        scratch: bytes of scratch memory it may take; a fast kernel is taken at its smallest even beyond that.
    """
    if isinstance(op, Segment):
        kernels = stages(op, target, scratch)
        work = rolling_bytes(op) + max((k.workspace for k in kernels), default=0)
        rows = [n.outputs[0] for n in op.nodes]
        total = sum(k.instructions * op.type(name).shape[1] for k, name in zip(kernels, rows, strict=True))
        return replace(op.kernel(types), workspace=work, instructions=total)
    return _whole(op, types, target, scratch)


def stages(segment: Segment, target: str, scratch: int = 0) -> tuple[Kernel, ...]:
    """The kernels of a segment's stages, one call a row; they share the scratch memory behind the rolling buffers.

    Args:
        scratch: bytes for the rolling buffers and the kernels together.
    """
    room = max(0, scratch - rolling_bytes(segment))
    found = []
    for node in segment.nodes:
        x_ring, y_ring = segment.held(node.inputs[0]), segment.held(node.outputs[0])
        found.append(_row(node.op, segment.types_of(node), x_ring, y_ring, target, room))
    return tuple(found)


def rolling_bytes(segment: Segment) -> int:
    """Bytes of a segment's rolling buffers."""
    return segment.kernel(Types((), ())).workspace


@functools.lru_cache(maxsize=4096)
def _whole(op: Op, types: Types, target: str, scratch: int) -> Kernel:
    return _best(op.kernel(types), op.fast_kernels(types) if target != "portable" else (), target, scratch)


@functools.lru_cache(maxsize=4096)
def _row(op: Op, types: Types, x_ring: int, y_ring: int, target: str, scratch: int) -> Kernel:
    fast = op.fast_row_kernels(types, x_ring, y_ring) if target != "portable" else ()
    return _best(op.row_kernel(types, x_ring, y_ring), fast, target, scratch)


def _best(portable: Kernel, fast: tuple[Kernel, ...], target: str, scratch: int) -> Kernel:
    able = [k for k in fast if k.needs in TARGETS[target]]
    if not able:
        return portable
    # The host's fast twin runs the portable kernels in the same plan: their scratch memory is there in any case.
    least = max(portable.workspace, min(k.workspace for k in able))
    fitting = [k for k in able if k.workspace <= max(scratch, least)]
    best = min(fitting, key=lambda k: (k.instructions, k.workspace))
    return replace(best, workspace=max(best.workspace, portable.workspace))
