"""What a device answers is no more trusted than a file: nothing hangs, ends in a traceback, or is written elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import pytest
from test_cli import refused, tte
from test_protocol import BadLine
from toy import TOY, needs_host

from tte import board, files, journal, native, pioproject
from tte.cli import connect
from tte.device import frame as frames
from tte.device import protocol
from tte.device.frame import Frame
from tte.device.link import ProcessLink
from tte.device.protocol import Command, Kind
from tte.device.session import Session
from tte.device.statefile import State
from tte.errors import DataError, DeviceError


def test_a_line_that_gives_back_what_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "_OPENING_S", 0.3)
    refused(tte("device", "info", "--port", "loop://"), "none of them an answer")


def test_no_number_is_no_rate() -> None:
    for command in ("run", "device train"):
        refused(tte(*command.split(), "--rate", "nan"), "is no number")


def described(name: bytes, digest: bytes) -> bytes:
    return bytes(32) + digest + b"\0".join((name, b"a \x1b[31mnote\x07", b"board"))


def test_descriptions_become_no_other_files() -> None:
    about = protocol.parse_description(described(b"digits", b"0123456789abcdef"))
    assert (about.name, about.note, about.board) == ("digits", "a ?[31mnote?", "board")
    for name, digest in (
        (b"../../x", b"0123456789abcdef"), (b"", b"0123456789abcdef"), (b"a\x1b[2J", b"0123456789abcdef"),
        (b"x" * 300, b"0123456789abcdef"), (b"digits", b"0123456789abcde\0"), (b"digits", b"\xff" * 16),
    ):  # fmt: skip
        with pytest.raises(DeviceError, match="describes no program"):
            protocol.parse_description(described(name, digest))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    return native.build_host(pioproject.generate_project(folder, TOY, board.load("stm32f746"), name="toy"))


class Liar(BadLine):
    """A line on which the answers to one command are others.

    Args:
        makes: the answer, from the device's.
    """

    def __init__(self, link: ProcessLink, command: Command, answer: bytes) -> None:
        super().__init__(link, 0, 0)
        self._command, self._answer, self._asked, self._reader = command, answer, 0, frames.Reader()

    def write(self, data: bytes, timeout_s: float) -> None:
        for frame in self._reader.feed(data):
            if frame.kind == Kind.REQUEST:
                self._asked = frame.code
        super().write(data, timeout_s)

    def _pass(self, part: bytes, out: bool) -> bytes:
        (frame, *_), wire = [*frames.Reader().feed(part + b"\0"), None], part + b"\0"
        if out or frame is None or frame.kind != Kind.ANSWER or self._asked != self._command:
            return wire
        lie = Frame(Kind.ANSWER, 0, frame.session, frame.sequence, 0, len(self._answer), self._answer)
        return frames.encode(lie)


X = np.zeros(64, np.int8)
LIES = [
    (Command.INFER, b"", lambda d: d.infer(X)),
    (Command.INFER, bytes(50), lambda d: d.infer(X)),
    (Command.READ_STATE, bytes(3), lambda d: d.read_state()),
    (Command.EVALUATE, bytes(20), lambda d: d.evaluate(X, 0)),
    (Command.EVALUATE, bytes(4) + b"\2\0\0\0" + b"\xff" * 4 + bytes(8), lambda d: d.evaluate(X, 0)),
    (Command.COUNTERS, b"\xff" * 60, lambda d: d.counters()),
    (Command.TRAIN, bytes(7), lambda d: d.train(X, 1)),
    (Command.SAVE, b"\xff" * 8, lambda d: d.save()),
    (Command.LEARNER, bytes(65), lambda d: d.learner()),
]


@needs_host
@pytest.mark.parametrize("lie", LIES, ids=lambda lie: f"{lie[0].name}-{len(lie[1])}")
def test_lies(program: Path, lie: tuple[Command, bytes, object]) -> None:
    command, answer, ask = lie
    with closing(ProcessLink([str(program)], what="the program")) as link:
        device = Session(nullcontext(Liar(link, command, answer)), timeout_s=20)
        with pytest.raises(DeviceError):
            ask(device)  # type: ignore[operator]


class Stuck(BadLine):
    """A line that brings the same bytes for ever, once there are some."""

    stuck = b""

    def read_some(self, timeout_s: float) -> bytes:
        return self.stuck or super().read_some(timeout_s)


@needs_host
def test_an_answer_that_never_goes_on(program: Path) -> None:
    """The second half of it comes again and again."""
    with closing(ProcessLink([str(program)], what="the program")) as link:
        line = Stuck(link, 0, 0)
        device = Session(nullcontext(line), timeout_s=0.5)
        device.describe()
        exchange = device._exchange
        line.stuck = frames.encode(Frame(Kind.ANSWER, 0, exchange._session, exchange._sequence + 1, 8, 16, b"12345678"))
        with pytest.raises(DeviceError, match="did not answer within"):
            device.read_state()


# ---- what else is there on the host


def test_a_journal_has_one_run(tmp_path: Path) -> None:
    path, base = tmp_path / "journal", State("0123456789abcdef", 0, 0, 0, b"x")
    with journal.begin(path, {"a": 1}, base):
        for other in (lambda: journal.begin(path, {"a": 1}, base), lambda: journal.unfinished(path, {"a": 1})):
            with pytest.raises(DataError, match="another run"):
                other()
    assert journal.unfinished(path, {"a": 1}) is not None


def test_files_replace_files_alone(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "pipe")
    files.write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"new"
    for name in (tmp_path / "pipe", Path("/dev/null"), tmp_path):
        with pytest.raises(DataError, match="no ordinary file"):
            files.write(name, b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "pipe", "real"]


@needs_host
def test_a_command_that_is_told_to_end_ends_what_it_started(program: Path, tmp_path: Path) -> None:
    port = f"host:{tmp_path / 'toy'}"
    pioproject.generate_project(tmp_path / "toy", TOY, board.load("stm32f746"), name="toy")
    command = [sys.executable, "-m", "tte", "device", "monitor", "--port", port, "--interval", "0.1"]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as host:
        signal.signal(signal.SIGHUP, before)
        assert host.stdout and host.stdout.readline()
        started = subprocess.run(["ps", "-o", "pid=", "--ppid", str(host.pid)], capture_output=True, text=True, check=False)
        host.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            host.wait(0.5)
        host.send_signal(signal.SIGTERM)
        assert host.wait(20) == 128 + signal.SIGTERM
    children = [int(word) for word in started.stdout.split()]
    assert children
    limit = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
