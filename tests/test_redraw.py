"""Channels that are drawn anew: the choice, what becomes of residuals, and what trains between draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nets import DIGITS, LayerCase, forward_of, layer_net, random_inputs, training

from tte.compiler import Options, compile_model
from tte.errors import ModelError
from tte.ir import Role, verify
from tte.ops.base import Control, Types
from tte.ops.linear_grad import MODES
from tte.ops.loss import MeanSquaredError
from tte.ops.redraw import Redraw
from tte.ops.select import SelectChannels
from tte.passes.save_channels import save_channels
from tte.reference import Executor, pack, unpack
from tte.training import scheme as schemes
from tte.training.autodiff import Numerics
from tte.training.scheme import LayerUpdate, linear_nodes


def test_it_reaches_the_graph(tmp_path: Path) -> None:
    """The file's number; layers that train whole draw nothing; a draw within a batch is refused; TOML there and back."""
    digits, file = forward_of(DIGITS), tmp_path / "some.toml"
    a, b = (n.name for n in linear_nodes(digits)[2:4])
    file.write_text(f"redraw = 6\n[weights]\n'{a}' = 0.5\n'{b}' = 1.0\n")
    scheme = schemes.load(str(file), digits)
    updates = schemes.resolve(digits, scheme, None)
    assert (updates[a].redraw, updates[b].redraw) == (6, 0) and updates[a].channels
    file.write_text(scheme.text())
    assert schemes.load(str(file), digits) == scheme
    assert sum(isinstance(n.op, Redraw) for n in training(digits, updates, Numerics(batch=3)).nodes) == 1
    file.write_text(f"redraw = 6\n[weights]\n'{b}' = 1.0\n")
    with pytest.raises(ModelError, match="redraw has no effect"):
        schemes.resolve(digits, schemes.load(str(file), digits), None)
    with pytest.raises(ModelError, match=r"in the midst of a batch of 4(.|\n)*multiple of 4"):
        training(digits, updates, Numerics(batch=4))


def _draw(mode: str, every: int = 1) -> tuple[Redraw, np.ndarray, np.ndarray, np.ndarray]:
    """A draw of 3 of 7 channels; weights [50, 7], residuals and table before it."""
    rng = np.random.default_rng(1)
    low, high = (-8, 8) if mode == "r4" else (-128, 128)
    weights, residual = rng.integers(-120, 121, (50, 7)), rng.integers(low, high, (50, 3))
    return Redraw(5, every, mode), weights.astype(np.int8), residual.astype(np.int8), np.array([1, 2, 6], np.uint16)


def test_its_inputs_are_saved_in_part(tmp_path: Path) -> None:
    """As for a choice that stays: the copy is made in the forward pass, and the arena is no larger."""
    layers, file = linear_nodes(forward_of(DIGITS))[4:-1], tmp_path / "some.toml"
    plans = []
    for redraw in (0, 5):
        lines = [f"redraw = {redraw}", "[weights]", *(f"'{n.name}' = 0.25" for n in layers)]
        file.write_text("\n".join(lines))
        plans.append(compile_model(DIGITS, Options(update=str(file))).plan)
    selects = [sum(isinstance(n.op, SelectChannels) for n in p.program.graph.nodes[: p.program.shared]) for p in plans]
    assert selects[0] == selects[1] > 3 and plans[1].arena_bytes <= plans[0].arena_bytes


@pytest.mark.parametrize("mode", ["r4", "r8", "sr"])
def test_it_is_uniform(mode: str) -> None:
    """Over many steps every set of channels comes equally often: within 5 standard deviations; it comes when it is due."""
    op, w, residual, table = _draw(mode, 4)
    ins, counts = [w, residual, table][:: 1 if mode != "sr" else 2], dict[tuple[int, ...], int]()
    for step in range(28_000):
        *_, new = op.reference(Types((), ()), ins, Control(seed=3, step=step))
        if step % 4 < 3:
            assert new is table
        else:
            counts[tuple(new.tolist())] = counts.get(tuple(new.tolist()), 0) + 1
    assert len(counts) == 35 and all(a < b < c for a, b, c in counts)
    assert max(abs(n - 200) for n in counts.values()) < 5 * np.sqrt(200)
    assert op.due(Control(step=2**32 - 1))  # the counter has 32 bits


