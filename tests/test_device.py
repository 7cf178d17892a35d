"""`tte device`: ports, cables that are pulled, boards that are reset; what was learnt is as if nothing had happened."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serial
from device_bench import CUT, DAMAGE, INTRUDE, PULL, RESET, UNPLUG, Accident, Desk, Talker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import DIGITS
from test_cli import NPZ, refused, tte
from toy import TOY, converse, needs_host, needs_qemu

from tte import board, codegen, native, pioproject, run
from tte.cli import connect
from tte.compiler import Options, compile_model
from tte.data import Dataset, Port, load
from tte.device import frame as frames
from tte.device import port, port_failures, statefile
from tte.device.frame import Frame
from tte.device.link import LinkLost
from tte.device.port import ReopeningLink, open_port
from tte.device.protocol import Kind, Status
from tte.device.session import Session
from tte.device.statefile import State
from tte.device.steady import Kept, Steady
from tte.errors import DeviceError
from tte.history import History
from tte.training.autodiff import Numerics

KINDS = ("pty", "socket")
BAUD = 921600


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less patience: nothing here takes long."""
    monkeypatch.setattr(port, "_AGAIN_S", 0.01)
    monkeypatch.setattr(port, "_FAR_S", 0.1)
    monkeypatch.setattr(port, "_ANSWER_S", 0.05)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = pioproject.generate_project(tmp_path_factory.mktemp("toy"), TOY, board.load("mps2-an386"), name="toy")
    return native.build_host(project)


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digit reader, all of which trains, and which keeps what it learns."""
    compiled = compile_model(DIGITS, Options(update="full", numerics=Numerics(0.05)))
    files = codegen.render(compiled.plan, "digits", "test")
    project = pioproject.generate_project(
        tmp_path_factory.mktemp("digits"), files, board.load("stm32f746"), name="digits",
        keep_bytes=codegen.state_bytes(compiled.plan),
    )  # fmt: skip
    return native.build_host(project, sanitize=False)


class Lab:
    """The digit reader, its samples, and what a run without accidents ends with; no dataclass, which hypothesis would print."""

    def __init__(self, program: Path, digits: Dataset, state: State, log: run.RunLog) -> None:
        self.program, self.digits, self.state, self.log = program, digits, state, log


def opened(desk: Desk, reconnect: float = 20, say: list[str] | None = None) -> Session:
    notes = [] if say is None else say
    return Session(closing(ReopeningLink(lambda: open_port(desk.port, BAUD), reconnect, notes.append)), 20, ends=False)


def taught(desk: Desk, digits: Dataset, *, save_every: int = 0, say: list[str] | None = None) -> tuple[State, run.RunLog]:
    """What the board has learnt after a run of 25 steps."""
    notes = [] if say is None else say
    desk.armed = False
    with opened(desk, say=notes) as session:
        kept = Kept(statefile.pull(session))
        desk.armed = True
        history = History(kept.base.step)
        steady = Steady(session, kept, history, save_every=save_every, steps=25, say=notes.append)
        log = run.run(
            steady, digits, steps=25, seed=5, eval_every=10, eval_samples=4, final_samples=4, history=history,
        )  # fmt: skip
        desk.armed = False
        return statefile.pull(session), log


@pytest.fixture(scope="module")
def lab(learner: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    digits = load(NPZ, Port((1, 8, 8, 1), 1 / 255, -128), classes=10).turned(1)
    with Desk(learner, tmp_path_factory.mktemp("desk")) as desk:
        return Lab(learner, digits, *taught(desk, digits))


def is_the_same(lab: Lab, state: State, log: run.RunLog, accidents: int = 0) -> bool:
    """Byte for byte; but of each accident a loss may be unknown, whose answer was lost."""
    assert sum(loss is None for loss in log.losses) <= accidents
    pairs = zip(log.losses, lab.log.losses, strict=True)
    curves = [[(point.step, point.accuracy) for point in one.curve] for one in (log, lab.log)]
    return state == lab.state and curves[0] == curves[1] and all(a in (b, None) for a, b in pairs)


@needs_host
@pytest.mark.parametrize("kind", KINDS)
def test_every_command_over_a_port(toy: Path, tmp_path: Path, kind: str) -> None:
    """A session that ends leaves the device as it is."""
    with Desk(toy, tmp_path, kind) as desk:
        with opened(desk) as device:
            assert converse(device) == [0, 0, 0, 0]
        with opened(desk) as device:
            assert device.open().step == 43


ACCIDENTS = st.lists(
    st.tuples(st.integers(0, 8000), st.sampled_from([CUT, RESET, UNPLUG, DAMAGE, INTRUDE])), min_size=1, max_size=5
)  # fmt: skip


def survive(lab: Lab, folder: Path, kind: str, accidents: list[Accident], save_every: int) -> None:
    with Desk(lab.program, folder, kind, flash=folder / "flash", accidents=accidents) as desk:
        found = taught(desk, lab.digits, save_every=save_every)
        assert desk.happened >= 1 and is_the_same(lab, *found, desk.happened)


@needs_host
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), accidents=ACCIDENTS, save_every=st.sampled_from([0, 7]))
def test_accidents_change_nothing(
    lab: Lab, tmp_path_factory: pytest.TempPathFactory, kind: str, accidents: list[Accident], save_every: int
) -> None:
    survive(lab, tmp_path_factory.mktemp("desk"), kind, accidents, save_every)


@pytest.mark.slow
@needs_host
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), accidents=ACCIDENTS, save_every=st.sampled_from([0, 1, 7]))
def test_many_accidents_change_nothing(
    lab: Lab, tmp_path_factory: pytest.TempPathFactory, kind: str, accidents: list[Accident], save_every: int
) -> None:
    survive(lab, tmp_path_factory.mktemp("desk"), kind, accidents, save_every)


@needs_host
@pytest.mark.parametrize("kind", KINDS)
def test_bad_lines_change_nothing(lab: Lab, tmp_path: Path, kind: str) -> None:
    with Desk(lab.program, tmp_path, kind, rate=0.03, seed=1) as desk:
        assert is_the_same(lab, *taught(desk, lab.digits))
        with opened(desk) as device:
            assert device.counters().damaged_frames > 0


class Killed(BaseException):
    """The host's program ends without a word."""


