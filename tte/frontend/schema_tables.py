"""Enumerations and options tables of the .tflite schema, as data.

Source of the facts: tensorflow/lite/schema/schema.fbs (TensorFlow Lite schema version 3). `tests/test_schema.py` compares
them with an installed LiteRT's.
"""

from __future__ import annotations

from dataclasses import dataclass

OptionValue = int | float | bool | str | tuple[int, ...]

# TensorType, by code; NumPy's names where NumPy has the type.
_TYPE_WORDS = """
    float32 float16 int32 uint8 int64 string bool int16 complex64 int8 float64 complex128 uint64 resource variant
    uint32 uint16 int4 bfloat16 int2 uint4 float8_e4m3fn float8_e5m2
"""
TENSOR_TYPES: tuple[str, ...] = tuple(_TYPE_WORDS.split())

# BuiltinOperator, by code.
_OPERATOR_WORDS = """
    ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE EMBEDDING_LOOKUP FLOOR
    FULLY_CONNECTED HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LOGISTIC
    LSH_PROJECTION LSTM MAX_POOL_2D MUL RELU RELU_N1_TO_1 RELU6 RESHAPE RESIZE_BILINEAR RNN SOFTMAX SPACE_TO_DEPTH
    SVDF TANH CONCAT_EMBEDDINGS SKIP_GRAM CALL CUSTOM EMBEDDING_LOOKUP_SPARSE PAD UNIDIRECTIONAL_SEQUENCE_RNN GATHER
    BATCH_TO_SPACE_ND SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV SQUEEZE UNIDIRECTIONAL_SEQUENCE_LSTM STRIDED_SLICE
    BIDIRECTIONAL_SEQUENCE_RNN EXP TOPK_V2 SPLIT LOG_SOFTMAX DELEGATE BIDIRECTIONAL_SEQUENCE_LSTM CAST PRELU MAXIMUM
    ARG_MAX MINIMUM LESS NEG PADV2 GREATER GREATER_EQUAL LESS_EQUAL SELECT SLICE SIN TRANSPOSE_CONV SPARSE_TO_DENSE
    TILE EXPAND_DIMS EQUAL NOT_EQUAL LOG SUM SQRT RSQRT SHAPE POW ARG_MIN FAKE_QUANT REDUCE_PROD REDUCE_MAX PACK
    LOGICAL_OR ONE_HOT LOGICAL_AND LOGICAL_NOT UNPACK REDUCE_MIN FLOOR_DIV REDUCE_ANY SQUARE ZEROS_LIKE FILL
    FLOOR_MOD RANGE RESIZE_NEAREST_NEIGHBOR LEAKY_RELU SQUARED_DIFFERENCE MIRROR_PAD ABS SPLIT_V UNIQUE CEIL
    REVERSE_V2 ADD_N GATHER_ND COS WHERE RANK ELU REVERSE_SEQUENCE MATRIX_DIAG QUANTIZE MATRIX_SET_DIAG ROUND
    HARD_SWISH IF WHILE NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 SCATTER_ND SELECT_V2 DENSIFY SEGMENT_SUM
    BATCH_MATMUL PLACEHOLDER_FOR_GREATER_OP_CODES CUMSUM CALL_ONCE BROADCAST_TO RFFT2D CONV_3D IMAG REAL COMPLEX_ABS
    HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL CONV_3D_TRANSPOSE VAR_HANDLE READ_VARIABLE
    ASSIGN_VARIABLE BROADCAST_ARGS RANDOM_STANDARD_NORMAL BUCKETIZE RANDOM_UNIFORM MULTINOMIAL GELU
    DYNAMIC_UPDATE_SLICE RELU_0_TO_1 UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_SUM ATAN2
    UNSORTED_SEGMENT_MIN SIGN BITCAST BITWISE_XOR RIGHT_SHIFT STABLEHLO_LOGISTIC STABLEHLO_ADD STABLEHLO_DIVIDE
    STABLEHLO_MULTIPLY STABLEHLO_MAXIMUM STABLEHLO_RESHAPE STABLEHLO_CLAMP STABLEHLO_CONCATENATE
    STABLEHLO_BROADCAST_IN_DIM STABLEHLO_CONVOLUTION STABLEHLO_SLICE STABLEHLO_CUSTOM_CALL STABLEHLO_REDUCE
    STABLEHLO_ABS STABLEHLO_AND STABLEHLO_COSINE STABLEHLO_EXPONENTIAL STABLEHLO_FLOOR STABLEHLO_LOG
    STABLEHLO_MINIMUM STABLEHLO_NEGATE STABLEHLO_OR STABLEHLO_POWER STABLEHLO_REMAINDER STABLEHLO_RSQRT
    STABLEHLO_SELECT STABLEHLO_SUBTRACT STABLEHLO_TANH STABLEHLO_SCATTER STABLEHLO_COMPARE STABLEHLO_CONVERT
    STABLEHLO_DYNAMIC_SLICE STABLEHLO_DYNAMIC_UPDATE_SLICE STABLEHLO_PAD STABLEHLO_IOTA STABLEHLO_DOT_GENERAL
    STABLEHLO_REDUCE_WINDOW STABLEHLO_SORT STABLEHLO_WHILE STABLEHLO_GATHER STABLEHLO_TRANSPOSE DILATE
    STABLEHLO_RNG_BIT_GENERATOR REDUCE_WINDOW STABLEHLO_COMPOSITE STABLEHLO_SHIFT_LEFT STABLEHLO_CBRT STABLEHLO_CASE
"""
OPERATOR_NAMES: tuple[str, ...] = tuple(_OPERATOR_WORDS.split())
OPERATOR_CODES: dict[str, int] = {name: code for code, name in enumerate(OPERATOR_NAMES)}

