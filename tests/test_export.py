"""What was learnt, as a .tflite: LiteRT gives the device's answers with it, and it can be built again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from c_harness import needs
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import DIGITS, shared
from oracle import Oracle
from random_graphs import sample
from test_cli import NPZ, refused, tte
from tflite_builder import GraphBuilder

from tte import project, verify
from tte.codegen import model_hash, state_bytes, state_slots
from tte.compiler import Compiled, Options, compile_model
from tte.device import statefile
from tte.device.statefile import State
from tte.errors import DataError, DeviceError, TteError
from tte.export import learnt_model, parameters
from tte.frontend.records import RawTensor
from tte.frontend.schema import read
from tte.ops.base import Control
from tte.reference import Executor, pack
from tte.training.autodiff import TRUTH, Numerics


def learnt(compiled: Compiled, steps: int, seed: int = 0) -> Executor:
    """The reference after training steps on random samples."""
    executor = Executor(compiled.plan.program.graph, Control(seed=seed))
    for x, label, target in _some(verify.samples(compiled, seed), steps):
        truth = np.array(label, np.int32) if target is None else target
        executor.train({model_input(compiled): x, TRUTH: truth})
    return executor


def _some(samples: verify.Samples, count: int) -> Iterator[tuple[np.ndarray, int, np.ndarray | None]]:
    return (next(samples) for _ in range(count))


def model_input(compiled: Compiled) -> str:
    return next(i for i in compiled.plan.program.graph.inputs if i != TRUTH)


def answer(executor: Executor, compiled: Compiled, x: np.ndarray) -> np.ndarray:
    """What inference gives with the parameters as they are."""
    program = compiled.plan.program
    graph = program.graph
    feed = {n: np.zeros(graph.type(n).shape, np.int32 if graph.type(n).dtype == "int32" else np.int8) for n in graph.inputs}
    values: dict[str, np.ndarray] = {}
    for index, (_, outputs) in enumerate(executor.steps({**feed, model_input(compiled): x})):
        values |= outputs
        if index + 1 == program.forward:
            break
    return values[program.outputs[0]]


def prove(data: bytes, compiled: Compiled, folder: Path, steps: int = 6, inputs: int = 20) -> bytes:
    """Trains, exports; LiteRT and a build of the result answer as the trained program does. Gives the file."""
    executor = learnt(compiled, steps)
    made, layers = learnt_model(data, compiled, executor.params, "m")
    assert {layer.layer for layer in layers} >= set(compiled.updates)
    (folder / "learnt.tflite").write_bytes(made)
    again = compile_model(folder / "learnt.tflite", Options(update="none"))
    fresh = Executor(again.plan.program.graph)
    interpreter = Oracle(made)
    (detail,) = interpreter.interpreter.get_output_details()
    rng = np.random.default_rng(1)
    shape = compiled.plan.program.graph.type(model_input(compiled)).shape
    for _ in range(inputs):
        x = rng.integers(-128, 128, shape, np.int8)
        want = answer(executor, compiled, x)
        assert np.array_equal(answer(fresh, again, x), want)
        if tuple(interpreter.inputs[0]["shape"]) == shape and interpreter.inputs[0]["dtype"] == np.int8:
            found = interpreter.run([x])[detail["index"]]
            if found.dtype == np.float32:
                scale, zero = compiled.forward.type(compiled.forward.outputs[0]).scale, _zero(compiled)
                found = np.rint(found / scale + zero).astype(np.int8)
            assert found.shape == want.shape and np.array_equal(found, want)
    return made


def _zero(compiled: Compiled) -> int:
    return compiled.forward.type(compiled.forward.outputs[0]).zero_point


def build(data: bytes, folder: Path, **options: object) -> Compiled:
    (folder / "m.tflite").write_bytes(data)
    return compile_model(folder / "m.tflite", Options(**options))  # type: ignore[arg-type]


# ---- the demo's model


def _parts(compiled: Compiled, folder: Path, head: str = "") -> str:
    """A scheme file: every second layer's weights in part, every third's bias."""
    names = [n.name for n in compiled.forward.nodes if n.op.title.endswith(("CONV_2D", "CONNECTED"))]
    lines = [head, f"bias = {names[::3]}", "[weights]", *(f'"{n}" = 0.4' for n in names[1::2])]
    (folder / "some.toml").write_text("\n".join(lines))
    return str(folder / "some.toml")


@pytest.mark.parametrize("mode", ["r4", "sr"])
@pytest.mark.parametrize("update", ["last", "bias", "full", "parts", "redraw"])
def test_digits(update: str, mode: str, tmp_path: Path) -> None:
    """Everything but the trained contents stays as it was, byte for byte."""
    data = DIGITS.read_bytes()
    if update in ("parts", "redraw"):
        update = _parts(build(data, tmp_path, update="none"), tmp_path, "redraw = 2" if update == "redraw" else "")
    compiled = build(data, tmp_path, update=update, numerics=Numerics(0.05, mode))
    made = prove(data, compiled, tmp_path)
    assert len(made) == len(data) and made != data
    old, new = read(data, "old").subgraph, read(made, "new").subgraph
    changed = [i for i, (a, b) in enumerate(zip(old.tensors, new.tensors, strict=True)) if _differ(a, b)]
    differing = np.flatnonzero(np.frombuffer(made, np.uint8) != np.frombuffer(data, np.uint8))
    assert 0 < len(changed) <= 2 * len(compiled.updates)
    assert differing.size <= sum(old.tensors[i].data.nbytes for i in changed)  # type: ignore[union-attr]


def _differ(a: RawTensor, b: RawTensor) -> bool:
    return a.data is not None and b.data is not None and a.data.tobytes() != b.data.tobytes()


def test_no_step_gives_the_same_file(tmp_path: Path) -> None:
    data = DIGITS.read_bytes()
    compiled = build(data, tmp_path, update="full")
    made, layers = learnt_model(data, compiled, Executor(compiled.plan.program.graph).params, "m")
    assert made == data and not any(layer.weights or layer.biases for layer in layers)


@pytest.mark.parametrize("classes", [3, 10, 17])
@pytest.mark.parametrize("update", ["last", "full"])
def test_fresh_classifier(classes: int, update: str, tmp_path: Path) -> None:
    """Another number of classes, or as many; what else the file carries is still there."""
    data = DIGITS.read_bytes()
    made = prove(data, build(data, tmp_path, update=update, classes=classes), tmp_path)
    details, before = (Oracle(d).interpreter for d in (made, data))
    assert list(details.get_output_details()[0]["shape"]) == [1, classes]
    assert details.get_signature_list() == before.get_signature_list() != {}
    assert len(made) < len(data) + 40 * classes + 800, "the old classifier is still there"
    # And once more, on top of what was exported.
    prove(made, build(made, tmp_path, update="bias", classes=5), tmp_path, steps=2, inputs=4)


# ---- made models


def test_random_models(tmp_path: Path) -> None:
    """Every kind of layer, scheme, residual mode, batch, redraw and fresh classifier."""
    proved = 0
    for seed in range(24):
        made = sample(seed)
        compiled = made.compile(tmp_path)
        if compiled is not None:
            prove(made.data, compiled, tmp_path, steps=4, inputs=4)
            proved += 1
    assert proved > 12


@pytest.mark.slow
def test_many_random_models(tmp_path: Path) -> None:
    for seed in range(1000, 1300):
        made = sample(seed)
        compiled = made.compile(tmp_path)
        if compiled is not None:
            prove(made.data, compiled, tmp_path, steps=4, inputs=4)


def _shared_constants(b: GraphBuilder) -> int:
    """Three layers, the classifier among them, that read the same weights and bias."""
    x = y = b.input((1, 6))
    b.fully_connected(x, 6)
    op = b.operators.pop()
    for _ in range(3):  # with one scale for all, so that the bias counts in the same unit
        y = b.op("FULLY_CONNECTED", [y, *op.inputs[1:]], (1, 6), b.scale(x), 3, op.options)
    return y


def _equal_buffers(b: GraphBuilder) -> int:
    """Layers whose weights or biases are equal, so that the file holds them once."""
    y = b.input((1, 5, 5, 4))
    for _ in range(3):
        y = b.conv_2d(y, 4, (1, 1))
        inputs = b.operators[-1].inputs
        b.tensors[inputs[1]] = replace(b.tensors[inputs[1]], data=np.arange(16, dtype=np.int8).reshape(4, 1, 1, 4))
        b.tensors[inputs[2]] = replace(b.tensors[inputs[2]], data=np.zeros(4, np.int32))
    return b.fully_connected(b.mean(y), 4)


def _no_bias(b: GraphBuilder) -> int:
    y = b.depthwise_conv_2d(b.input((1, 5, 5, 3)), bias=False)
    return b.fully_connected(b.mean(b.pad(y, [(0, 0), (1, 1), (0, 2), (0, 0)])), 4, bias=False)


def _border(b: GraphBuilder) -> int:
    """PAD before a convolution, a classifier that is one, a shape that is computed, SOFTMAX, DEQUANTIZE."""
    x = b.pad(b.input((1, 6, 6, 2)), [(0, 0), (1, 1), (1, 1), (0, 0)])
    y = b.conv_2d(b.mean(b.conv_2d(x, 5, padding="VALID", activation="RELU6"), keep_dims=True), 6, (1, 1))
    shape = b.op("SHAPE", [y], (4,), None, dtype="int32", options={"out_type": "int32"})
    ends = [b.int32(0), b.int32(1), b.int32(1)]
    batch = b.op("STRIDED_SLICE", [shape, *ends], (), None, dtype="int32", options={"shrink_axis_mask": 1})
    wanted = [batch, b.constant(np.array(6, np.int32))]
    new = b.op("PACK", wanted, (2,), None, dtype="int32", options={"values_count": 2})
    return b.dequantize(b.activation("SOFTMAX", b.same("RESHAPE", y, (1, 6), new)))


def _views(b: GraphBuilder) -> int:
    """A classifier that keeps its input's rank, and views behind it."""
    x = b.reshape(b.input((1, 6)), (1, 1, 6))
    y = b.fully_connected(x, 5)
    b.operators[-1] = replace(b.operators[-1], options={**b.operators[-1].options, "keep_num_dims": True})
    b.tensors[y] = replace(b.tensors[y], shape=(1, 1, 5), shape_signature=(-1, 1, 5))
    return b.activation("SOFTMAX", b.reshape(y, (1, 5)))


