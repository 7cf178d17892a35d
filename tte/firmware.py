"""Lays out a complete PlatformIO project round a generated library, builds it, and reads back what it needs."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tte import board as boards
from tte import image, keeping, resources, toolchain
from tte.board import Board, FlashArea
from tte.errors import BoardError, DataError, ToolchainError

_LIST = ".tte-files"  # the files that tte wrote into a project, one a line: what it may delete again
_PROTOCOL_SOURCES = ("main.c", "serve.c", "measure.c", "exchange.c", "frame.c", "crc32.c")
_COMMON_SOURCES = (*_PROTOCOL_SOURCES, "startup.c", "mpu.c", "fault.c")
_HEADERS = ("port.h", "uart.h", "counter.h", "serve.h", "measure.h", "exchange.h", "frame.h", "crc32.h", "store.h", "flash.h")
HOST_SOURCES = (*_PROTOCOL_SOURCES, "link_host.c")
_PLATFORM_FILES = ("platform.json", "platform.py", "uploaders.json", "builder/main.py")
_FLAVOURS = {
    "trace": "sends the arena after each step of a train step",
    "profile": "sends the instructions of each step of a call",
}
COMMON_FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True)
class Project:
    """A PlatformIO project written by `generate_project`.

    Attributes:
        folder: where platformio.ini lies.
        board: the board it is for.
        library: the library's name under lib/.
        keeps: its programs can keep trained state in flash.
    """

    folder: Path
    board: Board
    library: str
    keeps: bool = False

    def env(
        self, *, emulated: bool = False, trace: bool = False, profile: bool = False, uart: bool = False
    ) -> str:
        """The PlatformIO environment for the board, or for the QEMU machine that stands in for it.

        Args:
            trace: the program sends the arena after each step of a train step; emulated only.
            profile: the program sends the instructions of each step of a call; emulated only, and without `trace`.
            uart: the program speaks over the machine's serial port; emulated only, and without the others.

        Raises:
            BoardError: the board has no emulator, or its emulator no serial port.
        """
        if not emulated and not trace and not profile and not uart and not self.board.is_emulated:
            return self.board.name
        if not self.board.emulator:
            raise BoardError("the board has no emulator", where=self.board.name, remedy="choose another board")
        if uart and not self.board.emulator.link:
            raise BoardError(
                "the board's file names no serial port of its emulator", where=self.board.name,
                remedy="add tte.emulator.link to the board's JSON, or talk by semihosting",
            )  # fmt: skip
        flavour = "_trace" if trace else "_profile" if profile else "_uart" if uart else ""
        return _twin_name(self.board) + flavour


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


def generate_project(
    out_dir: Path,
    library_files: Mapping[str, str | bytes],
    board: Board,
    *,
    name: str,
    stack_bytes: int | None = None,
    ram_window_bytes: int | None = None,
    keep_bytes: int | None = None,
    more: Mapping[str, str] | None = None,
) -> Project:
    """Writes a project: platformio.ini, the library, the firmware round it, boards, platform, linker scripts.

    Files that are the same already are left alone, so that a second build is short; files that an earlier call wrote
    and this one does not are deleted; all others are kept.

    Args:
        library_files: content by path below `lib/<name>/`.
        name: the library's name, a C identifier.
        stack_bytes: stack to reserve, instead of the board's own figure; a multiple of 32.
        ram_window_bytes: RAM that the emulator's MPU grants, instead of all the board has; a multiple of 32.
        keep_bytes: trained state that the program can keep in the board's own flash, with the sectors for it left free;
            None: nothing.
        more: further files, content by path below `out_dir`.

    Raises:
        BoardError: a size is not a multiple of 32, or more than the board has; the state does not fit twice.
        DataError: the folder cannot be written, or a path leads out of it.
    """
    for what, value in (("stack reserve", stack_bytes), ("RAM window", ram_window_bytes)):
        if value is not None and (value % 32 or not 0 < value <= board.ram_bytes):
            raise BoardError(f"a {what} of {value} bytes", where=board.name, limit=f"32 .. {board.ram_bytes}, by 32")
    stack = board.stack_bytes if stack_bytes is None else stack_bytes
    files: dict[str, str | bytes] = {f"lib/{name}/{path}": content for path, content in library_files.items()}
    files |= more or {}
    keeps = keep_bytes is not None
    area = keeping.area_for(board, keep_bytes) if keep_bytes is not None else None
    files |= _firmware_files(board, stack, area)
    files["platformio.ini"] = _platformio_ini(board, name, ram_window_bytes, keeps)
    try:
        _write_files(out_dir, files)
    except OSError as error:
        raise DataError(f"cannot write the project: {error}", where=str(out_dir)) from None
    return Project(out_dir.resolve(), board, name, keeps)


def open_project(folder: Path) -> Project:
    """The project that `generate_project` wrote into `folder`.

    Raises:
        DataError: there is none.
        BoardError: its board file was damaged.
    """
    ini = configparser.ConfigParser(interpolation=None)
    try:
        ini.read_string((folder / "platformio.ini").read_text(encoding="utf-8"))
        board, library = ini["tte"]["board"], ini["tte"]["library"]
        keeps = ini["tte"].getboolean("keeps", fallback=False)
    except (OSError, UnicodeDecodeError, configparser.Error, KeyError, ValueError):
        raise DataError("this is not a folder written by `tte build`", where=str(folder)) from None
    return Project(folder.resolve(), boards.load(folder / "boards" / f"{board}.json"), library, keeps)


def _write_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise DataError(f"the path {path!r} leads out of the project", where=str(folder))
    listed = folder / _LIST
    before = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    for path in before:
        if path not in files and ".." not in Path(path).parts and not Path(path).is_absolute():
            (folder / path).unlink(missing_ok=True)
    files = {**files, _LIST: "\n".join(sorted(files)) + "\n"}
    for path, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        target = folder / path
        if target.is_file() and target.read_bytes() == data:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".tte-")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise


def _twin_name(board: Board) -> str:
    return board.name if board.is_emulated else f"{board.name}_qemu"


def _sources(board: Board, emulated: bool, keeps: bool, uart: bool = False) -> tuple[str, ...]:
    """The firmware's C files for a board, or for the QEMU machine that stands in for it (there by its UART, if wanted)."""
    kept = keeping.sources(board, emulated=emulated) if keeps else ()
    if not emulated:
        own = (*_COMMON_SOURCES, "link_uart.c", f"{board.link}.c", "counter_none.c", *board.extra_sources)
        return tuple(dict.fromkeys((*own, *kept)))
    assert board.emulator
    counter = () if board.emulator.counter == "none" else ("counter.c",)
    link = ("link_uart.c", f"{board.emulator.link}.c") if uart else ("link_semihost.c",)
    own = (*_COMMON_SOURCES, *link, f"counter_{board.emulator.counter}.c", *counter)
    return tuple(dict.fromkeys((*own, *kept)))


