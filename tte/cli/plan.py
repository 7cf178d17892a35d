"""`tte plan`: RAM against arithmetic, and a picture of the arena."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tte import board as boards
from tte import needs, tradeoff
from tte.cli.output import Output, Size, command
from tte.compiler import LOSSES, Options
from tte.planner.arena import Plan
from tte.search import auto
from tte.tradeoff import Point, Tradeoff
from tte.training.autodiff import Numerics


@click.command()
@click.argument("model", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--board", "board_name", required=True, help="A board's name (see `tte boards`), or a JSON file.")
@click.option("--classes", type=int, default=0, help="Replace the classifier by a fresh one with N outputs.")
@click.option("--update", default="last", show_default=True, help="What trains: none, last, bias, full, auto, or a TOML file.")
@click.option("--ram", type=Size(), help="RAM to stay within, below the board's own: bytes, 96K, 1M.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder.  [default: build/plan-MODEL-BOARD]")
@click.option("--rows", is_flag=True, help="Choose a plan whose input is supplied row by row.")
@click.option("--loss", type=click.Choice(LOSSES), default="auto", show_default=True, help="What training minimises.")
@click.option("--mode", type=click.Choice(["r4", "r8", "sr"]), help="Residual kept for each weight: 4 bits, 8 bits, none "
              "(stochastic rounding alone).  [default: the scheme's, or r4]")  # fmt: skip
@click.option("--batch", type=click.IntRange(1, 65535), default=1, show_default=True, help="Samples an update sums.")
@command
def plan(output: Output, model: Path, board_name: str, ram: int | None, out: Path | None,
         mode: str | None, batch: int, **options: Any) -> int:  # fmt: skip
    """Show what MODEL's plans cost in RAM and arithmetic, and draw the arena of the one `tte build` takes."""
    board = boards.load(board_name)
    folder = out or Path("build") / f"plan-{model.stem}-{board.name}"
    chosen = Options(numerics=Numerics(0.0, mode or "", batch), **options)
    output.say(f"planning {model.name}")
    with auto.resolved(model, board, chosen, ram, output.say) as chosen:
        found = tradeoff.explore(model, board, chosen, ram)
    _show(output.console, found, board.title)
    from tte import picture  # matplotlib is slow to load

    paths = [folder / f"arena.{suffix}" for suffix in ("png", "svg")]
    compiled = found.compiled
    picture.arena_picture(
        paths, compiled.plan, title=f"{compiled.forward.name}, update {compiled.scheme}, for {board.title}",
        subtitle=_subtitle(found.chosen, compiled.plan),
        bound=(found.scheme_bound.nbytes, f"no order of these steps needs less ({found.scheme_bound.step})"),
    )  # fmt: skip
    output.console.print("picture " + escape("  ".join(map(str, paths))), soft_wrap=True)
    output.result({**found.as_dict(), "picture": [str(p) for p in paths]})
    return 0


def _input(p: Point) -> str:
    return "by rows" if p.rows else "whole"


def _subtitle(p: Point, made: Plan) -> str:
    macs = f"{p.train_macs:,} MACs a training step" if p.train_macs else f"{p.infer_macs:,} MACs an inference"
    return (
        f"arena {made.arena_bytes:,} bytes; trained state {p.ram_bytes - p.arena_bytes:,} more; input {_input(p)}; "
        f"{p.streamed} operators row by row; {macs}"
    )


def _show(console: Console, found: Tradeoff, board: str) -> None:
    """The curve, then the chosen plan and its bounds."""
    c, made = found.chosen, found.compiled.plan
    name, scheme = escape(found.compiled.forward.name), escape(found.compiled.scheme)
    console.print(f"[bold]{name}[/] for {escape(board)}, update scheme {scheme}: RAM against MACs")
    table = Table(box=None, pad_edge=False, header_style="bold")
    numbers = ("RAM", "arena", "MACs/training step", "MACs/inference", "row by row", "dX kept")
    for heading in ("input", *numbers, "fits", ""):
        table.add_column(heading, justify="right" if heading in numbers else "left", no_wrap=True)
    for p in found.points:
        table.add_row(
            _input(p), f"{p.ram_bytes:,}", f"{p.arena_bytes:,}", f"{p.train_macs:,}" if p.train_macs else "-",
            f"{p.infer_macs:,}", str(p.streamed), f"{p.buffered} of {p.of_buffered}" if p.of_buffered else "-",
            "[green]yes[/]" if p.fits else "[red]no[/]", "[bold]<- chosen[/]" if p == c else "",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"RAM is arena and trained state in bytes; stack and the firmware's own variables come on top: 'fits' counts "
        f"{needs.RESERVE:,} for them, of {found.limit:,}.\n'row by row': operators that run in segments with rolling "
        f"buffers. 'dX kept': error steps that keep int32 accumulators; the others compute them twice.",
        style="dim", soft_wrap=True,
    )  # fmt: skip
    if found.why_no_rows:
        console.print(f"no input by rows: {escape(found.why_no_rows)}", style="dim", soft_wrap=True)
    console.print(f"\n[bold]chosen[/] by `tte build`: input {_input(c)}, {c.ram_bytes:,} bytes of RAM")
    bounds = Table(box=None, pad_edge=False, show_header=False)
    bounds.add_column(justify="left")
    bounds.add_column(justify="right")
    bounds.add_column(justify="left")
    bound = found.scheme_bound
    bounds.add_row("arena", f"{c.arena_bytes:,}", f"peak in step {escape(tradeoff.peak_name(made))}")
    bounds.add_row("lower bound, this order", f"{made.lower_bound:,}", "the most bytes live at one step")
    bounds.add_row("lower bound, any order", f"{bound.nbytes:,}", f"of these steps, in any segments: {escape(bound.step)}")
    console.print(bounds)
    if not c.fits:
        best = min((p for p in found.points if p.rows == c.rows), key=lambda p: p.ram_bytes)
        fitting = [p for p in found.points if p.fits]
        hint = f"; input by rows would fit: {fitting[-1].ram_bytes:,} (--rows)" if fitting else ""
        console.print(
            f"[red]does not fit[/] {found.limit:,} bytes: step {escape(tradeoff.peak_name(made))} binds; nearest limit "
            f"{best.ram_bytes + needs.RESERVE:,}{hint}",
            soft_wrap=True,
        )
