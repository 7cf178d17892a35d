"""Kernels of CONV_2D and FULLY_CONNECTED for cores with SIMD instructions: products of tiles (see templates/tte_dsp.h).

Candidates differ in the block of pixels that is expanded at once: a larger block expands the weights less often.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tte.ops import conv_phases
from tte.ops.base import Array, Kernel
from tte.ops.phases import mask_zeros, uncut

if TYPE_CHECKING:
    from tte.ops.linear import Geometry

#: Pixels expanded at once; the largest is rounded up from the layer's own.
_BLOCKS = (4, 8, 16, 32, 64, 128)
#: Sizes that a kernel reads at run time, so that one function serves every layer of its kind.
_SIZES = (
    *("in_h", "in_w", "in_c", "out_h", "out_w", "out_c", "k_h", "k_w"),
    *("stride_h", "stride_w", "dil_h", "dil_w", "pad_h", "pad_w"),
)
#: Largest sum of products that pairs of int16 may make, in terms of K: 127 * 255 * K < 2**31.
_MAX_TERMS = 2**31 // (127 * 255)
#: Right shifts beyond this would push a zero point out of 32 bits.
_MAX_RIGHT = -22


def shape_table(values: Mapping[str, int]) -> tuple[str, Array]:
    """The text of the C enum that names a table's entries, and the table."""
    return ", ".join(name.upper() for name in values), np.array(list(values.values()), np.int32)


def pairs(n: int) -> int:
    """Packed pairs of a run of n bytes (`tte_pairs`)."""
    return n // 4 * 2 + (n % 4 + 1) // 2


