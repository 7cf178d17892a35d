"""What is in a model: operators, shapes, quantisation, cost, and what of it can run and train."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tte import passes
from tte.errors import ModelError
from tte.frontend import schema, tflite
from tte.ir import Graph, Role, TensorType
from tte.ops.base import Types
from tte.planner.arena import plan
from tte.planner.schedule import schedule
from tte.training.head import find


@dataclass(frozen=True)
class OperatorFacts:
    """One operator of a model. `why` tells why it cannot run, or cannot train."""

    index: int
    name: str
    operator: str
    input: str
    output: str
    quantisation: str
    macs: int
    weight_bytes: int
    activation_bytes: int
    runs: bool
    trains: bool
    why: str


@dataclass(frozen=True)
class Inspection:
    """A model's facts; sizes in bytes.

    Attributes:
        trainable: whether every weighted layer can train.
        peak_activations: the arena that inference needs, by the real allocator; 0 when the model cannot run.
        problems: why the model cannot be used, one line each.
    """

    name: str
    file_bytes: int
    input: str
    output: str
    operators: tuple[OperatorFacts, ...]
    macs: int
    weight_bytes: int
    peak_activations: int
    peak_operator: str
    runnable: bool
    trainable: bool
    problems: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        facts = {k: v for k, v in self.__dict__.items() if k != "operators"}
        return facts | {"operators": [o.__dict__ for o in self.operators], "problems": list(self.problems)}


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """The facts of a .tflite file, also of one that cannot be used.

    Raises:
        ModelError: the file cannot be read or is damaged.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read the model: {error.strerror or error}", where=str(file)) from None
    raw = schema.read(data, str(file))
    problems = tflite.problems(raw)
    if problems:
        return _unusable(file, len(data), raw, problems)
    graph = tflite.from_bytes(data, file.stem, str(file))
    operators = tuple(_operator(graph, i) for i in range(len(graph.nodes)))
    result = plan(schedule(passes.run(passes.NORMALISE, graph), graph.outputs))
    return Inspection(
        name=file.stem,
        file_bytes=len(data),
        input=", ".join(f"{i}: {graph.type(i)}" for i in graph.inputs),
        output=", ".join(f"{o}: {graph.type(o)}" for o in graph.outputs),
        operators=operators,
        macs=sum(o.macs for o in operators),
        weight_bytes=sum(t.type.nbytes for t in graph.of_role(Role.CONST)),
        peak_activations=result.arena_bytes,
        peak_operator=result.program.graph.nodes[result.peak_step].name if result.program.graph.nodes else "",
        runnable=True,
        trainable=all(o.trains for o in operators if o.weight_bytes),
        problems=(),
    )


def _operator(graph: Graph, index: int) -> OperatorFacts:
    node = graph.nodes[index]
    types = Types(graph.types(node.inputs), graph.types(node.outputs))
    constants = [n for n in node.inputs if graph.tensors[n].role is Role.CONST]
    why = why_frozen(graph, index)
    return OperatorFacts(
        index=index,
        name=node.name,
        operator=node.op.title,
        input="x".join(map(str, types.ins[0].shape)),
        output="x".join(map(str, types.outs[0].shape)),
        quantisation=_quantisation(types.outs[0]) + _weight_quantisation(graph, node.inputs),
        macs=node.op.macs(types),
        weight_bytes=sum(graph.type(n).nbytes for n in constants),
        activation_bytes=types.outs[0].nbytes,
        runs=True,
        trains=not why,
        why=why,
    )


def _quantisation(t: TensorType) -> str:
    """Scale and zero point of an output, short."""
    return f"{t.scale:.4g} {t.zero_point:+d}" if t.quant else ""


def _weight_quantisation(graph: Graph, inputs: tuple[str, ...]) -> str:
    for name in inputs[1:2]:
        tensor = graph.tensors[name]
        if tensor.role is Role.CONST and tensor.type.quant:
            return ", per tensor" if len(tensor.type.quant.scale) == 1 else ", per channel"
    return ""


def why_frozen(graph: Graph, index: int) -> str:
    """Why no gradient reaches an operator: its own nature, or an operator between it and the loss."""
    own = graph.nodes[index].op.not_differentiable
    tail = _after_logits(graph)
    if index in tail:
        return ""
    if own:
        return str(own)
    reached = set(graph.nodes[index].outputs)
    blocked = ""
    for later in range(index + 1, len(graph.nodes)):
        node = graph.nodes[later]
        if reached.intersection(node.inputs) and later not in tail:
            if node.op.not_differentiable:
                blocked = f"behind {node.name}: {node.op.not_differentiable}"
                continue
            reached.update(node.outputs)
    logits = find(graph).logits if len(graph.outputs) == 1 else ""
    return "" if logits in reached or not logits else blocked or "the output does not depend on it"


def _after_logits(graph: Graph) -> set[int]:
    """Operators that only shape the output (a softmax): the loss reads what comes before them."""
    if len(graph.outputs) != 1:
        return set()
    logits = find(graph).logits
    after, reached = set(), {logits}
    for i, node in enumerate(graph.nodes):
        if reached.intersection(node.inputs):
            after.add(i)
            reached.update(node.outputs)
    return after


def _unusable(file: Path, size: int, raw: schema.RawModel, problems: tuple[tflite.Problem, ...]) -> Inspection:
    reasons: dict[int, list[str]] = {}
    for p in problems:
        reasons.setdefault(p.index, []).append(p.reason)
    tensors = raw.subgraph.tensors

    def shape(indices: tuple[int, ...]) -> str:
        return "x".join(map(str, tensors[indices[0]].shape)) if indices and indices[0] >= 0 else ""

    operators = []
    for i, op in enumerate(raw.subgraph.operators):
        name = tensors[op.outputs[0]].name if op.outputs else f"operator {i}"
        why = "; ".join(reasons.get(i, []))
        facts = OperatorFacts(i, name, op.opcode, shape(op.inputs), shape(op.outputs), "", 0, 0, 0, not why, False, why)
        operators.append(facts)

    def listed(indices: tuple[int, ...]) -> str:
        return ", ".join(f"{tensors[i].name}: {tensors[i].dtype}{list(tensors[i].shape)}" for i in indices)

    return Inspection(
        name=file.stem,
        file_bytes=size,
        input=listed(raw.subgraph.inputs),
        output=listed(raw.subgraph.outputs),
        operators=tuple(operators),
        macs=0,
        weight_bytes=0,
        peak_activations=0,
        peak_operator="",
        runnable=False,
        trainable=False,
        problems=tuple(str(p) for p in problems),
    )

