"""The frozen cut: a step from a latent is a step on the whole sample, on random graphs; and where the cut lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from c_harness import needs
from life_bench import Left, LifeBench, values_for
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


def some_left(bench: LifeBench, name: str, kind: str, random: np.random.Generator, older: bool) -> Left:
    """Any call, left anywhere, before one of `kind`; `older`: there are latents."""
    program = bench.plans[name].program
    own = str(random.choice(["infer", "train", "train"])) + ("_latent" if older and random.random() < 0.5 else "")
    steps = program.train_steps[program.shared :] if own.startswith("train") and random.random() < 0.4 else range(program.shared)
    by_label, needs_no_input = program.graph.type(TRUTH).dtype == "int32", kind.endswith("latent") or program.supplied
    how = str(random.choice(["abandoned", "replaced", *(["begun"] * 4 if by_label and needs_no_input else [])]))
    values, slot = values_for(bench.plans[name], random), int(random.integers(3)) if older else None
    return Left(own, values, int(random.choice(steps)) - 1, how, slot)


def note_calls(bench: LifeBench, slices: bool = False) -> None:
    """Of every program: fresh samples whose latents are kept; then older ones again, between others, in slices or whole.

    Args:
        slices: most calls; before half of them, another call is left in its midst.
    """
    for name, plan in bench.plans.items():
        random = np.random.default_rng(len(name) + plan.arena_bytes + len(bench.noted))

        def lucky(random: np.random.Generator = random) -> int:
            return int(random.integers(1, 1 << 31)) if slices and random.random() < 0.8 else 0

        for step in range(9):
            kind = _KINDS[step]
            slot = {0: 0, 1: 1, 2: 2, 4: None, 7: 0}.get(step, int(random.integers(3)))
            if not bench.latent:
                kind, slot = kind.removesuffix("_latent"), None
            control = Control(int(random.integers(32769)), int(random.integers(1 << 32)), int(random.integers(1 << 32)))
            values, luck, left = values_for(plan, random), lucky(), None
            if slices and random.random() < 0.5:
                left = some_left(bench, name, kind, random, older=bench.latent and step > 2)
                luck = luck or int(left.how == "begun")
            bench.call(name, kind, values, control, slot, luck, left)


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
    """Nothing before it reads what trains (nor a choice of channels that is drawn anew); the step behind the deepest does."""
    depths = set()
    for made in (sample(seed).compile(tmp_path) for seed in range(520, 540)):
        if made is None:
            continue
        program = made.plan.program
        nodes, tensors = program.graph.nodes, program.graph.tensors
        changes = [isinstance(n.op, Redraw) or any(tensors[i].role is Role.PARAM for i in n.inputs) for n in nodes]
        some = list(cuts(made.plan))
        deepest, chosen = some[-1], frozen_cut(made.plan)
        first = changes.index(True)
        assert deepest.step <= first < program.shared and all(n.op.view for n in nodes[deepest.step : first])
        assert chosen.nbytes == min(c.nbytes for c in some if c.work <= deepest.work * 9 // 8) and chosen in some
        assert chosen.work <= deepest.work * 9 // 8
        assert chosen.nbytes == sum(tensors[p.name].type.nbytes for p in chosen.parts)
        assert not any(p.name == TRUTH for p in chosen.parts)
        depths.add(deepest.step)
    assert len(depths) > 2


@pytest.mark.parametrize(("update", "step", "part"), [("full", 0, "serving_default_image:0"), ("last", 14, "Mean")])
def test_digits(update: str, step: int, part: str) -> None:
    """Trained whole, the latent is the image; trained at its end, what is pooled: before layer 14, where nothing is streamed."""
    for stream in (True, False):
        plan = compile_model(DIGITS, Options(update=update, stream=stream)).plan
        cut = frozen_cut(plan)
        assert [p.name.rsplit("/", 1)[-1] for p in cut.parts] == [part] and cut.nbytes == 64
        assert cut.step == (plan.program.shared - 1 if step and stream else step)
        assert cut.work == cut.whole if not step else cut.work * 20 < cut.whole
