"""Fixed-point arithmetic in NumPy: the twin of `templates/tte_runtime.h`.

Everything here takes and gives int64 arrays (or Python ints) that hold values of the narrower types the device uses,
so that an overflow the device would suffer shows up in a test rather than wrapping silently. The multiplier and
rounding rules are those of TensorFlow Lite's reference kernels; the training rules are this project's own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
INT32_MAX = 2**31 - 1
INT32_MIN = -(2**31)


def as_i64(x: Any) -> I64:
    """`x` as an int64 array."""
    return np.asarray(x, dtype=np.int64)


def quantize_multiplier(m: float) -> tuple[int, int]:
    """A real multiplier as `(M, s)` with `m = M * 2**(s - 31)` and M in [2**30, 2**31).

    Source: TFLite `QuantizeMultiplier` (quantization_util.cc): rounding half away from zero, flushed to zero below
    2**-32, saturated above 2**30.
    """
    if m == 0:
        return 0, 0
    q, shift = math.frexp(m)
    mantissa = math.floor(abs(q) * 2**31 + 0.5) * (1 if q > 0 else -1)
    if mantissa == 2**31:
        mantissa //= 2
        shift += 1
    if shift < -31:
        return 0, 0
    if shift > 30:
        return INT32_MAX, 30
    return mantissa, shift


def quantize_multiplier16(m: float) -> tuple[int, int]:
    """A positive real multiplier as `(M, t)` with `m = M * 2**(t - 15)` and M in [2**14, 2**15)."""
    if m <= 0:
        return 0, 0
    q, t = math.frexp(m)
    mantissa = math.floor(q * 2**15 + 0.5)
    if mantissa == 2**15:
        mantissa //= 2
        t += 1
    return mantissa, t


def wrap32(x: Any) -> I64:
    """Two's complement wrap to 32 bits."""
    return ((as_i64(x) + 2**31) & 0xFFFFFFFF) - 2**31


def srdhm(a: Any, b: Any) -> I64:
    """SaturatingRoundingDoublingHighMul of gemmlowp: `(a * b + nudge) / 2**31`, division towards zero."""
    a, b = as_i64(a), as_i64(b)
    ab = a * b
    total = ab + np.where(ab >= 0, 1 << 30, 1 - (1 << 30))
    high = np.where(total >= 0, total >> 31, -((-total) >> 31))
    return np.where((a == INT32_MIN) & (b == INT32_MIN), INT32_MAX, high)


def rounding_divide_by_pot(x: Any, exponent: Any) -> I64:
    """`x / 2**exponent`, half away from zero (gemmlowp RoundingDivideByPOT)."""
    x, exponent = as_i64(x), as_i64(exponent)
    mask = (np.int64(1) << exponent) - 1
    return as_i64((x >> exponent) + ((x & mask) > ((mask >> 1) + (x < 0))))


def requantise(x: Any, mantissa: Any, shift: Any, rounding: str = "double") -> I64:
    """MultiplyByQuantizedMultiplier: `x * mantissa * 2**(shift - 31)`.

    Args:
        rounding: "double" (gemmlowp: high multiply, then rounding shift) or "single" (one rounding in 64 bits, as in
            FULLY_CONNECTED of the LiteRT build the tests pin).
    """
    x, mantissa, shift = as_i64(x), as_i64(mantissa), as_i64(shift)
    if rounding == "single":
        total = 31 - shift
        return as_i64((x * mantissa + (np.int64(1) << (total - 1))) >> total)
    left = np.maximum(shift, 0)
    return rounding_divide_by_pot(srdhm(wrap32(x << left), mantissa), np.maximum(-shift, 0))


def round_shift(v: Any, s: Any) -> I64:
    """`rs(v, s)` of the numerics: rounding right shift for s >= 1, left shift for s <= 0, saturating when extreme.

    s > 62 gives 0; s < -20 gives sign(v) * (2**31 - 1).
    """
    v = as_i64(v)
    s = np.broadcast_to(as_i64(s), v.shape)
    right = np.clip(s, 1, 62)
    down = (v + (np.int64(1) << (right - 1))) >> right
    # Clipping before the shift keeps it inside 64 bits; every caller clamps the result far below 2**40.
    up = np.clip(v, -(1 << 40), 1 << 40) << np.clip(-s, 0, 20)
    up = np.where(s < -20, np.sign(v) * INT32_MAX, up)
    return np.where(s > 62, 0, np.where(s <= 0, up, down))


def bit_length(v: int) -> int:
    """Bits of a non-negative integer; 0 for 0."""
    return int(v).bit_length()


def to_int8(acc: Any) -> tuple[I64, int]:
    """Block-floating requantisation of an accumulator tensor: `(e, s)` with `e = s8(rs(acc, s))`.

    `s = max(0, bl(max|acc|) - 7)` is the smallest shift that brings every value into int8.
    """
    acc = as_i64(acc)
    s = max(0, bit_length(int(np.abs(acc).max(initial=0))) - 7)
    return np.clip(round_shift(acc, s), -127, 127), s


def hash32(x: Any) -> NDArray[np.uint64]:
    """32-bit finaliser with multipliers 0x7feb352d and 0x846ca68b (the "lowbias32" constants by C. Wellons)."""
    h = np.asarray(x, np.uint64) & np.uint64(0xFFFFFFFF)
    h = h ^ (h >> np.uint64(16))
    h = (h * np.uint64(0x7FEB352D)) & np.uint64(0xFFFFFFFF)
    h = h ^ (h >> np.uint64(15))
    h = (h * np.uint64(0x846CA68B)) & np.uint64(0xFFFFFFFF)
    return h ^ (h >> np.uint64(16))


def random_key(seed: int, step: int, stream: int) -> int:
    """The key of one tensor's random numbers at one step; `stream` is unique to the tensor."""
    inner = int(hash32((stream * 0x9E3779B9 + 0x85EBCA6B) & 0xFFFFFFFF))
    return int(hash32((seed ^ int(hash32((step ^ inner) & 0xFFFFFFFF))) & 0xFFFFFFFF))


def random16(key: int, index: Any) -> I64:
    """16 uniform random bits for each linear index: half of `hash32(key + (index >> 1))`."""
    index = np.asarray(index, np.uint64)
    h = hash32((np.uint64(key) + (index >> np.uint64(1))) & np.uint64(0xFFFFFFFF))
    return np.where(index & np.uint64(1), h >> np.uint64(16), h & np.uint64(0xFFFF)).astype(np.int64)


def random32(key: int, index: Any) -> I64:
    """32 uniform random bits for each index: `random16` of numbers `2 * index` (low half) and `2 * index + 1`."""
    return hash32((np.uint64(key) + np.asarray(index, np.uint64)) & np.uint64(0xFFFFFFFF)).astype(np.int64)


def log2_q8(x: int) -> int:
    """`floor(256 * log2(x))` for 1 <= x < 2**32, by repeated squaring: integers only, the same in C."""
    n = bit_length(x) - 1
    y = (x << (31 - n)) & 0xFFFFFFFF
    frac = 0
    for _ in range(8):
        square = (y * y) >> 31
        frac <<= 1
        if square >= 1 << 32:
            frac |= 1
            square >>= 1
        y = square
    return (n << 8) + frac
