"""The order of steps, held against every order there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from random_graphs import sample
from tflite_cases import SHARED

from tte.compiler import Options, compile_model
from tte.ir import Builder, Role, TensorType, verify
from tte.ops.base import Kernel, Types
from tte.planner import order as ordering
from tte.planner.arena import plan
from tte.planner.check import check
from tte.planner.order import Ordered, order
from tte.planner.schedule import Program, buffers, live_bytes


@dataclass(frozen=True)
class Step:
    """An operator that is nothing but its memory."""

    results: tuple[TensorType, ...]
    workspace: int = 0
    inplace: tuple[tuple[int, int], ...] = ()
    view: bool = False
    title: str = "STEP"

    def infer(self, ins: tuple[TensorType, ...]) -> tuple[tuple[tuple[int, ...], str], ...]:
        return tuple((t.shape, t.dtype) for t in self.results)

    def kernel(self, t: Types) -> Kernel:
        return Kernel("", {}, workspace=self.workspace)


class Maker:
    """Builds programs step by step."""

    def __init__(self) -> None:
        self.builder = Builder("p")

    def tensor(self, nbytes: int, role: Role = Role.VALUE) -> str:
        type = TensorType((nbytes,), "int8")
        return self.builder.add("t", type, role, np.zeros(nbytes, np.int8) if role is Role.PARAM else None)

    def step(self, inputs: list[str], *sizes: int, changes: tuple[str, ...] = (), **how: object) -> list[str]:
        made = [self.tensor(n) for n in sizes]
        outputs = [*changes, *made]
        types = tuple(self.builder.tensors[o].type for o in outputs)
        name = f"s{len(self.builder.nodes)}"
        self.builder.emit(name, Step(types, **how), [*inputs, *changes], outputs)  # type: ignore[arg-type]
        return made

    def program(self, inputs: list[str], ends: tuple[int, int], outputs: list[str], kept: list[str]) -> Program:
        graph = verify(self.builder.graph(inputs, list(dict.fromkeys([*outputs, *kept]))))
        return Program(graph, *ends, tuple(outputs), tuple(kept))


def random_program(seed: int, largest: int = 7) -> Program:
    """Branches, views, in-place results (some of them shrinking), workspaces, parameters read and changed, dead results."""
    rng = np.random.default_rng(seed)
    shrink = seed % 4 == 0
    m = Maker()

    def size() -> int:
        return int(rng.choice([1, 8, 20, 64, 100, 200]))

    inputs = [m.tensor(size(), Role.INPUT) for _ in range(int(rng.integers(1, 3)))]
    params = [m.tensor(size(), Role.PARAM) for _ in range(int(rng.integers(0, 4)))]
    counts = [int(rng.integers(1, largest)), int(rng.integers(0, 4)), int(rng.integers(0, largest + 1))]
    here, ends = list(inputs), []
    shared: list[str] = []
    unread: list[list[str]] = []
    for part, count in enumerate(counts):
        if part == 2:
            here = list(shared)  # training does not see what inference alone makes
        start = len(m.builder.nodes)
        for _ in range(count):
            chosen = [str(rng.choice(here)) for _ in range(int(rng.integers(1, 4)))]
            work = int(rng.choice([0, 0, 16, 90]))
            kind = rng.random()
            if part == 2 and params and kind < 0.4:
                changed = params.pop(int(rng.integers(len(params))))
                m.step(chosen, changes=(changed,), workspace=work)
                continue
            reads = [str(rng.choice(params))] if params and rng.random() < 0.5 else []
            first = m.builder.tensors[chosen[0]].type.nbytes
            if kind < 0.5:
                here += m.step(chosen[:1], first, view=True)
            elif kind < 0.75:
                nbytes = min(first, size()) if shrink else first
                pairs = ((0, 0), (0, 1)) if len(chosen) > 1 and rng.random() < 0.5 else ((0, 0),)
                if not shrink:  # an equal size is one that takes as many bytes of the arena
                    pairs = tuple(p for p in pairs if m.builder.tensors[chosen[p[1]]].type.nbytes == nbytes)
                here += m.step([*chosen, *reads], nbytes, inplace=pairs, workspace=work)
            else:
                here += m.step([*chosen, *reads], *(size() for _ in range(int(rng.integers(1, 3)))), workspace=work)
        if part == 0:
            shared = list(here)
        ends.append(len(m.builder.nodes))
        read = {i for n in m.builder.nodes[0 if part < 2 else start :] for i in n.inputs}
        unread.append([o for n in m.builder.nodes for o in n.outputs if o in here and o not in read and not n.op.view])
    trains = len(m.builder.nodes) > ends[1]
    outputs = [n for n in unread[1] or unread[0] or inputs if rng.random() < 0.5]
    kept = [n for n in unread[2] if trains and rng.random() < 0.3]
    return m.program(inputs, (ends[0], ends[1]), outputs, kept)


def peak(program: Program) -> int:
    return max(live_bytes(buffers(program), len(program.graph.nodes)), default=0)


def earlier(program: Program) -> list[set[int]]:
    """For each step the steps that must come before it."""
    graph, found = program.graph, []
    for i, node in enumerate(graph.nodes):
        before = set()
        for j, other in enumerate(graph.nodes[:i]):
            feeds = any(o in node.inputs for o in other.outputs)
            spoils = set(graph.mutated(node)) & {*other.inputs, *other.outputs}
            if feeds or spoils or _part(program, j) < _part(program, i):
                before.add(j)
        found.append(before)
    return found


def _part(program: Program, step: int) -> int:
    return (step >= program.shared) + (step >= program.forward)


def all_orders(program: Program) -> Iterator[list[int]]:
    """Every order that keeps the parts apart."""
    before = earlier(program)

    def extend(done: list[int]) -> Iterator[list[int]]:
        if len(done) == len(before):
            yield list(done)
        for step in range(len(before)):
            if step not in done and before[step].issubset(done):
                yield from extend([*done, step])

    return extend([])


def reordered(program: Program, steps: list[int]) -> Program:
    return replace(program, graph=program.graph.with_nodes([program.graph.nodes[i] for i in steps]))


def smallest(program: Program, most: int) -> int | None:
    """The smallest peak of all orders; None where there are too many."""
    best = None
    for count, steps in enumerate(all_orders(program)):
        if count == most:
            return None
        here = peak(reordered(program, steps))
        best = here if best is None else min(best, here)
    return best


def places(given: Program, found: Program) -> list[int]:
    """For each step of the found program its index in the given one; parts and dependencies are held."""
    index = {n.name: i for i, n in enumerate(given.graph.nodes)}
    steps = [index[n.name] for n in found.graph.nodes]
    before = earlier(given)
    assert sorted(steps) == list(range(len(index)))
    assert all(before[step].issubset(steps[:at]) for at, step in enumerate(steps))
    verify(found.graph)
    return steps


def proved(given: Program, found: Ordered) -> None:
    """What holds of every result."""
    steps = places(given, found.program)
    assert found.peak == peak(found.program) <= peak(given)
    assert found.bound <= found.peak
    assert found.peak < peak(given) or steps == list(range(len(steps)))
    assert places(given, order(given).program) == steps
    placed = plan(found.program)
    assert placed.lower_bound == found.peak
    check(placed)


def shrinks(program: Program) -> bool:
    """Whether an in-place result may take fewer bytes of the arena than what it overwrites."""
    sizes = {t.name: -(-t.type.nbytes // 8) for t in program.graph.tensors.values()}
    return any(sizes[n.outputs[o]] < sizes[n.inputs[i]] for n in program.graph.nodes for o, i in n.op.inplace)


def test_every_order_of_small_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search finds the smallest peak of all orders and says so; cut short, it claims nothing false."""
    tries = ordering.TRIES
    tried = gained = cut = 0
    for seed in range(480):
        program = random_program(seed)
        best = smallest(program, 250)
        if best is None:
            continue
        tried += 1
        monkeypatch.setattr(ordering, "TRIES", tries)
        found = order(program)
        proved(program, found)
        assert found.peak == best, seed
        assert found.exact or shrinks(program), seed
        assert found.bound <= best, seed
        updates_are_early(program, found.program)
        gained += best < peak(program)
        monkeypatch.setattr(ordering, "TRIES", seed % 2 * 20)
        hasty = order(program)
        proved(program, hasty)
        assert hasty.bound <= best <= hasty.peak, seed
        cut += not hasty.exact
    assert tried > 300 and gained > 50 and cut > 10, (tried, gained, cut)


