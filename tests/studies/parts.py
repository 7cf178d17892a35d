"""What each part of a device's life costs: RAM and flash of programs with and without it.

    PYTHONPATH=tests python -m studies.parts demo/digits.tflite --update full

A part's storage (past samples, held-out samples, the guard's copy of the state) is told apart from its code and variables.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import click

from tte import board as boards
from tte import project
from tte.compiler import Options
from tte.latent import frozen_cut
from tte.life import Life
from tte.training.autodiff import Numerics

_SAMPLES, _BYTES = 20, 16384
_PARTS = {
    "nothing": Life(),
    "keep": Life(keep=True),
    "resumable": Life(resumable=True),
    f"guard, {_SAMPLES} samples": Life(guard=_SAMPLES),
    f"replay, {_BYTES:,} bytes": Life(replay=_BYTES),
    "all of them": Life(keep=True, resumable=True, guard=_SAMPLES, replay=_BYTES),
}


@click.command(help="Print the table for MODEL.")
@click.argument("model", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--board", default="stm32f746")
@click.option("--update", default="full")
@click.option("--classes", type=int, default=0)
def main(model: Path, board: str, update: str, classes: int) -> None:
    """Builds a program for each part, and prints what it needs."""
    where, options = boards.load(board), Options(classes, update, numerics=Numerics(0.01, "r4"))
    print("| part | RAM | more | of it storage | flash | more |\n|---|---:|---:|---:|---:|---:|")
    before = None
    with tempfile.TemporaryDirectory() as folder:
        for part, life in _PARTS.items():
            made = project.build(model, where, replace(options, life=life), Path(folder) / "build")
            memory = made.memory
            before = before or memory
            latent = frozen_cut(made.compiled.plan).nbytes
            storage = life.replay + (life.guard * latent + memory.state_bytes if life.guard else 0)
            ram, flash = memory.ram_bytes - before.ram_bytes, memory.flash_bytes - before.flash_bytes
            print(f"| {part} | {memory.ram_bytes:,} | {ram:,} | {storage:,} | {memory.flash_bytes:,} | {flash:,} |", flush=True)


if __name__ == "__main__":
    main()
