"""A board on a desk: the program of this computer behind a pseudo terminal or a TCP socket, with a cable and a reset button."""

from __future__ import annotations

import os
import pty
import random
import select
import socket
import subprocess
import threading
import time
import tty
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tte.device import frame as frames
from tte.device import protocol
from tte.device.frame import Frame
from tte.device.protocol import Command, Kind

CUT, RESET, UNPLUG, DAMAGE, INTRUDE, PULL = "cut", "reset", "unplug", "damage", "intrude", "pull"
Accident = tuple[int, str]


class Desk:
    """Runs a program and passes its bytes on; things go wrong after so many bytes in either direction.

    Args:
        kind: "pty" or "socket".
        flash: the file of its flash memory; None: none.
        accidents: (bytes passed since the one before, what happens): CUT: the cable is pulled and put in again, RESET: the
            board's reset button, UNPLUG: both, as a board that is powered by its cable, DAMAGE: that byte is changed,
            INTRUDE: another host opens a session of its own, PULL: the cable is pulled, for good.
        rate: probability of each frame, in both directions, to be lost, damaged, doubled, or to come late; of each as much.

    Attributes:
        port: its name for `tte device --port`.
        passed: bytes in both directions.
        happened: accidents so far.
        armed: accidents may happen now.
    """

    def __init__(
        self, program: Path, folder: Path, kind: str = "pty", *, flash: Path | None = None,
        accidents: Sequence[Accident] = (), rate: float = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        self._command, self._flash, self._kind = [str(program)], flash, kind
        self._link = folder / "port"
        self._accidents = list(accidents)
        self._rate, self._draw = rate, random.Random(seed)
        self._rest, self._late = {True: b"", False: b""}, {True: b"", False: b""}
        self.passed = self.happened = 0
        self.armed = True
        self._since = 0
        self._pressed = False
        self._stop, self._wake = os.pipe()
        self._slave = self._line = -1
        self._listener: socket.socket | None = None
        if kind == "socket":
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.port = f"socket://127.0.0.1:{self._listener.getsockname()[1]}"
        else:
            self.port = str(self._link)
            self._plug_in()
        self._start()
        self._thread = threading.Thread(target=self._pass_on, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._wake)
        self._thread.join(20)
        self._pull_out()
        self._end()
        if self._listener:
            self._listener.close()
        os.close(self._stop)

    def _start(self) -> None:
        environment = {**os.environ, **({"TTE_FLASH": str(self._flash)} if self._flash else {})}
        environment["ASAN_OPTIONS"] = "detect_leaks=0"
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        assert self._process.stdin and self._process.stdout
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()

    def _plug_in(self) -> None:
        self._line, self._slave = pty.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._line, False)
        new = self._link.with_suffix(".new")
        new.symlink_to(os.ttyname(self._slave))
        new.replace(self._link)

    def _pull_out(self) -> None:
        for descriptor in (self._line, self._slave):
            if descriptor >= 0:
                os.close(descriptor)
        self._line = self._slave = -1

    def _happen(self, what: str) -> None:
        self.happened += 1
        if what in (RESET, UNPLUG):
            self._end()
            self._start()
        if what == INTRUDE:
            self.intrude()
        if what == PULL:
            self._link.unlink()
        if what in (CUT, UNPLUG, PULL):
            self._pull_out()
            if not self._listener and what != PULL:
                self._plug_in()

    def swap_at_reset(self, program: Path) -> None:
        """From the next reset on the board runs another program."""
        self._command = [str(program)]

    def intrude(self) -> None:
        """Another program opens a session with the board."""
        other = Frame(Kind.REQUEST, Command.OPEN, 77, 0, 0, 0, protocol.request(0, b""))
        os.write(self._to, b"\0" + frames.encode(other))

    def button(self) -> None:
        """Resets the board, while nobody talks to it."""
        self._pressed = True
        os.write(self._wake, b"x")
        while self._pressed:
            time.sleep(0.001)

    def _pass_on(self) -> None:
        while True:
            listener = [self._listener.fileno()] if self._listener else []
            lines = [self._line] if self._line >= 0 else []
            ready = select.select([self._stop, self._from, *lines, *listener], [], [])[0]
            if self._stop in ready:
                if not os.read(self._stop, 1):
                    return
                self._happen(RESET)
                self._pressed = False
                continue
            if listener and listener[0] in ready:
                assert self._listener
                self._pull_out()
                self._line = self._listener.accept()[0].detach()
                os.set_blocking(self._line, False)
                continue
            for source in (self._line, self._from):
                if source in ready and self._move(source):
                    break

    def _move(self, source: int) -> bool:
        """Whether an accident happened meanwhile."""
        try:
            data = os.read(source, 4096)
        except OSError:
            data = b""
        if not data and source == self._line:
            if self._listener:
                self._pull_out()
            return True
        damage = -1
        if self.armed and self._accidents and self._since + len(data) >= self._accidents[0][0]:
            before, what = self._accidents[0]
            at = max(0, before - self._since)
            if what == DAMAGE and at < len(data):
                del self._accidents[0]
                self._since, damage = -at - 1, at
                data = data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]
            elif what != DAMAGE:
                self._put(source, data[:at])
                del self._accidents[0]
                self._since = 0
                self._happen(what)
                return True
        self.happened += damage >= 0
        self._since += len(data) * self.armed
        self._put(source, data)
        return False

    def _badly(self, data: bytes, way: bool) -> bytes:
        """What a bad line makes of it; the last frame waits until it is complete."""
        *whole, self._rest[way] = (self._rest[way] + data).split(b"\0")
        passed = b""
        for frame in (part + b"\0" for part in whole):
            luck = self._draw.random() / self._rate
            if luck < 1 or 3 <= luck < 4:
                self._late[way] = b"" if luck < 1 else frame
                continue
            if luck < 2:
                at = self._draw.randrange(len(frame))
                frame = frame[:at] + bytes([frame[at] ^ self._draw.randint(1, 255)]) + frame[at + 1 :]
            passed += frame * (2 if 2 <= luck < 3 else 1) + self._late[way]
            self._late[way] = b""
        return passed

    def _put(self, source: int, data: bytes) -> None:
        if self._rate:
            data = self._badly(data, source == self._line)
        self.passed += len(data)
        to = self._to if source == self._line else self._line
        while data and to >= 0:
            try:
                data = data[os.write(to, data) :]
            except BlockingIOError:
                if not select.select([], [to], [], 0.2)[1]:
                    return  # nobody reads
            except OSError:
                return


class Talker:
    """A server that answers whatever comes with the same bytes."""

    def __init__(self, says: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = f"socket://127.0.0.1:{self._listener.getsockname()[1]}"
        self._says = says
        threading.Thread(target=self._talk, daemon=True).start()

    def _talk(self) -> None:
        with self._listener, self._listener.accept()[0] as line:
            while line.recv(4096):
                line.sendall(self._says)
