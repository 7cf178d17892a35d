"""What a worker process does: pure functions of their arguments, so that results do not depend on who computes them.

A process loads a program once for each mode and rate. Features lie in files that all processes map into their memory.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from tte.ir import Array
from tte.ops.linear import weight_scales
from tte.ops.linear_grad import BiasUpdate, WeightUpdate
from tte.run import CROSS_ENTROPY_LOSS_SCALE, FULL_RATE, Schedule
from tte.search.candidate import Candidate
from tte.search.cuts import places
from tte.search.task import Task, compile_whole, division, forward, head_name, trainable
from tte.search.twin import Route, Twin, route
from tte.training.head import find
from tte.training.scheme import LayerUpdate

#: Samples whose features are computed by one job.
CHUNK = 250
#: Learning rate by which Fisher information is read off a step: a gradient of so many steps of a weight's residual
#: (1/256 of a weight step) is neither lost to rounding nor clipped.
FISHER_RATE = 1 / 256

_P = ParamSpec("_P")
_T = TypeVar("_T")
_ONE = threading.RLock()


def _alone(job: Callable[_P, _T]) -> Callable[_P, _T]:
    """One job at a time in a process: a program has one memory. A cluster's workers may run jobs in threads."""

    @functools.wraps(job)
    def locked(*arguments: _P.args, **named: _P.kwargs) -> _T:
        with _ONE:
            return job(*arguments, **named)

    return locked


@functools.lru_cache(maxsize=4)
def program(task: Task, mode: str, rate: float) -> Twin:
    """The task's program, loaded into this process; compiled if need be."""
    return Twin(compile_whole(task, rate, mode), Path(task.folder) / "programs")


@_alone
def compiled(task: Task, mode: str, rate: float) -> None:
    """Compiles the task's program."""
    program(task, mode, rate)


@functools.lru_cache(maxsize=4)
def _places(task: Task, mode: str, rate: float) -> tuple[int, ...]:
    return places(program(task, mode, rate).plan, trainable(task))


def mode_of(task: Task, candidate: Candidate) -> str:
    """The residual mode that a candidate trains in."""
    return candidate.mode or task.mode


def way_of(task: Task, mode: str, rate: float, updates: Mapping[str, LayerUpdate]) -> Route:
    """The route with the latest shared cut that suits the updates."""
    twin = program(task, mode, rate)
    first = route(twin.plan, updates).first
    cut = max([p for p in _places(task, mode, rate) if p <= first], default=first)
    return route(twin.plan, updates, cut)


# --- features ---


