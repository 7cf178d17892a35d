"""The .tflite container: facts against LiteRT, round trips, and damaged files."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import Oracle
from tflite_builder import TensorSpec, constant, single_op
from tflite_cases import OPERATORS, SHARED_MODELS, build_case, residual, shared_model

from tte.errors import ModelError
from tte.frontend.flatbuffer import Scalar, TableNode, TableVector, Vector, pack
from tte.frontend.schema import RawModel, read, write
from tte.frontend.schema_tables import OPERATOR_NAMES, OPTIONS, TENSOR_TYPES


def _same(a: RawModel, b: RawModel) -> None:
    """Both models say the same."""
    x, y = a.subgraph, b.subgraph
    assert (a.description, x.name, x.inputs, x.outputs) == (b.description, y.name, y.inputs, y.outputs)
    assert x.operators == y.operators
    assert len(x.tensors) == len(y.tensors)
    for s, t in zip(x.tensors, y.tensors, strict=True):
        for name, value in vars(s).items():
            other = getattr(t, name)
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(value, other, strict=True)
            else:
                assert value == other, name


def _round_trip(data: bytes, invocations: int) -> None:
    model = read(data, "original")
    again = write(model)
    _same(model, read(again, "again"))
    assert write(read(again, "again")) == again
    first, second = Oracle(data), Oracle(again)
    rng = np.random.default_rng(3)
    for _ in range(invocations):
        inputs = first.random_inputs(rng)
        expected, found = first.run(inputs), second.run(inputs)
        assert set(model.subgraph.outputs) <= expected.keys()
        for index in range(len(model.subgraph.tensors)):
            if index in expected:
                np.testing.assert_array_equal(expected[index], found[index], strict=True)


@pytest.mark.parametrize("name", [*OPERATORS, "residual"])
def test_built_models_load_and_round_trip(name: str) -> None:
    _round_trip(build_case(residual if name == "residual" else OPERATORS[name]), 2)


@pytest.mark.parametrize("name", SHARED_MODELS)
def test_shared_models_round_trip(name: str) -> None:
    _round_trip(shared_model(name), 1)


def test_single_op_with_absent_and_constant_inputs() -> None:
    weights = constant(np.arange(-6, 6, dtype=np.int8).reshape(3, 4), [0.1, 0.2, 0.3], [0, 0, 0])
    data = single_op(
        "FULLY_CONNECTED",
        [TensorSpec((1, 4), scale=0.5, zero_point=-1), weights, None],
        [TensorSpec((1, 3), scale=1.0)],
    )
    graph = read(data, "x").subgraph
    assert graph.operators[0].inputs == (0, 1, -1)
    assert graph.inputs == (0,) and graph.outputs == (2,)
    values = Oracle(data).run([np.asarray([[-1, 0, 1, 2]], np.int8)])
    # real: 0.5 * [0,1,2,3] . (0.1 * [-6..-3], 0.2 * [-2..1], 0.3 * [2..5]), by hand
    np.testing.assert_array_equal(values[2], [[-1, 0, 4]])


@pytest.mark.parametrize("name", SHARED_MODELS)
def test_shared_models_agree_with_litert(name: str) -> None:
    data = shared_model(name)
    graph = read(data, name).subgraph
    interpreter = Oracle(data).interpreter
    for detail in interpreter.get_tensor_details():
        if detail["index"] >= len(graph.tensors):
            continue
        tensor = graph.tensors[detail["index"]]
        quantisation = detail["quantization_parameters"]
        assert (tensor.name, tensor.shape, tensor.dtype) == (
            detail["name"],
            tuple(detail["shape"]),
            np.dtype(detail["dtype"]).name,
        )
        np.testing.assert_array_equal(tensor.scales, quantisation["scales"])
        np.testing.assert_array_equal(tensor.zero_points, quantisation["zero_points"])
        assert tensor.scales.size < 2 or tensor.quantized_dimension == quantisation["quantized_dimension"]
        if tensor.data is not None:
            np.testing.assert_array_equal(tensor.data, interpreter.get_tensor(detail["index"]))
    for index, detail in enumerate(interpreter._get_ops_details()):  # the only way to LiteRT's own operator list
        operator = graph.operators[index]
        assert operator.opcode == detail["op_name"]
        assert (operator.inputs, operator.outputs) == (tuple(detail["inputs"]), tuple(detail["outputs"]))
    assert len(interpreter._get_ops_details()) == len(graph.operators)


def test_tables_agree_with_litert_schema() -> None:
    """Every enumeration, union code, field slot, type and default, by LiteRT's generated reader."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")

    def names(enumeration: type) -> dict[int, str]:
        return {v: k for k, v in vars(enumeration).items() if not k.startswith("_")}

    assert names(schema.BuiltinOperator) == dict(enumerate(OPERATOR_NAMES))
    assert {k: v.lower() for k, v in names(schema.TensorType).items()} == dict(enumerate(TENSOR_TYPES))
    unions = names(schema.BuiltinOptions)
    for opcode, table in OPTIONS.items():
        if not table.union:
            continue
        made = getattr(schema, unions[table.union] + "T")()
        for row in table.fields:  # defaults, as the generated object has them
            found = getattr(made, _camel(row.name))
            default = row.names.index(str(row.default)) if row.names else row.default
            assert found == default or (row.code == "[i]" and found is None), (opcode, row.name)
        # distinct values in every field, written by us, read by them
        values = {row.name: _sample(i, row.code, row.names) for i, row in enumerate(table.fields)}
        spec = TensorSpec((1, 2, 2, 1), scale=1.0)
        model = schema.ModelT.InitFromPackedBuf(single_op(opcode, [spec], [spec], values), 0)
        options = model.subgraphs[0].operators[0].builtinOptions
        assert type(options).__name__ == unions[table.union] + "T", opcode
        for row in table.fields:
            found = getattr(options, _camel(row.name))
            value = row.names.index(values[row.name]) if row.names else values[row.name]
            np.testing.assert_array_equal(found, value, err_msg=f"{opcode} {row.name}")


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