MODELS = {f.__name__.strip("_"): f for f in (_shared_constants, _equal_buffers, _no_bias, _border, _views)}


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("name", MODELS)
def test_layouts(name: str, classes: int, tmp_path: Path) -> None:
    b = GraphBuilder(3)
    MODELS[name](b)
    data = b.build()
    prove(data, build(data, tmp_path, update="full", classes=classes, numerics=Numerics(0.1)), tmp_path)


@pytest.mark.parametrize("name", ["equal_buffers", "shared_constants", "no_bias"])
def test_one_of_them_trains(name: str, tmp_path: Path) -> None:
    """What it shares with others stays theirs."""
    b = GraphBuilder(4)
    MODELS[name](b)
    data = b.build()
    layer = next(n.name for n in build(data, tmp_path, update="none").forward.nodes if n.op.title != "PAD")
    (tmp_path / "one.toml").write_text(f'head = false\nbias = ["{layer}"]\n[weights]\n"{layer}" = 1.0\n')
    compiled = build(data, tmp_path, update=str(tmp_path / "one.toml"), numerics=Numerics(0.1))
    made = prove(data, compiled, tmp_path)
    old, new = read(data, "old").subgraph, read(made, "new").subgraph
    changed = sum(_differ(a, b) for a, b in zip(old.tensors, new.tensors, strict=False))
    assert changed + len(new.tensors) - len(old.tensors) <= 2


