"""How commands speak: for people on a terminal, or as one JSON object; and how they fail."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
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


def command(function: Callable[..., int | None]) -> Callable[..., None]:
    """Adds --json, hands the command an Output, turns errors into one message and the exit status."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
    @functools.wraps(function)
    def wrapped(as_json: bool, **arguments: Any) -> None:
        output = Output(as_json)
        try:
            status = function(output, **arguments)
        except TteError as error:
            fail(output, error)
        except KeyboardInterrupt:
            output.notes.print("interrupted", style="bold red")
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            sys.exit(FAILED)
        except OSError as error:
            fail(output, TteError(error.strerror or str(error), where=str(error.filename or "")))
        sys.exit(status or 0)

    return wrapped


def fail(output: Output, error: TteError) -> None:
    """Prints an error and leaves with status 2."""
    if output.json:
        facts = {"what": error.what, "where": error.where, "limit": error.limit, "remedy": error.remedy}
        sys.stdout.write(json.dumps({"error": facts}) + "\n")
    output.notes.print(f"[bold red]error[/] {escape(str(error))}", soft_wrap=True)
    sys.exit(FAILED)


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
