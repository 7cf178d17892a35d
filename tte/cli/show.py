"""Tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tte.board import Board
from tte.inspection import Inspection
from tte.keeping import Kept
from tte.project import STEPS, Build
from tte.steps import StepCost, text

_NAME_WIDTH = 34


def _short(name: str) -> str:
    """A long TFLite name's end, where the layer is told."""
    return escape(name if len(name) <= _NAME_WIDTH else "…" + name[1 - _NAME_WIDTH :])


def inspection(console: Console, found: Inspection) -> None:
    """The operators of a model, and its sums."""
    table = Table(title=escape(found.name), title_justify="left", header_style="bold", box=None, pad_edge=False)
    for heading in ("#", "operator", "layer", "input", "output", "scale, zero point", "MACs", "weights", "runs", "trains"):
        table.add_column(heading, justify="right" if heading in ("#", "MACs", "weights") else "left", no_wrap=True)
    for o in found.operators:
        runs = "yes" if o.runs else "[red]no[/]"
        trains = "yes" if o.trains else "[yellow]no[/]"
        numbers = (f"{o.macs:,}" if o.macs else "", f"{o.weight_bytes:,}" if o.weight_bytes else "")
        table.add_row(str(o.index), o.operator, _short(o.name), o.input, o.output, o.quantisation, *numbers, runs, trains)
    console.print(table)
    for o in found.operators:
        if o.why:
            console.print(f"  {o.index} {o.operator}: {escape(o.why)}", soft_wrap=True)
    console.print(f"input    {escape(found.input)}\noutput   {escape(found.output)}", soft_wrap=True)
    if found.runnable:
        console.print(f"MACs     {found.macs:,}\nweights  {found.weight_bytes:,} bytes")
        console.print(f"peak     {found.peak_activations:,} bytes of activations, at {escape(found.peak_operator)}")


def build(console: Console, made: Build) -> None:
    """What a build needs of the board."""
    m, c = made.memory, made.compiled
    console.print(f"[bold]{escape(made.name)}[/] for {escape(made.board.title)}, update scheme {escape(c.scheme)}")
    if c.pruned:
        p = c.pruned
        console.print(
            f"backward graph: {p.of_operators - p.operators} operators of {p.of_operators}; "
            f"pruning removed {p.operators} operators and {p.nbytes:,} bytes of tensors"
        )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "bytes", "of", ""):
        table.add_column(heading, justify="right" if heading in ("bytes", "of") else "left")
    where = escape(m.peak_step)
    table.add_row("arena", f"{m.arena_bytes:,}", "", f"peak in step {where}; lower bound {m.lower_bound:,}")
    table.add_row("trained state", f"{m.state_bytes:,}", "", f"{len(c.updates)} layers")
    table.add_row("stack", f"{m.stack_bytes:,}", "", "worst path of the call graph")
    table.add_row("firmware", f"{m.other_bytes:,}", "", "other variables")
    table.add_row("[bold]RAM[/]", f"[bold]{m.ram_bytes:,}[/]", f"{m.ram_limit:,}", f"{m.ram_bytes / m.ram_limit:.0%}")
    share = f"{m.flash_bytes / m.flash_limit:.0%}"
    share += f"; {m.flash_gap_bytes:,} lie empty before the kept state" if m.flash_gap_bytes else ""
    table.add_row("[bold]flash[/]", f"[bold]{m.flash_bytes:,}[/]", f"{m.flash_limit:,}", share)
    if made.kept:
        _add_kept(table, made.kept)
    console.print(table)
    where = escape(str(made.folder))
    console.print(f"written to {where}; what each step costs: {where}/{STEPS}", soft_wrap=True)


def _add_kept(table: Table, kept: Kept) -> None:
    """Where trained state is kept, and how often that can be done."""
    least, most = min(kept.records), max(kept.records)
    fit = f"{least} to {most}" if most > least else str(most)
    where = f"at 0x{kept.address:08x}: {kept.slots} slots"
    about = f"{where}; a save takes {kept.record_bytes:,}, {fit} of them between two erases"
    table.add_row("kept state", f"{kept.flash_bytes:,}", "", about)
    if kept.past_sectors:
        table.add_row("", "", "", f"its first {kept.past_sectors} sectors hold past samples")
    if kept.endurance:
        table.add_row("", "", "", f"{kept.saves[0]:,} saves if each follows a reset, {kept.saves[1]:,} without, wear it out")


def steps(console: Console, costs: Sequence[StepCost]) -> None:
    """Each step's kernel, MACs and instructions."""
    console.print(escape(text(costs)), end="", soft_wrap=True)


def boards(console: Console, found: list[Board]) -> None:
    """The boards and what stands in for them in QEMU."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("board", "core", "RAM", "flash", "emulated by", ""):
        table.add_column(heading, justify="right" if heading in ("RAM", "flash") else "left", no_wrap=True)
    for b in found:
        machine = b.emulator.machine if b.emulator else "-"
        table.add_row(b.name, b.core, f"{b.ram_bytes // 1024} KB", f"{b.flash_bytes // 1024} KB", machine, escape(b.title))
    console.print(table)