def blocks(pixels: int) -> Iterator[int]:
    """Block sizes worth offering, multiples of 4 up to all pixels."""
    whole = -(-pixels // 4) * 4
    yield from (b for b in _BLOCKS if b < whole)
    yield whole


def tile_instructions(count: int, finish: int) -> int:
    """Instructions of one tile of 4 x 2 sums of `count` pairs each.

    Args:
        finish: of what is done with the eight sums.
    """
    return 11 * count + 3 * -(-(count - 1) // 16) + 9 + finish


def _windowed(g: Geometry) -> bool:
    """Whether a pixel of the output is made of more than the same pixel of the input."""
    return (g.k_h, g.k_w, g.pad_h, g.pad_w) != (1, 1, 0, 0) or (g.in_h, g.in_w) != (g.out_h, g.out_w)


def kernels(
    g: Geometry,
    params: Mapping[str, int | str | bool],
    tables: Sequence[tuple[str, Array]],
    rings: tuple[int, int] | None = None,
) -> tuple[Kernel, ...]:
    """Candidates for the forward pass.

    Args:
        params, tables: of the portable kernel.
        rings: rows that the buffers of input and output hold, for the kernel of one row.
    """
    trained = int(params["trained"])
    run = g.k_w * g.in_c
    gather = not trained and g.k_h > 1 and (run % 4 > 0 or run < 16)
    split = (trained, g.in_c - trained) if trained else (run,)
    count = pairs(g.k_h * run) if gather else sum(map(pairs, split)) * g.k_h * (g.k_w if trained else 1)
    pixels = g.out_w if rings else g.out_h * g.out_w
    window = _windowed(g)
    if g.terms > _MAX_TERMS:
        return ()
    if not window and not rings and pixels < 4:
        found = [_dense(g, params, tables, trained, count)]
        if pixels < 2:
            return tuple(found)
    else:
        found = []
    kinds = {k: params[k] for k in ("mask", "acc", "rounding")} | {"rows": rings is not None}
    kinds |= {"trained": trained > 0, "window": window, "gather": gather}
    finish = 160 if params["acc"] or params["rounding"] != "double" else 126 if params["mask"] else 58
    clear = mask_zeros(g.out_h * g.out_w * g.out_c, bool(params["mask"]))
    tile = (4 * g.k_h * (run + 12) + 300 if gather else 200 * g.k_h + 150) if window else 60
    for block in blocks(pixels):
        sizes = {name: int(getattr(g, name)) for name in _SIZES}
        sizes |= {k: int(params[k]) for k in ("x_zero", "y_zero", "y_min", "y_max")}
        sizes |= {"block": block, "pairs": count, "trained": trained}
        if rings:
            sizes |= {"x_ring": rings[0], "y_ring": rings[1]}
        names, table = shape_table(sizes)
        scratch = 0 if not (window or trained) else 4 * (run * g.k_h + 3) if gather else (8 if trained else 4) * run
        workspace = 8 * count + 4 * block * count + 128 + scratch
        tiles, columns = -(-pixels // 4), -(-g.out_c // 2)
        times = -(-pixels // block)
        work = tiles * columns * tile_instructions(count, finish)
        work += times * columns * (5 * count + 110 + 40 * (g.k_h if window else 0))
        work += tiles * (9 * count + (4 * run * g.k_h * 5 if trained else 0) + tile)
        slow = _slow(g, params, tables) or min(block, pixels) < 4
        phases = conv_phases.conv(
            replace(g, out_h=1) if rings else g, block, count, trained,
            window=window, gather=gather, mask=bool(params["mask"]), slow=slow, clear=clear,
        )  # fmt: skip
        found.append(
            Kernel(
                "dsp/conv2d",
                {**kinds, "shape_names": names},
                (*tables, ("shape", table)),
                workspace,
                needs="dsp",
                instructions=work,
                phases=uncut(phases) if rings else phases,
            )
        )
    return tuple(found)


def _slow(g: Geometry, params: Mapping[str, int | str | bool], tables: Sequence[tuple[str, Array]]) -> bool:
    """Whether sums of some channel leave the loop over tiles before they are requantised."""
    by_name = dict(tables)
    fits = bool(((by_name["multiplier"] >= 1 << 30) & (by_name["shift"] < 0)).all())  # tte_scale_fits
    full = (params["y_min"], params["y_max"]) == (-128, 127)
    whole = g.out_c % 8 == 0 or not params["mask"]
    return bool(params["acc"]) or params["rounding"] != "double" or not (fits and full and whole)


def _dense(
    g: Geometry, params: Mapping[str, int | str | bool], tables: Sequence[tuple[str, Array]], trained: int, count: int
) -> Kernel:
    """The kernel for few pixels: every weight is read once a pixel, and expanded then."""
    kinds = {k: params[k] for k in ("mask", "acc", "rounding")} | {"trained": trained > 0}
    sizes = {name: int(getattr(g, name)) for name in ("in_c", "out_h", "out_w", "out_c")}
    sizes |= {k: int(params[k]) for k in ("x_zero", "y_zero", "y_min", "y_max")} | {"trained": trained, "pairs": count}
    m, shift = dict(tables)["multiplier"], dict(tables)["shift"]
    # One scale for the whole tensor, as converters give fully connected layers, is requantised in the inner loop.
    uniform = bool((m == m[0]).all() and (shift == shift[0]).all() and _MAX_RIGHT <= shift[0] <= -2 and g.in_c % 8 == 0)
    uniform &= not trained and not params["mask"] and not params["acc"] and params["rounding"] == "single"
    uniform &= (params["y_min"], params["y_max"]) == (-128, 127)
    kinds["uniform"] = uniform
    if uniform:
        sizes |= {"m": int(m[0]), "shift": int(shift[0])}
        tables = [t for t in tables if t[0] not in ("multiplier", "shift")]
    names, table = shape_table(sizes)
    pixels = g.out_h * g.out_w
    clear = mask_zeros(pixels * g.out_c, bool(params["mask"]))
    work = pixels * (g.in_c * (7 if trained else 2) + -(-g.out_c // 2) * (g.in_c // 8 * 20 + (35 if uniform else 130)))
    return Kernel(
        "dsp/dense",
        {**kinds, "shape_names": names},
        (*tables, ("shape", table)),
        4 * count + (g.in_c if trained else 0),
        needs="dsp",
        instructions=work,
        phases=conv_phases.dense(g, trained, uniform, params["rounding"] == "single", clear),
    )


def paired(values: Array) -> Array:
    """int16 values by packed pairs, as bytes are paired in panels: (0, 2), (1, 3); of the rest (0, 2), (1) or (0, 1) or (0)."""
    words = []
    for at in range(0, len(values), 4):
        group = [int(v) & 0xFFFF for v in values[at : at + 4]]
        order = {4: ((0, 2), (1, 3)), 3: ((0, 2), (1,)), 2: ((0, 1),), 1: ((0,),)}[len(group)]
        words += [sum(group[i] << 16 * half for half, i in enumerate(pair)) for pair in order]
    return np.array(words, np.uint32).astype(np.int32)


def input_grad_kernels(
    g: Geometry, trained: int, buffered: bool, f: int, prescale: Array, channel: Sequence[tuple[str, Array]]
) -> tuple[Kernel, ...]:
    """Candidates for dX.

    Args:
        trained: channels in the trained slice of the weights; 0: one tensor.
        buffered: all int32 sums are kept.
        f, prescale: the factors' common exponent, and the factors [out_c].
        channel: the table of channels, if the weights are split.
    """
    pixels = g.in_h * g.in_w
    if (g.stride_h, g.stride_w) != (1, 1) or pixels < 2:
        return ()
    taps = g.k_h * g.k_w
    count = pairs(g.out_c) * taps
    window = _windowed(g)
    kinds = {"buffered": buffered, "trained": trained > 0, "window": window}
    found = []
    for block in blocks(pixels):
        sizes = {name: int(getattr(g, name)) for name in _SIZES}
        names, table = shape_table({**sizes, "block": block, "pairs": count, "trained": trained, "f": f})
        scratch = 4 * g.k_w * g.out_c if window else 0
        kept = 4 * pixels * g.in_c if buffered else 0
        workspace = 16 * count + 4 * block * count + 8 * block + kept + scratch
        tiles, columns, times = -(-pixels // 4), -(-g.in_c // 2), -(-pixels // block)
        work = tiles * columns * tile_instructions(count, 14 if buffered and not trained else 60)
        work += times * columns * (7 * count + 80)
        work += tiles * (22 * count + (150 * g.k_h if window else 60))
        work *= 1 if buffered else 2
        work += pixels * g.in_c * 9 if buffered else 0
        found.append(
            Kernel(
                "dsp/conv2d_input_grad",
                {**kinds, "shape_names": names},
                (("factors", paired(prescale)), *channel, ("shape", table)),
                workspace,
                needs="dsp",
                instructions=work,
                phases=conv_phases.input_grad(g, block, count, trained, buffered=buffered, window=window),
            )
        )
    return tuple(found)


def weight_update_kernels(g: Geometry, portable: Kernel, channels: int) -> tuple[Kernel, ...]:
    """Candidates for dW with its update: pixels summed at once, and channels of x expanded at once.

    Args:
        portable: the portable kernel: its parameters and tables serve here too.
        channels: input channels that train.
    """
    pixels, taps = g.out_h * g.out_w, g.k_h * g.k_w
    if pixels < 4:
        return ()  # hardly anything to sum
    params = portable.params
    window = _windowed(g)
    listed = any(label == "channel" for label, _ in portable.tables)
    kinds = {"window": window, "trained": listed} | {k: params[k] for k in ("gathered", "mode", "batch", "step_type")}
    gathers = listed and not params["gathered"]
    every = -(-channels // 4) * 4
    found = []
    for block, chunk in ((16, 4), (64, 4), (64, 16), (pixels, 4), (pixels, 16), (pixels, 64), (pixels, every)):
        if block > pixels or chunk > every:
            continue
        block = -(-block // 4) * 4
        sizes = {name: int(getattr(g, name)) for name in _SIZES} | {"block": block, "chunk": chunk}
        sizes |= {"x_zero": int(params["x_zero"]), "trains": channels, "stream": int(params["stream"])}
        names, table = shape_table(sizes)
        depth = pairs(block)
        workspace = 16 * depth + 4 * depth * chunk + 24 * chunk + g.in_c + (4 * chunk if gathers else 0)
        quads, chunks, times = -(-g.out_c // 4), -(-channels // chunk), -(-pixels // block)
        tiles = chunks * -(-min(chunk, channels) // 4) * quads * 2
        again = quads if times > 1 else 1
        work = times * tiles * tile_instructions(min(depth, pairs(pixels)), 14 + (40 if times > 1 else 0))
        work += chunks * quads * (times * 120 + pixels * 7)
        work += again * pixels * (channels * (7 if gathers else 2) + 12 * chunks)
        work = taps * (work + g.out_c * channels * 60)
        random, batched = params["mode"] in ("r4", "sr"), int(params["batch"]) > 1
        phases = conv_phases.weight_update(
            g, block, chunk, channels, window=window, gathers=gathers, random=random, batched=batched
        )
        found.append(
            Kernel(
                "dsp/conv2d_weight_update",
                {**kinds, "shape_names": names},
                (*portable.tables, ("shape", table)),
                workspace,
                control=True,
                needs="dsp",
                instructions=work,
                phases=phases,
            )
        )
    return tuple(found)
