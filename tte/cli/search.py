"""`tte search` and `tte train-host`: which weights should learn, and what learning them gives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from tte import board as boards
from tte.board import Board
from tte.cli.learn import load_data
from tte.cli.life import life_options
from tte.cli.output import INTERRUPTED, Number, Output, Size, command
from tte.compiler import LOSSES, Options, compile_model
from tte.display import Display
from tte.errors import BoardError, DataError, ModelError
from tte.life import Life
from tte.run import Schedule
from tte.run import run as learn
from tte.search import result
from tte.search.bench import Workbench
from tte.search.candidate import Candidate, Found, Limits
from tte.search.host import HostDevice
from tte.search.pool import Pool
from tte.search.store import Store
from tte.search.strategies import STRATEGIES
from tte.search.task import division, task
from tte.search.twin import Twin
from tte.training.autodiff import MODE, Numerics

_DIR = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_TURNS = click.Choice(["0", "90", "180", "270"])
_MODES_OFFERED = ("r4", "r8", "sr")
_MODES = click.Choice(_MODES_OFFERED)
_SAMPLES = 4000  # of a whole run, if nobody says


@click.command()
@click.argument("model", type=_FILE)
@click.option("--data", "data_path", type=_FILE, required=True, help="An .npz with x_train, y_train, x_test, y_test or x, y.")
@click.option("--board", "board_name", required=True, help="A board's name (see `tte boards`), or a JSON file.")
@click.option("--classes", type=int, default=0, help="Replace the classifier by a fresh one with N outputs.")
@click.option("--ram", type=Size(), help="RAM to stay within: bytes, 96K, 1M.  [default: the board's]")
@click.option("--instructions", type=click.IntRange(1), help="Predicted instructions of a training step to stay within.")
@click.option("--strategy", type=click.Choice(list(STRATEGIES)), default="auto", show_default=True, help="How to search.")
@click.option("--samples", type=click.IntRange(1), help="Training steps of a whole run.  [default: all samples, 4000 at most]")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training samples of a whole run, instead of --samples.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Seeds of the final measurements.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the search and its split.")
@click.option("--workers", type=click.IntRange(0), default=0, help="Processes.  [default: one for each core]")
@click.option("--scheduler", default="", help="Address of a Dask scheduler whose workers share this computer's files.")
@click.option("--learning-rate", type=float, help="Take this rate everywhere, instead of one by a range test.")
@click.option("--mode", type=_MODES, help="Residual kept for each weight.  [default: whichever learns best]")
@click.option("--loss", type=click.Choice(LOSSES), default="auto", show_default=True, help="What training minimises.")
@click.option("--head-seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of a fresh head.")
@click.option("--turn", type=_TURNS, default="0", help="Turn the images first.")
@click.option("--rows", is_flag=True, help="The device's input comes row by row.")
@life_options
@click.option("--out", type=_FILE, help="The scheme to write.  [default: FOLDER/scheme.toml]")
@click.option("--folder", type=_DIR, help="Where measurements are kept.  [default: build/search-MODEL]")
@command
def search(output: Output, model: Path, data_path: Path, board_name: str, classes: int, ram: int | None,
           instructions: int | None, strategy: str, samples: int | None, epochs: int | None, seeds: int, seed: int,
           workers: int, scheduler: str, learning_rate: float | None, mode: str | None, loss: str, head_seed: int,
           turn: str, rows: bool, life: Life, out: Path | None, folder: Path | None) -> int:  # fmt: skip
    """Find the update scheme for MODEL that fits a board and learns best. Stopped, the same command goes on."""
    board = boards.load(board_name)
    if samples and epochs:
        raise DataError("both --samples and --epochs say how long a whole run is", where="tte search", remedy="give one of them")
    folder = folder or Path("build") / f"search-{model.stem}"
    rate = _checked_rate(learning_rate) if learning_rate is not None else Numerics.rate
    job = task(
        model, data_path, folder, classes=classes, head_seed=head_seed, loss=loss, mode=mode or MODE, turns=int(turn) // 90,
        seed=seed,
    )  # fmt: skip
    parts = division(job)
    for note in parts.dataset.notes:
        output.say(note)
    output.say(f"{len(parts.validation):,} training samples are kept to validate on, the test set for the end")
    count = len(parts.training)
    steps = epochs * count if epochs else samples or min(count, _SAMPLES)
    modes = () if mode else tuple(m for m in _MODES_OFFERED if m != MODE)
    limits = Limits(min(ram or board.ram_bytes, board.ram_bytes), instructions, steps, seeds, modes)
    output.say(f"a whole run takes {steps:,} training steps on {min(count, steps):,} samples")
    with Store(folder / "answers.jsonl") as store, _pool(workers, scheduler, output) as pool:
        try:
            bench = Workbench(
                job, board, store, pool, rate, fixed_rate=learning_rate is not None, samples=steps, rows=rows,
                life=life, say=output.say,
            )
            _refuse_unless_possible(bench, board, limits)
            found = STRATEGIES[strategy](bench, limits, seed)
            facts = result.Evidence(
                model.name, job.model_hash, data_path.name, classes, strategy, seed, limits, board.title, rate, mode or MODE,
                len(parts.validation), life.words,
            )  # fmt: skip
            _report(output, bench, found, facts, out or folder / "scheme.toml")
        except KeyboardInterrupt:
            kept = f"{len(store):,} answers are kept in {escape(str(folder))}"
            output.notes.print(f"[bold red]stopped[/]: {kept}; the same command goes on from them", soft_wrap=True)
            return INTERRUPTED
    return 0


@contextlib.contextmanager
def _pool(workers: int, scheduler: str, output: Output) -> Iterator[Pool]:
    pool = Pool(workers, scheduler, output.notes)
    try:
        yield pool
    finally:
        pool.close()


def _checked_rate(rate: float) -> float:
    if not 0 < rate < 1000:
        raise ModelError(f"learning rate {rate}", where="--learning-rate", limit="above 0, below 1000")
    return rate


def _refuse_unless_possible(bench: Workbench, board: Board, limits: Limits) -> None:
    """Raises BoardError when even the smallest scheme, the head alone, exceeds the limits."""
    least = bench.price([Candidate()])[0]
    if limits.instructions and board.target == "portable":
        what = "the planner predicts instructions only for cores with SIMD instructions"
        raise BoardError(what, where=board.name, remedy="search without --instructions")
    if limits.ram_bytes is not None and least.ram_bytes > limits.ram_bytes:
        raise BoardError(
            f"the smallest scheme (the head alone) needs {least.ram_bytes:,} bytes of RAM",
            where=board.name, limit=f"{limits.ram_bytes:,} bytes of RAM", remedy="a higher --ram, --rows, or a smaller model",
        )  # fmt: skip
    if not limits.allow(least):
        raise BoardError(
            f"the smallest scheme (the head alone) takes {least.instructions:,} instructions a training step",
            where=board.name, limit=f"{limits.instructions or 0:,} instructions", remedy="a higher --instructions",
        )  # fmt: skip


def _report(output: Output, bench: Workbench, found: Found, facts: result.Evidence, path: Path) -> None:
    """The final choice on the test set, files, and what to do with them."""
    seeds, passes = range(facts.limits.seeds), max(1, facts.limits.samples // len(division(bench.task).training))
    rate = bench.class_rate([found.candidate])[0]
    tested = bench.final([(found.candidate, s, rate) for s in seeds], passes)
    price = bench.price([found.candidate])[0]
    notes = (
        *found.notes,
        f"learning rate {rate:g}, {'as asked for' if bench.fixed_rate else 'chosen on training samples'}",
        f"accuracy on the test set {_spread(tested)} after {passes} pass{'es' * (passes > 1)} over all training samples, "
        f"{len(seeds)} seeds",
    )
    found = replace(found, notes=notes)
    written = result.write(path, found, bench.layers, facts, rate)
    shown = output.console
    weights = len(found.candidate.weights)
    shown.print(f"[bold]{facts.strategy}[/]: biases of {len(found.candidate.biases)} layers, weights of {weights}, and the head")
    shown.print(f"RAM {price.ram_bytes:,} bytes, {price.instructions:,} instructions predicted a training step")
    for note in notes:
        shown.print(escape(note), soft_wrap=True)
    for file in written:
        shown.print(f"written {escape(str(file))}", soft_wrap=True)
    output.result({**result.as_dict(found, facts), "learning_rate": rate, "test_accuracies": tested,
                   "files": [str(f) for f in written]})  # fmt: skip


def _spread(values: list[float]) -> str:
    mean = sum(values) / len(values)
    deviation = (sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)) ** 0.5
    return f"{100 * mean:.1f} % (standard deviation {100 * deviation:.1f})"


@click.command(name="train-host")
@click.argument("model", type=_FILE)
@click.option("--data", "data_path", type=_FILE, required=True, help="An .npz with x_train, y_train, x_test, y_test or x, y.")
@click.option("--classes", type=int, default=0, help="Replace the classifier by a fresh one with N outputs.")
@click.option("--update", default="last", show_default=True, help="What trains: last, bias, full, or a TOML file.")
@click.option("--epochs", type=click.IntRange(1), default=1, show_default=True, help="Passes over the training samples.")
@click.option("--steps", type=click.IntRange(1), help="Training steps, instead of epochs.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Order, split and random numbers.")
@click.option("--learning-rate", type=float, help="Base learning rate.  [default: the scheme's, or 0.01]")
@click.option("--rate", type=Number(0, 1, min_open=True), default=1.0, show_default=True,
              help="Largest factor on it.")  # fmt: skip
@click.option("--mode", type=_MODES, help="Residual kept for each weight.  [default: the scheme's, or r4]")
@click.option("--batch", type=click.IntRange(1, 65535), default=1, show_default=True, help="Samples an update sums.")
@click.option("--loss", type=click.Choice(LOSSES), default="auto", show_default=True, help="What training minimises.")
@click.option("--head-seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of a fresh head.")
@click.option("--eval-every", type=click.IntRange(1), help="Training steps between evaluations.  [default: a tenth]")
@click.option("--eval-samples", type=click.IntRange(1), default=200, show_default=True, help="Samples of those.")
@click.option("--final-samples", type=click.IntRange(1), help="Held-out samples before and after.  [default: all]")
@click.option("--turn", type=_TURNS, default="0", help="Turn the images first.")
@click.option("--folder", type=_DIR, default=Path("build/host"), show_default=True, help="Where programs are kept.")
@command
def train_host(output: Output, model: Path, data_path: Path, classes: int, update: str, learning_rate: float | None,
               rate: float, mode: str | None, batch: int, loss: str, head_seed: int, seed: int, turn: str, folder: Path,
               **course: Any) -> int:  # fmt: skip
    """Train MODEL on this computer by an update scheme, with the integers of the device: what it will reach."""
    if update == "none":
        raise ModelError("nothing would train", where="--update none", remedy="last, bias, full, or a TOML file")
    numerics = Numerics(0.0 if learning_rate is None else _checked_rate(learning_rate), mode or "", batch)
    compiled = compile_model(model, Options(classes, update, loss, head_seed, numerics, stream=False))
    samples = load_data(compiled, data_path, seed).turned(int(turn) // 90)
    for note in samples.notes:
        output.say(note)
    twin = Twin(compiled, folder)
    schedule = Schedule(peak=max(1, round(rate * 32768)))
    with Display(output.notes) as display:
        device = HostDevice(twin, compiled.updates, seed & 0xFFFFFFFF)
        log = learn(device, samples, seed=seed, schedule=schedule, loss_scale=compiled.loss_scale, on_event=display, **course)
    for label, first, last in (
        ("accuracy", log.accuracy_before, log.accuracy_after),
        ("mean squared error", log.error_before, log.error_after),
    ):
        if first is not None:
            shown = [f"{v:.1%}" if label == "accuracy" else f"{v:.5g}" for v in (first, last) if v is not None]
            output.console.print(f"{label}: {' -> '.join(shown)} after {log.steps:,} steps in {log.seconds:.1f} s")
    output.result({"model": model.name, "data": data_path.name, "scheme": compiled.scheme, **log.as_dict()})
    return INTERRUPTED if log.interrupted else 0
