"""Gradient rules of the operators without weights, against central differences of the real functions in float64.

Straight-through semantics: the real function of each operator, 0 where the int8 output was clipped.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from cases import CASES, Case
from tape import SEED_EXPONENT, SEED_SCALE, Backward

from tte.ops.base import Types
from tte.ops.elementwise import Elementwise, Mul
from tte.ops.linear import Linear
from tte.ops.pool import AveragePool2D, MaxPool2D, Mean, Pool
from tte.ops.shape import Concatenation, Pad, Reshape
from tte.ops.table import Table

F64 = np.ndarray


def windows(op: Pool, x: np.ndarray, t: Types) -> list[tuple[int, int, np.ndarray]]:
    """(row, column, slice of x) of every window, taps inside x only."""
    g, result = op.geometry(t.ins[0]), []
    for oy in range(g.out_h):
        for ox in range(g.out_w):
            top, left = oy * g.stride_h - g.pad_h, ox * g.stride_w - g.pad_w
            result.append((oy, ox, x[0, max(top, 0) : top + g.k_h, max(left, 0) : left + g.k_w]))
    return result


def pooled(op: Pool, t: Types, real: F64, stored: np.ndarray) -> F64:
    """The mean, or the real value where the stored one is the first largest."""
    y = np.zeros(t.outs[0].shape)
    for (oy, ox, part), (_, _, chosen) in zip(windows(op, real, t), windows(op, stored, t), strict=True):
        flat = part.reshape(-1, part.shape[-1])
        if isinstance(op, AveragePool2D):
            y[0, oy, ox] = flat.mean(0)
        else:
            first = chosen.reshape(flat.shape).argmax(0)
            y[0, oy, ox] = flat[first, np.arange(len(first))]
    return y


def tabled(op: Table, t: Types, x: F64, stored: np.ndarray) -> F64:
    """The real function, on the branch where the stored input lies."""
    at = (stored.astype(int) - t.ins[0].zero_point) * t.ins[0].scale
    if op.kind == "LEAKY_RELU":
        y = np.where(at >= 0, x, op.alpha * x)
    elif op.kind == "HARD_SWISH":
        y = np.where(at <= -3, 0, np.where(at >= 3, x, x * (x + 3) / 6))
    elif op.kind == "LOGISTIC":
        y = 1 / (1 + np.exp(-x))
    else:
        y = np.tanh(x) if op.kind == "TANH" else x
    low, high = op.limits(t)
    v = op.unclamped(t)[stored.astype(int) + 128]
    return y * ((v >= low) & (v <= high))


def real_function(op: object, t: Types, xs: Sequence[F64], stored: Sequence[np.ndarray], mask: np.ndarray) -> F64:
    if isinstance(op, Elementwise):
        a, b = xs
        return (a * b if isinstance(op, Mul) else a + op.sign * b) * mask
    if isinstance(op, Mean):
        return xs[0].mean(op.axes).reshape(t.outs[0].shape) * mask
    if isinstance(op, AveragePool2D | MaxPool2D):
        return pooled(op, t, xs[0], stored[0])
    if isinstance(op, Table):
        return tabled(op, t, xs[0], stored[0])
    if isinstance(op, Pad):
        return np.pad(xs[0], op.pads)
    if isinstance(op, Concatenation):
        return np.concatenate(xs, op.axis)
    assert isinstance(op, Reshape)
    return xs[0].reshape(op.shape)


def forward(run: Backward, moved: dict[str, F64]) -> F64:
    """The graph in float64; graph inputs are the stored ones plus `moved`."""
    real = {}
    for name in [*run.graph.inputs, *(n for n, t in run.graph.tensors.items() if t.data is not None)]:
        t = run.types[name]
        real[name] = (run.values[name].astype(float) - t.zero_point) * t.scale + moved.get(name, 0)
    for node in run.graph.nodes:
        t = Types(run.graph.types(node.inputs), run.graph.types(node.outputs))
        mask = run.values.get(run.masks.get(node.name, ""), np.array(True))
        stored = [run.values[n] for n in node.inputs]
        real[node.outputs[0]] = real_function(node.op, t, [real[n] for n in node.inputs], stored, mask)
    return real[run.graph.outputs[0]]


def differentiable(case: Case) -> bool:
    ops = [n.op for n in case.graph().nodes]
    return not any(isinstance(op, Linear) or op.not_differentiable for op in ops)


@pytest.mark.parametrize("case", [c for c in CASES if differentiable(c)], ids=lambda c: c.name)
def test_gradient_is_the_real_functions(case: Case) -> None:
    """Eight random directions; the error allowed is that of rounding each element of the int8 error."""
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    run = Backward(case.graph()).run(next(case.inputs(1)), rng)
    seed = run.sent[run.graph.outputs[0]][0]
    weight = run.values[seed.e] * SEED_SCALE * 2.0**-SEED_EXPONENT
    for _ in range(8):
        for name in run.graph.inputs:
            d, h = rng.standard_normal(run.types[name].shape), 1e-4
            ahead, behind = forward(run, {name: h * d}), forward(run, {name: -h * d})
            want = float((weight * (ahead - behind)).sum() / (2 * h))
            have = run.gradient(name)
            rounding = sum(run.step(g) for g in run.sent.get(name, [])) / np.sqrt(12)
            allowed = 5 * rounding * np.linalg.norm(d) + 1e-3 * float(np.abs(have * d).sum())
            assert abs(float((have * d).sum()) - want) <= allowed
