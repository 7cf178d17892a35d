"""The dangers of training in eight bits, each with the test that catches it."""

from __future__ import annotations

import math
from dataclasses import replace

import float_autograd as fa
import numpy as np
import pytest
from nets import (
    DIGITS,
    LayerCase,
    chain,
    forward_of,
    label_of,
    layer_net,
    only,
    random_inputs,
    training,
    values_of,
)

from tte.errors import ModelError
from tte.fixed import hash32, random16, random_key
from tte.ir import Graph, QuantParams, Role, TensorType, verify
from tte.ops.base import Control, Types
from tte.ops.error import Merge
from tte.ops.linear import Geometry
from tte.ops.linear_grad import BiasUpdate, InputGrad, Update, WeightUpdate, apply_step
from tte.ops.loss import MeanSquaredError, SoftmaxCrossEntropy
from tte.planner.schedule import schedule
from tte.reference import Executor
from tte.training.autodiff import LOSS, Numerics
from tte.training.head import find

ALL_U = np.arange(1 << 16, dtype=np.int64)


# ---- updates: drift, decay, saturation


def _state(mode: str, w: np.ndarray) -> list[np.ndarray]:
    return [w] if mode == "sr" else [w, np.zeros_like(w)]


@pytest.mark.parametrize("mode", ["sr", "r4", "r8"])
def test_drift_of_tiny_gradients(mode: str) -> None:
    """10,000 equal steps far below a weight step move a weight by their sum; a step of zero leaves it alone.

    D = A = e * x, from 1/65,536 to 1/220 of a weight step. r8 draws no random numbers: it moves by D rounded to 1/256.
    """
    steps, x, e = 10_000, np.repeat([1, 3, 10, 30, 75], 16), np.repeat([-4, -1, 0, 1, 4], 2)
    start = np.where(np.arange(160) % 2, 37, -52).reshape(10, 16)
    start = np.tile(start, (1, 5)).astype(np.int8)
    op = WeightUpdate(3, 2.0**-16, mode, 1, Geometry(1, 1, 80, 1, 1, 10))
    one = QuantParams((1.0,))
    state_type = TensorType((10, 80), "int8", one)
    t = Types((TensorType((1, 80), "int8", one), TensorType((1, 10), "int8", one), TensorType((), "int32")), ())
    state = _state(mode, start)
    t = replace(t, ins=(*t.ins, *[state_type] * len(state)), outs=(state_type,) * len(state))
    for step in range(steps):
        xs = [x.astype(np.int8), e.astype(np.int8), np.int32(0), *state]
        state = list(op.reference(t, xs, Control(seed=11, step=step)))
    scale = {"sr": 1, "r4": 16, "r8": 256}[mode]
    residual = 0 if mode == "sr" else state[1] / scale
    drift = state[0].astype(np.float64) + residual - start
    d = np.multiply.outer(e, x)
    rounded = np.floor((d + 128) / 256) * 256 if mode == "r8" else d
    for value in np.unique(d):
        group = drift[d == value]
        want = -rounded[d == value][0] * steps / 65536
        assert np.ptp(group) == 0 if value == 0 or mode == "r8" else True
        # Each step moves by 1/scale with probability |D| * scale / 65536.
        deviation = 0 if mode == "r8" else math.sqrt(steps * abs(value) / 65536 / scale / group.size)
        assert abs(group.mean() - want) <= 5 * deviation + 1e-9, (value, group.mean(), want)


@pytest.mark.parametrize("mode", ["sr", "r4"])
@pytest.mark.parametrize("w", [-100, -1, 0, 1, 63])
def test_expectation_is_exact(mode: str, w: int) -> None:
    """Over all 65,536 random numbers the mean step is D / 2**16 exactly: no decay, and step(-w, -D) = -step(w, D)."""
    residual = np.full_like(ALL_U, 3)
    for d in (1, 100, 4095, 32768, 65535, 65536, 123_456):
        means = []
        for sign in (1, -1):
            new = apply_step(mode, np.full_like(ALL_U, sign * w), sign * residual, np.full_like(ALL_U, sign * d), ALL_U)
            value = new[0] + (new[1] / 16 if mode == "r4" else 0)
            means.append(value.mean())
        assert means[0] == w + (3 / 16 if mode == "r4" else 0) - d / 65536
        assert means[1] == -means[0]


