"""The fixed-point twins: `tte/fixed.py` and the update rules in NumPy against `templates/tte_runtime.h` in C.

One small program, compiled for this computer with the undefined-behaviour sanitizer, reads rows of int64 arguments and
writes one int64 a row.
"""

from __future__ import annotations

import functools
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tte import fixed, resources
from tte.ops.error import _align
from tte.ops.linear_grad import apply_step

I64 = np.ndarray
MAX, MIN = 2**31 - 1, -(2**31)


@dataclass(frozen=True)
class Function:
    """A C function, and its NumPy twin on the same columns of arguments.

    Attributes:
        c: an expression of a[0], a[1], ... (int64_t).
        rows: the arguments, [n, columns].
    """

    name: str
    c: str
    rows: Callable[[], I64]
    twin: Callable[..., object]


def columns(*parts: Sequence[I64] | I64) -> I64:
    return np.stack([np.asarray(p, np.int64).ravel() for p in np.broadcast_arrays(*parts)], axis=1)


def ties(shift: int, count: int = 40) -> I64:
    """Values at, just below and just above odd halves of 2**shift, of both signs."""
    half = 1 << max(shift - 1, 0)
    odd = (2 * np.arange(-count, count, dtype=np.int64) + 1) * half
    return np.concatenate([odd - 1, odd, odd + 1])


def int32s(rng: np.random.Generator, count: int) -> I64:
    """int32 of every magnitude, and the extremes."""
    size = rng.integers(0, 32, count)
    values = rng.integers(MIN, MAX, count, endpoint=True) >> size
    return np.concatenate([values, [MIN, MIN + 1, -1, 0, 1, MAX - 1, MAX, 1 << 30, -(1 << 30)]])


def random_rows(*makers: Callable[[np.random.Generator, int], I64], count: int = 4000) -> I64:
    """Independent columns of the same length."""
    rng = np.random.default_rng(len(makers))
    made = [m(rng, count) for m in makers]
    length = min(len(m) for m in made)
    return columns(*(rng.permutation(m)[:length] for m in made))


def between(low: int, high: int) -> Callable[[np.random.Generator, int], I64]:
    return lambda rng, count: np.concatenate([[low, high], rng.integers(low, high, count, endpoint=True)])


def requantise_rows() -> I64:
    """Random values, and half-ties through the mantissa 2**30 (a pure shift) and others."""
    rng = np.random.default_rng(0)
    parts = [random_rows(int32s, between(1 << 30, MAX), between(-31, 0))]
    for shift in range(0, 31):
        parts.append(columns(np.clip(ties(shift + 1), MIN, MAX), 1 << 30, -shift))
        parts.append(columns(rng.integers(-(1 << 20), 1 << 20, 50), rng.integers(1 << 30, MAX, 50), -shift))
    for shift in range(1, 20):
        limit = MAX >> shift
        parts.append(columns(rng.integers(-limit, limit, 50, endpoint=True), rng.integers(1 << 30, MAX, 50), shift))
    return np.concatenate(parts)


def single_rows() -> I64:
    """As `requantise_rows`, less what does not fit int32 after one rounding."""
    rows = requantise_rows()
    return rows[(rows[:, 2] <= 0) & (rows[:, 0] > MIN)]


def shift_rows() -> I64:
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.integers(-(1 << 46), 1 << 46, 60), rng.integers(-300, 300, 60), [0, 1, -1]])
    parts = [columns(values[:, None], np.arange(-40, 80)[None, :])]
    parts += [columns(ties(s), s) for s in range(1, 50)]
    return np.concatenate(parts)


def to_int8_rows() -> I64:
    rows = np.concatenate([columns(np.clip(ties(s), MIN, MAX), s) for s in range(26)])
    return np.concatenate([rows, random_rows(int32s, between(0, 25))])


def step_rows(a: int) -> I64:
    """A sum, mantissa, exponent, k and learning-rate factor."""
    return random_rows(between(-a, a), between(1 << 14, (1 << 15) - 1), between(-60, 30), between(-60, 40), between(0, 1 << 15))


def weight_step(a: I64, m: I64, t: I64, k: I64, eta: I64) -> I64:
    return np.clip(fixed.round_shift(a * (m * eta >> 15), k - t - 1), -(1 << 23), 1 << 23)


def bias_step(a: I64, m: I64, t: I64, k: I64, eta: I64) -> I64:
    return np.clip(fixed.round_shift(a * (m * eta >> 15), k - t + 7), -(1 << 30), 1 << 30)


def merge_rows() -> I64:
    """Two errors with their exponents, up to 30 apart either way, and the ratio of their factors."""
    error, exponent = between(-127, 127), between(0, 30)
    ends = random_rows(between(-127, -126), exponent, between(126, 127), exponent, between(1 << 14, (1 << 15) - 1))
    return np.concatenate([ends, random_rows(error, exponent, error, exponent, between(1 << 14, (1 << 15) - 1), count=20000)])


def merged(a: int, ka: int, b: int, kb: int, ratio: int) -> int:
    k = min(ka, kb)
    low, high = np.array([a << 8]), np.array([(b * ratio + 64) >> 7])
    return int((_align(low, int(ka - k)) + _align(high, int(kb - k)))[0])


def apply_rows(residual: int) -> I64:
    """Weight, residual, D, u: all weights with extreme steps, and random ones."""
    all_w = np.arange(-127, 128)[:, None]
    d = np.array([1, -1, 32768, -32768, 65536, -65536, 1 << 23, -(1 << 23), 4096, -2048, 128, -129])[None, :]
    edge = columns(all_w, residual - 1, d, 65535)
    w, limit = between(-127, 127), between(-(1 << 23), 1 << 23)
    small = between(-70000, 70000)
    rest = (between(-residual, residual - 1), limit, between(0, 65535))
    return np.concatenate([edge, random_rows(w, *rest), random_rows(w, rest[0], small, rest[2])])


def applied(mode: str, part: int) -> Callable[[I64, I64, I64, I64], I64]:
    def twin(w: I64, r: I64, d: I64, u: I64) -> I64:
        d = np.where(d == 0, 1, d)
        return apply_step(mode, w, r, d, u)[part]

    return twin


def uint32s(rng: np.random.Generator, count: int) -> I64:
    return np.concatenate([[0, 1, 2**32 - 1, 2**31], rng.integers(0, 2**32, count)])


