"""What a device has learnt, as a .tflite again: trained weights and biases take their places in the build's own model.

The forward pass of a build is that of the file, tensor by tensor (`tte.reference` against LiteRT), so the file with other
weights computes what the device computes. What the build changed on the way is undone here: trained and frozen channels
become one tensor again, a constant that several operators share becomes one for each that trained, a fresh classifier
takes the place of the old one with the tensors behind it. Residuals (the part of a weight below its step) are left out: the
forward pass does not read them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tte import project
from tte.codegen import model_hash, state_bytes, state_slots
from tte.compiler import Compiled
from tte.device import statefile
from tte.device.statefile import State
from tte.errors import DataError, ModelError
from tte.frontend import tflite
from tte.frontend.patch import patched
from tte.frontend.records import RawModel, RawTensor
from tte.frontend.schema import read
from tte.ir import Array, Graph, Node, Role
from tte.ops.linear import FullyConnected, Linear, join_channels
from tte.ops.redraw import Redraw
from tte.ops.segment import Segment
from tte.planner.arena import Plan
from tte.reference import unpack
from tte.training.head import find

#: Operators at a model's border, which only convert its output.
_BORDER = ("QUANTIZE", "DEQUANTIZE")


@dataclass(frozen=True)
class Learnt:
    """One layer's change: how many of its weights and biases differ from the model's."""

    layer: str
    weights: int
    of_weights: int
    biases: int
    of_biases: int


@dataclass(frozen=True, eq=False)
class Exported:
    """A model with what was learnt.

    Attributes:
        data: the .tflite file.
        layers: what changed, in the model's order; a fresh classifier counts whole.
        steps: training steps that the state has seen.
    """

    data: bytes
    layers: tuple[Learnt, ...]
    steps: int


def export(folder: Path, state: State, where: str) -> Exported:
    """The build folder's model with the weights and biases of a state.

    Args:
        where: the state's file, for messages.

    Raises:
        DataError: no finished build, one that only infers, or contents that training cannot give.
        DeviceError: the state of another program.
        ModelError: the model's file cannot hold the change.
    """
    _, compiled, _ = project.load(folder)
    if not compiled.plan.program.trains:
        raise DataError("this build only infers: nothing was learnt", where=str(folder))
    values = parameters(compiled.plan, state, where)
    source = project.kept_model(folder)
    data, layers = learnt_model(source.read_bytes(), compiled, values, str(source))
    return Exported(data, layers, state.step)


def parameters(plan: Plan, state: State, where: str) -> dict[str, Array]:
    """The trained tensors in a state, by name.

    Raises:
        DeviceError: the state of another program.
        DataError: contents that no training step gives: a list of channels that names others than the layer has.
    """
    statefile.require(state, model_hash(plan), state_bytes(plan), where)
    values = {}
    for slot in state_slots(plan):
        data = state.data[slot.offset : slot.offset + slot.type.nbytes]
        values[slot.name] = unpack(data, slot.type.shape, slot.type.dtype)
    for node in plan.program.graph.nodes:
        if isinstance(node.op, Redraw):
            table, channels = values[node.inputs[-1]].astype(np.int64), values[node.inputs[0]].shape[-1]
            if table[-1] >= channels or (np.diff(table) <= 0).any():
                what = f"the channels of {node.name} that train are no ascending list below {channels}"
                raise DataError(what, where=where, remedy="save the state again")
    return values


def learnt_model(
    data: bytes, compiled: Compiled, values: Mapping[str, Array], where: str
) -> tuple[bytes, tuple[Learnt, ...]]:
    """The .tflite file `data` that `compiled` came from, with trained tensors as in `values`; and what changed.

    Raises:
        ModelError: the file cannot hold the change.
        DataError: weights that training cannot give.
    """
    before = read(data, where)
    edited = _Edited(before, tflite.from_bytes(data, compiled.forward.name, where), compiled.forward)
    fresh = find(compiled.forward).node if compiled.options.classes else None
    if fresh is not None:
        edited.reshape()
    layers = []
    for node in compiled.forward.nodes:
        if node.name in compiled.updates or node is fresh:
            w, b = _whole(compiled, node, values)
            edited.set_layer(node, w, b, node is fresh)
            layers.append(_learnt(compiled.forward, node, w, b, node is fresh))
    result = patched(data, before, edited.model(), where)
    try:
        tflite.from_bytes(result, compiled.forward.name, where)
    except ModelError as error:
        raise ModelError(f"with what was learnt it cannot be read again: {error.what}", where=where) from None
    return result, tuple(layers)


def _whole(compiled: Compiled, layer: Node, values: Mapping[str, Array]) -> tuple[Array, Array]:
    """A layer's weights and biases, in the shapes of the forward graph."""
    graph, forward = compiled.plan.program.graph, compiled.forward
    stages = (n.op.nodes if isinstance(n.op, Segment) else (n,) for n in graph.nodes)
    node = next(n for nodes in stages for n in nodes if n.name == layer.name and isinstance(n.op, Linear))
    # A bias that does not train may have been settled: the forward graph has it as it was.
    whole = [values[n] if graph.tensors[n].role is Role.PARAM else graph.data(n) for n in node.inputs[1:-1]]
    w, b = join_channels(node.op.trained, whole), values.get(node.inputs[-1], forward.data(layer.inputs[-1]))
    w, old = w.reshape(forward.type(layer.inputs[1]).shape), forward.data(layer.inputs[1])
    if ((w == -128) & (w != old)).any():
        raise DataError("the state holds a weight of -128", where=layer.name, limit="training stays within -127 to 127")
    return w, b.reshape(forward.type(layer.inputs[-1]).shape)


