"""A device that learns, guards and remembers, in NumPy: firmware/src/learner.c's twin, on the reference executor."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace

import numpy as np

from tte.codegen import state_bytes, state_slots
from tte.compiler import Compiled
from tte.device.learner import Guard, Memory, Verdict
from tte.device.learning import Settings
from tte.ir import Array
from tte.ops.base import Control
from tte.planner.arena import Plan
from tte.reference import Executor, pack
from tte.training.autodiff import LOSS, TRUTH


def packed_state(plan: Plan, executor: Executor) -> bytes:
    """The trained state as the device lays it out."""
    data = bytearray(state_bytes(plan))
    for slot in state_slots(plan):
        data[slot.offset : slot.offset + slot.type.nbytes] = pack(executor.params[slot.name], slot.type.dtype)
    return bytes(data)


@dataclass
class ReferenceLearner:
    """Learns sample by sample; what it holds are the samples themselves, where the device holds latents.

    Args:
        places: past samples that the device has room for.
        room: held-out samples that it has room for.
        keeps: it saves its state. guard_in_flash: the state to go back to is the one that was saved last.
    """

    compiled: Compiled
    places: int = 0
    room: int = 0
    keeps: bool = False
    guard_in_flash: bool = False
    settings: Settings = Settings()
    control: Control = Control()
    samples: int = 0
    replayed: int = 0
    saves: int = 0
    held_out: list[tuple[Array, Array]] = field(default_factory=list)
    past: dict[int, tuple[Array, Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        program = self.compiled.plan.program
        self.graph = program.graph
        self.executor = Executor(self.graph, self.control)
        self.source = next(i for i in self.graph.inputs if i != TRUTH)
        self.truth = self.graph.type(TRUTH)
        self.by_label = self.truth.dtype == "int32"
        self.output, self.logits = program.outputs[0], program.kept[0]
        self.classes = self.graph.type(self.logits).elements if self.by_label else 1
        self.memory = Memory(self.places, self.classes)
        self.guard = Guard(1 + self.room // 32)
        self.good: dict[str, Array] = {}
        self.saved: dict[str, Array] = {}
        self._to_check = self._to_save = 0
        self._has_good = False

    def set(self, settings: Settings) -> None:
        """What SET_LEARNER does."""
        self.settings, self._to_check, self._to_save = settings, settings.check_every, settings.save_every
        self.guard.limit, self.memory.ring = settings.limit, settings.ring

    def hold_out(self, x: Array, truth: Array) -> None:
        """Adds a held-out sample."""
        self.held_out.append((x, truth))
        self.guard = Guard(self.guard.limit, restores=self.guard.restores)

    def train(self, x: Array, truth: Array) -> int:
        """A fresh sample and what follows it; its loss, -1 for a label out of range."""
        label = int(truth) if self.by_label else 0
        if not 0 <= label < self.classes:
            return -1
        rate, seed = self.executor.control.learning_rate, self.executor.control.seed
        self._rate(rate * self.guard.factor >> 15)
        place = self.memory.choose(label, seed) if self._remembers else -1
        loss = self._step(x, truth)
        self.samples += 1
        if self._remembers:
            self.memory.take(label, place)
            if place >= 0:
                self.past[place] = x, truth
        for index in range(self.settings.replays):
            again = self.memory.pick(index, seed)
            if again >= 0:
                self._step(*self.past[again])
                self.replayed += 1
        guards = self.settings.check_every > 0 and len(self.held_out) > 0
        if guards:
            self._to_check = (self._to_check - 1) or self.settings.check_every
        is_checked = guards and self._to_check == self.settings.check_every
        verdict = self._check() if is_checked else None
        self._rate(rate)
        self._to_save = max(self._to_save - 1, 0)
        in_flash = guards and self.guard_in_flash
        is_due = (self.settings.save_every > 0 and not self._to_save) or (in_flash and not self._has_good)
        may_save = verdict is Verdict.GOOD if in_flash else is_checked or not guards
        if self.keeps and is_due and may_save:
            self._to_save = self.settings.save_every
            self.saved = self._copy()
            self.saves += 1
            self._has_good = True
        return loss

    def _copy(self) -> dict[str, Array]:
        return {name: value.copy() for name, value in self.executor.params.items()}

    def break_off(self, label: int) -> None:
        """A fresh sample whose rows ceased to come: its place may hold parts of it."""
        if self._remembers:
            place = self.memory.choose(label, self.executor.control.seed)
            if place in self.past:
                self.memory.drop(place, self.past)

    def state(self) -> bytes:
        """The trained state."""
        return packed_state(self.compiled.plan, self.executor)

    def digest(self, latents: list[bytes]) -> int:
        """The CRC-32 that the device gives of what it holds, whose bytes are `latents` in the order of places."""
        crc = 0
        for (_, label), latent in zip(sorted(self.memory.labels.items()), latents, strict=True):
            crc = zlib.crc32(latent, zlib.crc32(label.to_bytes(2, "little"), crc))
        return crc

    @property
    def _remembers(self) -> bool:
        return self.places > 0 and (self.settings.remembers or self.settings.replays > 0)

    def _rate(self, rate: int) -> None:
        self.executor.control = replace(self.executor.control, learning_rate=rate)

    def _step(self, x: Array, truth: Array) -> int:
        return int(self.executor.train({self.source: x, TRUTH: truth})[LOSS])

    def _check(self) -> Verdict:
        verdict = self._judge()
        if verdict is Verdict.GOOD:
            self.good = self._copy()
            self.memory.trust()
        elif verdict is Verdict.BAD:
            back = (self.saved if self._has_good else {}) if self.guard_in_flash else self.good
            if back:
                self.executor.params = {name: value.copy() for name, value in back.items()}
            self.memory.forget(self.past)
            if self.guard_in_flash:
                self.guard.mean = None
                self._judge()
        return verdict

    def _judge(self) -> Verdict:
        return self.guard.judge(sum(self._score(*one) for one in self.held_out))

    def _score(self, x: Array, truth: Array) -> int:
        executor = Executor(self.graph, replace(self.executor.control, learning_rate=0))
        executor.params = self._copy()
        out = executor.run({self.source: x, TRUTH: truth})[self.output].ravel()
        if self.by_label:
            return int(out.argmax()) == int(truth)
        difference = out.astype(np.int64) - truth.ravel()
        return -int((difference * difference).sum())
