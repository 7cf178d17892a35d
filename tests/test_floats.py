"""The float side of the comparison with int8 training: gradients against differences, values against the integers."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import float_autograd as fa
import numpy as np
import pytest
from c_harness import needs
from nets import DIGITS, ROOT, LayerCase, forward_of, layer_net, only, random_inputs, training, values_of
from random_graphs import sample
from studies.floatlayers import Depthwise, Real, Weighted
from studies.floatnet import FloatNet, dequantised
from studies.floatops import MaxPool, limits
from studies.floats import accuracy, best_rate, candidate_of, compare, main
from test_gradients import LAYERS, small_networks
from tflite_builder import GraphBuilder

from tte import passes
from tte.errors import ModelError
from tte.frontend import tflite
from tte.frontend.schema import write
from tte.ir import Graph, QuantParams, TensorType
from tte.ops.loss import MeanSquaredError
from tte.search import rate as rates
from tte.search.candidate import Candidate
from tte.search.task import head_name, task
from tte.training.head import Head, find
from tte.training.scheme import LayerUpdate, linear_nodes

BOTH = LayerUpdate(True, True)


def _inputs(graph: Graph, seed: int, dtype: type = np.float64) -> tuple[dict[str, np.ndarray], dict[str, Real]]:
    """Random int8 inputs, and the same as real values of one sample."""
    found = random_inputs(graph, np.random.default_rng(seed))
    return found, {n: dequantised(graph.type(n), q, dtype)[None] for n, q in found.items()}


def _moves(part: Weighted, rng: np.random.Generator) -> tuple[Real, Real]:
    """A random direction of what trains of a layer, relative to the size of its values."""
    w, b = np.zeros_like(part.w), np.zeros_like(part.b)
    if part.update.weights:
        w[part.chosen] = rng.normal(size=w[part.chosen].shape) * np.abs(part.w).mean()
    if part.update.bias:
        b += rng.normal(size=b.shape) * (np.abs(part.b).mean() + 1e-3)
    return w, b


def _check(net: FloatNet, values: Mapping[str, Real], label: int, step: float = 1e-7) -> int:
    """Gradients along a random direction of each trained layer are central differences; gives how many are not zero."""
    rng, seen = np.random.default_rng(label), 0
    net.gradients(values, label)
    slopes = {}
    for name, part in net.trained.items():
        w, b = _moves(part, rng)
        along = (part.dw * w[part.chosen]).sum() if part.update.weights else 0.0
        slopes[name] = (w, b, along + ((part.db * b).sum() if part.update.bias else 0.0))
    for name, part in net.trained.items():
        w, b, want = slopes[name]
        sides = []
        for sign in (1, -1):
            net.reset()
            part.w += sign * step * w
            part.b += sign * step * b
            sides.append(net.gradients(values, label))
        net.reset()
        have = (sides[0] - sides[1]) / (2 * step)
        assert have == pytest.approx(want, rel=1e-4, abs=1e-6), name
        seen += bool(abs(want) > 1e-6)
    return seen


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_layer(case: LayerCase) -> None:
    """A layer and the one before it; and against the independent layer of `float_autograd`, on the same values."""
    rng = np.random.default_rng(zlib.crc32(str(case).encode()))
    graph = layer_net(case, rng)
    head = Head(graph.outputs[0], None, False)
    quantised, values = _inputs(graph, 1)
    net = FloatNet(graph, head, graph.inputs, only(case), dtype=np.float64)
    assert _check(net, values, 2) == 2
    node, part = graph.nodes[1], net.trained["layer"]
    known = training(graph, only(case), loss=MeanSquaredError())
    every = values_of(known, {**random_inputs(known, rng), **quantised})
    oracle = fa.Layer(known, next(n for n in known.nodes if n.name == "layer"), every)
    real = part.value([oracle.x[None]])
    np.testing.assert_allclose(real[0], oracle.forward(), rtol=1e-9, atol=1e-9 * np.abs(real).max())
    g = rng.normal(size=real.shape)
    (back,) = part.pull(g, (True,))
    whole = oracle.d_weights(g[0])[..., list(case.channels) or slice(None)]
    if isinstance(part, Depthwise):
        mine = part.dw[None]
    else:
        mine = part.dw.reshape(part.g.k_h, part.g.k_w, -1, part.g.out_c).transpose(3, 0, 1, 2).reshape(whole.shape)
    for have, want in ((back[0], oracle.d_input(g[0])), (mine, whole), (part.db, oracle.d_bias(g[0]))):
        np.testing.assert_allclose(have, want, rtol=1e-9, atol=1e-9 * np.abs(want).max(), err_msg=node.name)


@pytest.mark.parametrize("name", small_networks())
@pytest.mark.parametrize("saturate", [True, False])
def test_small_network(name: str, saturate: bool) -> None:
    """Fan-out, broadcasts, tables and pools end to end."""
    b = GraphBuilder(3)
    small_networks()[name](b)
    graph = passes.run(passes.NORMALISE, tflite.from_bytes(write(b.model()), "test", name))
    layers = [n.name for n in linear_nodes(graph)]
    net = FloatNet(graph, find(graph), graph.inputs, dict.fromkeys(layers, BOTH), saturate, np.float64)
    assert _check(net, _inputs(graph, 5)[1], 1) >= len(layers) - 1


def test_random_networks() -> None:
    seen = 0
    for seed in range(40):
        made = sample(seed)
        graph = passes.run(passes.NORMALISE, tflite.from_bytes(made.data, "r", "r"))
        head = find(graph)
        updates = {n: LayerUpdate(bias, fraction > 0, (0,) if 0 < fraction < 1 else ()) for n, bias, fraction in made.layers}
        net = FloatNet(graph, head, graph.inputs, updates, dtype=np.float64)
        seen += _check(net, _inputs(graph, seed)[1], 0)
    assert seen > 40


def _digits() -> tuple[Graph, Real, np.ndarray]:
    """The demo's model, real images as it was trained on, and what they show."""
    graph, data = forward_of(DIGITS), np.load(ROOT / "demo" / "digits.npz")
    x = (data["x_train"][:200].astype(np.int16) - 128).astype(np.int8)
    return graph, dequantised(graph.type(graph.inputs[0]), x, np.float32)[:, None], data["y_train"][:200]


