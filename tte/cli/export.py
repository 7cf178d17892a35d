"""`tte export`: what a device has learnt becomes a .tflite."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
from rich.markup import escape

from tte import export as exports
from tte import files
from tte.cli.output import Output, command
from tte.device import statefile

_DIR = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("folder", type=_DIR)
@click.option("--state", type=_FILE, required=True, help="What was learnt: a file that `tte run --save-state` wrote.")
@click.option("--out", type=_FILE, help="The .tflite file to write.  [default: FOLDER/learnt.tflite]")
@command
def export(output: Output, folder: Path, state: Path, out: Path | None) -> int:
    """Put what a device learnt into the model that FOLDER was built from: a .tflite with the device's own answers."""
    made = exports.export(folder, statefile.load(state), str(state))
    path = out or folder / "learnt.tflite"
    files.write(path, made.data)
    counts = [sum(getattr(layer, name) for layer in made.layers) for name in ("weights", "of_weights", "biases", "of_biases")]
    output.console.print(
        "{} layers, {:,} of {:,} weights and {:,} of {:,} biases changed in {:,} steps".format(
            len(made.layers), *counts, made.steps
        )
    )
    output.console.print(f"written to {escape(str(path))}", soft_wrap=True)
    facts = {"layers": [asdict(layer) for layer in made.layers], "steps": made.steps, "bytes": len(made.data)}
    output.result({**facts, "out": str(path)})
    return 0
