"""Steps cut into pieces: how many a kernel can be called for, one range after the other, and what a piece costs.

A sliced kernel takes a `tte_piece` as its last argument, does the pieces from `from` to `to` and keeps there what passes
from one to the next. Its result does not depend on the ranges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tte.ops.base import Kernel

#: Elements of a piece of an elementwise kernel (`CHUNK` in templates/kernels/_slices.j2); a multiple of 32: whole words of
#: a mask.
CHUNK = 512
Sizes = Mapping[str, int]
#: What is added to predictions, so that a slice keeps to its budget: of nearly all kernels QEMU counts less. Those of which
#: it counts more are listed by their factor (of models/mcunet-5fps and demo/digits, Cortex-M7).
_MARGIN = 1.15
#: What a core without the instructions of Armv7-M takes of them more: demo/digits, Cortex-M0+ beside Cortex-M7.
_SMALL_CORE = 1.5
#: Rows of segments take somewhat more: what kernels prepare is prepared for every row.
_ROW_MARGIN = 1.1
_UNDERRATED = {"dsp/conv2d_input_grad": 1.15, "dsp/depthwise_input_grad": 1.05}


@dataclass(frozen=True)
class Phase:
    """Pieces that cost the same.

    Attributes:
        share: the part of the kernel's instructions that they take, in a unit that all its phases have in common.
        every: before each so many pieces something is prepared for them; 0: never.
        extra: what that takes, in the same unit.
        more: instructions that the kernel's prediction leaves out.
    """

    count: int
    share: float = 1.0
    every: int = 0
    extra: float = 0.0
    more: float = 0.0


Phases = tuple[Phase, ...]


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
    """How a kernel that takes `work` instructions is cut.

    Args:
        target: of `tte.planner.kernels.TARGETS`.
    """
    first, *rest = _phases(kernel)
    work = (work + int(first.more)) * _UNDERRATED.get(kernel.template, 1.0)
    scale = _margin(target) * work / (first.share + sum(p.share for p in rest) or 1.0)
    extra = first.extra * scale
    prepared = extra * -(-first.count // first.every) if first.every else 0.0
    cost = math.ceil(max(0.0, first.share * scale - prepared) / max(1, first.count))
    late = math.ceil(rest[0].share * scale / max(1, rest[0].count)) if rest else 1
    count = first.count + sum(p.count for p in rest)
    return Pieces(max(1, count), max(1, cost), first.count, max(1, late), first.every, math.ceil(extra))


def row_price(work: int, target: str) -> int:
    """Instructions to count on for a segment's row that is expected to take `work`."""
    return math.ceil(_ROW_MARGIN * _margin(target) * work)


def _margin(target: str) -> float:
    return _MARGIN * (_SMALL_CORE if target == "portable" else 1.0)


def sliced(kernel: Kernel) -> bool:
    """Whether the kernel can do its pieces one range after the other."""
    return sum(p.count for p in _phases(kernel)) > 1


def _phases(kernel: Kernel) -> Phases:
    rule = _RULES.get(kernel.template)
    return rule(_sizes(kernel)) if rule else _one(1)


def _sizes(kernel: Kernel) -> Sizes:
    """The numbers a kernel is made of: its template's constants, and those of its table of sizes."""
    found = {k: int(v) for k, v in kernel.params.items() if not isinstance(v, str)}
    names = str(kernel.params.get("shape_names", "")).lower().split(", ")
    found["instructions"] = kernel.instructions
    table = dict(kernel.tables).get("shape")
    if table is not None:
        found |= dict(zip(names, map(int, table), strict=False))
        found |= {f"shape{i}": int(v) for i, v in enumerate(table)}
    return found


