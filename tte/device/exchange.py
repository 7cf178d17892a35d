"""Requests and answers over a byte stream that may lose, double, reorder or damage frames: firmware/PROTOCOL.md.

Twin of firmware/src/exchange.c. All timeouts are here: the device only ever responds. A request keeps its sequence number
however often it is sent, and the device executes it once.
"""

from __future__ import annotations

import secrets
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import replace

from tte.device import frame as frames
from tte.device import protocol
from tte.device.frame import Frame, Reader
from tte.device.link import ByteLink
from tte.device.protocol import Command, Kind, Opened, Part, Status, TraceStep
from tte.errors import DeviceError

#: Bytes of answer that the device may send at once: what a lost frame may cost, and less than a pipe holds.
WINDOW = 32768
_ANSWER_LIMIT = 1 << 28  # no device has as much memory
_PATIENCE = 10.0  # a request is repeated more and more seldom, at last every so many seconds (or each `retry_s`)
_REMEMBERED, _ENOUGH, _LEAST_S = 256, 16, 0.05  # waits for a frame from which the next is foretold; how short that may be, in s

_REFUSALS = {
    Status.BAD_REQUEST: "is the firmware on it the one that was built for this model?",
    Status.NOT_BUILT_IN: "build the firmware with what the command needs",
    Status.NO_STATE: "write the state again, restore what was saved, or reset",
    Status.OTHER_MODEL: "the state must come from this very build",
    Status.REFUSED: "there is no more room for it, or its label is none of the model's",
}


_PARTS = {Command.SAVE: "keep", Command.RESTORE: "keep", Command.HOLD_OUT: "guard"}


class DeviceReset(DeviceError):
    """The device was reset during the session, or another host has opened one: what it learnt since may be lost."""


def describe_request() -> bytes:
    """The bytes that open a session and ask a device to describe itself, for who only watches what comes back."""
    opening = Frame(Kind.REQUEST, Command.OPEN, 1, 0, 0, 0, protocol.request(WINDOW, b""))
    return frames.encode(opening) + frames.encode(replace(opening, code=Command.DESCRIBE, sequence=1))


class Refused(DeviceError):
    """The device does not do what it was asked for, and goes on: it was not built in, or there is no state or room for it."""


