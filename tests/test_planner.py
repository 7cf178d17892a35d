"""The planner and its independent check, held against oracles of their own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from random_graphs import image_sample, sample
from tflite_cases import SHARED, SHARED_MODELS

from tte.compiler import Options, compile_model
from tte.errors import ModelError
from tte.ir import Role, verify
from tte.ops.linear_grad import InputGrad, WeightUpdate
from tte.planner import arena
from tte.planner.arena import Plan, plan
from tte.planner.check import PlanError, check
from tte.planner.schedule import ALIGN, Buffer, live_bytes

_SCHEMES = SHARED.parent / "schemes"


@pytest.mark.parametrize("seed", range(40))
def test_placement(seed: int) -> None:
    """Random live ranges: no two buffers meet in time and in bytes; no arena below the bound; the same every time."""
    random = np.random.default_rng(seed)
    steps = int(random.integers(1, 40))
    found = []
    for i in range(int(random.integers(0, 60))):
        first, last = sorted(random.integers(0, steps, 2).tolist())
        found.append(Buffer(str(i), (str(i),), int(2 ** random.uniform(0, 14)), first, last))
    live = [sum(b.size for b in found if b.first <= step <= b.last) for step in range(steps)]
    assert live_bytes(found, steps) == live
    places, size = arena.place(tuple(found), max(live))
    used = np.zeros((steps, size // ALIGN), np.int8)
    for b, at in zip(found, places, strict=True):
        assert at >= 0 and at % ALIGN == 0
        used[b.first : b.last + 1, at // ALIGN : -(-(at + b.nbytes) // ALIGN)] += 1
        assert at + b.nbytes <= size
    assert used.size == 0 or used.max() <= 1
    assert size >= max(live)
    assert arena.place.__wrapped__(tuple(found), max(live)) == (places, size)  # not from the cache


class Corrupted(Exception):
    """A step read bytes that were not what had been written."""


def corrupted(p: Plan) -> str:
    """What goes wrong when a plan's calls run on real bytes: every tensor has contents of its own; "" if nothing does."""
    for steps, results in (
        (tuple(p.program.infer_steps), p.program.outputs),
        (p.program.train_steps if p.program.trains else (), p.program.kept),
    ):
        try:
            _run(p, steps, results)
        except Corrupted as error:
            return str(error)
    return ""


def _run(p: Plan, steps: tuple[int, ...], results: tuple[str, ...]) -> None:
    graph = p.program.graph
    random = np.random.default_rng(0)
    memory = random.integers(0, 256, p.arena_bytes, np.uint8)
    contents = {t.name: random.integers(0, 256, t.type.nbytes, np.uint8) for t in graph.tensors.values()}

    def place(name: str) -> slice:
        at = p.offsets[name]
        if at < 0 or at + graph.type(name).nbytes > memory.size:
            raise Corrupted(f"{name} lies outside")
        return slice(at, at + graph.type(name).nbytes)

    def in_arena(names: tuple[str, ...]) -> list[str]:
        mine = [n for n in names if graph.tensors[n].role in (Role.VALUE, Role.INPUT)]
        return [n for n in mine if n != p.program.supplied]

    def read(name: str, reader: str) -> None:
        if (memory[place(name)] != contents[name]).any():
            raise Corrupted(f"{reader} reads {name}")

    for name in in_arena(graph.inputs):
        memory[place(name)] = contents[name]
    for step in steps:
        node = graph.nodes[step]
        outputs = in_arena(node.outputs)
        if node.op.view:
            read(node.inputs[0], node.name)
            contents[outputs[0]] = contents[node.inputs[0]]
            read(outputs[0], node.name)
            continue
        # What a kernel writes before it has read all its inputs destroys them, unless it may work in place.
        scratch = slice(0, 0)
        if step in p.workspaces:
            at = p.workspaces[step]
            scratch = slice(at, at + p.program.kernel(node).workspace)
            if at < 0 or scratch.stop > memory.size:
                raise Corrupted("the workspace lies outside")
        before = memory.copy()
        for name in outputs:
            memory[place(name)] = random.integers(0, 256, graph.type(name).nbytes, np.uint8)
            for out, source in node.op.inplace:
                same = node.outputs[out] == name and p.offsets.get(node.inputs[source]) == p.offsets[name]
                if same and node.inputs[source] in in_arena(node.inputs):
                    shared = place(node.inputs[source])
                    memory[shared] = before[shared]
        memory[scratch] = random.integers(0, 256, scratch.stop - scratch.start, np.uint8)
        for name in in_arena(node.inputs):
            read(name, node.name)
        for name in outputs:
            memory[place(name)] = contents[name]
        memory[scratch] = random.integers(0, 256, scratch.stop - scratch.start, np.uint8)
    for name in results:
        read(name, "the caller")


def caught(p: Plan) -> str:
    """What the check says of a plan; "" if it passes."""
    try:
        check(p)
    except PlanError as error:
        return str(error)
    return ""


