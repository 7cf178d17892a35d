"""`tte plan`: the curve, the bounds and the picture."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from test_cli import DIGITS, refused, snapshot, tte

from tte import board as boards
from tte import needs, tradeoff
from tte.compiler import Options, compile_model
from tte.picture import KINDS, boxes
from tte.planner.schedule import buffers, live_bytes
from tte.tradeoff import Point, Tradeoff

BOARD = boards.load("stm32f746")


def explored(update: str, **options: object) -> Tradeoff:
    return tradeoff.explore(DIGITS, BOARD, replace(Options(update=update), **options))  # type: ignore[arg-type]


def effort(p: Point) -> tuple[int, int]:
    return p.train_macs or p.infer_macs, p.streamed


@pytest.mark.parametrize(("update", "rows"), [("none", False), ("none", True), ("last", False), ("last", True), ("full", False)])
def test_curve(update: str, rows: bool) -> None:
    """Less RAM never costs fewer MACs; nothing listed is beaten, and no plan lies below the bounds."""
    found = explored(update, rows=rows)
    for by_rows in (False, True):
        curve = [p for p in found.points if p.rows == by_rows]
        assert bool(curve) == (not by_rows or not found.why_no_rows)
        for more, less in itertools.pairwise(curve):
            assert less.ram_bytes < more.ram_bytes
            assert effort(less) > effort(more)
    c, plan = found.chosen, found.compiled.plan
    assert (c.rows, c.arena_bytes) == (rows, plan.arena_bytes)
    assert found.scheme_bound.nbytes <= plan.lower_bound <= plan.arena_bytes
    assert c.arena_bytes == min(p.arena_bytes for p in found.points if p.rows == rows)
    if update != "none":
        kept = [p for p in found.points if p.of_buffered]
        assert all(p.train_macs > p.infer_macs for p in kept)


def test_curve_has_what_build_makes() -> None:
    """The ends of the curve are the plans without limit and with none."""
    found = explored("full")
    built = [compile_model(DIGITS, Options(update="full", budget=b, target=BOARD.target)).plan for b in (0, 1 << 20)]
    limit = BOARD.ram_bytes
    ends = [found.points[-1], found.points[0]]
    assert [tradeoff.point(p, limit).arena_bytes for p in built] == [p.arena_bytes for p in ends]
    assert [tradeoff.point(p, limit).train_macs for p in built] == [p.train_macs for p in ends]


@pytest.mark.parametrize("seed", range(6))
def test_bound_holds(seed: int) -> None:
    """No order that the graph allows needs less than the bound says."""
    program = compile_model(DIGITS, Options(update=("full", "bias", "last")[seed % 3], stream=False)).plan.program
    nodes = list(program.graph.nodes)
    bound = tradeoff.scheme_bound(program).nbytes
    generator = random.Random(seed)
    for _ in range(400):  # exchange neighbours that do not depend on each other, within a part
        i = generator.randrange(len(nodes) - 1)
        a, b = nodes[i], nodes[i + 1]
        if i + 1 in (program.shared, program.forward):
            continue
        if set(a.outputs) & {*b.inputs, *b.outputs} or set(b.outputs) & set(a.inputs):
            continue
        nodes[i], nodes[i + 1] = b, a
    other = replace(program, graph=program.graph.with_nodes(nodes))
    assert max(live_bytes(buffers(other), len(nodes))) >= bound


def test_limit(tmp_path: Path) -> None:
    """--ram chooses as `tte build` does; what does not fit is told with the nearest limit."""
    small = tradeoff.explore(DIGITS, BOARD, Options(update="full"))
    need = small.chosen.ram_bytes + needs.RESERVE
    roomy = tradeoff.explore(DIGITS, BOARD, Options(update="full"), need + 8192)
    assert roomy.chosen.fits and roomy.chosen.train_macs < small.chosen.train_macs
    assert any(not p.fits for p in roomy.points)
    done = tte("plan", DIGITS, "--board", "stm32f746", "--update", "full", "--ram", need - 1, "--out", tmp_path)
    assert done.status == 0, done.err
    assert "does not fit" in done.out and f"{need:,}" in done.out


def test_command(tmp_path: Path) -> None:
    """The picture is the same every time; the table and the JSON object tell the same figures."""
    arguments = ("plan", DIGITS, "--board", "stm32f746", "--update", "full")
    text = tte(*arguments, cwd=tmp_path)
    assert text.status == 0, text.err
    folder = tmp_path / "build" / "plan-digits-stm32f746"
    first = snapshot(folder)
    assert set(first) == {"arena.png", "arena.svg"}
    assert first["arena.png"].startswith(b"\x89PNG") and b"</svg>" in first["arena.svg"]
    assert b"<dc:date>" not in first["arena.svg"]
    done = tte(*arguments, "--json", "--out", tmp_path / "again")
    assert done.status == 0, done.err
    assert snapshot(tmp_path / "again") == first
    facts = json.loads(done.out)
    assert set(facts) == {"curve", "chosen", "picture"}
    assert [Path(p).name for p in facts["picture"]] == ["arena.png", "arena.svg"]
    assert facts["chosen"]["ram_bytes"] == facts["chosen"]["arena_bytes"] + facts["chosen"]["state_bytes"]
    for p in facts["curve"]:
        assert f"{p['ram_bytes']:,}" in text.out and f"{p['train_macs']:,}" in text.out
    assert f"{facts['chosen']['lower_bound']:,}" in text.out and "<- chosen" in text.out


@pytest.mark.parametrize("options", [Options(update="full"), Options(update="last", rows=True), Options(update="none")])
def test_boxes(options: Options) -> None:
    """What is drawn at a step never overlaps, and adds up to no more than what is live there."""
    plan = compile_model(DIGITS, options).plan
    drawn = boxes(plan)
    assert {b.kind for b in drawn} <= set(KINDS)
    for step, live in enumerate(plan.live):
        here = sorted((b.at, b.at + b.nbytes) for b in drawn if b.first <= step <= b.last)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(here)), step
        assert sum(end - start for start, end in here) <= live
    assert max(b.at + b.nbytes for b in drawn) <= plan.arena_bytes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("missing.tflite", "--board", "stm32f746"), "missing.tflite"),
        ((DIGITS, "--board", "stm32f999"), "unknown board"),
        ((DIGITS, "--board", "stm32f746", "--update", "nothing.toml"), "no such update scheme"),
        ((DIGITS, "--board", "stm32f746", "--update", "full", "--rows"), "needs the model's input whole"),
    ],
)
def test_refusals(tmp_path: Path, arguments: tuple[object, ...], words: str) -> None:
    refused(tte("plan", *arguments, "--out", tmp_path / "out", cwd=tmp_path), words)
    assert snapshot(tmp_path) == {}


def test_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(tte("plan", DIGITS, "--board", "stm32f746", "--out", tmp_path / "file" / "x"), "cannot be written")
