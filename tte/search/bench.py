"""Measures candidates for the strategies: in parallel, each question once, every answer kept on disk."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tte.board import Board
from tte.search import rate as rates
from tte.search import worker
from tte.search.candidate import Candidate, Layer, Price
from tte.search.pool import Pool
from tte.search.price import least_ram, price
from tte.search.store import Store
from tte.search.task import Task, division, forward, head_name, trainable
from tte.training.head import find
from tte.training.scheme import LayerUpdate, channels_by_norm, linear_nodes

#: Training samples whose gradients make up Fisher information, and samples of one job.
_FISHER_SAMPLES, _FISHER_CHUNK = 256, 64
RULES = ("norm", "fisher", "random")


class Workbench:
    """Implements `tte.search.candidate.Bench`.

    Args:
        rate: base learning rate; a few around it are tried.
        fixed_rate: that rate alone is taken.
        rows: prices are those of a program whose input comes row by row.
        say: a line for whoever watches.
    """

    def __init__(
        self, task: Task, board: Board, store: Store, pool: Pool, rate: float, *, fixed_rate: bool = False,
        rows: bool = False, say: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.task, self.board, self.store, self.pool, self.rate, self.rows = task, board, store, pool, rate, rows
        self.fixed_rate, self._say = fixed_rate, say
        self.top = rate if fixed_rate else rates.rates(rate)[0]
        self.head = head_name(task)
        self.layers = tuple(self._layers())
        graph = forward(task)
        self._classes = graph.type(find(graph).logits).elements

    def say(self, text: str) -> None:
        """A line for whoever watches."""
        self._say(text)

    def accuracy(self, asked: list[tuple[Candidate, int]], samples: int) -> list[float]:
        """Accuracy on the validation samples after one pass over `samples` training samples, for (candidate, seed).

        The learning rate is that of the candidate's class, see `class_rate`.
        """
        parts = division(self.task)
        samples = min(samples, len(parts.training))
        needed = [parts.validation, parts.training[:samples]]
        halvings = [round(float(np.log2(self.top / r))) for r in self.class_rate([c for c, _ in asked])]
        runs = [(self.top, h, c, seed, samples) for h, (c, seed) in zip(halvings, asked, strict=True)]
        return [float(a["accuracy"]) for a in self._runs("training", "accuracy", worker.train, runs, needed)]

    def final(self, asked: list[tuple[Candidate, int, float]]) -> list[float]:
        """Accuracy on the test set after one pass over all training samples, for (candidate, seed, rate).

        The rate is compiled into the program, so that the device's figures are the same.
        """
        parts = division(self.task)
        runs = [(rate, 0, c, seed, parts.training.stop, True) for c, seed, rate in asked]
        return [float(a["accuracy"]) for a in self._runs("testing", "test", worker.train, runs, [range(parts.test.stop)])]

    def price(self, asked: list[Candidate]) -> list[Price]:
        """The planner's own figures."""
        where = [self.board.target, self.rows]
        questions = [["price", *self._model, *where, c.key] for c in asked]
        arguments = [(self.task, *where, c) for c in asked]
        answers = self._answers("pricing", questions, asked, _price, arguments)
        return [Price(a["ram_bytes"], a["instructions"]) for a in answers]

    def least_ram(self, asked: list[Candidate]) -> list[int]:
        """Bytes of RAM below which no plan can come: for inner loops, where `price` takes too long."""
        return [least_ram(self.task, self.board.target, self.rows, c) for c in asked]

    def rates(self, asked: list[tuple[Candidate, int]]) -> list[float]:
        """The learning rate for each (candidate, seed), by a short range test (see `tte.search.rate`)."""
        if self.fixed_rate:
            return [self.rate] * len(asked)
        tried = range(len(rates.rates(self.rate)))
        parts = division(self.task)
        steps = min(rates.STEPS, len(parts.training))
        runs = [(self.top, i, c, s, steps) for c, s in asked for i in tried]
        losses = self._runs("learning rates", "probe", worker.probe, runs, [parts.training[:steps]])
        chance = float(np.log(self._classes))
        chosen = [rates.choose(losses[n * len(tried) : (n + 1) * len(tried)], chance) for n in range(len(asked))]
        return [rates.rates(self.rate)[i] for i in chosen]

    def class_rate(self, candidates: list[Candidate]) -> list[float]:
        """The learning rate for each candidate in the search: that of a scheme which stands for its class, seed 0.

        The classes are where the frozen prefix ends, and what share of the weights behind it trains. So a rate costs a
        search little, and depends on the candidate alone.
        """
        classes = [self._class(c) for c in candidates]
        found = dict(zip(dict.fromkeys(classes), self.rates([(c, 0) for c in dict.fromkeys(classes)]), strict=True))
        return [found[c] for c in classes]

    def _class(self, candidate: Candidate) -> Candidate:
        names = {*candidate.biases, *(n for n, _ in candidate.weights)}
        if not names or self.fixed_rate:
            return Candidate()
        way = worker.way_of(self.task, self.task.mode, self.top, candidate.updates(self.head))
        graph = worker.program(self.task, self.task.mode, self.top).graph
        behind = {n.name for n in graph.nodes[way.first :]}
        layers = [x for x in self.layers if x.name in behind]
        weights = dict(candidate.weights)
        trained = sum(x.weights * (len(weights[x.name]) or x.channels) / x.channels for x in layers if x.name in weights)
        share = rates.share_class(trained / sum(x.weights for x in layers))
        chosen = rates.representative({x.name: x.ranking["norm"] for x in layers}, share)
        return Candidate(tuple(sorted(x.name for x in layers)), chosen)

    @functools.cache  # noqa: B019  # a bench lives as long as its search
    def fisher(self) -> Mapping[str, tuple[float, ...]]:
        """Fisher information of each layer's weight channels and, under `NAME/bias`, of its biases: mean squared gradients,
        summed over a channel's weights, in real units."""
        count = min(_FISHER_SAMPLES, len(division(self.task).training))
        spans = [(first, min(first + _FISHER_CHUNK, count)) for first in range(0, count, _FISHER_CHUNK)]
        questions = [["fisher", *self._model, *span] for span in spans]
        if any(q not in self.store for q in questions):
            self._compute_features([Candidate()], [division(self.task).training[:1000]], "r8", worker.FISHER_RATE)
        parts = self._answers("Fisher information", questions, [], worker.fisher, [(self.task, *span) for span in spans])
        return {key: tuple(np.sum([p[key] for p in parts], axis=0) / count) for key in parts[0]}

    @property
    def _model(self) -> list[Any]:
        return [self.task.identity, self.task.mode]

    def _layers(self) -> Iterator[Layer]:
        graph = forward(self.task)
        may = set(trainable(self.task)) - {self.head}
        for index, node in enumerate(linear_nodes(graph)):
            if node.name in may:
                weights, biases = graph.type(node.inputs[1]), graph.type(node.inputs[-1])
                geometry = node.op.site(graph.types(node.inputs))
                ranking = _Ranking(self, node.name, channels_by_norm(graph, node), index)
                yield Layer(node.name, index, weights.shape[-1], ranking, weights.elements, biases.elements, geometry.macs)

    def _runs(
        self, title: str, kind: str, job: Callable[..., Any], runs: Sequence[tuple[Any, ...]], needed: Sequence[range]
    ) -> list[Any]:
        """Answers of training runs (rate, halvings, candidate, seed, samples, ...); programs and features come first.

        Args:
            needed: samples whose features they read.
        """
        questions = [[kind, *self._model, c.key, seed, samples, rate, halvings] for rate, halvings, c, seed, samples, *_ in runs]
        new = [r for r, q in zip(runs, questions, strict=True) if q not in self.store]
        if new:
            others = [(self.task, self.task.mode, r) for r in dict.fromkeys(r[0] for r in new) if r != self.top]
            for _ in self.pool.run("compiling", worker.compiled, others) if others else ():
                pass
            self._compute_features([r[2] for r in new], needed, self.task.mode, self.top)
        return self._answers(title, questions, [r[2] for r in runs], job, [(self.task, *r) for r in runs])

    def _compute_features(self, candidates: Sequence[Candidate], needed: Sequence[range], mode: str, rate: float) -> None:
        twin = worker.program(self.task, mode, rate)
        cuts: dict[tuple[str, ...], dict[str, LayerUpdate]] = {}
        for candidate in candidates:
            updates = candidate.updates(self.head)
            cuts.setdefault(worker.way_of(self.task, mode, rate, updates).features, updates)
        jobs = []
        for updates in cuts.values():
            found = worker.features_of(self.task, twin, worker.way_of(self.task, mode, rate, updates))
            chunks = sorted({c for numbers in needed for c in found.missing(numbers)})
            jobs += [(self.task, mode, rate, updates, c) for c in chunks]
        if jobs:
            for _ in self.pool.run("features", worker.compute_features, jobs):
                pass

    def _answers(
        self, title: str, questions: list[list[Any]], candidates: Sequence[Candidate], job: Callable[..., Any],
        arguments: Sequence[tuple[Any, ...]],
    ) -> list[Any]:  # fmt: skip
        """Answers in the order of the questions: kept ones, and those of jobs that are run, each once."""
        for c in candidates:
            if (name := ["candidate", c.key]) not in self.store:
                self.store.put(name, {"biases": c.biases, "weights": c.weights})
        new: dict[str, int] = {}
        for i, q in enumerate(questions):
            if q not in self.store:
                new.setdefault(repr(q), i)
        places = list(new.values())
        for done, answer in self.pool.run(title, job, [arguments[i] for i in places]) if places else ():
            self.store.put(questions[places[done]], answer)
        return [self.store.get(q) for q in questions]


class _Ranking(Mapping[str, tuple[int, ...]]):
    """A layer's channels by rank; Fisher information is measured when it is first asked for."""

    def __init__(self, bench: Workbench, name: str, by_norm: tuple[int, ...], index: int) -> None:
        self._bench, self._name, self._by_norm, self._index = bench, name, by_norm, index

    def __getitem__(self, rule: str) -> tuple[int, ...]:
        if rule == "norm":
            return self._by_norm
        if rule == "fisher":
            order = np.argsort(-np.array(self._bench.fisher()[self._name]), kind="stable")
        elif rule == "random":
            order = np.random.default_rng([self._bench.task.seed, self._index]).permutation(len(self._by_norm))
        else:
            raise KeyError(rule)
        return tuple(int(c) for c in order)

    def __iter__(self) -> Iterator[str]:
        return iter(RULES)

    def __len__(self) -> int:
        return len(RULES)


def _price(task: Task, target: str, rows: bool, candidate: Candidate) -> dict[str, int]:
    found = price(task, target, rows, candidate)
    return {"ram_bytes": found.ram_bytes, "instructions": found.instructions}