def mutations(p: Plan, random: np.random.Generator, count: int) -> Iterator[Plan]:
    """Plans with one thing changed."""
    names = list(p.offsets)
    graph = p.program.graph
    bounds = sorted({0, p.program.shared, p.program.forward, len(graph.nodes)})
    parts = [(a, b) for a, b in itertools.pairwise(bounds) if b - a > 1]
    for _ in range(count):
        kind = random.integers(6)
        name, other = random.choice(names, 2)
        delta = int(random.choice([-64, -8, -4, 4, 8, 16, 64, 256]))
        if kind <= 1:
            yield replace(p, offsets={**p.offsets, name: p.offsets[name] + delta})
        elif kind == 2:
            yield replace(p, offsets={**p.offsets, name: p.offsets[other], other: p.offsets[name]})
        elif kind == 3:
            yield replace(p, arena_bytes=max(0, p.arena_bytes - abs(delta)))
        elif kind == 4 and p.workspaces:
            step = int(random.choice(list(p.workspaces)))
            yield replace(p, workspaces={**p.workspaces, step: p.workspaces[step] + delta})
        elif parts:
            start, end = parts[random.integers(len(parts))]
            a = int(random.integers(start, end - 1))
            b = int(random.integers(a + 1, min(end, a + 4)))
            nodes = list(graph.nodes)
            nodes[a], nodes[b] = nodes[b], nodes[a]
            swap = {a: b, b: a}
            spaces = {swap.get(step, step): at for step, at in p.workspaces.items()}
            yield replace(p, program=replace(p.program, graph=replace(graph, nodes=tuple(nodes))), workspaces=spaces)


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> list[Plan]:
    """Training plans of random models, some with the input by rows."""
    folder = tmp_path_factory.mktemp("models")
    made = [sample(seed).compile(folder) for seed in range(200, 224)]
    made += [image_sample(seed).compile(folder, rows=True) for seed in range(200, 216)]
    plans = [c.plan for c in made if c is not None]
    assert sum(bool(p.program.supplied) for p in plans) > 4
    return plans


def test_plans_are_sound(plans: list[Plan]) -> None:
    """The check and the bytes agree that they are; the bound is one; the same program gives the same plan."""
    for p in plans:
        assert not corrupted(p) and not caught(p)
        assert p.arena_bytes >= p.lower_bound == max(p.live) == p.live[p.peak_step]
        again = plan(p.program)
        assert (again.offsets, again.workspaces, again.arena_bytes) == (p.offsets, p.workspaces, p.arena_bytes)
        assert all(at % 4 == 0 for at in (*p.offsets.values(), *p.workspaces.values()))


def test_every_harmful_mutation_is_caught(plans: list[Plan]) -> None:
    """A changed plan that destroys bytes somebody reads never passes the check."""
    random = np.random.default_rng(7)
    harmful = harmless = 0
    for p in plans:
        for mutant in mutations(p, random, 60):
            harm = corrupted(mutant)
            if harm:
                harmful += 1
                assert caught(mutant), f"{p.program.graph.name}: {harm}, and the check passes"
            else:
                harmless += not caught(mutant)
    assert harmful > 300 and harmless > 30  # both sides are tried


def test_misaligned_missing_and_negative_places_are_caught(plans: list[Plan]) -> None:
    """No byte is destroyed, but an int32 access would fault."""
    for p in plans:
        name = next(iter(p.offsets))
        assert caught(replace(p, offsets={**p.offsets, name: p.offsets[name] + 2}, arena_bytes=p.arena_bytes + 8))
        for step, at in p.workspaces.items():
            assert caught(replace(p, workspaces={**p.workspaces, step: at + 2}, arena_bytes=p.arena_bytes + 8))
            assert caught(replace(p, workspaces={**p.workspaces, step: -8}))
            assert caught(replace(p, workspaces={k: v for k, v in p.workspaces.items() if k != step}))


def test_update_before_the_error_of_the_input_is_refused(plans: list[Plan]) -> None:
    """dX must read the weights before their update (numerics B3): the verifier sees to it."""
    tried = 0
    for p in plans:
        graph = p.program.graph
        verify(graph)
        for i, node in enumerate(graph.nodes):
            if not isinstance(node.op, InputGrad):
                continue
            for j, later in enumerate(graph.nodes):
                if isinstance(later.op, WeightUpdate) and set(graph.mutated(later)) & set(node.inputs):
                    nodes = list(graph.nodes)
                    nodes.insert(i, nodes.pop(j))
                    with pytest.raises(ModelError, match="after"):
                        verify(replace(graph, nodes=tuple(nodes)))
                    tried += 1
    assert tried > 10


def _shared_cases() -> list[object]:
    quick = {("mcunet-5fps", "mcunet-5fps-49kb.toml"), ("kws_ref_model", "full"), ("ad01_int8", "full")}
    files = sorted(p.name for p in _SCHEMES.glob("*.toml"))
    cases = []
    for model in SHARED_MODELS:
        for update in ("none", "last", "bias", "full", *(f for f in files if f.startswith(model))):
            marks = () if (model, update) in quick or update == "last" else (pytest.mark.slow,)
            cases.append(pytest.param(model, update, marks=marks, id=f"{model}-{update}"))
    return cases


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared models")
@pytest.mark.parametrize(("model", "update"), _shared_cases())
def test_shared_models_reach_the_bound(model: str, update: str) -> None:
    """The arena is the largest sum of live bytes; where it is not, by how much is told."""
    path = SHARED / f"{model}.tflite"
    if update.endswith(".toml"):
        update = str(_SCHEMES / update)
    try:
        p = compile_model(path, Options(update=update)).plan
    except ModelError as error:
        pytest.skip(str(error))
    over = p.arena_bytes - p.lower_bound
    if over:
        print(f"{model} {update}: {p.arena_bytes} bytes, {over} ({over / p.lower_bound:.2%}) above the bound")
    assert over <= p.lower_bound // 20