@pytest.mark.parametrize("mode", ["sr", "r4", "r8"])
def test_saturation(mode: str) -> None:
    """No step, however large, takes a weight past +-127 or wraps a residual; and the way back is open."""
    half = {"sr": 1, "r4": 8, "r8": 128}[mode]
    w, r, d = np.meshgrid([-127, -126, 0, 126, 127], [-half, 0, half - 1], [-(1 << 23), -65536, 65536, 1 << 23])
    for u in (0, 4095, 65535):
        new = apply_step(mode, w, r, d, np.full_like(w, u))
        assert np.abs(new[0]).max() <= 127
        assert np.all(np.sign(new[0] - w) * np.sign(d) <= 0)
        if mode != "sr":
            assert new[1].min() >= -half and new[1].max() < half
    back = apply_step(mode, np.array([127, -127]), np.zeros(2, np.int64), np.array([1 << 17, -(1 << 17)]), np.zeros(2, np.int64))
    np.testing.assert_array_equal(back[0], [125, -125])


@pytest.mark.parametrize("mode", ["sr", "r4", "r8"])
def test_absurd_learning_rate(mode: str) -> None:
    """A learning rate a million times too large saturates weights and biases; nothing wraps."""
    rng = np.random.default_rng(5)
    case = LayerCase("conv", (3, 3), pad=(1, 1, 1, 1), ratio=1e6)
    graph = training(layer_net(case, rng), only(case), Numerics(1e6, mode), MeanSquaredError())
    executor = Executor(graph)
    for _ in range(10):
        executor.train(random_inputs(graph, rng))
    for tensor in graph.of_role(Role.PARAM):
        now = executor.params[tensor.name].astype(np.int64)
        limit = {"int8": 128 if tensor.name.endswith("residual") else 127, "int4": 8, "int32": 1 << 30}[tensor.type.dtype]
        assert np.abs(now).max() <= limit, tensor.name


def test_sums_fit_int32() -> None:
    """dX and dW at the largest geometry they accept, with the largest values: within int32. One more is refused."""
    one, scalar = QuantParams((1.0,)), TensorType((), "int32")
    most = (2**31 - 1) // (127 * 255)
    for positions, fits in ((most, True), (most + 1, False)):
        op = WeightUpdate(0, 1.0, "sr", 1, Geometry(positions, 1, 1, positions, 1, 1))
        w = TensorType((1, 1, 1, 1), "int8", one)
        x, e = (TensorType((1, positions, 1, 1), "int8", QuantParams((1.0,), (z,))) for z in (-128, 0))
        ins = (x, e, scalar, w)
        if not fits:
            with pytest.raises(ModelError, match="fit int32"):
                op.infer(ins)
            continue
        op.infer(ins)
        full = np.full(x.shape, 127, np.int8)
        assert int(op.gradient_sums(Types(ins, (w,)), full, full).ravel()[0]) == 127 * 255 * most <= 2**31 - 1
    for channels, fits in ((133_144, True), (133_145, False)):
        back = InputGrad(Geometry(1, 1, 1, 1, 1, channels), (1, 1, 1, 1))
        ins = (TensorType((1, 1, 1, channels), "int8", one), scalar, TensorType((channels, 1, 1, 1), "int8", one))
        if fits:
            back.infer(ins)
            assert back.prescale(Types(ins, ()))[1] == 0
        else:
            with pytest.raises(ModelError, match="fit int32"):
                back.infer(ins)
    for channels in (1, 100, 3000, 60_000):
        back = InputGrad(Geometry(1, 1, 1, 1, 1, channels), (1, 1, 1, 1))
        ins = (TensorType((1, 1, 1, channels), "int8", one), scalar, TensorType((channels, 1, 1, 1), "int8", one))
        r, _ = back.prescale(Types(ins, ()))
        assert channels * 127 * 127 * int(r.max()) <= 2**31 - 1 and 127 * int(r.max()) < 1 << 15
        e, w = np.full((1, 1, 1, channels), 127, np.int8), np.full((channels, 1, 1, 1), 127, np.int8)
        outs = (TensorType((1, 1, 1, 1), "int8", one), scalar)
        have, k = back.reference(Types(ins, outs), [e, np.int32(0), w], Control())
        assert int(have.ravel()[0]) * 2.0 ** -int(k) == pytest.approx(channels * 127.0**2, rel=1 / 64)