def _up(a: int, b: int) -> int:
    return -(-a // b)


def _one(count: int) -> Phases:
    return (Phase(count),)


def _twice(count: int) -> Phases:
    """Once for the largest sum, once for the result."""
    return (Phase(2 * count),)


def _elements(s: Sizes) -> Phases:
    return _one(_up(s["elements"], CHUNK))


def _loops(s: Sizes) -> int:
    """Rows of the innermost of four loops, in parts of at most CHUNK."""
    return s["d0"] * s["d1"] * s["d2"] * _up(s["d3"], CHUNK)


def _pixels(s: Sizes) -> Phases:
    return _one(s["out_h"] * s["out_w"])


def _conv2d(s: Sizes) -> Phases:
    pixels = s["out_h"] * s["out_w"]
    return _one(s["out_c"] if pixels == 1 else pixels)


def _tiles(s: Sizes) -> Phases:
    pixels, columns = s["out_h"] * s["out_w"], _up(s["out_c"], 2)
    run, blocks = s["k_w"] * s["in_c"] * s["k_h"], _up(pixels, s["block"])
    # As in tte/ops/conv_dsp.py.
    window = (4 * run + 48 * s["k_h"] + 300 if s["gather"] else 200 * s["k_h"] + 150) if s["window"] else 60
    pack = _up(min(s["block"], pixels), 4) * (9 * s["pairs"] + (20 * run if s["trained"] else 0) + window)
    multiply = _up(pixels, 4) * columns * (11 * s["pairs"] + 90) + blocks * columns * (5 * s["pairs"] + 110)
    return (Phase(blocks * columns, multiply + blocks * pack, columns, pack),)


def _input_grad(s: Sizes) -> Phases:
    pixels = s["in_h"] * s["in_w"]
    if not s["buffered"]:
        return _twice(pixels)
    depthwise = s["in_c"] * s["multiplier"] == s["out_c"] and s.get("depthwise", 0)
    terms = s["k_h"] * s["k_w"] * (s["multiplier"] if depthwise else s["out_c"])
    return (Phase(pixels, _PER_TERM * terms), Phase(pixels, _PER_RESULT))


def _tiles_input_grad(s: Sizes) -> Phases:
    pixels, trained, results = s["in_h"] * s["in_w"], s["trained"], s["in_h"] * s["in_w"] * s["in_c"]
    quads = _up(trained, 4) + _up(s["in_c"] - trained, 4)
    blocks = _up(pixels, s["block"])
    pack = _up(min(s["block"], pixels), 4) * (22 * s["pairs"] + (150 * s["k_h"] if s["window"] else 60))
    multiply = _up(pixels, 4) * 2 * quads * (11 * s["pairs"] + 40) + blocks * quads * (14 * s["pairs"] + 160)
    again = 1 if s["buffered"] else 2
    count = again * blocks * quads
    first = Phase(count, again * (multiply + blocks * pack), quads, pack, 300 * count)
    return (first, Phase(2 * _up(results, _SUMS), _PER_RESULT * results)) if s["buffered"] else (first,)


def _tiles_weight_update(s: Sizes) -> Phases:
    pixels, taps = s["out_h"] * s["out_w"], s["k_h"] * s["k_w"]
    quads, chunks = _up(s["out_c"], 4), _up(s["trains"], s["chunk"])
    count = taps * chunks * quads
    width = min(s["chunk"], s["trains"])
    find = 90 if s["window"] else 0
    every, pack = (quads, pixels * (width * 4 + 12 + find)) if s["block"] >= pixels else (0, 0)
    sums = 2 * _up(width, 4) * (11 * _up(pixels, 4) * 2 + 50) + 4 * width * 60 + 7 * pixels
    again = taps * chunks * (1 if every else quads)
    return (Phase(count, count * sums + taps * chunks * pack, every, pack, again * find * pixels + 250 * count),)


def _planes_input_grad(s: Sizes) -> Phases:
    groups = _up(s["in_c"], 4)
    if not s["buffered"]:
        return _twice(groups)
    # As in tte/ops/depthwise_dsp.py.
    finish = groups * (27 * s["in_h"] * s["in_w"] + (40 / s["lines"] + 35) * s["in_h"] * s["stride"])
    return (Phase(groups, max(0, s["instructions"] - finish)), Phase(groups, finish))


def _mean(s: Sizes) -> Phases:
    return (Phase(_loops(s), 7 * s["d0"] * s["d1"] * s["d2"] * s["d3"]), Phase(1, 30 * s["y_elements"]))


def _broadcast_grad(s: Sizes) -> Phases:
    if not s["sums"]:
        return _twice(_loops(s))
    return (Phase(_loops(s), s["d0"] * s["d1"] * s["d2"] * s["d3"]), Phase(1, 2 * s["x_elements"]))


def _depthwise_update(s: Sizes) -> Phases:
    return _one(s["k_h"] * s["k_w"] * _up(s["drawn"] or s["trained"] or s["out_c"], 16))


#: Instructions of a product, and of a sum that becomes a result, in kernels that keep their sums.
_PER_TERM, _PER_RESULT = 9, 9
#: Sums of a piece of dsp/conv2d_input_grad's second phase.
_SUMS = 4096

_RULES: dict[str, Callable[[Sizes], Phases]] = {
    "affine": lambda s: _one(_loops(s)),
    "apply_mask": _elements,
    "average_pool": _pixels,
    "average_pool_grad": lambda s: _twice(s["in_h"] * s["in_w"]),
    "bias_update": lambda s: _one(_up(s["channels"], 4)),
    "broadcast_grad": _broadcast_grad,
    "conv2d": _conv2d,
    "conv2d_input_grad": _input_grad,
    "conv2d_weight_update": lambda s: _one(s["out_c"] * s["k_h"] * s["k_w"]),
    "depthwise_conv2d": _pixels,
    "depthwise_input_grad": _input_grad,
    "depthwise_weight_update": _depthwise_update,
    "elementwise": lambda s: _one(_loops(s)),
    "max_pool": _pixels,
    "max_pool_grad": lambda s: _one(s["channels"] * (2 if s["sums"] else 1)),
    "mean": _mean,
    "mean_grad": lambda s: _one(_loops(s)),
    "merge": lambda s: _twice(_up(s["elements"], CHUNK)),
    "negate": _elements,
    # Its prediction is the mean over `every` (shape3) steps; the one in which it is due must fit its slices, too.
    "redraw": lambda s: (Phase(s["shape0"], more=(s["shape3"] - 1) * s["instructions"]),),
    "select_channels": lambda s: _one(s["pixels"]),
    "table": _elements,
    "table_grad": lambda s: _twice(_up(s["elements"], CHUNK)),
    "table_mask": _elements,
    "dsp/apply_mask": lambda s: _one(_up(s["shape0"], CHUNK)),
    "dsp/bias_update": lambda s: _one(_up(s["shape1"], 8)),
    "dsp/conv2d": _tiles,
    "dsp/conv2d_input_grad": _tiles_input_grad,
    "dsp/conv2d_weight_update": _tiles_weight_update,
    "dsp/dense": lambda s: _one(s["out_h"] * s["out_w"] * _up(s["out_c"], 2)),
    "dsp/depthwise_conv2d": lambda s: _one(_up(s["in_c"], 4)),
    "dsp/depthwise_input_grad": _planes_input_grad,
    "dsp/depthwise_weight_update": lambda s: _one(s["channels"]),
}
