"""Counts a case on a core: compiles it, builds the counting firmware, runs it in QEMU."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tflite_builder import GraphBuilder

from benchmark.cases import Case
from benchmark.table import Figure
from tte import board as boards
from tte import codegen, firmware, pioproject, profile, resources, toolchain
from tte.board import Board
from tte.compiler import Compiled, compile_model
from tte.ir import Node
from tte.ops.base import Types
from tte.ops.linear import Geometry, Linear
from tte.ops.linear_grad import InputGrad, WeightUpdate
from tte.steps import StepCost, costs

#: The cores: their emulated board, and GCC's name where the board is built for another. All get the STM32F746's memory,
#: so that the plans differ by the core alone.
CORES = {"M7": ("mps2-an500", ""), "M4": ("mps2-an386", ""), "M3": ("mps2-an385", "cortex-m3")}
_MEMORY = "mps2-an500"


def board(core: str, folder: Path) -> Board:
    """The emulated board of a core."""
    room = resources.path("boards")
    name, cpu = CORES[core]
    facts, memory = (json.loads((room / f"{n}.json").read_text(encoding="utf-8")) for n in (name, _MEMORY))
    facts["build"]["cpu"] = cpu or facts["build"]["cpu"]
    for limit in ("maximum_size", "maximum_ram_size"):
        facts["upload"][limit] = memory["upload"][limit]
    facts["tte"].pop("flash", None)  # sectors of another chip's flash; a benchmark keeps no state
    file = folder / f"bench-{core.lower()}.json"
    file.write_text(json.dumps(facts), encoding="utf-8")
    return boards.load(file)


def measure(case: Case, core: str, target: str = "") -> list[Figure]:
    """The case's figures on a core, by an inference or a training step on a random sample.

    Args:
        target: kernels of another target than the core's own ("portable": to see what the fast ones gain).

    Raises:
        TteError: it cannot be compiled, built or run.
    """
    with tempfile.TemporaryDirectory(prefix="tte-bench-") as temporary:
        folder = Path(temporary)
        emulated = board(core, folder)
        compiled = _compiled(case, folder, target or emulated.target)
        sources = codegen.render(compiled.plan, "bench", case.name)
        project = pioproject.generate_project(folder / "project", sources, emulated, name="bench")
        counted = profile.count(project, compiled)
        memory = None if case.steps else firmware.build(project)
    lines = counted.lines(costs(compiled.plan.program))
    if memory is None:
        return [Figure(f"{line.name} {line.operator}", line.macs, line.counted) for line in lines if line.stage is None]
    sizes = [Figure("bytes of RAM, whole program", 0, memory.ram_bytes), Figure("bytes of flash", 0, memory.flash_bytes)]
    return [*_kinds(compiled, counted, lines), *sizes]


def _compiled(case: Case, folder: Path, target: str) -> Compiled:
    path, options = case.file, replace(case.options, target=target)
    if case.grow:
        builder = GraphBuilder(1)
        path = folder / "model.tflite"
        path.write_bytes(builder.build(case.grow(builder)))
    if case.scheme:
        scheme = folder / "scheme.toml"
        scheme.write_text(case.scheme, encoding="utf-8")
        options = replace(options, update=str(scheme))
    return compile_model(path, options)


def _kinds(compiled: Compiled, counted: profile.Counted, lines: tuple[StepCost, ...]) -> Iterator[Figure]:
    """The whole call, its two parts, and each kind of operator; a segment's stages count where they belong."""
    program = compiled.plan.program
    call = counted.train or counted.infer
    steps = [line for line in lines if line.index in call.steps]
    whole = [line for line in steps if line.stage is None]
    macs = sum(line.macs for line in whole)
    if counted.train:
        shared = [line for line in whole if line.index < program.shared]
        forward = Figure("forward", sum(line.macs for line in shared), sum(line.counted for line in shared))
        rest = call.instructions - forward.instructions
        yield Figure("training step", macs, call.instructions)
        yield forward
        yield Figure("backward and update", macs - forward.macs, rest)
    else:
        yield Figure("inference", macs, call.instructions)
    kinds: dict[str, list[int]] = {}
    for line in steps:
        node = program.graph.nodes[line.index]
        own = [line.macs, line.counted]
        if line.stage is None:
            types, inner = program.types(node), [x for x in steps if x.index == line.index and x.stage is not None]
            own = [line.macs - sum(x.macs for x in inner), line.counted - sum(x.counted for x in inner)]
        else:
            node, types = node.op.nodes[line.stage], node.op.types_of(node.op.nodes[line.stage])
        total = kinds.setdefault(_kind(node, types), [0, 0])
        total[0] += own[0]
        total[1] += own[1]
    for kind, (work, instructions) in sorted(kinds.items()):
        yield Figure(kind, work, instructions)


def _kind(node: Node, types: Types) -> str:
    """The operator, and of convolutions the kind of window."""
    op = node.op
    if op.title == "SEGMENT":
        return "order of rows"
    if isinstance(op, (InputGrad, WeightUpdate)):
        g: Geometry = op.geometry
        return f"{op.title} {'depthwise ' if g.depthwise else ''}{g.k_h}x{g.k_w}"
    if isinstance(op, Linear) and op.title != "FULLY_CONNECTED":
        g = op.site(types.ins)
        return f"{op.title} {g.k_h}x{g.k_w}"
    return op.title


def tools() -> str:
    """Versions of the compiler and the emulator, which the figures depend on."""
    lines = []
    for tool in (toolchain.CROSS_COMPILER, toolchain.QEMU):
        done = subprocess.run([toolchain.require(tool), "--version"], capture_output=True, text=True, check=True)
        lines.append(done.stdout.splitlines()[0])
    return "; ".join(lines)