def updates_are_early(given: Program, found: Program) -> None:
    """In a part that was put into another order, before an update stands what it waits for, or another update."""
    steps, before = places(given, found), earlier(given)
    graph = given.graph
    if shrinks(given):
        return
    for at, step in enumerate(steps[1:], 1):
        last = steps[at - 1]
        moved = any(s != i for i, s in enumerate(steps) if _part(given, i) == _part(given, step))
        plain = graph.mutated(graph.nodes[step]) and not graph.nodes[step].op.workspace
        if moved and plain and not graph.mutated(graph.nodes[last]):
            assert last in before[step]


def test_two_branches() -> None:
    """Two large tensors, each reduced to a small one: 1,000 bytes less if one is gone before the other comes."""
    m = Maker()
    x = m.tensor(8, Role.INPUT)
    (a,), (b,) = m.step([x], 1000), m.step([x], 1000)
    (small_a,), (small_b,) = m.step([a], 8), m.step([b], 8)
    (y,) = m.step([small_a, small_b], 8)
    program = m.program([x], (5, 5), [y], [])
    found = order(program)
    assert peak(program) == 2008 and (found.peak, found.exact) == (1016, True)
    assert places(program, found.program) == [0, 2, 1, 3, 4]


def test_workspace_of_an_update() -> None:
    """An update frees memory, but not where its workspace would raise the peak: it waits for the reduction."""
    m = Maker()
    x, w = m.tensor(8, Role.INPUT), m.tensor(8, Role.PARAM)
    (e,) = m.step([x], 96)
    big, scale = m.step([x, e], 400, 8)
    m.step([e, scale], changes=(w,), workspace=200)
    (y,) = m.step([big], 8)
    (z,) = m.step([y], 400)
    m.step([z, y], changes=(m.tensor(8, Role.PARAM),))
    program = m.program([x], (0, 0), [], [y])
    found = order(program)
    assert peak(program) == 96 + 400 + 8 + 200 and (found.peak, found.exact) == (96 + 400 + 8 + 8, True)
    assert places(program, found.program) == [0, 1, 3, 2, 4, 5]


