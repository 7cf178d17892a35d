"""Guard and replay in runs that a host leads: the device's step counter runs ahead of the samples, and memories are lost."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_bench import CUT, DAMAGE, Accident, Desk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import DIGITS
from test_cli import tte
from test_device import ACCIDENTS, COURSE, Killed, Mortal, quick
from toy import needs_host

from tte import board, codegen, native, pioproject
from tte.cli import connect
from tte.compiler import Options, compile_model
from tte.device import statefile
from tte.device.port import open_port
from tte.device.statefile import State
from tte.history import History
from tte.life import Life
from tte.training.autodiff import Numerics

__all__ = ["quick"]  # a fixture for all tests here


@pytest.fixture(scope="module")
def careful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digit reader with a guard, replay and a step in slices; from the cut on its last layer trains."""
    compiled = compile_model(DIGITS, Options(update="last", numerics=Numerics(0.05)))
    life = Life(guard=12, replay=4000, resumable=True)
    files = codegen.render(compiled.plan, "digits", "test", latent=True, resumable=True)
    project = pioproject.generate_project(
        tmp_path_factory.mktemp("careful"), files, board.load("stm32f746"), name="digits", life=life,
        keep_bytes=codegen.state_bytes(compiled.plan),
    )  # fmt: skip
    return native.build_host(project, sanitize=False)


AIDS = ("--replay-steps", 2, "--guard-every", 5, "--guard-limit", 0)


def cared(desk: Desk, folder: Path, *more: object) -> tuple[dict[str, Any], State]:
    """What a run of 25 samples says, and what the board has learnt."""
    at = ("--port", desk.port, "--model", DIGITS, "--journal", folder / "journal", *more)
    outcome = tte("device", "train", *at, "--json", *COURSE)
    assert outcome.status == 0, outcome.err
    assert tte("device", "pull", "--port", desk.port, folder / "out.state").status == 0
    return json.loads(outcome.out), statefile.load(folder / "out.state")


@pytest.fixture(scope="module")
def undisturbed(careful: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], State]:
    folder = tmp_path_factory.mktemp("desk")
    with Desk(careful, folder) as desk:
        return cared(desk, folder, *AIDS)


@needs_host
def test_guard_and_replay(careful: Path, undisturbed: tuple[dict[str, Any], State], tmp_path: Path) -> None:
    facts, state = undisturbed
    learner = facts["learner"]
    assert (learner["samples"], learner["held_out"], learner["checks"]) == (25, 12, 5)
    assert 25 <= learner["replayed"] <= 50 and state.step == 25 + learner["replayed"]
    notes = " ".join(facts["notes"])
    assert "12 of 1,297 training samples, chosen by seed 5" in notes and "learning taken back" in notes
    with Desk(careful, tmp_path) as desk:
        plain = cared(desk, tmp_path)[0]["learner"]
        assert (plain["replayed"], plain["checks"]) == (25, 0)  # as built: one each, and a check after 50
        said = tte("device", "info", "--port", desk.port).out
        assert "guard         12 of 12 samples held out" in said and "25 learnt from again" in said
        assert "guard: 12 of 12" in tte("device", "monitor", "--port", desk.port, "--looks", 1).out
        none = cared(desk, tmp_path, "--replay-steps", 0, "--guard-every", 0)[0]
        assert none["learner"]["replayed"] == 25 and none["learner"]["held_out"] == 0
        assert "held out on the device" not in " ".join(none["notes"])


@needs_host
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    accidents=st.lists(st.tuples(st.integers(0, 8000), st.sampled_from([CUT, DAMAGE])), max_size=5),
    lives=st.lists(st.integers(3000, 30_000), max_size=4),
)
def test_cut_lines_and_killed_hosts_with_guard_and_replay(
    careful: Path, undisturbed: tuple[dict[str, Any], State], tmp_path_factory: pytest.TempPathFactory,
    accidents: list[Accident], lives: list[int],
) -> None:  # fmt: skip
    """The device was not reset: the same, to the byte, and the guard has done the same."""
    folder = tmp_path_factory.mktemp("desk")
    with Desk(careful, folder, accidents=accidents) as desk, pytest.MonkeyPatch.context() as patch:
        for life in [*lives, 10**9]:
            patch.setattr(connect, "open_port", lambda name, baud, life=life: Mortal(open_port(name, baud), life))
            with suppress(Killed):
                facts, state = cared(desk, folder, *AIDS)
                break
    assert state == undisturbed[1] and facts["learner"] == undisturbed[0]["learner"]
    assert len(facts["losses"]) == 25 and facts["accuracy_after"] == undisturbed[0]["accuracy_after"]


@needs_host
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(accidents=ACCIDENTS, lives=st.lists(st.integers(3000, 30_000), max_size=3), save_every=st.sampled_from([None, 4]))
def test_resets_with_guard_and_replay(
    careful: Path, tmp_path_factory: pytest.TempPathFactory, accidents: list[Accident], lives: list[int],
    save_every: int | None,
) -> None:  # fmt: skip
    """Memories are lost, but the held-out samples come again, and each sample of the run counts once."""
    folder = tmp_path_factory.mktemp("desk")
    more = (*AIDS, *(("--save-every", save_every) if save_every else ()), *COURSE)
    with (
        Desk(careful, folder, flash=folder / "flash", accidents=accidents) as desk,
        pytest.MonkeyPatch.context() as patch,
    ):
        at = ("--port", desk.port, "--model", DIGITS, "--journal", folder / "journal", "--json")
        for life in [*lives, *[10**9] * 6]:
            patch.setattr(connect, "open_port", lambda name, baud, life=life: Mortal(open_port(name, baud), life))
            with suppress(Killed):
                outcome = tte("device", "train", *at, *more)
                if outcome.status == 0:
                    break
                assert "the device was reset, or another program" in outcome.err  # before the run began
            desk.button()
        facts = json.loads(outcome.out)
        was_reset = desk.happened > 0 or len(lives) > 0
        assert facts["learner"]["held_out"] == 12 if "learner" in facts else was_reset  # none if reset at the very end
    assert len(facts["losses"]) == facts["steps"] == 25
    with (folder / "journal").open() as lines:
        counted = History(0)
        for line in map(json.loads, lines):
            if "step" in line:
                counted.learnt(line["loss"], 0, line["counter"])
            elif "moved" in line:
                counted.moved_to(line["moved"])
    rises = np.diff([0, *counted.counters])
    assert counted.step == 25 and rises.min() >= 1 and rises.max() <= 3
