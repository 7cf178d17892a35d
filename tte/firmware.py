"""Builds a PlatformIO project, and reads back what the program needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tte import image, keeping, toolchain
from tte.errors import BoardError, ToolchainError
from tte.pioproject import Project, twin_name


@dataclass(frozen=True)
class BuildResult:
    """A program that was built; sizes in bytes.

    Attributes:
        elf: the linked program.
        env: the PlatformIO environment.
        flash_bytes: flash it takes.
        kept_flash_bytes: beside it, flash for trained state.
        ram_static_bytes: its .data and .bss.
        stack_reserve_bytes: what is kept for the stack.
        stack_bound_bytes: the most stack it can use, by its call graph; at most the reserve.
        stack_path: the chain of calls that uses that much.
        sections: size by section name.
        variables: the variables in RAM, by address.
    """

    elf: Path
    env: str
    flash_bytes: int
    kept_flash_bytes: int
    ram_static_bytes: int
    stack_reserve_bytes: int
    stack_bound_bytes: int
    stack_path: tuple[str, ...]
    sections: Mapping[str, int]
    variables: tuple[image.Variable, ...]

    @property
    def ram_bytes(self) -> int:
        """What the program needs of RAM: variables and the most stack it can use."""
        return self.ram_static_bytes + self.stack_bound_bytes


def build(project: Project, env: str | None = None, *, timeout_s: float = 1800) -> BuildResult:
    """Builds one environment of a project by `pio run`, and reads its needs back.

    Args:
        env: one of `Project.env`; the board's own by default.

    Raises:
        BoardError: the program needs more flash, RAM or stack than there is; says by how much.
        ToolchainError: a tool is missing or failed (with its last lines), or floating point was linked in.
    """
    env = env or project.env()
    toolchain.prepare_platformio()
    command = [sys.executable, "-m", "platformio", "run", "--silent", "-d", str(project.folder), "-e", env]
    try:
        done = subprocess.run(
            command, env=toolchain.platformio_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, encoding="utf-8", errors="replace", check=False, timeout=timeout_s,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ToolchainError(f"`pio run` took longer than {timeout_s:.0f} s", where=env) from None
    if done.returncode:
        raise _explain_failure(done.stdout, project, env)
    folder = project.folder / ".pio" / "build" / env
    where = project.board.emulator if env.startswith(twin_name(project.board)) else project.board
    assert where
    program = image.read(folder / "firmware.elf", where.flash_org, project.board.flash_bytes)
    if program.float_routines:
        raise ToolchainError(
            f"floating-point routines were linked in: {', '.join(program.float_routines)}", where=env,
            remedy="generated code must be integer only; please report this",
        )  # fmt: skip
    stack = image.stack_bound(program.elf, project.folder, folder.rglob("*.ci"), _objdump())
    if stack.size > program.stack_reserve_bytes:
        raise BoardError(
            f"the stack may need {stack.size} bytes, {stack.size - program.stack_reserve_bytes} too many, by "
            f"{' -> '.join(stack.path)}",
            where=project.board.name,
            limit=f"{program.stack_reserve_bytes} bytes of stack",
            remedy="raise tte.stack_bytes in the board's JSON",
        )
    area = project.board.flash if project.keeps else None
    kept = area.nbytes if area else 0
    is_inside = kept and len(keeping.program_memory(project.board, where.flash_org, keeps=True)) > 1
    return BuildResult(
        elf=program.elf,
        env=env,
        flash_bytes=program.flash_bytes - (kept if is_inside else 0),
        kept_flash_bytes=kept,
        ram_static_bytes=program.ram_static_bytes,
        stack_reserve_bytes=program.stack_reserve_bytes,
        stack_bound_bytes=stack.size,
        stack_path=stack.path,
        sections=image.section_sizes(program),
        variables=program.variables,
    )


def _objdump() -> str:
    """Beside the compiler that built the program: on the PATH, else in PlatformIO's package."""
    found = shutil.which("arm-none-eabi-objdump")
    return found or str(toolchain.compiler_package() / "bin" / "arm-none-eabi-objdump")


def _explain_failure(output: str, project: Project, env: str) -> BoardError | ToolchainError:
    """The error for a failed `pio run`, from what it printed."""
    board = project.board
    overflows = dict(re.findall(r"region `(FLASH|RAM)' overflowed by (\d+) bytes", output))
    if overflows:
        flash = keeping.program_memory(board, board.flash_org, keeps=project.keeps)[-1][2]
        limits = {"FLASH": flash, "RAM": board.ram_bytes}
        return BoardError(
            " and ".join(
                f"the program needs {size} bytes more {region} than there is" for region, size in overflows.items()
            ),
            where=board.name,
            limit=", ".join(f"{limits[region]} bytes of {region}" for region in overflows)
            + (f" ({board.flash_bytes - flash} of flash are for trained state)" if flash < board.flash_bytes else ""),
            remedy="train fewer layers (--update), or choose a larger board",
        )
    if not shutil.which(toolchain.CROSS_COMPILER) and not toolchain.compiler_package().is_dir():
        try:
            toolchain.require(toolchain.CROSS_COMPILER)
        except ToolchainError as error:
            return error
    last = "\n".join(line for line in output.strip().splitlines() if line.strip())[-3000:]
    return ToolchainError(f"the build failed:\n{last}", where=f"{project.folder}, environment {env}")
