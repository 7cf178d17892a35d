"""The options of `tte build` for what a device does beside learning."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from tte.cli.output import Size
from tte.life import GUARDS, PLACES, Life

_OPTIONS = (
    click.option("--keep", is_flag=True, help="Keep what is learnt in the board's own flash, over resets and power cuts."),
    click.option("--resumable", is_flag=True, help="Training in slices of a budget of instructions, for a program of your own."),
    click.option("--guard", type=click.IntRange(1, 65535), metavar="SAMPLES", help="Room for so many held-out samples on the "
                 "device: learning that makes them worse is taken back."),
    click.option("--guard-in", type=click.Choice(GUARDS), default=GUARDS[0], show_default=True, help="Where the state lies that "
                 "it goes back to: a copy in RAM, or the one saved last."),
    click.option("--replay", type=Size(), help="Room for past samples, learnt from again: bytes, 16K."),
    click.option("--replay-in", type=click.Choice(PLACES), default=PLACES[0], show_default=True, help="Where they lie; "
                 "external: in memory that your tte_replay_memory() gives (firmware/src/replay.h)."),
)  # fmt: skip


def life_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a command, which gets a `Life` as `life`."""

    @functools.wraps(function)
    def wrapped(*args: Any, keep: bool, resumable: bool, guard: int | None, guard_in: str, replay: int | None,
                replay_in: str, **others: Any) -> Any:  # fmt: skip
        for name, chosen, default, needed in (
            ("--guard-in", guard_in, GUARDS[0], guard), ("--replay-in", replay_in, PLACES[0], replay),
        ):  # fmt: skip
            if chosen != default and not needed:
                raise click.UsageError(f"{name} {chosen} says where something lies that is not there: add {name[:-3]}")
        life = Life(keep, resumable, guard or 0, guard_in, replay or 0, replay_in)
        return function(*args, life=life, **others)

    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped
