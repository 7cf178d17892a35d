"""A build folder: a PlatformIO project with the model it came from, so that it can be proved and run later."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tte
from tte import codegen, files, firmware, native, renode, steps, toolchain
from tte.board import Board
from tte.compiler import Compiled, Options, compile_model
from tte.errors import BoardError, DataError, ModelError, ToolchainError
from tte.ir import Role
from tte.planner.arena import Plan
from tte.training.autodiff import TRUTH, Numerics

MANIFEST = "build.json"
STEPS = "steps.txt"  # what each step is and costs, for people
_KEPT = "source"
FIRMWARE_ROOM = 512  # bytes for the firmware's own variables, where RAM is to be shared out
STACK_ROOM = 1536  # bytes of stack where the board's usual reserve does not fit; fast depthwise kernels may need some 1,050
_MORE_FLASH = "a board with more flash, or a smaller model"


@dataclass(frozen=True)
class Memory:
    """What a build needs of a board, in bytes; `ram` and `flash` are the linker's figures plus the stack bound."""

    ram_bytes: int
    flash_bytes: int
    arena_bytes: int
    state_bytes: int
    stack_bytes: int
    other_bytes: int
    ram_limit: int
    flash_limit: int
    lower_bound: int
    peak_step: str

    @property
    def fits(self) -> bool:
        return self.ram_bytes <= self.ram_limit and self.flash_bytes <= self.flash_limit


@dataclass(frozen=True, eq=False)
class Build:
    """A finished build."""

    folder: Path
    name: str
    board: Board
    compiled: Compiled
    memory: Memory
    hash: str

    @property
    def steps(self) -> tuple[steps.StepCost, ...]:
        """What each step is and costs; nothing is counted yet."""
        return steps.costs(self.compiled.plan.program)

    def as_dict(self) -> dict[str, Any]:
        """The facts of the manifest and of `tte build --json`."""
        c = self.compiled
        return {
            "tte": tte.__version__,
            "name": self.name,
            "hash": self.hash,
            "board": self.board.name,
            "scheme": c.scheme,
            "loss": c.loss.title if c.loss else None,
            "options": asdict(c.options),
            "steps": len(c.plan.program.graph.nodes),
            "trained_layers": sorted(c.updates),
            "pruned": asdict(c.pruned) if c.pruned else None,
            **asdict(self.memory),
            "fits": self.memory.fits,
            "schedule": [line.as_dict() for line in self.steps],
        }


