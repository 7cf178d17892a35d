"""From a forward graph to one that learns: schemes, heads, derivation, dead nodes, and learning itself."""

from __future__ import annotations

from pathlib import Path

import float_autograd as fa
import numpy as np
import pytest
from nets import DIGITS, ROOT, LayerCase, forward_of, label_of, layer_net, only, random_inputs, training
from tflite_builder import GraphBuilder

from tte import passes
from tte.compiler import choose_loss
from tte.errors import ModelError
from tte.fixed import random16, random_key
from tte.frontend import tflite
from tte.frontend.schema import write
from tte.ir import Graph, Role, verify
from tte.ops.base import Control, Types
from tte.ops.error import ApplyMask, Merge
from tte.ops.linear import weight_scales
from tte.ops.linear_grad import BiasUpdate, InputGrad, Update, WeightUpdate, apply_step
from tte.ops.loss import MeanSquaredError, SoftmaxCrossEntropy
from tte.passes.dead import eliminate_dead
from tte.reference import Executor
from tte.training import scheme as schemes
from tte.training.autodiff import LOSS, Numerics, derive
from tte.training.head import find, replace_head
from tte.training.scheme import LayerUpdate, linear_nodes, strongest_channels


@pytest.fixture(scope="module")
def digits() -> Graph:
    return forward_of(DIGITS)


def turned_digits(count: int) -> list[tuple[np.ndarray, int]]:
    """Real digits turned by 90 degrees, which the shipped network was not trained on."""
    data = np.load(ROOT / "demo" / "digits.npz")
    x = (np.rot90(data["x_train"][:count], axes=(1, 2)).astype(np.int16) - 128).astype(np.int8)
    return [(image[None], int(label)) for image, label in zip(x, data["y_train"][:count], strict=True)]


def small(b: GraphBuilder) -> Graph:
    return passes.run(passes.NORMALISE, tflite.from_bytes(write(b.model()), "test", "small"))


# ---- learning


@pytest.mark.parametrize("mode", ["r4", "sr"])
def test_learns(digits: Graph, mode: str) -> None:
    """The loss on turned digits falls within 200 samples seen once, and the weights do not erode."""
    graph = training(digits, "full", Numerics(mode=mode))
    executor, losses = Executor(graph, Control(seed=1)), []
    for step, (x, label) in enumerate(turned_digits(200)):
        executor.control = Control(min(32768, 1024 * (step + 1)), 1, step)  # warm-up
        losses.append(int(executor.train(label_of(graph, {graph.inputs[0]: x}, label))[LOSS]))
    before, after = np.mean(losses[:50]), np.mean(losses[-50:])
    print(f"{mode}: loss {before / 256:.2f} -> {after / 256:.2f} bit")
    assert after < 0.6 * before
    weights = [t for t in graph.of_role(Role.PARAM) if t.type.dtype == "int8" and not t.name.endswith("residual")]
    size = [sum(int(np.abs(w.astype(int)).sum()) for w in (t.data, executor.params[t.name])) for t in weights]
    start = [int(np.abs(t.data.astype(int)).sum()) for t in weights]
    assert sum(size) - sum(start) > 0.9 * sum(start)


def test_loss_equals_float(digits: Graph) -> None:
    """The integer loss of real samples is the float cross-entropy of the same logits."""
    graph = training(digits, "last")
    unit = SoftmaxCrossEntropy().loss_scale(graph.type(digits.outputs[0]))
    for x, label in turned_digits(20):
        inputs = label_of(graph, {graph.inputs[0]: x}, label)
        values = {**inputs, **Executor(graph).run(inputs)}
        assert int(values[LOSS]) * unit == pytest.approx(fa.loss_of(graph, values)[1], abs=0.03, rel=0.002)


@pytest.mark.parametrize("update", ["last", "bias", "full"])
def test_only_what_trains_moves(digits: Graph, update: str) -> None:
    """Exactly the scheme's tensors are parameters and change; everything else is constant; the layers run as before."""
    graph = training(digits, update, Numerics(rate=0.5))
    executor = Executor(graph)
    frozen = {t.name: t.data.copy() for t in graph.of_role(Role.CONST)}
    samples = turned_digits(6)
    for x, label in samples:
        executor.train(label_of(graph, {graph.inputs[0]: x}, label))
    layers, head = linear_nodes(digits), find(digits).node
    trained = {t.name for t in graph.of_role(Role.PARAM) if not t.name.endswith("residual")}
    biases, weights = {n.inputs[-1] for n in layers}, {n.inputs[1] for n in layers}
    expected = {"last": set(head.inputs[1:]), "bias": biases | {head.inputs[1]}, "full": biases | weights}[update]
    assert trained == expected
    assert {n for n in trained if np.any(executor.params[n] != graph.data(n))} == trained
    for name, data in frozen.items():
        np.testing.assert_array_equal(graph.data(name), data)
    plain = Executor(digits).run({digits.inputs[0]: samples[0][0]})
    first = Executor(graph).run(label_of(graph, {graph.inputs[0]: samples[0][0]}, 0))
    assert all(np.array_equal(first[k], v) for k, v in plain.items() if k in first)