def _variants(board: Board) -> tuple[tuple[str, bool], ...]:
    """(environment, emulated) of each program that can be built for a board."""
    own = () if board.is_emulated else ((board.name, False),)
    return (*own, (_twin_name(board), True)) if board.emulator else own


def _firmware_files(board: Board, stack_bytes: int, area: FlashArea | None) -> dict[str, str | bytes]:
    room = resources.path("firmware")
    sources = set(HOST_SOURCES + _HEADERS)
    files: dict[str, str | bytes] = {f"boards/{board.name}.json": board.manifest}
    if area:
        sources.update((*keeping.HOST_SOURCES, *keeping.HEADERS))
        files[f"src/{keeping.AREA_SOURCE}"] = keeping.area_source(area)
    script = (room / "cortexm.ld").read_text(encoding="utf-8")
    for env, emulated in _variants(board):
        sources.update(_sources(board, emulated, area is not None))
        if emulated and board.emulator and board.emulator.link:
            sources.update(_sources(board, True, area is not None, uart=True))
        where = board.emulator if emulated and board.emulator else board
        regions = keeping.program_memory(board, where.flash_org, keeps=area is not None)
        values = {
            "REGIONS": "\n    ".join(f"{name} (rx) : ORIGIN = 0x{org:08x}, LENGTH = {size}" for name, org, size in regions),
            "HEAD": regions[0][0],
            "TITLE": board.title if not emulated or board.is_emulated else f"QEMU standing in for {board.title}",
            "FLASH_ORG": f"0x{where.flash_org:08x}",
            "FLASH_BYTES": str(board.flash_bytes),
            "RAM_ORG": f"0x{where.ram_org:08x}",
            "RAM_BYTES": str(board.ram_bytes),
            "STACK_BYTES": str(stack_bytes),
        }
        files[f"ld/{env}.ld"] = re.sub(r"@(\w+)@", lambda match: values[match[1]], script)  # noqa: B023
        if env != board.name:
            files[f"boards/{env}.json"] = _twin_manifest(board)
    for source in sorted(sources - {keeping.AREA_SOURCE}):
        if not (room / "src" / source).is_file():
            raise BoardError(f"there is no firmware source {source!r}", where=board.name)
        files[f"src/{source}"] = (room / "src" / source).read_bytes()
    for path in _PLATFORM_FILES:
        files[f"platforms/tte-cortexm/{path}"] = (room / "platform" / path).read_bytes()
    if board.official:
        files["official_bare_metal.py"] = (room / "official_bare_metal.py").read_bytes()
    return files