@dataclass
class Mortal:
    """A link whose host is killed after so many bytes were read."""

    link: port.SerialLink | port.SocketLink
    life: int
    begun: int = 0

    def __post_init__(self) -> None:
        self.retry_s, self.write, self.failure = self.link.retry_s, self.link.write, self.link.failure
        self.close, self.wait = self.link.close, self.link.wait

    def read_some(self, timeout_s: float) -> bytes:
        some = self.link.read_some(timeout_s)
        self.life -= len(some)
        if self.life < 0:
            raise Killed
        return some


COURSE = ("--data", NPZ, "--turn", 90, "--steps", 25, "--seed", 5, "--eval-every", 10, "--eval-samples", 4,
          "--final-samples", 4)  # fmt: skip


@needs_host
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lives=st.lists(st.integers(500, 40_000), max_size=6), save_every=st.sampled_from([None, 4]), reset=st.booleans())
def test_a_host_that_is_killed_goes_on(
    lab: Lab, tmp_path_factory: pytest.TempPathFactory, lives: list[int], save_every: int | None, reset: bool
) -> None:
    """The same command again; with a board that was reset meanwhile, too."""
    folder = tmp_path_factory.mktemp("desk")
    more = ("--save-every", save_every) if save_every else ()
    at = ("--model", DIGITS, "--journal", folder / "journal")
    with Desk(lab.program, folder, flash=folder / "flash") as desk, pytest.MonkeyPatch.context() as patch:
        for life in [*lives, 10**9]:
            patch.setattr(connect, "open_port", lambda name, baud, life=life: Mortal(open_port(name, baud), life))
            with suppress(Killed):
                outcome = tte("device", "train", "--port", desk.port, "--json", *at, *COURSE, *more)
                assert outcome.status == 0, outcome.err
                break
            if reset:
                desk.button()
        patch.undo()
        assert tte("device", "pull", "--port", desk.port, folder / "out.state").status == 0
    facts = json.loads(outcome.out)
    assert statefile.load(folder / "out.state") == lab.state
    assert facts["accuracy_after"] == lab.log.accuracy_after and len(facts["losses"]) == 25


# ---- boards that were reset


