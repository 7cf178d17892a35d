"""`tte flash`: a build goes onto its board."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from tte import flashing
from tte.cli.output import Output, command

_DIR = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("folder", type=_DIR)
@click.option("--protocol", help="How to upload: one of the board's ways.  [default: the board's first choice]")
@click.option("--serial", help="Serial number of the probe (picotool: of the board), where several are connected.")
@click.option("--dry-run", is_flag=True, help="Print what would run; run nothing.")
@command
def flash(output: Output, folder: Path, protocol: str | None, serial: str | None, dry_run: bool) -> int:
    """Build the program in FOLDER if need be, and upload it to its board."""
    upload = flashing.plan(folder, protocol=protocol, serial=serial)
    board, missing = upload.project.board, upload.missing
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in upload.variables.items())
    lines = {
        "build": shlex.join(("pio", *upload.build_arguments)),
        "upload": f"{variables} {shlex.join(('pio', *upload.arguments))}",
        "tool": upload.tool_command,
    }
    facts: dict[str, Any] = {
        "board": board.name, "env": upload.env, "protocol": upload.protocol, "protocols": list(board.upload_protocols),
        "tool": upload.tool, "tool_path": shutil.which(upload.tool) if upload.tool else None, "notes": list(upload.notes),
        "folder": str(upload.project.folder), "commands": lines, "uploaded": not dry_run,
    }  # fmt: skip
    if dry_run:
        say = output.console.print
        say(f"{escape(board.title)}, by {upload.protocol} (of {', '.join(board.upload_protocols)})", soft_wrap=True)
        say(f"builds   {escape(lines['build'])}", soft_wrap=True)
        say(f"uploads  {escape(lines['upload'])}", soft_wrap=True)
        say(f"which, in {escape(str(upload.project.folder))}, runs", soft_wrap=True)
        say(f"         {escape(lines['tool'])}", soft_wrap=True)
        for note in upload.notes:
            say(f"note     {escape(note)}", soft_wrap=True)
        if missing:
            say(f"missing  {escape(missing.what)}; {escape(missing.remedy)}", soft_wrap=True)
        output.result(facts | {"missing": missing.remedy if missing else None})
        return 0

    def show(text: str) -> None:
        if not output.json:
            sys.stderr.write(text)
            sys.stderr.flush()

    flashing.flash(upload, show=show, say=output.say)
    output.console.print(f"[green]uploaded[/] to {escape(board.title)}", soft_wrap=True)
    output.result(facts)
    return 0