@pytest.mark.parametrize("seed", range(20))
def test_shuffled_training_graphs(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any order of a real graph's steps the search comes down to the same peak; a hasty one never goes up."""
    built = sample(seed).compile(tmp_path, stream=bool(seed % 2))
    if built is None:
        pytest.skip("the scheme cannot train")
    program = built.plan.program
    known = order(program)
    assert known.peak == built.plan.lower_bound  # it had been ordered
    before, rng = earlier(program), np.random.default_rng(seed)
    steps: list[int] = []
    while len(steps) < len(before):
        ready = [i for i in range(len(before)) if i not in steps and before[i].issubset(steps)]
        steps.append(int(rng.choice(ready)))
    mixed = reordered(program, steps)
    found = order(mixed)
    proved(mixed, found)
    assert known.exact and found.exact and found.peak == known.peak
    monkeypatch.setattr(ordering, "TRIES", 3)
    hasty = order(mixed)
    proved(mixed, hasty)
    assert hasty.bound <= known.peak <= hasty.peak


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared models")
@pytest.mark.parametrize("model", [pytest.param("mcunet-5fps", marks=pytest.mark.slow), "pretrainedResnet_quant"])
def test_shared_models(model: str) -> None:
    """Real graphs are ordered without a search worth the name, and the order is proved to be the best."""
    program = compile_model(SHARED / f"{model}.tflite", Options(update="full")).plan.program
    found = order(program)
    assert found.exact and found.peak == peak(program)
