"""Holds a running program against the reference executor, byte for byte, step by step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tte import firmware, native
from tte.codegen import state_slots
from tte.compiler import Compiled
from tte.device import session as sessions
from tte.device.protocol import TraceStep
from tte.device.session import Session
from tte.errors import DeviceError
from tte.ir import DTYPES, Array, Role
from tte.pioproject import Project
from tte.reference import Executor, pack, unpack
from tte.training.autodiff import LOSS, TRUTH

Samples = Iterator[tuple[Array, int, Array | None]]


@dataclass(frozen=True)
class Mismatch:
    """The first place where device and reference differ."""

    step: int
    operator: str
    tensor: str
    index: int
    expected: int
    found: int

    def __str__(self) -> str:
        return (
            f"step {self.step}, {self.operator}: {self.tensor}[{self.index}] is {self.found} on the device, "
            f"{self.expected} in the reference"
        )


@dataclass(frozen=True)
class Verified:
    """What a proof compared: values of trained tensors, residuals, PRNG state, logits and losses, over all steps."""

    equal: bool
    steps: int
    compared: int
    mismatch: Mismatch | None

    def as_dict(self) -> dict[str, Any]:
        found = self.mismatch.__dict__ | {"text": str(self.mismatch)} if self.mismatch else None
        return {"equal": self.equal, "steps": self.steps, "compared": self.compared, "mismatch": found}


def samples(compiled: Compiled, seed: int) -> Samples:
    """Random samples for a model, endless: uniform int8 inputs, and a label or a uniform int8 target."""
    random = np.random.default_rng(seed)
    graph = compiled.plan.program.graph
    model_input = next(i for i in graph.inputs if i != TRUTH)
    while True:
        x = random.integers(-128, 128, graph.type(model_input).shape, np.int8)
        if not compiled.plan.program.trains:
            yield x, 0, None
            continue
        truth = graph.type(TRUTH)
        if truth.dtype == "int32":
            yield x, int(random.integers(graph.type(compiled.plan.program.kept[0]).elements)), None
        else:
            yield x, 0, random.integers(-128, 128, truth.shape, np.int8)


def open_program(
    project: Project, on: str, *, trace: bool = False, sanitize: bool = True, uart: bool = False, fresh: bool = False
) -> Session:
    """The project's program on "host" (sanitized unless told otherwise) or in "qemu" (by its UART if wanted), ready to talk.

    Args:
        fresh: a program that keeps trained state begins as it was built, with a flash of its own that goes with it; else
            it begins with what it finds in the build folder's (`Project.flash_file`).

    Raises:
        ToolchainError, BoardError: it cannot be built.
        DataError: the flash's file is of another board, or in use.
    """
    flash = None if fresh else project.flash_file(on)
    if on == "host":
        program = native.build_host(project, sanitize=sanitize, trace=trace)
        area = project.board.flash
        return sessions.open_host(program, flash=(flash, area) if flash and area else None)
    result = firmware.build(project, project.env(emulated=True, trace=trace, uart=uart))
    return sessions.open_qemu(result.elf, project.board, uart=uart, flash=flash)


def verify(
    project: Project,
    compiled: Compiled,
    *,
    steps: int,
    on: str,
    seed: int = 0,
    say: Callable[[int], None] = lambda _: None,
) -> Verified:
    """Runs `steps` steps in the reference and on the device and compares all that training changes, after each.

    Inference is compared as well, before the first step and after the last. A mismatch is searched for its first
    wrong operator by a second, traced run.

    Args:
        say: told each finished step.
    """
    checker = _Checker(compiled, seed)
    with open_program(project, on, fresh=True) as device:
        for mismatch in checker.run(device, steps, say):
            wrong = mismatch
            break
        else:
            return Verified(True, steps, checker.compared, None)
    with contextlib.suppress(DeviceError):
        wrong = _first_wrong_operator(project, compiled, on, seed, wrong) or wrong
    return Verified(False, wrong.step, checker.compared, wrong)


class _Checker:
    """The reference side of a proof."""

    def __init__(self, compiled: Compiled, seed: int) -> None:
        self.compiled = compiled
        self.program = compiled.plan.program
        self.graph = self.program.graph
        self.executor = Executor(self.graph)
        self.samples = samples(compiled, seed)
        self.input = next(i for i in self.graph.inputs if i != TRUTH)
        self.compared = 0

    def run(self, device: Session, steps: int, say: Callable[[int], None]) -> Iterator[Mismatch]:
        """Yields every mismatch; the caller may stop at the first."""
        yield from self._inference(device, 0)
        for step in range(steps):
            if self.program.trains:
                yield from self._training(device, step)
            else:
                yield from self._inference(device, step)
            say(step + 1)
        yield from self._inference(device, steps)

    def inputs(self) -> tuple[dict[str, Array], int, Array | None]:
        x, label, target = next(self.samples)
        feed: dict[str, Array] = {self.input: x}
        if self.program.trains:
            feed[TRUTH] = np.array(label, np.int32) if target is None else target
        return feed, label, target

    def _inference(self, device: Session, step: int) -> Iterator[Mismatch]:
        feed, _, _ = self.inputs()
        before = {k: v.copy() for k, v in self.executor.params.items()}
        values = self.executor.run(feed)
        self.executor.params.update(before)
        name = self.program.outputs[0]
        found = device.infer(feed[self.input])
        yield from self._compare(step, "inference", name, values[name], found.tobytes())

    def _training(self, device: Session, step: int) -> Iterator[Mismatch]:
        feed, label, target = self.inputs()
        values = self.executor.train(feed)
        by_label = target is None
        result = device.train(feed[self.input], label if by_label else None, target)
        logits = self.program.kept[0]
        yield from self._compare(step, "forward pass", logits, values[logits], result.logits.tobytes())
        yield from self._compare(step, "loss", LOSS, values[LOSS], result.loss.to_bytes(4, "little", signed=True))
        state = device.read_state()
        for slot in state_slots(self.compiled.plan):
            data = state[slot.offset : slot.offset + slot.type.nbytes]
            yield from self._compare(step, "training step", slot.name, self.executor.params[slot.name], data)
        counters, control = device.counters(), self.executor.control
        for what, expected, have in (
            ("PRNG step", control.step, counters.step),
            ("PRNG seed", control.seed, counters.seed),
            ("learning-rate factor", control.learning_rate, counters.learning_rate),
        ):
            self.compared += 1
            if expected != have:
                yield Mismatch(step, "training step", what, 0, expected, have)

    def _compare(self, step: int, operator: str, name: str, expected: Array, found: bytes) -> Iterator[Mismatch]:
        self.compared += expected.size
        yield from compare(step, operator, name, expected, self.graph.type(name).dtype, found)


def compare(step: int, operator: str, name: str, expected: Array, dtype: str, found: bytes) -> Iterator[Mismatch]:
    """Yields the first difference between a reference tensor and the device's bytes, if any."""
    if pack(expected, dtype) == found:
        return
    have = unpack(found, expected.shape, dtype)
    wrong = np.flatnonzero(have.ravel() != expected.ravel())
    if not wrong.size:
        return  # only padding bits differ
    i = int(wrong[0])
    yield Mismatch(step, operator, name, i, int(expected.ravel()[i]), int(have.ravel()[i]))


