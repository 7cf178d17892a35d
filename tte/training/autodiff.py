"""Reverse-mode differentiation at compile time: appends loss, backward and update nodes to a forward graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tte.errors import ModelError
from tte.ir import Builder, Graph, Node, QuantParams, Role, Shape, Tensor, TensorType
from tte.ops.base import Cotangent, Op
from tte.ops.error import ApplyMask, Merge
from tte.ops.linear import Geometry, Linear, frozen_channels, weight_scales
from tte.ops.linear_grad import MODES, BiasUpdate, WeightUpdate
from tte.ops.loss import Loss, SoftmaxCrossEntropy
from tte.ops.redraw import DrawnUpdate, Redraw
from tte.training.head import Head
from tte.training.scheme import LayerUpdate, UpdateScheme, linear_nodes

#: Names of the tensors a training step takes and gives beside the model's own.
TRUTH, LOSS = "truth", "loss"
#: What trains well for most models: see `Numerics`.
RATE, MODE = 0.01, "r4"


@dataclass(frozen=True)
class Numerics:
    """How weights move.

    Attributes:
        rate: base learning rate, folded into tables; the device scales it by a factor of at most 1. 0: the update scheme's,
            or else `RATE`.
        mode: "r4", "r8", "sr" (see `tte.ops.linear_grad`) or "nearest", a baseline for tests. Empty: the update scheme's,
            or else `MODE`.
        batch: samples summed before an update.
    """

    rate: float = RATE
    mode: str = MODE
    batch: int = 1

    def completed(self, scheme: UpdateScheme | None) -> Numerics:
        """With what was left open taken from an update scheme."""
        rate, mode = (scheme.rate, scheme.mode) if scheme else (0.0, "")
        return replace(self, rate=self.rate or rate or RATE, mode=self.mode or mode or MODE)


def derive(forward: Graph, head: Head, loss: Loss, updates: Mapping[str, LayerUpdate], numerics: Numerics) -> Graph:
    """The training graph: forward nodes, loss, then for each layer from the last: mask, dX, bias, dW with update.

    Dead nodes are not removed here: run `tte.passes.dead` on the result.

    Raises:
        ModelError: nothing would train, or a layer that should train lies behind an operator without a gradient.
    """
    forward = _prepare(forward, head, loss, updates)
    tape = _Tape(forward, updates, numerics)
    logits = _logits(forward, head, loss)
    truth = TensorType((), "int32") if isinstance(loss, SoftmaxCrossEntropy) else forward.type(head.logits)
    tape.builder.add(TRUTH, truth, Role.INPUT)
    seed = tape.error_named("loss/error", forward.type(logits).shape, loss.error_scale(forward.type(logits)))
    value = tape.builder.add(LOSS, TensorType((), "int32"))
    tape.builder.emit("loss", loss, (logits, TRUTH), (seed.e, seed.k, value))
    # The loss reads the accumulators, but what it gives is the error of the tensor they became.
    tape.send(logits if head.node is None or logits == head.logits else head.node.outputs[0], seed)
    tape.walk(forward.nodes)
    tape.check()
    outputs = dict.fromkeys((*forward.outputs, head.logits, LOSS))
    return tape.builder.graph((*forward.inputs, TRUTH), tuple(outputs))


def _logits(forward: Graph, head: Head, loss: Loss) -> str:
    """The tensor the loss reads: the head's accumulators for cross-entropy, else the int8 output."""
    if isinstance(loss, SoftmaxCrossEntropy) and head.node is not None:
        node = next(n for n in forward.nodes if n.name == head.node.name)
        return node.outputs[-1]
    return head.logits


def _prepare(graph: Graph, head: Head, loss: Loss, updates: Mapping[str, LayerUpdate]) -> Graph:
    """The forward graph with masks, the head's accumulators, and trained tensors as parameters."""
    builder = Builder.of(graph)
    builder.nodes = []
    readers = Counter(i for node in graph.nodes for i in node.inputs)
    shared = {name for name, count in readers.items() if count > 1}
    for node in graph.nodes:
        is_head = head.node is not None and node.name == head.node.name and isinstance(loss, SoftmaxCrossEntropy)
        if is_head:
            node = _with_accumulators(builder, node)
        elif hasattr(node.op, "mask"):
            mask = builder.add(f"{node.name}/mask", TensorType(builder.tensors[node.outputs[0]].type.shape, "bit"))
            node = replace(node, op=replace(node.op, mask=True), outputs=(node.outputs[0], mask))
        if node.name in updates:
            node = _with_parameters(builder, node, updates[node.name], shared)
        builder.nodes.append(node)
    return builder.graph(graph.inputs, graph.outputs)


