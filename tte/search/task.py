"""What a search measures on: a model, its data, and how the samples are divided. It travels to every worker."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import tte
from tte import data, passes
from tte.compiler import Compiled, Options, choose_loss, compile_model
from tte.data import Dataset, Port
from tte.errors import DataError, ModelError
from tte.frontend import tflite
from tte.inspection import why_frozen
from tte.ir import Graph, TensorType, verify
from tte.ops.loss import SoftmaxCrossEntropy
from tte.training import head as heads
from tte.training.autodiff import Numerics
from tte.training.scheme import UpdateScheme, linear_nodes

#: Changes when equal questions get other answers than before.
_VERSION = 1
_VALIDATION_SHARE, _VALIDATION_MOST = 0.2, 1000


@dataclass(frozen=True)
class Task:
    """Plain values only. The files may be read again at any time and must not change meanwhile.

    Attributes:
        model, data: paths. model_hash, data_hash: of their content.
        folder: where programs, features and answers are kept.
        classes, head_seed, loss, mode: as for `tte build`.
        turns: quarter turns of the images.
        seed: of the validation split, and of the split of `x, y` data.
    """

    model: str
    data: str
    folder: str
    model_hash: str
    data_hash: str
    classes: int = 0
    head_seed: int = 0
    loss: str = "auto"
    mode: str = "r4"
    turns: int = 0
    seed: int = 0

    @property
    def identity(self) -> str:
        """16 hex digits that name everything that a sample's features and the division depend on."""
        facts = [_VERSION, tte.__version__, self.model_hash, self.data_hash, self.classes, self.head_seed, self.loss,
                 self.turns, self.seed]  # fmt: skip
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def options(self, rate: float, mode: str = "") -> Options:
        """For the program in which everything trains."""
        numerics = Numerics(rate, mode or self.mode)
        return Options(self.classes, "full", self.loss, self.head_seed, numerics, stream=False)


def task(model: Path, samples: Path, folder: Path, **settings: int | str) -> Task:
    """A task from files.

    Raises:
        ModelError, DataError: a file cannot be read.
    """
    hashes = []
    for path, kind in ((model, ModelError), (samples, DataError)):
        try:
            with path.open("rb") as file:
                hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise kind(f"cannot read it: {error.strerror or error}", where=str(path)) from None
    places = (os.path.abspath(p) for p in (model, samples, folder))
    return Task(*places, *hashes, **settings)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=2)
def forward(task: Task) -> Graph:
    """The inference graph with the task's head."""
    graph = passes.run(passes.NORMALISE, tflite.load(task.model))
    return verify(heads.replace_head(graph, task.classes, task.head_seed)) if task.classes else graph


def head_name(task: Task) -> str:
    """The layer that always trains.

    Raises:
        ModelError: the model is no classifier that ends in a layer with weights.
    """
    graph = forward(task)
    head = heads.find(graph)
    if head.node is None or not isinstance(choose_loss(graph, head, task.loss), SoftmaxCrossEntropy):
        remedy = "search needs a model that ends in a layer with weights and is trained by cross-entropy"
        raise ModelError("not a classifier", where=task.model, remedy=remedy)
    return head.node.name


def trainable(task: Task) -> tuple[str, ...]:
    """Layers with weights that a gradient reaches, in order."""
    graph = forward(task)
    return tuple(n.name for n in linear_nodes(graph) if not why_frozen(graph, graph.nodes.index(n)))


def compile_whole(task: Task, rate: float, mode: str = "") -> Compiled:
    """The program in which everything trains that can."""
    names = trainable(task)
    scheme = UpdateScheme("full", frozenset(names), dict.fromkeys(names, 1.0))
    return compile_model(task.model, task.options(rate, mode), scheme=scheme)


@dataclass(frozen=True, eq=False)
class Division:
    """All samples in one row of numbers: first those to validate on, then those to learn from, then the test set.

    Validation samples are taken from the training samples. Both are shuffled once: the first n to learn from are a fair
    choice of n, and every larger choice holds the smaller ones.

    Attributes:
        validation, training, test: their numbers, [from, to).
        labels: int32, of every sample.
    """

    dataset: Dataset
    validation: range
    training: range
    test: range
    labels: NDArray[np.int32]
    order: NDArray[np.int64]

    def samples(self, numbers: range) -> NDArray[np.int8]:
        """Model inputs [n, ...] for sample numbers."""
        known = len(self.order)
        found = [self.dataset.train(int(self.order[i])) if i < known else self.dataset.test(i - known) for i in numbers]
        return np.stack([s.x[0] for s in found])


@functools.lru_cache(maxsize=2)
def division(task: Task) -> Division:
    """The task's samples.

    Raises:
        DataError: they do not fit the model, or are too few to divide.
    """
    graph = forward(task)
    source, logits = graph.type(graph.inputs[0]), graph.type(heads.find(graph).logits)
    dataset = data.load(Path(task.data), _port(source), classes=logits.elements, seed=task.seed).turned(task.turns)
    count = dataset.train_count
    held = min(_VALIDATION_MOST, round(count * _VALIDATION_SHARE))
    if not held or not dataset.test_count:
        raise DataError(f"{count} training samples are too few to search with", where=task.data, limit="5 at least")
    order = np.random.default_rng([task.seed, 0x5EA7C4]).permutation(count)
    assert dataset.y_train is not None and dataset.y_test is not None
    labels = np.concatenate([dataset.y_train[order], dataset.y_test]).astype(np.int32)
    return Division(
        dataset, range(held), range(held, count), range(count, count + dataset.test_count), labels, order
    )  # fmt: skip


def _port(t: TensorType) -> Port:
    return Port(t.shape, t.scale, t.zero_point)