PADDING = ("SAME", "VALID")
ACTIVATION = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")
WEIGHTS_FORMAT = ("DEFAULT", "SHUFFLED4x16INT8")


@dataclass(frozen=True)
class OptionField:
    """One field of an options table.

    Args:
        name: the schema's field name, and the key in `RawOperator.options`.
        slot: field number in the FlatBuffers table.
        code: struct code of the scalar ("b", "i", "f", "?"), or "[i]" for a vector of int32.
        default: value where the field is absent; for an enumeration its name.
        names: the enumeration's names by value, or empty.
        minimum: smallest value an operator can run with, or None.
    """

    name: str
    slot: int
    code: str
    default: OptionValue
    names: tuple[str, ...] = ()
    minimum: int | None = None


@dataclass(frozen=True)
class OptionTable:
    """The options of an operator: BuiltinOptions union code (0: none are stored) and fields."""

    union: int
    fields: tuple[OptionField, ...] = ()


def _padding(slot: int) -> OptionField:
    return OptionField("padding", slot, "b", "SAME", PADDING)


def _activation(slot: int) -> OptionField:
    return OptionField("fused_activation_function", slot, "b", "NONE", ACTIVATION)


def _integer(name: str, slot: int, default: int = 0, minimum: int | None = None) -> OptionField:
    return OptionField(name, slot, "i", default, minimum=minimum)


def _flag(name: str, slot: int, default: bool = False) -> OptionField:
    return OptionField(name, slot, "?", default)


def _type(name: str, slot: int) -> OptionField:
    return OptionField(name, slot, "b", "float32", TENSOR_TYPES)


_STRIDES = (_integer("stride_w", 1, minimum=1), _integer("stride_h", 2, minimum=1))
_POOL = OptionTable(
    5,
    (
        _padding(0),
        *_STRIDES,
        _integer("filter_width", 3, minimum=1),
        _integer("filter_height", 4, minimum=1),
        _activation(5),
    ),
)
_REDUCER = OptionTable(27, (_flag("keep_dims", 0),))
_NONE = OptionTable(0)

