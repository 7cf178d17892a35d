"""Schemes side by side: RAM, instructions, and accuracy on the test set with int8 and with float training, each at its best rate.

    PYTHONPATH=tests python -m studies.table MODEL --data D.npz --classes 10 --board stm32f746 --update last --update S.toml

Learning rates are chosen on training samples alone: for int8 by a range test, then by whole runs with all seeds at half and
twice the rate while that is better; for float from there by the loss of whole runs with one seed. The test set is used once,
after training on all training samples.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

from studies import floats
from tte import board as boards
from tte.errors import TteError
from tte.search.bench import Workbench
from tte.search.candidate import Candidate, Limits
from tte.search.desk import Desk
from tte.search.pool import Pool
from tte.search.refine import at_other_rates
from tte.search.store import Store
from tte.search.task import Task, division, forward, task
from tte.training import scheme as schemes
from tte.training.autodiff import Numerics
from tte.training.head import find


@dataclass(frozen=True)
class Row:
    """A scheme's figures; accuracies (0..1) of the test set by seed, `float_*` None where it was not asked for."""

    scheme: str
    ram_bytes: int
    instructions: int
    rate: float
    accuracies: tuple[float, ...]
    float_rate: float | None = None
    float_accuracies: tuple[float, ...] = ()


def candidate_of(job: Task, spec: str) -> Candidate:
    """A scheme by name or file as a candidate; its learning rate is left open, its residual mode kept."""
    graph = forward(job)
    head = find(graph).node
    assert head is not None
    scheme = schemes.load(spec, graph)
    found = floats.candidate_of(schemes.resolve(graph, scheme, head), head.name)
    return Candidate(found.biases, found.weights, scheme.mode if scheme.mode != job.mode else "")


def tuned(bench: Workbench, limits: Limits, candidates: dict[str, Candidate]) -> dict[str, tuple[Candidate, float]]:
    """Each candidate with its learning rate."""
    desk = Desk(bench, limits, 0)
    start = bench.rates([(c, 0) for c in candidates.values()])
    first = {n: replace(c, rate=r) for (n, c), r in zip(candidates.items(), start, strict=True)}
    measured = desk.measure(first)
    everything = [*measured, *at_other_rates(desk, measured)]
    found = {}
    for name, candidate in candidates.items():
        same = [m for m in everything if m.candidate.structure == candidate.structure]
        best = max(same, key=desk.worth)
        found[name] = (candidate, best.candidate.rate)
    return found


