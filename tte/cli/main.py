"""The commands of `tte`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.progress import Progress

import tte
from tte import board as boards
from tte import inspection, project, verify
from tte.cli import device, export, flash, learn, plan, search, show
from tte.cli.life import life_options
from tte.cli.output import Output, Size, command, fail
from tte.compiler import LOSSES, Options
from tte.errors import ModelError
from tte.life import Life
from tte.search import auto
from tte.training.autodiff import Numerics

_DIR = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(tte.__version__, prog_name="tte")
def main() -> None:
    """Teaches microcontrollers: an int8 .tflite model becomes firmware that learns."""


@main.command()
@click.argument("model", type=_FILE)
@command
def inspect(output: Output, model: Path) -> int:
    """List a model's operators: shapes, quantisation, cost, and whether each can run and train."""
    found = inspection.inspect(model)
    show.inspection(output.console, found)
    if not found.runnable:
        many = f"{len(found.problems)} problem{'s' * (len(found.problems) > 1)}"
        output.result(found.as_dict())
        listed = "".join(f"\n  {p}" for p in found.problems)
        output.json = False  # the object is out; what follows is for the eye alone
        fail(output, ModelError(f"the model cannot be used ({many}):{listed}", where=str(model)))
    output.result(found.as_dict())
    return 0


@main.command()
@click.argument("model", type=_FILE)
@click.option("--board", "board_name", required=True, help="A board's name (see `tte boards`), or a JSON file.")
@click.option("--classes", type=int, default=0, help="Replace the classifier by a fresh one with N outputs.")
@click.option("--update", default="last", show_default=True, help="What trains: none, last, bias, full, auto, or a TOML file.")
@click.option("--ram", type=Size(), help="RAM to stay within, below the board's own: bytes, 96K, 1M.")
@click.option("--out", type=_DIR, help="Folder to write.  [default: build/MODEL-BOARD]")
@click.option("--rows", is_flag=True, help="The program's caller supplies the input row by row; it never lies in RAM whole.")
@click.option("--loss", type=click.Choice(LOSSES), default="auto", show_default=True, help="What training minimises.")
@click.option("--learning-rate", type=float, help="Base learning rate.  [default: the scheme's, or 0.01]")
@click.option("--mode", type=click.Choice(["r4", "r8", "sr"]), help="Residual kept for each weight: 4 bits, 8 bits, none "
              "(stochastic rounding alone).  [default: the scheme's, or r4]")  # fmt: skip
@click.option("--batch", type=click.IntRange(1, 65535), default=1, show_default=True, help="Samples an update sums.")
@click.option("--head-seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of a fresh head.")
@life_options
@click.option("--steps-table", is_flag=True, help="Print each step's kernel, MACs and predicted instructions.")
@click.option("--dump-ir", type=_DIR, help="Write the graph's text after each stage into this folder.")
@command
def build(output: Output, model: Path, board_name: str, ram: int | None, out: Path | None, dump_ir: Path | None,
          learning_rate: float | None, mode: str | None, batch: int, steps_table: bool, life: Life,
          **options: Any) -> int:  # fmt: skip
    """Compile MODEL into firmware that learns, for a board."""
    if learning_rate is not None and not 0 < learning_rate < 1000:
        raise ModelError(f"learning rate {learning_rate}", where="--learning-rate", limit="above 0, below 1000")
    board = boards.load(board_name)
    folder = out or Path("build") / f"{model.stem}-{board.name}"
    chosen = Options(numerics=Numerics(learning_rate or 0.0, mode or "", batch), life=life, **options)
    with auto.resolved(model, board, chosen, ram, output.say) as chosen:
        made = project.build(model, board, chosen, folder, ram=ram, dump_ir=dump_ir, say=output.say)
    show.build(output.console, made)
    if steps_table:
        show.steps(output.console, made.steps)
    output.result({**made.as_dict(), "folder": str(folder)})
    return 0


@main.command(name="boards")
@command
def list_boards(output: Output) -> int:
    """List the boards tte knows. Add one by a JSON file: --board my.json, or a folder named in TTE_BOARDS."""
    found = [boards.load(name) for name in boards.names()]
    show.boards(output.console, found)
    listed = [
        {"name": b.name, "title": b.title, "core": b.core, "ram_bytes": b.ram_bytes, "flash_bytes": b.flash_bytes,
         "emulator": b.emulator.machine if b.emulator else None}
        for b in found
    ]  # fmt: skip
    output.result({"boards": listed})
    return 0


@main.command(name="verify")
@click.argument("folder", type=_DIR)
@click.option("--steps", type=click.IntRange(1), default=10, show_default=True, help="Training steps to compare.")
@click.option("--on", type=click.Choice(["host", "qemu"]), default="host", show_default=True,
              help="This computer with sanitizers, or the emulated board.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the random samples.")
@command
def verify_build(output: Output, folder: Path, steps: int, on: str, seed: int) -> int:
    """Prove that a build computes what the reference computes, byte for byte, training step by training step."""
    made, compiled, facts = project.load(folder)
    with Progress(console=output.notes, transient=True, disable=output.json or not output.notes.is_terminal) as progress:
        task = progress.add_task(f"{on}: {facts['name']}", total=steps)
        result = verify.verify(
            made, compiled, steps=steps, on=on, seed=seed, say=lambda n: progress.update(task, completed=n)
        )
    if result.equal:
        output.console.print(f"[green]equal[/]: {result.compared:,} values over {result.steps} steps on {on}")
    else:
        output.console.print(f"[bold red]different[/]: {escape(str(result.mismatch))}", soft_wrap=True)
    output.result(result.as_dict() | {"on": on, "name": facts["name"]})
    return 0 if result.equal else 1


main.add_command(learn.run)
main.add_command(learn.demo)
main.add_command(device.device)
main.add_command(export.export)
main.add_command(flash.flash)
main.add_command(plan.plan)
main.add_command(search.search)
main.add_command(search.train_host)
