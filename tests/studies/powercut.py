"""Power cuts while trained state is saved: how many, and what the next start found.

    PYTHONPATH=tests python -m studies.powercut [--lives 200] [--kills 2000]

The first table stops the model of flash memory at every erase and every programmed unit of a save, after as many random
lives (areas, sizes, saves, restarts, earlier cuts); the interrupted operation leaves junk. The second stops an emulated
device at random instructions (power_bench.py): one that does nothing but save, and the demo's digit reader, which trains
and saves in turn; what it finds when it is started again must be what the reference has at that step, byte for byte.
Whatever is neither the last complete state nor the one before ends the run with an error.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
from nets import ROOT
from power_bench import Cuts, cut_learning, cut_saving
from store_bench import build_harness, device_program, run_harness

from tte import board as boards
from tte import codegen, firmware, project
from tte.cli.learn import load_data
from tte.compiler import Compiled, Options
from tte.data import Sample
from tte.life import Life

_COLUMNS = {
    "programmed at once": "unit", "lives": "lives", "stops": "stops", "new state": "new", "the one before": "old",
    "none yet": "none", "cut again in the next save": "twice",
}  # fmt: skip


def measure(folder: Path, *, lives: int, seed: int) -> list[dict[str, str]]:
    """Counts by unit of programming, `lives` each, as the harness prints them."""
    compiler = shutil.which("gcc") or shutil.which("cc") or "cc"
    return run_harness(build_harness(folder, compiler, "-O2"), "power", seed, lives, timeout_s=3600)


def table(lines: list[dict[str, str]]) -> str:
    """The counts as a table in Markdown, with their sum."""
    rows = [[int(line[key]) for key in _COLUMNS.values()] for line in lines]
    total = ["all", *(f"{sum(row[i] for row in rows):,}" for i in range(1, len(_COLUMNS)))]
    texts = [list(_COLUMNS), ["---:"] * len(_COLUMNS), *([f"{value:,}" for value in row] for row in rows), total]
    return "\n".join(f"| {' | '.join(row)} |" for row in texts) + "\n"


_FOUND = {
    "device": "", "kills": "kills", "starting": "start", "training": "training", "saving": "saving",
    "saves reported": "saves", "the last reported": "last", "the one being saved": "newer", "none yet": "none",
    "wrong": "wrong", "different instructions": "places",
}  # fmt: skip


def cut(folder: Path, *, kills: int, seed: int, state: int) -> dict[str, Cuts]:
    """Counts by device, `kills` each."""
    machine = boards.load("mps2-an500")
    saver = device_program(folder / "saver", machine, emulated=True, state=state)
    saving = cut_saving(saver.elf, machine, folder / "saver", kills, seed, within=1000 * state)
    digits = folder / "digits"
    options = Options(update="full", life=Life(keep=True))
    project.build(ROOT / "demo" / "digits.tflite", boards.load("stm32f746"), options, digits)
    made, compiled, _ = project.load(digits)
    learner = firmware.build(made, made.env(emulated=True))
    (folder / "wire").mkdir()
    learning = cut_learning(learner.elf, made.board, folder / "wire", compiled, samples_of(compiled, seed), kills, seed)
    return {
        f"saves {state:,} bytes": saving,
        f"trains, saves {codegen.state_bytes(compiled.plan):,} bytes": learning,
    }


def samples_of(compiled: Compiled, seed: int) -> Callable[[], Sample]:
    """Draws the demo's digits, turned."""
    digits = load_data(compiled, ROOT / "demo" / "digits.npz", seed).turned(1)
    draw = random.Random(seed)
    return lambda: digits.train(draw.randrange(digits.train_count))


def table_of_cuts(found: dict[str, Cuts]) -> str:
    """The counts as a table in Markdown."""
    texts = [list(_FOUND), ["---", *["---:"] * (len(_FOUND) - 1)]]
    for device, counts in found.items():
        values = [getattr(counts, name) for name in _FOUND.values() if name]
        texts.append([device, *(f"{v if isinstance(v, int) else len(v):,}" for v in values)])
    return "\n".join(f"| {' | '.join(row)} |" for row in texts) + "\n"


@click.command()
@click.option("--lives", default=200, help="Random lives for each unit of programming.")
@click.option("--seed", default=1)
@click.option("--kills", default=0, help="Cuts of each emulated device.")
@click.option("--state", default=3001, help="Bytes of state of the one that only saves.")
def main(lives: int, seed: int, kills: int, state: int) -> None:
    """Prints the tables."""
    with tempfile.TemporaryDirectory(prefix="tte-powercut-") as temporary:
        folder = Path(temporary)
        if lives:
            click.echo(table(measure(folder, lives=lives, seed=seed)))
        if kills:
            found = cut(folder, kills=kills, seed=seed, state=state)
            click.echo(table_of_cuts(found))
            wrong = [line for counts in found.values() for line in counts.wrong]
            for line in wrong[:20]:
                click.echo(line, err=True)
            sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