def test_learning_rate_zero_is_still(digits: Graph) -> None:
    """With a run-time factor of 0 nothing moves, residuals included."""
    graph = training(digits, "full")
    executor = Executor(graph, Control(0))
    for x, label in turned_digits(3):
        executor.train(label_of(graph, {graph.inputs[0]: x}, label))
    assert all(np.array_equal(v, graph.data(k)) for k, v in executor.params.items())


# ---- accumulation


@pytest.mark.parametrize("mode", ["sr", "r4", "r8"])
def test_batch_applies_the_sum(mode: str) -> None:
    """A batch of four moves nothing for three samples, then applies the sum of the four steps, and holds nothing."""
    rng = np.random.default_rng(6)
    case = LayerCase("conv", (3, 3), pad=(1, 1, 1, 1), ratio=30.0, channels=(0, 3))
    forward = layer_net(case, rng)
    four, single = (
        training(forward, only(case), Numerics(1e-3, mode, batch), MeanSquaredError()) for batch in (4, 1 << 20)
    )
    samples = [random_inputs(four, rng) for _ in range(4)]
    steps = [Executor(single) for _ in samples]  # a batch that never ends: what is held is the step
    for executor, inputs in zip(steps, samples, strict=True):
        executor.run(inputs)
    batched = Executor(four, Control(seed=3))
    for inputs in samples:
        for tensor in four.of_role(Role.PARAM):
            if not tensor.name.endswith("/held"):
                np.testing.assert_array_equal(batched.params[tensor.name], tensor.data, tensor.name)
        batched.train(inputs)
    for node in four.nodes:
        if not isinstance(node.op, Update):
            continue
        names = node.inputs[3:] if isinstance(node.op, WeightUpdate) else node.inputs[2:]
        held = names[-1]
        assert not batched.params[held].any()
        total = sum(e.params[held].astype(np.int64) for e in steps)
        start = [four.data(n) for n in names[:-1]]
        key = random_key(3, 3, int(node.op.kernel(Types(four.types(node.inputs), four.types(node.outputs))).params["stream"]))
        if isinstance(node.op, WeightUpdate):
            u = random16(key, node.op.linear_index()).reshape(total.shape)
            want = apply_step(mode, start[0], start[1] if len(start) > 1 else None, total, u)
        else:
            u = 128 if mode == "r8" else random16(key, np.arange(total.size)) & 255
            want = [start[0] - ((total + u) >> 8)]
        for name, value in zip(names[:-1], want, strict=True):
            np.testing.assert_array_equal(batched.params[name], value, name)


# ---- what is kept


def kinds(graph: Graph) -> list[type]:
    return [type(n.op) for n in graph.nodes]


def test_last_keeps_the_head_alone(digits: Graph) -> None:
    """Scheme `last`: loss, bias and weight update; no error is sent back and no mask is kept."""
    graph = training(digits, "last")
    known = {n.name for n in digits.nodes}
    assert [type(n.op) for n in graph.nodes if n.name not in known] == [SoftmaxCrossEntropy, BiasUpdate, WeightUpdate]
    assert not any(t.type.dtype == "bit" for t in graph.tensors.values())
    assert sorted(n.name for n in graph.nodes if n.name in known) == sorted(known)


def test_bias_needs_no_inputs(digits: Graph) -> None:
    """Scheme `bias`: one bias update a layer, one weight update (the head's), and no dX below the first layer."""
    graph = training(digits, "bias")
    layers = len(linear_nodes(digits))
    assert kinds(graph).count(BiasUpdate) == layers and kinds(graph).count(WeightUpdate) == 1
    assert kinds(graph).count(InputGrad) == layers - 1
    assert kinds(graph).count(ApplyMask) == sum(t.type.dtype == "bit" for t in graph.tensors.values())


