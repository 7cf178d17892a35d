"""Links to devices that are there already: a serial port, a TCP socket; and one that comes again after it was lost."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import serial

from tte.device import port_failures
from tte.device.link import LinkLost, LinkSilent
from tte.errors import DeviceError

DEFAULT_BAUD = 115200
_SOCKET = "socket://"
_CONNECT_S = 5.0
_NOTICE_S = 0.02  # how soon what arrives at a serial port is noticed at the latest
_AGAIN_S = 0.25  # between attempts to open a port that was lost
_UNSENT = 4096  # bytes that a system may still hold when it says that all is written
_BITS = 10  # of a byte on the line: start, eight, stop
_ANSWER_S = 0.1  # for what is no more than computed at once; to ask too early costs a frame
_SILENT = "longer: --reconnect SECONDS; of a long step with many past samples, fewer --replay-steps; else check cable and power"
_FAR_S = 0.5  # to ask again over a network, where the speed behind it is unknown
#: A peer that vanished without a word is an error after some 25 s: idle time, seconds between probes, probes.
_ALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 25_000))


class SerialLink:
    """A serial port, by pyserial: a real one, one behind USB, or another of pyserial's URLs (`rfc2217://host:port`).

    Args:
        port: `/dev/ttyACM0`, `COM3`, or a URL.
        baud: bits a second; a port that is none but USB does not mind.

    Raises:
        DeviceError: it cannot be opened: it is missing, busy, not permitted, no serial port, or has not that speed.
    """

    def __init__(self, port: str, baud: int = DEFAULT_BAUD) -> None:
        self.begun = 0
        self.retry_s = _ANSWER_S + _UNSENT * _BITS / baud
        self._name = port
        own = {} if "://" in port else {"exclusive": True}
        try:
            self._port = serial.serial_for_url(port, baud, timeout=_NOTICE_S, **own)
        except (serial.SerialException, OSError, ValueError) as error:
            raise port_failures.of_serial(port, baud, error) from None

    def write(self, data: bytes, timeout_s: float) -> None:
        """As `ByteLink`; raises LinkLost."""
        try:
            self._port.write_timeout = timeout_s
            self._port.write(data)
        except serial.SerialTimeoutException:
            raise self.failure(f"took nothing for {timeout_s:g} s") from None
        except (serial.SerialException, OSError, TypeError) as error:  # TypeError: pyserial's, closed within
            raise port_failures.lost(self._name, error) from None

    def read_some(self, timeout_s: float) -> bytes:
        """As `ByteLink`; raises LinkLost."""
        limit = time.monotonic() + timeout_s
        try:
            while True:
                some = bytes(self._port.read(1))
                if some:
                    return some + bytes(self._port.read(self._port.in_waiting))
                if time.monotonic() >= limit:
                    return b""
        except (serial.SerialException, OSError, TypeError) as error:
            raise port_failures.lost(self._name, error) from None

    def failure(self, problem: str) -> DeviceError:
        """As `ByteLink`; a LinkSilent."""
        return LinkSilent(f"the device {problem}", where=self._name, remedy=_SILENT)

    def wait(self) -> int:
        """Nothing to wait for: 0."""
        return 0

    def close(self) -> None:
        """Closes the port."""
        with contextlib.suppress(serial.SerialException, OSError):
            self._port.close()


class SocketLink:
    """A TCP connection to whatever passes bytes to a device: Renode's or ser2net's serial port.

    Args:
        url: `socket://host:port`.

    Raises:
        DeviceError: another URL; nobody is there.
    """

    def __init__(self, url: str) -> None:
        self.begun, self.retry_s, self._name = 0, _FAR_S, url
        try:
            parts = urlsplit(url)
            place = (parts.hostname or "", parts.port or 0)
        except ValueError:
            place = ("", 0)
        if not all(place) or parts.path or parts.query:
            raise DeviceError("is no address of a TCP port", where=url, remedy="write it as socket://localhost:3456")
        try:
            self._socket = socket.create_connection(place, timeout=_CONNECT_S)
        except OSError as error:
            raise port_failures.of_socket(url, error) from None
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _ALIVE:
            if hasattr(socket, name):
                self._socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def write(self, data: bytes, timeout_s: float) -> None:
        """As `ByteLink`; raises LinkLost."""
        view = memoryview(data)
        while view:
            if not select.select([], [self._socket], [], timeout_s)[1]:
                raise self.failure(f"took nothing for {timeout_s:g} s")
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise port_failures.lost(self._name, error) from None

    def read_some(self, timeout_s: float) -> bytes:
        """As `ByteLink`; raises LinkLost."""
        if not select.select([self._socket], [], [], max(0.0, timeout_s))[0]:
            return b""
        try:
            some = self._socket.recv(1 << 16)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise port_failures.lost(self._name, error) from None
        if not some:
            raise port_failures.lost(self._name, OSError(errno.EPIPE, "the other side closed the connection"))
        return some

    def failure(self, problem: str) -> DeviceError:
        """As `ByteLink`; a LinkSilent."""
        return LinkSilent(f"the device {problem}", where=self._name, remedy=_SILENT)

    def wait(self) -> int:
        """Nothing to wait for: 0."""
        return 0

    def close(self) -> None:
        """Closes the connection."""
        self._socket.close()


class ReopeningLink:
    """A link that is opened again when it was lost, as after a cable was pulled; the request under way is then repeated.

    Args:
        open_link: opens the link; its DeviceError means "not yet", but for the first time.
        patience_s: how long to try, in seconds, before something came from the device again. 0: not at all.
        say: told when the link is lost, and when it is there again.

    Attributes:
        begun: how often it was opened again.

    Raises:
        DeviceError: as `open_link`.
    """

    def __init__(
        self, open_link: Callable[[], SerialLink | SocketLink], patience_s: float, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self._open, self._patience_s, self._say = open_link, patience_s, say
        self._link: SerialLink | SocketLink = open_link()
        self.begun, self.retry_s = 0, self._link.retry_s
        self._until: float | None = None  # to try again, after it was lost and while nothing has come

    def write(self, data: bytes, timeout_s: float) -> None:
        """As `ByteLink`; what is lost with the link is lost."""
        try:
            self._link.write(data, timeout_s)
        except LinkLost as error:
            self._again(error)

    def read_some(self, timeout_s: float) -> bytes:
        """As `ByteLink`; nothing when the link was opened again."""
        try:
            some = self._link.read_some(timeout_s)
        except LinkLost as error:
            self._again(error)
            return b""
        if some:
            self._until = None
        return some

    def _again(self, lost: LinkLost) -> None:
        self._link.close()
        if self._patience_s <= 0:
            raise lost
        if self._until is None:
            self._say(f"{lost}\n  trying again for {self._patience_s:g} s")
            self._until = time.monotonic() + self._patience_s
        while True:
            time.sleep(_AGAIN_S)
            try:
                self._link = self._open()
            except DeviceError as error:
                lost = LinkLost(error.what, where=error.where, limit=error.limit, remedy=error.remedy)
            else:
                self.begun += 1
                self._say("the line is there again")
                return
            if time.monotonic() >= self._until:
                lost.limit = f"{self._patience_s:g} s of trying (--reconnect)"
                raise lost

    def failure(self, problem: str) -> DeviceError:
        """As `ByteLink`; a LinkLost."""
        return self._link.failure(problem)

    def wait(self) -> int:
        """Nothing to wait for: 0."""
        return 0

    def close(self) -> None:
        """Closes the link."""
        self._link.close()


def open_port(name: str, baud: int = DEFAULT_BAUD) -> SerialLink | SocketLink:
    """The link of a port's name.

    Args:
        name: `/dev/ttyACM0`, `COM3`, `socket://host:port`, or another of pyserial's URLs.

    Raises:
        DeviceError: it cannot be opened.
    """
    return SocketLink(name) if name.startswith(_SOCKET) else SerialLink(name, baud)
