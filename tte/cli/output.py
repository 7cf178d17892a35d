"""How commands speak: for people on a terminal, or as one JSON object; and how they fail."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from tte.errors import TteError

FAILED = 2
INTERRUPTED = 130


_FILE_WIDTH = 150  # of tables that go to a file or a pipe


def _console(**options: bool) -> Console:
    console = Console(highlight=False, **options)  # type: ignore[arg-type]
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    return console


class Output:
    """Where a command writes.

    Attributes:
        json: one object on standard output instead of text.
        console: standard output, for people; silent when json is wanted.
        notes: standard error, for progress.
    """

    def __init__(self, as_json: bool) -> None:
        self.json = as_json
        self.console = _console(quiet=as_json)
        self.notes = _console(stderr=True)

    def say(self, text: str) -> None:
        """A line of progress."""
        if not self.json:
            self.notes.print(escape(text), style="dim", soft_wrap=True)

    def result(self, facts: dict[str, Any]) -> None:
        """The command's result as JSON, if it was asked for."""
        if self.json:
            sys.stdout.write(json.dumps(facts, allow_nan=False) + "\n")


@contextlib.contextmanager
def _ending_well() -> Iterator[None]:
    """A command that is told to end by SIGTERM or SIGHUP leaves as it does otherwise: what it has started is ended, too. Where
    its caller has them ignored (`nohup`), they stay so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    taken = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    before = {number: signal.signal(number, leave) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _let_go_of_stdout() -> None:
    """What could not be written would be tried again on leaving."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def command(function: Callable[..., int | None]) -> Callable[..., None]:
    """Adds --json, hands the command an Output, turns errors into one message and the exit status."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
    @functools.wraps(function)
    def wrapped(as_json: bool, **arguments: Any) -> None:
        output = Output(as_json)
        try:
            with _ending_well():
                status = function(output, **arguments)
                sys.stdout.flush()
        except TteError as error:
            fail(output, error)
        except KeyboardInterrupt:
            output.notes.print("interrupted", style="bold red")
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            _let_go_of_stdout()
            sys.exit(FAILED)
        except OSError as error:
            fail(output, TteError(error.strerror or str(error), where=str(error.filename or "")))
        sys.exit(status or 0)

    return wrapped


def fail(output: Output, error: TteError) -> None:
    """Prints an error and leaves with status 2."""
    if output.json:
        facts = {"what": error.what, "where": error.where, "limit": error.limit, "remedy": error.remedy}
        try:
            sys.stdout.write(json.dumps({"error": facts}) + "\n")
            sys.stdout.flush()
        except OSError:
            _let_go_of_stdout()
    output.notes.print(f"[bold red]error[/] {escape(str(error))}", soft_wrap=True)
    sys.exit(FAILED)


class Number(click.FloatRange):
    """A number within a range, which NaN is in none of."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value!r} is no number", param, ctx)
        return found


class Size(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A number of bytes: 98304, 96K, 96KB or 1M (K = 1,024)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).strip().upper().removesuffix("IB").removesuffix("B")
        factor = {"K": 1024, "M": 1024**2}.get(text[-1:], 1)
        digits = text[:-1] if factor > 1 else text
        if not digits.isascii() or not digits.isdigit() or not 0 < int(digits) * factor < 2**32:
            self.fail(f"{value!r} is no size: write bytes, or 96K, or 1M", param, ctx)
        return int(digits) * factor
