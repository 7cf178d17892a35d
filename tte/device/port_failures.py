"""What it means that a port cannot be opened, or goes away: a sentence, and what to do."""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
from pathlib import Path

import serial
from serial.tools import list_ports

from tte.device.link import LinkLost
from tte.errors import DeviceError

_BUSY = (errno.EBUSY, errno.EAGAIN, errno.EWOULDBLOCK)
_NO_PORT = (errno.ENOTTY, errno.EINVAL, errno.EISDIR)


def of_serial(port: str, baud: int, error: Exception) -> DeviceError:
    """Why a serial port cannot be opened.

    Args:
        error: pyserial's; it hands on the system's number by attribute, or as text alone.
    """
    number, text = _number(error), str(error)
    missing = number in (errno.ENOENT, errno.ENODEV, errno.ENXIO) or "FileNotFoundError" in text
    if missing:
        return DeviceError("there is no such port", where=port, remedy=f"plug the board in; {_ports()}")
    if number in _BUSY or (sys.platform == "win32" and "PermissionError" in text):
        return DeviceError(
            "another program uses the port", where=port,
            remedy="end it: a terminal, another `tte device`, or a service that tries modems (ModemManager)",
        )  # fmt: skip
    if number in (errno.EACCES, errno.EPERM):
        group = _group(port)
        remedy = f"run `sudo usermod -aG {group} $USER` and log in again" if group != "root" else "a udev rule for your user"
        return DeviceError("you may not use the port", where=port, limit=f"it belongs to the group {group}", remedy=remedy)
    if "://" in port:
        return DeviceError(f"cannot be opened ({_plain(error)})", where=port, remedy="is the server running?")
    if number in _NO_PORT and not isinstance(error, ValueError):
        return DeviceError("is no serial port", where=port, remedy=_ports())
    if isinstance(error, ValueError) or "aud" in text:
        return DeviceError(f"the port has no speed of {baud} baud", where=port, remedy="another --baud")
    return DeviceError(f"cannot be opened ({_plain(error)})", where=port, remedy=_ports())


def of_socket(url: str, error: OSError) -> DeviceError:
    """Why there is no connection."""
    if isinstance(error, ConnectionRefusedError):
        return DeviceError("nobody listens there", where=url, remedy="start what passes the bytes on (Renode, ser2net)")
    if isinstance(error, socket.gaierror):
        return DeviceError("the host's name is not known", where=url, remedy="check the name, or write its address")
    if isinstance(error, TimeoutError):
        return DeviceError("the host does not answer", where=url, remedy="is it on, and reachable from here?")
    return DeviceError(f"no connection ({error.strerror or error})", where=url)


def lost(port: str, error: Exception) -> LinkLost:
    """The error for a port that went away."""
    return LinkLost(f"the line to the device is gone ({_plain(error)})", where=port, remedy="check cable and power")


def silent(port: str, seconds: float, heard: int, baud: int | None) -> DeviceError:
    """The error for a device that does not answer the first request.

    Args:
        heard: bytes that have come from it in this time.
        baud: the speed of a serial port; None where there is none.
    """
    if heard:
        what = f"sends {heard:,} bytes in {seconds:g} s, none of them an answer"
        remedy = "another --baud: that of the board's file (tte.link)" if baud else ""
    else:
        what = f"does not answer within {seconds:g} s"
        remedy = "reset the board; TX to RX, RX to TX, ground?" if baud else "reset the board"
    remedy = "; ".join(filter(None, (remedy, "is firmware of tte on it (`tte flash`)? if it is busy learning, wait")))
    return DeviceError(f"the device {what}", where=f"{port} at {baud} baud" if baud else port, remedy=remedy)


def _number(error: Exception) -> int | None:
    """The system's error number; where pyserial keeps it in its text only, from there."""
    number = getattr(error, "errno", None)
    if number is None:
        found = re.search(r"(?:\[Errno |\()(\d+)", str(error))
        number = int(found[1]) if found else None
    return number


def _plain(error: Exception) -> str:
    if "returned no data" in str(error):  # pyserial's, at the end of a line
        return "disconnected"
    number = _number(error) if not isinstance(error, ValueError) else None
    if isinstance(error, serial.SerialException) and number:
        return os.strerror(number)
    return getattr(error, "strerror", None) or str(error)


def _ports() -> str:
    found = [p.device for p in sorted(list_ports.comports())]
    return f"ports there are: {', '.join(found)}" if found else "no serial port is there now"


def _group(port: str) -> str:
    """The group that may use a port; Debian's where that cannot be told."""
    try:
        return Path(port).group()
    except (OSError, KeyError, NotImplementedError):
        return "dialout"
