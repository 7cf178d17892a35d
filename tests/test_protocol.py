"""The device protocol: C and Python agree on frames, bad lines change nothing, any bytes are survived."""

from __future__ import annotations

import ctypes
import random
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import TOY, X, converse, needs_host, with_define

from tte import board, native, pioproject, resources
from tte.device import frame as frames
from tte.device import protocol, session
from tte.device.exchange import DeviceReset
from tte.device.frame import Frame, Reader
from tte.device.link import ProcessLink
from tte.device.protocol import Command, Kind, Status, Stored
from tte.device.session import Session
from tte.errors import DeviceError

FIRMWARE = resources.path("firmware") / "src"
HERE = Path(__file__).parent
FLAGS = ("-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{FIRMWARE}")
LARGEST = 256  # TTE_FRAME_BYTES

# ---- frames


class _Head(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint8) for name in ("version", "kind", "code")),
        *((name, ctypes.c_uint32) for name in ("session", "sequence", "offset", "total")),
    )


class Codec:
    """The firmware's codec, as a library."""

    def __init__(self, folder: Path) -> None:
        file = folder / "codec.so"
        sources = (HERE / "protocol_codec.c", FIRMWARE / "frame.c", FIRMWARE / "crc32.c")
        subprocess.run(["cc", *FLAGS, "-O1", "-shared", "-fPIC", *map(str, sources), "-o", str(file)], check=True)
        self._library = ctypes.CDLL(str(file))

    def encode(self, frame: Frame) -> bytes:
        fields = (frame.version, frame.kind, frame.code, frame.session, frame.sequence, frame.offset, frame.total)
        wire = ctypes.create_string_buffer(2 * LARGEST + 64)
        size = self._library.encode(ctypes.byref(_Head(*fields)), frame.payload, len(frame.payload), wire)
        return wire.raw[:size]

    def decode(self, wire: bytes) -> tuple[list[Frame], int]:
        heads = (_Head * (len(wire) + 1))()
        sizes = (ctypes.c_uint32 * (len(wire) + 1))()
        payloads = ctypes.create_string_buffer(len(wire) + 1)
        count = self._library.decode(wire, len(wire), heads, payloads, sizes)
        found, at = [], 0
        for head, size in zip(heads[:count], sizes[:count], strict=True):
            fields = (head.kind, head.code, head.session, head.sequence, head.offset, head.total)
            found.append(Frame(*fields, payloads.raw[at : at + size], head.version))
            at += size
        return found, sizes[count]


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return Codec(tmp_path_factory.mktemp("codec"))


_bytes8, _words = st.integers(0, 255), st.integers(0, 2**32 - 1)
#: Few zeros, many, and runs round COBS's longest block.
_payloads = st.one_of(
    st.binary(max_size=LARGEST),
    st.lists(st.sampled_from([b"\0", b"\1", b"\xff" * 7]), max_size=36).map(b"".join),
    st.tuples(st.integers(0, LARGEST), st.binary(max_size=3)).map(lambda v: (b"\x55" * v[0] + v[1])[:LARGEST]),
)
_frames = st.builds(Frame, _bytes8, _bytes8, _words, _words, _words, _words, _payloads, _bytes8)


@needs_host
@settings(max_examples=300, deadline=None)
@given(sent=st.lists(_frames, max_size=4), noise=st.binary(max_size=20))
def test_c_and_python_agree(codec: Codec, sent: list[Frame], noise: bytes) -> None:
    wire = b"".join(map(frames.encode, sent))
    assert b"".join(map(codec.encode, sent)) == wire
    assert codec.decode(wire) == (sent, 0) and Reader().feed(wire) == sent
    reader, dirty = Reader(), noise + b"\0" + wire
    found = [frame for byte in dirty for frame in reader.feed(bytes([byte]))]
    assert codec.decode(dirty) == (found, reader.damaged) and found[-len(sent) or len(found) :] == sent


@needs_host
@settings(max_examples=200, deadline=None)
@given(sent=_frames, at=st.integers(0, 10**6), change=st.integers(1, 255))
def test_damage_is_found(codec: Codec, sent: Frame, at: int, change: int) -> None:
    wire = bytearray(frames.encode(sent))
    wire[at % len(wire)] ^= change
    wire += b"\0"
    reader = Reader()
    assert (codec.decode(bytes(wire))[0], reader.feed(bytes(wire))) == ([], [])
    assert reader.damaged >= 1 == min(codec.decode(bytes(wire))[1], 1)