# ---- order


def digits_graph(**how: object) -> Graph:
    return training(forward_of(DIGITS), "full", Numerics(**how))  # type: ignore[arg-type]


def test_update_before_dx_is_refused() -> None:
    """`verify` rejects every order in which a node reads a weight after its update; the scheduler makes none such."""
    graph = digits_graph()
    reads = [n for n in graph.nodes if isinstance(n.op, InputGrad)]
    assert len(reads) > 5
    for read in reads:
        update = next(n for n in graph.nodes if isinstance(n.op, WeightUpdate) and n.inputs[3] in read.inputs)
        nodes = [n for n in graph.nodes if n is not read]
        nodes.insert(nodes.index(update) + 1, read)
        with pytest.raises(ModelError, match=r"after .* changed it"):
            verify(replace(graph, nodes=tuple(nodes)))
    head = find(forward_of(DIGITS))
    verify(schedule(graph, graph.outputs[:1], (head.logits, LOSS)).graph)


def test_errors_do_not_see_the_step() -> None:
    """Every error of a step is the same whether the weights move or not."""
    graph = digits_graph(rate=5.0)
    inputs = label_of(graph, random_inputs(graph, np.random.default_rng(1)), 3)
    still, moving = (values_of(graph, inputs, Control(rate)) for rate in (0, 32768))
    executor = Executor(graph)
    executor.run(inputs)
    assert any(np.any(executor.params[t.name] != t.data) for t in graph.of_role(Role.PARAM))
    for name in still:
        np.testing.assert_array_equal(still[name], moving[name], name)


# ---- fan-out


@pytest.mark.parametrize("distance", range(-25, 26))
def test_merge_against_float(distance: int) -> None:
    """The sum of two errors whose exponents lie up to 25 apart, with any ratio of their compile-time factors."""
    rng = np.random.default_rng(distance + 100)
    for c_b in (0.7, 1.0, 3e-3, 411.0):
        t = Types(
            (
                TensorType((300,), "int8", QuantParams((0.7,))),
                TensorType((), "int32"),
                TensorType((300,), "int8", QuantParams((c_b,))),
                TensorType((), "int32"),
            ),
            (),
        )
        ea, eb = (rng.integers(-127, 128, 300).astype(np.int8) for _ in range(2))
        ka, kb = 9, 9 + distance
        e, k = Merge().reference(t, [ea, np.int32(ka), eb, np.int32(kb)], Control())
        a, b = 0.7 * 2.0**-ka * ea, c_b * 2.0**-kb * eb
        step = 0.7 * 2.0 ** -int(k)
        coarsest = max(0.7 * 2.0**-ka, c_b * 2.0**-kb)  # the 16-bit sum has 1/256 of it, up to the power of two
        assert np.all(np.abs(e * step - (a + b)) <= step + 2 * coarsest / 128 + np.abs(b) * 2.0**-14)
        assert np.abs(e).max() >= 64


# ---- loss


def run_loss(x: np.ndarray, scales: np.ndarray, label: int) -> tuple[np.ndarray, float, float]:
    """The error in real units, its step, and the loss in nats."""
    op = SoftmaxCrossEntropy()
    n = x.size
    t = TensorType((1, n), "int32", QuantParams(tuple(map(float, scales)), (0,) * n, 1))
    outs = tuple(TensorType(shape, d) for shape, d in op.infer((t, TensorType((), "int32"))))
    e, k, loss = op.reference(Types((t, TensorType((), "int32")), outs), [x.reshape(1, n), np.int32(label)], Control())
    step = 2.0 ** -int(k)
    return e.ravel() * step, step, int(loss) * op.loss_scale(t)