def _with_accumulators(builder: Builder, node: Node) -> Node:
    """The head gives its int32 accumulators too, their type carrying their real scale."""
    y, x, w = (builder.tensors[n].type for n in (node.outputs[0], *node.inputs[:2]))
    scales = weight_scales(w, y.shape[-1])
    quant = QuantParams(tuple(x.scale * s for s in scales), (0,) * len(scales), len(y.shape) - 1)
    acc = builder.add(f"{node.name}/accumulators", TensorType(y.shape, "int32", quant))
    return replace(node, op=replace(node.op, acc=True), outputs=(*node.outputs, acc))


def _with_parameters(builder: Builder, node: Node, update: LayerUpdate, shared: set[str]) -> Node:
    """Trained weights and biases become PARAMs; a partial choice of channels splits the weights, unless it will change.

    Args:
        shared: tensors that several operators read.
    """
    weights, bias = list(node.inputs[1:-1]), node.inputs[-1]
    if update.bias:
        bias = _own(builder, bias, shared)
    if update.weights and (not update.channels or update.redraw):
        weights = [_own(builder, weights[0], shared)]
    elif update.weights:
        whole = builder.tensors[weights[0]]
        assert whole.data is not None
        size = whole.type.shape[-1]
        parts = {"trained": list(update.channels), "frozen": frozen_channels(update.channels, size)}
        weights = []
        for what, channels in parts.items():
            data = np.ascontiguousarray(whole.data[..., channels])
            role = Role.PARAM if what == "trained" else Role.CONST
            # The scales stay those of the whole tensor: one per output channel, even where depthwise slices them.
            weights.append(builder.add(f"{whole.name}/{what}", replace(whole.type, shape=data.shape), role, data))
        node = replace(node, op=replace(node.op, trained=update.channels))
    return replace(node, inputs=(node.inputs[0], *weights, bias))


def _own(builder: Builder, name: str, shared: set[str]) -> str:
    """A constant as a parameter of one layer alone: what others share, whether they train or not, must not move with it."""
    tensor = builder.tensors[name]
    if name in shared:
        name = builder.unique(name)
    builder.tensors[name] = Tensor(name, tensor.type, Role.PARAM, tensor.data)
    return name


