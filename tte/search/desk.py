"""What all strategies share: asking the bench in batches, keeping to the limits, counting what was spent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tte.errors import ModelError
from tte.search.candidate import Bench, Candidate, Contribution, Layer, Limits, Measured, Price

#: The fractions of a layer's channels that TTE's analysis tries (Lin et al., NeurIPS 2022).
FRACTIONS = (0.125, 0.25, 0.5, 1.0)
HEAD = Candidate()
#: Steps between draws: long enough that channels learn something, short enough that most have their turn.
REDRAWN, REDRAW = "redrawn", 200
_EVEN = 1000  # samples to validate on with which accuracy and loss count alike
_LINE = 12  # runs that tell what a loss is worth
_BATCH = 8  # prices asked together where each may end the walk: few are wasted, and a few workers stay busy


@dataclass(frozen=True)
class Pick:
    """A candidate as strategies speak of it: layers by name, weights by fraction of the channels of best rank.

    Attributes:
        rule: a key of `Layer.ranking`, or `REDRAWN`: the strongest first, then others at random every `REDRAW` steps.
        mode: the candidate's.
    """

    biases: frozenset[str] = frozenset()
    weights: Mapping[str, float] = field(default_factory=dict)
    rule: str = "norm"
    mode: str = ""

    def candidate(self, layers: Sequence[Layer]) -> Candidate:
        """The candidate itself."""
        known = {x.name: x for x in layers}
        rule = "norm" if self.rule == REDRAWN else self.rule
        chosen = {n: channels(known[n], f, rule) for n, f in self.weights.items() if f > 0}
        redraw = REDRAW if self.rule == REDRAWN and any(chosen.values()) else 0
        return Candidate(tuple(sorted(self.biases)), tuple(sorted(chosen.items())), self.mode, redraw=redraw)


def channels(layer: Layer, fraction: float, rule: str) -> tuple[int, ...]:
    """The best channels by a rule, ascending, at least one; () for all of them."""
    count = max(1, round(fraction * layer.channels))
    return () if count >= layer.channels else tuple(sorted(layer.ranking[rule][:count]))


class Desk:
    """A bench, the limits, and the seed of a search.

    Attributes:
        layers: those that may train, first to last.
        seeds: of the runs that are reported; other seeds of a search give other ones.
        spent: different whole runs asked for so far, a shorter one counting in proportion. What a bench has kept from
            before counts too: a resumed search says the same.

    Raises:
        ModelError: even the head alone exceeds the limits.
    """

    def __init__(self, bench: Bench, limits: Limits, seed: int) -> None:
        self.bench, self.limits = bench, limits
        self.layers: tuple[Layer, ...] = tuple(bench.layers)
        self.seeds = tuple(range(seed * limits.seeds, (seed + 1) * limits.seeds))
        self.spent = 0.0
        self._asked: set[tuple[Candidate, int, int]] = set()
        self._losses: dict[int, dict[tuple[Candidate, int], tuple[float, float]]] = {}
        price = self.price([HEAD])[0]
        if not limits.allow(price):
            raise ModelError(
                f"training the head alone needs {price.ram_bytes:,} bytes of RAM and {price.instructions:,} instructions a step",
                where="the search",
                limit=self.limit,
                remedy="a higher limit, or a smaller model or input",
            )

    @property
    def limit(self) -> str:
        """The limits, for people."""
        return f"{_text(self.limits.ram_bytes)} bytes, {_text(self.limits.instructions)} instructions"

    @property
    def names(self) -> list[str]:
        return [x.name for x in self.layers]

    def price(self, asked: Sequence[Candidate]) -> list[Price]:
        """Real prices."""
        return self.bench.price(list(asked)) if asked else []

    def fits(self, asked: Sequence[Candidate]) -> list[bool]:
        """Whether real prices stay within the limits."""
        return [self.limits.allow(p) for p in self.price(asked)]

    def runs(self, asked: Sequence[Candidate], samples: int, seeds: Sequence[int]) -> list[tuple[float, ...]]:
        """Accuracy for each candidate and seed."""
        pairs = [(c, s) for c in asked for s in seeds]
        new = {(c, s, samples) for c, s in pairs} - self._asked
        self._asked |= new
        self.spent += len(new) * samples / self.limits.samples
        found = self.bench.accuracy(pairs, samples) if pairs else []
        return [tuple(found[i : i + len(seeds)]) for i in range(0, len(found), len(seeds))]

    def means(self, asked: Sequence[Candidate], samples: int, seeds: Sequence[int]) -> list[float]:
        """Mean accuracy for each candidate."""
        return [sum(r) / len(r) for r in self.runs(asked, samples, seeds)]

    def scores(self, asked: Sequence[Candidate], samples: int, seeds: Sequence[int]) -> list[tuple[float, ...]]:
        """Like `runs`, with less noise: a mean of the accuracy and of what the loss tells of it.

        Both are measured on samples that the run had not learnt from. What a loss is worth in accuracy is regressed over all
        runs of so many samples; runs that diverged count by their accuracy alone. The fewer samples there are to validate
        on, the less the accuracy counts: it is a count of a few errors then, and a loss is not.
        """
        accuracies = self.runs(asked, samples, seeds)
        names = [(c, s) for c in asked for s in seeds]
        losses = self.bench.losses(names, samples) if names else []
        pairs = list(zip((a for run in accuracies for a in run), losses, strict=True))
        known = self._losses.setdefault(samples, {})
        known.update(zip(names, pairs, strict=True))  # each run once, however often it is asked for
        usual = 2 * sorted(loss for _, loss in known.values())[len(known) // 2] if known else 0.0
        line = _line([(loss, a) for a, loss in known.values() if loss < usual])
        share = self.bench.validation / (self.bench.validation + _EVEN)
        told = ((line[0] + line[1] * loss if line and loss < usual else a) for a, loss in pairs)
        found = iter([share * a + (1 - share) * t for (a, _), t in zip(pairs, told, strict=True)])
        return [tuple(next(found) for _ in run) for run in accuracies]

    def measure(self, asked: Mapping[str, Candidate]) -> tuple[Measured, ...]:
        """Whole runs with all seeds, and prices, by name."""
        prices = self.price(list(asked.values()))
        runs = self.runs(list(asked.values()), self.limits.samples, self.seeds)
        return tuple(Measured(n, c, p, r) for (n, c), p, r in zip(asked.items(), prices, runs, strict=True))

    def worth(self, measured: Measured) -> float:
        """Mean score of its whole runs."""
        run = self.scores([measured.candidate], self.limits.samples, self.seeds)[0]
        return sum(run) / len(run)

    def deepest(self, tail: Iterable[Candidate]) -> int:
        """How many of the candidates to walk before none fits any more: ever deeper ones, each dearer than the last."""
        fit, asked, last = [True], list(tail), 0
        for at in range(0, len(asked), _BATCH):
            fit = self.fits(asked[at : at + _BATCH])
            last = max([last, *(at + i + 1 for i, ok in enumerate(fit) if ok)])
            if not any(fit):
                break
        return last

    def affordable(self) -> list[str]:
        """Names of the layers so late that training their bias alone fits, first to last."""
        back = self.names[::-1]
        deep = self.deepest(Candidate((n,)) for n in back)
        return back[:deep][::-1]


def merged(a: Pick, b: Pick) -> Pick:
    """Both; where both name a layer's weights, b's fraction."""
    return Pick(a.biases | b.biases, {**a.weights, **b.weights}, a.rule, a.mode)


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Least squares through (x, y): a falling line, y = a + b x, if there are points enough for one."""
    if len(points) < _LINE:
        return None
    x, y = ([p[i] for p in points] for i in (0, 1))
    mx, my = sum(x) / len(x), sum(y) / len(y)
    square = sum((v - mx) ** 2 for v in x)
    slope = sum((v - mx) * (w - my) for v, w in points) / square if square else 0.0
    return (my - slope * mx, slope) if slope < 0 else None


