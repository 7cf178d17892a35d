"""Random small models, their update schemes and numerics: what the whole way from a file to C is tried on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from cases import requantised
from tflite_builder import GraphBuilder

from tte import passes
from tte.compiler import Compiled, Options, compile_model
from tte.errors import ModelError
from tte.frontend import tflite
from tte.planner.schedule import Program
from tte.planner.stream import _Search
from tte.training import scheme
from tte.training.autodiff import Numerics


@dataclass(frozen=True)
class Sample:
    """A random model with how it trains.

    Attributes:
        data: the .tflite file.
        layers: (name, trained bias, fraction of the weights' channels; 0: frozen).
        redraw: steps after which other channels train; 0: never.
    """

    seed: int
    data: bytes
    layers: tuple[tuple[str, bool, float], ...]
    numerics: Numerics
    loss: str
    classes: int
    redraw: int = 0

    def scheme(self) -> str:
        """The update scheme as TOML."""
        bias = [name for name, trains, _ in self.layers if trains]
        weights = [f'"{name}" = {fraction}' for name, _, fraction in self.layers if fraction]
        head = f"head = {str(self.seed % 5 > 0).lower()}"
        redraw = self.redraw if any(0 < f < 1 for _, _, f in self.layers) else 0  # refused where no layer trains in part
        return "\n".join([head, f"redraw = {redraw}", f"bias = {bias}", "[weights]", *weights])

    def compile(self, folder: Path, rows: bool = False, stream: bool = True) -> Compiled | None:
        """Through `compile_model`, as `tte build` does; None where the scheme cannot train, or not with row input."""
        model, toml = folder / f"r{self.seed}.tflite", folder / f"r{self.seed}.toml"
        model.write_bytes(self.data)
        toml.write_text(self.scheme(), encoding="utf-8")
        try:
            options = Options(self.classes, str(toml), self.loss, self.seed, self.numerics, rows=rows, stream=stream)
            return compile_model(model, options)
        except ModelError as error:
            known = ["nothing would train", "cannot train", *(["input whole", "row by row"] if rows else [])]
            if any(words in str(error) for words in known):
                return None
            raise


def sample(seed: int) -> Sample:
    """The sample of that number: branches that meet, several readers of a tensor, every kind of layer."""
    rng = np.random.default_rng(seed)
    return _sample(seed, rng, *_model(rng))


def image_sample(seed: int) -> Sample:
    """A sample that is mostly made of what works row by row, and whose first layers mostly stay frozen."""
    rng = np.random.default_rng((seed, 1))
    made = _sample(seed, rng, *_image_model(rng))
    keep = int(rng.integers(0, len(made.layers) + 1)) if rng.random() < 0.7 else 0
    layers = tuple((name, *((False, 0.0) if i < keep else how)) for i, (name, *how) in enumerate(made.layers))
    return replace(made, layers=layers)  # type: ignore[arg-type]


def _sample(seed: int, rng: np.random.Generator, data: bytes, loss: str) -> Sample:
    graph = passes.run(passes.NORMALISE, tflite.from_bytes(data, f"r{seed}", f"r{seed}"))
    layers = tuple(
        (n.name, bool(rng.random() < 0.6), float(rng.choice([0, 0, 0.25, 0.6, 1.0])))
        for n in scheme.linear_nodes(graph)
    )
    mode = str(rng.choice(["r4", "r8", "sr", "nearest"]))
    numerics = Numerics(float(10 ** rng.uniform(-2.5, 0)), mode, int(rng.choice([1, 1, 2, 3])))
    classes = int(rng.integers(2, 9)) if loss == "cross-entropy" and rng.random() < 0.3 else 0
    return Sample(seed, data, layers, numerics, loss, classes, numerics.batch * (0, 1, 0, 2)[seed % 4])


def _model(rng: np.random.Generator) -> tuple[bytes, str]:
    b = GraphBuilder(int(rng.integers(1 << 30)))
    shape = (1, int(rng.integers(4, 10)), int(rng.integers(4, 10)), int(rng.integers(1, 5)))
    ends = [b.input(shape, float(rng.uniform(0.005, 0.1)), int(rng.choice([-128, -3, 0, 40])))]
    for _ in range(int(rng.integers(3, 9))):
        x = ends[int(rng.integers(max(0, len(ends) - 3), len(ends)))]  # an older one gets another reader
        ends.append(_layer(b, rng, x, ends))
    x = ends[-1]
    if rng.random() < 0.15:
        y = b.conv_2d(x, int(rng.integers(1, 4)), (1, 1))  # mean squared error on an image
        return b.build(y), "mse"
    if rng.random() < 0.6 and len(b.shape(x)) == 4:
        x = b.mean(x, (1, 2), bool(rng.integers(2)), bool(rng.integers(2)))
    if len(b.shape(x)) == 4 and b.shape(x)[1:3] == (1, 1) and rng.random() < 0.4:
        x = b.reshape(b.conv_2d(x, 5, (1, 1)), (1, 5))
    else:
        if rng.random() < 0.5:
            x = b.reshape(x, (1, int(np.prod(b.shape(x)))))
        x = b.fully_connected(x, int(rng.integers(2, 7)), per_channel=bool(rng.integers(2)))
    if rng.random() < 0.15:
        return b.build(x), "mse"
    if rng.random() < 0.6:
        x = b.activation("SOFTMAX", x, beta=1.0)
    return b.build(x), "cross-entropy"


def _layer(b: GraphBuilder, rng: np.random.Generator, x: int, ends: list[int]) -> int:
    """One operator more."""

    def n(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    _, h, w, c = b.shape(x)
    act = str(rng.choice(["NONE", "RELU", "RELU6"]))
    padding = "SAME" if min(h, w) < 5 else str(rng.choice(["SAME", "VALID"]))
    k, s = (int(rng.choice([1, 2, 3, 5])), int(rng.choice([1, 3]))), (n(1, 2), n(1, 2))
    per_channel = bool(n(0, 1))
    factor = float(10 ** rng.uniform(-0.6, 0.4))  # how often the output is clipped
    pairs = [y for y in ends if b.shape(y) == b.shape(x) and y != x]
    kind = n(0, 13)
    if kind <= 3:
        y = b.conv_2d(x, n(1, 7), k, s, padding=padding, activation=act, per_channel=per_channel)
        return requantised(b, y, factor)
    if kind <= 5:
        y = b.depthwise_conv_2d(
            x, n(1, 2) if c < 8 else 1, k, s, padding=padding, activation=act, per_channel=per_channel
        )
        return requantised(b, y, factor)
    if kind <= 8:
        other = pairs[n(0, len(pairs) - 1)] if pairs else b.conv_2d(x, c, (1, 1), activation=act)
        if kind == 8 and n(0, 1):
            other = b.mean(other, (1, 2), True)  # broadcasts
        y = b.elementwise(str(rng.choice(["ADD", "ADD", "SUB", "MUL"])), x, other, act)
        return requantised(b, y, factor)
    if kind == 9 and min(h, w) >= 2:
        return b.pool(str(rng.choice(["AVERAGE_POOL_2D", "MAX_POOL_2D"])), x, (2, n(1, 2)), s, padding)
    if kind == 10 and min(h, w) >= 3:
        y = b.pad(x, [(0, 0), (n(0, 2), 1), (1, n(0, 2)), (0, 0)])
        return b.conv_2d(y, n(1, 5), (3, 3), s, padding="VALID", activation=act) if n(0, 1) else y
    if kind == 11 and c < 8:
        alike = [y for y in pairs if b.scale(y) == b.scale(x) and b.zero_point(y) == b.zero_point(x)]
        return b.concatenation([x, alike[0] if alike else x], 3)
    opcode = str(rng.choice(["RELU", "RELU6", "LEAKY_RELU", "HARD_SWISH", "LOGISTIC", "TANH", "QUANTIZE"]))
    if opcode == "QUANTIZE":
        return b.quantize(x, b.scale(x) * factor, b.random_zero_point())
    options = {"alpha": 0.2} if opcode == "LEAKY_RELU" else {}
    return b.activation(opcode, x, **options)


def _image_model(rng: np.random.Generator) -> tuple[bytes, str]:
    b = GraphBuilder(int(rng.integers(1 << 30)))
    shape = (1, int(rng.integers(1, 16)), int(rng.choice([3, 4, 4, 8])), int(rng.choice([1, 2, 3, 4, 8])))
    ends = [b.input(shape, float(rng.uniform(0.005, 0.1)), int(rng.choice([-128, -3, 0, 40])))]
    for _ in range(int(rng.integers(3, 9))):
        x = ends[-1] if rng.random() < 0.75 else ends[int(rng.integers(len(ends)))]
        ends.append(_row_layer(b, rng, x, ends))
    x = ends[-1]
    if rng.random() < 0.25:
        return b.build(x if x != ends[0] else b.conv_2d(x, 2)), "mse"  # an image
    if rng.random() < 0.5:
        x = b.mean(x, (1, 2), bool(rng.integers(2)), bool(rng.integers(2)))
    x = b.fully_connected(x, int(rng.integers(2, 7)), per_channel=bool(rng.integers(2)))
    return b.build(b.activation("SOFTMAX", x, beta=1.0) if rng.random() < 0.5 else x), "cross-entropy"


def _row_layer(b: GraphBuilder, rng: np.random.Generator, x: int, ends: list[int]) -> int:
    """One operator more; almost all can run row by row."""

    def n(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    _, h, w, c = b.shape(x)
    act = str(rng.choice(["NONE", "RELU", "RELU6"]))
    factor = float(10 ** rng.uniform(-0.6, 0.4))
    k, s = (int(rng.choice([1, 1, 2, 3, 3, 5])), int(rng.choice([1, 3]))), (int(rng.choice([1, 1, 1, 2, 3])), n(1, 2))
    d = (n(1, 3), n(1, 2)) if rng.random() < 0.25 else (1, 1)
    fits = h > (k[0] - 1) * d[0] and w > (k[1] - 1) * d[1]
    padding = str(rng.choice(["SAME", "VALID"])) if fits else "SAME"
    how = {"padding": padding, "activation": act, "per_channel": bool(n(0, 1))}
    pairs = [y for y in ends if b.shape(y) == b.shape(x) and y != x]
    kind = n(0, 11)
    if kind <= 3:
        return requantised(b, b.conv_2d(x, int(rng.choice([1, 2, 4, 8])), k, s, d, **how), factor)  # type: ignore[arg-type]
    if kind <= 5:
        return requantised(b, b.depthwise_conv_2d(x, n(1, 2) if c < 8 else 1, k, s, d, **how), factor)  # type: ignore[arg-type]
    if kind <= 8:
        if kind == 8:
            other = b.constant(b.rng.integers(-128, 128, b.shape(x), np.int8), 0.04, 5)
        elif pairs:
            other = pairs[n(0, len(pairs) - 1)]
        else:
            other = b.depthwise_conv_2d(x, 1, (3, 1), (1, 1)) if n(0, 1) else x
        operands = (x, other) if n(0, 1) else (other, x)
        return requantised(b, b.elementwise(str(rng.choice(["ADD", "ADD", "SUB", "MUL"])), *operands, act), factor)
    if kind == 9:
        size = (min(n(1, 3), h), min(2, w))
        return b.pool(str(rng.choice(["AVERAGE_POOL_2D", "MAX_POOL_2D"])), x, size, s, padding)
    if kind == 10:
        y = b.pad(x, [(0, 0), (n(0, 3), n(2, 3)), (1, n(1, 2)), (0, 0)])
        return b.conv_2d(y, n(1, 5), (min(k[0], 3), 3), s, padding="VALID", activation=act)
    opcode = str(rng.choice(["RELU", "LEAKY_RELU", "HARD_SWISH", "LOGISTIC", "QUANTIZE"]))
    if opcode == "QUANTIZE":
        return b.quantize(x, b.scale(x) * factor, b.random_zero_point())
    return b.activation(opcode, x, **({"alpha": 0.2} if opcode == "LEAKY_RELU" else {}))


def all_spans(streamable: Sequence[bool], first: int = 1) -> Iterator[list[tuple[int, int]]]:
    """Every way to cut nodes into whole steps and runs of streamable ones; the first span has at least `first` nodes."""

    def cut(start: int) -> Iterator[list[tuple[int, int]]]:
        if start == len(streamable):
            yield []
            return
        for end in range(start + 1, len(streamable) + 1):
            if end - start > 1 and not all(streamable[start:end]):
                break
            if start or end >= first:
                for rest in cut(end):
                    yield [(start, end), *rest]

    return cut(0)


def cut_at_random(program: Program, rng: np.random.Generator, rows: bool = False) -> Program | None:
    """The program with segments of random lengths, whether they pay or not; None where rows cannot be supplied."""
    try:
        search = _Search(program, rows)
    except ModelError:
        return None
    run = list(itertools.accumulate(reversed(search.streamable), lambda n, ok: (n + 1) * ok, initial=0))[:0:-1]
    first = search.last[search.supplied] + 1 if rows else 1
    if rows and run[0] < first:
        return None
    spans, at = [], 0
    while at < len(search.nodes):
        low = first if rows and not at else 1
        end = at + (int(rng.integers(low, run[at] + 1)) if run[at] >= low else 1)
        if rng.random() < 0.3 and run[at]:
            end = at + run[at]
        spans.append((at, end))
        at = end
    return search.apply(spans)