class Exchange:
    """One session with a device. Every error but a refusal of the device ends it.

    Args:
        link: the byte stream.
        timeout_s: how long the device may be silent, in seconds.

    Attributes:
        opened: what the device said of itself when the session was opened; None before the first request.
        parts: the PROFILE messages of the last request.
        lost: the session is over.
        retries: how often a request was sent again.
        heard: bytes that have come from the device, of any kind.
    """

    def __init__(self, link: ByteLink, timeout_s: float) -> None:
        self.opened: Opened | None = None
        self.parts: list[Part] = []
        self.lost = False
        self.retries = self.heard = 0
        self._link, self._timeout_s = link, timeout_s
        self._reader = Reader()
        self._session = self._sequence = 0
        self._stage = (Command.OPEN, "working")  # of a request: "sending" its data, the device "working", or "answering"
        self._goes_on = False  # the last frame has brought the request further
        self._waits: dict[tuple[Command, str], deque[float]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))

    def open(self, timeout_s: float | None = None) -> Opened:
        """Opens a new session, whatever was before.

        Args:
            timeout_s: how long the device may be silent this time, in seconds.

        Raises:
            DeviceError: the device does not answer, or speaks another version.
        """
        self._session, self._sequence = secrets.randbelow(2**32 - 1) + 1, 0
        usual = self._timeout_s
        try:
            self._timeout_s = usual if timeout_s is None else timeout_s
            self.opened = protocol.parse_opened(self._run(Command.OPEN, b"", b"", None))
        finally:
            self._timeout_s = usual
        return self.opened

    def ask(
        self,
        command: Command,
        arguments: bytes = b"",
        data: bytes = b"",
        on_trace: Callable[[TraceStep], None] | None = None,
    ) -> bytes:
        """The answer to one request, which the device executes once.

        Raises:
            DeviceReset: the device has forgotten the session.
            DeviceError: it refuses, is silent, has ended, or makes no sense.
        """
        if self.lost:
            raise DeviceError("the conversation with the device is over")
        if self.opened is None:
            self.open()
        return self._run(command, arguments, data, on_trace)

    def _run(
        self, command: Command, arguments: bytes, data: bytes, on_trace: Callable[[TraceStep], None] | None
    ) -> bytes:
        self._sequence = (self._sequence + 1) % 2**32
        self.parts = []
        self.lost = True  # until the whole answer is here
        damaged = self._reader.damaged
        answer, trace = bytearray(), bytearray()
        granted = asked_at = 0

        def poll() -> bytes:
            nonlocal granted
            granted = len(answer) + WINDOW
            return self._frame(Kind.REQUEST, command, len(answer), len(data), protocol.request(WINDOW, arguments))

        credit = self.opened.credit if self.opened else 0
        sent = credit
        first = poll() + self._data(data, 0, credit)
        self._stage = (command, "sending" if credit < len(data) else "working")
        for frame in self._frames(first, poll):
            self._goes_on = frame.kind in (Kind.PROFILE, Kind.TRACE)
            if frame.kind == Kind.WANT:
                self._goes_on, sent = frame.offset + frame.total > sent, max(sent, frame.offset + frame.total)
                self._write(self._data(data, frame.offset, frame.total))
                self._stage = (command, "sending" if frame.offset + frame.total < len(data) else "working")
            elif frame.kind == Kind.PROFILE:
                self.parts.append(protocol.parse_part(frame.payload))
            elif frame.kind == Kind.TRACE:
                if frame.offset != len(trace):
                    raise DeviceError("a part of a trace was lost on the way from the device")
                trace += frame.payload
                if len(trace) == frame.total:
                    if on_trace:
                        on_trace(protocol.parse_trace(bytes(trace)))
                    trace.clear()
            elif frame.kind == Kind.ANSWER:
                self._check(frame, command, len(data))
                if frame.offset == len(answer):
                    answer += frame.payload
                    self._goes_on = len(frame.payload) > 0
                    self._stage = (command, "answering")
                    if len(answer) >= frame.total:
                        break
                    if len(answer) < granted:
                        continue
                elif frame.offset < len(answer) or asked_at == len(answer) + 1:
                    continue
                asked_at = len(answer) + 1
                self._write(poll())
        if self.parts and self._reader.damaged != damaged:
            raise DeviceError("a count of instructions was damaged on the way from the device")
        self.lost = False
        return bytes(answer)

    def _check(self, frame: Frame, command: Command, data_bytes: int) -> None:
        """Raises DeviceError unless the answer is one."""
        if frame.version != frames.VERSION:
            raise DeviceError(
                f"the device speaks version {frame.version} of the protocol, tte version {frames.VERSION}",
                remedy="build and load the firmware again",
            )
        if frame.code in (Status.NO_SESSION, Status.BAD_SEQUENCE):
            raise DeviceReset("the device was reset, or another program has opened a session with it")
        if frame.code in _REFUSALS:
            self.lost = False
            status = Status(frame.code)
            reason = "" if status is Status.BAD_REQUEST else f" ({status.name.lower().replace('_', ' ')})"
            remedy = _REFUSALS[status]
            if status is Status.NOT_BUILT_IN and command in _PARTS:
                remedy = f"build and flash it with `tte build --{_PARTS[command]}`"
            raise Refused(
                f"the device refuses {command.name.lower()} with {data_bytes} bytes{reason}", remedy=remedy
            )
        if frame.code != Status.OK or frame.total > _ANSWER_LIMIT:
            raise DeviceError(f"the device answered with the unknown status {frame.code}, {frame.total} bytes")

    def _retry_s(self) -> float:
        """How long to wait for a frame before a request is sent again: twice the longest of the last waits at this stage. Only
        where frames get lost; a pipe's `retry_s` is longer than any wait."""
        waits, most = self._waits[self._stage], self._link.retry_s
        if most > _PATIENCE or len(waits) < _ENOUGH:
            return most
        return min(most, max(_LEAST_S, 2 * max(waits)))

    def _frames(self, first: bytes, poll: Callable[[], bytes]) -> Iterator[Frame]:
        """The device's frames that belong to this request; sends `first`, and `poll` whenever it is silent for long."""
        begun = self._link.begun
        # the zero ends what noise or an earlier host may have begun
        self._write(b"\0" + first)
        stage, retry, is_first = self._stage, self._retry_s(), True
        heard = asked = time.monotonic()
        while True:
            now = time.monotonic()
            if self._link.begun != begun:
                begun, heard, asked, retry = self._link.begun, now, now - retry, self._retry_s()
                self._reader.begin()
            if now >= heard + self._timeout_s:
                raise self._link.failure(f"did not answer within {self._timeout_s:g} s")
            if now >= asked + retry:
                self.retries += 1
                self._write(b"\0" + poll())
                asked, retry, is_first = now, min(2 * retry, max(_PATIENCE, self._link.retry_s)), False
            wait = max(0.001, min(asked + retry, heard + self._timeout_s) - now)
            some = self._link.read_some(wait)
            self.heard += len(some)
            for frame in self._reader.feed(some):
                if frame.kind == Kind.FAULT:
                    raise DeviceError(f"the device stopped: {protocol.text(frame.payload).strip()}")
                # Kinds below ANSWER are what a host sends: the line gives back what it is sent.
                if frame.kind >= Kind.ANSWER and (frame.session, frame.sequence) == (self._session, self._sequence):
                    if is_first:  # else nobody knows which of the requests it answers (P. Karn, C. Partridge, SIGCOMM 1987)
                        self._waits[stage].append(time.monotonic() - asked)
                    self._goes_on = False
                    yield frame
                    asked = time.monotonic()
                    heard = asked if self._goes_on else heard
                    stage, retry, is_first = self._stage, self._retry_s(), True

    def _data(self, data: bytes, offset: int, count: int) -> bytes:
        """`count` bytes of the request's data from `offset` on, or as many as there are, in frames."""
        largest = self.opened.frame_bytes if self.opened else 0
        end = min(offset + count, len(data))
        return b"".join(
            self._frame(Kind.DATA, 0, at, len(data), data[at : min(at + largest, end)])
            for at in range(offset, end, largest or 1)
        )

    def _frame(self, kind: Kind, code: int, offset: int, total: int, payload: bytes) -> bytes:
        return frames.encode(Frame(kind, code, self._session, self._sequence, offset, total, payload))

    def _write(self, data: bytes) -> None:
        self._link.write(data, self._timeout_s)
