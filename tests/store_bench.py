"""Building and running tests/store_harness.c and tests/store_device.c."""

from __future__ import annotations

import random
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from toy import TOY

from tte import firmware, pioproject, resources
from tte.board import Board
from tte.device import emulator

HERE = Path(__file__).parent
ENGINE = ("store.c", "store_save.c", "crc32.c", "flash_model.c")
WARNINGS = ("-std=c11", "-Wall", "-Wextra", "-Werror")


def sources() -> Path:
    """The firmware's C files."""
    return resources.path("firmware") / "src"


def build_harness(folder: Path, compiler: str, *flags: str) -> Path:
    """Compiles the harness."""
    program = folder / "store_harness"
    files = [HERE / "store_harness.c", *(sources() / name for name in ENGINE)]
    subprocess.run(
        [compiler, *WARNINGS, "-DTTE_FLASH_WEAK", *flags, f"-I{sources()}", *map(str, files), "-o", str(program)],
        check=True,
    )
    return program


def run_harness(program: Path, test: str, seed: int, count: int, timeout_s: float = 600) -> list[dict[str, str]]:
    """Its lines: words and numbers in turn, after the test's name; what lacks a name is `case`."""
    done = subprocess.run(
        [str(program), test, str(seed), str(count)], capture_output=True, text=True, check=False, timeout=timeout_s
    )
    assert done.returncode == 0, done.stderr
    lines = []
    for line in done.stdout.splitlines():
        words = line.split()[1:]
        case = {"case": words.pop(0)} if len(words) % 2 else {}
        lines.append(case | dict(zip(words[::2], words[1::2], strict=True)))
    return lines


def device_program(
    folder: Path, board: Board, *, emulated: bool, state: int = 3001, saves: int | None = None
) -> firmware.BuildResult:
    """Builds store_device.c as `board`'s program (or its QEMU machine's), with keeping on."""
    project = pioproject.generate_project(folder, TOY, board, name="toy", keep_bytes=state)
    text = (HERE / "store_device.c").read_text()
    defines = f"#define TTE_STATE {state}\n" + (f"#define TTE_SAVES {saves}u\n" if saves else "")
    (folder / "src" / "main.c").write_text(defines + text)
    return firmware.build(project, project.env(emulated=emulated))


@dataclass
class Kills:
    """What the starts after `kills` kills found: the state whose save was reported last, the one that was being saved, none.

    `saves`: saves that were reported; `wrong`: what else was found."""

    kills: int = 0
    old: int = 0
    new: int = 0
    none: int = 0
    saves: int = 0
    wrong: list[str] = field(default_factory=list)


def kill_often(elf: Path, board: Board, folder: Path, kills: int, seed: int) -> Kills:
    """Starts the emulator, kills it at a random time while it saves, and looks at what the next start finds."""
    draw, counts, saved = random.Random(seed), Kills(), 0
    command = emulator.command(elf, board, icount=False)
    (folder / "flash").unlink(missing_ok=True)
    for turn in range(kills + 1):
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        with process:
            assert process.stdout
            first = process.stdout.readline()
            time.sleep(draw.uniform(0, 0.1) if turn < kills else 0)
            process.kill()
            rest = [line for line in process.stdout if line.endswith("\n")]  # the last may be cut short
        kind, number = (*first.split(), "0")[:2]
        found = int(number, 16) if kind == "found" else 0
        if kind not in ("found", "empty") or found not in (saved, saved + 1):
            counts.wrong.append(f"start {turn}: {first.strip()!r} after {saved} was saved")
        if turn:
            counts.kills += 1
            counts.none += found == 0
            counts.old += found == saved and found > 0
            counts.new += found == saved + 1
        saved = found
        for line in rest:
            if line.split()[0] == "saved":
                saved = int(line.split()[1], 16)
                counts.saves += 1
            else:
                counts.wrong.append(f"start {turn}: {line.strip()!r}")
    return counts