@pytest.mark.parametrize(("classes", "bound"), [(2, 8e-4), (3, 8e-4), (10, 1e-3), (100, 1e-3), (1000, 4e-3)])
def test_softmax_against_float(classes: int, bound: float) -> None:
    """Probabilities within the bound (and half a step of the 8-bit error), the loss within 4 % of a bit."""
    rng = np.random.default_rng(classes)
    for spread in (0.0, 0.1, 1.0, 5.0, 40.0):
        for _ in range(20):
            scales = rng.uniform(0.5, 2.0, classes) * 1e-5
            x = np.rint(rng.normal(size=classes) * spread / scales).astype(np.int32)
            real, label = x * scales, int(rng.integers(classes))
            log_p = real - real.max() - np.log(np.exp(real - real.max()).sum())
            want = np.exp(log_p) - (np.arange(classes) == label)
            have, step, loss = run_loss(x, scales, label)
            clipped = np.abs(have) >= 127 * step
            assert np.all(np.abs(have - want) <= bound + np.where(clipped, step, step / 2))
            assert abs(loss + log_p[label]) <= 0.04 * math.log(2) + 1e-4 * abs(log_p[label])


@pytest.mark.parametrize("scale", [1e-9, 1e-5, 1e-2, 3.0, 1e6])
def test_softmax_at_the_ends(scale: float) -> None:
    """Accumulators at +-2**31 and ties, whatever their scale: finite, no wrap, the right winner."""
    low, high = -(2**31), 2**31 - 1
    for classes in (2, 7, 1000):
        scales = np.full(classes, scale)
        x = np.full(classes, low, np.int64)
        x[1] = high
        have, _, loss = run_loss(x, scales, 1)
        gap = scale * 2.0**32
        if gap > 20:
            assert not have.any() and loss == 0
            have, step, loss = run_loss(x, scales, 0)
            assert have[0] == pytest.approx(-1, abs=step) and have[1] == pytest.approx(1, abs=step)
            assert loss == pytest.approx(min(gap, (2**31 - 1) * math.log(2) / 256), rel=1e-2)
        for value in (low, 0, high):
            have, step, loss = run_loss(np.full(classes, value, np.int64), scales, 0)
            assert have[0] == pytest.approx(1 / classes - 1, abs=step)
            np.testing.assert_allclose(have[1:], 1 / classes, atol=step)
            assert loss == pytest.approx(math.log(classes), abs=0.01)


def test_mean_squared_error_against_float() -> None:
    """Loss exact, error within half a step (one where 127 clips), over the whole range of both."""
    op, rng = MeanSquaredError(), np.random.default_rng(0)
    t = TensorType((1, 640), "int8", QuantParams((0.37,), (96,)))
    for spread in (0, 1, 40, 255):
        y = rng.integers(-128, 128, (1, 640)).astype(np.int8)
        truth = np.clip(y + rng.integers(-spread, spread + 1, y.shape), -128, 127).astype(np.int8)
        outs = tuple(TensorType(shape, d) for shape, d in op.infer((t, t)))
        e, k, loss = op.reference(Types((t, t), outs), [y, truth], Control())
        difference = 0.37 * (y.astype(np.float64) - truth)
        step = op.error_scale(t) * 2.0 ** -int(k)
        assert int(loss) * op.loss_scale(t) == pytest.approx((difference**2).mean())
        assert np.abs(e * step - 2 * difference / 640).max() <= step * (1 if k < 0 else 1e-9)


# ---- exponents


def test_hundred_layers() -> None:
    """Exponents stay in range and the gradient arrives through 100 layers, pointing the right way."""
    rng = np.random.default_rng(8)
    graph = training(chain(100, rng, 24), "full", Numerics(mode="r8"), SoftmaxCrossEntropy())
    values = values_of(graph, label_of(graph, random_inputs(graph, rng), 2))
    exponents = [int(values[o]) for n in graph.nodes if isinstance(n.op, InputGrad) for o in n.outputs[1:]]
    assert len(exponents) == 100 and max(map(abs, exponents)) < 1 << 12
    assert len(set(exponents)) > 20
    name, _, seed = fa.loss_of(graph, values)
    exact = fa.gradients(graph, values, {name: seed})
    for layer, least in ((0, 0.5), (50, 0.9), (90, 0.99)):
        node = next(n for n in graph.nodes if n.name == f"layer{layer}/weight update")
        t = Types(graph.types(node.inputs), ())
        x, e, k = (values[n] for n in node.inputs[:3])
        a = node.op.gradient_sums(t, x, e).ravel() * t.ins[0].scale * t.ins[1].scale * 2.0 ** -int(k)
        b = exact[node.inputs[3]].ravel()
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > least, layer
        assert 0.5 < np.linalg.norm(a) / np.linalg.norm(b) < 2, layer