@pytest.mark.parametrize("mode", ["r4", "r8"])
def test_it_keeps_the_mean(mode: str) -> None:
    """What leaves keeps w + r on average, within 5 standard errors; what stays keeps both; what comes has none."""
    op, w, residual, table = _draw(mode)
    one, total, left = 1 << MODES[mode], np.zeros(w.shape), np.zeros(7)
    whole = w * float(one)
    whole[:, table] += residual
    for step in range(3000):
        new_w, new_r, new = op.reference(Types((), ()), [w, residual, table], Control(step=step))
        for c in range(7):
            stays, there = np.flatnonzero(table == c), np.flatnonzero(new == c)
            if stays.size and not there.size:
                total[:, c] += new_w[:, c] * float(one) - whole[:, c]
                left[c] += 1
                continue
            np.testing.assert_array_equal(new_w[:, c], w[:, c])
            if there.size:
                np.testing.assert_array_equal(new_r[:, there[0]], residual[:, stays[0]] if stays.size else 0)
    assert (left[table] > 1500).all() and not left[[0, 3, 4, 5]].any()
    mean = total[:, table] / left[table]
    assert np.abs(mean).max() < 5 * one / 2 / np.sqrt(1500)
    assert abs(mean.mean()) < 5 * one / 2 / np.sqrt(1500 * mean.size)


@pytest.mark.parametrize("mode", ["r4", "r8", "sr"])
def test_drawn_channels_learn(mode: str) -> None:
    """Between draws the table's channels move as if they were chosen for good, and no other; in the end all have moved.
    Steps go on as they would from a state that was saved and loaded, which holds the table, too."""
    rng = np.random.default_rng(3)
    case = LayerCase("conv", (3, 3), pad=(1, 1, 1, 1), ratio=9.0)
    forward = layer_net(case, rng, depth=8)
    numerics = Numerics(0.3, mode)
    updates = {"layer": LayerUpdate(weights=True, channels=(1, 5), redraw=2)}
    graph = verify(save_channels(training(forward, updates, numerics, MeanSquaredError())))
    executor, moved = Executor(graph, Control(seed=9)), np.zeros(8, bool)
    for step in range(40):
        inputs, before = random_inputs(graph, rng), {k: v.copy() for k, v in executor.params.items()}
        channels = tuple(int(c) for c in before["layer/w/channels"])
        fixed = training(forward, {"layer": LayerUpdate(False, True, channels)}, numerics, MeanSquaredError())
        part = Executor(fixed, executor.control)
        part.params["layer/w/trained"] = before["layer/w"][..., list(channels)]
        frozen = np.delete(before["layer/w"], channels, -1)
        part.graph = replace(fixed, tensors={**fixed.tensors, "layer/w/frozen": replace(
            fixed.tensors["layer/w/frozen"], data=frozen)})  # fmt: skip
        if mode != "sr":
            part.params["layer/w/trained/residual"] = before["layer/w/residual"]
        saved = {t.name: pack(before[t.name], t.type.dtype) for t in graph.of_role(Role.PARAM)}
        again = Executor(graph, executor.control)
        again.params = {t.name: unpack(saved[t.name], t.type.shape, t.type.dtype) for t in graph.of_role(Role.PARAM)}
        for one in (executor, again, part):
            one.train(inputs)
        for name, value in executor.params.items():
            np.testing.assert_array_equal(again.params[name], value, name)
        now = executor.params["layer/w"]
        np.testing.assert_array_equal(np.delete(now, channels, -1), frozen)
        if step % 2 == 0:
            np.testing.assert_array_equal(now[..., list(channels)], part.params["layer/w/trained"])
            if mode != "sr":
                np.testing.assert_array_equal(executor.params["layer/w/residual"], part.params["layer/w/trained/residual"])
            assert tuple(executor.params["layer/w/channels"]) == channels
        moved |= (now != before["layer/w"]).any((0, 1, 2))
    assert moved.all()
