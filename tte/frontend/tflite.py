"""From a .tflite file to a verified graph of this project's operators.

`load` and `from_bytes` import; `problems` lists everything that stands in the way, operator by operator, so that a user
sees all of it at once. What a float model's borders hold (QUANTIZE, DEQUANTIZE, uint8 images) is cut off: the graph
begins and ends with int8 tensors.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tte.errors import ModelError
from tte.frontend.convert import CONVERTERS, Site
from tte.frontend.records import RawModel, RawOperator, RawSubgraph, RawTensor
from tte.frontend.schema import read
from tte.ir import Array, Builder, Graph, QuantParams, Role, Tensor, TensorType, verify
from tte.ops.base import Op, Types

#: Operators that compute shapes; the shapes are known here, so nothing is left of them.
_SHAPE_ARITHMETIC = {"SHAPE", "STRIDED_SLICE", "PACK", "SLICE", "CONCATENATION", "MUL", "ADD", "CAST", "REDUCE_PROD"}
_LISTED = 20


@dataclass(frozen=True)
class Problem:
    """One reason why a model cannot be imported.

    Attributes:
        index: of the operator in the file; -1: the model as a whole.
        opcode: TFLite's operator name, or "MODEL".
        name: the operator's place: its output tensor's name.
        reason: one sentence.
    """

    index: int
    opcode: str
    name: str
    reason: str

    def __str__(self) -> str:
        place = f"operator {self.index} {self.opcode} ({self.name})" if self.index >= 0 else self.name
        return f"{place}: {self.reason}" if place else self.reason


def load(path: str | Path) -> Graph:
    """The graph of a .tflite file, named after the file.

    Raises:
        ModelError: the file cannot be read, is damaged, or holds something unsupported; all problems are listed.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read the model: {error.strerror or error}", where=str(path)) from None
    return from_bytes(data, path.stem, str(path))


def from_bytes(data: bytes, name: str, where: str = "", *, single: bool = True) -> Graph:
    """The graph of a .tflite file's bytes.

    Args:
        where: the place that messages name.
        single: demand one input and one output, as the generated library does.

    Raises:
        ModelError: as `load`.
    """
    raw = read(data, where or name)
    importer = _Importer(raw.subgraph, name, single)
    found = importer.run()
    if found:
        listed = "".join(f"\n  {p}" for p in found[:_LISTED])
        more = f"\n  and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        count = f"{len(found)} problem{'s' * (len(found) > 1)}"
        raise ModelError(f"the model cannot be used ({count}):{listed}{more}", where=where or name)
    try:
        return verify(importer.graph())
    except ModelError as error:
        raise ModelError(str(error), where=where or name) from None


def problems(raw: RawModel) -> tuple[Problem, ...]:
    """Everything that keeps a model from being imported; empty when nothing does."""
    return tuple(_Importer(raw.subgraph, "model").run())


def tensor_names(raw: RawModel) -> dict[int, str]:
    """TFLite tensor index -> tensor name in the graph: the file's name, made unique.

    The graph lacks tensors that became attributes (axes, paddings, shapes) or lie outside its int8 borders.
    """
    return _names(raw.subgraph)


def _names(graph: RawSubgraph) -> dict[int, str]:
    names: dict[int, str] = {}
    taken: set[str] = set()
    for index, tensor in enumerate(graph.tensors):
        names[index] = _unique(tensor.name or f"tensor{index}", taken)
        taken.add(names[index])
    return names


def _unique(wish: str, taken: set[str]) -> str:
    name, i = wish, 0
    while name in taken:
        i += 1
        name = f"{wish}.{i}"
    return name