def test_longest_block_at_the_end_and_no_end_of_frame(codec: Codec) -> None:
    for size in (253, 254, 255, 507, 508, 509):
        raw = b"\1" * size
        assert frames.unstuff(frames.stuff(raw)) == raw and len(frames.stuff(raw)) == size + -(-size // 254)
    assert codec.decode(frames.encode(Frame(1, 1, 1, 1, 1, 1, bytes(LARGEST + 1)))) == ([], 1)
    reader = Reader()
    for _ in range(100):
        assert reader.feed(b"\1" * 10000) == []
    assert len(reader._rest) < 100_000 and reader.damaged == 1
    assert reader.feed(b"\0" + frames.encode(Frame(1, 2, 3, 4, 5, 6))) == [Frame(1, 2, 3, 4, 5, 6)]


# ---- bad lines


class BadLine:
    """A link that loses, doubles, reorders and damages frames, each with probability `rate`, in both directions."""

    def __init__(self, link: ProcessLink, rate: float, seed: int) -> None:
        self._link, self._rate, self._draw = link, rate, random.Random(seed)
        self._rest = b""
        self._held = {True: b"", False: b""}
        self.done = dict.fromkeys(("lost", "doubled", "reordered", "damaged"), 0)
        self.retry_s, self.begun = 0.05, 0
        self.failure, self.wait = link.failure, link.wait

    def write(self, data: bytes, timeout_s: float) -> None:
        self._link.write(b"".join(self._pass(part, True) for part in data.split(b"\0") if part), timeout_s)

    def read_some(self, timeout_s: float) -> bytes:
        limit = time.monotonic() + timeout_s
        while True:
            some = self._link.read_some(limit - time.monotonic())
            *whole, self._rest = (self._rest + some).split(b"\0")
            passed = b"".join(self._pass(part, False) for part in whole if part)
            if passed or not some:
                return passed

    def _pass(self, part: bytes, out: bool) -> bytes:
        fates = ("lost", "doubled", "reordered", "damaged", "whole")
        fate = self._draw.choices(fates, (*[self._rate] * 4, 1 - 4 * self._rate))[0]
        if fate != "whole":
            self.done[fate] += 1
        wire = part + b"\0"
        if fate == "lost":
            return b""
        if fate == "doubled":
            return wire + wire
        if fate == "damaged":
            at = self._draw.randrange(len(wire))
            wire = wire[:at] + bytes([wire[at] ^ self._draw.randrange(1, 256)]) + wire[at + 1 :]
        if fate == "reordered" and not self._held[out]:
            self._held[out] = wire
            return b""
        late, self._held[out] = self._held[out], b""
        return wire + late


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    return native.build_host(pioproject.generate_project(folder, TOY, board.load("stm32f746"), name="toy"))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a state of many frames."""
    files = with_define("#define TOY_STATE_BYTES 20000")
    files["include/toy.h"] = files["include/toy.h"].replace(b"#define TOY_STATE_BYTES 8\n", b"")
    project = pioproject.generate_project(tmp_path_factory.mktemp("large"), files, board.load("stm32f746"), name="toy")
    return native.build_host(project)


def _learn(device: Session, steps: int) -> tuple[bytes, int, list[int]]:
    """Trains, infers, evaluates and moves the state about; state, step and all that was answered."""
    draw = np.random.default_rng(1)
    said = []
    for step in range(steps):
        x = draw.integers(-128, 128, 64).astype(np.int8)
        trained = device.train(x, int(draw.integers(4)))
        assert trained.step == step + 1
        said += [trained.loss, *trained.logits.tolist(), *device.infer(x).tolist()]
        said += [device.evaluate(x, 1, new=step % 50 == 0).right]
        if step % 100 == 99:
            device.write_state(device.read_state())
    return device.read_state(), device.counters().step, said


@needs_host
@pytest.mark.parametrize(("steps", "rate"), [(300, 0.01), (60, 0.08)])
def test_bad_lines_change_nothing(program: Path, steps: int, rate: float) -> None:
    with session.open_host(program) as device:
        clean = _learn(device, steps)
    with closing(ProcessLink([str(program)], what="the program")) as link:
        line = BadLine(link, rate, seed=steps)
        device = Session(nullcontext(line), timeout_s=60)
        assert _learn(device, steps) == clean
        assert device.retries > 0 and min(line.done.values()) > 0
        counters = device.counters()
        assert counters.damaged_frames > 0 and counters.repeated_requests > 0


@needs_host
def test_patience_follows_the_device(program: Path) -> None:
    """How long a host waits before it asks again is learnt from the device's answers, and not on a pipe, which loses nothing."""
    for usual, later in ((5.0, 1.0), (30.0, 30.0)):
        with closing(ProcessLink([str(program)], what="the program")) as link:
            line, waits = BadLine(link, 0.0, seed=1), list[float]()
            line.retry_s = usual
            read = line.read_some
            line.read_some = lambda timeout_s, read=read, waits=waits: (waits.append(timeout_s), read(timeout_s))[1]  # type: ignore[method-assign, misc]
            device = Session(nullcontext(line), timeout_s=60)
            for _ in range(40):
                device.infer(np.zeros(64, np.int8))
            assert waits[0] > usual - 0.1 and waits[-1] <= later and (later < usual or waits[-1] > later - 0.1)


@needs_host
def test_large_state_over_a_bad_line(large: Path) -> None:
    state = np.random.default_rng(2).integers(0, 256, 20000).astype(np.uint8).tobytes()
    with closing(ProcessLink([str(large)], what="the program")) as link:
        line = BadLine(link, 0.02, seed=5)
        device = Session(nullcontext(line), timeout_s=60)
        for data in (state, bytes(20000), state[::-1]):
            device.write_state(data)
            assert device.read_state() == data
        assert device.counters().gaps > 0 and min(line.done.values()) > 0


# ---- a host that misbehaves


class Raw:
    """Frames by hand."""

    def __init__(self, link: ProcessLink) -> None:
        self.link, self.reader = link, Reader()

    def send(self, *sent: Frame) -> None:
        self.link.write(b"".join(map(frames.encode, sent)), 10)

    def request(self, command: int, sequence: int, data: int = 0, arguments: bytes = b"", session: int = 7) -> Frame:
        return Frame(Kind.REQUEST, command, session, sequence, 0, data, protocol.request(1000, arguments))

    def data(self, sequence: int, offset: int, payload: bytes, session: int = 7) -> Frame:
        return Frame(Kind.DATA, 0, session, sequence, offset, 0, payload)

    def receive(self, count: int = 1) -> list[tuple[int, int, int]]:
        """Kind, code and sequence of the next frames."""
        found: list[Frame] = []
        while len(found) < count:
            found += self.reader.feed(self.link.read_some(10))
        self.last = found[-1]
        return [(frame.kind, frame.code, frame.sequence) for frame in found]


@pytest.fixture
def raw(program: Path) -> Iterator[Raw]:
    with closing(ProcessLink([str(program)], what="the program")) as link:
        yield Raw(link)


@needs_host
def test_a_step_is_applied_once(raw: Raw) -> None:
    raw.send(raw.request(Command.TRAIN, 1))
    assert raw.receive() == [(Kind.ANSWER, Status.NO_SESSION, 1)]
    raw.send(raw.request(Command.OPEN, 0), raw.request(Command.OPEN, 0))
    assert raw.receive(2) == [(Kind.ANSWER, Status.OK, 0)] * 2
    label = (2).to_bytes(4, "little")
    train = raw.request(Command.TRAIN, 1, 64, label)
    raw.send(train, raw.data(1, 32, bytes(32)), raw.data(1, 0, bytes(32)), raw.data(1, 32, bytes(32)))
    answer = [(Kind.ANSWER, Status.OK, 1)] * 2  # figures, logits
    assert raw.receive(3) == [(Kind.WANT, 0, 1), *answer]
    raw.send(train, raw.data(1, 0, bytes(64)), train)
    assert raw.receive(4) == answer * 2
    raw.send(raw.request(Command.TRAIN, 0, 64, label), raw.request(Command.TRAIN, 5, 64, label))
    assert raw.receive() == [(Kind.ANSWER, Status.BAD_SEQUENCE, 5)]
    raw.send(raw.request(Command.COUNTERS, 2))
    assert raw.receive() == [(Kind.ANSWER, Status.OK, 2)]
    assert protocol.parse_counters(raw.last.payload).step == 1


@needs_host
def test_a_request_that_was_given_up(raw: Raw) -> None:
    """The next one takes its place; a state of which a part was written is not used."""
    raw.send(raw.request(Command.OPEN, 0), raw.request(Command.TRAIN, 1, 64, bytes(4)), raw.data(1, 0, bytes(60)))
    raw.send(raw.request(Command.COUNTERS, 2))
    assert raw.receive(2) == [(Kind.ANSWER, Status.OK, 0), (Kind.ANSWER, Status.OK, 2)]
    assert protocol.parse_counters(raw.last.payload).step == 0
    digits = b"0123456789abcdef"
    raw.send(raw.request(Command.WRITE_STATE, 3, 8, digits), raw.data(3, 0, bytes(4)))
    raw.send(raw.request(Command.OPEN, 0, session=9))
    assert raw.receive() == [(Kind.ANSWER, Status.OK, 0)]
    for sequence, command in enumerate((Command.READ_STATE, Command.SAVE, Command.INFER), 1):
        raw.send(raw.request(command, sequence, session=9))
        assert raw.receive() == [(Kind.ANSWER, Status.NO_STATE, sequence)]
    raw.send(raw.request(Command.WRITE_STATE, 4, 8, b"0" * 16, session=9))
    assert raw.receive() == [(Kind.ANSWER, Status.OTHER_MODEL, 4)]
    raw.send(raw.request(Command.RESET, 5, session=9), raw.request(Command.READ_STATE, 6, session=9))
    assert raw.receive(2) == [(Kind.ANSWER, Status.OK, 5), (Kind.ANSWER, Status.OK, 6)]
    assert raw.last.payload == bytes([1, 2, 3, 4, 0, 0, 0, 0])


@needs_host
def test_other_version_and_unknown_commands(raw: Raw) -> None:
    other = Frame(Kind.REQUEST, Command.OPEN, 7, 0, 0, 0, bytes(4), version=3)
    raw.send(other, raw.request(Command.OPEN, 0), raw.request(99, 1), raw.request(Command.INFER, 2, 2**32 - 1))
    assert raw.receive(4) == [
        (Kind.ANSWER, Status.OTHER_VERSION, 0),
        (Kind.ANSWER, Status.OK, 0),
        (Kind.ANSWER, Status.BAD_REQUEST, 1),
        (Kind.ANSWER, Status.BAD_REQUEST, 2),
    ]


@needs_host
def test_reset_is_noticed(program: Path) -> None:
    """A second program in place of the first, as a board that was reset."""
    with closing(ProcessLink([str(program)], what="the program")) as link:
        device = Session(nullcontext(link), timeout_s=10)
        device.train(X, 1)
        with closing(ProcessLink([str(program)], what="the program")) as other:
            for take in ("write", "read_some"):
                setattr(link, take, getattr(other, take))
            with pytest.raises(DeviceReset, match="was reset"):
                device.train(X, 1)
            assert device.open().step == 0
            assert converse(device) == [0, 0, 0, 0]


@needs_host
def test_commands_of_the_device_itself(program: Path) -> None:
    with session.open_host(program) as device:
        facts = device.describe()
        assert (facts.board, facts.input_rows) == ("host", 0)
        sums = X.reshape(16, 4).sum(axis=0) + np.array([1, 2, 3, 4])
        best = int(sums.argmax())
        assert device.evaluate(X, best, new=True) == protocol.Evaluated(best, 1, 1, 0)
        assert device.evaluate(X, best + 1) == protocol.Evaluated(best, 2, 1, 0)
        assert device.evaluate(X, best, new=True) == protocol.Evaluated(best, 1, 1, 0)
        device.train(X, 1)
        device.reset()
        assert device.counters().step == 0 and device.read_state() == bytes([1, 2, 3, 4, 0, 0, 0, 0])
        for keep in (device.save, device.restore):
            with pytest.raises(DeviceError, match="not built in"):
                keep()
        assert device.infer(X).tolist() == sums.tolist()


# ---- numbers


def test_numbers_are_those_of_the_firmware() -> None:
    """Both sides write them down: commands, statuses, kinds of frames, and how keeping ended."""
    text = "".join((resources.path("firmware") / "src" / n).read_text() for n in ("exchange.h", "serve_parts.h", "store.h"))
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    found: dict[str, int] = {}
    for body in re.findall(r"enum \{(.*?)\};", text, flags=re.S):
        value = -1
        for part in filter(None, (p.strip() for p in body.split(","))):
            name, _, given = (p.strip() for p in part.partition("="))
            value = found.get(given, int(given) if given.isdigit() else 0) if given else value + 1
            found[name] = value
    for prefix, numbers in (("", Command), ("STATUS_", Status), ("KIND_", Kind), ("STORE_", Stored)):
        for number in numbers:
            assert found[prefix + number.name] == number, prefix + number.name