def _first_wrong_operator(
    project: Project, compiled: Compiled, on: str, seed: int, known: Mismatch
) -> Mismatch | None:
    """Repeats the run with a traced program up to the known mismatch, and compares every operator of that step."""
    plan = compiled.plan
    if not plan.program.trains or known.operator == "inference":
        return None
    checker = _Checker(compiled, seed)
    checker.inputs()  # the inference before the first step
    with open_program(project, on, trace=True, fresh=True) as device:
        for _ in range(known.step):
            feed, label, target = checker.inputs()
            checker.executor.train(feed)
            device.train(feed[checker.input], label if target is None else None, target)
        feed, label, target = checker.inputs()
        traces: dict[int, bytes] = {}

        def keep(trace: TraceStep) -> None:
            traces[trace.index] = bytes(trace.arena)

        device.train(feed[checker.input], label if target is None else None, target, on_step=keep)
    for index, (node, outputs) in enumerate(checker.executor.steps(feed)):
        arena = traces.get(index)
        if arena is None:
            continue  # inference alone, or a view
        for name, value in outputs.items():
            if plan.program.graph.tensors[name].role is not Role.VALUE:
                continue
            start = plan.offsets[name]
            dtype = plan.program.graph.type(name).dtype
            size = (value.size * DTYPES[dtype][0] + 7) // 8
            there = arena[start : start + size]
            for mismatch in compare(known.step, f"{node.op.title} {node.name}", name, value, dtype, there):
                return mismatch
    return None