def test_dead_nodes(digits: Graph) -> None:
    """What is left is all needed, twice is as once, and pruning changes no parameter's step."""
    head = find(digits)
    loss = choose_loss(digits, head, "auto")
    for layer in linear_nodes(digits)[2:5]:
        updates = {layer.name: LayerUpdate(bias=True, weights=True)}
        full = verify(derive(digits, head, loss, updates, Numerics(mode="r8")))
        pruned = verify(eliminate_dead(full))
        assert [n.name for n in eliminate_dead(pruned).nodes] == [n.name for n in pruned.nodes]
        assert len(pruned.nodes) <= len(full.nodes)
        needed = {*pruned.outputs, *(i for n in pruned.nodes for i in n.inputs)}
        for node in pruned.nodes:
            assert pruned.mutated(node) or needed.intersection(node.outputs), node.name
            for index in node.op.optional_outputs():
                assert node.outputs[index] in needed
        at = [n.name for n in digits.nodes].index(layer.name)
        below = {n.name for n in digits.nodes[:at]}
        assert not [n.name for n in pruned.nodes if n.name.rsplit("/", 1)[0] in below - {layer.name} and n.name not in below]
        x, label = turned_digits(1)[0]
        both = [Executor(g) for g in (full, pruned)]
        for executor in both:
            executor.run(label_of(executor.graph, {digits.inputs[0]: x}, label))
        for name, value in both[1].params.items():
            np.testing.assert_array_equal(value, both[0].params[name])


def test_fan_out_is_summed(digits: Graph) -> None:
    """Every tensor with several differentiable readers gets one merge fewer than readers."""
    graph = training(digits, "full")
    reached = {o for n in digits.nodes[1:] for o in n.outputs} | set(digits.nodes[0].outputs)
    extra = sum(max(0, sum(n.inputs.count(name) for n in digits.nodes) - 1) for name in reached)
    assert extra > 0 and kinds(graph).count(Merge) == extra


# ---- schemes


def scheme_file(folder: Path, text: str) -> str:
    path = folder / "some.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bias = [", "not a readable TOML file"),
        ("biases = []", "unknown key 'biases'"),
        ("bias = 3", "bias must be a list"),
        ("head = 1", "head true or false"),
        ("weights = []", "weights a table"),
        ("bias = ['NAMEx']", "did you mean 'NAME'"),
        ("bias = ['zzzzzzzzzzzzzzzz']", "no layer 'zzzzzzzzzzzzzzzz'"),
        ("bias = [7]", "no layer 7"),
        ("[weights]\n'NAMEx' = 1.0", "did you mean 'NAME'"),
        *((f"redraw = {v}", "a whole number of steps") for v in ("-1", "true", "1.5", "'often'", "2147483648")),
        *((f"[weights]\n'NAME' = {v}", "above 0 and at most 1") for v in ("0", "-1", "1.01", "true", "'all'", "nan", "inf")),
    ],
)
def test_bad_scheme(digits: Graph, tmp_path: Path, text: str, message: str) -> None:
    """One clear message that names the file."""
    layer = linear_nodes(digits)[2].name
    path = scheme_file(tmp_path, text.replace("NAME", layer))
    with pytest.raises(ModelError) as caught:
        schemes.load(path, digits)
    assert message.replace("NAME", layer) in str(caught.value) and path in str(caught.value)


def test_no_such_scheme(digits: Graph, tmp_path: Path) -> None:
    for spec in ("lst", str(tmp_path), str(tmp_path / "none.toml")):
        with pytest.raises(ModelError, match="no such update scheme"):
            schemes.load(spec, digits)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="not a readable TOML"):
        schemes.load(str(binary), digits)


def test_scheme_reaches_the_graph(digits: Graph, tmp_path: Path) -> None:
    """Biases, fractions and the head as the file says; the slice that trains holds the chosen channels' weights."""
    layers = linear_nodes(digits)
    a, b = next(n for n in layers if n.op.title == "CONV_2D" and digits.type(n.inputs[1]).shape[-1] > 3), layers[-2]
    text = f"head = false\nbias = ['{b.name}']\n[weights]\n'{a.name}' = 0.5\n"
    updates = schemes.resolve(digits, schemes.load(scheme_file(tmp_path, text), digits), layers[-1])
    size = digits.type(a.inputs[1]).shape[-1]
    chosen = updates[a.name].channels
    assert set(updates) == {a.name, b.name}
    assert updates[b.name] == LayerUpdate(bias=True) and len(chosen) == round(size / 2)
    graph = training(digits, updates)
    (trained,) = (t for t in graph.of_role(Role.PARAM) if t.name.endswith("/trained"))
    np.testing.assert_array_equal(trained.data, digits.data(a.inputs[1])[..., list(chosen)])
    assert {t.name for t in graph.of_role(Role.PARAM)} == {trained.name, f"{trained.name}/residual", b.inputs[-1]}