def build(
    model: Path,
    board: Board,
    options: Options,
    out: Path,
    *,
    ram: int | None = None,
    dump_ir: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Build:
    """Compiles a model, lays out the project in `out` and builds it for the board.

    A build that fails leaves no new folder behind, and an older build in `out` untouched where planning already
    shows that it would not fit.

    Args:
        ram: a limit below the board's own, in bytes.

    Raises:
        ModelError, BoardError, ToolchainError, DataError: see the message; nothing was left half-written.
    """
    missing = [m for m in toolchain.check() if m.tool == "arm-none-eabi-gcc"]
    say(f"reading {model.name}")
    options = replace(options, target=board.target)
    compiled = compile_model(model, options, say)
    limit = min(ram or board.ram_bytes, board.ram_bytes)
    refuse_unless_it_fits(compiled.plan, board, limit)
    if ram:
        # It fits at its smallest: spend what is left on fewer instructions.
        room = limit - codegen.state_bytes(compiled.plan) - STACK_ROOM - FIRMWARE_ROOM
        options = replace(options, budget=max(room, 0))
        compiled = compile_model(model, options, say)
    if dump_ir is not None:
        _dump(compiled, dump_ir)
    if missing and not toolchain.compiler_package().is_dir():
        say("arm-none-eabi-gcc is not on PATH: PlatformIO will fetch it")
    name = codegen.c_name(compiled.forward.name)
    note = f"{compiled.forward.name}, {compiled.scheme} update, {compiled.options.numerics.mode}, for {board.title}"
    sources = codegen.render(compiled.plan, name, note)
    digest = codegen.model_hash(compiled.plan)
    with _removed_on_failure(out):
        say(f"compiling for {board.title}")
        try:
            result = _build_within(out, sources, board, name, limit, compiled.plan, digest)
        except BoardError as error:
            remedy = _remedy(compiled.plan) if "RAM" in error.limit else _MORE_FLASH if "FLASH" in error.limit else error.remedy
            raise BoardError(error.what, where=error.where, limit=error.limit, remedy=remedy) from None
        _agree(compiled.plan, result)
        memory = _memory(compiled.plan, result, board, limit)
        if memory.ram_bytes > limit:
            raise too_large("RAM", memory.ram_bytes, limit, board, compiled.plan)
        finished = Build(out, name, board, compiled, memory, digest)
        own = options.target != "portable"
        native.keep_portable(out, codegen.render(compiled.plan, name, note, target="portable") if own else None)
        _keep(finished, model, options)
    return finished


def _build_within(
    out: Path, sources: Mapping[str, str], board: Board, name: str, limit: int, plan: Plan, digest: str
) -> firmware.BuildResult:
    """Lays out and builds the project; where RAM is short, the stack gets what its bound asks for and no more."""
    window = limit // 32 * 32 if limit < board.ram_bytes else None
    static = plan.arena_bytes + codegen.state_bytes(plan) + FIRMWARE_ROOM
    scripts = renode.files(board, board.name, name, digest)

    def attempt(stack: int) -> firmware.BuildResult:
        made = firmware.generate_project(
            out, sources, board, name=name, stack_bytes=stack, ram_window_bytes=window, more=scripts
        )
        return firmware.build(made)

    if static + board.stack_bytes <= limit:
        return attempt(board.stack_bytes)
    result = attempt(min(STACK_ROOM, board.stack_bytes))
    if result.ram_static_bytes + result.stack_reserve_bytes > limit:
        # The emulated twin's driver may go a little deeper than the board's: 32 bytes more.
        result = attempt(-(-result.stack_bound_bytes // 32) * 32 + 32)
    return result


def refuse_unless_it_fits(plan: Plan, board: Board, ram_limit: int) -> None:
    """Raises BoardError when arena, state and stack, or the constants alone, already exceed the board."""
    ram = plan.arena_bytes + codegen.state_bytes(plan)
    if ram > ram_limit:
        raise too_large("RAM", ram, ram_limit, board, plan)
    constants = sum(t.type.nbytes for r in (Role.CONST, Role.PARAM) for t in plan.program.graph.of_role(r))
    if constants > board.flash_bytes:
        raise too_large("flash", constants, board.flash_bytes, board, plan)


def too_large(what: str, need: int, limit: int, board: Board, plan: Plan) -> BoardError:
    """The error for a plan that a board cannot hold: by how much, at which operator, and what would help."""
    node = plan.program.graph.nodes[plan.peak_step]
    state = codegen.state_bytes(plan)
    place = f"; the arena peaks at {plan.arena_bytes:,} bytes in step {plan.peak_step}, {node.name} ({node.op.title})"
    detail = f"{place}; trained state {state:,} bytes" if what == "RAM" else ""
    return BoardError(
        f"needs {need:,} bytes of {what}, {need - limit:,} too many{detail}",
        where=board.name,
        limit=f"{limit:,} bytes of {what}",
        remedy=_remedy(plan) if what == "RAM" else _MORE_FLASH,
    )


def _remedy(plan: Plan) -> str:
    """What would help, the largest part first."""
    if codegen.state_bytes(plan) > plan.arena_bytes:
        return "trained state binds: a smaller scheme, fewer --classes, --mode sr (no residuals), or a board with more RAM"
    program = plan.program
    whole = {i for i in program.graph.inputs if i not in (TRUTH, program.supplied)}
    if plan.peak_step < program.forward and whole.intersection(program.graph.nodes[plan.peak_step].inputs):
        return "the input itself binds: --rows (it then never lies in RAM whole), or a smaller input"
    if plan.peak_step < program.forward:
        return "the forward pass binds: a smaller input or model, fewer masks (a smaller scheme), or a board with more RAM"
    return "the backward pass binds: train fewer or later layers (--update last, or a smaller scheme)"


def _agree(plan: Plan, result: firmware.BuildResult) -> None:
    """The linker's variables against the plan."""
    for name, size in (("arena", max(plan.arena_bytes, 8)), ("state", codegen.state_bytes(plan))):
        found = [v.size for v in result.variables if v.name == name]
        if size and found != [size]:
            raise ToolchainError(f"the linked program's {name} has {found} bytes, the plan {size}", where=result.env)


def _memory(plan: Plan, result: firmware.BuildResult, board: Board, limit: int) -> Memory:
    state = codegen.state_bytes(plan)
    node = plan.program.graph.nodes[plan.peak_step]
    return Memory(
        ram_bytes=result.ram_bytes,
        flash_bytes=result.flash_bytes,
        arena_bytes=plan.arena_bytes,
        state_bytes=state,
        stack_bytes=result.stack_bound_bytes,
        other_bytes=result.ram_static_bytes - plan.arena_bytes - state,
        ram_limit=limit,
        flash_limit=board.flash_bytes,
        lower_bound=plan.lower_bound,
        peak_step=f"{plan.peak_step} {node.name} ({node.op.title})",
    )


def _keep(finished: Build, model: Path, options: Options) -> None:
    """Copies what the build was made from, then writes the manifest: its presence means the build is whole."""
    source = finished.folder / _KEPT
    source.mkdir(exist_ok=True)
    files.write(source / "model.tflite", model.read_bytes())
    if Path(options.update).is_file():
        files.write(source / "scheme.toml", Path(options.update).read_bytes())
    files.write(finished.folder / STEPS, steps.text(finished.steps).encode())
    facts = {**finished.as_dict(), "model": finished.compiled.forward.name}
    files.write(finished.folder / MANIFEST, (json.dumps(facts, indent=1) + "\n").encode())


def kept_model(folder: Path) -> Path:
    """The .tflite file that a build folder was made from."""
    return folder / _KEPT / "model.tflite"


def load(folder: Path) -> tuple[firmware.Project, Compiled, dict[str, Any]]:
    """A build folder's project, its plan (compiled again from the kept model) and its manifest.

    Raises:
        DataError: no finished build, or one whose parts do not belong together.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        numerics = Numerics(**facts["options"]["numerics"])
        options = Options(**{**facts["options"], "numerics": numerics})
        name = str(facts["model"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError("no finished build here", where=str(folder), remedy="run `tte build ... --out DIR`") from None
    scheme = folder / _KEPT / "scheme.toml"
    if scheme.is_file() and options.update not in ("none", "last", "bias", "full"):
        options = Options(**{**asdict(options), "update": str(scheme), "numerics": numerics})
    project = firmware.open_project(folder)
    try:
        compiled = compile_model(folder / _KEPT / "model.tflite", options, name=name)
    except ModelError as error:
        raise DataError(f"the build's own model is damaged: {error.what}", where=str(folder)) from None
    if codegen.model_hash(compiled.plan) != facts.get("hash"):
        raise DataError(
            "the generated code comes from another version of tte or of the model",
            where=str(folder),
            remedy="run `tte build` again",
        )
    return project, compiled, facts


def _dump(compiled: Compiled, folder: Path) -> None:
    for stage, text in compiled.dumps:
        files.write(folder / f"{stage}.txt", text.encode())


@contextlib.contextmanager
def _removed_on_failure(folder: Path) -> Iterator[None]:
    """A folder that did not exist is removed again when its build fails; an older one loses its manifest meanwhile."""
    new = not folder.exists()
    if folder.exists() and not folder.is_dir():
        raise DataError("is not a folder", where=str(folder), remedy="choose another --out")
    if not new and any(folder.iterdir()) and not (folder / MANIFEST).is_file() and not (folder / "platformio.ini").is_file():
        raise DataError("the folder holds other things", where=str(folder), remedy="choose an empty or new --out")
    try:
        (folder / MANIFEST).unlink(missing_ok=True)
        yield
    except BaseException:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise
