"""Instructions of each step, as the emulator counts them: they add up to the call's own count, with the input by rows, too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from nets import DIGITS
from toy import LOOP, TOY, X, needs_host, needs_qemu

from tte import board, codegen, firmware, native, pioproject, profile, steps, verify
from tte.compiler import Options, compile_model
from tte.device import session
from tte.device.session import Profile
from tte.errors import BoardError, DataError, DeviceError
from tte.ops.segment import Segment

_HOOK = 24  # instructions by which a step's count may be off: what its call costs the compiler's registers


def _close(counted: Profile, plain: int) -> None:
    """The steps are nearly all of the call, and the call is what the ordinary program counts."""
    assert 0 <= counted.instructions - sum(counted.steps.values()) < 200
    assert abs(counted.instructions - plain) <= _HOOK * (len(counted.steps) + len(counted.stages))
    for step in {step for step, _ in counted.stages}:
        inner = sum(count for (index, _), count in counted.stages.items() if index == step)
        assert 0 <= counted.steps[step] - inner < 100


@needs_qemu
@pytest.mark.parametrize("machine", ["mps2-an500", "netduinoplus2", "microbit"])
def test_every_instruction_belongs_to_a_step(machine: str, tmp_path: Path) -> None:
    """The toy's loop, 20,000 instructions longer, lies in its second step."""
    project = pioproject.generate_project(tmp_path, TOY, board.load(machine), name="toy")
    assert project.env(profile=True) == f"{machine}_profile"
    counts = []
    for name in (project.env(), project.env(profile=True)):
        with session.open_qemu(firmware.build(project, name).elf, project.board, timeout_s=30) as device:
            if name.endswith("_profile"):
                short, long = device.profile_train(X, LOOP), device.profile_train(X, LOOP + 5)
                assert set(short.steps) == set(long.steps) == {0, 1} and not short.stages
                # the first of two is as long in both; the steps and what follows them are the whole
                assert abs(long.steps[0] - short.steps[0]) <= 1
                assert abs(long.steps[1] - short.steps[1] - 20_000) < 10
                _close(long, counts[-1])
                with pytest.raises(DeviceError, match="does not count"):
                    device.profile_infer(X)  # the toy's inference has no steps
            else:
                counts = [device.train(X, LOOP).instructions, device.train(X, LOOP + 5).instructions]


@needs_qemu
@pytest.mark.parametrize("rows", [False, True])
def test_counts_of_a_model(rows: bool, tmp_path: Path) -> None:
    """Steps, and the stages of segments; the table beside the predicted figures."""
    made = compile_model(DIGITS, Options(update="last", rows=rows, target="dsp"))
    project = pioproject.generate_project(
        tmp_path, codegen.render(made.plan, "digits", "test"), board.load("mps2-an500"), name="digits"
    )
    counted = profile.count(project, made)
    assert counted.train is not None and counted == profile.count(project, made)
    x, label, _ = next(verify.samples(made, 0))
    with session.open_qemu(firmware.build(project).elf, project.board) as device:
        device.infer(x)
        plain = device.counters().infer_instructions
        _close(counted.infer, plain)
        _close(counted.train, device.train(x, label).instructions)
        with pytest.raises(DeviceError, match="does not count"):
            device.profile_infer(x)
    program = made.plan.program
    steps_of = {i for i, node in enumerate(program.graph.nodes) if not node.op.view}
    assert set(counted.infer.steps) == steps_of & set(program.infer_steps)
    assert set(counted.train.steps) == steps_of & set(program.train_steps)
    lines = counted.lines(steps.costs(program))
    assert all(line.counted > 0 for line in lines)
    for index in (i for i, node in enumerate(program.graph.nodes) if isinstance(node.op, Segment)):
        step, *stages = [line for line in lines if line.index == index]
        assert step.macs == sum(line.macs for line in stages) and step.counted >= sum(line.counted for line in stages)
    table = steps.text(lines)
    assert len(table.splitlines()) == 1 + len(lines) + 2 and f"{lines[0].counted:,}" in table
    assert "counted" not in steps.text(steps.costs(program))


@needs_host
def test_what_cannot_be_counted(tmp_path: Path) -> None:
    project = pioproject.generate_project(tmp_path, TOY, board.load("stm32f746"), name="toy")
    with session.open_host(native.build_host(project)) as device, pytest.raises(DeviceError, match="does not count"):
        device.profile_train(X, 1)
    with pytest.raises(DataError, match="no finished build"):
        profile.is_counted(tmp_path)


def test_no_counter(tmp_path: Path) -> None:
    loaded = board.load("mps2-an500")
    assert loaded.emulator
    blind = replace(loaded, emulator=replace(loaded.emulator, counter="none"))
    made = compile_model(DIGITS, Options(update="none"))
    project = pioproject.generate_project(tmp_path, codegen.render(made.plan, "m", "test"), blind, name="m")
    with pytest.raises(BoardError, match="counts no instructions"):
        profile.count(project, made)