def _learnt(forward: Graph, layer: Node, w: Array, b: Array, fresh: bool) -> Learnt:
    old_w, old_b = forward.data(layer.inputs[1]), forward.data(layer.inputs[-1])
    weights, biases = (w.size, b.size) if fresh else (int((w != old_w).sum()), int((b != old_b).sum()))
    return Learnt(layer.name, weights, w.size, biases, b.size)


class _Edited:
    """A file's records, changed one by one.

    Args:
        raw: the file.
        graph: the graph that was imported from it; its tensors have the file's names.
        forward: what the build made of that, with the same names of nodes.
    """

    def __init__(self, raw: RawModel, graph: Graph, forward: Graph) -> None:
        self.raw, self.forward = raw, forward
        self.tensors, self.operators = list(raw.subgraph.tensors), list(raw.subgraph.operators)
        self.readers = Counter(i for op in self.operators for i in op.inputs)
        index = {name: i for i, name in tflite.tensor_names(raw).items()}
        gives = {o: i for i, op in enumerate(self.operators) for o in op.outputs}
        self.place = {n.name: gives[index[n.outputs[0]]] for n in graph.nodes if n.outputs[0] in index}

    def model(self) -> RawModel:
        subgraph = replace(self.raw.subgraph, tensors=tuple(self.tensors), operators=tuple(self.operators))
        return replace(self.raw, subgraph=subgraph)

    def reshape(self) -> None:
        """Gives every output the shape it has in the forward graph: those behind a fresh classifier have changed."""
        changed = set()
        for node in self.forward.nodes:
            if node.name not in self.place:
                continue
            number = self.place[node.name]
            op, shape = self.operators[number], self.forward.type(node.outputs[0]).shape
            if isinstance(node.op, FullyConnected) and bool(op.options.get("keep_num_dims")) != node.op.keep_dims:
                op = self.operators[number] = replace(op, options={**op.options, "keep_num_dims": node.op.keep_dims})
            if self.tensors[op.outputs[0]].shape == shape:
                continue
            changed.add(op.outputs[0])
            self._set_shape(op.outputs[0], shape)
            if op.opcode == "RESHAPE":
                self._set_wanted_shape(number, shape)
        for op in self.operators:
            if op.opcode in _BORDER and changed.intersection(op.inputs):
                self._set_shape(op.outputs[0], self.tensors[op.inputs[0]].shape)

    def _set_shape(self, tensor: int, shape: tuple[int, ...]) -> None:
        old = self.tensors[tensor]
        known = len(old.shape_signature) == len(shape)
        signature = tuple(-1 if s < 0 else d for s, d in zip(old.shape_signature, shape, strict=True)) if known else ()
        self.tensors[tensor] = replace(old, shape=shape, shape_signature=signature)

    def _set_wanted_shape(self, number: int, shape: tuple[int, ...]) -> None:
        """The shape that a RESHAPE is told, as a constant even where it was computed: batch 1 is fixed."""
        op = self.operators[number]
        if op.options.get("new_shape"):
            op = replace(op, options={**op.options, "new_shape": shape})
        if len(op.inputs) > 1:
            told = RawTensor(f"{self.tensors[op.outputs[0]].name}/shape", (len(shape),), "int32", np.array(shape, np.int32))
            self.tensors.append(told)
            op = replace(op, inputs=(op.inputs[0], len(self.tensors) - 1))
        self.operators[number] = op

    def set_layer(self, layer: Node, w: Array, b: Array, fresh: bool) -> None:
        """Gives a layer its weights and biases; a fresh one the types of the forward graph, too."""
        number = self.place[layer.name]
        self._set_operand(number, 1, self._constant(layer, 1, w), fresh)
        self._set_operand(number, 2, self._constant(layer, -1, b), fresh)

    def _constant(self, layer: Node, operand: int, data: Array) -> RawTensor:
        """Weights or biases as a tensor of a file; a bias counts in steps of input times weight scale."""
        w = self.forward.type(layer.inputs[1])
        assert w.quant is not None
        scales, axis = np.array(w.quant.scale, np.float32), w.quant.axis or 0
        if operand == -1:
            step = np.float32(self.forward.type(layer.inputs[0]).scale)
            scales, axis = step * scales, 0
        zeros = np.zeros(scales.size, np.int64)
        name = f"{layer.name}/{'bias' if operand == -1 else 'weights'}"
        return RawTensor(name, data.shape, str(data.dtype), data, scales, zeros, axis)

    def _set_operand(self, number: int, slot: int, new: RawTensor, fresh: bool) -> None:
        """Replaces an operator's constant; one that others read stays for them."""
        op = self.operators[number]
        index = op.inputs[slot] if slot < len(op.inputs) else -1
        old = self.tensors[index] if index >= 0 else None
        assert new.data is not None
        if old is None and not (fresh or new.data.any()):
            return  # there is no bias, and none was learnt
        if old is not None and old.data is not None and not fresh:
            if np.array_equal(old.data.ravel(), new.data.ravel()):
                return
            new = replace(old, data=new.data.reshape(old.shape))
        elif old is not None:
            new = replace(new, name=old.name)
        if old is not None and self.readers[index] == 1:
            self.tensors[index] = new
            return
        self.readers[index] -= 1
        self.tensors.append(new)
        inputs = (*op.inputs[:slot], *(-1,) * (slot - len(op.inputs)), len(self.tensors) - 1, *op.inputs[slot + 1 :])
        self.operators[number] = replace(op, inputs=inputs)
