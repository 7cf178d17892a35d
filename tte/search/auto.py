"""`--update auto`: a scheme that a search found for the model, or else a rule that needs no data."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from tte import needs, passes
from tte.board import Board
from tte.compiler import Options, compile_model
from tte.errors import ModelError
from tte.frontend import tflite
from tte.inspection import why_frozen
from tte.ir import Graph, Node, verify
from tte.search.candidate import Candidate, Layer, Limits, Price
from tte.search.costs import Costs, weight_bytes, within
from tte.search.desk import FRACTIONS, HEAD, Desk
from tte.search.gains import Gains
from tte.search.result import ACCURACY, HASH, scheme_of
from tte.training import head as heads
from tte.training.scheme import channels_by_norm, linear_nodes

T = TypeVar("T")

#: A folder with schemes that searches found.
FOLDER = "TTE_SCHEMES"
_BESIDE = ".auto.toml"
#: Bytes that a trained bias adds to the state and its layer's mask to the arena, roughly.
_BIAS_BYTES = 8.0


@contextlib.contextmanager
def resolved(
    model: Path, board: Board, options: Options, ram: int | None, say: Callable[[str], None]
) -> Iterator[Options]:
    """The options with a scheme's file in place of "auto"; others as they are. The file may be gone afterwards.

    Args:
        ram: a limit below the board's own, in bytes.
        say: told which scheme was taken, and why.

    Raises:
        ModelError: the model cannot be run or trained.
    """
    if options.update != "auto":
        yield options
        return
    options = replace(options, target=board.target)
    limit = min(ram or board.ram_bytes, board.ram_bytes)
    found = _stored(model, options, limit, say)
    if found:
        yield replace(options, update=str(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "auto.toml"
        path.write_text(_by_rule(model, options, limit, say), encoding="utf-8")
        yield replace(options, update=str(path))


def _stored(model: Path, options: Options, limit: int, say: Callable[[str], None]) -> Path | None:
    """The most accurate stored scheme for the model's content that fits; None if there is none."""
    try:
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(f"cannot read it: {error.strerror or error}", where=str(model)) from None
    places = [model.with_name(model.stem + _BESIDE)]
    if os.environ.get(FOLDER):
        places += sorted(Path(os.environ[FOLDER]).glob("*.toml"))
    ranked: list[tuple[float, Path]] = []
    for path in (p for p in places if p.is_file()):
        told = recorded(path)
        if told.get(HASH) == digest:
            ranked.append((_number(told.get(ACCURACY, "")), path))
        elif path == places[0]:
            say(f"update auto: {path} was not found for this model's content, and is not used")
    for accuracy, path in sorted(ranked, key=lambda r: -r[0]):
        made = compile_model(model, replace(options, update=str(path)))
        need = needs.ram(made.plan, options.life)
        if need <= limit:
            say(f"update auto: {path}, found by a search ({100 * accuracy:.1f} % on its validation samples)")
            return path
        say(f"update auto: {path} needs {need:,} bytes of RAM, there are {limit:,}")
    return None


def recorded(path: Path) -> dict[str, str]:
    """The `key = value` comments of a scheme's file; a value ends at the first comma or space."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    return dict(re.findall(r"^# ([\w-]+) = ([^\s,]+)", text, re.MULTILINE))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _by_rule(model: Path, options: Options, limit: int, say: Callable[[str], None]) -> str:
    """The scheme that averages of other models' layers propose, as TOML."""
    graph = passes.run(passes.NORMALISE, tflite.load(model))
    if options.classes:
        graph = verify(heads.replace_head(graph, options.classes, options.head_seed))
    planner = _Planner(model, options, graph)
    say("update auto: no stored scheme; planning by averages measured on other models")
    try:
        # Beyond the limit even with the head alone, the build itself says what is missing.
        desk = Desk(planner, Limits(limit, None, 1, 1), 0)
    except ModelError:
        return "# nothing but the head fits\n"
    gains, costs = average_gains(graph, planner.layers), _estimated(graph, planner, options)
    from tte.search import knapsack  # the solver is slow to load, and other commands do without

    pick, _ = within(desk, costs, desk.limits, lambda asked: knapsack.solve(costs, gains, asked))
    say(
        f"update auto: by rule, not by a search on your data: {len(pick.biases)} biases, weights of {len(pick.weights)} layers "
        "(`tte search` finds better ones)"
    )
    return scheme_of(pick.candidate(desk.layers), desk.layers, "auto").text(["Made by tte's rule for models without a search."])


