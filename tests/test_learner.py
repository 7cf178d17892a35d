"""A device that learns, guards and remembers against its twin in NumPy: every decision, the state, and what it holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learner_reference import ReferenceLearner
from nets import DIGITS
from random_graphs import sample
from toy import needs_host

from tte import board, codegen, keeping, native, pioproject
from tte.compiler import Compiled, Options, compile_model
from tte.device import protocol, session
from tte.device.learning import Settings
from tte.device.protocol import Command, Kind
from tte.device.session import Session
from tte.errors import DeviceError
from tte.ir import Array
from tte.latent import frozen_cut
from tte.life import Life
from tte.ops.base import Control
from tte.reference import Executor, pack
from tte.training.autodiff import TRUTH, Numerics


def sample_bytes(compiled: Compiled) -> int:
    """What a device holds of a sample: its latent and its target."""
    truth = compiled.plan.program.graph.type(TRUTH)
    return frozen_cut(compiled.plan).nbytes + (truth.nbytes if truth.dtype == "int8" else 0)


@dataclass
class Built:
    """A program on this computer."""

    compiled: Compiled
    program: Path
    project: pioproject.Project
    life: Life

    @property
    def sample_bytes(self) -> int:
        return sample_bytes(self.compiled)

    def latent(self, reference: ReferenceLearner, x: Array, truth: Array) -> bytes:
        """The bytes by which the device holds a sample."""
        graph, parts = reference.graph, frozen_cut(self.compiled.plan).parts
        inputs = {reference.source: x, TRUTH: truth}
        values = {**inputs, **Executor(graph).run(inputs)}
        latent = b"".join(pack(values[part.name], graph.type(part.name).dtype) for part in parts)
        return latent if reference.by_label else latent + pack(truth, "int8")


def programs(folder: Path, odd: bool) -> list[Compiled]:
    """The digits, of which some layers train (`odd`: all biases, with the input by rows), and random graphs of each loss."""
    layers = sorted(compile_model(DIGITS, Options(update="full")).updates)
    scheme = folder / "some.toml"
    scheme.write_text(f"bias = {layers[3:6]!r}\n[weights]\n{layers[6]!r} = 0.5\n".replace("'", '"'))
    options = Options(update="bias" if odd else str(scheme), numerics=Numerics(0.3, "sr" if odd else "r4"), rows=odd)
    found = {m.loss and m.loss.title: m for seed in range(14) if (m := sample(seed).compile(folder)) and m.updates}
    assert len(found) == 2
    return [compile_model(DIGITS, options), *found.values()]


_SOME_BUDGET = """\
static uint32_t some_budget(void)
{
    static uint32_t luck = 1;
    luck = luck * 1664525u + 1013904223u;
    return luck >> 12 >> (luck >> 4) % 20;
}

"""


def in_slices(project: pioproject.Project) -> None:
    """The project's program trains in slices of random budgets, as one that learns alone does."""
    path = project.folder / "src" / "serve_life.c"
    text, whole, work = path.read_text(), "learner_work(0xFFFFFFFFu)", "/* A part of the sample, counted. */"
    assert text.count(whole) == text.count(work) == 1
    path.write_text(text.replace(whole, "learner_work(some_budget())").replace(work, _SOME_BUDGET + work))


