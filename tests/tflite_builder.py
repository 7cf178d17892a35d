"""Small .tflite models for tests, written with `tte.frontend.schema.write`.

`single_op` takes every tensor as given; `GraphBuilder` grows a graph and chooses random weights, and output scales that
use most of the int8 range without saturating everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tte.frontend.schema import RawModel, RawOperator, RawSubgraph, RawTensor, write
from tte.frontend.schema_tables import OPERATOR_CODES, OptionValue

# Lowest version of each operator that LiteRT's resolver accepts for int8; 1 where not listed.
_SECOND = (
    "ADD SUB MUL AVERAGE_POOL_2D MAX_POOL_2D MEAN PAD PADV2 CONCATENATION SOFTMAX LOGISTIC TANH RELU RELU6 LEAKY_RELU "
    "DEQUANTIZE TRANSPOSE STRIDED_SLICE PACK"
)
VERSIONS = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, **dict.fromkeys(_SECOND.split(), 2)}
OPTION_DEFAULTS: dict[str, dict[str, OptionValue]] = {
    "CONV_2D": {"stride_w": 1, "stride_h": 1},
    "DEPTHWISE_CONV_2D": {"stride_w": 1, "stride_h": 1, "depth_multiplier": 1},
    "AVERAGE_POOL_2D": {"stride_w": 1, "stride_h": 1, "filter_width": 2, "filter_height": 2},
    "MAX_POOL_2D": {"stride_w": 1, "stride_h": 1, "filter_width": 2, "filter_height": 2},
    "SOFTMAX": {"beta": 1.0},
}


@dataclass(frozen=True, eq=False)
class TensorSpec:
    """One tensor of `single_op`: quantised where `scale` is given (a sequence: per index of `quantized_dimension`)."""

    shape: tuple[int, ...]
    dtype: str = "int8"
    scale: float | Sequence[float] | np.ndarray | None = None
    zero_point: int | Sequence[int] | np.ndarray = 0
    data: np.ndarray | None = None
    quantized_dimension: int = 0
    name: str = ""
    is_variable: bool = False

    def raw(self, index: int) -> RawTensor:
        scales = np.zeros(0, np.float32) if self.scale is None else np.atleast_1d(np.asarray(self.scale, np.float32))
        zero_points = np.broadcast_to(np.asarray(self.zero_point, np.int64), scales.shape)
        return RawTensor(
            name=self.name or f"tensor{index}",
            shape=tuple(self.shape),
            dtype=self.dtype,
            data=None if self.data is None else np.asarray(self.data, self.dtype).reshape(self.shape),
            scales=scales,
            zero_points=zero_points,
            quantized_dimension=self.quantized_dimension,
            is_variable=self.is_variable,
        )


def constant(array: np.ndarray, scale: object = None, zero_point: object = 0, axis: int = 0) -> TensorSpec:
    """A `TensorSpec` that holds `array`, in its dtype."""
    return TensorSpec(array.shape, str(array.dtype), scale, zero_point, array, axis)  # type: ignore[arg-type]


def _operator(
    opcode: str,
    inputs: Sequence[int],
    outputs: Sequence[int],
    options: Mapping[str, OptionValue] | None,
    version: int | None,
) -> RawOperator:
    return RawOperator(
        opcode=opcode,
        builtin_code=OPERATOR_CODES[opcode],
        version=VERSIONS.get(opcode, 1) if version is None else version,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        options={**OPTION_DEFAULTS.get(opcode, {}), **(options or {})},
    )


def single_op(
    opcode: str,
    inputs: Sequence[TensorSpec | None],
    outputs: Sequence[TensorSpec],
    options: Mapping[str, OptionValue] | None = None,
    version: int | None = None,
) -> bytes:
    """A model of one operator. Inputs without `data` are the graph's inputs; None is an absent input."""
    specs = [spec for spec in (*inputs, *outputs) if spec is not None]
    numbers = iter(range(len(specs)))
    ins = [-1 if spec is None else next(numbers) for spec in inputs]
    outs = [next(numbers) for _ in outputs]
    graph = RawSubgraph(
        name="main",
        tensors=tuple(spec.raw(index) for index, spec in enumerate(specs)),
        operators=(_operator(opcode, ins, outs, options, version),),
        inputs=tuple(index for index in ins if index >= 0 and specs[index].data is None),
        outputs=tuple(outs),
    )
    return write(RawModel(graph, f"one {opcode}"))


