"""What `make bench` measures: small networks that hold every kind of operator, the demo's model, and the shared models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tflite_builder import GraphBuilder

from tte.compiler import Options
from tte.training.autodiff import Numerics

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
MODELS = ("ad01_int8", "kws_ref_model", "mbv2-w0.35", "mcunet-5fps", "pretrainedResnet_quant", "vww_96_int8")

Grow = Callable[[GraphBuilder], int]


@dataclass(frozen=True)
class Case:
    """One program to count.

    Attributes:
        name: unique.
        options: what it is compiled with.
        grow: makes a small network; None where `file` is a model's file.
        scheme: text of an update scheme, for a network.
        steps: whether every step is a row of the table, else every kind of operator and the whole.
    """

    name: str
    options: Options
    grow: Grow | None = None
    file: Path = Path()
    scheme: str = ""
    steps: bool = False

    @property
    def shared(self) -> bool:
        """It needs files that are no part of the repository."""
        return SHARED in self.file.parents

    @property
    def missing(self) -> bool:
        return self.grow is None and not self.file.exists()


def _named(b: GraphBuilder, index: int, name: str) -> int:
    """Names a result, and by it the layer."""
    b.tensors[index] = replace(b.tensors[index], name=name)
    return index


def _conv(b: GraphBuilder, x: int, channels: int, k: int, stride: int = 1) -> int:
    # Without an activation few errors are zero: kernels that skip zeros show what dense errors cost.
    h, w, depth = b.shape(x)[1:]
    name = f"{k}x{k}{f' stride {stride}' if stride > 1 else ''} {h}x{w}x{depth} to {channels}"
    return _named(b, b.conv_2d(x, channels, (k, k), (stride, stride)), name)


def _depthwise(b: GraphBuilder, x: int, k: int, stride: int = 1) -> int:
    h, w, depth = b.shape(x)[1:]
    name = f"depthwise {k}x{k}{f' stride {stride}' if stride > 1 else ''} {h}x{w}x{depth}"
    return _named(b, b.depthwise_conv_2d(x, 1, (k, k), (stride, stride)), name)


def _dense(b: GraphBuilder, x: int, units: int) -> int:
    name = f"dense {b.shape(x)[1]} to {units}"
    return _named(b, b.fully_connected(x, units), name)


def _head(b: GraphBuilder, x: int) -> int:
    return _dense(b, _named(b, b.mean(x), "mean"), 10)


def pointwise(b: GraphBuilder) -> int:
    """1x1 convolutions of 16, 48 and 128 input channels, and of sizes that leave rests."""
    x = b.input((1, 12, 12, 8))
    for channels in (16, 48, 128, 16):
        x = _conv(b, x, channels, 1)
    x = _named(b, b.pool("AVERAGE_POOL_2D", x), "average pool 2x2 12x12x16")
    return _head(b, _conv(b, _conv(b, _conv(b, x, 7, 1), 5, 1), 9, 1))


def windows(b: GraphBuilder) -> int:
    """Convolutions with a window; the first reads an image of three channels at stride 2."""
    x = _conv(b, b.input((1, 32, 32, 3)), 16, 3, 2)
    x = _conv(b, _conv(b, x, 16, 3), 24, 3, 2)
    x = _conv(b, _conv(b, x, 8, 5), 16, 5, 2)
    return _head(b, _conv(b, _conv(b, x, 5, 3), 7, 7))


def depthwise(b: GraphBuilder) -> int:
    """Depthwise convolutions at stride 1, one of an odd number of channels."""
    x = _conv(b, b.input((1, 12, 12, 4)), 24, 1)
    for k in (3, 5, 7):
        x = _depthwise(b, x, k)
    return _head(b, _depthwise(b, _conv(b, x, 7, 1), 3))


def strided(b: GraphBuilder) -> int:
    """Depthwise convolutions at stride 2, on sizes even and odd."""
    x = _conv(b, b.input((1, 24, 24, 4)), 16, 1)
    for k in (3, 5, 7):
        x = _depthwise(b, x, k, 2)
    x = _named(b, b.pad(x, [(0, 0), (5, 5), (5, 5), (0, 0)]), "pad 3x3x16")
    x = _conv(b, x, 7, 1)
    for k in (3, 5, 7):
        x = _depthwise(b, x, k, 2)
    return _head(b, x)


def dense(b: GraphBuilder) -> int:
    """Fully connected layers, one with rests."""
    x = _dense(b, b.input((1, 256)), 128)
    return _dense(b, _dense(b, _dense(b, x, 128), 33), 10)


def others(b: GraphBuilder) -> int:
    """Every other operator, on 8x8x16."""
    x = first = _conv(b, b.input((1, 8, 8, 4)), 16, 1)
    for op in ("ADD", "SUB", "MUL"):
        x = _named(b, b.elementwise(op, x, first), op.lower())
    gate = _named(b, b.mean(x, (1, 2), True, requantise=True), "mean, kept")
    x = _named(b, b.elementwise("MUL", x, _named(b, b.activation("LOGISTIC", gate), "logistic")), "mul by channel")
    for op in ("RELU", "RELU6", "RELU_N1_TO_1", "HARD_SWISH", "TANH"):
        x = _named(b, b.activation(op, x), op.lower())
    x = _named(b, b.quantize(_named(b, b.activation("LEAKY_RELU", x, alpha=0.2), "leaky_relu"), 0.02, 3), "quantize")
    other = _named(b, b.quantize(first, 0.02, 3), "quantize, too")
    x = _named(b, b.concatenation([x, other]), "concatenation")
    x = _named(b, b.pool("MAX_POOL_2D", x, (3, 3), (1, 1), "SAME"), "max pool 3x3")
    x = _named(b, b.pool("AVERAGE_POOL_2D", x, (3, 3), (2, 2), "SAME"), "average pool 3x3 stride 2")
    x = _named(b, b.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]), "pad")
    x = _named(b, b.pool("MAX_POOL_2D", x, (2, 2), (2, 2)), "max pool 2x2")
    x = _named(b, b.pool("AVERAGE_POOL_2D", x, (3, 3), (1, 1)), "average pool, all")
    return _named(b, b.activation("SOFTMAX", _dense(b, b.reshape(x, (1, 32)), 10)), "softmax")


def mixed(b: GraphBuilder) -> int:
    """One layer of each kind that has weights: for the modes of the update."""
    x = _conv(b, b.input((1, 12, 12, 8)), 24, 1)
    return _head(b, _conv(b, _depthwise(b, _conv(b, x, 16, 3), 3), 32, 1))


#: A part of the channels trains: weights lie in two places, and only those channels are kept.
_PARTS = "[weights]\n" + "".join(
    f'"{layer}" = 0.5\n' for layer in ("3x3 12x12x24 to 16", "depthwise 3x3 12x12x16", "1x1 12x12x16 to 32")
)


def _operators() -> Iterator[Case]:
    whole = Options(stream=False)
    for grow in (pointwise, windows, depthwise, strided, dense, others):
        name = grow.__name__
        yield Case(f"{name}, inference", replace(whole, update="none"), grow, steps=True)
        yield Case(f"{name}, training", replace(whole, update="full"), grow, steps=True)
    for mode, batch in (("r8", 1), ("sr", 1), ("r4", 4)):
        options = replace(whole, update="full", numerics=Numerics(mode=mode, batch=batch))
        yield Case(f"mixed, training {mode}{f' batch {batch}' if batch > 1 else ''}", options, mixed, steps=True)
    yield Case("mixed, training parts", whole, mixed, scheme=_PARTS, steps=True)


def _models() -> Iterator[Case]:
    digits = ROOT / "demo" / "digits.tflite"
    for update in ("none", "last", "bias", "full"):
        what = "inference" if update == "none" else f"training {update}"
        yield Case(f"digits, {what}", Options(update=update), file=digits)
    for model in MODELS:
        yield Case(f"{model}, inference", Options(update="none"), file=SHARED / "models" / f"{model}.tflite")
    # What more memory than the least buys: convolutions that run whole instead of row by row.
    for model, room in (("kws_ref_model", 20_000), ("pretrainedResnet_quant", 30_000)):
        file = SHARED / "models" / f"{model}.tflite"
        yield Case(f"{model}, inference, arena of {room:,} bytes", Options(update="none", budget=room), file=file)
    for model, schemes in (("mcunet-5fps", (49, 74, 99, 124, 148)), ("mbv2-w0.35", (49, 73, 99, 123, 138))):
        for scheme in schemes:
            options = Options(update=str(SHARED / "schemes" / f"{model}-{scheme}kb.toml"), classes=10)
            yield Case(f"{model}, training {scheme}kb", options, file=SHARED / "models" / f"{model}.tflite")


CASES: dict[str, Case] = {case.name: case for case in (*_operators(), *_models())}
