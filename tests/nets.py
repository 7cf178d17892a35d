"""Training graphs for tests: of a model file, of one weighted layer behind another, of a long chain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tte import passes
from tte.compiler import choose_loss
from tte.frontend import tflite
from tte.ir import Builder, Graph, QuantParams, Role, TensorType, verify
from tte.ops.base import Control
from tte.ops.linear import Conv2D, DepthwiseConv2D, FullyConnected, Linear, Window
from tte.ops.loss import Loss
from tte.passes.dead import eliminate_dead
from tte.reference import Executor
from tte.training import scheme as schemes
from tte.training.autodiff import TRUTH, Numerics, derive
from tte.training.head import find, replace_head
from tte.training.scheme import LayerUpdate

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "demo" / "digits.tflite"
SHARED = ROOT.parent / "shared"


def shared(*parts: str) -> Path:
    """A file beside the repository; skips the running test where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path.name} is not here (../shared is no part of the repository)")
    return path


def forward_of(path: Path, classes: int = 0) -> Graph:
    """A model file's normalised inference graph, with a fresh head where `classes` is given."""
    forward = passes.run(passes.NORMALISE, tflite.load(path))
    return replace_head(forward, classes, 0) if classes else forward


def training(
    forward: Graph,
    update: str | Mapping[str, LayerUpdate],
    numerics: Numerics = Numerics(),
    loss: Loss | None = None,
) -> Graph:
    """The pruned training graph; `update` is a scheme or what trains by layer."""
    head = find(forward)
    updates = schemes.resolve(forward, schemes.load(update, forward), head.node) if isinstance(update, str) else update
    loss = loss or choose_loss(forward, head, "auto")
    return verify(eliminate_dead(derive(forward, head, loss, updates, numerics)))


def values_of(graph: Graph, inputs: Mapping[str, np.ndarray], control: Control = Control(0)) -> dict[str, np.ndarray]:
    """Every tensor of one run, parameters as before it. By default the learning rate is 0, so nothing moves."""
    values = {t.name: t.data for t in graph.tensors.values() if t.data is not None}
    values.update(inputs)
    for _, outputs in Executor(graph, control).steps(inputs):
        values.update({k: v for k, v in outputs.items() if graph.tensors[k].role is not Role.PARAM})
    return values


def random_inputs(graph: Graph, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """int8 over the whole range for every input; label 0."""
    inputs: dict[str, np.ndarray] = {}
    for name in graph.inputs:
        t = graph.type(name)
        inputs[name] = np.zeros((), np.int32) if t.dtype == "int32" else rng.integers(-128, 128, t.shape).astype(np.int8)
    return inputs


def label_of(graph: Graph, inputs: Mapping[str, np.ndarray], label: int) -> dict[str, np.ndarray]:
    """The inputs with another label."""
    return {**inputs, TRUTH: np.array(label, np.int32)}


@dataclass(frozen=True)
class LayerCase:
    """A weighted layer behind a pointwise one, so that its dX is wanted.

    Attributes:
        zero: zero point of the layer's input.
        ratio: largest over smallest weight scale; 1: quantised per tensor.
        channels: channels of the last weight axis that train; (): all.
    """

    kind: str
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)
    multiplier: int = 1
    zero: int = -128
    ratio: float = 1.0
    channels: tuple[int, ...] = ()
    activation: str = "NONE"

    def __str__(self) -> str:
        sizes = f"{self.kernel[0]}{self.kernel[1]}-s{self.stride[0]}{self.stride[1]}-d{self.dilation[0]}{self.dilation[1]}"
        return f"{self.kind}-{sizes}-z{self.zero}-r{self.ratio:g}-c{len(self.channels)}-{self.activation}"

    def op(self) -> Linear:
        window = Window(self.stride, self.dilation, self.pad)
        if self.kind == "dense":
            return FullyConnected(self.activation)
        return (Conv2D if self.kind == "conv" else DepthwiseConv2D)(self.activation, window=window)


def layer_net(case: LayerCase, rng: np.random.Generator, size: int = 9, depth: int = 4, width: int = 6) -> Graph:
    """`x -> front (pointwise, per tensor) -> layer`: a forward graph of two layers named "front" and "layer"."""
    dense = case.kind == "dense"
    b = Builder(str(case))
    x_shape = (1, depth) if dense else (1, size, size - 1, depth)
    x = b.add("x", TensorType(x_shape, "int8", QuantParams((0.05,), (int(rng.integers(-128, 128)),))), Role.INPUT)
    front = FullyConnected() if dense else Conv2D()
    h = add_linear(b, rng, "front", front, x, (depth, *(() if dense else (1, 1)), depth), zero=case.zero)
    if case.kind == "depthwise":
        shape: tuple[int, ...] = (1, *case.kernel, depth * case.multiplier)
    else:
        shape = (width, depth) if dense else (width, *case.kernel, depth)
    y = add_linear(b, rng, "layer", case.op(), h, shape, case.ratio, int(rng.integers(-60, 60)))
    return b.graph(("x",), (y,))


def add_linear(
    b: Builder,
    rng: np.random.Generator,
    name: str,
    op: Linear,
    x: str,
    shape: tuple[int, ...],
    ratio: float = 1.0,
    zero: int = 0,
    largest: float = 0.01,
) -> str:
    """A weighted node with random weights whose output fills int8 (some of it clipped); gives the output's name.

    Args:
        ratio: `largest` weight scale over the smallest one; 1: per tensor.
        zero: the output's zero point.
    """
    axis = len(shape) - 1 if op.title == "DEPTHWISE_CONV_2D" else 0
    count = shape[axis] if ratio != 1 else 1
    scales = tuple(float(np.float32(largest / ratio**v)) for v in rng.permutation(np.linspace(0, 1, count)))
    w_type = TensorType(shape, "int8", QuantParams(scales, (0,) * count, axis if count > 1 else None))
    w = b.add(f"{name}/w", w_type, Role.CONST, rng.integers(-127, 128, shape).astype(np.int8))
    bias = rng.integers(-2000, 2000, shape[axis]).astype(np.int32)
    bias_name = b.add(f"{name}/b", TensorType(bias.shape, "int32"), Role.CONST, bias)
    types = (b.tensors[x].type, w_type, b.tensors[bias_name].type)
    terms = math.prod(shape) // shape[axis]
    scale = float(np.float32(2 * 74 * 73 * math.sqrt(terms) * types[0].scale * max(scales) / 127))
    ((out_shape, dtype),) = op.infer(types)
    y = b.add(f"{name}/y", TensorType(out_shape, dtype, QuantParams((scale,), (zero,))))
    b.emit(name, op, (x, w, bias_name), (y,))
    return y


def chain(depth: int, rng: np.random.Generator, width: int = 8) -> Graph:
    """`depth` fully connected layers with RELU, then a head of 4 classes."""
    b = Builder(f"chain{depth}")
    x = b.add("x", TensorType((1, width), "int8", QuantParams((0.05,), (0,))), Role.INPUT)
    steady = 127 / (2 * 74 * 73 * math.sqrt(width))  # weight scale at which outputs are as large as inputs
    for i in range(depth):
        x = add_linear(b, rng, f"layer{i}", FullyConnected("RELU"), x, (width, width), zero=-128, largest=steady)
    return b.graph(("x",), (add_linear(b, rng, "head", FullyConnected(), x, (4, width)),))


def only(case: LayerCase) -> dict[str, LayerUpdate]:
    """Both layers of a `layer_net` train; of the second only the case's channels."""
    return {"front": LayerUpdate(True, True), "layer": LayerUpdate(True, True, case.channels)}