FUNCTIONS = (
    Function("bit_length", "tte_bit_length(a[0])", lambda: random_rows(uint32s), np.vectorize(fixed.bit_length)),
    Function("high_mul", "tte_high_mul(a[0], a[1])", lambda: random_rows(int32s, int32s), fixed.srdhm),
    Function(
        "divide_by_pot",
        "tte_divide_by_pot(a[0], a[1])",
        lambda: np.concatenate([columns(np.clip(ties(s), MIN, MAX), s) for s in range(32)]),
        fixed.rounding_divide_by_pot,
    ),
    Function("double", "tte_requantise_double(a[0], a[1], a[2])", requantise_rows, fixed.requantise),
    Function(
        "single",
        "tte_requantise_single(a[0], a[1], a[2])",
        single_rows,
        lambda x, m, s: fixed.requantise(x, m, s, "single"),
    ),
    Function("round_shift", "tte_round_shift(a[0], a[1])", shift_rows, fixed.round_shift),
    Function(
        "to_int8",
        "tte_to_int8(a[0], a[1])",
        to_int8_rows,
        lambda v, s: np.clip(fixed.round_shift(v, s), -127, 127),
    ),
    Function(
        "int8_shift",
        "tte_int8_shift(tte_abs(a[0]))",
        lambda: random_rows(int32s),
        np.vectorize(lambda v: fixed.to_int8(np.array([v]))[1]),
    ),
    Function("merged", "merged(a[0], a[1], a[2], a[3], a[4])", merge_rows, np.vectorize(merged)),
    Function("hash", "tte_hash(a[0])", lambda: random_rows(uint32s), fixed.hash32),
    Function(
        "random_key",
        "tte_random_key(&(tte_control){0, a[0], a[1]}, a[2])",
        lambda: random_rows(uint32s, uint32s, between(0, 4000)),
        np.vectorize(lambda seed, step, stream: fixed.random_key(int(seed), int(step), int(stream))),
    ),
    Function(
        "random16",
        "tte_random16(a[0], a[1])",
        lambda: random_rows(uint32s, between(0, 1 << 24)),
        np.vectorize(lambda key, index: int(fixed.random16(int(key), index))),
    ),
    Function(
        "log2_q8",
        "tte_log2_q8(a[0])",
        lambda: np.maximum(np.concatenate([random_rows(uint32s), columns(2 ** np.arange(32)), columns(np.arange(1, 3000))]), 1),
        np.vectorize(lambda x: fixed.log2_q8(int(x))),
    ),
    Function("weight_step", "tte_weight_step(a[0], a[1], a[2], a[3], a[4])", lambda: step_rows(MAX), weight_step),
    Function("bias_step", "tte_bias_step(a[0], a[1], a[2], a[3], a[4])", lambda: step_rows(1 << 23), bias_step),
    Function(
        "hold",
        "tte_hold(a[0], a[1])",
        lambda: random_rows(between(-(1 << 30), 1 << 30), between(-(1 << 30), 1 << 30)),
        lambda held, d: np.clip(held + d, -(1 << 30), 1 << 30),
    ),
    Function("apply_sr", "tte_apply(a[0], a[2], a[3])", lambda: apply_rows(1), applied("sr", 0)),
    *(
        Function(
            f"apply_{mode}_{('weight', 'residual')[part]}",
            f"residual(a[0], a[1], (a[2] + {u}) >> {16 - bits}, {bits}, {part})",
            functools.partial(apply_rows, 1 << (bits - 1)),
            applied(mode, part),
        )
        for mode, bits, u in (("r4", 4, "(a[3] & 4095)"), ("r8", 8, "128"))
        for part in (0, 1)
    ),
    Function(
        "nibble",
        "nibble(a[0], a[1], a[2])",
        lambda: random_rows(between(-8, 7), between(-8, 7), between(0, 1)),
        lambda low, high, second: np.where(second == 1, high, low),
    ),
)

DRIVER = """
#include <stdio.h>
#include "tte_runtime.h"
static int64_t residual(int32_t w, int32_t r, int32_t move, int32_t bits, int part) {
    int32_t next = tte_apply_residual(w, &r, move, bits);
    return part ? r : next;
}
static int64_t merged(int32_t a, int32_t ka, int32_t b, int32_t kb, int32_t ratio) {
    tte_merge m = tte_make_merge(ka, kb, ratio);
    return tte_merged(&m, a, b);
}
static int64_t nibble(int32_t low, int32_t high, int second) {
    uint8_t both = 0x5a;
    tte_set_nibble(&both, 1, high);
    tte_set_nibble(&both, 0, low);
    return tte_get_nibble(&both, (uint32_t)second);
}
int main(void) {
    int64_t head[3], a[8];
    while (fread(head, sizeof head, 1, stdin) == 1)
        for (int64_t i = 0; i < head[1]; i++) {
            int64_t y = 0;
            if (fread(a, sizeof *a, (size_t)head[2], stdin) != (size_t)head[2]) return 1;
            switch (head[0]) {
%s
            }
            fwrite(&y, sizeof y, 1, stdout);
        }
    return 0;
}
"""


