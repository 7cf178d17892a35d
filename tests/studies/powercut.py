"""Power cuts while trained state is saved: how many, and what the next start found.

    PYTHONPATH=tests python -m studies.powercut [--lives 200] [--kills 2000 --board mps2-an500]

The first table stops the model of flash memory at every erase and every programmed unit of a save, after as many random
lives (areas, sizes, saves, restarts, earlier cuts); the interrupted operation leaves junk. The second kills the emulator at
random times while the device saves without a pause. Whatever is neither the last complete state nor the one before ends
the run with an error.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import click
from store_bench import build_harness, device_program, kill_often, run_harness

from tte import board as boards

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


@click.command()
@click.option("--lives", default=200, help="Random lives for each unit of programming.")
@click.option("--seed", default=1)
@click.option("--kills", default=0, help="Kills of the emulator.")
@click.option("--state", default=3001, help="Bytes of state that the emulated device saves.")
@click.option("--board", "board_name", default="mps2-an500")
def main(lives: int, seed: int, kills: int, state: int, board_name: str) -> None:
    """Prints the tables."""
    with tempfile.TemporaryDirectory(prefix="tte-powercut-") as temporary:
        folder = Path(temporary)
        if lives:
            click.echo(table(measure(folder, lives=lives, seed=seed)))
        if kills:
            loaded = boards.load(board_name)
            built = device_program(folder / "project", loaded, emulated=True, state=state)
            counts = kill_often(built.elf, loaded, folder, kills, seed)
            click.echo("| board | bytes of state | saves | kills | new state | the one before | none yet | wrong |")
            click.echo("|---|---:|---:|---:|---:|---:|---:|---:|")
            found = (counts.saves, counts.kills, counts.new, counts.old, counts.none, len(counts.wrong))
            click.echo(f"| {board_name} | {state:,} | " + " | ".join(f"{value:,}" for value in found) + " |")
            for line in counts.wrong[:20]:
                click.echo(line, err=True)
            sys.exit(1 if counts.wrong else 0)


if __name__ == "__main__":
    main()
