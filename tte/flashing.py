"""Uploads a build to its board: the command that PlatformIO runs, the run, and what a failure means."""

from __future__ import annotations

import configparser
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tte import firmware, flash_failures, keeping, pioproject, project, toolchain
from tte.errors import BoardError, DataError, DeviceError, ToolchainError

_TABLE = "platforms/tte-cortexm/uploaders.json"  # the build's own copy: what PlatformIO will read
_SERIAL = re.compile(r"[0-9A-Za-z:._-]{1,128}")
_PROTOCOL_VARIABLE = "TTE_UPLOAD_PROTOCOL"  # read by firmware/platform/builder/main.py
_KEPT_OUTPUT = 1 << 16  # characters of a tool's output that are looked at
# A flat image spans the sectors for trained state where they lie before the program.
_GAP = ("the image spans the flash that keeps trained state: what the board kept there is erased",)
_END_S = 5.0  # for a tool that was asked to end
_INSTALL = {
    "openocd": "apt-get install openocd",
    "pyocd": "pip install pyocd",
    "st-flash": "apt-get install stlink-tools",
    "picotool": "apt-get install picotool, or https://github.com/raspberrypi/picotool where the distribution has none",
}


@dataclass(frozen=True)
class Upload:
    """How a build gets onto its board.

    Attributes:
        project: the build.
        env: PlatformIO's environment, that of the real board.
        protocol: one of the board's upload protocols.
        tool: the program that writes the flash; "" for a command of the user's own.
        tool_command: its command line, with paths relative to the project's folder.
        serial: the probe's serial number; None: whichever probe is there.
        notes: what to know before.
    """

    project: pioproject.Project
    env: str
    protocol: str
    tool: str
    tool_command: str
    serial: str | None
    notes: tuple[str, ...]

    @property
    def build_arguments(self) -> tuple[str, ...]:
        """PlatformIO's arguments that build the program."""
        return ("run", "-d", str(self.project.folder), "-e", self.env)

    @property
    def arguments(self) -> tuple[str, ...]:
        """PlatformIO's arguments that upload it."""
        probe = ("--upload-port", self.serial) if self.serial else ()
        return (*self.build_arguments, "-t", "nobuild", "-t", "upload", *probe)

    @property
    def variables(self) -> dict[str, str]:
        """What PlatformIO must find in the environment."""
        return {_PROTOCOL_VARIABLE: self.protocol}

    @property
    def missing(self) -> ToolchainError | None:
        """The error if the tool is not on the PATH."""
        if not self.tool or shutil.which(self.tool):
            return None
        board = self.project.board
        remedy = _INSTALL.get(self.tool, f"install {self.tool}")
        others = [name for name in board.upload_protocols if name not in (self.protocol, "custom")]
        if others:
            remedy += f"; or choose another way: --protocol {' or '.join(others)}"
        if board.official:
            remedy += (
                f"; or `pio run -d {self.project.folder} -e official_{self.env} -t upload`, by PlatformIO's own platform "
                "and the tools that it fetches"
            )
        return ToolchainError(f"{self.tool}, which writes the board's flash, is not installed", where=board.title, remedy=remedy)


def plan(folder: Path, *, protocol: str | None = None, serial: str | None = None) -> Upload:
    """How the build in `folder` is uploaded; changes nothing.

    Args:
        protocol: one of the board's upload protocols, instead of its first choice.
        serial: the serial number of the probe (picotool: of the board), where several are connected.

    Raises:
        DataError: no finished build, or one of an older version of tte.
        BoardError: the board exists in QEMU only, or knows no such protocol.
    """
    if not (folder / project.MANIFEST).is_file():
        raise DataError("no finished build here", where=str(folder), remedy="run `tte build ... --out DIR`")
    made = pioproject.open_project(folder)
    board = made.board
    if board.is_emulated:
        raise BoardError(
            "the board exists in the emulator only: there is nothing to upload to", where=board.name,
            remedy="`tte run DIR --on qemu`, or build for a real board",
        )  # fmt: skip
    fields: dict[str, Any] = json.loads(board.manifest)["upload"]
    chosen = protocol or str(fields["protocol"])
    if chosen not in board.upload_protocols:
        raise BoardError(
            f"cannot be uploaded to by {chosen!r}", where=board.name,
            limit=", ".join(board.upload_protocols), remedy="choose one of these by --protocol",
        )  # fmt: skip
    if serial is not None and not _SERIAL.fullmatch(serial):
        raise DataError(f"{serial!r} is no serial number", where="--serial", limit="letters, digits and : . _ -")
    env = made.env()
    own = _own_command(made, env)
    if own or chosen == "custom":
        if not own:
            raise BoardError(
                "its protocol `custom` runs the upload_command of platformio.ini, which has none", where=board.name,
                remedy=f"put `upload_command = ...` below [env:{env}], or choose another by --protocol",
            )  # fmt: skip
        return Upload(made, env, chosen, "", own, serial, ())
    uploader = _uploader(made, chosen)
    regions = keeping.program_memory(board, board.flash_org, keeps=made.keeps)
    parts = uploader["parts"] if len(regions) > 1 else ""
    values = {name: value for name, value in fields.items() if isinstance(value, (str, int))}
    values |= {"head": f".pio/build/{env}/firmware_head.bin", "rest": f".pio/build/{env}/firmware_rest.bin"}
    values |= {"program_address": f"0x{regions[-1][1]:08x}", "file": f".pio/build/{env}/{uploader['image']}"}
    try:
        values["probe"] = uploader["probe"].format(serial=serial) if serial else ""
        command = " ".join((parts or uploader["command"]).format(**values).split())
    except KeyError as error:
        raise BoardError(
            f"uploading by {chosen} needs the field upload.{error.args[0]} in the board's JSON", where=board.name,
            remedy="add it, or choose another by --protocol",
        ) from None  # fmt: skip
    notes = _GAP if len(regions) > 1 and uploader["image"].endswith(".bin") and not parts else ()
    return Upload(made, env, chosen, uploader["tool"], command, serial, notes)