@functools.cache
def driver() -> bytes | str:
    """All outputs of the C program, one int64 a row of every function in order; or why there are none."""
    compiler = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        return "no C compiler for this computer"
    cases = "\n".join(f"            case {i}: y = {f.c}; break;" for i, f in enumerate(FUNCTIONS))
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "driver.c"), Path(folder, "driver")
        source.write_text(DRIVER % cases)
        flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
        command = [compiler, *flags, f"-I{resources.path('templates')}", str(source), "-o", str(program)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        blocks = [np.array([i, *rows.shape], "<i8").tobytes() + rows.astype("<i8").tobytes() for i, rows in enumerate(tables())]
        ran = subprocess.run([program], input=b"".join(blocks), capture_output=True)
        assert ran.returncode == 0, ran.stderr.decode()
        return ran.stdout


@functools.cache
def tables() -> tuple[I64, ...]:
    return tuple(f.rows() for f in FUNCTIONS)


@pytest.mark.parametrize("index", range(len(FUNCTIONS)), ids=[f.name for f in FUNCTIONS])
def test_c_equals_numpy(index: int) -> None:
    """The same integers for ties, extremes and random values, without undefined behaviour."""
    out = driver()
    if isinstance(out, str):
        pytest.skip(out)
    counts = [len(t) for t in tables()]
    start = sum(counts[:index])
    have = np.frombuffer(out, "<i8")[start : start + counts[index]]
    rows = tables()[index]
    want = np.asarray(FUNCTIONS[index].twin(*rows.T)).astype(np.int64)
    wrong = np.flatnonzero(have != want)
    assert not wrong.size, f"{rows[wrong[0]]}: C {have[wrong[0]]}, NumPy {want[wrong[0]]}; {wrong.size} of {len(rows)}"
    assert counts[index] >= 1000


# ---- the definitions themselves, in exact rationals


def test_requantise_is_the_nearest() -> None:
    """One rounding: the nearest integer, ties upwards. Two roundings: within one of it."""
    for x, m, s in single_rows()[::7].tolist():
        exact = Fraction(x * m) * Fraction(2) ** (s - 31)
        assert int(fixed.requantise(x, m, s, "single")) == math.floor(exact + Fraction(1, 2))
        assert abs(int(fixed.requantise(x, m, s)) - exact) <= Fraction(3, 2)


def test_double_rounding_of_ties() -> None:
    """x * 2**-s at exact halves, both signs: the shift rounds away from zero; gemmlowp's high multiply alone upwards."""
    odd = 2 * np.arange(-50, 50) + 1
    up, away = (odd + 1) // 2, np.where(odd > 0, (odd + 1) // 2, -((1 - odd) // 2))
    for s in range(1, 12):
        have = fixed.requantise(odd << (s - 1), 1 << 30, 1 - s)
        np.testing.assert_array_equal(have, up if s == 1 else away)


@pytest.mark.parametrize("bits", [15, 31])
def test_quantize_multiplier(bits: int) -> None:
    """Mantissa in range, and the real multiplier within half a unit of it; flushed and saturated at the ends."""
    quantize = fixed.quantize_multiplier if bits == 31 else fixed.quantize_multiplier16
    rng = np.random.default_rng(3)
    for m in [*(2.0 ** rng.uniform(-25, 20, 2000)), 1.0, 0.5, 1 - 2.0**-40, 2.0**-24]:
        mantissa, shift = quantize(float(m))
        assert 1 << (bits - 1) <= mantissa < 1 << bits
        assert mantissa * 2.0 ** (shift - bits) == pytest.approx(m, rel=2.0**-bits)
    assert quantize(0.0) == (0, 0)
    if bits == 31:
        assert quantize(2.0**-40) == (0, 0)
        assert quantize(2.0**40) == (MAX, 30)


def test_log2() -> None:
    """`floor(256 * log2(x))`, at most one unit below the real floor."""
    xs = [*range(1, 5000), *(2**k + d for k in range(3, 32) for d in (-1, 0, 1))]
    for x in xs:
        exact = math.log2(x) * 256
        assert exact - 1.01 <= fixed.log2_q8(x) <= exact + 1e-9


def test_to_int8_uses_the_range() -> None:
    """The largest magnitude lands in [64, 127] (smaller only where nothing had to be shifted)."""
    rng = np.random.default_rng(4)
    for size in range(1, 31):
        acc = rng.integers(-(1 << size), 1 << size, 50)
        e, s = fixed.to_int8(acc)
        assert np.abs(e).max() >= 64 or s == 0
        assert np.all(np.abs(e * 2.0**s - acc) <= 2.0**s * (0.5 if s == 0 or np.abs(e).max() < 127 else 1))
    assert fixed.to_int8(np.zeros(3, np.int64))[1] == 0
