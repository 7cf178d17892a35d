"""One small model for each operator, and the shared real models; what several tests run over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tflite_builder import GraphBuilder

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
SHARED_MODELS = [
    "ad01_int8",
    "kws_ref_model",
    "mbv2-w0.35",
    "mcunet-5fps",
    "pretrainedResnet_quant",
    "vww_96_int8",
]

Case = Callable[[GraphBuilder], int]


def image(b: GraphBuilder) -> int:
    return b.input((1, 7, 6, 4))


def moved(b: GraphBuilder, opcode: str, shape: tuple[int, ...], *values: tuple[int, ...], **options: object) -> int:
    """An operator that moves data, with constant int32 operands."""
    x = image(b)
    return b.same(opcode, x, shape, *(b.int32(*v) for v in values), **options)  # type: ignore[arg-type]


OPERATORS: dict[str, Case] = {
    "CONV_2D": lambda b: b.conv_2d(image(b), 5, (3, 2), (2, 1), (1, 2), "SAME", "RELU6"),
    "CONV_2D per tensor": lambda b: b.conv_2d(image(b), 5, padding="VALID", per_channel=False),
    "DEPTHWISE_CONV_2D": lambda b: b.depthwise_conv_2d(image(b), 3, (3, 2), (2, 2), activation="RELU"),
    "DEPTHWISE_CONV_2D no bias": lambda b: b.depthwise_conv_2d(image(b), per_channel=False, bias=False),
    "FULLY_CONNECTED": lambda b: b.fully_connected(b.input((2, 9)), 4, "RELU_N1_TO_1", per_channel=True),
    "FULLY_CONNECTED per tensor": lambda b: b.fully_connected(b.input((2, 9)), 4, bias=False),
    "ADD": lambda b: b.elementwise("ADD", image(b), b.input((1, 1, 1, 4), 0.02, 7), "RELU"),
    "SUB": lambda b: b.elementwise("SUB", image(b), b.input((1, 7, 6, 4), 0.02, 7)),
    "MUL": lambda b: b.elementwise("MUL", image(b), b.input((1, 7, 6, 4), 0.02, 7), "RELU6"),
    "AVERAGE_POOL_2D": lambda b: b.pool("AVERAGE_POOL_2D", image(b), (3, 2), (2, 1), "SAME", "RELU"),
    "MAX_POOL_2D": lambda b: b.pool("MAX_POOL_2D", image(b), (3, 2), (2, 1), "VALID"),
    "MEAN": lambda b: b.mean(image(b), (1, 2), keep_dims=True, requantise=True),
    "PAD": lambda b: b.pad(image(b), ((0, 0), (1, 2), (0, 1), (0, 0))),
    "PADV2": lambda b: b.pad(image(b), ((0, 0), (1, 2), (0, 1), (0, 0)), value=11),
    "RESHAPE": lambda b: b.reshape(image(b), (1, 42, 4)),
    "SQUEEZE": lambda b: b.same("SQUEEZE", image(b), (7, 6, 4), squeeze_dims=(0,)),
    "EXPAND_DIMS": lambda b: moved(b, "EXPAND_DIMS", (1, 7, 1, 6, 4), (2,)),
    "TRANSPOSE": lambda b: moved(b, "TRANSPOSE", (1, 4, 6, 7), (0, 3, 2, 1)),
    "STRIDED_SLICE": lambda b: moved(
        b, "STRIDED_SLICE", (1, 3, 6, 2), (0, 1, 0, 1), (1, 6, 6, 3), (1, 2, 1, 1), begin_mask=4
    ),
    "SHAPE": lambda b: b.op("SHAPE", [image(b)], (4,), None, options={"out_type": "int32"}, dtype="int32"),
    "PACK": lambda b: b.same("PACK", b.input((2, 3)), (2, 2, 3), b.input((2, 3)), values_count=2, axis=1),
    "CONCATENATION": lambda b: b.concatenation([image(b), b.input((1, 7, 6, 3))], 3),
    "SOFTMAX": lambda b: b.activation("SOFTMAX", b.input((2, 9), 0.1), beta=0.5),
    "LEAKY_RELU": lambda b: b.activation("LEAKY_RELU", image(b), alpha=0.3),
    **{
        name: lambda b, name=name: b.activation(name, image(b))
        for name in ("LOGISTIC", "TANH", "RELU", "RELU6", "RELU_N1_TO_1", "HARD_SWISH")
    },
    "QUANTIZE": lambda b: b.quantize(b.input((1, 9), dtype="float32"), 0.04, 3),
    "QUANTIZE int8": lambda b: b.quantize(b.input((1, 9)), 0.04, 3),
    "DEQUANTIZE": lambda b: b.dequantize(b.input((1, 9))),
}


def residual(b: GraphBuilder) -> int:
    x = b.conv_2d(image(b), 8, activation="RELU6")
    y = b.elementwise("ADD", x, b.conv_2d(b.depthwise_conv_2d(x, activation="RELU6"), 8, (1, 1)))
    return b.activation("SOFTMAX", b.fully_connected(b.mean(y), 5))


def build_case(case: Case) -> bytes:
    builder = GraphBuilder(7)
    return builder.build(case(builder))


def shared_model(name: str) -> bytes:
    path = SHARED / f"{name}.tflite"
    if not path.exists():
        pytest.skip("../shared/models is absent")
    return path.read_bytes()
