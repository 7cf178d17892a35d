"""Frames on a byte stream, twin of firmware/src/frame.c: head, payload and CRC-32, byte-stuffed by COBS, a zero behind.

COBS: S. Cheshire, M. Baker, "Consistent Overhead Byte Stuffing", IEEE/ACM Transactions on Networking 7(2), 1999.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

VERSION = 2
HEAD = struct.Struct("<BBBxIIII")
_CRC = struct.Struct("<I")
#: No device sends larger payloads.
PAYLOAD_LIMIT = 65536
_WIRE_LIMIT = (HEAD.size + PAYLOAD_LIMIT + _CRC.size) * 255 // 254 + 2


@dataclass(frozen=True)
class Frame:
    """One frame; every number is unsigned.

    Attributes:
        kind, code: 8 bits; what it is, and the command or status.
        session, sequence: 32 bits; of the request that it belongs to.
        offset, total: 32 bits; where the payload lies in what is sent, and that one's size.
        version: of the protocol, 8 bits.
    """

    kind: int
    code: int
    session: int
    sequence: int
    offset: int
    total: int
    payload: bytes = b""
    version: int = VERSION


def encode(frame: Frame) -> bytes:
    """The bytes on the wire."""
    head = HEAD.pack(
        frame.version, frame.kind, frame.code, frame.session, frame.sequence, frame.offset, frame.total
    )  # fmt: skip
    raw = head + frame.payload
    return stuff(raw + _CRC.pack(zlib.crc32(raw))) + b"\0"


def decode(stuffed: bytes) -> Frame | None:
    """The frame between two zeros; None if it is damaged."""
    raw = unstuff(stuffed)
    if raw is None or len(raw) < HEAD.size + _CRC.size:
        return None
    body = raw[: -_CRC.size]
    if zlib.crc32(body) != _CRC.unpack_from(raw, len(body))[0]:
        return None
    version, kind, code, session, sequence, offset, total = HEAD.unpack_from(body)
    return Frame(kind, code, session, sequence, offset, total, body[HEAD.size :], version)


def stuff(raw: bytes) -> bytes:
    """COBS: as many bytes and a few more, none of them zero."""
    out = bytearray()
    parts = raw.split(b"\0")
    last = len(parts) - 1
    for i, part in enumerate(parts):
        at = 0
        while len(part) - at >= 254:
            out.append(255)
            out += part[at : at + 254]
            at += 254
        if i < last or at < len(part) or at == 0:
            out.append(len(part) - at + 1)
            out += part[at:]
    return bytes(out)


def unstuff(stuffed: bytes) -> bytes | None:
    """What `stuff` made of it; None if it made this of nothing."""
    out = bytearray()
    at, end = 0, len(stuffed)
    while at < end:
        code = stuffed[at]
        if code == 0 or at + code > end:
            return None
        out += stuffed[at + 1 : at + code]
        at += code
        if code < 255 and at < end:
            out.append(0)
    return bytes(out)


class Reader:
    """Turns received bytes into frames; keeps no more than one frame of those that are not complete.

    Attributes:
        damaged: how many frames were refused.
    """

    def __init__(self) -> None:
        self.damaged = 0
        self._rest = b""
        self._skipping = False

    def begin(self) -> None:
        """Drops what is there of a frame: the rest of it will not come."""
        self._rest, self._skipping = b"", False

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes."""
        *whole, self._rest = (self._rest + data).split(b"\0")
        frames = []
        for part in whole:
            if self._skipping:
                self._skipping = False
            elif part:
                frame = decode(part)
                if frame:
                    frames.append(frame)
                else:
                    self.damaged += 1
        if len(self._rest) > _WIRE_LIMIT:
            self.damaged += not self._skipping
            self._rest, self._skipping = b"", True
        return frames
