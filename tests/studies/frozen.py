"""Learning behind the frozen cut, as fast as this computer can: what guard.py and replay.py share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from tte.compiler import Options, compile_model
from tte.device.learner import FULL_FACTOR
from tte.latent import frozen_cut
from tte.search.task import Division, Task, compile_whole, division, forward, task
from tte.search.twin import Route, Twin, route
from tte.training import scheme as schemes
from tte.training.autodiff import Numerics
from tte.training.head import find
from tte.training.scheme import LayerUpdate

_AT_ONCE = 500
Numbers = NDArray[np.int64]


@dataclass
class Frozen:
    """A model whose frozen part has seen every sample once.

    Args:
        rate: the learning rate, steady as in the field.
    """

    job: Task
    update: str
    rate: float

    @cached_property
    def updates(self) -> dict[str, LayerUpdate]:
        """What trains, by layer."""
        graph = forward(self.job)
        return schemes.resolve(graph, schemes.load(self.update, graph), find(graph).node)

    @cached_property
    def twin(self) -> Twin:
        """The program in which every scheme is a choice of switches."""
        return Twin(compile_whole(self.job, self.rate), Path(self.job.folder))

    @cached_property
    def latent_bytes(self) -> int:
        """What a device of this scheme holds of a sample."""
        options = Options(self.job.classes, self.update, numerics=Numerics(self.rate), stream=False)
        return frozen_cut(compile_model(self.job.model, options).plan).nbytes

    @cached_property
    def way(self) -> Route:
        """The steps behind the frozen part."""
        return route(self.twin.plan, self.updates)

    @cached_property
    def division(self) -> Division:
        """The samples: learnt from, and the test set."""
        return division(self.job)

    @property
    def learn(self) -> Numbers:
        """Numbers of the samples to learn from."""
        return np.arange(self.division.test.start)

    @property
    def test(self) -> Numbers:
        """Numbers of the test set."""
        return np.arange(self.division.test.start, self.division.test.stop)

    @cached_property
    def features(self) -> NDArray[np.uint8]:
        """What passes into the trained part, of every sample; computed once and kept in the task's folder."""
        kept = Path(self.job.folder) / f"frozen-{self.job.identity}-{self.way.first}.npy"
        if not kept.is_file():
            end = self.division.test.stop
            parts = [range(at, min(at + _AT_ONCE, end)) for at in range(0, end, _AT_ONCE)]
            np.save(kept, np.concatenate([self.twin.features(self.division.samples(part), self.way) for part in parts]))
        found: NDArray[np.uint8] = np.load(kept)
        return found

    def train(self, order: Sequence[int] | Numbers, labels: NDArray[np.int32], factor: int = FULL_FACTOR) -> None:
        """Learns from samples, one after the other, at the rate times the factor (Q15)."""
        steps = np.asarray(order, np.uint32)
        self.twin.train(self.features, labels, steps, np.full(len(steps), factor, np.uint16), self.way, self.updates)

    def right(self, samples: Numbers) -> int:
        """How many it answers rightly."""
        return round(self.twin.accuracy(self.features[samples], self.division.labels[samples], self.way) * len(samples))

    def accuracy(self, samples: Numbers) -> float:
        """The same as a share, in percent."""
        return 100 * self.right(samples) / len(samples)


def options(function: Callable[..., None]) -> Callable[..., None]:
    """The command line's options that both studies have; they get `frozen` and `seeds`."""

    @click.command()
    @click.argument("model", type=click.Path(exists=True, path_type=Path))
    @click.option("--data", "samples", type=click.Path(exists=True, path_type=Path), required=True)
    @click.option("--classes", default=0)
    @click.option("--turn", default=0, help="Degrees by which images are turned.")
    @click.option("--update", default="last", show_default=True)
    @click.option("--learning-rate", "rate", default=0.005, show_default=True)
    @click.option("--seeds", default=3, show_default=True)
    @click.option("--folder", type=click.Path(path_type=Path), default=Path("build/studies"), show_default=True)
    def command(
        model: Path, samples: Path, classes: int, turn: int, update: str, rate: float, seeds: int, folder: Path
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        job = task(model, samples, folder, classes=classes, turns=turn // 90)
        function(Frozen(job, update, rate), range(seeds))

    return command


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first row is the head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