def test_values_are_those_of_the_integers() -> None:
    """The logits differ by a few steps of int8; a batch gives what single samples do."""
    graph, x, labels = _digits()
    head = find(graph)
    net = FloatNet(graph, head, graph.inputs, {})
    logits = net.forward({graph.inputs[0]: x})
    assert (logits.argmax(1) == labels).mean() > 0.9
    t = graph.type(head.logits)
    for i in range(5):
        q = np.rint(x[i] / graph.type(graph.inputs[0]).scale + graph.type(graph.inputs[0]).zero_point).astype(np.int8)
        integer = fa.dequantised(t, values_of(graph, {graph.inputs[0]: q})[head.logits]).ravel()
        limits = [(end - t.zero_point) * t.scale for end in (-128, 127)]
        assert np.abs(np.clip(logits[i], *limits) - integer).max() < 10 * t.scale
        np.testing.assert_allclose(net.forward({graph.inputs[0]: x[i : i + 1]})[0], logits[i], rtol=1e-4, atol=1e-4)


def test_gradients_point_where_the_oracle_points() -> None:
    """Every trained tensor of the demo's model, whose activations the oracle takes from the integers."""
    graph, x, _ = _digits()
    source = graph.inputs[0]
    layers = [n.name for n in linear_nodes(graph)]
    net = FloatNet(graph, find(graph), graph.inputs, dict.fromkeys(layers, BOTH))
    known = training(graph, "full")
    q = np.rint(x[7] / graph.type(source).scale + graph.type(source).zero_point).astype(np.int8)
    values = values_of(known, {**random_inputs(known, np.random.default_rng(0)), source: q})
    name, _, seed = fa.loss_of(known, values)
    exact = fa.gradients(known, values, {name: seed})
    net.gradients({source: x[7:8]}, int(values[known.inputs[-1]]))
    before = {n: (p.weights().copy(), p.b.copy()) for n, p in net.trained.items()}
    for n, part in net.trained.items():
        node = next(m for m in known.nodes if m.name == n)
        part.learn(1.0)
        steps = before[n][0] - part.weights(), before[n][1] - part.b
        for have, want in zip(steps, (node.inputs[1], node.inputs[-1]), strict=True):
            a, b = have.ravel(), exact[want].ravel()
            assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.97, want
            assert np.linalg.norm(a) == pytest.approx(np.linalg.norm(b), rel=0.2), want


def test_only_what_trains_changes() -> None:
    graph, x, labels = _digits()
    layers = linear_nodes(graph)
    kinds = (LayerUpdate(True), LayerUpdate(False, True, (1, 3)), LayerUpdate(True, True, (0,)), BOTH)
    updates = {n.name: how for n, how in zip(layers[-4:], kinds, strict=True)}
    cut = next(n for n in graph.nodes if n.name == layers[-5].name).inputs[0]  # before a skip
    start = FloatNet(graph, find(graph), graph.inputs, {})
    start.forward({graph.inputs[0]: x[:1]})
    feature = next(p.y for n, p in zip(start.nodes, start.parts, strict=True) if cut in n.outputs)
    net = FloatNet(graph, find(graph), (cut,), updates)
    net.step({cut: feature}, int(labels[0] + 1) % 10, 0.1)
    for name, how in updates.items():
        part, fresh = net.trained[name], next(p for n, p in zip(start.nodes, start.parts, strict=True) if n.name == name)
        assert isinstance(fresh, Weighted)
        changed = (part.weights() != fresh.weights()).any(tuple(range(part.weights().ndim - 1)))
        allowed = list(how.channels) if how.channels else list(range(len(changed))) if how.weights else []
        assert set(np.flatnonzero(changed)) <= set(allowed) and bool(changed.any()) == how.weights
        assert bool((part.b != fresh.b).any()) == how.bias
    net.reset()
    assert (net.forward({cut: feature}) == start.forward({graph.inputs[0]: x[:1]})).all()