def _twin_manifest(board: Board) -> str:
    """PlatformIO's manifest of the QEMU machine that stands in for a real board."""
    assert board.emulator
    manifest = {
        "name": f"QEMU {board.emulator.machine} standing in for {board.title}",
        "vendor": "QEMU",
        "url": "https://www.qemu.org/docs/master/system/target-arm.html",
        "build": {"mcu": board.emulator.machine, "cpu": board.core, "f_cpu": "25000000L"},
        "upload": {
            "maximum_size": board.flash_bytes,
            "maximum_ram_size": board.ram_bytes,
            "protocol": "qemu",
            "protocols": ["qemu"],
        },
    }
    return json.dumps(manifest, indent=2) + "\n"


def _lines(key: str, values: tuple[str, ...]) -> str:
    return "\n    ".join([f"{key} =", *values])


def _source_filter(sources: tuple[str, ...]) -> str:
    return _lines("build_src_filter", tuple(f"+<{source}>" for source in sources))


def _link_flags(settings: tuple[tuple[str, int], ...]) -> tuple[str, ...]:
    return tuple(f"-DTTE_LINK_{key.upper()}={value:#x}u" for key, value in settings)


def _platformio_ini(board: Board, library: str, ram_window_bytes: int | None, keeps: bool) -> str:
    parts = [
        "; Written by tte. Build with `pio run`, upload with `pio run -t upload`.",
        f"[platformio]\ndefault_envs = {_variants(board)[0][0]}\nplatforms_dir = platforms",
        f"[tte]\nboard = {board.name}\nlibrary = {library}" + ("\nkeeps = yes" if keeps else ""),
        "[env]\nlib_compat_mode = off\ntest_framework = custom\n" + _lines("build_flags", COMMON_FLAGS),
    ]
    for env, emulated in _variants(board):
        defines: tuple[str, ...]
        if emulated:
            assert board.emulator
            defines = (f"-DTTE_MPU={int(board.emulator.mpu)}",)
            if ram_window_bytes is not None:
                defines += (f"-DTTE_RAM_WINDOW_BYTES={ram_window_bytes}u",)
        else:
            defines = ("-DTTE_MPU=0", *_link_flags(board.link_settings))
        defines += (f"-DTTE_BOARD_NAME={board.name}", *(("-DTTE_KEEP=1",) if keeps else ()))
        common = "\n".join(
            (
                f"board_build.ldscript = ld/{env}.ld",
                _source_filter(_sources(board, emulated, keeps)),
                _lines("build_flags", ("${env.build_flags}", *defines)),
            )
        )
        parts.append(f"[env:{env}]\nplatform = tte-cortexm\nboard = {env}\n{common}")
        if emulated:
            for flavour, about in _FLAVOURS.items():
                flags = _lines("build_flags", (f"${{env:{env}.build_flags}}", f"-DTTE_{flavour.upper()}"))
                parts.append(f"; {about}\n[env:{env}_{flavour}]\nextends = env:{env}\n{flags}")
            assert board.emulator
            if board.emulator.link:
                flags = _lines("build_flags", (f"${{env:{env}.build_flags}}", *_link_flags(board.emulator.link_settings)))
                files = _source_filter(_sources(board, True, keeps, uart=True))
                parts.append(
                    f"; speaks over the machine's serial port\n[env:{env}_uart]\nextends = env:{env}\n{files}\n{flags}\n"
                    "    -DTTE_DEVICE_WINDOW_BYTES=0x8000u"
                )
        elif board.official:
            platform, official = board.official
            parts.append(
                "; the same program with PlatformIO's official platform, which its registry must provide\n"
                f"[env:official_{env}]\nplatform = {platform}\nboard = {official}\nbuild_unflags = -Os\n"
                f"extra_scripts = pre:official_bare_metal.py\n{common}"
            )
    return "\n\n".join(parts) + "\n"


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
    where = project.board.emulator if env.startswith(_twin_name(project.board)) else project.board
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
