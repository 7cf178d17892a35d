"""The frozen cut: a step from a latent is a step on the whole sample, on random graphs; and where the cut lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from c_harness import needs
from life_bench import LifeBench, values_for
from nets import DIGITS
from random_graphs import image_sample, sample
from test_random_graphs import row_plans

from tte.compiler import Options, compile_model
from tte.ir import Role
from tte.latent import Cut, cuts, frozen_cut
from tte.ops.base import Control
from tte.ops.redraw import Redraw
from tte.planner.arena import Plan
from tte.training.autodiff import TRUTH

_KINDS = ["train", "train", "infer", "train_latent", "train", "infer_latent", "train_latent", "train", "train_latent"]


def life_plans(seeds: range, folder: Path) -> dict[str, Plan]:
    """Random programs that train: layer by layer, in segments, and with their input by rows."""
    plans: dict[str, Plan] = {}
    for seed in seeds:
        if (made := sample(seed).compile(folder)) is not None:
            plans[f"s{seed}"] = made.plan
        plans |= {f"r{seed}{kind}": plan for kind, plan in row_plans(image_sample(seed), folder, several=False).items()}
    return plans


def note_calls(bench: LifeBench, slices: bool = False) -> None:
    """Of every program: fresh samples whose latents are kept; then older ones again, between others, in slices or whole."""
    for name, plan in bench.plans.items():
        random = np.random.default_rng(len(name) + plan.arena_bytes)

        def lucky(random: np.random.Generator = random) -> int:
            return int(random.integers(1, 1 << 31)) if slices and random.random() < 0.8 else 0

        for step in range(9):
            kind = _KINDS[step]
            slot = {0: 0, 1: 1, 2: 2, 4: None, 7: 0}.get(step, int(random.integers(3)))
            if not bench.latent:
                kind, slot = kind.removesuffix("_latent"), None
            control = Control(int(random.integers(32769)), int(random.integers(1 << 32)), int(random.integers(1 << 32)))
            bench.call(name, kind, values_for(plan, random), control, slot, lucky())


def crowded_cut(plan: Plan) -> Cut:
    """Not the chosen cut: of those that most tensors cross, the deepest."""
    return max(cuts(plan), key=lambda c: (len(c.parts), c.step))


def prove(seeds: range, folder: Path, cut: Callable[[Plan], Cut]) -> list[Cut]:
    bench = LifeBench(life_plans(seeds, folder), folder, cut=cut)
    note_calls(bench)
    bench.check()
    return [cut(p) for p in bench.plans.values()]


@needs("gcc")
@pytest.mark.parametrize("cut", [frozen_cut, crowded_cut])
def test_a_latent_stands_for_its_sample(cut: Callable[[Plan], Cut], tmp_path: Path) -> None:
    found = prove(range(500, 505), tmp_path, cut)
    assert len(found) >= 7
    assert sum(c.step > 0 for c in found) > 2
    if cut is frozen_cut:
        assert sum(c.step == 0 for c in found) > 1
    else:
        assert sum(len(c.parts) > 1 for c in found) > 1


@needs("gcc")
@pytest.mark.slow
@pytest.mark.parametrize("cut", [frozen_cut, crowded_cut])
@pytest.mark.parametrize("start", range(2000, 2100, 25))
def test_many_latents(start: int, cut: Callable[[Plan], Cut], tmp_path: Path) -> None:
    prove(range(start, start + 25), tmp_path, cut)


def test_where_the_cut_lies(tmp_path: Path) -> None:
    """Nothing before it reads what trains (nor a choice of channels that is drawn anew); the next place would."""
    for made in (sample(seed).compile(tmp_path) for seed in range(520, 540)):
        if made is None:
            continue
        program = made.plan.program
        tensors = program.graph.tensors
        reads = [any(tensors[n].role is Role.PARAM for n in node.inputs) for node in program.graph.nodes]
        some = list(cuts(made.plan))
        deepest, chosen = some[-1], frozen_cut(made.plan)
        assert not any(reads[: deepest.step]) and (deepest.step == program.shared or any(reads[: deepest.step + 3]))
        assert chosen in some and chosen.work <= deepest.work * 9 // 8 and chosen.nbytes <= deepest.nbytes
        assert chosen.nbytes == sum(tensors[p.name].type.nbytes for p in chosen.parts)
        assert not any(p.name == TRUTH for p in chosen.parts)
        assert not any(isinstance(n.op, Redraw) for n in program.graph.nodes[: chosen.step])


@pytest.mark.parametrize(("update", "step", "nbytes"), [("full", 0, 64), ("last", 13, 64)])
def test_digits(update: str, step: int, nbytes: int) -> None:
    """Trained whole, the latent is the image; trained at its end, what is pooled."""
    cut = frozen_cut(compile_model(DIGITS, Options(update=update)).plan)
    assert cut.nbytes == nbytes and (cut.step == 0) == (step == 0)
    assert cut.work == cut.whole if not step else cut.work * 20 < cut.whole
