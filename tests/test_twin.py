"""The search's program against the programs it stands for: the same bytes for every scheme."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from c_harness import needs

from tte import resources
from tte.codegen import state_slots
from tte.compiler import Options, compile_model
from tte.ir import Role
from tte.ops.base import Control
from tte.ops.linear import Linear
from tte.ops.linear_grad import WeightUpdate
from tte.reference import Executor, pack, unpack
from tte.search.host import HostDevice
from tte.search.twin import Twin, route
from tte.training.autodiff import TRUTH, Numerics

_MODEL = resources.path("demo") / "digits.tflite"


def _schemes(folder: Path) -> dict[str, str]:
    """Built-in schemes, and one that trains some biases and some channels of layers in the middle."""
    names = sorted(compile_model(_MODEL, Options(update="full")).updates)
    lines = [f"bias = {names[2:6]!r}".replace("'", '"'), "[weights]"]
    lines += [f'"{name}" = {fraction}' for name, fraction in zip(names[1:6:2], (0.25, 0.5, 1.0), strict=False)]
    (folder / "some.toml").write_text("\n".join(lines))
    (folder / "drawn.toml").write_text("\n".join(["redraw = 2", *lines]))
    files = {name: str(folder / f"{name}.toml") for name in ("some", "drawn")}
    return {"last": "last", "bias": "bias", "full": "full", **files}


def _same_drawn(twin: Twin, state: bytes, layer: str, executor: Executor) -> None:
    """Weights, the channels that train, and their residuals; the others' residuals are 0."""
    slots = {s.name: s for s in state_slots(twin.plan)}
    whole = next(n for n in twin.graph.nodes if n.name == layer)
    update = next(n for n in twin.graph.nodes if isinstance(n.op, WeightUpdate) and n.inputs[3] == whole.inputs[1])
    name = whole.inputs[1]
    assert twin.drawn[layer] == tuple(executor.params[f"{name}/channels"])
    for tensor in update.inputs[3:]:
        slot, want = slots[tensor], executor.params[tensor]
        data = unpack(state[slot.offset : slot.offset + slot.type.nbytes], slot.type.shape, slot.type.dtype)
        if tensor != name:
            sums = np.abs(data.astype(int)).sum(), np.abs(want.astype(int)).sum()
            assert sums[0] == sums[1]
            data = data[..., list(twin.drawn[layer])]
        np.testing.assert_array_equal(data, want, tensor)


@needs("cc")
@pytest.mark.parametrize("mode", ["r4", "r8", "sr"])
def test_equals_the_pruned_program(mode: str, tmp_path: Path) -> None:
    options = Options(update="full", numerics=Numerics(0.02, mode), stream=False)
    twin = Twin(compile_model(_MODEL, options), tmp_path)
    random = np.random.default_rng(1)
    shape = twin.graph.type(twin.input).shape
    x = random.integers(-128, 128, (6, *shape[1:]), np.int8)
    labels = random.integers(0, 10, 6).astype(np.int32)
    order = random.integers(0, 6, 9).astype(np.uint32)
    rates = random.integers(1, 32769, 9).astype(np.uint16)
    for scheme in _schemes(tmp_path).values():
        pruned = compile_model(_MODEL, replace(options, update=scheme))
        way = route(twin.plan, pruned.updates)
        features = twin.features(x, way)
        twin.reset(seed=5)
        halves = [twin.train(features, labels, order[a:b], rates[a:b], way, pruned.updates) for a, b in ((0, 3), (3, 9))]
        losses = np.concatenate(halves)
        state = twin.state()
        executor = Executor(pruned.plan.program.graph)
        executor.control = replace(executor.control, seed=5)
        graph = pruned.plan.program.graph
        source = next(i for i in graph.inputs if i != TRUTH)
        for step, (sample, rate) in enumerate(zip(order, rates, strict=True)):
            executor.control = replace(executor.control, learning_rate=int(rate))
            values = executor.train({source: x[sample].reshape(shape), TRUTH: labels[sample]})
            assert int(values["loss"]) == losses[step]
        slots = {s.name: s for s in state_slots(twin.plan)}
        for layer, update in pruned.updates.items():
            node = next(n for n in graph.nodes if n.name == layer)
            whole = next(n for n in twin.graph.nodes if n.name == layer)
            if update.weights:
                slot = slots[whole.inputs[1]]
                there = np.frombuffer(state, np.int8, slot.type.nbytes, slot.offset).reshape(slot.type.shape)
                part = executor.params[node.inputs[1]]
                if update.redraw:
                    _same_drawn(twin, state, layer, executor)
                    continue
                assert (there[..., list(update.channels)] if update.channels else there).tobytes() == part.tobytes()
                kept = np.ones(slot.type.shape[-1], np.bool_)
                kept[list(update.channels) or slice(None)] = False
                assert (there[..., kept] == twin.graph.data(whole.inputs[1])[..., kept]).all()
            if update.bias:
                slot = slots[whole.inputs[-1]]
                assert state[slot.offset : slot.offset + slot.type.nbytes] == pack(executor.params[node.inputs[-1]], "int32")
        others = {n.inputs[1] for n in twin.graph.nodes if n.name not in pruned.updates and len(n.inputs) > 1}
        for name in others & {t.name for t in twin.graph.of_role(Role.PARAM)}:
            slot = slots[name]
            assert state[slot.offset : slot.offset + slot.type.nbytes] == twin.graph.data(name).tobytes()
        output = pruned.plan.program.outputs[0]
        learnt = {k: v.copy() for k, v in executor.params.items()}
        expected = []
        for sample in x:  # a run trains, too
            executor.params.update({k: v.copy() for k, v in learnt.items()})
            expected.append(executor.run({source: sample.reshape(shape), TRUTH: labels[0]})[output].ravel())
        assert (twin.infer(features, way) == np.stack(expected)).all()


@needs("cc")
def test_device_equals_the_reference(tmp_path: Path) -> None:
    """The program that draws channels itself, as `tte train-host` runs it; what is kept of a sample does not depend on them."""
    whole = compile_model(_MODEL, Options(update="full", stream=False)).plan.program
    layer = [n for n in whole.graph.nodes[: whole.shared] if isinstance(n.op, Linear)][6]
    (tmp_path / "one.toml").write_text(f"redraw = 2\n[weights]\n'{layer.name}' = 0.5\n")
    compiled = compile_model(_MODEL, Options(update=str(tmp_path / "one.toml"), stream=False))
    device = HostDevice(Twin(compiled, tmp_path), compiled.updates, 7)
    executor = Executor(compiled.plan.program.graph, Control(seed=7))
    random = np.random.default_rng(2)
    x = random.integers(-128, 128, (3, *executor.graph.type(executor.graph.inputs[0]).shape), np.int8)
    for step in range(12):
        values = executor.train({executor.graph.inputs[0]: x[step % 3], TRUTH: np.array(step % 10, np.int32)})
        assert device.train(x[step % 3], step % 10, None).loss == int(values["loss"]), step