@pytest.mark.parametrize("kind", ["conv", "depthwise"])
def test_strongest_channels(kind: str) -> None:
    """The channels of the largest norm in real units (not in integers), ascending; all of them as ()."""
    rng = np.random.default_rng(4)
    graph = layer_net(LayerCase(kind, (3, 3), multiplier=2, ratio=1000.0), rng, depth=6)
    node = graph.nodes[1]
    w, t = graph.data(node.inputs[1]).astype(float), graph.type(node.inputs[1])
    scales = np.array(weight_scales(t, w.shape[-1 if kind == "depthwise" else 0]))
    real = w * (scales if kind == "depthwise" else scales.reshape(-1, 1, 1, 1))
    norms = np.sqrt((real**2).sum((0, 1, 2)))
    for fraction in (0.01, 0.25, 0.5, 0.99):
        count = max(1, round(fraction * norms.size))
        have = strongest_channels(graph, node, fraction)
        assert have == (tuple(sorted(np.argsort(norms)[::-1][:count].tolist())) if count < norms.size else ())
    assert strongest_channels(graph, node, 1.0) == strongest_channels(graph, node, 0) == ()


@pytest.mark.parametrize("kind", ["conv", "depthwise", "dense"])
def test_partial_training_equals_full_on_its_channels(kind: str) -> None:
    """A trained slice moves as those channels of the whole tensor do, and draws the same random numbers."""
    rng = np.random.default_rng(3)
    forward = layer_net(LayerCase(kind, ratio=9.0), rng)
    inputs = {"x": forward.type("x").shape, "truth": forward.type(forward.outputs[0]).shape}
    sample = {k: rng.integers(-128, 128, shape).astype(np.int8) for k, shape in inputs.items()}
    whole, part = (
        Executor(training(forward, only(LayerCase(kind, channels=channels)), Numerics(), MeanSquaredError()), Control(seed=5))
        for channels in ((), (0, 2, 3))
    )
    for executor in (whole, part):
        executor.run(sample)
    for what in ("", "/residual"):
        moved = part.params[f"layer/w/trained{what}"]
        np.testing.assert_array_equal(whole.params[f"layer/w{what}"][..., [0, 2, 3]], moved)
    assert np.any(moved)


# ---- heads


def test_replace_head(digits: Graph) -> None:
    """N outputs, small random weights from the seed, zero biases, the rest untouched; and it trains."""
    for classes in (2, 10, 37):
        graph = verify(replace_head(digits, classes, 1))
        again, other = replace_head(digits, classes, 1), replace_head(digits, classes, 2)
        node = find(graph).node
        w, b = (graph.data(n) for n in node.inputs[1:])
        assert graph.type(graph.outputs[0]).shape == (1, classes) and w.shape[0] == classes
        assert not b.any() and 0 < np.abs(w.astype(int)).max() <= 127 and len(np.unique(w)) > 10
        np.testing.assert_array_equal(again.data(node.inputs[1]), w)
        assert np.any(other.data(node.inputs[1]) != w)
        assert {n.name for n in graph.nodes} == {n.name for n in digits.nodes}
        trained = training(graph, "last")
        executor = Executor(trained)
        executor.train(label_of(trained, {trained.inputs[0]: turned_digits(1)[0][0]}, classes - 1))
        assert np.any(executor.params[node.inputs[1]] != w)
    for classes in (-1, 0, 1, 40_000):
        with pytest.raises(ModelError, match="classes"):
            replace_head(digits, classes, 0)


def test_head_that_is_none() -> None:
    """A model without a classifier at its end says so."""
    b = GraphBuilder(1)
    b.conv_2d(b.input((1, 6, 6, 3)), 4)
    with pytest.raises(ModelError, match="does not end in a classifier"):
        replace_head(small(b), 10, 0)


# ---- what cannot train


def test_operator_without_gradient_in_the_way() -> None:
    """A SOFTMAX in the middle: layers behind it train, those before it are refused with the operator's reason."""
    b = GraphBuilder(2)
    hidden = b.activation("SOFTMAX", b.fully_connected(b.input((1, 12)), 8))
    b.fully_connected(hidden, 4)
    forward = small(b)
    assert WeightUpdate in kinds(training(forward, "last"))
    with pytest.raises(ModelError, match=r"1 layers cannot train: .*SOFTMAX has a gradient only") as caught:
        training(forward, "full")
    assert linear_nodes(forward)[0].name in str(caught.value) and "remedy" in str(caught.value)


def test_nothing_to_train(digits: Graph, tmp_path: Path) -> None:
    path = scheme_file(tmp_path, "head = false")
    with pytest.raises(ModelError, match="nothing would train"):
        training(digits, path)


def test_loss_choice(digits: Graph) -> None:
    """Cross-entropy for a classifier, mean squared error where output and input agree; a clear refusal else."""
    head = find(digits)
    assert isinstance(choose_loss(digits, head, "auto"), SoftmaxCrossEntropy)
    for wish, message in (("mse", "ends in a softmax"), ("hinge", "unknown loss")):
        with pytest.raises(ModelError, match=message):
            choose_loss(digits, head, wish)
    b = GraphBuilder(3)
    b.fully_connected(b.input((1, 6)), 6)
    autoencoder = small(b)
    assert isinstance(choose_loss(autoencoder, find(autoencoder), "auto"), MeanSquaredError)
