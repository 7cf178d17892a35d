"""What an operator is: shapes, integer semantics, gradient, cost and kernel, in one class.

An operator's dataclass fields *are* its attributes. Adding one touches its file, its template and one row of the
TFLite table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from tte.errors import ModelError
from tte.ir import Node, Shape, TensorType
from tte.ops.phases import Phases, uncut

Array = NDArray[Any]
Inferred = tuple[tuple[Shape, str], ...]


@dataclass(frozen=True)
class Types:
    """The types of a node's inputs and outputs."""

    ins: tuple[TensorType, ...]
    outs: tuple[TensorType, ...]


@dataclass(frozen=True)
class Control:
    """What a training step can be told at run time.

    Attributes:
        learning_rate: factor eta in [0, 32768] (Q15) on the base learning rate.
        seed, step: the state of the stateless random numbers; `step` counts training steps.
    """

    learning_rate: int = 32768
    seed: int = 0
    step: int = 0


@dataclass(frozen=True, eq=False)
class Kernel:
    """How codegen renders a node: a template, its constants, tables for flash, and scratch memory.

    The generated function takes the node's inputs, then the tables, then its outputs (PARAMs that it changes appear
    once, among the inputs), then the workspace, then the control block.

    Attributes:
        params: constants of the specialisation; equal (template, params) share one function.
        tables: (name, array) pairs placed in flash as `static const`.
        workspace: bytes of scratch in the arena.
        control: whether the function needs learning rate, seed and step.
        needs: what the core must have: "" for any, "dsp" for the SIMD instructions of Armv7E-M.
        instructions: predicted instructions of one call; 0 where nothing is predicted.
        phases: the pieces that it can be called for, one range after the other; none: it is done whole.
    """

    template: str
    params: Mapping[str, int | str | bool]
    tables: tuple[tuple[str, Array], ...] = ()
    workspace: int = 0
    control: bool = False
    needs: str = ""
    instructions: int = 0
    phases: Phases = ()


@dataclass(frozen=True)
class Rows:
    """How an operator works row by row: output row r reads rows `r * stride + first` to `r * stride + last` of its inputs.

    Rows outside the input do not exist and are not read. The row axis is the second of four.

    Attributes:
        whole: the kernel is told the row and finds it in rolling buffers itself; otherwise it is the ordinary kernel
            on one-row tensors.
    """

    stride: int = 1
    first: int = 0
    last: int = 0
    whole: bool = False


@dataclass(frozen=True)
class Cotangent:
    """An error tensor and its run-time exponent: `dL/dy = C * 2**-k * e`, C being the scale of e's type."""

    e: str
    k: str