def _own_command(made: pioproject.Project, env: str) -> str:
    """The user's `upload_command` in platformio.ini, which PlatformIO prefers to any protocol; "" if there is none."""
    ini = configparser.ConfigParser(interpolation=None)
    ini.read(made.folder / "platformio.ini", encoding="utf-8")
    sections = [name for name in (f"env:{env}", "env") if ini.has_option(name, "upload_command")]
    return " ".join(ini[sections[0]]["upload_command"].split()) if sections else ""


def _uploader(made: pioproject.Project, protocol: str) -> dict[str, str]:
    try:
        table = json.loads((made.folder / _TABLE).read_text(encoding="utf-8"))
        found = {key: str(table[protocol][key]) for key in ("tool", "image", "command", "probe")}
        found["parts"] = str(table[protocol].get("parts", ""))
    except (OSError, ValueError, TypeError):
        raise DataError(
            "the build comes from an older version of tte", where=str(made.folder), remedy="run `tte build` again"
        ) from None
    except KeyError:
        raise BoardError(
            f"tte knows no way to upload by {protocol!r}", where=made.board.name,
            remedy="choose another by --protocol, or `upload_command` in platformio.ini and --protocol custom",
        ) from None  # fmt: skip
    return found


def flash(upload: Upload, *, show: Callable[[str], None], say: Callable[[str], None], timeout_s: float = 900) -> None:
    """Builds the program if anything changed, and uploads it.

    Args:
        show: takes the tools' output as it comes.
        say: takes a line of progress.
        timeout_s: how long the upload may take, in seconds.

    Raises:
        ToolchainError, BoardError: a tool is missing, or the build failed; nothing was written.
        DeviceError: the upload failed; says whether the board may hold half a program.
    """
    if upload.missing:
        raise upload.missing
    board = upload.project.board
    say(f"building for {board.title}")
    firmware.build(upload.project, upload.env)
    for note in upload.notes:
        say(note)
    say(f"uploading by {upload.tool or 'the upload_command of platformio.ini'}")
    command = [sys.executable, "-m", "platformio", *upload.arguments]
    status, output = _run(command, {**toolchain.platformio_environment(), **upload.variables}, show, say, timeout_s)
    if status == 0:
        return
    found = flash_failures.explain(output, upload.tool, upload.serial)
    if status is None:
        found = flash_failures.took_too_long(output, timeout_s)
    raise DeviceError(found.what, where=f"{board.title}, by {upload.tool or upload.protocol}", remedy=found.remedy)


def _run(
    command: list[str], environment: dict[str, str], show: Callable[[str], None], say: Callable[[str], None], timeout_s: float
) -> tuple[int | None, str]:
    """The exit status (None: it took too long and was ended) and the end of the output, which `show` took before."""
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    output, until, descriptor = "", time.monotonic() + timeout_s, process.stdout.fileno()
    try:
        while (left := until - time.monotonic()) > 0:
            if not select.select([descriptor], [], [], min(left, 1.0))[0]:
                continue
            piece = os.read(descriptor, 65536).decode("utf-8", errors="replace")
            if not piece:
                return process.wait(max(left, 1.0)), output
            output = (output + piece)[-_KEPT_OUTPUT:]
            show(piece)
        return None, output
    except subprocess.TimeoutExpired:
        return None, output
    except KeyboardInterrupt:
        say(f"interrupted: {flash_failures.state_of_board(output)}")
        raise
    finally:
        _end(process)
        process.stdout.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends PlatformIO and the tool below it, if they still run: by request first, so that the tool frees the probe."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, number)
            process.wait(_END_S)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
