"""Random models all the way: file, training graph, plan, C; inference and three training steps, every tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from c_harness import Bench, Call, needs, placed
from random_graphs import Sample, cut_at_random, image_sample, sample

from tte.compiler import Compiled
from tte.ops.base import Control
from tte.ops.segment import Segment
from tte.planner.arena import Plan
from tte.planner.check import check
from tte.reference import Executor
from tte.training.autodiff import TRUTH

_STEPS = 3


def calls(plan: Plan, seed: int) -> list[Call]:
    """Inference, training steps from the initial state, inference again; the last inputs saturate."""
    random = np.random.default_rng(seed)
    program = plan.program
    graph = program.graph

    def inputs(step: int) -> dict[str, np.ndarray]:
        values = {}
        for name in graph.inputs:
            t = graph.type(name)
            if t.dtype == "int32":
                values[name] = np.array(random.integers(graph.type(program.kept[0]).elements), np.int32)
            elif step == _STEPS - 1 and name != TRUTH:
                values[name] = random.choice(np.array([-128, 127], np.int8), t.shape)
            else:
                values[name] = random.integers(-128, 128, t.shape, np.int8)
        return values

    seeded = int(random.integers(1 << 32))
    steps = [Call(inputs(i), True, Control(32768 - 9000 * i, seeded, i), None) for i in range(_STEPS)]
    return [Call(inputs(0), params={}), *steps, Call(inputs(0))]


def compiled_samples(seeds: range, folder: Path) -> dict[int, tuple[Sample, Compiled]]:
    """The samples that can train."""
    found = {}
    for seed in seeds:
        made = sample(seed)
        result = made.compile(folder)
        if result is not None:
            found[seed] = (made, result)
    return found


def prove(seeds: range, folder: Path) -> int:
    """Compares all that the samples compute; gives the number of values."""
    some = compiled_samples(seeds, folder)
    assert len(some) > len(seeds) // 2, "the generator makes too many models that cannot train"
    for _, result in some.values():
        check(result.plan)
    bench = Bench({f"r{seed}": c.plan for seed, (_, c) in some.items()}, folder)
    return bench.check({f"r{seed}": calls(c.plan, seed) for seed, (_, c) in some.items()})


@needs("gcc")
def test_random_graphs(tmp_path: Path) -> None:
    assert prove(range(46), tmp_path) > 50_000


@needs("gcc")
@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 1600, 50))
def test_many_random_graphs(start: int, tmp_path: Path) -> None:
    prove(range(start, start + 50), tmp_path)


def row_plans(made: Sample, folder: Path, several: bool) -> dict[str, Plan]:
    """A sample's plans: `a` as the planner streams it, `f` cut at random; `ar`, `fr` with row input, where it can be.

    Args:
        several: all of them, else one, by the sample's number.
    """
    base = made.compile(folder, stream=False)
    if base is None:
        return {}
    rng = np.random.default_rng(made.seed)
    kinds = ["a", "f", "ar", "fr"] if several else [["f", "fr", "fr", "ar"][made.seed % 4]]
    plans = {}
    for kind in kinds:
        rows = kind.endswith("r")
        if kind.startswith("f"):
            cut = cut_at_random(base.plan.program, rng, rows) or cut_at_random(base.plan.program, rng)
            assert cut is not None
            plans[kind] = placed(cut)
        else:
            result = made.compile(folder, rows=rows) or made.compile(folder)
            assert result is not None
            plans[kind] = result.plan
    for plan in plans.values():
        check(plan)
        _same_values(base.plan, plan, made.seed)
    return plans


def _same_values(base: Plan, plan: Plan, seed: int) -> None:
    """The reference gives, of every tensor that both programs have, the same layer by layer and in segments."""
    x = calls(base, seed)[1].inputs
    want, have = Executor(base.program.graph).train(x), Executor(plan.program.graph).train(x)
    assert set(have) <= set(want) and {*plan.program.outputs, *plan.program.kept} <= set(have)
    for name, value in have.items():
        np.testing.assert_array_equal(value, want[name], name)


def prove_rows(seeds: range, folder: Path, several: bool) -> tuple[int, int, int]:
    """Compares all that the samples compute; gives the plans, those with segments, those with row input."""
    plans: dict[str, Plan] = {}
    for seed in seeds:
        plans |= {f"r{seed}{kind}": plan for kind, plan in row_plans(image_sample(seed), folder, several).items()}
    bench = Bench(plans, folder)
    bench.check({name: calls(plan, len(name)) for name, plan in plans.items()})
    streamed = [p for p in plans.values() if any(isinstance(n.op, Segment) for n in p.program.graph.nodes)]
    return len(plans), len(streamed), sum(bool(p.program.supplied) for p in streamed)


@needs("gcc")
def test_random_graphs_row_by_row(tmp_path: Path) -> None:
    """Whatever is streamed, with the input whole or by rows, C gives the bytes of layer by layer."""
    plans, streamed, by_rows = prove_rows(range(56), tmp_path, several=False)
    print(f"{plans} plans, {streamed} with segments, {by_rows} with row input")
    assert plans >= 40 and streamed > 0.7 * plans and by_rows > 0.25 * plans


@needs("gcc")
@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 1300, 25))
def test_many_random_graphs_row_by_row(start: int, tmp_path: Path) -> None:
    """Each graph in four ways."""
    prove_rows(range(start, start + 25), tmp_path, several=True)
