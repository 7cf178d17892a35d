"""Byte streams to a device: what a session needs of one, and the one to a program that runs as a child process."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tte.errors import DeviceError

_STDERR_LIMIT = 8000  # characters of a program's messages that are kept
_EXIT_S = 10.0  # for a program that was asked to end


class LinkLost(DeviceError):
    """The line to a device is gone, or silent for too long; the device itself may still be there."""


class LinkSilent(LinkLost):
    """The line is there, and nothing comes or goes."""


class ByteLink(Protocol):
    """A byte stream to a device; it may lose and change bytes.

    Attributes:
        retry_s: how long to wait for an answer before a request is sent again.
        begun: how often the stream began anew; what was under way then is lost, in both directions.
    """

    retry_s: float
    begun: int

    def write(self, data: bytes, timeout_s: float) -> None:
        """Sends all of `data`; raises DeviceError if the device has gone, or nothing can be sent for `timeout_s` seconds."""

    def read_some(self, timeout_s: float) -> bytes:
        """What has come, at least a byte; nothing after `timeout_s` seconds. Raises DeviceError if the device has gone."""

    def failure(self, problem: str) -> DeviceError:
        """The error for a device that failed (`problem`, such as "did not answer"), with all the link knows; ends it."""

    def wait(self) -> int:
        """Waits for a device that was asked to end; gives its exit status. Raises DeviceError if it does not end."""


class ProcessLink:
    """A child process and two pipes, all without blocking: a process that dies, faults or hangs becomes a DeviceError.

    Args:
        command: the program.
        what: its name in messages.
        folder: its working directory.
        environment: its environment, instead of this process's.
        fifos: named pipes (to it, from it) that the program opens by itself, instead of its standard input and output.
        retry_s: how long to wait for an answer before a request is sent again; pipes lose nothing.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        what: str,
        folder: Path | None = None,
        fifos: tuple[Path, Path] | None = None,
        retry_s: float = 30.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.retry_s = retry_s
        self.begun = 0
        self._what = what
        self._messages = b""
        self._ended = False
        own: list[int] = []
        try:
            if fifos:
                # Opening may not wait for the other side, which may never come: a reader does not if it is not
                # blocking, and a writer does not if it opens for reading, too.
                own.append(os.open(fifos[0], os.O_RDWR | os.O_NONBLOCK))
                own.append(os.open(fifos[1], os.O_RDONLY | os.O_NONBLOCK))
            self._process = subprocess.Popen(
                command, cwd=folder, env=environment, start_new_session=True, stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL if fifos else subprocess.PIPE,
                stdout=subprocess.DEVNULL if fifos else subprocess.PIPE,
            )  # fmt: skip
        except OSError as error:
            for descriptor in own:
                os.close(descriptor)
            raise DeviceError(f"cannot start {what}: {error}") from None
        if not fifos:
            assert self._process.stdin and self._process.stdout
            own = [os.dup(self._process.stdin.fileno()), os.dup(self._process.stdout.fileno())]
            self._process.stdin.close()
            self._process.stdout.close()
        assert self._process.stderr
        own.append(os.dup(self._process.stderr.fileno()))
        self._process.stderr.close()
        self._to, self._from, self._errors = self._open = own
        for descriptor in own:
            os.set_blocking(descriptor, False)

    def write(self, data: bytes, timeout_s: float) -> None:
        """Sends all of `data`.

        Raises:
            DeviceError: the program ended, or took nothing for `timeout_s` seconds.
        """
        view = memoryview(data)
        while view:
            if not self._wait(writing=True, timeout_s=timeout_s):
                raise self.failure(f"took nothing for {timeout_s:g} s")
            try:
                view = view[os.write(self._to, view) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self.failure("ended") from None

    def read_some(self, timeout_s: float) -> bytes:
        """What has come, at least a byte; nothing after `timeout_s` seconds.

        Raises:
            DeviceError: the program ended.
        """
        limit = time.monotonic() + timeout_s
        while self._wait(writing=False, timeout_s=limit - time.monotonic()):
            try:
                part = os.read(self._from, 1 << 20)
            except BlockingIOError:
                continue
            if part:
                return part
            if self._process.poll() is not None:
                raise self.failure("ended")
            time.sleep(0.001)  # a named pipe that the program has not opened yet, or has just closed
        return b""

    def _wait(self, *, writing: bool, timeout_s: float) -> bool:
        """Whether the pipe may be ready within that time; collects what the program says meanwhile."""
        limit = time.monotonic() + timeout_s
        while True:
            readers = [] if writing else [self._from]
            if not self._ended:
                readers.append(self._errors)
            left = limit - time.monotonic()
            if left <= 0:
                return False
            ready = select.select(readers, [self._to] if writing else [], [], min(left, 0.5))
            if self._errors in ready[0]:
                self._collect_messages()
            if (self._to in ready[1] and not self._dead()) or self._from in ready[0]:
                return True
            # its last words on the pipe come first: dead only counts if nothing is left to read
            if self._dead() and (writing or not select.select([self._from], [], [], 0)[0]):
                raise self.failure("ended")

    def _dead(self) -> bool:
        return self._process.poll() is not None

    def _collect_messages(self) -> None:
        while not self._ended:
            try:
                part = os.read(self._errors, 65536)
            except BlockingIOError:
                return
            self._ended = not part
            self._messages = (self._messages + part)[-_STDERR_LIMIT:]

    def failure(self, problem: str) -> DeviceError:
        """Ends the program; the error tells how it ended and what it said."""
        if problem == "ended":
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_EXIT_S)
        status = self._process.poll()
        self._kill()
        self._collect_messages()
        said = self._messages.decode("utf-8", "replace").strip()
        if status is not None:
            how = f"by signal {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
            problem = f"{problem} {how}" if problem == "ended" else f"{problem} (it ended {how})"
        return DeviceError(f"{self._what} {problem}" + (f"; it said:\n{said}" if said else ""))

    def _kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    @property
    def exit_status(self) -> int | None:
        """The program's exit status, None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Waits for a program that was asked to end.

        Raises:
            DeviceError: it does not end.
        """
        try:
            return self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            raise self.failure("does not end") from None

    def close(self) -> None:
        """Ends the program if it still runs, and closes the pipes."""
        self._kill()
        for descriptor in self._open:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._open = []