# Operator name -> its options. An operator that is missing here can be named, not decoded and not written.
OPTIONS: dict[str, OptionTable] = {
    "CONV_2D": OptionTable(
        1,
        (
            _padding(0),
            *_STRIDES,
            _activation(3),
            _integer("dilation_w_factor", 4, 1, minimum=1),
            _integer("dilation_h_factor", 5, 1, minimum=1),
            _type("quantized_bias_type", 6),
        ),
    ),
    "DEPTHWISE_CONV_2D": OptionTable(
        2,
        (
            _padding(0),
            *_STRIDES,
            _integer("depth_multiplier", 3),
            _activation(4),
            _integer("dilation_w_factor", 5, 1, minimum=1),
            _integer("dilation_h_factor", 6, 1, minimum=1),
        ),
    ),
    "FULLY_CONNECTED": OptionTable(
        8,
        (
            _activation(0),
            OptionField("weights_format", 1, "b", "DEFAULT", WEIGHTS_FORMAT),
            _flag("keep_num_dims", 2),
            _flag("asymmetric_quantize_inputs", 3),
            _type("quantized_bias_type", 4),
        ),
    ),
    "ADD": OptionTable(11, (_activation(0), _flag("pot_scale_int16", 1, True))),
    "SUB": OptionTable(28, (_activation(0), _flag("pot_scale_int16", 1, True))),
    "MUL": OptionTable(21, (_activation(0),)),
    "DIV": OptionTable(29, (_activation(0),)),
    "AVERAGE_POOL_2D": _POOL,
    "MAX_POOL_2D": _POOL,
    "L2_POOL_2D": _POOL,
    "MEAN": _REDUCER,
    "SUM": _REDUCER,
    "REDUCE_MAX": _REDUCER,
    "REDUCE_MIN": _REDUCER,
    "REDUCE_PROD": _REDUCER,
    "PAD": OptionTable(22),
    "PADV2": OptionTable(43),
    "RESHAPE": OptionTable(17, (OptionField("new_shape", 0, "[i]", ()),)),
    "SQUEEZE": OptionTable(30, (OptionField("squeeze_dims", 0, "[i]", ()),)),
    "EXPAND_DIMS": OptionTable(52),
    "CONCATENATION": OptionTable(10, (_integer("axis", 0), _activation(1))),
    "SOFTMAX": OptionTable(9, (OptionField("beta", 0, "f", 0.0),)),
    "LOGISTIC": _NONE,
    "TANH": _NONE,
    "RELU": _NONE,
    "RELU6": _NONE,
    "RELU_N1_TO_1": _NONE,
    "RELU_0_TO_1": _NONE,
    "PRELU": _NONE,
    "LEAKY_RELU": OptionTable(75, (OptionField("alpha", 0, "f", 0.0),)),
    "HARD_SWISH": OptionTable(91),
    "QUANTIZE": OptionTable(89),
    "DEQUANTIZE": OptionTable(38),
    "TRANSPOSE": OptionTable(26),
    "STRIDED_SLICE": OptionTable(
        32,
        (
            _integer("begin_mask", 0),
            _integer("end_mask", 1),
            _integer("ellipsis_mask", 2),
            _integer("new_axis_mask", 3),
            _integer("shrink_axis_mask", 4),
            _flag("offset", 5),
        ),
    ),
    "SHAPE": OptionTable(55, (_type("out_type", 0),)),
    "PACK": OptionTable(59, (_integer("values_count", 0), _integer("axis", 1))),
    "UNPACK": OptionTable(64, (_integer("num", 0), _integer("axis", 1))),
    "SPLIT": OptionTable(35, (_integer("num_splits", 0),)),
    "MAXIMUM": OptionTable(39),
    "MINIMUM": OptionTable(39),
    "SLICE": OptionTable(48),
}
