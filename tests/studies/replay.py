"""First one half of the classes, then the other: what a device still knows of the first, by its memory of past samples.

    PYTHONPATH=tests python -m studies.replay ../shared/models/mcunet-5fps.tflite --classes 10 \\
        --data ../shared/data/cifar10_5k.npz --learning-rate 0.002

Each sample comes once; behind each, `k` past ones are learnt from, held and chosen as the device does (tte/device/learner.py).
Accuracies are of the test set, in percent, means over the seeds: among all classes, of samples of the first half and of the
second, after both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from studies.frozen import Frozen, options, table
from tte.device.learner import Memory

SIZES, STEPS = (16, 64, 256), (2,)  # KB; k


def steps(frozen: Frozen, fresh: NDArray[np.int64], memory: Memory, held: list[int], k: int, seed: int) -> list[int]:
    """The samples of every step: each fresh one, and past ones behind it. `held`: the samples by place."""
    found = []
    for number in map(int, fresh):
        found.append(number)
        if memory.places:
            label = int(frozen.division.labels[number])
            place = memory.choose(label, seed)
            memory.take(label, place)
            if place >= 0:
                held[place : place + 1] = [number]
            found += [held[memory.pick(index, seed)] for index in range(k)]
    return found


def run(frozen: Frozen, seed: int, places: int, k: int) -> tuple[float, float, float, float]:
    """Accuracy: of the first half after it; then, after both, of the first, the second, and all."""
    labels = frozen.division.labels
    half = (int(labels.max()) + 1) // 2
    random = np.random.default_rng([seed, 3])
    memory, held = Memory(places, 2 * half), list[int]()
    frozen.twin.reset(seed)
    old, new = (frozen.test[which] for which in (labels[frozen.test] < half, labels[frozen.test] >= half))
    first = random.permutation(frozen.learn[labels[frozen.learn] < half])
    second = random.permutation(frozen.learn[labels[frozen.learn] >= half])
    frozen.train(steps(frozen, first, memory, held, k, seed), labels)
    before = frozen.accuracy(old)
    frozen.train(steps(frozen, second, memory, held, k, seed), labels)
    return before, frozen.accuracy(old), frozen.accuracy(new), frozen.accuracy(frozen.test)


def study(frozen: Frozen, seeds: Iterable[int]) -> str:
    """The table."""
    rows = [["memory", "samples", "k", "first half before", "first half", "second half", "all"]]
    for size, k in [(0, 0), *((size, k) for size in SIZES for k in STEPS)]:
        places = size * 1024 // frozen.latent_bytes
        runs = np.array([run(frozen, seed, places, k) for seed in seeds])
        spread = runs.std(0, ddof=1) if len(runs) > 1 else np.zeros(4)
        cells = [f"{mean:.1f} ± {sd:.1f}" for mean, sd in zip(runs.mean(0), spread, strict=True)]
        rows.append([f"{size} KB" if size else "none", str(places), str(k), *cells])
    return table(rows)


if __name__ == "__main__":
    sys.exit(options(lambda frozen, seeds: print(study(frozen, seeds)))())
