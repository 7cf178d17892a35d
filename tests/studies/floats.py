"""Float training with the same update scheme, beside that of the device's integers: what int8 costs.

    PYTHONPATH=tests python -m studies.floats MODEL --data D.npz --classes 10 --update SCHEME.toml --seeds 3

Both start from the int8 model's weights, see the same features of the frozen layers, the same samples in the same order,
and the same schedule of the learning rate; both are plain SGD, a sample a step. The float side rounds nothing behind the
frozen layers: weights, activations, errors and updates are float32.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from studies.floatlayers import Real
from studies.floatnet import FloatNet, dequantised
from tte.errors import ModelError, TteError
from tte.ir import TensorType
from tte.run import FULL_RATE, Schedule
from tte.search import rate as rates
from tte.search import worker
from tte.search.candidate import Candidate
from tte.search.task import Task, division, forward, head_name, task
from tte.training import scheme as schemes
from tte.training.autodiff import Numerics
from tte.training.head import find
from tte.training.scheme import LayerUpdate

Chosen = Candidate | Mapping[str, LayerUpdate]
_BATCH = 50  # samples that are tested at once


class Course:
    """A task's float network for what trains; one seed after the other.

    Args:
        top: rate of the compiled program that computes the features, which do not depend on it.
        saturate: see `studies.floatops.limits`.

    Raises:
        TteError: the model, the data or the scheme do not fit, or an operator has no float counterpart.
    """

    def __init__(self, job: Task, chosen: Chosen, top: float = Numerics.rate, saturate: bool = True) -> None:
        head = head_name(job)
        updates = dict(chosen.updates(head) if isinstance(chosen, Candidate) else chosen)
        self.parts, twin = division(job), worker.program(job, job.mode, top)
        way = worker.way_of(job, job.mode, top, updates)
        found = worker.features_of(job, twin, way)
        for chunk in found.missing(range(self.parts.test.stop)):
            worker.compute_features(job, job.mode, top, updates, chunk)
        self.types = {t: twin.graph.type(t) for t in way.features}
        if odd := [name for name, t in self.types.items() if t.dtype != "int8"]:
            raise ModelError(f"a feature of type {self.types[odd[0]].dtype}", where=odd[0], limit="int8")
        self.features, graph = found.read(), forward(job)
        self.classes = graph.type(find(graph).logits).elements
        self.net = FloatNet(graph, find(graph), way.features, updates, saturate)
        self.losses: list[float] = []

    def values(self, numbers: Sequence[int] | slice) -> dict[str, Real]:
        """The features of samples, real."""
        return _split(self.features[numbers], self.types)

    def train(self, seed: int, rate: float, samples: int = 0, final: bool = True) -> float:
        """As `tte.search.worker.train`: training, then the accuracy (0..1) on the test set or the validation samples.

        Args:
            samples: training steps, as there; 0: one pass.
        """
        parts = self.parts
        chosen = range(parts.training.stop) if final else parts.training[: samples or None]
        self.teach(chosen, seed, rate, samples)
        return self.accuracy(parts.test if final else parts.validation)

    def teach(self, chosen: range, seed: int, rate: float, steps: int = 0) -> None:
        """Training on the chosen samples from the initial weights, one pass unless `steps` says so; fills `losses` (nats)."""
        order, factors = worker.course(chosen, seed, Schedule(), steps)
        self.net.reset()
        self.losses = []
        with np.errstate(all="ignore"):  # a rate that is too high may diverge
            for number, factor in zip(order.tolist(), factors.tolist(), strict=True):
                label = int(self.parts.labels[number])
                self.losses.append(self.net.step(self.values([number]), label, rate * factor / FULL_RATE))

    def accuracy(self, numbers: range) -> float:
        """The share of samples whose largest logit is their label's."""
        right = 0
        for first in range(numbers.start, numbers.stop, _BATCH):
            part = slice(first, min(first + _BATCH, numbers.stop))
            with np.errstate(all="ignore"):
                logits = self.net.forward(self.values(part))
            right += int((logits.argmax(1) == self.parts.labels[part]).sum())
        return right / len(numbers)

    def probe(self, seed: int, rate: float) -> float:
        """A run of the range test: mean loss (nats) of its last quarter."""
        self.teach(self.parts.training[: rates.STEPS], seed, rate)
        found = float(np.mean(self.losses[-max(1, len(self.losses) // 4) :]))
        # A run that diverged must compare as worse than any that did not.
        return found if math.isfinite(found) else sys.float_info.max

    def best_rate(self, base: float = Numerics.rate, seed: int = 0) -> float:
        """The rate by the search's range test around a base rate."""
        return _best_rate(base, lambda rate: self.probe(seed, rate))


def _best_rate(base: float, loss: Callable[[float], float]) -> float:
    """The range test of `tte.search.rate`, as `tte.search.bench.Workbench.rates` makes it."""
    tried = rates.rates(base)
    losses: dict[int, float] = {}
    while wanted := rates.wanted(losses):
        losses |= {i: loss(tried[i]) for i in wanted}
    return tried[rates.choose(losses)]


def _split(rows: NDArray[np.uint8], types: Mapping[str, TensorType]) -> dict[str, Real]:
    found, at = {}, 0
    for name, t in types.items():
        part = np.ascontiguousarray(rows[:, at : at + t.nbytes]).view(np.int8)
        found[name] = dequantised(t, part.reshape(len(rows), *t.shape), np.float32)
        at += t.nbytes
    return found


@functools.lru_cache(maxsize=2)
def _course(job: Task, chosen: tuple[tuple[str, LayerUpdate], ...], top: float, saturate: bool) -> Course:
    return Course(job, dict(chosen), top, saturate)


def course(job: Task, chosen: Chosen, top: float = Numerics.rate, saturate: bool = True) -> Course:
    """A `Course`; the latest are kept."""
    updates = chosen.updates(head_name(job)) if isinstance(chosen, Candidate) else chosen
    return _course(job, tuple(updates.items()), top, saturate)


def accuracy(
    job: Task, chosen: Chosen, seed: int, rate: float, samples: int = 0, final: bool = True, top: float = Numerics.rate,
    saturate: bool = True,
) -> float:  # fmt: skip
    """Accuracy (0..1) of float training, as `tte.search.worker.train` gives it for int8; see `Course`."""
    return course(job, chosen, top, saturate).train(seed, rate, samples, final)


def best_rate(
    job: Task,
    chosen: Chosen,
    base: float = Numerics.rate,
    seed: int = 0,
    top: float = Numerics.rate,
    saturate: bool = True,
) -> float:
    """The float side's learning rate by the range test of `tte.search.rate`, on training samples."""
    return course(job, chosen, top, saturate).best_rate(base, seed)


def int8_rate(job: Task, candidate: Candidate, base: float, seed: int = 0) -> float:
    """The int8 side's learning rate by the same test."""
    top = rates.rates(base)[0]
    steps = min(rates.STEPS, len(division(job).training))

    def loss(rate: float) -> float:
        return float(worker.train(job, top, round(math.log2(top / rate)), candidate, seed, steps)["loss"])

    return _best_rate(base, loss)


def candidate_of(updates: Mapping[str, LayerUpdate], head: str) -> Candidate:
    """A resolved scheme as the search's candidate.

    Raises:
        ModelError: it is none: the head does not train whole, or channels are drawn anew.
    """
    rest = {n: u for n, u in updates.items() if n != head}
    weights = tuple((n, u.channels) for n, u in sorted(rest.items()) if u.weights)
    found = Candidate(tuple(sorted(n for n, u in rest.items() if u.bias)), weights)
    if found.updates(head) != updates:
        remedy = "a scheme without `head = false` and without `redraw`"
        raise ModelError("the scheme is no candidate of a search", where="--update", remedy=remedy)
    return found


def compare(job: Task, candidate: Candidate, seeds: int, rate: float | None, saturate: bool) -> None:
    """Trains both sides for each seed and prints accuracies on the test set.

    Args:
        rate: of both; None: each side's own, by range test with seed 0.
    """
    base = rate or Numerics.rate
    top = rate or rates.rates(base)[0]
    floats = course(job, candidate, top, saturate)
    int8 = rate or int8_rate(job, candidate, base)
    real = rate or floats.best_rate(base)
    print(f"learning rate {int8:g} int8, {real:g} float")
    found: dict[str, list[float]] = {"int8": [], "float": []}
    halvings = round(math.log2(top / int8))
    for seed in range(seeds):
        found["int8"].append(worker.train(job, top, halvings, candidate, seed, 0, final=True)["accuracy"])
        started = time.monotonic()
        found["float"].append(floats.train(seed, real))
        seconds = time.monotonic() - started
        text = ", ".join(f"{side} {100 * values[-1]:.2f} %" for side, values in found.items())
        print(f"seed {seed}: {text}; {len(floats.losses):,} float steps and the test in {seconds:.1f} s", flush=True)
    for side, values in found.items():
        print(
            f"{side}: {100 * np.mean(values):.2f} %, standard deviation {100 * np.std(values, ddof=min(1, seeds - 1)):.2f}"
        )
    print(f"float - int8: {100 * (np.mean(found['float']) - np.mean(found['int8'])):+.2f} points")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.floats", description=__doc__.split("\n")[0] if __doc__ else ""
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--classes", type=int, default=0)
    parser.add_argument("--update", default="last", help="last, bias, full, or a TOML file (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--learning-rate", type=float, help="of both sides; else the scheme's, or each side's own by range test"
    )
    parser.add_argument("--mode", default="r4", choices=("r4", "r8", "sr"))
    parser.add_argument("--turn", type=int, default=0, help="quarter turns of the images")
    parser.add_argument(
        "--unlimited", action="store_true", help="the ends of int8 limit no float value but activations"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("build/floats"), help="where programs and features are kept"
    )
    asked = parser.parse_args(arguments)
    if asked.seeds < 1 or (asked.learning_rate is not None and asked.learning_rate <= 0):
        parser.error("at least one seed, and a learning rate above 0")
    try:
        job = task(asked.model, asked.data, asked.folder, classes=asked.classes, mode=asked.mode, turns=asked.turn)
        graph = forward(job)
        scheme = schemes.load(asked.update, graph)
        candidate = candidate_of(schemes.resolve(graph, scheme, find(graph).node), head_name(job))
        rate = asked.learning_rate or scheme.rate or None
        compare(job, replace(candidate, mode=scheme.mode), asked.seeds, rate, not asked.unlimited)
    except TteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
