"""Options of `tte run` and `tte device train` for guard and replay."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from tte.device.aids import CHECK_EVERY, Wanted


def aid_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a command, which gets a `Wanted` as `aids`."""

    @click.option("--replay-steps", type=click.IntRange(0, 1000), metavar="K", help="Past samples learnt from again behind each "
                  "fresh one; 0: none.  [default: 1 if built with --replay]")  # fmt: skip
    @click.option("--guard-every", type=click.IntRange(0, 2**32 - 1), metavar="N", help="Fresh samples between two checks on "
                  f"samples held out on the device; 0: none.  [default: {CHECK_EVERY} if built with --guard]")  # fmt: skip
    @click.option("--guard-limit", type=click.IntRange(0, 2**22), metavar="LIMIT", help="Learning is taken back where the score "
                  "falls by more right answers, or squared steps of the output.  [default: by the samples held out]")  # fmt: skip
    @functools.wraps(function)
    def wrapped(*args: Any, replay_steps: int | None, guard_every: int | None, guard_limit: int | None, **others: Any) -> Any:
        return function(*args, aids=Wanted(replay_steps, guard_every, guard_limit), **others)

    return wrapped