class Tape(Protocol):
    """What a gradient rule may do. `tte.training.autodiff` implements it."""

    def type(self, name: str) -> TensorType: ...

    def wants(self, name: str) -> bool:
        """Whether the gradient of this tensor is of any use (it is a VALUE)."""

    def masked(self, node: Node, g: Cotangent) -> Cotangent:
        """`g` where the node's output was not clipped, zero elsewhere."""

    def error(self, node: Node, shape: Shape, scale: float, what: str = "error") -> Cotangent:
        """Fresh tensors for an error of this shape and compile-time factor."""

    def alike(self, node: Node, shape: Shape, g: Cotangent, what: str = "error") -> Cotangent:
        """A fresh error tensor that shares the exponent and factor of `g`."""

    def emit(self, node: Node, what: str, op: Op, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """A backward node, named after the forward node."""

    def send(self, name: str, g: Cotangent) -> None:
        """Adds a gradient of the forward tensor `name`; several are summed."""

    def update(self, node: Node, g: Cotangent) -> None:
        """The node has weights: emit the updates the scheme asks for, with the masked error `g`."""


@dataclass(frozen=True)
class Op:
    """Base of all operators."""

    title: ClassVar[str] = ""
    #: (output, input) pairs where the output may overwrite the input.
    inplace: ClassVar[tuple[tuple[int, int], ...]] = ()
    #: The output is the input's bytes under another shape: no code.
    view: ClassVar[bool] = False
    #: It belongs to training alone, but runs within the forward pass, so that the larger tensor it reads can go.
    eager: ClassVar[bool] = False
    #: Why no gradient passes; empty where one does.
    not_differentiable: ClassVar[str] = ""

    def infer(self, ins: tuple[TensorType, ...]) -> Inferred:
        """Shape and element type of every output.

        Raises:
            ModelError: the inputs do not fit the operator.
        """
        raise NotImplementedError

    def reference(self, t: Types, xs: Sequence[Array], control: Control) -> tuple[Array, ...]:
        """The operator's definition, in NumPy integers: the outputs in order."""
        raise NotImplementedError

    def gradient(self, tape: Tape, node: Node, g: Cotangent) -> None:
        """Emits the nodes that carry `g`, the error of output 0, to the inputs."""
        raise ModelError(self.not_differentiable or f"{self.title} has no gradient", where=node.name)

    def macs(self, t: Types) -> int:
        """Multiply-accumulate operations."""
        return 0

    def kernel(self, t: Types) -> Kernel:
        """The portable C that computes it, with the least scratch memory."""
        raise NotImplementedError

    def fast_kernels(self, t: Types) -> tuple[Kernel, ...]:
        """Kernels that compute the same bytes with what some cores have (`Kernel.needs`), or with more scratch memory;
        `tte.planner.kernels` chooses."""
        return ()

    def fast_row_kernels(self, t: Types, x_ring: int, y_ring: int) -> tuple[Kernel, ...]:
        """The same for one row; arguments as of `row_kernel`."""
        if (how := self.rows(t)) is None or how.whole:
            return ()
        kernels = self.fast_kernels(Types(tuple(map(one_row, t.ins)), tuple(map(one_row, t.outs))))
        return tuple(replace(k, phases=uncut(k.phases)) for k in kernels)

    def rows(self, t: Types) -> Rows | None:
        """How the operator works row by row; None where it needs whole tensors."""
        return None

    def row_kernel(self, t: Types, x_ring: int, y_ring: int) -> Kernel:
        """The kernel that computes one row, and is not cut.

        Args:
            x_ring, y_ring: rows that the rolling buffers of input and output hold; all of them if nothing rolls.
        """
        if (how := self.rows(t)) is None:
            raise NotImplementedError
        if how.whole:
            kernel = self.kernel(t)
            params = {**kernel.params, "rows": True, "x_ring": x_ring, "y_ring": y_ring}
            rows = t.outs[0].shape[1]
            phases = uncut(kernel.phases, rows)
            return replace(kernel, params=params, instructions=kernel.instructions // rows, phases=phases)
        kernel = self.kernel(Types(tuple(map(one_row, t.ins)), tuple(map(one_row, t.outs))))
        return replace(kernel, phases=uncut(kernel.phases))

    def optional_outputs(self) -> tuple[int, ...]:
        """Indices of outputs that `without` can drop."""
        return ()

    def without(self, output: int) -> Op:
        """The operator without that optional output."""
        raise NotImplementedError

    def constraint(self, t: Types) -> str:
        """Why these types cannot run; empty when they can."""
        return ""

    def __str__(self) -> str:
        parts = (f"{k}={_show(v)}" for k, v in self.__dict__.items())
        return f"{self.title}[{', '.join(parts)}]"


def _show(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > 8:
        return f"({', '.join(map(str, value[:4]))}, ... {len(value)})"
    return str(value)


def one_row(t: TensorType) -> TensorType:
    """The type of one row of a tensor [1, H, W, C]."""
    return replace(t, shape=(1, 1, *t.shape[2:]))


def same_rows(t: Types) -> Rows | None:
    """The rule of an element-wise operator: row for row, where all shapes are one, of one sample, and packed bits fill
    whole bytes."""
    shape = t.outs[0].shape
    bits = any(o.dtype == "bit" for o in t.outs) and (t.outs[0].elements // shape[1]) % 8
    one = len(shape) == 4 and shape[0] == 1
    return Rows() if one and all(i.shape == shape for i in t.ins) and not bits else None


def activation_range(activation: str, quant_type: TensorType) -> tuple[int, int]:
    """The int8 limits of a fused activation on an output of this type.

    Source: TFLite `CalculateActivationRangeQuantized` (kernel_util.cc): `zp + round(f / scale)`, the division in
    float32, rounding half away from zero.
    """
    scale, zero_point = np.float32(quant_type.scale), quant_type.zero_point

    def q(f: float) -> int:
        v = float(np.float32(f) / scale)
        return zero_point + int(np.floor(abs(v) + 0.5)) * (1 if v >= 0 else -1)

    low, high = -128, 127
    if activation in ("RELU", "RELU6"):
        low = max(low, q(0.0))
    if activation == "RELU6":
        high = min(high, q(6.0))
    if activation == "RELU_N1_TO_1":
        low, high = max(low, q(-1.0)), min(high, q(1.0))
    return low, high


def require(condition: bool, what: str) -> None:
    """Raises ModelError(what) unless the condition holds; the caller adds where."""
    if not condition:
        raise ModelError(what)
