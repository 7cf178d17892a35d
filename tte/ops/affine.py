"""Two-input operators in one multiply-add: `y = (a * K_a + b * K_b + C) >> S`, where that is exact for every pair of bytes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tte.fixed import I64, INT32_MAX

#: How far from the real coefficients, in units of the last place, and for how many shifts, one looks.
_REACH, _SHIFTS = 3, 6


@dataclass(frozen=True)
class Affine:
    """`(a * ka + b * kb + c) >> shift` in int32, a and b int8; no partial sum in this order passes int32."""

    ka: int
    kb: int
    c: int
    shift: int

    def __call__(self, a: I64, b: I64) -> I64:
        return (a * self.ka + self.c + b * self.kb) >> self.shift


def fit(wanted: I64, ra: float, rb: float, c: float) -> Affine | None:
    """Integers with which `Affine` equals a table; None where none are found.

    Args:
        wanted: [256, 256] results for a and b from -128 on. The least of them stands for all that is less, the greatest for
            all that is greater: the caller clamps there.
        ra, rb, c: the real form, `a * ra + b * rb + c` rounded to the nearest.

    Returns:
        Coefficients proved on all 65,536 pairs.
    """
    return _fit(wanted.astype(np.int16).tobytes(), ra, rb, c)


@functools.lru_cache(maxsize=512)
def _fit(table: bytes, ra: float, rb: float, c: float) -> Affine | None:
    wanted = np.frombuffer(table, np.int16).reshape(256, 256).astype(np.int64)
    reach = abs(ra) * 256 + abs(rb) * 256 + abs(c) + 1
    largest = 30 - int(np.ceil(np.log2(reach)))
    a = np.arange(-128, 128, dtype=np.int64)[:, None]
    b = a.T
    for shift in range(largest + 1, max(largest + 1 - _SHIFTS, 0), -1):
        for ka, kb in _near(ra * 2.0**shift, rb * 2.0**shift):
            low, high = _interval(wanted, a * ka + b * kb, shift)
            if low >= high:
                continue
            found = Affine(ka, kb, min(max(round((c + 0.5) * 2.0**shift), low), high - 1), shift)
            if _fits(found):
                return found
    return None


def _near(x: float, y: float) -> Iterator[tuple[int, int]]:
    """Pairs of integers near (x, y), the nearest first."""
    reach = range(-_REACH, _REACH + 1)
    steps = sorted(((i, j) for i in reach for j in reach), key=lambda p: abs(p[0]) + abs(p[1]))
    yield from ((round(x) + i, round(y) + j) for i, j in steps)


def _interval(wanted: I64, sums: I64, shift: int) -> tuple[int, int]:
    """The constants c, from the first to before the second, with which `(sums + c) >> shift` is as wanted."""
    least, greatest = wanted.min(), wanted.max()
    at_least = (wanted << shift) - sums
    low = at_least[wanted > least].max(initial=-(1 << 40))
    high = (at_least + (1 << shift))[wanted < greatest].min(initial=1 << 40)
    return int(low), int(high)


def _fits(form: Affine) -> bool:
    """Whether all partial sums stay within int32."""
    ends = np.array([-128, 127])
    part = ends * form.ka + form.c
    total = part[:, None] + ends * form.kb
    largest = [np.abs(v).max() for v in (ends * form.ka, ends * form.kb, part, total)]
    return int(max(*largest, abs(form.c))) <= INT32_MAX
