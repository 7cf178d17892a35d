"""Kernels of DEPTHWISE_CONV_2D for cores with SIMD instructions: four channels at a time in planes of int16, whose
neighbours are multiplied in pairs (see templates/tte_dsp.h).

Candidates differ in what is expanded at once: all rows or as many as the window has, all columns or a part of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tte.ops.base import Array, Kernel
from tte.ops.conv_dsp import shape_table
from tte.ops.phases import mask_zeros, once, twice, uncut

if TYPE_CHECKING:
    from tte.ops.linear import Geometry

#: Outputs of a tile, and instructions for a tile's row of the window and for the rest of a tile, by taps and stride.
_TILES = {
    (3, 1): (4, 11, 34),
    (3, 2): (4, 11, 37),
    (5, 1): (4, 16, 37),
    (5, 2): (2, 9, 24),
    (7, 1): (4, 21, 37),
    (7, 2): (2, 11, 24),
}
#: Words of a channel before its rows of weights.
_HEAD = 4
_FULL = {"y_min": -128, "y_max": 127}
#: Fewest outputs of a part of a row.
_SMALLEST = 4
#: Bytes of scratch memory below which no smaller parts are worth having.
_SMALL = 1100


@dataclass(frozen=True)
class Loop:
    """A loop over outputs of one channel (`tte_depthwise_*`).

    Attributes:
        taps, stride: of the window, which is square.
    """

    taps: int
    stride: int

    @property
    def tile(self) -> int:
        return _TILES[self.taps, self.stride][0]

    @property
    def words(self) -> int:
        """Words of a row of weights."""
        return self.taps - 1 if self.stride == 1 else (self.taps + 1) // 2

    def rounded(self, width: int) -> int:
        """Outputs of whole tiles."""
        return -(-width // self.tile) * self.tile

    def pitch(self, width: int) -> int:
        """Bytes of a row of a plane."""
        return ((self.rounded(width) - 1) * self.stride + self.taps + 1) // 2 * 4

    def weights(self, rows: int) -> int:
        """Bytes of four channels' weights."""
        return 16 * (_HEAD + rows * self.words)

    def prepare(self, rows: int) -> float:
        """Instructions that pair the weights of four channels."""
        return 140 + rows * (12 + 14 * self.words)

    def instructions(self, width: int, rows: float, sums: bool = False) -> float:
        """Of one row of outputs of one channel.

        Args:
            rows: of the window that lie inside.
            sums: they stay int32.
        """
        tile, row, rest = _TILES[self.taps, self.stride]
        return 23 + -(-width // tile) * (rows * row + (10 if sums else rest))


def _parts(width: int, tile: int) -> Iterator[int]:
    """Widths worth expanding at once: the whole row, a half, and so on."""
    yield width
    while width > _SMALLEST:
        half = (width + 1) // 2
        width = max(_SMALLEST, -(-half // tile) * tile)
        yield width


def _expand(width: int, lines: float) -> float:
    """Instructions that expand rows of four channels."""
    return 40 + lines * (26 + 6.2 * width)


def rows_inside(size: int, outputs: int, taps: int, stride: int, pad: int) -> float:
    """Rows of a window that lie inside, on average."""
    inside = (sum(0 <= o * stride - pad + k < size for k in range(taps)) for o in range(outputs))
    return sum(inside) / outputs


def fits(g: Geometry) -> bool:
    """Whether there are kernels for it."""
    return (
        (g.k_w, g.stride_w) in _TILES
        and (g.k_h, g.stride_h) == (g.k_w, g.stride_w)
        and (g.dil_h, g.dil_w) == (1, 1)
        and g.multiplier == 1
        and g.in_c >= 4
    )


def _ascending(trained: Sequence[int]) -> bool:
    """Whether the list of trained channels can be walked along with the channels."""
    return list(trained) == sorted(trained)


def kernels(
    g: Geometry,
    params: Mapping[str, int | str | bool],
    tables: Sequence[tuple[str, Array]],
    trained: Sequence[int],
    rings: tuple[int, int] | None = None,
) -> tuple[Kernel, ...]:
    """Candidates for the forward pass.

    Args:
        params, tables: of the portable kernel.
        trained: channels in the trained slice of the weights; empty: one tensor.
        rings: rows that the buffers of input and output hold, for the kernel of one row.
    """
    if not fits(g) or params["acc"] or params["rounding"] != "double" or not _ascending(trained):
        return ()
    by_name = dict(tables)
    short = (by_name["multiplier"] >= 1 << 30) & (by_name["shift"] < 0)  # tte_depthwise_scale_fits
    full = all(params[k] == v for k, v in _FULL.items())
    mask = bool(params["mask"])
    sums = mask or not full or not short.all()
    loop = Loop(g.k_w, g.stride_w)
    kinds = {"k": loop.taps, "stride": loop.stride, "tile": loop.tile, "words": loop.words}
    kinds |= {"rows": rings is not None, "mask": mask, "trained": bool(trained), "sums": sums}
    sizes = {name: int(getattr(g, name)) for name in ("in_h", "in_w", "in_c", "out_h", "out_w", "pad_h", "pad_w")}
    # The last three stand together: `tte_depthwise_finish` takes their address.
    sizes |= {name: int(params[name]) for name in ("x_zero", "y_zero", "y_min", "y_max")}
    if rings:
        sizes |= {"x_ring": rings[0], "y_ring": rings[1]}
    if trained:
        sizes["trained"] = len(trained)
    inside = rows_inside(g.in_h, g.out_h, g.k_h, g.stride_h, g.pad_h)
    out_h, groups = (1 if rings else g.out_h), -(-g.in_c // 4)
    clear = mask_zeros(g.out_h * g.out_w * g.in_c, mask)
    found = []
    for held, lines in _blocks(g, rings is not None, mask):
        rolls = not rings and held < g.in_h
        table_rows = 2 * g.k_h - 1 if rolls else g.k_h
        small = False
        for chunk in _parts(g.out_w, loop.tile):
            workspace = loop.weights(table_rows) + 20 * lines + 4 * held * loop.pitch(chunk)
            workspace += (16 * lines if mask else 4) * sums * loop.rounded(chunk)
            if small:
                continue
            small = workspace <= _SMALL
            names, table = shape_table({**sizes, **({} if rings else {"lines": lines}), "held": held, "chunk": chunk})
            work = 0.0
            for start in range(0, g.out_w, chunk):
                width = min(chunk, g.out_w - start)
                per_group = loop.prepare(g.k_h) + (20 * (g.k_h - 1) * loop.words if rolls else 0)
                per_group += _expand(width * loop.stride, inside if rings else g.in_h)
                per_row = 4 * loop.instructions(width, g.k_h if rolls else inside, mask or not full)
                per_row += 80 / lines + 40 * rolls
                if mask:
                    per_row += 4 * 15 * width + 70
                elif not full:
                    per_row += 4 * (40 + width * 14)
                work += groups * (per_group + out_h * per_row + 80) + 60 + 8 * 4 * held
            slowly = groups * out_h * g.out_w * 4 * 25 if mask and (g.in_c % 4 or not full or not short.all()) else 0
            phases = once(groups, (work + slowly) / groups + _PER_GROUP, clear)
            found.append(
                Kernel(
                    "dsp/depthwise_conv2d",
                    {**kinds, "shape_names": names},
                    (*tables, ("shape", table)),
                    workspace,
                    needs="dsp",
                    instructions=round(work),
                    phases=uncut(phases) if rings else phases,
                )
            )
    return tuple(found)


def _blocks(g: Geometry, by_rows: bool, mask: bool) -> list[tuple[int, int]]:
    """Rows of x that planes hold, and rows of outputs that are summed at once, worth offering."""
    if by_rows:
        return [(min(g.k_h, g.in_h), 1)]
    whole = [(g.in_h, g.out_h)] + ([(g.in_h, 1)] if mask else [])
    return whole if g.in_h <= g.k_h else [(g.k_h, 1), *whole]


#: Of pieces (see `tte.ops.phases.Phase`): what groups of four channels take more than is predicted; of dX, its part.
_PER_GROUP, _UNDERRATED = 350, 1.05
#: Taps of the loop (stride 1) that sums dX, by the layer's taps and stride.
_GRAD_LOOPS = {(3, 1): 3, (5, 1): 5, (7, 1): 7, (3, 2): 3, (5, 2): 3, (7, 2): 5}


def input_grad_kernels(
    g: Geometry, trained: Sequence[int], buffered: bool, f: int, tables: Sequence[tuple[str, Array]]
) -> tuple[Kernel, ...]:
    """Candidates for dX.

    Args:
        trained: channels in the trained slice of the weights; empty: one tensor.
        buffered: all int32 sums are kept.
        f: the common exponent of the factors on the errors.
        tables: of the portable kernel.
    """
    if not fits(g) or not _ascending(trained):
        return ()
    taps, stride = g.k_w, g.stride_w
    loop = Loop(_GRAD_LOOPS[taps, stride], 1)
    kinds = {"k": taps, "stride": stride, "loop": loop.taps, "trained": bool(trained), "buffered": buffered}
    sizes = {name: int(getattr(g, name)) for name in ("in_h", "in_w", "in_c", "out_h", "out_w", "pad_h", "pad_w")}
    sizes["f"] = f
    if trained:
        sizes["trained"] = len(trained)
    rows = -(-taps // stride)
    inside = rows_inside(g.out_h, g.in_h, taps, 1, taps - 1 - g.pad_h) if stride == 1 else taps / stride * 0.9
    groups, widest = -(-g.in_c // 4), -(-g.in_w // stride)
    found = []
    for held, lines in ((min(rows, g.out_h), 1), (g.out_h, 1), (g.out_h, g.in_h)):
        for chunk in _parts(widest, loop.tile):
            parts = [min(chunk, widest - at) for at in range(0, widest, chunk)]
            kept = sum(map(loop.rounded, parts)) * stride * g.in_h * groups if buffered else lines * loop.rounded(chunk)
            workspace = stride * loop.weights(taps) + 20 * lines + 4 * held * loop.pitch(chunk) + 16 * kept
            names, table = shape_table({**sizes, "lines": lines, "held": held, "chunk": chunk})
            line_rows = g.out_h if held == g.out_h else g.in_h * inside
            gather = 9 * taps * taps if stride == 2 else 0
            work, finish = stride * loop.prepare(taps) + gather, 26.5 * g.in_h * g.in_w
            for width in parts:
                calls = g.in_h * stride / lines
                joined = lines > 1 and stride == 1 and width == g.in_w and width % 4 == 0
                work += _expand(width, line_rows) + calls * 90 + (60 * g.in_h if lines == 1 else 0)
                work += g.in_h * stride * (4 * loop.instructions(width, inside, True) + 13 * loop.rounded(width))
                finish += calls * 40 + (0 if joined else 35 * g.in_h * stride)
            total = groups * (work + finish if buffered else 2 * work + finish)
            first, last = (_PER_GROUP + _UNDERRATED * part for part in (work, finish))
            phases = twice(groups, first, last if buffered else first + _UNDERRATED * finish)
            found.append(
                Kernel(
                    "dsp/depthwise_input_grad",
                    {**kinds, "shape_names": names},
                    (*tables, ("shape", table)),
                    workspace,
                    needs="dsp",
                    instructions=round(total),
                    phases=phases,
                )
            )
    return tuple(found)


def _groups(channels: Sequence[int], size: int, gathered: bool) -> list[int]:
    """How many of the ascending `channels` of `size` go together: those that share four of e, and of x if it is gathered."""
    found: list[int] = []
    first = 0
    while first < len(channels):
        end = min(channels[first] // 4 * 4, size - 4) + 4
        last = min(first // 4 * 4, len(channels) - 4) + 4 if gathered else len(channels)
        found.append(sum(c < end for c in channels[first:last]))
        first += found[-1]
    return found


def weight_update_kernels(g: Geometry, portable: Kernel, trained: Sequence[int]) -> tuple[Kernel, ...]:
    """Candidates for dW with its update: rows of the error that are expanded at once.

    Args:
        portable: the portable kernel: its parameters and tables serve here too.
        trained: channels that train; empty: all.
    """
    params = portable.params
    channels = len(trained) or g.in_c
    if not fits(g) or not _ascending(trained) or (params["gathered"] and channels < 4):
        return ()
    loop = Loop(g.k_w, g.stride_w)
    kinds = {name: params[name] for name in ("gathered", "mode", "batch", "step_type")}
    kinds |= {"k": loop.taps, "stride": loop.stride, "trained": bool(trained)}
    sizes = {name: int(getattr(g, name)) for name in ("in_h", "in_w", "out_h", "out_w", "out_c", "pad_h", "pad_w")}
    sizes |= {"x_zero": int(params["x_zero"]), "channels": channels, "stream": int(params["stream"])}
    taps, stride, columns = loop.taps, loop.stride, -(-g.out_w // 4)
    cells = taps * (taps - 1) // 2 * 3
    groups = len({c // 4 for c in trained}) if trained else -(-g.in_c // 4)
    together = _groups(trained or range(channels), g.out_c, bool(params["gathered"]))
    inside = rows_inside(g.in_h, g.out_h, taps, stride, g.pad_h)
    found = []
    for band in dict.fromkeys((1, *(b for b in (4, 16) if b < g.out_h), g.out_h)):
        x_rows = min(g.in_h, (band - 1) * stride + taps)
        pitch = ((4 * columns - 1) * stride + taps + 1) // 2 * 4
        workspace = 16 * cells + 4 * (pitch * x_rows + 8 * columns * band)
        bands = -(-g.out_h // band)
        names, table = shape_table({**sizes, "band": band})
        lines = 0
        for first in range(0, g.out_h, band):
            top, last = first * stride - g.pad_h, (min(first + band, g.out_h) - 1) * stride - g.pad_h + taps
            lines += max(0, min(g.in_h, last) - max(0, top))
        per_group = _expand(g.in_w, lines) + _expand(g.out_w, g.out_h) + 16 * cells + bands * (taps * 40 + 60) + 150
        triple = bands * 45 + g.out_h * inside / taps * (5 + columns * (13 if stride == 1 else 18))
        per_channel = cells / 3 * triple + taps * taps * 60 + 60
        largest = _PER_GROUP + per_group + max(together) * per_channel
        found.append(
            Kernel(
                "dsp/depthwise_weight_update",
                {**kinds, "shape_names": names},
                (*portable.tables, ("shape", table)),
                workspace,
                control=True,
                needs="dsp",
                instructions=round(groups * per_group + channels * per_channel),
                phases=once(len(together), largest),
            )
        )
    return tuple(found)