# ---- random numbers


def test_random_golden_vectors() -> None:
    """Pinned values: a change of the generator changes every trained model, so it must be deliberate."""
    golden = {0: 0, 1: 1753845952, 2: 3507691905, 0xDEADBEEF: 3861431939, 0xFFFFFFFF: 1734902346}
    assert {x: int(hash32(x)) for x in golden} == golden
    keys = [3210455839, 565986300, 2643439984, 3129529538]
    assert [random_key(s, n, i) for s, n, i in ((0, 0, 0), (1, 0, 5), (0, 1, 5), (7, 1000, 206))] == keys
    assert random16(keys[0], np.arange(6)).tolist() == [38649, 47294, 13452, 55747, 30601, 54378]


def test_random_numbers_are_random() -> None:
    """Uniform, uncorrelated between neighbours, tensors and steps."""
    index = np.arange(1 << 16)
    streams = [random16(random_key(0, step, stream), index) for step, stream in ((0, 1), (0, 2), (1, 1), (0, 5))]
    for u in streams:
        assert u.min() >= 0 and u.max() < 1 << 16
        assert abs(u.mean() / 65535 - 0.5) < 5 * math.sqrt(1 / 12 / u.size)
        assert np.abs(np.histogram(u, 16, (0, 1 << 16))[0] - u.size / 16).max() < 5 * math.sqrt(u.size / 16)
        assert all(abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) < 5 / math.sqrt(u.size) for lag in (1, 2, 3, 8))
    for i, a in enumerate(streams):
        assert all(abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(a.size) for b in streams[:i])


def test_streams_are_unique() -> None:
    """No two tensors of a graph draw the same numbers, at any step."""
    graph = digits_graph(mode="sr")
    ids = []
    for node in graph.nodes:
        if isinstance(node.op, Update):
            t = Types(graph.types(node.inputs), graph.types(node.outputs))
            ids.append(int(node.op.kernel(t).params["stream"]))
    kinds = [isinstance(n.op, BiasUpdate) for n in graph.nodes if isinstance(n.op, Update)]
    assert len(ids) == len(set(ids)) > 20 and any(kinds) and not all(kinds)
    keys = {random_key(0, step, stream) for step in range(200) for stream in ids}
    assert len(keys) == 200 * len(ids)


@pytest.mark.parametrize(("mode", "batch"), [("sr", 1), ("r4", 1), ("r4", 3), ("r8", 1)])
def test_replay_and_resume(mode: str, batch: int) -> None:
    """The same seed gives the same weights, resuming from any step too; another seed gives others (r8: the same)."""
    graph = digits_graph(mode=mode, batch=batch)
    rng = np.random.default_rng(2)
    samples = [label_of(graph, random_inputs(graph, rng), int(rng.integers(10))) for _ in range(8)]

    def train(executor: Executor, some: list[dict[str, np.ndarray]]) -> Executor:
        for inputs in some:
            executor.train(inputs)
        return executor

    whole = train(Executor(graph, Control(seed=9)), samples)
    half = train(Executor(graph, Control(seed=9)), samples[:4])
    resumed = Executor(graph, Control(seed=9, step=4))
    resumed.params = {k: v.copy() for k, v in half.params.items()}
    train(resumed, samples[4:])
    other = train(Executor(graph, Control(seed=10)), samples)
    same = {k: np.array_equal(v, whole.params[k]) for k, v in other.params.items()}
    for name, value in whole.params.items():
        np.testing.assert_array_equal(resumed.params[name], value, name)
    assert all(same.values()) == (mode == "r8")
