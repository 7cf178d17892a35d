"""Measures candidates for the strategies: in parallel, each question once, every answer kept on disk."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from tte.board import Board
from tte.life import Life
from tte.search import rate as rates
from tte.search import worker
from tte.search.candidate import Candidate, Layer, Price
from tte.search.pool import Pool
from tte.search.price import least_ram, price
from tte.search.store import Store
from tte.search.task import Task, division, forward, head_name, trainable
from tte.training.head import find
from tte.training.scheme import LayerUpdate, channels_by_norm, linear_nodes

T = TypeVar("T")
#: Training samples whose gradients make up Fisher information, and samples of one job.
_FISHER_SAMPLES, _FISHER_CHUNK = 256, 64
RULES = ("norm", "fisher", "random")


class Workbench:
    """Implements `tte.search.candidate.Bench`.

    Args:
        rate: base learning rate; a few around it are tried.
        fixed_rate: that rate alone is taken.
        samples: of a whole run; those of a range test take no more.
        rows: prices are those of a program whose input comes row by row.
        say: a line for whoever watches.
    """

    def __init__(
        self, task: Task, board: Board, store: Store, pool: Pool, rate: float, *, fixed_rate: bool = False,
        samples: int = 0, rows: bool = False, life: Life = Life(), say: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.task, self.board, self.store, self.pool, self.rate, self.rows = task, board, store, pool, rate, rows
        self.life, self.fixed_rate, self._say = life, fixed_rate, say
        self._range_steps = min(rates.STEPS, samples or rates.STEPS)
        self._longer = max(samples, self._range_steps) / self._range_steps
        self.top = rate if fixed_rate else rates.rates(rate)[0]
        self.head = head_name(task)
        self.mode, self.validation = task.mode, len(division(task).validation)
        self.layers = tuple(self._layers())
        graph = forward(task)
        self._classes = graph.type(find(graph).logits).elements

    def say(self, text: str) -> None:
        """A line for whoever watches."""
        self._say(text)

    def accuracy(self, asked: list[tuple[Candidate, int]], samples: int) -> list[float]:
        """Accuracy on the validation samples after training on `samples` samples, for (candidate, seed).

        The learning rate is the candidate's, or that of its class, see `class_rate`.
        """
        return [float(a["accuracy"]) for a in self._trained(asked, samples)]

    def losses(self, asked: list[tuple[Candidate, int]], samples: int) -> list[float]:
        """Of the same runs, the mean loss (nats) on samples not learnt from, see `tte.search.worker.train`."""
        return [float(a["loss"]) for a in self._trained(asked, samples)]

    def _trained(self, asked: list[tuple[Candidate, int]], samples: int) -> list[Any]:
        return self._at_rates(list(zip(asked, self.class_rate([c for c, _ in asked]), strict=True)), samples)

    def _at_rates(self, asked: list[tuple[tuple[Candidate, int], float]], samples: int) -> list[Any]:
        parts = division(self.task)
        needed = [parts.validation, parts.training[:samples]]
        halvings = [round(float(np.log2(self.top / rate))) for _, rate in asked]
        runs = [(self.top, h, c.structure, seed, samples) for h, ((c, seed), _) in zip(halvings, asked, strict=True)]
        return self._runs("training", "accuracy", worker.train, runs, needed)

    def final(self, asked: list[tuple[Candidate, int, float]], passes: int = 1) -> list[float]:
        """Accuracy on the test set after so many passes over all training samples, for (candidate, seed, rate).

        The rate is compiled into the program, so that the device's figures are the same.
        """
        parts = division(self.task)
        runs = [(rate, 0, c.structure, seed, passes * parts.training.stop, True) for c, seed, rate in asked]
        return [float(a["accuracy"]) for a in self._runs("testing", "test", worker.train, runs, [range(parts.test.stop)])]

    def map(self, job: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> list[T]:
        """`job` with each of the arguments, in parallel; nothing is kept."""
        found = dict(self.pool.run("solving", job, arguments)) if arguments else {}
        return [found[i] for i in range(len(arguments))]

    def price(self, asked: list[Candidate]) -> list[Price]:
        """The planner's own figures."""
        where = [self.board.target, self.rows]
        beside = [] if self.life == Life() else [self.life.text()]
        structures = [c.structure for c in asked]
        questions = [["price", *self._model, *where, *beside, c.key] for c in structures]
        arguments = [(self.task, *where, c, self.life) for c in structures]
        answers = self._answers("pricing", questions, structures, _price, arguments)
        return [Price(a["ram_bytes"], a["instructions"]) for a in answers]

    def least_ram(self, asked: list[Candidate]) -> list[int]:
        """Bytes of RAM below which no plan can come: for inner loops, where `price` takes too long."""
        return [least_ram(self.task, self.board.target, self.rows, c) for c in asked]

    def rates(self, asked: list[tuple[Candidate, int]]) -> list[float]:
        """The learning rate for each (candidate, seed), by a range test (see `tte.search.rate`)."""
        if self.fixed_rate:
            return [self.rate] * len(asked)
        tried = rates.rates(self.rate)
        steps = self._range_steps
        losses: list[dict[int, float]] = [{} for _ in asked]
        while wanted := [(n, i) for n, known in enumerate(losses) for i in rates.wanted(known)]:
            found = self._at_rates([(asked[n], tried[i]) for n, i in wanted], steps)
            for (n, i), answer in zip(wanted, found, strict=True):
                losses[n][i] = float(answer["loss"])
        return [tried[rates.choose(known, self._longer)] for known in losses]

    def class_rate(self, candidates: list[Candidate]) -> list[float]:
        """The learning rate for each candidate in the search: its own, or that of a scheme which stands for its class, seed 0.

        The classes are where the frozen prefix ends, and what share of the weights behind it trains. So a rate costs a
        search little, and depends on the candidate alone.
        """
        classes = [self._class(c) for c in candidates]
        needed = dict.fromkeys(k for c, k in zip(candidates, classes, strict=True) if not c.rate)
        found = dict(zip(needed, self.rates([(k, 0) for k in needed]), strict=True))
        return [c.rate or found[k] for c, k in zip(candidates, classes, strict=True)]

    def near(self, rate: float) -> list[float]:
        """The learning rates beside one that may be tried, too: half and twice of it."""
        tried = rates.rates(self.rate)
        at = min(range(len(tried)), key=lambda i: abs(tried[i] - rate))
        return [] if self.fixed_rate else [tried[i] for i in (at - 1, at + 1) if 0 <= i < len(tried)]

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
            kinds = dict.fromkeys((worker.mode_of(self.task, r[2]), r[0]) for r in new)
            others = [(self.task, *kind) for kind in kinds if kind != (self.task.mode, self.top)]
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


def _price(task: Task, target: str, rows: bool, candidate: Candidate, life: Life) -> dict[str, int]:
    found = price(task, target, rows, candidate, life)
    return {"ram_bytes": found.ram_bytes, "instructions": found.instructions}