class GraphBuilder:
    """Grows a model of several operators. Methods return the tensor index of their result; data is NHWC.

    Args:
        seed: of the weights, the scales and the zero points.
    """

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.tensors: list[RawTensor] = []
        self.operators: list[RawOperator] = []
        self.inputs: list[int] = []

    # ---- tensors

    def tensor(self, spec: TensorSpec) -> int:
        """Add a tensor as it is given."""
        self.tensors.append(spec.raw(len(self.tensors)))
        return len(self.tensors) - 1

    def input(self, shape: Sequence[int], scale: float = 0.05, zero_point: int = -3, dtype: str = "int8") -> int:
        """Add a graph input; a float32 one is not quantised."""
        quantised = dtype != "float32"
        index = self.tensor(TensorSpec(tuple(shape), dtype, scale if quantised else None, zero_point))
        self.inputs.append(index)
        return index

    def constant(self, array: np.ndarray, scale: object = None, zero_point: object = 0, axis: int = 0) -> int:
        """Add a constant in `array`'s dtype."""
        return self.tensor(constant(array, scale, zero_point, axis))

    def int32(self, *values: int) -> int:
        """Add a constant int32 vector (axes, shapes, ...)."""
        return self.constant(np.asarray(values, np.int32))

    def shape(self, index: int) -> tuple[int, ...]:
        return self.tensors[index].shape

    def scale(self, index: int) -> float:
        return float(self.tensors[index].scales[0])

    def zero_point(self, index: int) -> int:
        return int(self.tensors[index].zero_points[0])

    def random_zero_point(self) -> int:
        return int(self.rng.integers(-20, 21))

    # ---- operators

    def op(
        self,
        opcode: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        scale: float | None,
        zero_point: int = 0,
        options: Mapping[str, OptionValue] | None = None,
        dtype: str = "int8",
    ) -> int:
        """Add any operator of one output."""
        output = self.tensor(TensorSpec(tuple(shape), dtype, scale, zero_point))
        self.operators.append(_operator(opcode, inputs, [output], options, None))
        return output

    def same(self, opcode: str, x: int, shape: Sequence[int], *more: int, **options: OptionValue) -> int:
        """Add an operator whose output keeps `x`'s quantisation (pooling, padding, reshaping, ...)."""
        return self.op(opcode, [x, *more], shape, self.scale(x), self.zero_point(x), options)

    def window(
        self, x: int, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int], padding: str
    ) -> tuple[int, int]:
        """(height, width) of a windowed operator's result, by TensorFlow's definition of SAME and VALID."""
        sizes = []
        for size, k, s, d in zip(self.shape(x)[1:3], kernel, stride, dilation, strict=True):
            sizes.append(math.ceil(size / s) if padding == "SAME" else math.ceil((size - (k - 1) * d) / s))
        return sizes[0], sizes[1]

    def _weights(self, shape: tuple[int, ...], axis: int, per_channel: bool) -> int:
        scales = self.rng.uniform(0.002, 0.02, shape[axis] if per_channel else 1).astype(np.float32)
        return self.constant(self.rng.integers(-127, 128, shape, np.int8), scales, 0, axis)

    def _bias(self, x: int, weights: int, channels: int) -> int:
        scales = np.float32(self.scale(x)) * self.tensors[weights].scales
        return self.constant(self.rng.integers(-3000, 3000, channels, np.int32), scales)

    def _spread(self, x: int, weights: int, products: int) -> float:
        """Scale at which three standard deviations of a sum of `products` random int8 products reach 127."""
        deviation = math.sqrt(products) * 74.0 * 74.0  # 74: of a uniform int8
        return 3 * deviation * self.scale(x) * float(self.tensors[weights].scales.max()) / 127

    def conv_2d(
        self,
        x: int,
        channels: int,
        kernel: tuple[int, int] = (3, 3),
        stride: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
        padding: str = "SAME",
        activation: str = "NONE",
        per_channel: bool = True,
    ) -> int:
        """CONV_2D with random weights [channels, kernel height, kernel width, input channels]; pairs are (height, width)."""
        depth = self.shape(x)[3]
        weights = self._weights((channels, *kernel, depth), 0, per_channel)
        inputs = [x, weights, self._bias(x, weights, channels)]  # LiteRT refuses CONV_2D without a bias
        shape = (self.shape(x)[0], *self.window(x, kernel, stride, dilation, padding), channels)
        options = _window_options(stride, dilation, padding, activation)
        scale = self._spread(x, weights, kernel[0] * kernel[1] * depth)
        return self.op("CONV_2D", inputs, shape, scale, self.random_zero_point(), options)

    def depthwise_conv_2d(
        self,
        x: int,
        multiplier: int = 1,
        kernel: tuple[int, int] = (3, 3),
        stride: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
        padding: str = "SAME",
        activation: str = "NONE",
        per_channel: bool = True,
        bias: bool = True,
    ) -> int:
        """DEPTHWISE_CONV_2D with random weights [1, kernel height, kernel width, input channels * multiplier]."""
        channels = self.shape(x)[3] * multiplier
        weights = self._weights((1, *kernel, channels), 3, per_channel)
        inputs = [x, weights, *([self._bias(x, weights, channels)] if bias else [])]
        shape = (self.shape(x)[0], *self.window(x, kernel, stride, dilation, padding), channels)
        options = {**_window_options(stride, dilation, padding, activation), "depth_multiplier": multiplier}
        scale = self._spread(x, weights, kernel[0] * kernel[1])
        return self.op("DEPTHWISE_CONV_2D", inputs, shape, scale, self.random_zero_point(), options)

    def fully_connected(
        self, x: int, units: int, activation: str = "NONE", per_channel: bool = False, bias: bool = True
    ) -> int:
        """FULLY_CONNECTED with random weights [units, size of one sample]; result [batch, units]."""
        batch = self.shape(x)[0]
        depth = math.prod(self.shape(x)[1:])
        weights = self._weights((units, depth), 0, per_channel)
        inputs = [x, weights, self._bias(x, weights, units) if bias else -1]
        options = {"fused_activation_function": activation}
        scale = self._spread(x, weights, depth)
        return self.op("FULLY_CONNECTED", inputs, (batch, units), scale, self.random_zero_point(), options)

    def elementwise(self, opcode: str, a: int, b: int, activation: str = "NONE") -> int:
        """ADD, SUB or MUL of two tensors, with broadcasting."""
        shape = np.broadcast_shapes(self.shape(a), self.shape(b))
        scale = self.scale(a) * self.scale(b) * 80 if opcode == "MUL" else 0.8 * (self.scale(a) + self.scale(b))
        options = {"fused_activation_function": activation}
        return self.op(opcode, [a, b], shape, scale, self.random_zero_point(), options)

    def pool(
        self,
        opcode: str,
        x: int,
        kernel: tuple[int, int] = (2, 2),
        stride: tuple[int, int] = (2, 2),
        padding: str = "VALID",
        activation: str = "NONE",
    ) -> int:
        """AVERAGE_POOL_2D or MAX_POOL_2D."""
        height, width = self.window(x, kernel, stride, (1, 1), padding)
        return self.same(
            opcode,
            x,
            (self.shape(x)[0], height, width, self.shape(x)[3]),
            padding=padding,
            stride_h=stride[0],
            stride_w=stride[1],
            filter_height=kernel[0],
            filter_width=kernel[1],
            fused_activation_function=activation,
        )

    def mean(self, x: int, axes: Sequence[int] = (1, 2), keep_dims: bool = False, requantise: bool = False) -> int:
        """MEAN over `axes`; to another scale and zero point where `requantise`."""
        full = self.shape(x)
        reduced = {axis % len(full) for axis in axes}
        shape = [1 if i in reduced else d for i, d in enumerate(full) if keep_dims or i not in reduced]
        scale, zero_point = self.scale(x), self.zero_point(x)
        if requantise:
            scale, zero_point = 0.6 * scale, self.random_zero_point()
        return self.op("MEAN", [x, self.int32(*axes)], shape, scale, zero_point, {"keep_dims": keep_dims})

    def pad(self, x: int, paddings: Sequence[tuple[int, int]], value: int | None = None) -> int:
        """PAD with the zero point, or PADV2 with the quantised `value`."""
        amounts = self.constant(np.asarray(paddings, np.int32))
        shape = [d + before + after for d, (before, after) in zip(self.shape(x), paddings, strict=True)]
        if value is None:
            return self.same("PAD", x, shape, amounts)
        fill = self.constant(np.asarray([value], np.int8), self.scale(x), self.zero_point(x))
        return self.same("PADV2", x, shape, amounts, fill)

    def reshape(self, x: int, shape: Sequence[int]) -> int:
        """RESHAPE, with the new shape both as input and as option."""
        return self.same("RESHAPE", x, shape, self.int32(*shape), new_shape=tuple(shape))

    def concatenation(self, parts: Sequence[int], axis: int = -1, requantise: bool = False) -> int:
        """CONCATENATION; with `requantise` the output's scale and zero point differ from the inputs'."""
        shape = list(self.shape(parts[0]))
        shape[axis] = sum(self.shape(part)[axis] for part in parts)
        scale, zero_point = max(self.scale(part) for part in parts), self.zero_point(parts[0])
        if requantise:
            scale, zero_point = 1.1 * scale, self.random_zero_point()
        return self.op("CONCATENATION", parts, shape, scale, zero_point, {"axis": axis})

    def activation(self, opcode: str, x: int, **options: OptionValue) -> int:
        """SOFTMAX, LOGISTIC, TANH (fixed output scales), RELU, RELU6, RELU_N1_TO_1, LEAKY_RELU, HARD_SWISH."""
        fixed = {"SOFTMAX": (1 / 256, -128), "LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}
        scale, zero_point = fixed.get(opcode, (0.7 * self.scale(x), self.random_zero_point()))
        return self.op(opcode, [x], self.shape(x), scale, zero_point, options)

    def quantize(self, x: int, scale: float, zero_point: int) -> int:
        """QUANTIZE a float32 or int8 tensor to int8."""
        return self.op("QUANTIZE", [x], self.shape(x), scale, zero_point)

    def dequantize(self, x: int) -> int:
        """DEQUANTIZE to float32."""
        return self.op("DEQUANTIZE", [x], self.shape(x), None, dtype="float32")

    # ---- result

    def model(self, *outputs: int, description: str = "") -> RawModel:
        """The model that has `outputs`; the last tensor where none is named."""
        ends = outputs or (self.operators[-1].outputs[0],)
        graph = RawSubgraph("main", tuple(self.tensors), tuple(self.operators), tuple(self.inputs), tuple(ends))
        return RawModel(graph, description)

    def build(self, *outputs: int) -> bytes:
        """The file of `model(*outputs)`."""
        return write(self.model(*outputs))


def _window_options(
    stride: tuple[int, int], dilation: tuple[int, int], padding: str, activation: str
) -> dict[str, OptionValue]:
    return {
        "padding": padding,
        "stride_h": stride[0],
        "stride_w": stride[1],
        "dilation_h_factor": dilation[0],
        "dilation_w_factor": dilation[1],
        "fused_activation_function": activation,
    }


def with_tensor(model: RawModel, index: int, **changes: object) -> RawModel:
    """`model` with fields of one tensor replaced (for tests of bad models)."""
    tensors = list(model.subgraph.tensors)
    tensors[index] = replace(tensors[index], **changes)  # type: ignore[arg-type]
    return replace(model, subgraph=replace(model.subgraph, tensors=tuple(tensors)))
