"""Calls in slices: whatever the budgets, the bytes of the whole call; on random graphs, with every kind of kernel. And no
slice takes more instructions than its budget."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from c_harness import KINDS, equipped, needs, placed
from life_bench import LifeBench
from nets import DIGITS
from random_graphs import image_sample
from studies.slices import measure
from test_kernels import GROUPS, bench
from test_latent import life_plans, note_calls

from tte.compiler import Options, compile_model
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


#: Groups and kinds of kernels; of so many graphs one; kinds of functions that are cut, at least.
_CUT = (("backward", "portable", 15, 18), ("backward", "dsp roomy", 15, 24), ("wide", "dsp", 15, 6), ("errors", "portable", 3, 3))


@needs("gcc")
@pytest.mark.parametrize(("group", "kernels", "every", "least"), _CUT)
def test_every_kernel(group: str, kernels: str, every: int, least: int, tmp_path: Path) -> None:
    """Some of the cases of tests/test_kernels.py, as a microcontroller does them; what each step writes is watched."""
    made, calls = bench(group, tmp_path, kernels, slices=True, every=every)
    made.defines = ("-DTTE_WIDE=0",)
    made.check(calls)
    texts = [p.read_text() for p in (tmp_path / "src").glob("*_kernels.h")]
    cut = {name for text in texts for name in re.findall(r"static void (\w+)_\d+\([^)]*tte_piece \*piece\) {", text)}
    assert len(cut) >= least, cut


def _digits(folder: Path) -> Plan:
    return compile_model(DIGITS, Options(update="full", target="dsp")).plan


def _depthwise(folder: Path) -> Plan:
    """A random graph that trains depthwise layers."""
    made = image_sample(570).compile(folder)
    assert made is not None
    plan = placed(equipped(made.plan.program, "dsp roomy"))
    used = {plan.program.kernel(n).template for n in plan.program.graph.nodes}
    assert {"dsp/depthwise_conv2d", "dsp/depthwise_input_grad", "dsp/depthwise_weight_update"} <= used
    return plan


@needs("arm-none-eabi-gcc", "qemu-system-arm")
@pytest.mark.parametrize("make", [_digits, _depthwise])
def test_slices_keep_to_their_budgets(make: Callable[[Path], Plan], tmp_path: Path) -> None:
    """Counted in QEMU, with no tolerance, as prices have a margin; and the longest piece is not priced out of all proportion."""
    lines = measure(make(tmp_path), tmp_path, resumable=True)
    slices = [(int(budget), int(longest)) for budget, _, longest, *_ in (words for kind, *words in lines if kind == "budget")]
    pieces = [(int(price), int(count)) for _, count, price in (words for kind, *words in lines if kind == "piece")]
    priced, counted = max(price for price, _ in pieces), max(count for _, count in pieces)
    assert slices[0][0] == priced and len(pieces) > 50
    assert counted <= priced < 2.5 * counted, f"the longest piece takes {counted}, predicted {priced}"
    for budget, longest in slices:
        assert longest <= max(budget, priced), f"a slice of {budget} took {longest}; longest piece: {counted}, price {priced}"


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