def test_limits() -> None:
    """The ends of int8 limit every value but the logits; or activations alone."""
    low, middle = (TensorType((1,), "int8", QuantParams((0.25,), (zero,))) for zero in (-128, 3))
    assert limits(low, "NONE", True) == limits(low, "NONE", False) == (0, 63.75)
    assert limits(middle, "NONE", True) == (-32.75, 31) and limits(middle, "NONE", False) == (-np.inf, np.inf)
    assert limits(middle, "RELU6", True) == limits(middle, "RELU6", False) == (0, 6)
    b = GraphBuilder(1)
    b.fully_connected(b.fully_connected(b.input((1, 4), 10.0), 3), 2)
    graph = passes.run(passes.NORMALISE, tflite.from_bytes(write(b.model()), "test", "wide"))
    source, head = graph.inputs[0], find(graph)
    net = FloatNet(graph, head, (source,), {})
    logits = net.forward({source: np.array([[[9e7, -9e7, 9e7, 9e7]]], np.float32)})
    first, last = net.parts
    assert np.abs(first.y).max() <= 255 * graph.type(graph.nodes[0].outputs[0]).scale < np.abs(first.raw).max()
    assert (last.y == last.raw).all() and logits.tolist() == last.y.reshape(1, -1).tolist()


def test_the_first_of_equals_gets_the_gradient() -> None:
    b = GraphBuilder(0)
    b.pool("MAX_POOL_2D", b.input((1, 3, 3, 1)), (2, 2), (2, 2), "SAME")
    graph = tflite.from_bytes(write(b.model()), "test", "pool")
    part = MaxPool(graph, graph.nodes[0])
    part.forward([np.full((1, 1, 3, 3, 1), -2.0)])
    (back,) = part.backward(np.array([1.0, 2, 3, 4]).reshape(1, 1, 2, 2, 1), (True,))
    assert back.reshape(3, 3).tolist() == [[1, 0, 2], [0, 0, 0], [3, 0, 4]]


def test_refuses() -> None:
    graph, _, _ = _digits()
    first, *_, last = linear_nodes(graph)
    with pytest.raises(ModelError, match="drawn anew"):
        FloatNet(graph, find(graph), graph.inputs, {last.name: LayerUpdate(True, True, (0,), 100)})
    with pytest.raises(ModelError, match="before the cut"):
        FloatNet(graph, find(graph), (last.inputs[0],), {first.name: BOTH})
    b = GraphBuilder(0)
    b.fully_connected(b.activation("SOFTMAX", b.fully_connected(b.input((1, 4)), 3), beta=1.0), 2)
    graph = passes.run(passes.NORMALISE, tflite.from_bytes(write(b.model()), "test", "softmax"))
    with pytest.raises(ModelError, match="SOFTMAX has no float counterpart"):
        FloatNet(graph, find(graph), graph.inputs, {})


@needs("cc")
def test_beside_int8(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the demo's turned digits both sides learn, and end close to one another; a run is the same every time."""
    data = str(ROOT / "demo" / "digits.npz")
    job = task(DIGITS, Path(data), tmp_path, turns=1)
    names = [n.name for n in linear_nodes(forward_of(DIGITS))]
    candidate = Candidate(tuple(sorted(names[:-1])), tuple((n, ()) for n in sorted(names[-4:-1])))
    assert candidate_of(candidate.updates(head_name(job)), head_name(job)) == candidate
    compare(job, candidate, 1, 0.01, True)
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("seed 0"))
    int8, real = (float(x.split()[1]) for x in line.removeprefix("seed 0: ").split(";")[0].split(", "))
    assert int8 > 50 and abs(real - int8) < 8
    short = [accuracy(job, candidate, seed, 0.01, 40, final=False) for seed in (0, 0, 1)]
    assert short[0] == short[1] != short[2]
    monkeypatch.setattr(rates, "STEPS", 60)
    assert best_rate(job, candidate, 10.0) < 2  # the upper rates diverge, without a warning
    for other in ({}, {names[-1]: BOTH, names[0]: LayerUpdate(False, True, (1,), 5)}):
        with pytest.raises(ModelError, match="no candidate"):
            candidate_of(other, names[-1])
    assert main([str(DIGITS), "--data", str(tmp_path / "none.npz"), "--folder", str(tmp_path)]) == 2
    assert "none.npz" in capsys.readouterr().err