class _Planner:
    """The part of a bench that needs no data: layers, and the prices of `tte build`."""

    def __init__(self, model: Path, options: Options, graph: Graph) -> None:
        self.validation = 0
        self.mode = options.numerics.completed(None).mode
        self._model, self._options, self._kept = model, replace(options, update="last"), dict[Candidate, Price]()
        head = heads.find(graph).node
        nodes = [n for n in linear_nodes(graph) if n is not head and not why_frozen(graph, graph.nodes.index(n))]
        self.nodes: Mapping[str, Node] = {n.name: n for n in nodes}
        self.layers: tuple[Layer, ...] = tuple(_layer(graph, n, i) for i, n in enumerate(nodes))

    def price(self, asked: list[Candidate]) -> list[Price]:
        """RAM alone."""
        for c in asked:
            if c not in self._kept:
                made = compile_model(self._model, self._options, scheme=c.scheme("auto")).plan
                self._kept[c] = Price(needs.ram(made, self._options.life), 0)
        return [self._kept[c] for c in asked]

    def accuracy(self, asked: list[tuple[Candidate, int]], samples: int) -> list[float]:
        """There is no data."""
        raise NotImplementedError

    losses = accuracy

    def class_rate(self, candidates: list[Candidate]) -> list[float]:
        """There is no data."""
        raise NotImplementedError

    def near(self, rate: float) -> list[float]:
        """There is no data."""
        return []

    def map(self, job: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> list[T]:
        """One after the other: there are few."""
        return [job(*a) for a in arguments]

    def fisher(self) -> Mapping[str, tuple[float, ...]]:
        """There is no data."""
        return {}

    def say(self, text: str) -> None:
        """Nobody watches."""


def _layer(graph: Graph, node: Node, index: int) -> Layer:
    weights, biases = graph.type(node.inputs[1]), graph.type(node.inputs[-1])
    ranking = {"norm": channels_by_norm(graph, node)}
    macs = node.op.site(graph.types(node.inputs)).macs
    return Layer(node.name, index, weights.shape[-1], ranking, weights.elements, biases.elements, macs)


def _estimated(graph: Graph, planner: _Planner, options: Options) -> Costs:
    """Costs by formula: trained state, and the saved input of a layer whose weights train; `within` corrects them."""
    mode = options.numerics.completed(None).mode
    weights = {}
    for x in planner.layers:
        saved = graph.type(planner.nodes[x.name].inputs[0]).nbytes
        weights[x.name] = Price(round(weight_bytes(mode) * x.weights) + saved, 0)
    names = tuple(x.name for x in planner.layers)
    bias = {x.name: Price(round(_BIAS_BYTES * x.biases), 0) for x in planner.layers}
    return Costs(names, planner.price([HEAD])[0], dict.fromkeys(names, Price(0, 0)), bias, weights)


#: Points of accuracy that training one layer's weights and bias gained over training the head alone: means over the layers of
#: a kind in the last, the middle and the first third of the model. Measured on the twin: mcunet-5fps and mbv2-w0.35
#: on CIFAR-10, 1,000 samples once, rate 0.004, 1 or 2 seeds. 0: not measured (the first third) or harmful at that rate
#: (projections: 2.7 and 1.5 points lost). Full convolutions and dense layers were not measured: they are taken to be worth
#: what depthwise ones are in the last third, the least that was gained.
_WEIGHT_POINTS: Mapping[str, tuple[float, float, float]] = {
    "expand": (4.0, 2.4, 0.0),
    "depthwise": (0.3, 1.4, 0.0),
    "project": (0.0, 0.0, 0.0),
    "conv": (0.3, 0.3, 0.0),
    "dense": (0.3, 0.3, 0.0),
}
#: The same for one more bias, from the gain of all biases from a layer on: 3.0 and 5.3 points for the last third.
_BIAS_POINTS = (0.26, 0.1, 0.0)


def kind(graph: Graph, node: Node) -> str:
    """What a layer is to the averages: "expand", "project", "depthwise", "conv" or "dense"."""
    geometry = node.op.site(graph.types(node.inputs))
    if geometry.depthwise:
        return "depthwise"
    if node.op.title == "FULLY_CONNECTED":
        return "dense"
    if geometry.k_h * geometry.k_w > 1:
        return "conv"
    return "expand" if geometry.out_c > geometry.in_c else "project"


def average_gains(graph: Graph, layers: Sequence[Layer]) -> Gains:
    """Gains by kind and place of a layer; of fractions by their square root."""
    nodes = {n.name: n for n in linear_nodes(graph)}
    bias, weights = {}, {}
    for i, layer in enumerate(layers):
        third = min(2, 3 * (len(layers) - 1 - i) // max(1, len(layers)))
        points = _WEIGHT_POINTS[kind(graph, nodes[layer.name])][third]
        bias[layer.name] = _BIAS_POINTS[third] / 100
        weights[layer.name] = {f: points / 100 * math.sqrt(f) for f in FRACTIONS} if points > 0 else {}
    return Gains(bias, weights)
