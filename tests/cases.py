"""One list of operator cases: what the reference executor is compared with LiteRT on, and the generated C with it.

A case is a small .tflite model and inputs for it. `CASES` is fixed; `random_cases(n)` makes more from a seed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from tflite_builder import GraphBuilder

from tte.frontend import tflite
from tte.frontend.schema import RawModel, write
from tte.ir import Graph

Make = Callable[[GraphBuilder], None]


@dataclass(frozen=True)
class Case:
    """A small model.

    Attributes:
        name: unique; seeds weights, scales and inputs.
        make: grows the model; its last tensor is the output.
        flat: whether inputs of one value throughout are tried (LiteRT aborts on more than 511 equal classes).
    """

    name: str
    make: Make
    flat: bool = True

    def raw(self) -> RawModel:
        builder = GraphBuilder(zlib.crc32(self.name.encode()))
        self.make(builder)
        return builder.model()

    def model(self) -> bytes:
        """The .tflite file."""
        return write(self.raw())

    def graph(self) -> Graph:
        """The imported graph."""
        return tflite.from_bytes(self.model(), "case", self.name, single=False)

    def inputs(self, count: int = 2) -> Iterator[list[np.ndarray]]:
        """Sets of inputs: `count` random ones, then all lowest, all highest, and both at random."""
        graph = self.graph()
        shapes = [graph.type(n).shape for n in graph.inputs]
        rng = np.random.default_rng(zlib.crc32(self.name.encode()) + 1)
        for _ in range(count):
            yield [rng.integers(-128, 128, s).astype(np.int8) for s in shapes]
        if self.flat:
            yield [np.full(s, -128, np.int8) for s in shapes]
            yield [np.full(s, 127, np.int8) for s in shapes]
            yield [rng.choice(np.array([-128, 127], np.int8), s) for s in shapes]


def requantised(b: GraphBuilder, index: int, factor: float = 1.0, zero_point: int | None = None) -> int:
    """The tensor with its scale times `factor` and another zero point (before anything else reads it)."""
    t = b.tensors[index]
    points = t.zero_points if zero_point is None else np.full_like(t.zero_points, zero_point)
    b.tensors[index] = replace(t, scales=(t.scales * np.float32(factor)).astype(np.float32), zero_points=points)
    return index


def conv(h: int, w: int, c: int, o: int, factor: float = 1.0, zero: int | None = None, **how: object) -> Make:
    def make(b: GraphBuilder) -> None:
        x = b.input((1, h, w, c), zero_point=b.random_zero_point())
        requantised(b, b.conv_2d(x, o, **how), factor, zero)  # type: ignore[arg-type]

    return make


def depthwise(h: int, w: int, c: int, m: int, factor: float = 1.0, **how: object) -> Make:
    def make(b: GraphBuilder) -> None:
        x = b.input((1, h, w, c), zero_point=int(b.rng.integers(-128, 128)))
        requantised(b, b.depthwise_conv_2d(x, m, **how), factor)  # type: ignore[arg-type]

    return make


def dense(k: int, o: int, factor: float = 1.0, zero: int = 5, **how: object) -> Make:
    def make(b: GraphBuilder) -> None:
        requantised(b, b.fully_connected(b.input((1, k), zero_point=zero), o, **how), factor)  # type: ignore[arg-type]

    return make


def dense_rows(rows: int, k: int, o: int, keep: bool) -> Make:
    def make(b: GraphBuilder) -> None:
        x = b.input((1, rows, k))
        w = b._weights((o, k), 0, False)
        shape = (1, rows, o) if keep else (rows, o)
        b.op("FULLY_CONNECTED", [x, w, b._bias(x, w, o)], shape, b._spread(x, w, k), 3, {"keep_num_dims": keep})

    return make


def binary(
    opcode: str,
    a: tuple[int, ...],
    c: tuple[int, ...],
    activation: str = "NONE",
    constant: str = "",
    scales: tuple[float, float] = (0.05, 0.031),
    factor: float = 1.0,
) -> Make:
    """`constant`: "a" or "b" is a constant instead of an input."""

    def make(b: GraphBuilder) -> None:
        def operand(which: str, shape: tuple[int, ...], scale: float) -> int:
            zero = int(b.rng.integers(-128, 128))
            if constant == which:
                return b.constant(b.rng.integers(-128, 128, shape, np.int8), scale, zero)
            return b.input(shape, scale, zero)

        x, y = operand("a", a, scales[0]), operand("b", c, scales[1])
        requantised(b, b.elementwise(opcode, x, y, activation), factor)

    return make


def pool(opcode: str, h: int, w: int, c: int, kernel: tuple[int, int], stride: tuple[int, int], **how: str) -> Make:
    def make(b: GraphBuilder) -> None:
        x = b.input((1, h, w, c), zero_point=b.random_zero_point())
        b.pool(opcode, x, kernel, stride, **how)  # type: ignore[arg-type]

    return make


def mean(shape: tuple[int, ...], axes: tuple[int, ...], keep: bool, factor: float | None = None) -> Make:
    def make(b: GraphBuilder) -> None:
        x = b.input(shape, zero_point=int(b.rng.integers(-128, 128)))
        y = b.mean(x, axes, keep, requantise=factor is not None)
        requantised(b, y, factor or 1.0)

    return make


def table(opcode: str, factor: float = 1.0, scale: float = 0.05, zero: int | None = None, **options: float) -> Make:
    def make(b: GraphBuilder) -> None:
        x = b.input((1, 16, 17, 2), scale, b.random_zero_point() if zero is None else zero)  # more than one piece
        if opcode == "QUANTIZE":
            b.quantize(x, scale * factor, b.random_zero_point())
        elif opcode in ("LOGISTIC", "TANH"):  # their output scales are fixed
            b.activation(opcode, x)
        else:
            requantised(b, b.activation(opcode, x, **options), factor)

    return make


def pad(shape: tuple[int, ...], pads: list[tuple[int, int]], value: int | None = None) -> Make:
    return lambda b: void(b.pad(b.input(shape, zero_point=b.random_zero_point()), pads, value))


def reshape(opcode: str, shape: tuple[int, ...], to: tuple[int, ...]) -> Make:
    def make(b: GraphBuilder) -> None:
        x = b.input(shape)
        if opcode == "RESHAPE":
            b.reshape(x, to)
        elif opcode == "SQUEEZE":
            b.same("SQUEEZE", x, to)
        else:
            b.same("EXPAND_DIMS", x, to, b.int32(1))

    return make


def concatenation(shapes: list[tuple[int, ...]], axis: int) -> Make:
    def make(b: GraphBuilder) -> None:
        parts = [b.input(s, zero_point=-7) for s in shapes]
        shape = list(shapes[0])
        shape[axis] = sum(s[axis] for s in shapes)
        b.same("CONCATENATION", parts[0], shape, *parts[1:], axis=axis)

    return make


def softmax(shape: tuple[int, ...], scale: float, beta: float = 1.0) -> Make:
    return lambda b: void(b.activation("SOFTMAX", b.input(shape, scale, b.random_zero_point()), beta=beta))


def residual(b: GraphBuilder) -> None:
    """A block of the networks: padding, three convolutions, a fan-out that an ADD joins, pooling and a head."""
    x = b.input((1, 9, 9, 3))
    y = b.conv_2d(b.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]), 6, padding="VALID", stride=(2, 2), activation="RELU6")
    z = b.depthwise_conv_2d(b.conv_2d(y, 12, (1, 1), activation="RELU"), 1, activation="RELU")
    z = b.elementwise("ADD", y, b.conv_2d(z, 6, (1, 1)))
    z = b.reshape(b.pool("AVERAGE_POOL_2D", z, (5, 5), (1, 1)), (1, 6))
    b.activation("SOFTMAX", b.fully_connected(z, 4))


def gated(b: GraphBuilder) -> None:
    """Squeeze and excitation: a MUL that broadcasts over the image, with MEAN, LOGISTIC and HARD_SWISH."""
    x = b.conv_2d(b.input((1, 8, 7, 2)), 5)
    h = b.activation("HARD_SWISH", x)
    gate = b.conv_2d(b.mean(h, (1, 2), True), 5, (1, 1))
    y = b.elementwise("MUL", h, b.activation("LOGISTIC", gate))
    b.fully_connected(b.mean(y, (1, 2)), 3)


def void(_: object) -> None:
    """Drops a result."""


def _weighted() -> Iterator[Case]:
    for k in (1, 3, 5, 7):
        for stride in (1, 2):
            for padding in ("SAME", "VALID"):
                how = {"kernel": (k, k), "stride": (stride, stride), "padding": padding, "per_channel": k != 3}
                yield Case(f"conv-{k}-{stride}-{padding}", conv(8 + k % 2, 9, 3, 4, activation="RELU6", **how))
                yield Case(f"depthwise-{k}-{stride}-{padding}", depthwise(9, 8 + k % 2, 3, 1 + stride // 2, **how))
    for padding in ("SAME", "VALID"):
        how = {"kernel": (3, 2), "dilation": (2, 3), "padding": padding}
        yield Case(f"conv-dilated-{padding}", conv(11, 12, 2, 3, **how))
        yield Case(f"depthwise-dilated-{padding}", depthwise(11, 12, 2, 3, **how))
    yield Case("conv-uneven", conv(7, 13, 4, 5, kernel=(5, 3), stride=(2, 3), activation="RELU"))
    yield Case("depthwise-no-bias", depthwise(5, 5, 4, 2, bias=False, activation="RELU_N1_TO_1"))
    yield Case("conv-saturating", conv(6, 6, 8, 6, 0.05))
    yield Case("conv-saturating-relu", conv(6, 6, 8, 6, 0.1, -100, activation="RELU"))
    yield Case("conv-coarse", conv(6, 6, 8, 6, 200.0))
    yield Case("conv-large-multiplier", conv(4, 4, 2, 3, 2e-6))
    yield Case("depthwise-saturating", depthwise(6, 6, 4, 2, 0.05))
    for per_channel in (False, True):
        for factor in (1.0, 0.1, 300.0):
            how = {"per_channel": per_channel, "activation": "RELU" if factor == 1 else "NONE"}
            yield Case(f"dense-{per_channel}-{factor}", dense(70, 33, factor, **how))
    yield Case("dense-no-bias", dense(9, 1, bias=False))
    for keep in (False, True):
        yield Case(f"dense-rows-{keep}", dense_rows(5, 17, 6, keep))


def _elementwise() -> Iterator[Case]:
    image, channel = (1, 5, 4, 6), (1, 1, 1, 6)
    for op in ("ADD", "SUB", "MUL"):
        yield Case(f"{op}-same", binary(op, image, image))
        yield Case(f"{op}-relu", binary(op, image, image, "RELU"))
        yield Case(f"{op}-relu6", binary(op, image, image, "RELU6", factor=0.4))
        yield Case(f"{op}-n1", binary(op, image, image, "RELU_N1_TO_1"))
        yield Case(f"{op}-channel", binary(op, image, channel))
        yield Case(f"{op}-channel-first", binary(op, channel, image))
        yield Case(f"{op}-rank", binary(op, image, (6,), constant="b"))
        yield Case(f"{op}-scalar", binary(op, image, (), constant="b"))
        yield Case(f"{op}-constant-first", binary(op, image, image, constant="a"))
        yield Case(f"{op}-outer", binary(op, (1, 5, 1, 6), (1, 1, 4, 1)))
        yield Case(f"{op}-column", binary(op, image, (1, 5, 1, 1)))
        yield Case(f"{op}-saturating", binary(op, image, image, factor=0.05))
        yield Case(f"{op}-apart", binary(op, image, image, scales=(1e-3, 10.0)))
        yield Case(f"{op}-rank2", binary(op, (1, 40), (1, 40), scales=(0.7, 0.7)))
    large, half = (1, 12, 12, 8), (0.5, 0.5)
    for op, factor in (("ADD", 1.25), ("SUB", 1.25), ("MUL", 0.8)):  # a sum over 2, a product over 64: ties
        yield Case(f"{op}-ties", binary(op, large, large, scales=half, factor=factor))
    yield Case("MUL-large", binary("MUL", image, image, factor=1e-4))


def _pools() -> Iterator[Case]:
    for op in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
        for kernel, stride, padding in (
            ((2, 2), (2, 2), "VALID"),
            ((2, 2), (2, 2), "SAME"),
            ((3, 3), (2, 2), "SAME"),
            ((3, 3), (1, 1), "SAME"),
            ((3, 2), (1, 2), "VALID"),
            ((7, 5), (7, 5), "VALID"),
            ((2, 2), (3, 3), "SAME"),
        ):
            name = f"{op}-{kernel[0]}{kernel[1]}-{stride[0]}{stride[1]}-{padding}"
            yield Case(name, pool(op, 7, 5, 3, kernel, stride, padding=padding))
        yield Case(f"{op}-relu6", pool(op, 6, 6, 3, (2, 2), (2, 2), activation="RELU6"))
    image = (1, 6, 5, 7)
    for i, factor in enumerate((None, 1.0, 0.3, 8.0)):
        yield Case(f"mean-image-{i}", mean(image, (1, 2), False, factor))
        yield Case(f"mean-keep-{i}", mean(image, (1, 2), True, factor))
        yield Case(f"mean-channel-{i}", mean(image, (3,), False, factor))
        yield Case(f"mean-row-{i}", mean(image, (-3,), True, factor))
        yield Case(f"mean-apart-{i}", mean(image, (1, 3), False, factor))
        yield Case(f"mean-all-{i}", mean(image, (0, 1, 2, 3), False, factor))
    yield Case("mean-rank3", mean((1, 12, 5), (1,), False))
    yield Case("mean-large", mean((1, 48, 40, 3), (1, 2), False, 0.9))


def _tables() -> Iterator[Case]:
    for op in ("RELU", "RELU6", "RELU_N1_TO_1", "HARD_SWISH", "QUANTIZE"):
        for i, factor in enumerate((1.0, 0.3, 2.7, 40.0, 4.0)):  # the last: ties
            yield Case(f"{op}-{i}", table(op, factor))
    for i, alpha in enumerate((0.01, 0.3, 1.5, -0.4)):
        yield Case(f"LEAKY_RELU-{i}", table("LEAKY_RELU", alpha=alpha))
    yield Case("LEAKY_RELU-ties", table("LEAKY_RELU", 20 / 7, alpha=0.25))
    for op in ("LOGISTIC", "TANH"):
        for i, scale in enumerate((0.01, 0.05, 0.3, 3.0)):
            yield Case(f"{op}-{i}", table(op, scale=scale))
    for zero in (-128, 127):
        yield Case(f"HARD_SWISH-zero{zero}", table("HARD_SWISH", zero=zero, scale=0.09))


def _movers() -> Iterator[Case]:
    yield Case("pad-image", pad((1, 4, 5, 3), [(0, 0), (1, 2), (3, 0), (0, 0)]))
    yield Case("pad-channel", pad((1, 4, 5, 3), [(0, 0), (0, 0), (0, 0), (2, 1)]))
    yield Case("pad-all", pad((1, 3, 4, 2), [(0, 0), (1, 0), (0, 1), (1, 1)]))
    yield Case("pad-value", pad((1, 3, 4, 2), [(0, 0), (1, 0), (0, 1), (1, 1)], 77))
    yield Case("pad-rank2", pad((1, 9), [(0, 0), (4, 2)]))
    yield Case("reshape", reshape("RESHAPE", (1, 4, 3, 2), (1, 2, 12)))
    yield Case("squeeze", reshape("SQUEEZE", (1, 1, 3, 2), (3, 2)))
    yield Case("expand", reshape("EXPAND_DIMS", (1, 3, 2), (1, 1, 3, 2)))
    yield Case("concatenation-channel", concatenation([(1, 3, 4, 2), (1, 3, 4, 5), (1, 3, 4, 1)], 3))
    yield Case("concatenation-negative", concatenation([(1, 3, 4, 2), (1, 3, 4, 5)], -1))
    yield Case("concatenation-row", concatenation([(1, 3, 4, 2), (1, 1, 4, 2)], 1))
    yield Case("concatenation-rank2", concatenation([(1, 6), (1, 7)], 1))
    for i, (scale, beta) in enumerate(((0.1, 1.0), (0.01, 1.0), (1.0, 1.0), (0.05, 2.5), (20.0, 1.0), (1e-5, 1.0))):
        yield Case(f"softmax-{i}", softmax((1, 10), scale, beta))
    yield Case("softmax-two", softmax((1, 2), 0.2))
    yield Case("softmax-one", softmax((1, 1), 0.2))
    yield Case("softmax-thousand", softmax((1, 1000), 0.17), flat=False)
    yield Case("softmax-rows", softmax((1, 3, 4, 5), 0.3))
    yield Case("network-residual", residual)
    yield Case("network-gated", gated)


CASES: tuple[Case, ...] = (*_weighted(), *_elementwise(), *_pools(), *_tables(), *_movers())


def random_cases(count: int, seed: int = 0) -> list[Case]:
    """`count` single-operator cases with random shapes, scales and attributes."""
    return [_random_case(seed + i) for i in range(count)]


def _random_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)

    def n(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    def one(*choices: object) -> object:
        return choices[n(0, len(choices) - 1)]

    factor = float(10 ** rng.uniform(-1.5, 1.5))
    activation = one("NONE", "RELU", "RELU6", "RELU_N1_TO_1")
    kernel, stride = (n(1, 5), n(1, 5)), (n(1, 3), n(1, 3))
    window = {"kernel": kernel, "stride": stride, "padding": one("SAME", "VALID")}
    h, w, c = n(5, 12), n(5, 12), n(1, 9)
    full = (1, n(1, 6), n(1, 6), n(1, 6))
    part = tuple(d if rng.random() < 0.6 else 1 for d in full)[n(0, 3) :]
    kinds: list[Callable[[], Make]] = [
        lambda: conv(h, w, c, n(1, 9), factor, activation=activation, per_channel=bool(n(0, 1)), **window),
        lambda: depthwise(h, w, c, n(1, 3), factor, activation=activation, per_channel=bool(n(0, 1)), **window),
        lambda: dense(n(1, 99), n(1, 20), factor, n(-128, 127), activation=activation, per_channel=bool(n(0, 1))),
        lambda: binary(
            str(one("ADD", "SUB", "MUL")), full, part, str(activation), "b" * (len(part) < 4), factor=factor
        ),
        lambda: pool(
            str(one("AVERAGE_POOL_2D", "MAX_POOL_2D")), h, w, c, kernel, stride, padding=str(window["padding"])
        ),
        lambda: mean((1, h, w, c), tuple(sorted({n(1, 3), n(1, 3)})), bool(n(0, 1)), factor),
        lambda: table(
            str(one("RELU", "RELU6", "HARD_SWISH", "LOGISTIC", "TANH", "QUANTIZE")), factor + 0.01, factor / 20
        ),
        lambda: softmax((1, n(1, 40)), factor / 5),
        lambda: pad((1, h, w, c), [(0, 0), (n(0, 3), n(0, 3)), (n(0, 3), n(0, 3)), (n(0, 1), 0)]),
    ]
    kind = n(0, len(kinds) - 1)
    return Case(f"random-{seed}-{kind}", kinds[kind]())