# ---- state files

_STATE = State("0123456789abcdef", 32768, 7, 400, bytes(range(100)))


def test_state_files_there_and_back(tmp_path: Path) -> None:
    statefile.save(tmp_path / "s", _STATE)
    assert statefile.load(tmp_path / "s") == _STATE
    with pytest.raises(DataError, match="No such file"):
        statefile.load(tmp_path / "none")


@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_are_refused(content: bytes, begun: bool) -> None:
    with pytest.raises(DataError):
        statefile.parse(statefile.MAGIC * begun + content, "s")


@settings(max_examples=400)
@given(st.integers(0), st.integers(0, 255), st.sampled_from(["cut", "flip", "more"]))
def test_damage_is_noticed(place: int, value: int, how: str) -> None:
    whole = statefile.pack(_STATE)
    at = place % len(whole)
    damaged = {"cut": whole[:at], "more": whole + bytes([value]), "flip": bytearray(whole)}[how]
    if isinstance(damaged, bytearray):
        damaged[at] ^= value or 1
    with pytest.raises(DataError):
        statefile.parse(bytes(damaged), "s")


def state_of(compiled: Compiled, executor: Executor) -> State:
    """The reference's state as a device would give it."""
    data = bytearray(state_bytes(compiled.plan))
    for slot in state_slots(compiled.plan):
        packed = pack(executor.params[slot.name], slot.type.dtype)
        data[slot.offset : slot.offset + len(packed)] = packed
    c = executor.control
    return State(model_hash(compiled.plan), c.learning_rate, c.seed, c.step, bytes(data))


