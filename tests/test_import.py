"""The importer: what it cuts off at the borders, what it refuses and how it says so, and that damage never crashes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from cases import CASES
from oracle import Oracle
from tflite_builder import GraphBuilder, TensorSpec, single_op, with_tensor

from tte.errors import ModelError
from tte.frontend import tflite
from tte.frontend.schema import RawModel, write
from tte.reference import Executor

BY_NAME = {c.name: c for c in CASES}


def quantised(x: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    return np.clip(np.rint(x / scale) + zero_point, -128, 127).astype(np.int8)


def test_float_borders_are_cut_off() -> None:
    """A float model's QUANTIZE and DEQUANTIZE: the graph begins and ends with the int8 tensors between them."""
    b = GraphBuilder(3)
    x = b.input((1, 6, 6, 2), dtype="float32")
    q = b.quantize(x, 0.02, 3)
    y = b.conv_2d(q, 4)
    b.dequantize(y)
    data = b.build()
    graph, names = tflite.from_bytes(data, "m"), tflite.tensor_names(b.model())
    assert (graph.inputs, graph.outputs) == ((names[q],), (names[y],))
    image = np.random.default_rng(0).standard_normal((1, 6, 6, 2)).astype(np.float32)
    want = Oracle(data).run([image])
    have = Executor(graph).run({names[q]: want[q]})
    np.testing.assert_array_equal(have[names[y]], want[y])


def test_uint8_borders_are_cut_off() -> None:
    b = GraphBuilder(4)
    x = b.input((1, 5, 5, 3), 1 / 127.5, 128, "uint8")
    q = b.quantize(x, 1 / 127.5, 0)
    y = b.depthwise_conv_2d(q)
    b.op("QUANTIZE", [y], b.shape(y), b.scale(y), b.zero_point(y) + 128, dtype="uint8")
    data = b.build()
    graph, names = tflite.from_bytes(data, "m"), tflite.tensor_names(b.model())
    pixels = np.random.default_rng(0).integers(0, 256, (1, 5, 5, 3)).astype(np.uint8)
    want = Oracle(data).run([pixels])
    have = Executor(graph).run({graph.inputs[0]: want[q]})
    np.testing.assert_array_equal(have[names[y]], want[y])


def test_computed_shapes_are_folded() -> None:
    """SHAPE, STRIDED_SLICE and PACK in front of a RESHAPE, as converters write for Flatten."""
    b = GraphBuilder(5)
    x = b.input((1, 3, 4, 2))
    shape = b.op("SHAPE", [x], (4,), None, dtype="int32", options={"out_type": "int32"})
    ends = [b.int32(0), b.int32(1), b.int32(1)]
    batch = b.op("STRIDED_SLICE", [shape, *ends], (), None, dtype="int32", options={"shrink_axis_mask": 1})
    new = b.op(
        "PACK", [batch, b.constant(np.array(24, np.int32))], (2,), None, dtype="int32", options={"values_count": 2}
    )
    b.fully_connected(b.same("RESHAPE", x, (1, 24), new), 3)
    graph = tflite.from_bytes(b.build(), "m")
    assert [n.op.title for n in graph.nodes] == ["RESHAPE", "FULLY_CONNECTED"]


def test_names_are_unique() -> None:
    b = GraphBuilder(6)
    x = b.input((1, 4, 4, 2))
    for _ in range(2):
        x = b.conv_2d(x, 2)
        b.tensors[x] = replace(b.tensors[x], name="same;other")
    graph = tflite.from_bytes(b.build(), "m")
    assert [n.name for n in graph.nodes] == ["same", "same.1"]
    assert graph.outputs == ("same;other.1",)


def _float_model() -> RawModel:
    b = GraphBuilder()
    b.op("RELU", [b.input((1, 4), dtype="float32")], (1, 4), None, dtype="float32")
    return b.model()


