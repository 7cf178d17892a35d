"""Random models all the way: file, training graph, plan, C; inference and three training steps, every tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from c_harness import Bench, Call, needs
from random_graphs import Sample, sample

from tte.compiler import Compiled
from tte.ops.base import Control
from tte.planner.check import check
from tte.training.autodiff import TRUTH

_STEPS = 3


def calls(compiled: Compiled, seed: int) -> list[Call]:
    """Inference, training steps from the initial state, inference again; the last inputs saturate."""
    random = np.random.default_rng(seed)
    program = compiled.plan.program
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
    return bench.check({f"r{seed}": calls(c, seed) for seed, (_, c) in some.items()})


@needs("gcc")
def test_random_graphs(tmp_path: Path) -> None:
    assert prove(range(46), tmp_path) > 50_000


@needs("gcc")
@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 1600, 50))
def test_many_random_graphs(start: int, tmp_path: Path) -> None:
    prove(range(start, start + 50), tmp_path)
