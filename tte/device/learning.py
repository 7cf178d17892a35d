"""What a host tells and asks a device about guard and replay (firmware/PROTOCOL.md): part of a `Session`."""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tte.device.exchange import Exchange
from tte.device.protocol import Command
from tte.errors import DeviceError

_SETTINGS = struct.Struct("<5I")
_COUNTS = struct.Struct("<6I2i8I")
_TOLD = struct.Struct("<7I")
_HELD_OUT = struct.Struct("<II")
_REMEMBERS, _RING, _NO_HELD_OUT, _NO_PAST, _GOES_BACK_TO_FLASH = 1, 2, 4, 8, 16
_PART_COUNTS, _PART_SETTINGS = 0, 1


@dataclass(frozen=True)
class Settings:
    """How a device learns beside its fresh samples; all off by default.

    Attributes:
        limit: how far the score on held-out samples may fall: right answers, or squared steps of the output.
        check_every: fresh samples between two checks; 0: none.
        replays: past samples learnt from behind each fresh one.
        remembers: fresh samples are remembered; `replays` above 0 does so, too.
        ring: the newest samples are held, instead of a choice balanced by class.
        save_every: fresh samples between two saves in flash; 0: none.
    """

    limit: int = 0
    check_every: int = 0
    replays: int = 0
    remembers: bool = False
    ring: bool = False
    save_every: int = 0


@dataclass(frozen=True)
class Status:
    """What a device has done since it was started, and what it holds.

    Attributes:
        samples, replayed: fresh and past samples learnt from.
        saves, failed_saves: of the device's own.
        held_out, room: samples to check on, and how many there may be.
        score: of the last check. best: the best mean of scores.
        checks, restores: how often it was checked, and learning taken back.
        factor: the guard's, on the learning rate: 32768 is one.
        places, past, offered: room for past samples; those that are held, and all that were offered.
        by_class: past samples by class; one number where the model learns from targets.
        replay_instructions, check_instructions: of the last past sample, and of the last check.
    """

    samples: int
    replayed: int
    saves: int
    failed_saves: int
    held_out: int
    room: int
    score: int
    best: float
    checks: int
    restores: int
    factor: int
    places: int
    past: int
    offered: int
    replay_instructions: int
    check_instructions: int
    by_class: tuple[int, ...]


class Learning:
    """Methods of a session; DeviceError where the program was built without guard and replay."""

    _exchange: Exchange

    def hold_out(self, x: NDArray[np.int8], label: int | None = None, target: NDArray[np.int8] | None = None) -> int:
        """Holds a sample on the device to check on, and gives how many it holds; it is not learnt from.

        Raises:
            DeviceError: also if there is no more room, or the label is out of range.
        """
        data = b"" if target is None else np.ascontiguousarray(target, np.int8).tobytes()
        data += np.ascontiguousarray(x, np.int8).tobytes()
        answer = self._exchange.ask(Command.HOLD_OUT, (label or 0).to_bytes(4, "little", signed=True), data)
        return int(_unpacked(_HELD_OUT, answer)[0])

    def set_learner(self, settings: Settings, *, clear_held_out: bool = False, clear_past: bool = False) -> None:
        """Sets how the device learns from the next sample on; it may forget what it holds."""
        s = settings
        flags = s.remembers * _REMEMBERS | s.ring * _RING | clear_held_out * _NO_HELD_OUT | clear_past * _NO_PAST
        words = (s.limit, s.check_every, s.replays, flags, s.save_every)
        self._exchange.ask(Command.SET_LEARNER, _SETTINGS.pack(*words))

    def learner(self) -> Status:
        """What guard and replay have done and hold."""
        answer = self._exchange.ask(Command.LEARNER, _PART_COUNTS.to_bytes(4, "little"))
        head = _unpacked(_COUNTS, answer[: _COUNTS.size])
        names = [f.name for f in fields(Status)][: len(head)]
        if len(answer) % 2:
            raise DeviceError(f"an answer of {len(answer)} bytes, which are no 16-bit numbers")
        held = np.frombuffer(answer[_COUNTS.size :], "<u2")
        known: dict[str, Any] = dict(zip(names, head, strict=True)) | {"best": head[names.index("best")] / 256}
        return Status(**known, by_class=tuple(int(n) for n in held))

    def learner_settings(self) -> Settings:
        """As `set_learner` has set them."""
        limit, check_every, replays, flags, save_every = self._told()[:5]
        return Settings(limit, check_every, replays, bool(flags & _REMEMBERS), bool(flags & _RING), save_every)

    def goes_back_to_flash(self) -> bool:
        """Whether the guard goes back to the state that the device saved last, instead of a copy in RAM."""
        return bool(self._told()[3] & _GOES_BACK_TO_FLASH)

    def past_digest(self) -> tuple[int, int]:
        """Bytes of a past sample (latent and target), and a CRC-32 of labels (u16) and samples in the order of places."""
        size, digest = self._told()[5:]
        return size, digest

    def _told(self) -> tuple[int, ...]:
        return _unpacked(_TOLD, self._exchange.ask(Command.LEARNER, _PART_SETTINGS.to_bytes(4, "little")))


def _unpacked(form: struct.Struct, answer: bytes) -> tuple[int, ...]:
    if len(answer) != form.size:
        raise DeviceError(f"an answer of {len(answer)} bytes instead of {form.size}")
    return form.unpack(answer)