def float_run(job: Task, candidate: Candidate, seed: int, rate: float, samples: int, final: bool) -> dict[str, float]:
    """A job: accuracy (0..1), and mean loss (nats) of the last quarter of the samples, of float training."""
    found = floats.course(job, candidate)
    accuracy = found.train(seed, rate, samples, final)
    return {"accuracy": accuracy, "loss": float(np.mean(found.losses[-max(1, len(found.losses) // 4) :]))}


class Floats:
    """Float runs in parallel, each once: answers are kept beside the int8 ones."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench

    def runs(self, asked: Sequence[tuple[Candidate, int, float, int, bool]]) -> list[dict[str, float]]:
        """Answers to (candidate, seed, rate, samples, final)."""
        bench = self._bench
        names = [["float", bench.task.identity, c.structure.key, *rest] for c, *rest in asked]
        new = [i for i, name in enumerate(names) if name not in bench.store]
        jobs = [(bench.task, replace(asked[i][0].structure, mode=""), *asked[i][1:]) for i in new]
        for done, answer in bench.pool.run("float", float_run, jobs) if jobs else ():
            bench.store.put(names[new[done]], answer)
        return [bench.store.get(name) for name in names]

    def rate(self, candidate: Candidate, samples: int, start: float) -> float:
        """The float side's rate: of whole runs with seed 0 at `start`, half and twice of it, on while that is better, the one
        of the lowest loss."""
        known: dict[float, float] = {}
        best = start
        while True:
            tried = [r for r in (best / 2, best, best * 2) if r not in known]
            answers = self.runs([(candidate, 0, r, samples, False) for r in tried])
            known |= {r: a["loss"] if math.isfinite(a["loss"]) else math.inf for r, a in zip(tried, answers, strict=True)}
            better = min(known, key=lambda r: (known[r], r))
            if better == best:
                return best
            best = better


def rows(
    bench: Workbench, limits: Limits, chosen: dict[str, Candidate], with_float: bool, say: Callable[[str], None]
) -> list[Row]:
    """The table; `say` gets a line for each row as it comes."""
    parts, found = division(bench.task), []
    passes = max(1, limits.samples // len(parts.training))
    by_name = tuned(bench, limits, chosen)
    seeds = range(limits.seeds)
    asked = [(c, s, rate) for c, rate in by_name.values() for s in seeds]
    tested = bench.final(asked, passes)
    prices = bench.price([c for c, _ in by_name.values()])
    for i, ((name, (candidate, rate)), price) in enumerate(zip(by_name.items(), prices, strict=True)):
        accuracies = tuple(tested[i * limits.seeds : (i + 1) * limits.seeds])
        real, reals = None, ()
        if with_float:
            real = Floats(bench).rate(candidate, limits.samples, rate)
            count = passes * parts.training.stop
            reals = tuple(a["accuracy"] for a in Floats(bench).runs([(candidate, s, real, count, True) for s in seeds]))
        found.append(Row(name, price.ram_bytes, price.instructions, rate, accuracies, real, reals))
        say(line(found[-1]))
    return found


def line(row: Row) -> str:
    """A row in Markdown."""
    cells = [row.scheme, f"{row.ram_bytes:,}", f"{row.instructions / 1e6:.1f} M", f"{row.rate:g}", _spread(row.accuracies)]
    cells += [f"{row.float_rate:g}", _spread(row.float_accuracies)] if row.float_rate else []
    return f"| {' | '.join(cells)} |"


def _spread(values: tuple[float, ...]) -> str:
    each = "/".join(f"{100 * v:.1f}" for v in values)
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=min(1, len(values) - 1)):.1f} ({each})"


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--classes", type=int, default=0)
@click.option("--board", default="stm32f746")
@click.option("--update", multiple=True, default=("last", "bias", "full"), help="last, bias, full, or TOML files.")
@click.option("--samples", type=int, help="Training steps of a whole run.  [default: all, 4000 at most]")
@click.option("--epochs", type=int, help="Passes of a whole run, instead of --samples.")
@click.option("--seeds", type=int, default=3)
@click.option("--float", "with_float", is_flag=True, help="Train in float, too.")
@click.option("--workers", type=int, default=0)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("build/table"))
@click.option("--out", type=click.Path(path_type=Path), help="A JSON file for the figures.")
def main(model: Path, data: Path, classes: int, board: str, update: tuple[str, ...], samples: int | None,
         epochs: int | None, seeds: int, with_float: bool, workers: int, folder: Path, out: Path | None) -> None:  # fmt: skip
    """Print the table of schemes for MODEL."""
    pool = Pool(workers)
    try:
        job = task(model, data, folder, classes=classes)
        count = len(division(job).training)
        steps = epochs * count if epochs else samples or min(count, 4000)
        with Store(folder / "answers.jsonl") as store:
            bench = Workbench(job, boards.load(board), store, pool, Numerics.rate, samples=steps, say=print)
            chosen = {Path(u).stem: candidate_of(job, u) for u in update}
            found = rows(bench, Limits(None, None, steps, seeds), chosen, with_float, lambda text: print(text, flush=True))
        if out:
            out.write_text(json.dumps([vars(r) for r in found], indent=1) + "\n", encoding="utf-8")
    except TteError as error:
        sys.exit(f"error: {error}")
    finally:
        pool.close()


if __name__ == "__main__":
    main()