def test_parameters_of_a_state(tmp_path: Path) -> None:
    """They are those of the reference; another program's state, and channels that a layer lacks, are refused."""
    data = DIGITS.read_bytes()
    update = _parts(build(data, tmp_path, update="none"), tmp_path, "redraw = 2")
    compiled = build(data, tmp_path, update=update)
    executor = learnt(compiled, 5)
    state = state_of(compiled, executor)
    assert state.step == 5
    found = parameters(compiled.plan, state, "s")
    assert all(np.array_equal(found[name], value) for name, value in executor.params.items())
    for other in (replace(state, hash="0" * 16), replace(state, data=state.data[:-4])):
        with pytest.raises(DeviceError, match="another program"):
            parameters(compiled.plan, other, "s")
    table = next(s for s in state_slots(compiled.plan) if s.name.endswith("/channels"))
    wrong = bytearray(state.data)
    wrong[table.offset : table.offset + 2] = b"\xff\xff"
    with pytest.raises(DataError, match="no ascending list"):
        parameters(compiled.plan, replace(state, data=bytes(wrong)), "s")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_contents_give_a_model_or_a_message(seed: int) -> None:
    """A state file of the right program whose values no training gave: LiteRT can read what comes out."""
    compiled = compile_model(DIGITS, Options(update="full"))
    rng = np.random.default_rng(seed)
    state = State(model_hash(compiled.plan), 0, 0, 0, rng.bytes(state_bytes(compiled.plan)))
    try:
        values = parameters(compiled.plan, state, "s")
        if seed % 2:
            values = {n: np.maximum(v, -127) if v.dtype == np.int8 else v for n, v in values.items()}
        data, _ = learnt_model(DIGITS.read_bytes(), compiled, values, "m")
    except TteError:
        assert seed % 2 == 0
    else:
        Oracle(data)


# ---- the commands


