"""TFLite operators as this project's: one function a kind of operator, one row a name in `CONVERTERS`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from tte.frontend.flatbuffer import Array
from tte.frontend.schema_tables import OptionValue
from tte.ir import QuantParams, TensorType
from tte.ops.base import Op, require
from tte.ops.elementwise import Add, Mul, Sub
from tte.ops.linear import Conv2D, DepthwiseConv2D, FullyConnected, Linear, Window, weight_scales
from tte.ops.pool import AveragePool2D, MaxPool2D, Mean
from tte.ops.shape import Concatenation, Pad, Reshape
from tte.ops.softmax import Softmax
from tte.ops.table import TABLE_OPERATORS, Table

#: Fused activations that every operator takes.
ACTIVATIONS = ("NONE", "RELU", "RELU6", "RELU_N1_TO_1")
#: Largest relative difference between a bias's scale and `sx * sw`; float32 rounding gives 1e-7.
BIAS_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Site:
    """One operator of the file: options, and for each input (None: absent) and the output what is known at import."""

    opcode: str
    options: Mapping[str, OptionValue]
    ins: tuple[TensorType | None, ...]
    data: tuple[Array | None, ...]
    output: TensorType

    def count(self, low: int, high: int | None = None) -> None:
        """Raises ModelError unless the operator has `low` (to `high`) inputs."""
        high = low if high is None else high
        wanted = str(low) if low == high else f"{low} to {high}"
        require(low <= len(self.ins) <= high, f"{wanted} inputs are expected, the file has {len(self.ins)}")

    def input(self, i: int = 0) -> TensorType:
        t = self.ins[i] if i < len(self.ins) else None
        if t is None:
            require(False, f"input {i} is absent")
        assert t is not None
        return t

    def activation_input(self, i: int = 0) -> TensorType:
        """An int8 input, quantised per tensor."""
        t = self.input(i)
        require(t.dtype == "int8", f"input {i} is {t.dtype}; int8 is needed")
        per_tensor = t.quant is not None and len(t.quant.scale) == 1
        require(per_tensor, f"input {i} is not quantised per tensor")
        return t

    def integers(self, i: int, what: str) -> tuple[int, ...]:
        """The constant int32 or int64 input `i`."""
        t, data = self.input(i), self.data[i]
        if data is None or t.dtype not in ("int32", "int64"):
            require(False, f"{what} must be a constant of int32")
        assert data is not None
        return tuple(int(v) for v in data.reshape(-1))

    def number(self, name: str) -> int:
        value = self.options.get(name)
        require(isinstance(value, int), f"the option {name} is missing")
        return int(value)  # type: ignore[arg-type]

    def activation(self) -> str:
        name = str(self.options.get("fused_activation_function", "NONE"))
        require(name in ACTIVATIONS, f"the fused activation {name} is not supported")
        return name


@dataclass(frozen=True)
class Made:
    """What a converter gives.

    Attributes:
        op: the operator.
        operands: which of the file's inputs it reads, in order.
        constants: further inputs that the file does not have: (name, type, contents).
        then: a clamp behind it, where a fused activation is not part of `op`.
    """

    op: Op
    operands: tuple[int, ...] = (0,)
    constants: tuple[tuple[str, TensorType, Array], ...] = ()
    then: Table | None = None


def _same_pad(size: int, k: int, stride: int, dilation: int) -> tuple[int, int]:
    """Before and after; the odd one goes after (TFLite `ComputePaddingHeightWidth`)."""
    out = -(-size // stride)
    total = max(0, (out - 1) * stride + (k - 1) * dilation + 1 - size)
    return total // 2, total - total // 2


def _window(site: Site, kernel: tuple[int, int]) -> Window:
    x = site.activation_input()
    require(len(x.shape) == 4, f"an input of rank 4 is needed, got {x}")
    stride = (site.number("stride_h"), site.number("stride_w"))
    dilated = "dilation_h_factor" in site.options
    dilation = (site.number("dilation_h_factor"), site.number("dilation_w_factor")) if dilated else (1, 1)
    require(min(*stride, *dilation, *kernel) >= 1, f"stride {stride}, dilation {dilation} or kernel {kernel} below 1")
    pad = (0, 0, 0, 0)
    if site.options.get("padding") == "SAME":
        h, w = (_same_pad(*v) for v in zip(x.shape[1:3], kernel, stride, dilation, strict=True))
        pad = (*h, *w)
    return Window(stride, dilation, pad)


def _weighted(site: Site, op: Linear, channel_axis: int) -> Made:
    """Checks the weights and bias of a weighted operator; adds the bias where it is absent."""
    x, w = site.activation_input(), site.input(1)
    require(site.data[1] is not None, "weights that are computed are not supported; they must be constants")
    require(w.dtype == "int8", f"weights are {w.dtype}; int8 is needed")
    require(w.quant is not None, "weights are not quantised")
    assert w.quant is not None
    require(not any(w.quant.zero_point), "the zero points of weights must be 0")
    per_channel = w.quant.axis is not None
    require(
        not per_channel or w.quant.axis == channel_axis,
        f"weights quantised along axis {w.quant.axis}, not {channel_axis}",
    )
    channels = w.shape[channel_axis]
    units = tuple(x.scale * s for s in weight_scales(w, channels))
    if len(site.ins) < 3 or site.ins[2] is None:
        type_ = TensorType((channels,), "int32", QuantParams(units, (0,) * channels, 0))
        return Made(op, (0, 1), (("bias", type_, np.zeros(channels, np.int32)),))
    b = site.input(2)
    require(site.data[2] is not None and b.dtype == "int32", f"the bias must be a constant of int32, got {b}")
    require(b.elements == channels, f"{b.elements} biases for {channels} output channels")
    if b.quant is not None:
        require(not any(b.quant.zero_point), "the zero points of a bias must be 0")
        have = np.broadcast_to(np.array(b.quant.scale), (channels,))
        worst = float(np.max(np.abs(have / np.array(units) - 1)))
        require(worst <= BIAS_TOLERANCE, f"the bias's scale differs from input times weight scale by {worst:.2g}")
    return Made(op, (0, 1, 2))


def _conv(site: Site) -> Made:
    site.count(2, 3)
    w = site.input(1)
    require(len(w.shape) == 4, f"weights of rank 4, got {w}")
    window = _window(site, (w.shape[1], w.shape[2]))
    depthwise = site.opcode == "DEPTHWISE_CONV_2D"
    # The stored depth_multiplier is ignored, as LiteRT does: the shapes determine it.
    op = (DepthwiseConv2D if depthwise else Conv2D)(activation=site.activation(), window=window)
    return _weighted(site, op, 3 if depthwise else 0)


def _fully_connected(site: Site) -> Made:
    site.count(2, 3)
    require(site.options.get("weights_format", "DEFAULT") == "DEFAULT", "shuffled weights are not supported")
    require(len(site.input(1).shape) == 2, f"weights of rank 2, got {site.input(1)}")
    keep = bool(site.options.get("keep_num_dims", False))
    return _weighted(site, FullyConnected(activation=site.activation(), keep_dims=keep), 0)


def _elementwise(site: Site) -> Made:
    site.count(2)
    for i in (0, 1):
        site.activation_input(i)
    classes = {"ADD": Add, "SUB": Sub, "MUL": Mul}
    return Made(classes[site.opcode](activation=site.activation()), (0, 1))


def _clamp(site: Site) -> Table | None:
    """The fused activation of an operator that has none, as an operator of its own."""
    activation = site.activation()
    return None if activation == "NONE" else Table(kind="CLAMP", activation=activation)


def _pool(site: Site) -> Made:
    site.count(1)
    size = (site.number("filter_height"), site.number("filter_width"))
    kind = AveragePool2D if site.opcode == "AVERAGE_POOL_2D" else MaxPool2D
    return Made(kind(size=size, window=_window(site, size)), then=_clamp(site))


def _axis(axis: int, rank: int) -> int:
    require(-rank <= axis < rank, f"axis {axis} of a tensor of rank {rank}")
    return axis % rank


def _mean(site: Site) -> Made:
    site.count(2)
    rank = len(site.activation_input().shape)
    axes = sorted({_axis(a, rank) for a in site.integers(1, "the axes")})
    require(bool(axes), "there are no axes to reduce")
    return Made(Mean(axes=tuple(axes), keep_dims=bool(site.options.get("keep_dims", False))))


def _pad(site: Site) -> Made:
    site.count(2 if site.opcode == "PAD" else 3)
    x = site.activation_input()
    amounts = site.integers(1, "the paddings")
    require(len(amounts) == 2 * len(x.shape), f"{len(amounts)} paddings for a tensor of rank {len(x.shape)}")
    pads = tuple(zip(amounts[::2], amounts[1::2], strict=True))
    value = x.zero_point
    if site.opcode == "PADV2":
        filler, data = site.activation_input(2), site.data[2]
        same = filler.quant == x.quant
        require(data is not None and data.size == 1 and same, "a constant value quantised like the input is needed")
        assert data is not None
        value = int(data.reshape(-1)[0])
    return Made(Pad(pads=pads, value=value))


def _reshape(site: Site) -> Made:
    site.count(1, 2)
    x = site.activation_input()
    # The file's static output shape stands for the shape operand, which may be computed (batch 1 is fixed).
    fits = math.prod(site.output.shape) == x.elements
    require(fits, f"{x.elements} elements do not fit the declared shape {list(site.output.shape)}")
    return Made(Reshape(shape=site.output.shape))


def _concatenation(site: Site) -> Made:
    require(len(site.ins) >= 1, "at least one input is expected")
    rank = len(site.activation_input().shape)
    for i in range(len(site.ins)):
        site.activation_input(i)
    # LiteRT refuses one, too.
    require(site.activation() == "NONE", "a fused activation on CONCATENATION is not supported")
    op = Concatenation(axis=_axis(site.number("axis"), rank))
    return Made(op, tuple(range(len(site.ins))))


def _softmax(site: Site) -> Made:
    site.count(1)
    site.activation_input()
    beta = float(site.options.get("beta", 1.0))  # type: ignore[arg-type]
    require(beta > 0, f"beta must be above 0, got {beta}")
    return Made(Softmax(beta=beta))


def _table(site: Site) -> Made:
    site.count(1)
    site.activation_input()
    alpha = float(site.options.get("alpha", 0.0))  # type: ignore[arg-type]
    return Made(Table(kind=site.opcode, alpha=alpha))


CONVERTERS: Mapping[str, Callable[[Site], Made]] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _conv,
    "FULLY_CONNECTED": _fully_connected,
    **dict.fromkeys(("ADD", "SUB", "MUL"), _elementwise),
    **dict.fromkeys(("AVERAGE_POOL_2D", "MAX_POOL_2D"), _pool),
    "MEAN": _mean,
    **dict.fromkeys(("PAD", "PADV2"), _pad),
    **dict.fromkeys(("RESHAPE", "SQUEEZE", "EXPAND_DIMS"), _reshape),
    "CONCATENATION": _concatenation,
    "SOFTMAX": _softmax,
    **dict.fromkeys(TABLE_OPERATORS, _table),
}
