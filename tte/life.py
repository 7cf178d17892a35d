"""What a device does beside learning: it keeps, guards, remembers, learns in slices. Each part is left out where not wanted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

PLACES = ("ram", "external", "flash")
"""Where past samples may lie, in the order of the firmware's TTE_REPLAY_PLACE."""
GUARDS = ("ram", "flash")
"""Where the state lies to which the guard goes back: a copy in RAM, or what was saved last."""
_GUARD_ROOM, _REPLAY_ROOM = 304, 430  # bytes of variables and stack, beside what is held
_LABEL_BYTES = 2  # of a sample that is held: its class
_RECORD_BYTES = 2  # of a past sample in flash: where it is
_CLASS_BYTES = 7  # of a class, in replay.c's tables
_KEEP_ROOM = 576  # bytes: firmware/src/store.h's `store`, and on the RP2040 the driver's code


@dataclass(frozen=True)
class Life:
    """Parts of a program beside the training step; all off by default.

    Attributes:
        keep: trained state can be saved in the board's own flash, and is found there after a reset.
        resumable: a step can be done in slices of a budget of instructions.
        guard: held-out samples that the device can hold, to check what it learns; 0: no guard.
        guard_in: where the state lies to which it goes back, one of GUARDS.
        replay: bytes for what past samples are at the frozen cut; 0: none are remembered.
        replay_in: where those bytes lie, one of PLACES.
    """

    keep: bool = False
    resumable: bool = False
    guard: int = 0
    guard_in: str = "ram"
    replay: int = 0
    replay_in: str = "ram"

    @property
    def latent(self) -> bool:
        """Whether samples are held as they are at the frozen cut."""
        return self.guard > 0 or self.replay > 0

    @property
    def past_in_flash(self) -> int:
        """Bytes of the flash that keeps trained state which are for past samples."""
        return self.replay if self.replay_in == "flash" else 0

    def room_bytes(self, sample: int, state: int, classes: int) -> int:
        """RAM to leave for these parts where RAM is shared out.

        Args:
            sample: bytes of a sample at the frozen cut, with its target if it has one.
            state: bytes of trained state.
            classes: by which past samples are balanced; 1 for samples with a target.
        """
        room = _KEEP_ROOM if self.keep else 0
        if self.guard:
            room += _GUARD_ROOM + self.guard * (sample + _LABEL_BYTES) + (state if self.guard_in == "ram" else 0)
        if self.replay:
            places, in_flash = self.replay // sample, self.replay_in == "flash"
            room += _REPLAY_ROOM + _CLASS_BYTES * classes + (self.replay if self.replay_in == "ram" else sample)
            room += places * (_LABEL_BYTES + _RECORD_BYTES * in_flash)
        return room

    @property
    def words(self) -> str:
        """These parts as the options of `tte build`; "" for none."""
        words = [f"--{name}" for name in ("keep", "resumable") if getattr(self, name)]
        if self.guard:
            words += [f"--guard {self.guard}", *([f"--guard-in {self.guard_in}"] if self.guard_in != GUARDS[0] else [])]
        if self.replay:
            words += [f"--replay {self.replay}", *([f"--replay-in {self.replay_in}"] if self.replay_in != PLACES[0] else [])]
        return " ".join(words)

    @property
    def macros(self) -> tuple[str, ...]:
        """The compiler's flags that build these parts into the firmware."""
        flags = []
        if self.keep:
            flags.append("-DTTE_KEEP=1")
        if self.guard:
            flags.append(f"-DTTE_GUARD_SAMPLES={self.guard}")
            flags += ["-DTTE_GUARD_IN_FLASH=1"] if self.guard_in == "flash" else []
        if self.replay:
            flags += [f"-DTTE_REPLAY_BYTES={self.replay}", f"-DTTE_REPLAY_PLACE={PLACES.index(self.replay_in)}"]
        return tuple(flags)

    @property
    def sources(self) -> tuple[str, ...]:
        """The firmware's C files for these parts, but for those that keep state in flash (`tte.keeping`)."""
        names = ["serve_life.c", "learner.c"] if self.latent else []
        names += ["guard.c"] if self.guard else []
        if self.replay:
            names += ["replay.c", "replay_flash.c" if self.replay_in == "flash" else "replay_ram.c"]
        return tuple(names)

    @property
    def headers(self) -> tuple[str, ...]:
        """The headers of these files."""
        return ("learner.h", "guard.h", "replay.h", "replay_storage.h", "draw.h") if self.latent else ()

    def text(self) -> str:
        """One line that `parse` reads back."""
        return json.dumps(asdict(self))


def parse(text: str) -> Life:
    """The parts that `Life.text` wrote.

    Raises:
        ValueError: another text.
    """
    return from_facts(json.loads(text))


def from_facts(facts: Mapping[str, Any]) -> Life:
    """The same from a manifest's object.

    Raises:
        ValueError: other fields, or values out of range.
    """
    try:
        life = Life(**facts)
    except TypeError as error:
        raise ValueError(str(error)) from None
    counts = all(isinstance(n, int) and n >= 0 for n in (life.guard, life.replay))
    places = life.replay_in in PLACES and life.guard_in in GUARDS
    if not counts or not places or not all(isinstance(b, bool) for b in (life.keep, life.resumable)):
        raise ValueError(f"not a life: {facts}")
    return life