def _sample(index: int, code: str, names: tuple[str, ...]) -> object:
    if names:
        return names[1]
    return {"i": 2 + index, "f": 0.5, "?": True, "[i]": (3, 4 + index)}[code]


@pytest.mark.parametrize(("code", "name"), [(27, "SVDF"), (160, "BITWISE_XOR"), (4000, "BUILTIN_4000"), (32, "CUSTOM")])
def test_operators_without_known_options_keep_their_name(code: int, name: str) -> None:
    opcode = TableNode({0: Scalar("b", min(code, 127)), 1: "mine", 3: Scalar("i", code)})
    graph = TableNode({3: TableVector((TableNode({5: Vector(np.asarray([1, 2], np.uint8))}),))})
    data = pack(TableNode({0: Scalar("I", 3), 1: TableVector((opcode,)), 2: TableVector((graph,))}), b"TFL3")
    model = read(data, "x")
    operator = model.subgraph.operators[0]
    assert (operator.opcode, operator.builtin_code, operator.options) == (name, code, {})
    if name == "CUSTOM":
        assert (operator.custom_code, operator.custom_options) == ("mine", b"\1\2")
        _same(model, read(write(model), "again"))
    else:
        with pytest.raises(ModelError, match="options are not known"):
            write(model)


def test_old_files_set_only_the_deprecated_operator_code() -> None:
    opcode = TableNode({0: Scalar("b", OPERATOR_NAMES.index("RELU"))})
    graph = TableNode({3: TableVector((TableNode({}),))})
    data = pack(TableNode({0: Scalar("I", 3), 1: TableVector((opcode,)), 2: TableVector((graph,))}), b"TFL3")
    operator = read(data, "x").subgraph.operators[0]
    assert (operator.opcode, operator.version) == ("RELU", 1)


@pytest.mark.parametrize(
    ("opcode", "options", "expected"),
    [
        ("CONV_2D", {"stride_w": 0}, "stride_w of at least 1"),
        ("CONV_2D", {"padding": "FULL"}, "padding is one of SAME, VALID"),
        ("CONV_2D", {"stride": 2}, "no option stride"),
        ("SOFTMAX", {"beta": float("inf")}, "beta to be finite"),
    ],
)
def test_bad_options_are_refused(opcode: str, options: dict[str, object], expected: str) -> None:
    spec = TensorSpec((1, 2, 2, 1), scale=1.0)
    with pytest.raises(ModelError, match=expected):
        single_op(opcode, [spec], [spec], options)  # type: ignore[arg-type]