@needs("arm-none-eabi-gcc", "gcc")
def test_commands(tmp_path: Path) -> None:
    """Learn, go on, export, build again: the device and LiteRT agree on real digits; what does not fit is refused."""
    folder, first, second, out = (tmp_path / n for n in ("digits", "1.state", "2.state", "learnt.tflite"))
    made = ("--board", "mps2-an386", "--json")
    assert tte("build", DIGITS, *made, "--update", "full", "--out", folder).status == 0
    run = ("run", folder, "--data", NPZ, "--on", "host", "--steps", 15, "--final-samples", 20, "--eval-samples", 5)
    assert tte(*run, "--save-state", first).status == 0
    assert tte(*run, "--load-state", first, "--save-state", second).status == 0
    assert statefile.load(second).step == 30
    facts = json.loads(tte("export", folder, "--state", second, "--out", out, "--json").out)
    assert facts["steps"] == 30 and sum(layer["weights"] for layer in facts["layers"]) > 0
    again = tmp_path / "again"
    assert tte("build", out, *made, "--update", "last", "--out", again).status == 0
    x = np.load(NPZ)["x_test"][:60].astype(np.int16).reshape(-1, 1, 8, 8, 1) - 128
    agree(folder, out.read_bytes(), x.astype(np.int8), statefile.load(second), again)
    for name, content, word in (
        ("text", b"no state at all", "is no state file"),
        ("cut", second.read_bytes()[:-9], "damaged"),
        ("other", statefile.pack(replace(statefile.load(second), hash="f" * 16)), "another program"),
    ):
        (tmp_path / name).write_bytes(content)
        for command in (("export", folder, "--state"), (*run, "--load-state")):
            refused(tte(*command, tmp_path / name), word)
    refused(tte("export", folder, "--state", tmp_path / "none"), "No such file")
    refused(tte("export", tmp_path, "--state", second), "tte build")


def agree(folder: Path, exported: bytes, inputs: np.ndarray, state: State, again: Path | None = None) -> None:
    """The device with the state, LiteRT with the exported model, and a build of that give the same bytes."""
    interpreter = Oracle(exported)
    (detail,) = interpreter.interpreter.get_output_details()
    with verify.open_program(project.load(folder)[0], "host", sanitize=False) as device:
        statefile.push(device, state, "s")
        assert statefile.pull(device) == state
        answers = [device.infer(x) for x in inputs]
    for x, want in zip(inputs, answers, strict=True):
        assert np.array_equal(interpreter.run([x])[detail["index"]].ravel(), want)
    if again is not None:
        with verify.open_program(project.load(again)[0], "host", sanitize=False) as device:
            assert all(np.array_equal(device.infer(x), want) for x, want in zip(inputs, answers, strict=True))


@needs("arm-none-eabi-gcc", "gcc")
def test_mcunet(tmp_path: Path) -> None:
    """The network and the scheme of the paper, ten classes of its own."""
    model, scheme = shared("models", "mcunet-5fps.tflite"), shared("schemes", "mcunet-5fps-49kb.toml")
    folder, saved, out = tmp_path / "m", tmp_path / "s", tmp_path / "l.tflite"
    command = ("build", model, "--board", "stm32f746", "--classes", 10, "--update", scheme, "--out", folder)
    assert tte(*command).status == 0
    images = np.load(shared("data", "cifar10_5k.npz"))
    np.savez(tmp_path / "c.npz", **{k: images[k][:60] for k in ("x_train", "y_train", "x_test", "y_test")})
    run = ("run", folder, "--data", tmp_path / "c.npz", "--on", "host", "--steps", 40, "--eval-samples", 2, "--final-samples", 2)
    assert tte(*run, "--save-state", saved).status == 0
    assert tte("export", folder, "--state", saved, "--out", out).status == 0
    x = images["x_test"][:12].repeat(4, 1).repeat(4, 2).astype(np.int16)[:, None] - 128
    agree(folder, out.read_bytes(), x.astype(np.int8), statefile.load(saved))