def _two_unsupported() -> RawModel:
    b = GraphBuilder()
    x = b.input((1, 4, 4, 2))
    x = b.same("TRANSPOSE", x, (1, 4, 4, 2), b.int32(0, 2, 1, 3))
    b.same("MAXIMUM", b.conv_2d(x, 2), (1, 4, 4, 2), x)
    return b.model()


def _batch() -> RawModel:
    b = GraphBuilder()
    b.fully_connected(b.input((2, 8)), 3)
    return b.model()


def _conv(**changes: object) -> RawModel:
    b = GraphBuilder()
    b.conv_2d(b.input((1, 4, 4, 2)), 3)
    return with_tensor(b.model(), int(changes.pop("tensor")), **changes)  # type: ignore[call-overload]


def _concatenation() -> RawModel:
    b = GraphBuilder()
    x = b.input((1, 4))
    b.concatenation([x, b.activation("RELU", x)])
    return b.model()


def _two_inputs() -> RawModel:
    return BY_NAME["ADD-same"].raw()


WEIGHTS, BIAS, OUTPUT = 1, 2, 3  # tensors of _conv


def _scaled(tensor: int, scales: int, zero_point: int = 0, axis: int = 0) -> RawModel:
    points = np.full(scales, zero_point, np.int64)
    return _conv(tensor=tensor, scales=np.full(scales, 0.01, np.float32), zero_points=points, quantized_dimension=axis)


REFUSED: list[tuple[str, Callable[[], RawModel], str]] = [
    ("float", _float_model, "float32 model; quantise to int8 first"),
    ("unsupported", _two_unsupported, "operator 2 MAXIMUM"),
    ("batch", _batch, "batch 2"),
    ("two inputs", _two_inputs, "2 inputs"),
    ("concatenation", _concatenation, "same scale and zero point"),
    ("weights axis", lambda: _scaled(WEIGHTS, 2, axis=3), "along axis 3"),
    ("weights zero", lambda: _scaled(WEIGHTS, 1, zero_point=1), "must be 0"),
    ("weights missing", lambda: _conv(tensor=WEIGHTS, data=None), "must be constants"),
    ("bias scale", lambda: _scaled(BIAS, 3), "bias's scale differs"),
    ("output shape", lambda: _conv(tensor=OUTPUT, shape=(1, 4, 3, 3)), "the file declares"),
    ("output scale", lambda: _scaled(OUTPUT, 0), "not quantised"),
]


@pytest.mark.parametrize(("make", "said"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused_with_the_reason(make: Callable[[], RawModel], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        tflite.from_bytes(write(make()), "m", "m.tflite")


def test_all_problems_are_listed() -> None:
    found = tflite.problems(_two_unsupported())
    assert [(p.index, p.opcode) for p in found] == [(0, "TRANSPOSE"), (2, "MAXIMUM")]


def test_missing_file() -> None:
    with pytest.raises(ModelError, match="cannot read the model"):
        tflite.load("no/such.tflite")


def test_softmax_of_another_scale_is_refused() -> None:
    data = single_op("SOFTMAX", [TensorSpec((1, 4), scale=0.1)], [TensorSpec((1, 4), scale=0.1)])
    with pytest.raises(ModelError, match="1/256"):
        tflite.from_bytes(data, "m")


@pytest.mark.parametrize("name", ["network-residual", "network-gated", "concatenation-row", "pad-value", "mean-keep-1"])
def test_damage_is_refused_or_harmless(name: str) -> None:
    """Flipped bits and random bytes: a graph or ModelError, nothing else."""
    good, rng = BY_NAME[name].model(), np.random.default_rng(0)
    for _ in range(400):
        data = bytearray(good)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            data[at] = data[at] ^ (1 << rng.integers(8)) if rng.random() < 0.7 else rng.integers(256)
        try:
            graph = tflite.from_bytes(bytes(data), "m")
        except ModelError as error:
            assert str(error)
        else:
            assert graph.nodes
