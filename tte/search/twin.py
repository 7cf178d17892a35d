"""One compiled program that trains by any update scheme: the device's integers at this computer's speed.

It is the program in which everything trains, in portable C, with a switch for every step. A scheme switches on what it
needs: the forward steps behind the first trained layer, the backward steps down to it, its own updates. What the frozen
layers before it compute is the same for every step, so it is computed once a sample and kept: the features. Channels that
a scheme leaves frozen are put back after each step. The results are those of the program pruned for the scheme, bit for bit.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tte import codegen, toolchain
from tte.compiler import Compiled
from tte.errors import ModelError, ToolchainError
from tte.ir import Array, Role
from tte.ops.base import Control
from tte.ops.linear_grad import WeightUpdate
from tte.planner.arena import Plan
from tte.search import redraw
from tte.training.autodiff import TRUTH
from tte.training.scheme import LayerUpdate

_FLAGS = ("-std=c11", "-O3", "-march=native", "-shared", "-fPIC")
_NAME = "whole"


class _Span(ctypes.Structure):
    _fields_ = (("at", ctypes.c_uint32), ("bytes", ctypes.c_uint32))


@dataclass(frozen=True)
class Route:
    """Which steps of the whole program a scheme runs.

    Attributes:
        first: the first forward step that depends on something trained; steps before it are the frozen prefix.
        train, infer: steps that run behind it.
        prefix: steps that compute the features.
        features: the tensors that are read behind `first` and made before it.
    """

    first: int
    train: frozenset[int]
    infer: frozenset[int]
    prefix: frozenset[int]
    features: tuple[str, ...]


def route(plan: Plan, updates: Mapping[str, LayerUpdate], cut: int | None = None) -> Route:
    """The steps that a scheme needs of the program in which everything trains.

    Args:
        cut: the frozen prefix ends before this step at the latest: schemes that share a cut share features.

    Raises:
        ModelError: the program does not train what the scheme asks for.
    """
    program, graph = plan.program, plan.program.graph
    layers = {n.name: n for n in graph.nodes[: program.shared]}
    trained: set[str] = set()
    for name, update in updates.items():
        node = layers[name]
        trained |= {node.inputs[1]} if update.weights else set()
        trained |= {node.inputs[-1]} if update.bias else set()
    changes = [i for i, n in enumerate(graph.nodes) if trained.intersection(graph.mutated(n))]
    changed = {o for i in changes for o in graph.mutated(graph.nodes[i])}
    if not trained <= changed:
        raise ModelError("the model cannot train all of what the scheme names", where=graph.name)
    readers = [i for i in range(program.shared) if changed.intersection(graph.nodes[i].inputs)]
    first = min([*readers, program.shared, *([] if cut is None else [cut])])
    train = _needed(plan, program.train_steps, {*program.kept}, set(changes))
    infer = _needed(plan, tuple(program.infer_steps), {*program.outputs}, set())
    made = {o: i for i, n in enumerate(graph.nodes) for o in n.outputs}
    behind = {i for i in train | infer if i >= first}
    read = {t for i in behind for t in graph.nodes[i].inputs if graph.tensors[t].role in (Role.VALUE, Role.INPUT)}
    features = tuple(t for t in graph.tensors if t in read and t != TRUTH and made.get(t, -1) < first)
    before = _needed(plan, tuple(range(first)), {t for t in features if t in made}, set())
    return Route(
        first, frozenset(i for i in train if i >= first), frozenset(i for i in infer if i >= first), frozenset(before), features
    )


def _needed(plan: Plan, steps: Sequence[int], targets: set[str], chosen: set[int]) -> set[int]:
    """The steps that make the targets or are chosen, and all that they depend on."""
    graph, found, wanted = plan.program.graph, set(), set(targets)
    for index in sorted(steps, reverse=True):
        node = graph.nodes[index]
        if index in chosen or wanted.intersection(o for o in node.outputs if graph.tensors[o].role is Role.VALUE):
            found.add(index)
            wanted.update(i for i in node.inputs if graph.tensors[i].role is Role.VALUE)
    return found


class Twin:
    """The compiled program, loaded into this process; one at a time may be used by a process and model.

    Args:
        compiled: the model with everything trained, not streamed (`Options(update="full", stream=False)`).
        folder: where programs are kept, named after what they are made of.

    Raises:
        ToolchainError: there is no C compiler, or it failed.
    """

    def __init__(self, compiled: Compiled, folder: Path) -> None:
        self.compiled, self.plan = compiled, compiled.plan
        self.graph = compiled.plan.program.graph
        self.library = ctypes.CDLL(str(_build(compiled.plan, folder)))
        self.library.twin_switches.restype = ctypes.c_void_p
        self.library.twin_state.restype = ctypes.c_void_p
        self.library.twin_keeps.restype = ctypes.c_void_p
        self.state_bytes = codegen.state_bytes(self.plan)
        self.input = next(i for i in self.graph.inputs if i != TRUTH)
        self._kept: list[NDArray[np.uint8]] = []
        #: The channels that were drawn since the reset, by layer (see `tte.search.redraw`).
        self.drawn: dict[str, tuple[int, ...]] = {}
        self._control = Control()

    def reset(self, seed: int = 0) -> None:
        """The initial weights, step 0."""
        self.library.twin_reset(ctypes.c_uint32(seed))
        self._control, self.drawn = Control(seed=seed), {}

    def state(self) -> bytes:
        """The trained state of the whole program."""
        return ctypes.string_at(self.library.twin_state(), self.state_bytes)

    def load(self, state: bytes) -> None:
        """Replaces the trained state."""
        ctypes.memmove(self.library.twin_state(), state, self.state_bytes)

    def values(self, state: bytes, tensor: str) -> NDArray[np.int8 | np.int32]:
        """A parameter, or an 8-bit residual, of a state."""
        slot = next(s for s in codegen.state_slots(self.plan) if s.name == tensor)
        return np.frombuffer(state, slot.type.dtype, slot.type.elements, slot.offset).reshape(slot.type.shape)

    def features(self, x: NDArray[np.int8], way: Route, fresh: bool = True) -> NDArray[np.uint8]:
        """What the frozen prefix makes of samples, uint8 [n, bytes]; of the initial weights, as they never change there.

        Args:
            fresh: reset first; else what trained so far stays, and must not have been part of the prefix.
        """
        if fresh:
            self.reset()
        return self._infer(x.reshape(len(x), -1).view(np.uint8), (self.input,), way.features, way.prefix)

    def infer(self, features: NDArray[np.uint8], way: Route) -> NDArray[np.int8]:
        """The model's output, int8 [n, outputs]."""
        return self._infer(features, way.features, self.plan.program.outputs[:1], way.infer).view(np.int8)

    def accuracy(self, features: NDArray[np.uint8], labels: NDArray[np.int32], way: Route) -> float:
        """The share of samples whose largest output is their label's."""
        return float((self.infer(features, way).argmax(1) == labels).mean())

    def train(
        self,
        features: NDArray[np.uint8],
        truth: Array,
        order: NDArray[np.uint32],
        rates: NDArray[np.uint16],
        way: Route,
        updates: Mapping[str, LayerUpdate],
        own: bool = False,
    ) -> NDArray[np.int32]:
        """Trains on the samples `order` names, one after the other; gives the losses.

        Args:
            truth: int32 labels [n], or int8 targets [n, ...].
            rates: learning-rate factor of each step, 0 to 32768.
            own: the program was compiled for the updates, so that it keeps and draws channels by itself.
        """
        if not own and any(u.redraw for u in updates.values()):
            return self._train_drawing(features, truth, order, rates, way, updates)
        self._keep_channels({} if own else updates)
        spans = self._spans(way.features)
        losses = np.zeros(len(order), np.int32)
        self._switch(way.train)
        samples, truth = np.ascontiguousarray(features), np.ascontiguousarray(truth)
        order, rates = np.ascontiguousarray(order, np.uint32), np.ascontiguousarray(rates, np.uint16)
        self.library.twin_train(
            _at(samples), ctypes.c_uint32(samples.shape[1]), _at(truth), _at(order), _at(rates), ctypes.c_uint32(len(order)),
            ctypes.c_uint32(len(way.features)), spans, _at(losses),
        )  # fmt: skip
        self._control = replace(self._control, step=(self._control.step + len(order)) % 2**32)
        return losses

    def _train_drawing(
        self, features: NDArray[np.uint8], truth: Array, order: NDArray[np.uint32], rates: NDArray[np.uint16], way: Route,
        updates: Mapping[str, LayerUpdate],
    ) -> NDArray[np.int32]:  # fmt: skip
        """`train` where channels are drawn anew: from draw to draw."""
        losses = [np.zeros(0, np.int32)]
        for first, end in redraw.stretches(updates, self._control.step, len(order)):
            now = redraw.current(updates, self.drawn)
            still = {n: replace(u, redraw=0) for n, u in now.items()}
            losses.append(self.train(features, truth, order[first:end], rates[first:end], way, still))
            last = replace(self._control, step=self._control.step - 1)
            state, drawn = redraw.redrawn(self.graph, codegen.state_slots(self.plan), self.state(), now, last)
            self.drawn |= drawn
            self.load(state)
        return np.concatenate(losses)

    def _infer(
        self, samples: NDArray[np.uint8], ins: Sequence[str], outs: Sequence[str], steps: frozenset[int]
    ) -> NDArray[np.uint8]:
        size = sum(self.graph.type(t).nbytes for t in outs)
        result = np.zeros((len(samples), size), np.uint8)
        samples = np.ascontiguousarray(samples)
        self._switch(steps)
        self.library.twin_infer(
            _at(samples), ctypes.c_uint32(samples.shape[1]), ctypes.c_uint32(len(samples)), ctypes.c_uint32(len(ins)),
            self._spans(ins), ctypes.c_uint32(len(outs)), self._spans(outs), _at(result),
        )  # fmt: skip
        return result

    def _switch(self, steps: frozenset[int]) -> None:
        on = np.zeros(len(self.graph.nodes), np.uint8)
        on[list(steps)] = 1
        ctypes.memmove(self.library.twin_switches(), on.tobytes(), len(on))

    def _spans(self, names: Sequence[str]) -> ctypes.Array[_Span]:
        spans = [_Span(self.plan.offsets[n], self.graph.type(n).nbytes) for n in names]
        return (_Span * max(1, len(spans)))(*spans)

    def _keep_channels(self, updates: Mapping[str, LayerUpdate]) -> None:
        """Tells the updates of weights that train in part which channels to keep."""
        layers = {n.name: n for n in self.graph.nodes[: self.plan.program.shared]}
        chosen = {layers[name].inputs[1]: u.channels for name, u in updates.items() if u.weights and u.channels}
        pointers = (ctypes.c_void_p * len(self.graph.nodes))()
        self._kept = []
        for step, node in enumerate(self.graph.nodes):
            if isinstance(node.op, WeightUpdate) and not node.op.trained and node.inputs[3] in chosen:
                keep = np.ones(self.graph.type(node.inputs[3]).shape[-1], np.uint8)
                keep[list(chosen[node.inputs[3]])] = 0
                self._kept.append(keep)
                pointers[step] = keep.ctypes.data
        ctypes.memmove(self.library.twin_keeps(), pointers, ctypes.sizeof(pointers))


def _at(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _build(plan: Plan, folder: Path) -> Path:
    """The shared library, compiled once for what it is made of."""
    compiler = toolchain.require("cc")
    rendered = codegen.render(plan, _NAME, "search", "portable", switches=True)
    texts = {p: t for p, t in rendered.items() if p.endswith((".c", ".h"))}
    digest = hashlib.sha256(repr((compiler, _FLAGS, sorted(texts.items()))).encode()).hexdigest()[:16]
    made = folder / f"twin-{digest}.so"
    if made.is_file():
        return made
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as temporary:
        place = Path(temporary)
        for path, text in texts.items():
            (place / path).parent.mkdir(exist_ok=True)
            (place / path).write_text(text, encoding="utf-8")

        def run(*arguments: str) -> None:
            done = subprocess.run([compiler, *_FLAGS, *arguments], cwd=place, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ToolchainError(f"the C compiler failed:\n{done.stderr.strip()[:3000]}", where="the search's program")

        sources = [p for p in texts if p.endswith(".c")]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(lambda p: run("-Iinclude", "-Isrc", "-c", p, "-o", p + ".o"), sources))
        run(*(p + ".o" for p in sources), "-o", "twin.so")
        os.replace(place / "twin.so", made)
    return made