@dataclass
class _Tape:
    """Implements `tte.ops.base.Tape` over a forward graph."""

    forward: Graph
    updates: Mapping[str, LayerUpdate]
    numerics: Numerics
    builder: Builder = field(init=False)
    arrived: dict[str, list[Cotangent]] = field(default_factory=dict)
    updated: set[str] = field(default_factory=set)
    blocked: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.builder = Builder.of(self.forward)
        self.ordinal = {n.name: i for i, n in enumerate(linear_nodes(self.forward))}
        self.trainable = self._reach()

    def _reach(self) -> set[str]:
        """VALUEs that depend on something that trains: only their errors are of use."""
        reached: set[str] = set()
        for node in self.forward.nodes:
            if node.name in self.updates or reached.intersection(node.inputs):
                reached.update(node.outputs)
        return reached

    def walk(self, nodes: Sequence[Node]) -> None:
        for node in reversed(nodes):
            g = self._total(node)
            if g is None:
                continue
            if node.op.not_differentiable:
                self.blocked[node.name] = node.op.not_differentiable
                continue
            node.op.gradient(self, node, g)

    def check(self) -> None:
        """Raises unless every update that was asked for was emitted."""
        if not self.updates:
            raise ModelError("nothing would train", where=self.forward.name, remedy="choose another --update scheme")
        missing = [name for name in self.updates if name not in self.updated]
        if missing:
            reasons = "; ".join(f"{k}: {v}" for k, v in self.blocked.items()) or "the loss does not depend on it"
            raise ModelError(
                f"{len(missing)} layers cannot train: {reasons}",
                where=missing[-1],
                remedy="choose a scheme that stays behind that operator",
            )

    def type(self, name: str) -> TensorType:
        return self.builder.tensors[name].type

    def wants(self, name: str) -> bool:
        return name in self.trainable

    def masked(self, node: Node, g: Cotangent) -> Cotangent:
        masks = [o for o in node.outputs[1:] if self.type(o).dtype == "bit"]
        if not masks:
            return g
        e = self.builder.add(f"{node.name}/masked", self.type(g.e))
        self.builder.emit(f"{node.name}/mask", ApplyMask(), (g.e, masks[0]), (e,))
        return Cotangent(e, g.k)

    def error(self, node: Node, shape: Shape, scale: float, what: str = "error") -> Cotangent:
        return self.error_named(f"{node.name}/{what}", shape, scale)

    def error_named(self, wish: str, shape: Shape, scale: float) -> Cotangent:
        if not np.isfinite(scale) or scale <= 0:
            raise ModelError(f"the gradient's compile-time factor is {scale}", where=wish)
        e = self.builder.add(wish, TensorType(shape, "int8", QuantParams((scale,))))
        return Cotangent(e, self.builder.add(f"{wish}/exponent", TensorType((), "int32")))

    def alike(self, node: Node, shape: Shape, g: Cotangent, what: str = "error") -> Cotangent:
        return Cotangent(self.builder.add(f"{node.name}/{what}", replace(self.type(g.e), shape=shape)), g.k)

    def emit(self, node: Node, what: str, op: Op, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self.builder.emit(f"{node.name}/{what}", op, inputs, outputs)

    def send(self, name: str, g: Cotangent) -> None:
        self.arrived.setdefault(name, []).append(g)

    def update(self, node: Node, g: Cotangent) -> None:
        update = self.updates.get(node.name)
        if update is None:
            return
        self.updated.add(node.name)
        n, stream = self.numerics, self.ordinal[node.name]
        x, weight, bias = node.inputs[0], node.inputs[1], node.inputs[-1]
        op: Linear = node.op
        geometry = op.site(tuple(self.type(i) for i in node.inputs))
        if update.bias:
            units = tuple(self.type(x).scale * s for s in weight_scales(self.type(weight), geometry.out_c))
            state = [bias, *self._held(bias)]
            self.emit(node, "bias update", BiasUpdate(stream, n.rate, n.mode, n.batch, units), (g.e, g.k, *state), state)
        if update.weights and update.channels and update.redraw:
            self._drawn(node, g, update, geometry)
        elif update.weights:
            state = [weight, *self._residual(weight), *self._held(weight)]
            step = WeightUpdate(stream, n.rate, n.mode, n.batch, geometry, op.trained)
            self.emit(node, "weight update", step, (x, g.e, g.k, *state), state)

    def _drawn(self, node: Node, g: Cotangent, update: LayerUpdate, geometry: Geometry) -> None:
        """The update of channels that a table names, and the draw of others."""
        n, stream, count = self.numerics, self.ordinal[node.name], len(update.channels)
        if update.redraw % n.batch:
            raise ModelError(
                f"channels are drawn anew every {update.redraw} steps, in the midst of a batch of {n.batch}",
                where=node.name,
                remedy=f"make redraw a multiple of {n.batch} in the update scheme, or build without --batch",
            )
        weight = node.inputs[1]
        residual, held = self._residual(weight, count), self._held(weight, count)
        first = np.array(update.channels, np.uint16)
        table = self.builder.add(f"{weight}/channels", TensorType((count,), "uint16"), Role.PARAM, first)
        step = DrawnUpdate(stream, n.rate, n.mode, n.batch, geometry, drawn=count)
        state = [weight, *residual, *held]
        self.emit(node, "weight update", step, (node.inputs[0], g.e, g.k, *state, table), state)
        # It comes after the update, and what reads the table in a step before both: the verifier sees to it.
        drawn = [weight, *residual, table]
        self.emit(node, "redraw", Redraw(stream, update.redraw, n.mode), drawn, drawn)

    def _residual(self, weight: str, channels: int = 0) -> list[str]:
        bits = MODES[self.numerics.mode]
        return [self._zeros(f"{weight}/residual", weight, f"int{bits}", channels)] if bits else []

    def _held(self, name: str, channels: int = 0) -> list[str]:
        return [self._zeros(f"{name}/held", name, "int32", channels)] if self.numerics.batch > 1 else []

    def _zeros(self, wish: str, like: str, dtype: str, channels: int = 0) -> str:
        """A parameter of zeros in the shape of another, or of so many of its channels."""
        shape = self.type(like).shape
        shape = (*shape[:-1], channels) if channels else shape
        data = np.zeros(shape, np.int32 if dtype == "int32" else np.int8)
        return self.builder.add(wish, TensorType(shape, dtype), Role.PARAM, data)

    def _total(self, node: Node) -> Cotangent | None:
        """All that arrived for the node's output, summed in the order of arrival."""
        parts = self.arrived.get(node.outputs[0], [])
        if not parts:
            return None
        total = parts[0]
        for part in parts[1:]:
            t = self.type(total.e)
            merged = self.error(node, t.shape, t.scale, "sum")
            self.emit(node, "sum", Merge(), (total.e, total.k, part.e, part.k), (merged.e, merged.k))
            total = merged
        return total