@dataclass
class _Importer:
    raw: RawSubgraph
    name: str
    single: bool = True
    found: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names = _names(self.raw)
        self.builder = Builder(self.name)
        self.node_names: set[str] = set()
        self.readers = Counter(i for op in self.raw.operators for i in op.inputs)
        self.border = self._border()
        self.inputs: list[str] = []
        self.outputs: list[str] = []

    def _border(self) -> dict[int, int]:
        """Operator index -> 1 where it only converts the graph's input, 2 where only its output."""
        border = {}
        for i, op in enumerate(self.raw.operators):
            if op.opcode not in ("QUANTIZE", "DEQUANTIZE") or len(op.inputs) != 1 or len(op.outputs) != 1:
                continue
            x, y = op.inputs[0], op.outputs[0]
            if x < 0:
                continue
            kinds = (self.raw.tensors[x].dtype, self.raw.tensors[y].dtype)
            if op.opcode == "QUANTIZE" and x in self.raw.inputs and kinds in (("float32", "int8"), ("uint8", "int8")):
                border[i] = 1
            elif y in self.raw.outputs and not self.readers[y] and kinds in (("int8", "float32"), ("int8", "uint8")):
                border[i] = 2
        return border

    def run(self) -> list[Problem]:
        """Builds the graph; gives what is in the way."""
        whole = self._whole_problem()
        if whole:
            return [Problem(-1, "MODEL", "", whole)]
        self._ends()
        for index, op in enumerate(self.raw.operators):
            place = self.names[op.outputs[0]].split(";")[0] if op.outputs else ""
            try:
                self._operator(index, op, place)
            except ModelError as error:
                self.found.append(Problem(index, op.opcode, place, str(error)))
                for output in op.outputs:  # those who read them are not to blame
                    self.builder.tensors.setdefault(self.names[output], Tensor(self.names[output], self._type(output)))
        return self.found

    def graph(self) -> Graph:
        return self.builder.graph(self.inputs, self.outputs)

    def _whole_problem(self) -> str:
        """What one sentence says about the whole model, where no operator inside the borders gives an int8 tensor."""
        if not self.raw.operators:
            return "the model holds no operator"
        inside = [op for i, op in enumerate(self.raw.operators) if i not in self.border]
        kinds = Counter(self.raw.tensors[o].dtype for op in inside for o in op.outputs)
        if kinds["int8"]:
            return ""
        if kinds["float32"] or kinds["float16"]:
            return "a float32 model; quantise to int8 first (full integer quantisation)"
        if kinds["uint8"]:
            return "a uint8 model of the older quantisation scheme; convert it again with int8 quantisation"
        return "the model computes no int8 tensor"

    def _ends(self) -> None:
        """Inputs and outputs of the graph, moved across the border operators."""
        after = {op.inputs[0]: op.outputs[0] for i, op in enumerate(self.raw.operators) if self.border.get(i) == 1}
        before = {op.outputs[0]: op.inputs[0] for i, op in enumerate(self.raw.operators) if self.border.get(i) == 2}
        produced = {o for op in self.raw.operators for o in op.outputs}
        for index in self.raw.inputs:
            place = after.get(index, index)
            tensor = self.raw.tensors[place]
            problem = self._input_problem(tensor)
            if problem or index in produced or self.names[place] in self.inputs:
                self.found.append(Problem(-1, "MODEL", f"input {self.names[index]}", problem or "is an output, too"))
                continue
            self.inputs.append(self.builder.add(self.names[place], self._type(place), Role.INPUT))
        for index in self.raw.outputs:
            place = before.get(index, index)
            tensor = self.raw.tensors[place]
            if tensor.dtype != "int8" or place not in produced:
                reason = f"of type {tensor.dtype}; an int8 tensor that an operator gives is needed"
                self.found.append(Problem(-1, "MODEL", f"output {self.names[index]}", reason))
            self.outputs.append(self.names[place])
        if self.single and (len(self.raw.inputs) != 1 or len(self.raw.outputs) != 1):
            counts = f"{len(self.raw.inputs)} inputs and {len(self.raw.outputs)} outputs"
            self.found.append(
                Problem(-1, "MODEL", "", f"one input and one output are supported, the model has {counts}")
            )

    def _input_problem(self, tensor: RawTensor) -> str:
        if tensor.dtype != "int8":
            return f"of type {tensor.dtype}; int8 is needed, or a QUANTIZE operator that converts it"
        if tensor.is_variable or tensor.data is not None:
            return "a constant or a variable"
        if len(tensor.shape) >= 2 and tensor.shape[0] != 1:
            return f"batch {tensor.shape[0]}; only batch 1 is supported"
        return ""

    def _type(self, index: int) -> TensorType:
        tensor = self.raw.tensors[index]
        quant = None
        if tensor.scales.size:
            axis = tensor.quantized_dimension if tensor.scales.size > 1 else None
            quant = QuantParams(tuple(map(float, tensor.scales)), tuple(map(int, tensor.zero_points)), axis)
        return TensorType(tensor.shape, tensor.dtype, quant)

    def _operand(self, index: int) -> str:
        """The graph's name of an input tensor; a constant is added when it is first used."""
        name, tensor = self.names[index], self.raw.tensors[index]
        if name not in self.builder.tensors:
            if tensor.data is None:
                raise ModelError(f"reads {name}, which nothing before it computes")
            self.builder.add(name, self._type(index), Role.CONST, tensor.data)
        return name

    def _operator(self, index: int, op: RawOperator, place: str) -> None:
        if index in self.border:
            return
        if op.opcode in _SHAPE_ARITHMETIC and self._only_shapes(op):
            return
        if op.opcode not in CONVERTERS:
            custom = f" {op.custom_code}" if op.custom_code else ""
            raise ModelError(f"the operator{custom} is not supported")
        if len(op.outputs) != 1:
            raise ModelError(f"one output is expected, the file has {len(op.outputs)}")
        types = tuple(self._type(i) if i >= 0 else None for i in op.inputs)
        datas = tuple(self.raw.tensors[i].data if i >= 0 else None for i in op.inputs)
        site = Site(op.opcode, dict(op.options), types, datas, self._type(op.outputs[0]))
        made = CONVERTERS[op.opcode](site)
        operands = [self._operand(op.inputs[i]) for i in made.operands]
        name = _unique(place, self.node_names)
        for what, type_, data in made.constants:
            operands.append(self._extra(f"{name}/{what}", type_, Role.CONST, data))
        self._check_output(site.output)
        output = self.names[op.outputs[0]]
        if output in self.builder.tensors:
            raise ModelError(f"writes {output}, which is already there")
        self.builder.tensors[output] = Tensor(output, site.output)
        if made.then is None:
            self._emit(name, made.op, operands, output)
            return
        before = self._extra(f"{name}/pre_activation", site.output)
        self._emit(name, made.op, operands, before)
        self._emit(_unique(f"{name}/activation", self.node_names), made.then, [before], output)

    def _check_output(self, type_: TensorType) -> None:
        if type_.dtype != "int8":
            raise ModelError(f"the output is {type_.dtype}; int8 is needed")
        if type_.quant is None or len(type_.quant.scale) != 1:
            raise ModelError("the output is not quantised per tensor")
        if type_.elements == 0:
            raise ModelError(f"the output has no elements: {list(type_.shape)}")

    def _extra(self, wish: str, type_: TensorType, role: Role = Role.VALUE, data: Array | None = None) -> str:
        """A tensor that the file does not have, under a name that the file does not use."""
        taken = {*self.names.values(), *self.builder.tensors}
        return self.builder.add(_unique(wish, taken), type_, role, data)

    def _emit(self, name: str, op: Op, inputs: list[str], output: str) -> None:
        types = Types(tuple(self.builder.tensors[n].type for n in inputs), (self.builder.tensors[output].type,))
        inferred = op.infer(types.ins)[0]
        have = (types.outs[0].shape, types.outs[0].dtype)
        if inferred != have:
            raise ModelError(f"gives {inferred[1]} {list(inferred[0])}, the file declares {have[1]} {list(have[0])}")
        problem = op.constraint(types)
        if problem:
            raise ModelError(problem)
        self.node_names.add(name)
        self.builder.emit(name, op, inputs, (output,))

    def _only_shapes(self, op: RawOperator) -> bool:
        return all(self.raw.tensors[o].dtype in ("int32", "int64") for o in op.outputs)
