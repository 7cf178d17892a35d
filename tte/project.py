"""A build folder: a PlatformIO project with the model it came from, so that it can be proved and run later."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tte
from tte import codegen, files, firmware, keeping, native, needs, pioproject, renode, steps, toolchain
from tte.board import Board
from tte.compiler import Compiled, Options, compile_model
from tte.errors import BoardError, DataError, ModelError, ToolchainError
from tte.ir import Role
from tte.life import Life, from_facts
from tte.planner.arena import Plan
from tte.training.autodiff import TRUTH, Numerics

MANIFEST = "build.json"
STEPS = "steps.txt"  # what each step is and costs, for people
_KEPT = "source"
_MOST_PAST = 0xFFFF  # firmware/src/replay.c counts places in 16 bits


@dataclass(frozen=True)
class Memory:
    """What a build needs of a board, in bytes; `ram` and `flash` are the linker's figures plus the stack bound.

    `flash_gap_bytes` of the flash lie empty, between the vectors and the sectors that keep trained state.
    """

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
    flash_gap_bytes: int = 0

    @property
    def fits(self) -> bool:
        return self.ram_bytes <= self.ram_limit and self.flash_bytes <= self.flash_limit


@dataclass(frozen=True, eq=False)
class Build:
    """A finished build; `kept`: what keeping its state takes, if it does."""

    folder: Path
    name: str
    board: Board
    compiled: Compiled
    memory: Memory
    hash: str
    kept: keeping.Kept | None = None

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
            "kept": asdict(self.kept) | {"saves": self.kept.saves} if self.kept else None,
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
    _refuse_what_cannot_live(compiled, options.life)
    state = codegen.state_bytes(compiled.plan)
    kept = _kept(compiled.plan, board, options.life)
    refuse_unless_it_fits(compiled.plan, board, limit, kept)
    if ram:
        # It fits at its smallest: spend what is left on fewer instructions.
        room = limit - state - needs.RESERVE - needs.life_room(compiled.plan, options.life)
        options = replace(options, budget=max(room, 0))
        compiled = compile_model(model, options, say)
        kept = _kept(compiled.plan, board, options.life)  # with other kernels, the frozen cut may be another
    if dump_ir is not None:
        _dump(compiled, dump_ir)
    if missing and not toolchain.compiler_package().is_dir():
        say("arm-none-eabi-gcc is not on PATH: PlatformIO will fetch it")
    name = codegen.c_name(compiled.forward.name)
    note = f"{compiled.forward.name}, {compiled.scheme} update, {compiled.options.numerics.mode}, for {board.title}"
    life = options.life
    render = functools.partial(
        codegen.render, compiled.plan, name, note, latent=life.latent, resumable=life.resumable
    )
    sources = render()
    digest = codegen.model_hash(compiled.plan)
    with _removed_on_failure(out):
        say(f"compiling for {board.title}")
        try:
            result = _build_within(out, sources, board, name, limit, compiled.plan, digest, life, kept)
        except BoardError as error:
            flash = _more_flash(kept) if "FLASH" in error.limit else error.remedy
            remedy = _remedy(compiled.plan, life) if "RAM" in error.limit else flash
            raise BoardError(error.what, where=error.where, limit=error.limit, remedy=remedy) from None
        _agree(compiled.plan, result)
        memory = _memory(compiled.plan, result, board, kept, limit)
        if memory.ram_bytes > limit:
            raise too_large("RAM", memory.ram_bytes, limit, board, compiled.plan, life=life)
        finished = Build(out, name, board, compiled, memory, digest, kept)
        native.keep_portable(out, render("portable") if options.target != "portable" else None)
        _keep(finished, model, options)
    return finished


def _build_within(
    out: Path, sources: Mapping[str, str], board: Board, name: str, limit: int, plan: Plan, digest: str, life: Life,
    kept: keeping.Kept | None,
) -> firmware.BuildResult:
    """Lays out and builds the project; where RAM is short, the stack gets what its bound asks for and no more."""
    window = limit // 32 * 32 if limit < board.ram_bytes else None
    static = plan.arena_bytes + codegen.state_bytes(plan) + needs.FIRMWARE_ROOM + needs.life_room(plan, life)
    scripts = renode.files(board, board.name, name, digest)

    def attempt(stack: int) -> firmware.BuildResult:
        made = pioproject.generate_project(
            out, sources, board, name=name, stack_bytes=stack, ram_window_bytes=window, more=scripts, life=life,
            keep_bytes=codegen.state_bytes(plan) if life.keep else None, past_sectors=kept.past_sectors if kept else 0,
        )  # fmt: skip
        return firmware.build(made)

    if static + board.stack_bytes <= limit:
        return attempt(board.stack_bytes)
    result = attempt(min(needs.STACK_ROOM, board.stack_bytes))
    if result.ram_static_bytes + result.stack_reserve_bytes > limit:
        # The emulated twin's driver may go a little deeper than the board's: 32 bytes more.
        result = attempt(-(-result.stack_bound_bytes // 32) * 32 + 32)
    return result


def _kept(plan: Plan, board: Board, life: Life) -> keeping.Kept | None:
    """The flash that trained state takes, with the past samples that lie there."""
    if not life.keep:
        return None
    size = needs.sample_bytes(plan) if life.past_in_flash else 1
    past = keeping.Past(life.past_in_flash // size, size) if life.past_in_flash else None
    return keeping.kept(board, codegen.state_bytes(plan), past)


def _flash_limit(board: Board, kept: keeping.Kept | None) -> int:
    """Flash for the program."""
    return board.flash_bytes - (kept.flash_bytes if kept else 0)


def refuse_unless_it_fits(plan: Plan, board: Board, ram_limit: int, kept: keeping.Kept | None = None) -> None:
    """Raises BoardError when arena and state, or the constants alone, already exceed the board.

    Args:
        kept: the flash that is left to trained state.
    """
    ram = plan.arena_bytes + codegen.state_bytes(plan)
    if ram > ram_limit:
        raise too_large("RAM", ram, ram_limit, board, plan)
    constants = sum(t.type.nbytes for r in (Role.CONST, Role.PARAM) for t in plan.program.graph.of_role(r))
    if constants > _flash_limit(board, kept):
        raise too_large("flash", constants, _flash_limit(board, kept), board, plan, _more_flash(kept))


def _refuse_what_cannot_live(compiled: Compiled, life: Life) -> None:
    """Raises ModelError where a program that learns nothing is to keep, guard or remember, or to remember where nothing is."""
    wanted = [f"--{part}" for part in ("keep", "guard", "replay") if getattr(life, part)]
    if wanted and not compiled.updates:
        raise ModelError(
            f"nothing trains, so {' and '.join(wanted)} would have no effect",
            where=compiled.forward.name, remedy="choose what trains (--update), or leave them out",
        )  # fmt: skip
    if life.replay and not 0 < life.replay // needs.sample_bytes(compiled.plan) <= _MOST_PAST:
        size = needs.sample_bytes(compiled.plan)
        raise ModelError(
            f"room for {life.replay // size:,} past samples of {size:,} bytes each", where=f"--replay {life.replay}",
            limit=f"1 .. {_MOST_PAST:,} samples: {size:,} .. {_MOST_PAST * size:,} bytes",
            remedy="another size, or a scheme that trains fewer layers (what crosses the frozen cut is then smaller)",
        )  # fmt: skip
    if life.past_in_flash and not life.keep:
        raise ModelError(
            "past samples would lie in the flash that is left free for trained state, and none is", where="--replay-in flash",
            remedy="add --keep, or choose another place",
        )  # fmt: skip
    if life.guard and life.guard_in == "flash" and not life.keep:
        raise ModelError(
            "the guard would go back to what was saved last, and nothing is", where="--guard-in flash",
            remedy="add --keep, or --guard-in ram",
        )  # fmt: skip


def _more_flash(kept: keeping.Kept | None) -> str:
    return f"a board with more flash, or a smaller model{', or leave out --keep' if kept else ''}"


def too_large(
    what: str, need: int, limit: int, board: Board, plan: Plan, flash_remedy: str = "", life: Life = Life()
) -> BoardError:
    """The error for a plan that a board cannot hold: by how much, at which operator, and what would help."""
    node = plan.program.graph.nodes[plan.peak_step]
    state = codegen.state_bytes(plan)
    place = f"; the arena peaks at {plan.arena_bytes:,} bytes in step {plan.peak_step}, {node.name} ({node.op.title})"
    detail = f"{place}; trained state {state:,} bytes" if what == "RAM" else ""
    return BoardError(
        f"needs {need:,} bytes of {what}, {need - limit:,} too many{detail}",
        where=board.name,
        limit=f"{limit:,} bytes of {what}",
        remedy=_remedy(plan, life) if what == "RAM" else flash_remedy,
    )


def _remedy(plan: Plan, life: Life) -> str:
    """What would help, the largest part first."""
    if life.latent and (room := needs.life_room(plan, life)) > max(plan.arena_bytes, codegen.state_bytes(plan)):
        return f"what --guard and --replay hold binds ({room:,} bytes): fewer samples, --guard-in flash, --replay-in flash"
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


def _memory(
    plan: Plan, result: firmware.BuildResult, board: Board, kept: keeping.Kept | None, limit: int
) -> Memory:
    head = keeping.program_memory(board, board.flash_org, keeps=kept is not None)[:-1]
    at_the_start = sum(result.sections.get(name, 0) for name in (".boot2", ".vectors"))
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
        flash_limit=_flash_limit(board, kept),
        lower_bound=plan.lower_bound,
        peak_step=f"{plan.peak_step} {node.name} ({node.op.title})",
        flash_gap_bytes=sum(size for _, _, size in head) - at_the_start if head else 0,
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


def load(folder: Path) -> tuple[pioproject.Project, Compiled, dict[str, Any]]:
    """A build folder's project, its plan (compiled again from the kept model) and its manifest.

    Raises:
        DataError: no finished build, or one whose parts do not belong together.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        numerics = Numerics(**facts["options"]["numerics"])
        life = from_facts(facts["options"].get("life", {}))
        options = Options(**{**facts["options"], "numerics": numerics, "life": life})
        name = str(facts["model"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError("no finished build here", where=str(folder), remedy="run `tte build ... --out DIR`") from None
    scheme = folder / _KEPT / "scheme.toml"
    if scheme.is_file() and options.update not in ("none", "last", "bias", "full"):
        options = replace(options, update=str(scheme))
    project = pioproject.open_project(folder)
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
