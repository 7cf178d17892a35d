"""Label noise, with and without the guard: what a device knows before, right after, and long after wrong labels.

    PYTHONPATH=tests python -m studies.guard ../shared/models/mcunet-5fps.tflite --classes 10 --data ../shared/data/cifar10_5k.npz

It learns at a steady rate. In the middle third of the samples 40 % of the labels are wrong: any other class at random, or
always the first. The guard's decisions are the device's (tte/device/learner.py); accuracies are of the test set, in percent,
means over the seeds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from studies.frozen import Frozen, options, table
from tte.device.learner import FULL_FACTOR, Guard, Verdict

THIRD, EVERY, SHARE = 1500, 50, 0.4
HELD_OUT, LIMIT = 100, 3


def noisy(frozen: Frozen, order: NDArray[np.int64], kind: str, random: np.random.Generator) -> NDArray[np.int32]:
    """The label that each of the samples comes with."""
    labels = frozen.division.labels[order].copy()
    classes = int(frozen.division.labels.max()) + 1
    wrong = random.random(len(order)) < SHARE
    wrong[:THIRD] = wrong[2 * THIRD :] = False
    others = (labels + random.integers(1, classes, len(order))) % classes
    if kind != "none":
        labels[wrong] = others[wrong] if kind == "any other" else 0
    return labels


def run(frozen: Frozen, seed: int, kind: str, guarded: bool, held_out: int = HELD_OUT) -> tuple[list[float], int]:
    """Accuracy at the end of each third, and how often learning was taken back."""
    random = np.random.default_rng([seed, 7])
    mixed = random.permutation(frozen.learn)
    held, stream = mixed[:held_out], mixed[held_out:]
    order = np.concatenate([random.permutation(stream) for _ in range(3 * THIRD // len(stream) + 1)])[: 3 * THIRD]
    given = noisy(frozen, order, kind, random)
    guard, twin = Guard(LIMIT), frozen.twin
    twin.reset(seed)
    good, found = twin.state(), []
    for at in range(0, len(order), EVERY):
        part = order[at : at + EVERY]
        labels = frozen.division.labels.copy()
        labels[part] = given[at : at + EVERY]
        frozen.train(part, labels, guard.factor if guarded else FULL_FACTOR)
        if guarded:
            verdict = guard.judge(frozen.right(held))
            good = twin.state() if verdict is Verdict.GOOD else good
            if verdict is Verdict.BAD:
                twin.load(good)
        if (at + EVERY) % THIRD == 0:
            found.append(frozen.accuracy(frozen.test))
    return found, guard.restores


def study(frozen: Frozen, seeds: Iterable[int]) -> str:
    """The table."""
    rows = [["wrong labels", "guard", "before", "right after", "long after", "taken back"]]
    for kind in ("none", "any other", "the first"):
        for guarded in (False, True):
            runs = [run(frozen, seed, kind, guarded) for seed in seeds]
            means = np.mean([found for found, _ in runs], axis=0)
            spread = np.std([found for found, _ in runs], axis=0, ddof=1) if len(runs) > 1 else np.zeros(3)
            cells = [f"{mean:.1f} ± {sd:.1f}" for mean, sd in zip(means, spread, strict=True)]
            rows.append([kind, "yes" if guarded else "no", *cells, ", ".join(str(n) for _, n in runs)])
    return table(rows)


if __name__ == "__main__":
    sys.exit(options(lambda frozen, seeds: print(study(frozen, seeds)))())
