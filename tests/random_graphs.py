"""Random small models, their update schemes and numerics: what the whole way from a file to C is tried on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cases import requantised
from tflite_builder import GraphBuilder

from tte import passes
from tte.compiler import Compiled, Options, compile_model
from tte.errors import ModelError
from tte.frontend import tflite
from tte.training import scheme
from tte.training.autodiff import Numerics


@dataclass(frozen=True)
class Sample:
    """A random model with how it trains.

    Attributes:
        data: the .tflite file.
        layers: (name, trained bias, fraction of the weights' channels; 0: frozen).
    """

    seed: int
    data: bytes
    layers: tuple[tuple[str, bool, float], ...]
    numerics: Numerics
    loss: str
    classes: int

    def scheme(self) -> str:
        """The update scheme as TOML."""
        bias = [name for name, trains, _ in self.layers if trains]
        weights = [f'"{name}" = {fraction}' for name, _, fraction in self.layers if fraction]
        return "\n".join([f"head = {str(self.seed % 5 > 0).lower()}", f"bias = {bias}", "[weights]", *weights])

    def compile(self, folder: Path) -> Compiled | None:
        """Through `compile_model`, as `tte build` does; None where the scheme cannot train."""
        model, toml = folder / f"r{self.seed}.tflite", folder / f"r{self.seed}.toml"
        model.write_bytes(self.data)
        toml.write_text(self.scheme(), encoding="utf-8")
        try:
            return compile_model(model, Options(self.classes, str(toml), self.loss, self.seed, self.numerics))
        except ModelError as error:
            if "nothing would train" in str(error) or "cannot train" in str(error):
                return None
            raise


def sample(seed: int) -> Sample:
    """The sample of that number: branches that meet, several readers of a tensor, every kind of layer."""
    rng = np.random.default_rng(seed)
    data, loss = _model(rng)
    graph = passes.run(passes.NORMALISE, tflite.from_bytes(data, f"r{seed}", f"r{seed}"))
    layers = tuple(
        (n.name, bool(rng.random() < 0.6), float(rng.choice([0, 0, 0.25, 0.6, 1.0]))) for n in scheme.linear_nodes(graph)
    )
    mode = str(rng.choice(["r4", "r8", "sr", "nearest"]))
    numerics = Numerics(float(10 ** rng.uniform(-2.5, 0)), mode, int(rng.choice([1, 1, 2, 3])))
    classes = int(rng.integers(2, 9)) if loss == "cross-entropy" and rng.random() < 0.3 else 0
    return Sample(seed, data, layers, numerics, loss, classes)


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
        y = b.depthwise_conv_2d(x, n(1, 2) if c < 8 else 1, k, s, padding=padding, activation=act, per_channel=per_channel)
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
