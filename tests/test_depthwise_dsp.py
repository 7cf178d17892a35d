"""The DSP kernels of DEPTHWISE_CONV_2D on shapes of their own: every kernel size and stride, sizes below, at and beyond a
tile, channels that are no multiple of four, all candidates by chance, extreme biases, rows in rolling buffers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import c_harness
import numpy as np
import pytest
from c_harness import Bench, merged, needs, placed
from cases import Case, requantised
from random_graphs import all_spans
from test_kernels import backward, forward_calls, training_calls, wide
from test_random_graphs import calls
from tflite_builder import GraphBuilder

from tte.compiler import Options, compile_model
from tte.ir import Graph, verify
from tte.ops.linear import Linear
from tte.ops.segment import Segment
from tte.passes.save_channels import save_channels
from tte.planner.arena import Plan
from tte.planner.check import check
from tte.planner.schedule import Program, schedule
from tte.planner.stream import _Search
from tte.training.autodiff import Numerics

KINDS = list(itertools.product((3, 5, 7), (1, 2)))
_MODES = (("sr", 1), ("r4", 1), ("r8", 3), ("nearest", 1), ("r4", 2))


def depthwise(b: GraphBuilder, x: int, kind: tuple[int, int], rng: np.random.Generator) -> int:
    """A layer of a kernel size and stride, its padding, activation and scales by chance."""
    k, s = kind
    small = min(b.shape(x)[1:3]) < k
    padding = "SAME" if small else str(rng.choice(["SAME", "VALID"]))
    activation = str(rng.choice(["NONE", "NONE", "RELU", "RELU6"]))
    y = b.depthwise_conv_2d(
        x, 1, (k, k), (s, s), padding=padding, activation=activation, per_channel=bool(rng.integers(2))
    )
    return requantised(b, y, float(10 ** rng.uniform(-1.3, 1.0)))


def case(seed: int, pointwise: bool = False) -> Case:
    """One layer; with `pointwise` behind a 1x1 convolution of many channels."""
    rng = np.random.default_rng(seed)
    h, w, c = int(rng.integers(1, 18)), int(rng.integers(1, 22)), int(rng.integers(4, 14))

    def make(b: GraphBuilder) -> None:
        x = b.input((1, h, w, 3 if pointwise else c), zero_point=int(rng.integers(-128, 128)))
        depthwise(b, b.conv_2d(x, 14, (1, 1)) if pointwise else x, KINDS[seed % 6], rng)

    return Case(f"dw-{seed}", make)


def extreme(graph: Graph, seed: int) -> Graph:
    """Some biases at the ends of int32, where sums wrap."""
    rng = np.random.default_rng(seed)
    tensors = dict(graph.tensors)
    for name, t in tensors.items():
        if t.data is not None and t.type.dtype == "int32":
            ends = rng.choice(np.array([-(2**31), 2**31 - 1, -(2**30)]), t.data.shape).astype(np.int32)
            tensors[name] = replace(t, data=np.where(rng.random(t.data.shape) < 0.15, ends, t.data))
    return replace(graph, tensors=tensors)


def without_accumulators(graph: Graph) -> Graph:
    nodes = tuple(
        replace(n, op=n.op.without(2), outputs=n.outputs[:2]) if isinstance(n.op, Linear) and n.op.acc else n
        for n in graph.nodes
    )
    outputs = tuple(o for n in nodes for o in n.outputs)
    return replace(
        graph, nodes=nodes, outputs=outputs, tensors={k: v for k, v in graph.tensors.items() if k != "accumulators"}
    )


def by_chance(program: Program, seed: int) -> Program:
    """The program with room for any candidate of each layer, the choice by chance."""
    rng = np.random.default_rng(seed)
    room = {}
    for node in program.graph.nodes:
        if isinstance(node.op, Segment):
            room[node.name] = int(rng.choice([0, 2500, 1 << 16]))
        elif found := node.op.fast_kernels(program.types(node)):
            room[node.name] = int(rng.choice([k.workspace for k in found])) + 8
    return replace(program, target="dsp", scratch=room)


def whole(graphs: list[Graph], name: str, seed: int) -> Plan:
    graph = merged(graphs, name)
    plan = placed(by_chance(schedule(verify(graph), graph.outputs), seed))
    check(plan)
    return plan


def training(graphs: list[Graph], name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(c_harness, "equipped", lambda program, kind: by_chance(program, seed))
    return c_harness.training_plan(merged(graphs, name))


def templates(plan: Plan) -> set[str]:
    return {plan.program.kernel(n).template for n in plan.program.graph.nodes if not n.op.view}


@needs("gcc")
@pytest.mark.parametrize("how", ["forward", "wide"])
def test_forward(how: str, tmp_path: Path) -> None:
    """Alone, and with mask and split weights."""
    makes: dict[str, Callable[[Case], Graph]] = {"forward": Case.graph, "wide": lambda c: without_accumulators(wide(c))}
    plan = whole([extreme(makes[how](case(seed)), seed) for seed in range(48)], how, 1)
    assert templates(plan) == {"dsp/depthwise_conv2d"}
    Bench({how: plan}, tmp_path).check({how: forward_calls(plan.program.graph, 1)})


@needs("gcc")
def test_backward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """dX, buffered and not, and dW with its update in every mode, of all channels and of some."""
    graphs = []
    for seed in range(48):
        fraction, buffered = ((1.0, True), (0.4, False), (1.0, False))[seed // 6 % 3]
        graphs.append(backward(case(seed + 100), Numerics(0.02, *_MODES[seed % 5]), fraction, buffered))
    plan = training(graphs, "backward", 2, monkeypatch)
    assert templates(plan) >= {"dsp/depthwise_conv2d", "dsp/depthwise_input_grad", "dsp/depthwise_weight_update"}
    assert not templates(plan) & {"depthwise_conv2d", "depthwise_input_grad", "depthwise_weight_update"}
    Bench({"backward": plan}, tmp_path).check({"backward": training_calls(plan.program.graph, 2)})


@needs("gcc")
def test_gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """dW where only the channels that train were saved."""
    graphs = [
        verify(save_channels(backward(case(seed + 200, True), Numerics(0.02, *_MODES[seed % 5]), 0.5)))
        for seed in range(12)
    ]
    plan = training(graphs, "gathered", 3, monkeypatch)
    updates = [n for n in plan.program.graph.nodes if getattr(n.op, "gathered", False) and n.op.geometry.depthwise]
    assert updates and all(plan.program.kernel(n).template == "dsp/depthwise_weight_update" for n in updates)
    Bench({"gathered": plan}, tmp_path).check({"gathered": training_calls(plan.program.graph, 3)})


@needs("gcc")
def test_rows(tmp_path: Path) -> None:
    """Row by row, between rolling buffers, with masks and without."""
    plans = {}
    for seed in range(24):
        rng = np.random.default_rng(seed)
        b = GraphBuilder(seed)
        x = b.conv_2d(
            b.input((1, int(rng.integers(1, 16)), int(rng.integers(1, 14)), 2)), int(rng.integers(4, 10)), (1, 1)
        )
        y = depthwise(b, depthwise(b, x, KINDS[seed % 6], rng), KINDS[int(rng.integers(6))], rng)
        (tmp_path / "rows.tflite").write_bytes(b.build(b.conv_2d(y, 3, (1, 1))))
        update = "full" if seed % 3 == 0 else "none"
        options = Options(update=update, loss="mse" if seed % 3 == 0 else "auto", stream=False, target="dsp")
        search = _Search(compile_model(tmp_path / "rows.tflite", options).plan.program, False)
        program = by_chance(search.apply(min(all_spans(search.streamable, 1), key=len)), seed)
        plans[f"rows{seed}"] = placed(program)
        check(plans[f"rows{seed}"])
    used = {
        k.template
        for p in plans.values()
        for n in p.program.graph.nodes
        if isinstance(n.op, Segment)
        for k in p.program.stage_kernels(n)
    }
    assert "dsp/depthwise_conv2d" in used and "depthwise_conv2d" not in used
    Bench(plans, tmp_path).check(
        {name: calls(p, 4) if p.program.trains else calls(p, 4)[:1] for name, p in plans.items()}
    )
