"""What every step of a program is and costs: kernel, MACs, instructions predicted and counted, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tte.ir import Node
from tte.ops.base import Kernel, Types
from tte.ops.segment import Segment
from tte.planner.schedule import Program

_NAME_WIDTH = 44
#: Instructions that portable kernels take, by what they do: of what QEMU counts of demo/digits (Cortex-M7, -O2) the upper half.
_PER_CALL, _PER_ELEMENT = 60, 30
_PER_MAC = {"conv2d": 5, "depthwise_conv2d": 5, "depthwise_input_grad": 16}
_PER_OTHER_MAC = 9
_PER_OUTPUT = {"conv2d": 100, "depthwise_conv2d": 100, "softmax_cross_entropy": 130, "mean_squared_error": 30}
_PER_WEIGHT, _PER_POSITION = 55, 4


@dataclass(frozen=True)
class StepCost:
    """A step of the plan; or, with `stage`, a stage of a segment, over all its rows and within its step's figures.

    Attributes:
        index: the step's number in the plan.
        stage: the stage's number in the segment; None for a step.
        calls: "both", "inference" or "training": which calls run it.
        name: of the node; operator: its kind; kernel: the template that computes it (of a segment: none).
        macs: multiply-accumulate operations.
        predicted: instructions that the planner expects; 0 where it expects nothing.
        counted: instructions that the emulator counted; 0 before it did.
    """

    index: int
    stage: int | None
    calls: str
    name: str
    operator: str
    kernel: str
    macs: int
    predicted: int
    counted: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def costs(program: Program) -> tuple[StepCost, ...]:
    """Every step that is code, in order; a segment's stages come after it."""
    found: list[StepCost] = []
    for index, node in enumerate(program.graph.nodes):
        if node.op.view:
            continue
        calls = "both" if index < program.shared else "inference" if index < program.forward else "training"
        if not program.trains:
            calls = "inference"
        found.append(_cost(index, None, calls, node, program.types(node), program.kernel(node), 1))
        if isinstance(node.op, Segment):
            kernels = program.stage_kernels(node)
            known = all(k.instructions for k in kernels)
            found[-1] = replace(found[-1], kernel="", predicted=found[-1].predicted if known else 0)
            for i, (inner, kernel) in enumerate(zip(node.op.nodes, kernels, strict=True)):
                rows = node.op.type(inner.outputs[0]).shape[1]
                found.append(_cost(index, i, calls, inner, node.op.types_of(inner), kernel, rows))
    return tuple(found)


def _cost(index: int, stage: int | None, calls: str, node: Node, types: Types, kernel: Kernel, times: int) -> StepCost:
    macs, predicted = node.op.macs(types), kernel.instructions * times
    return StepCost(index, stage, calls, node.name, node.op.title, kernel.template, macs, predicted)


def expected(node: Node, types: Types, kernel: Kernel) -> int:
    """Instructions of one call: what the kernel predicts, or a rough bound where it predicts nothing."""
    if kernel.instructions:
        return kernel.instructions
    macs: int = node.op.macs(types)
    outputs = types.outs[0].elements
    if not macs:
        each = _PER_OUTPUT.get(kernel.template, _PER_ELEMENT)
        return _PER_CALL + each * max(t.elements for t in (*types.ins, *types.outs))
    weights = types.outs[0].elements if kernel.template.endswith("weight_update") else 0
    per_mac, per_output = _PER_MAC.get(kernel.template, _PER_OTHER_MAC), _PER_OUTPUT.get(kernel.template, 0)
    positions = macs // types.ins[0].shape[-1] if weights else 0
    return _PER_CALL + per_mac * macs + per_output * outputs + _PER_WEIGHT * weights + _PER_POSITION * positions


def work(program: Program) -> dict[int, int]:
    """By step: instructions that it is expected to take, of every step that is code."""
    found: dict[int, int] = {}
    for index, node in enumerate(program.graph.nodes):
        if isinstance(node.op, Segment):
            stages = zip(node.op.nodes, program.stage_kernels(node), strict=True)
            rows = {n.name: node.op.type(n.outputs[0]).shape[1] for n in node.op.nodes}
            found[index] = sum(row_work(node.op, n, k) * rows[n.name] for n, k in stages)
        elif not node.op.view:
            found[index] = expected(node, program.types(node), program.kernel(node))
    return found


def row_work(segment: Segment, node: Node, kernel: Kernel) -> int:
    """Instructions of one row of a segment's stage."""
    types = segment.types_of(node)
    if kernel.instructions:
        return kernel.instructions
    return _PER_CALL + expected(node, types, kernel) // types.outs[0].shape[1]


def with_counts(
    lines: Sequence[StepCost], steps: Mapping[int, int], stages: Mapping[tuple[int, int], int]
) -> tuple[StepCost, ...]:
    """The lines with counted instructions, by step and by (step, stage); others as they were."""

    def counted(line: StepCost) -> int:
        if line.stage is None:
            return steps.get(line.index, line.counted)
        return stages.get((line.index, line.stage), line.counted)

    return tuple(replace(line, counted=counted(line)) for line in lines)


def text(lines: Sequence[StepCost]) -> str:
    """The table, with sums for each call."""
    has_counts = any(line.counted for line in lines)
    head = ["step", "calls", "layer", "operator", "kernel", "MACs", "predicted"]
    head += ["counted", "per MAC"] if has_counts else []
    rows = [head]
    for line in lines:
        number = str(line.index) if line.stage is None else f"{line.index}.{line.stage}"
        words = [number, line.calls if line.stage is None else "", _short(line.name, line.stage), line.operator, line.kernel]
        rows.append(words + _figures(line.macs, line.predicted, line.counted, has_counts))
    for call in ("inference", "training"):
        own = [line for line in lines if line.stage is None and line.calls in ("both", call)]
        if own and any(line.calls == call for line in lines):
            predicted = sum(x.predicted for x in own) if all(x.predicted for x in own) else 0
            words = ["", "", f"all of {call}", "", ""]
            rows.append(words + _figures(sum(x.macs for x in own), predicted, sum(x.counted for x in own), has_counts))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    align = [str.ljust] * 5 + [str.rjust] * (len(head) - 5)
    return "".join(
        "  ".join(place(word, width) for place, word, width in zip(align, row, widths, strict=True)).rstrip() + "\n"
        for row in rows
    )


def _short(name: str, stage: int | None) -> str:
    indent = "" if stage is None else "  "
    room = _NAME_WIDTH - len(indent)
    return indent + (name if len(name) <= room else "…" + name[1 - room :])


def _figures(macs: int, predicted: int, counted: int, has_counts: bool) -> list[str]:
    shown = [f"{macs:,}" if macs else "", f"{predicted:,}" if predicted else "-"]
    if has_counts:
        shown += [f"{counted:,}" if counted else "-", f"{counted / macs:.2f}" if macs and counted else ""]
    return shown