def build(compiled: Compiled, life: Life, folder: Path, board_name: str = "nrf52840") -> Built:
    files = codegen.render(compiled.plan, "net", "a test", latent=life.latent, resumable=life.resumable)
    where, keep, size = board.load(board_name), codegen.state_bytes(compiled.plan) if life.keep else None, sample_bytes(compiled)
    past = keeping.Past(life.past_in_flash // size, size) if life.past_in_flash else None
    sectors = keeping.kept(where, keep, past).past_sectors if keep else 0
    project = pioproject.generate_project(folder, files, where, name="net", life=life, keep_bytes=keep, past_sectors=sectors)
    if life.resumable:
        in_slices(project)
    return Built(compiled, native.build_host(project), project, life)


def drawn(reference: ReferenceLearner, random: np.random.Generator) -> tuple[Array, Array]:
    """A random sample with its label or target."""
    kind = reference.graph.type(reference.source)
    x = random.integers(-128, 128, kind.shape, np.int8)
    if reference.by_label:
        return x, np.array(random.integers(reference.classes), np.int32)
    return x, random.integers(-128, 128, reference.truth.shape, np.int8)


def given(reference: ReferenceLearner, truth: Array) -> dict[str, Any]:
    """A label or target as a session takes it."""
    return {"label": int(truth)} if reference.by_label else {"target": truth}


def same(device: Session, reference: ReferenceLearner, built: Built) -> None:
    """Everything that host and device know of themselves agrees."""
    status, counters, guard, memory = device.learner(), device.counters(), reference.guard, reference.memory
    control = reference.executor.control
    assert (counters.learning_rate, counters.seed, counters.step) == (control.learning_rate, control.seed, control.step)
    assert (status.samples, status.replayed) == (reference.samples, reference.replayed)
    assert (status.saves, status.failed_saves) == (reference.saves, 0)
    assert device.read_state() == reference.state()
    if built.life.guard:
        assert (status.held_out, status.factor) == (len(reference.held_out), guard.factor)
        assert status.restores == guard.restores
        assert guard.mean is None or status.best == guard.best / 256
    if built.life.replay:
        assert (status.places, status.past, status.offered) == (memory.places, len(memory.labels), memory.count)
        assert list(status.by_class) == memory.held
        size, digest = device.past_digest()
        latents = [built.latent(reference, *one) for _, one in sorted(reference.past.items())]
        assert size == built.sample_bytes and digest == reference.digest(latents)


def give_up(device: Session, reference: ReferenceLearner, command: Command, x: Array, label: int) -> int:
    """A host that leaves in the middle of a sample: of the rows that came nothing may remain. Gives how many past samples that
    costs."""
    held = len(reference.past)
    exchange = device._exchange
    exchange._sequence += 1
    arguments = protocol.request(1000, label.to_bytes(4, "little"))
    row = x.tobytes()[: x.size // x.shape[1]]
    for kind, code, total, payload in ((Kind.REQUEST, command, x.size, arguments), (Kind.DATA, 0, 0, row)):
        exchange._write(exchange._frame(kind, code, 0, total, payload))
    if command == Command.TRAIN:
        reference.break_off(label)
    return held - len(reference.past)


def live(built: Built, seed: int, steps: int, device: Session, reference: ReferenceLearner) -> Counter[str]:
    """Random settings, samples and requests to both; gives how often what happened."""
    random, did = np.random.default_rng(seed), Counter[str]()
    pool = [drawn(reference, random) for _ in range(6)]
    for step in range(steps):
        if step % 12 == 0:
            settings = Settings(
                limit=int(random.random() < 0.3) * (1 if reference.by_label else 3000),
                check_every=int(random.integers(1, 3)) * int(random.random() < 0.8),
                replays=int(random.integers(0, 4)), remembers=bool(random.integers(2)), ring=bool(random.random() < 0.3),
                save_every=int(random.integers(4)),
            )  # fmt: skip
            device.set_learner(settings)
            reference.set(settings)
            control = Control(int(random.integers(1, 32769)), int(random.integers(1 << 32)), int(random.integers(1 << 32)))
            device.set_control(control.learning_rate, control.seed, control.step)
            reference.executor.control = control
        if built.life.guard > len(reference.held_out) and random.random() < 0.3:
            x, truth = pool[int(random.integers(6))]
            assert device.hold_out(x, **given(reference, truth)) == len(reference.held_out) + 1
            reference.hold_out(x, truth)
            did["held out"] += 1
        if reference.by_label and random.random() < 0.1:
            wrong = int(random.choice([-1, reference.classes, 2**31 - 1, -(2**31)]))
            assert device.train(pool[0][0], wrong).loss == -1
            did["label refused"] += 1
        if built.compiled.options.rows and random.random() < 0.2:
            is_room = len(reference.held_out) < built.life.guard
            command = Command.HOLD_OUT if is_room and random.random() < 0.7 else Command.TRAIN
            did["past lost"] += give_up(device, reference, command, pool[1][0], int(random.integers(reference.classes)))
            did["held-out given up"] += command == Command.HOLD_OUT
        x, truth = pool[int(random.integers(6))] if random.random() < 0.7 else drawn(reference, random)
        assert device.train(x, **given(reference, truth)).loss == reference.train(x, truth)
        if step % 5 == 4 or step == steps - 1:
            same(device, reference, built)
    return did


@needs_host
@pytest.mark.parametrize("resumable", [pytest.param(False, marks=pytest.mark.slow), True])
def test_device_equals_its_twin(resumable: bool, tmp_path: Path) -> None:
    """`resumable`: in slices of random budgets."""
    places, did = 25, Counter[str]()
    for index, compiled in enumerate(programs(tmp_path, resumable)):
        life = Life(resumable=resumable, guard=5, replay=places * sample_bytes(compiled) + 1)
        built = build(compiled, life, tmp_path / str(index))
        reference = ReferenceLearner(compiled, places, life.guard)
        with session.open_host(built.program) as device:
            did += live(built, index, 60, device, reference)
            status = device.learner()
            assert status.replayed and status.checks > status.restores
            assert status.offered > status.places
            did["taken back"] += status.restores
    wanted = ["label refused", "held out", "taken back", *(["past lost", "held-out given up"] if resumable else [])]
    assert all(did[what] > 1 for what in wanted), did


@dataclass(frozen=True)
class FlashGuard(Life):
    """The state that was saved last is the one to go back to."""

    @property
    def macros(self) -> tuple[str, ...]:
        return (*super().macros, "-DTTE_GUARD_IN_FLASH=1")


@needs_host
@pytest.mark.parametrize("kind", [Life, pytest.param(FlashGuard, marks=pytest.mark.slow)])
def test_what_lies_in_flash_outlives_a_reset(kind: type[Life], tmp_path: Path) -> None:
    compiled = compile_model(DIGITS, Options(update="bias", numerics=Numerics(0.3)))
    built = build(compiled, kind(keep=True, guard=4, replay=4000, replay_in="flash"), tmp_path)
    area = built.project.board.flash
    assert area
    flash = tmp_path / "flash", area
    with session.open_host(built.program, flash=flash) as device:
        places = device.learner().places
        assert places == 4000 // built.sample_bytes
        reference = ReferenceLearner(compiled, places, 4, keeps=True, guard_in_flash=kind is FlashGuard)
        live(built, 3, 100, device, reference)
        held, digest = device.learner(), device.past_digest()
        assert held.offered > places and held.saves and held.restores
    with session.open_host(built.program, flash=flash) as device:
        again = device.learner()
        assert (again.past, again.by_class, device.past_digest()) == (held.past, held.by_class, digest)
        assert 0 < again.offered <= held.offered
        reference.executor.params = reference.saved
        assert device.read_state() == reference.state()
        before = device.counters().step
        device.set_learner(Settings(replays=3))
        device.train(drawn(reference, np.random.default_rng(1))[0], 0)
        assert device.counters().step == before + 4
        device.set_learner(Settings(), clear_past=True)
        assert device.learner().past == 0
    with session.open_host(built.program, flash=flash) as device:
        assert device.learner().past == 0


@needs_host
def test_what_was_not_built_in_and_what_has_no_room(tmp_path: Path) -> None:
    compiled = compile_model(DIGITS, Options(update="last"))
    x, truth = drawn(ReferenceLearner(compiled), np.random.default_rng(0))
    for index, life in enumerate((Life(), Life(guard=1))):
        built = build(compiled, life, tmp_path / str(index))
        with session.open_host(built.program) as device:
            if not life.latent:
                for ask in (device.learner, lambda: device.set_learner(Settings()), lambda: device.hold_out(x, 1)):
                    with pytest.raises(DeviceError, match="not built in"):
                        ask()
                continue
            wanted = Settings(limit=2, check_every=3, replays=1, remembers=True, ring=True, save_every=4)
            device.set_learner(wanted)
            assert device.learner_settings() == wanted
            status = device.learner()
            assert (status.room, status.places) == (1, 0)
            for wrong in (-1, 10, 2**31 - 1):
                with pytest.raises(DeviceError, match="refused"):
                    device.hold_out(x, wrong)
            assert device.hold_out(x, int(truth)) == 1
            with pytest.raises(DeviceError, match="refused"):
                device.hold_out(x, int(truth))
            assert device.train(x, int(truth)).step == 1  # there is no past sample to learn from
            device.reset()
            assert device.learner().held_out == 1