@needs_host
def test_a_state_in_flash_that_is_of_another_run(lab: Lab, tmp_path: Path) -> None:
    """A board that comes up with it is given back what this run began with; or this run has saved first of all."""
    for save_every in (0, 10):
        folder = tmp_path / str(save_every)
        folder.mkdir()
        with Desk(lab.program, folder, flash=folder / "flash", accidents=[(3000, RESET)]) as desk:
            desk.armed = False
            with opened(desk) as device:
                device.set_control(32768, 5, 7)
                for _ in range(6):
                    device.train(lab.digits.train(3).x, 4)
                device.save()
                device.reset()
            said: list[str] = []
            assert is_the_same(lab, *taught(desk, lab.digits, save_every=save_every, say=said))
            told = "came up at step 0: all" if save_every else "at step 13 with a state that is none of this run"
            assert told in " ".join(said) and desk.happened == 1


@needs_host
def test_a_save_that_another_program_interrupts_is_made(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the session just before the last save; the board comes up with the last step."""
    saved, save = list[int](), Session.save

    def interrupted(device: Session) -> int:
        saved.append(device.counters().step)
        if saved == [0, 25]:
            desk.intrude()
        return save(device)

    with Desk(lab.program, tmp_path, flash=tmp_path / "flash") as desk:
        monkeypatch.setattr(Session, "save", interrupted)
        assert is_the_same(lab, *taught(desk, lab.digits, save_every=1000)) and saved == [0, 25, 25]
        desk.button()
        with opened(desk) as device:
            assert device.open().step == 25


@needs_host
def test_a_board_with_another_program(lab: Lab, toy: Path, tmp_path: Path) -> None:
    with Desk(lab.program, tmp_path, accidents=[(3000, RESET)]) as desk:
        desk.swap_at_reset(toy)
        with pytest.raises(DeviceError, match="now runs a program of another build"):
            taught(desk, lab.digits)


@needs_host
def test_evaluation_begins_again_after_a_reset(lab: Lab, tmp_path: Path) -> None:
    at = ("--data", NPZ, "--turn", 90, "--model", DIGITS, "--json")
    with Desk(lab.program, tmp_path, accidents=[(9000, RESET)]) as desk:
        found = [json.loads(tte("device", "eval", "--port", desk.port, *at).out) for _ in range(2)]
    assert found[0] == found[1] and (found[0]["samples"], found[0]["step"]) == (500, 0) and desk.happened == 1


# ---- commands


@needs_host
def test_commands(lab: Lab, tmp_path: Path) -> None:
    with Desk(lab.program, tmp_path, flash=tmp_path / "flash") as desk:

        def ask(command: str, *arguments: object) -> dict[str, Any]:
            outcome = tte("device", command, "--port", desk.port, "--json", *arguments)
            assert outcome.status == 0, outcome.err
            return json.loads(outcome.out.splitlines()[-1])  # type: ignore[no-any-return]

        about = ask("info")
        assert (about["name"], about["board"], about["step"], about["kept"]) == ("digits", "host", 0, "nothing was ever saved")
        said = tte("device", "info", "--port", desk.port)
        assert "trained state 21,624" in said.out and "nothing was ever saved" in said.out
        at = ("--model", DIGITS, "--turn", 90)
        facts = ask("train", *at, *COURSE[:2], *COURSE[4:], "--save-every", 10, "--journal", tmp_path / "j")
        assert facts["accuracy_after"] == lab.log.accuracy_after and facts["losses"] == list(lab.log.losses)
        assert ask("pull", tmp_path / "a.state")["step"] == 25 and statefile.load(tmp_path / "a.state") == lab.state
        assert ask("reset")["step_before"] == 25 and ask("info")["step"] == 0
        assert ask("restore")["step"] == 25
        assert ask("reset") and ask("push", tmp_path / "a.state")["step"] == 25 and ask("save")["step"] == 25
        desk.button()
        again = ask("info")
        assert (again["step"], again["seed"], again["kept"]) == (25, 5, "began with the state from its flash")
        found = ask("eval", *at, "--data", NPZ, "--samples", 50, "--seed", 5)
        assert found["samples"] == 50 and found["accuracy"] == found["right"] / 50
        answers = ask("infer", *at, "--data", NPZ, "--samples", 3, "--first", 7)["answers"]
        assert [a["sample"] for a in answers] == [7, 8, 9] and all(a["output"][a["class"]] == max(a["output"]) for a in answers)
        with np.load(NPZ) as arrays:
            np.savez(tmp_path / "x.npz", x=arrays["x_test"])
        assert ask("infer", *at, "--data", tmp_path / "x.npz", "--samples", 3, "--first", 7)["answers"] == answers
        watched = tte("device", "monitor", "--port", desk.port, "--interval", 0.02, "--looks", 5)
        assert watched.status == 0 and "step 25" in watched.out and len(watched.out.splitlines()) == 1
        assert ask("monitor", "--looks", 1)["step"] == 25


# ---- what goes wrong


def test_ports_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "_OPENING_S", 0.3)

    def told(name: object, *words: str) -> None:
        refused(tte("device", "info", "--port", name), str(name).removeprefix("qemu:./"), *words)

    told(tmp_path / "ttyACM7", "there is no such port", "plug the board in")
    told("/dev/null", "is no serial port")
    told("socket://127.0.0.1:1", "nobody listens there", "Renode")
    told("socket://127.0.0.1", "is no address of a TCP port", "socket://localhost:3456")
    told("qemu:./nowhere", "not a folder written by `tte build`")
    told("other://x", "cannot be opened")
    one, other = os.openpty()
    name = os.ttyname(other)
    told(name, "does not answer within 0.3 s", "reset the board", "tte flash")
    with closing(open_port(name)):
        told(name, "another program uses the port", "ModemManager")
    os.close(one)
    os.close(other)
    told(Talker(b"Hello, I am a modem.\r\n\0").port, "none of them an answer")
    talker = Talker(frames.encode(Frame(Kind.ANSWER, Status.OTHER_VERSION, 7, 1, 0, 0, version=9)))
    monkeypatch.setattr("secrets.randbelow", lambda _: 6)
    refused(tte("device", "info", "--port", talker.port), "the device speaks version 9 of the protocol", "build and load")


def test_what_a_port_says(tmp_path: Path) -> None:
    """What cannot be brought about here: a port of another group, a speed that it has not, a host that is unknown."""
    name = tmp_path / "ttyACM0"
    name.touch()
    denied = port_failures.of_serial(str(name), 9600, serial.SerialException(errno.EACCES, "could not open port"))
    assert "you may not use the port" in str(denied) and f"group {name.group()}" in denied.limit
    assert "udev" in denied.remedy if name.group() == "root" else "usermod -aG" in denied.remedy
    assert "no speed of 7 baud" in str(port_failures.of_serial("/dev/x", 7, ValueError("Invalid baud rate: 7")))
    assert "another --baud" in port_failures.silent("/dev/x", 10, 99, 9600).remedy
    assert "TX to RX" in port_failures.silent("/dev/x", 10, 0, 9600).remedy
    assert "the host's name is not known" in str(port_failures.of_socket("socket://x:1", socket.gaierror(-2, "unknown")))
    assert "does not answer" in str(port_failures.of_socket("socket://x:1", TimeoutError()))
    assert "No route" in str(port_failures.of_socket("socket://x:1", OSError(errno.EHOSTUNREACH, "No route to host")))


@needs_host
def test_a_cable_that_stays_pulled(lab: Lab, tmp_path: Path) -> None:
    desk = Desk(lab.program, tmp_path, accidents=[(2000, PULL)])
    said: list[str] = []
    with desk, opened(desk, reconnect=0.3, say=said) as device, pytest.raises(LinkLost, match="no such port") as error:
        while True:
            device.infer(lab.digits.test(0).x)
    assert "0.3 s of trying" in error.value.limit and "trying again for 0.3 s" in said[0]
    desk = Desk(lab.program, tmp_path, accidents=[(2000, PULL)])
    with desk, opened(desk, reconnect=0) as device, pytest.raises(LinkLost, match="is gone"):
        while True:
            device.infer(lab.digits.test(0).x)


@needs_host
def test_refusals(lab: Lab, toy: Path, tmp_path: Path) -> None:
    journal = ("--journal", tmp_path / "journal")
    at = ("--model", DIGITS)
    with Desk(lab.program, tmp_path) as desk:

        def told(command: str, *arguments: object) -> Callable[..., None]:
            return lambda *words: refused(tte("device", command, "--port", desk.port, *arguments), *words)

        told("save")("there is no flash to keep it in")
        told("infer", "--data", NPZ)("how the device's input is quantised is not known", "--build DIR")
        told("infer", "--data", NPZ, *at, "--first", 900)("has no sample 900", "500 samples")
        told("train", "--data", NPZ, *at, *journal, "--steps", 3, "--save-every", 1)("there is no flash")
        told("train", "--data", NPZ, *at, *journal, "--steps", 4)("not finished (0 steps done): steps 3 there, 4")
        (tmp_path / "journal").write_bytes((tmp_path / "journal").read_bytes()[:-500])
        told("train", "--data", NPZ, *at, *journal, "--steps", 4)("is no journal of a run, or damaged", "--fresh")
        ended = tte("device", "train", "--port", desk.port, "--data", NPZ, *at, *journal, "--steps", 4, "--fresh")
        assert ended.status == 0 and "after 4 steps" in ended.out
        text = (tmp_path / "journal").read_text().splitlines(keepends=True)
        (tmp_path / "journal").write_text("".join(text[:-2]))
        assert tte("device", "reset", "--port", desk.port).status == 0
        with opened(desk) as device:
            device.set_control(32768, 0, 3)
        again = told("train", "--data", NPZ, *at, *journal, "--steps", 4)
        again("at step 3, with a state that is none of the run that was stopped (steps 0 to 4)", "--fresh")
        statefile.save(tmp_path / "x.state", State("0" * 16, 0, 0, 0, b"x"))
        for option, words in (
            ("--replay-steps", ("without replay", "--replay SIZE")), ("--guard-every", ("without a guard", "--guard SAMPLES")),
            ("--guard-limit", ("without a guard", "--guard SAMPLES")),
        ):  # fmt: skip
            told("train", "--data", NPZ, *at, "--journal", tmp_path / "other", option, 5)(option, *words)
        told("push", tmp_path / "x.state")("the state was learnt by another program (0000000000000000, 1 bytes)")
    with Desk(toy, tmp_path) as desk:
        told("eval", "--data", NPZ, *at)("the model has 4 classes")


@needs_qemu
def test_in_the_emulator_by_its_uart(tmp_path: Path) -> None:
    """What is kept there is there for the next command, and is what the program learns on this computer; past samples, too."""
    folder = tmp_path / "digits"
    built = tte("build", DIGITS, "--board", "mps2-an386", "--update", "last", "--keep", "--guard", 4, "--replay", "1K",
                "--out", folder)  # fmt: skip
    assert built.status == 0, built.err
    short = (*COURSE[:4], "--steps", 6, "--eval-samples", 1, "--final-samples", 2)
    course = (*short, "--save-every", 3, "--guard-every", 2)
    states = []
    for on in (("qemu", "--link", "uart"), ("host",)):
        at = ("--port", f"{on[0]}:{folder}", *on[1:])
        outcome = tte("device", "train", *at, *course, "--json", "--journal", tmp_path / on[0])
        assert outcome.status == 0, outcome.err
        assert tte("device", "pull", *at, tmp_path / "a.state").status == 0
        states.append(statefile.load(tmp_path / "a.state"))
    assert states[0] == states[1] and states[0].step == 12
    for steps, every in ((0, 0), (3, 4)):
        outcome = tte("run", folder, "--on", "host", *short, "--replay-steps", steps, "--guard-every", every, "--json")
        assert outcome.status == 0, outcome.err
        learner = json.loads(outcome.out)["learner"]
        assert (learner["replayed"], learner["checks"]) == (6 * steps, every // 4)
        assert "learning taken back" in json.loads((folder / "run.json").read_text())["notes"][-2]
    with Desk(native.build_host(pioproject.open_project(folder), sanitize=False), tmp_path) as desk:
        outcome = tte("device", "eval", "--port", desk.port, "--build", folder, "--data", NPZ, "--samples", 5)
        assert outcome.status == 0 and "of 5, at step 0" in outcome.out
        outcome = tte("device", "train", "--port", desk.port, "--build", folder, *course[:-4], "--json")
        assert outcome.status == 0 and "learner" in json.loads(outcome.out), outcome.err