@dataclass(frozen=True)
class Features:
    """The file of a cut's features: uint8 [samples of the division, bytes], empty where nothing was computed yet.

    Attributes:
        done: the file with a byte for every chunk of samples: 1 where it was computed.
    """

    path: Path
    done: Path
    chunks: int

    def missing(self, numbers: range) -> list[int]:
        """Chunks that hold these samples and are not computed."""
        made = self.done.read_bytes() if self.done.is_file() else bytes(self.chunks)
        return [c for c in range(numbers.start // CHUNK, -(-numbers.stop // CHUNK)) if not made[c]]

    def read(self) -> NDArray[np.uint8]:
        """Maps the file into memory."""
        found: NDArray[np.uint8] = np.load(self.path, mmap_mode="r")
        return found


def features_of(task: Task, twin: Twin, way: Route) -> Features:
    """Where a route's features lie; the files are made if they are not there, full of holes."""
    count = division(task).test.stop
    size = sum(twin.graph.type(t).nbytes for t in way.features)
    name = hashlib.sha256(repr((task.identity, way.features, size)).encode()).hexdigest()[:16]
    folder = Path(task.folder) / "features"
    found = Features(folder / f"{name}.npy", folder / f"{name}.done", -(-count // CHUNK))
    if not found.done.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f".{name}-{os.getpid()}"
        np.lib.format.open_memmap(new, "w+", np.uint8, (count, size)).flush()
        os.replace(new, found.path)
        new.write_bytes(bytes(found.chunks))
        os.replace(new, found.done)
    return found


@_alone
def compute_features(task: Task, mode: str, rate: float, updates: dict[str, LayerUpdate], chunk: int) -> None:
    """Computes one chunk of a cut's features into its file."""
    twin, way = program(task, mode, rate), way_of(task, mode, rate, updates)
    found, parts = features_of(task, twin, way), division(task)
    numbers = range(chunk * CHUNK, min((chunk + 1) * CHUNK, parts.test.stop))
    to = np.load(found.path, mmap_mode="r+")
    to[numbers.start : numbers.stop] = twin.features(parts.samples(numbers), way)
    to.flush()
    with found.done.open("r+b") as file:
        file.seek(chunk)
        file.write(b"\1")


# --- training ---


@_alone
def train(
    task: Task, top: float, halvings: int, candidate: Candidate, seed: int, samples: int, final: bool = False
) -> dict[str, Any]:
    """Training, then accuracy on the validation samples.

    Args:
        top: rate compiled into the program, halved at run time so many times: one program serves many rates, and differs
            from one that is compiled with the halved rate in the last bits of its steps only.
        seed: of the order of the samples, and of the device's random numbers.
        samples: training steps: over the first so many samples of the division, or over all in several passes.
        final: train on all samples, those to validate on as well; accuracy is that of the test set.

    Returns:
        accuracy (0..1), loss (nats), rate, seconds. The loss is that of the last quarter's samples before each was learnt from;
        in several passes that says little, and it is that of the samples which accuracy is measured on.
    """
    started = time.monotonic()
    mode = mode_of(task, candidate)
    twin, parts = program(task, mode, top), division(task)
    updates = candidate.updates(head_name(task))
    way = way_of(task, mode, top, updates)
    x = features_of(task, twin, way).read()
    chosen = range(parts.training.stop) if final else parts.training[:samples]
    losses = _teach(twin, x, parts.labels, chosen, way, updates, seed, Schedule(FULL_RATE >> halvings), samples)
    tested = parts.test if final else parts.validation
    output = twin.infer(x[tested.start : tested.stop], way)
    labels = parts.labels[tested.start : tested.stop]
    accuracy = float((output.argmax(1) == labels).mean())
    if len(losses) > len(chosen):
        loss = _held_loss(task, twin, output, labels)
    else:
        loss = float(losses[-max(1, len(losses) // 4) :].mean()) * CROSS_ENTROPY_LOSS_SCALE
    seconds = round(time.monotonic() - started, 3)
    return {"accuracy": accuracy, "loss": round(loss, 4), "rate": top / 2**halvings, "seconds": seconds}


def _held_loss(task: Task, twin: Twin, output: NDArray[np.int8], labels: NDArray[np.int32]) -> float:
    """Mean cross-entropy (nats) of the model's own int8 outputs: logits, or probabilities."""
    graph = forward(task)
    t = graph.type(graph.outputs[0])
    real = (output.astype(np.float64) - t.zero_point) * t.scale
    if find(graph).softmax:
        shares = np.maximum(real, t.scale / 2)
        logarithms = np.log(shares / shares.sum(1, keepdims=True))
    else:
        top = real.max(1, keepdims=True)
        logarithms = real - top - np.log(np.exp(real - top).sum(1, keepdims=True))
    return float(-logarithms[np.arange(len(labels)), labels].mean())


def _teach(
    twin: Twin, x: NDArray[np.uint8], labels: NDArray[np.int32], chosen: range, way: Route,
    updates: Mapping[str, LayerUpdate], seed: int, schedule: Schedule, steps: int = 0,
) -> NDArray[np.int32]:  # fmt: skip
    """Training on the chosen samples in an order that the seed gives, from the initial weights; gives the losses."""
    order, rates = course(chosen, seed, schedule, steps)
    twin.reset(seed & 0xFFFFFFFF)
    return twin.train(x, labels, order, rates, way, updates)


def course(chosen: range, seed: int, schedule: Schedule, steps: int = 0) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """What a seed makes of samples: their numbers in order, each pass in another one, and each step's learning-rate factor.

    Args:
        steps: in all; 0: one pass.
    """
    steps = steps or len(chosen)
    rng = np.random.default_rng([seed, 1])
    passes = [rng.permutation(len(chosen)) for _ in range(-(-steps // len(chosen)))]
    order = chosen.start + np.concatenate(passes)[:steps]
    rates = [schedule.factor(step, steps) for step in range(steps)]
    return order.astype(np.uint32), np.array(rates, np.uint16)


# --- Fisher information ---


@_alone
def fisher(task: Task, first: int, last: int) -> dict[str, list[float]]:
    """Sums over training samples first..last of squared gradients, by weight channel and, under `NAME/bias`, by bias.

    In residual mode r8 a step changes a weight and its residual by the gradient itself, but for rounding to 1/256 of a
    weight step; so a single step from the same weights for each sample gives its gradient in the device's integers. A
    gradient through a head that knows nothing says nothing, so the head learns the task first where it is a fresh one.
    """
    rate = FISHER_RATE
    twin, parts = program(task, "r8", rate), division(task)
    head, names = head_name(task), trainable(task)
    updates = {n: LayerUpdate(True, True) for n in names}
    way = route(twin.plan, updates)
    chosen = parts.training[first:last]
    x = twin.features(parts.samples(chosen), way)
    state = _with_head(task, twin, head) if task.classes else _fresh(twin)
    slots = _slots(twin, [n for n in names if n != head])
    sums = {key: np.zeros(twin.graph.type(tensor).shape, np.int64) for key, (tensor, *_) in slots.items()}
    start = {key: _values(twin, state, *names_of) for key, names_of in slots.items()}
    full = np.array([FULL_RATE], np.uint16)
    for i, number in enumerate(chosen):
        twin.load(state)
        twin.train(x[i : i + 1], parts.labels[number : number + 1], np.zeros(1, np.uint32), full, way, updates)
        now = twin.state()
        for key, names_of in slots.items():
            change = _values(twin, now, *names_of) - start[key]
            sums[key] += change * change
    return {key: [float(v) for v in _real(twin, key, sums[key], rate)] for key in slots}


def _fresh(twin: Twin) -> bytes:
    twin.reset()
    return twin.state()


def _with_head(task: Task, twin: Twin, head: str) -> bytes:
    """The state after the head alone has learnt from a pass over some training samples."""
    parts = division(task)
    updates = {head: LayerUpdate(True, True)}
    way = way_of(task, "r8", FISHER_RATE, updates)
    chosen = parts.training[:1000]
    x = features_of(task, twin, way).read()
    _teach(twin, x, parts.labels, chosen, way, updates, 0, Schedule())
    return twin.state()


def _slots(twin: Twin, names: list[str]) -> dict[str, tuple[str, str]]:
    """By layer, or `LAYER/bias`: the parameter, and its residual ("" for a bias)."""
    layers = {n.name: n for n in twin.graph.nodes[: twin.plan.program.shared]}
    residuals = {n.inputs[3]: n.inputs[4] for n in twin.graph.nodes if isinstance(n.op, WeightUpdate)}
    found = {n: (layers[n].inputs[1], residuals[layers[n].inputs[1]]) for n in names}
    return found | {f"{n}/bias": (layers[n].inputs[-1], "") for n in names}


def _values(twin: Twin, state: bytes, tensor: str, residual: str) -> NDArray[np.int64]:
    """A parameter in its finest units: 1/256 of a weight step, or a bias step."""
    found = twin.values(state, tensor).astype(np.int64)
    return found * 256 + twin.values(state, residual) if residual else found


def _real(twin: Twin, key: str, squares: NDArray[np.int64], rate: float) -> Array:
    """Squared changes, summed, as squared gradients in real units: by bias, or summed over each weight channel."""
    if key.endswith("/bias"):
        tensor = _slots(twin, [key.removesuffix("/bias")])[key][0]
        op = next(n.op for n in twin.graph.nodes if isinstance(n.op, BiasUpdate) and n.inputs[2] == tensor)
        return np.array(squares * (np.array(op.units) / rate) ** 2)
    tensor = _slots(twin, [key])[key][0]
    node = next(n for n in twin.graph.nodes if isinstance(n.op, WeightUpdate) and n.inputs[3] == tensor)
    assert isinstance(node.op, WeightUpdate)
    geometry = node.op.geometry
    scales = np.array(weight_scales(twin.graph.type(tensor), geometry.out_c)) / 256 / rate
    shaped = squares.reshape(geometry.weight_shape) * (scales if geometry.depthwise else scales.reshape(-1, 1, 1, 1)) ** 2
    return np.array(shaped.sum(axis=(0, 1, 2)))