def _text(limit: int | None) -> str:
    return "any number of" if limit is None else f"{limit:,}"


def tail(names: Sequence[str], count: int, *, whole: bool) -> Candidate:
    """The last `count` layers: their biases, or all of them."""
    last = sorted(names[len(names) - count :])
    return Candidate(tuple(last), tuple((n, ()) for n in last) if whole else ())


def fisher_scores(desk: Desk, information: Mapping[str, Sequence[float]]) -> list[Contribution]:
    """TinyTrain's score of each layer: Fisher information by weights and by multiply-accumulates, in shares of the largest."""
    memory = max([1, *(x.weights for x in desk.layers)])
    compute = max([1, *(x.macs for x in desk.layers)])
    return [
        Contribution(x.name, "weights", 1.0, sum(information.get(x.name, ())) * memory * compute / max(1, x.weights * x.macs))
        for x in desk.layers
    ]


def fisher_items(scores: Sequence[Contribution]) -> list[list[Pick]]:
    """What enters in turn: each layer's options, largest first."""
    order = sorted((s for s in scores if s.gain > 0), key=lambda s: -s.gain)
    return [[Pick(frozenset([s.layer]), {s.layer: f} if f else {}, "fisher") for f in (*FRACTIONS[::-1], 0.0)] for s in order]
