"""Calls in slices: whatever the budgets, the bytes of the whole call; on random graphs, with every kind of kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
from c_harness import KINDS, equipped, needs, placed
from life_bench import LifeBench
from test_kernels import GROUPS, bench
from test_latent import life_plans, note_calls

from tte.ops.segment import Segment
from tte.planner.arena import Plan


def slice_plans(seeds: range, folder: Path) -> dict[str, Plan]:
    """Random programs, each with one kind of kernels."""
    found = {}
    for i, (name, plan) in enumerate(life_plans(seeds, folder).items()):
        kind = KINDS[i % len(KINDS)]
        found[f"{name}_{kind.replace(' ', '_')}"] = plan if kind == "portable" else placed(equipped(plan.program, kind))
    return found


def prove(seeds: range, folder: Path, latent: bool) -> dict[str, Plan]:
    bench = LifeBench(slice_plans(seeds, folder), folder, latent=latent, resumable=True)
    note_calls(bench, slices=True)
    bench.check()
    return dict(bench.plans)


@needs("gcc")
@pytest.mark.parametrize("latent", [False, True])
def test_slices_are_the_whole(latent: bool, tmp_path: Path) -> None:
    plans = prove(range(540, 546) if latent else range(560, 564), tmp_path, latent)
    programs = [p.program for p in plans.values()]
    assert len(programs) > 5
    assert any(isinstance(n.op, Segment) for p in programs for n in p.graph.nodes)
    assert any(p.supplied for p in programs)


SOME = [("backward", "portable"), ("backward", "dsp roomy"), ("wide", "dsp"), ("errors", "portable")]


@needs("gcc")
@pytest.mark.parametrize(("group", "kernels"), SOME)
def test_every_kernel(group: str, kernels: str, tmp_path: Path) -> None:
    """Some of the cases of tests/test_kernels.py, as a microcontroller does them; what each step writes is watched."""
    made, calls = bench(group, tmp_path, kernels, slices=True, every=15)
    made.defines = ("-DTTE_WIDE=0",)
    made.check(calls)


@needs("gcc")
@pytest.mark.slow
@pytest.mark.parametrize("kernels", KINDS)
@pytest.mark.parametrize("group", GROUPS)
def test_every_case(group: str, kernels: str, tmp_path: Path) -> None:
    made, calls = bench(group, tmp_path, kernels, slices=True)
    made.defines = ("-DTTE_WIDE=0",)
    assert made.check(calls) > 40_000


@needs("gcc")
@pytest.mark.slow
@pytest.mark.parametrize("start", range(3000, 3300, 25))
def test_many_slices(start: int, tmp_path: Path) -> None:
    prove(range(start, start + 25), tmp_path, start % 2 == 0)
