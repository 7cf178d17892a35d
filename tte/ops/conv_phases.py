"""Pieces of the kernels in `tte.ops.conv_dsp`, and what they take (see `tte.ops.phases.Phase`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tte.ops.phases import PER_PIECE, Phase, Phases, parts

if TYPE_CHECKING:
    from tte.ops.linear import Geometry

#: Pixels of a tile.
_TILE = 4
#: Blocks of at most so many pixels may lie at an edge altogether.
_SMALL_BLOCK = 16


def conv(
    g: Geometry, block: int, count: int, trained: int, *,
    window: bool, gather: bool, mask: bool, slow: bool, clear: float,
) -> Phases:  # fmt: skip
    """Of each block of pixels, two output channels at a time; first the block is expanded.

    Args:
        block: pixels expanded at once.
        count: packed pairs of a pixel.
        trained: channels in the trained slice of the weights.
        slow: sums leave the loop, and are requantised one by one.
        clear: instructions that clear the mask.
    """
    pixels, columns, taps = g.out_h * g.out_w, parts(g.out_c, 2), g.k_h * g.k_w
    tiles = parts(min(block, pixels), _TILE)
    finish = (290 if mask or trained else 190) if slow else (135 if mask else 70)
    cost = 400.0 + tiles * (11.5 * count + finish) + 5 * count
    cost += 160 + 36 * taps if trained else 18 * g.k_h if window else 0
    run, size = g.k_w * g.in_c, g.in_c
    pack, edges = 110.0 + 9 * count, _at_edges(g, -g.pad_w, g.stride_w, g.out_w, g.in_w, block)
    if gather:
        pack += 200 + _TILE * g.k_h * (62 + edges * 24 * g.k_w)
    elif window or trained:
        pack += 60 * (run % 4 > 0) + _TILE * g.k_h * (90 + window * edges * g.k_w * (33 + size / 2))
        pack += 240 * taps + 35 * g.k_h * run if trained else 0
    else:
        pack += 60 * (size % 4)
    pieces = parts(pixels, block) * columns
    # The mask is cleared before the first block alone: all of them are charged for it.
    return (Phase(pieces, cost, columns, tiles * pack + clear),)


def dense(g: Geometry, trained: int, uniform: bool, single: bool, clear: float) -> Phases:
    """Of each pixel, two output channels at a time."""
    pairs = parts(g.out_c, 2)
    cost = 2.6 * g.in_c + (100 if uniform else 500 if trained or single else 350)
    return (Phase(g.out_h * g.out_w * pairs, cost, pairs, 100 + g.in_c * (7.1 if trained else 2.1) + clear),)


def input_grad(g: Geometry, block: int, count: int, trained: int, *, buffered: bool, window: bool) -> Phases:
    """Of each block of pixels, four columns of weights at a time; then results, if all sums are kept.

    Args:
        block: pixels expanded at once.
        count: packed pairs of a pixel's window of errors.
        trained: channels in the trained slice of the weights.
    """
    pixels, quads = g.in_h * g.in_w, parts(trained, 4) + parts(g.in_c - trained, 4)
    tiles = parts(min(block, pixels), _TILE)
    finish = 290 if not buffered else 190 if trained or pixels % _TILE else 45
    cost = 650 + tiles * (22.6 * count + finish) + 28 * count + 115 * g.k_h * g.k_w
    pack = 60.0 + 24 * count + 120 * (g.out_c % 4 > 0)
    if window:
        edges = _at_edges(g, g.pad_w + (1 - g.k_w) * g.dil_w, 1, g.in_w, g.out_w, block)
        pack += 40 + _TILE * g.k_h * (110 + edges * g.k_w * (33 + g.out_c / 2))
    first = Phase((1 if buffered else 2) * parts(pixels, block) * quads, cost, quads, tiles * pack)
    if not buffered:
        return (first,)
    results = pixels * g.in_c
    most, times = min(results, PER_PIECE["sums"]), parts(results, PER_PIECE["sums"])
    return first, Phase(times, 130 + 4 * most), Phase(times, 130 + 5.3 * most)


def weight_update(
    g: Geometry, block: int, chunk: int, channels: int, *,
    window: bool, gathers: bool, random: bool, batched: bool,
) -> Phases:  # fmt: skip
    """Of each tap and `chunk` of input channels, four output channels at a time; where all pixels are summed at once they are
    expanded before the first four.

    Args:
        block: pixels summed at once.
        channels: input channels that train.
        gathers: they are picked from x.
        random, batched: how steps are applied.
    """
    pixels, quads = g.out_h * g.out_w, parts(g.out_c, 4)
    width, times = min(chunk, channels), parts(pixels, block)
    tiles, columns = parts(width, _TILE), min(4, g.out_c)
    step = (75 if random else 60) + 25 * batched
    pack = pixels * (15 + width * (11 if gathers else 4.5) + 75 * window)
    pieces = g.k_h * g.k_w * parts(channels, chunk) * quads
    cost = 350 + columns * (60 + width * step) + 9 * pixels
    depth = parts(min(block, pixels), 2)
    if times == 1:
        return (Phase(pieces, cost + tiles * 2 * (12 * depth + 50), quads, pack + 3 * g.in_c),)
    return (Phase(pieces, cost + pack + times * (170 + tiles * 2 * (12 * depth + 100))),)


def _at_edges(g: Geometry, first: int, step: int, count: int, width: int, block: int) -> float:
    """The part of a block's windows that are put together tap by tap: they are dilated, or reach beyond a row's end.

    Args:
        first, step, count: columns in which the windows of a row begin.
        width: of the row.
    """
    if g.dil_w > 1 or block <= _SMALL_BLOCK:
        return 1.0
    return sum(x < 0 or x + g.k_w > width for x in range(first, first + step * count, step)) / count
