"""Lays out a complete PlatformIO project round a generated library, and opens one again."""

from __future__ import annotations

import configparser
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tte import board as boards
from tte import keeping, resources
from tte.board import Board, FlashArea
from tte.errors import BoardError, DataError
from tte.life import Life, parse

_LIST = ".tte-files"  # the files that tte wrote into a project, one a line: what it may delete again
_PROTOCOL_SOURCES = ("main.c", "serve.c", "serve_learn.c", "measure.c", "exchange.c", "frame.c", "crc32.c")
_COMMON_SOURCES = (*_PROTOCOL_SOURCES, "startup.c", "mpu.c", "fault.c")
_HEADERS = (
    "port.h", "uart.h", "counter.h", "serve.h", "serve_parts.h", "measure.h", "exchange.h", "frame.h", "crc32.h", "store.h",
    "flash.h",
)  # fmt: skip
HOST_SOURCES = (*_PROTOCOL_SOURCES, "link_host.c", "counter_none.c")
_PLATFORM_FILES = ("platform.json", "platform.py", "uploaders.json", "builder/main.py")
_FLAVOURS = {
    "trace": "sends the arena after each step of a train step",
    "profile": "sends the instructions of each step of a call",
}
# What the modelled flash takes of an emulator's RAM and stack, beyond the board's: firmware/src/flash_model.c.
_MODEL_RAM, _MODEL_STACK = 1024, 256
COMMON_FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True)
class Project:
    """A PlatformIO project written by `generate_project`.

    Attributes:
        folder: where platformio.ini lies.
        board: the board it is for.
        library: the library's name under lib/.
        life: what its programs do beside learning.
    """

    folder: Path
    board: Board
    library: str
    life: Life = Life()

    @property
    def keeps(self) -> bool:
        """Whether its programs can keep trained state in flash."""
        return self.life.keep

    def flash_file(self, on: str) -> Path | None:
        """The file that is the flash of its program in "qemu" or on "host", from one start to the next.

        None: the program keeps nothing. Deleting the file is a new, empty flash.
        """
        return self.folder / f"flash-{on}.bin" if self.keeps else None

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
        return twin_name(self.board) + flavour


def generate_project(
    out_dir: Path,
    library_files: Mapping[str, str | bytes],
    board: Board,
    *,
    name: str,
    stack_bytes: int | None = None,
    ram_window_bytes: int | None = None,
    keep_bytes: int | None = None,
    past_sectors: int = 0,
    life: Life = Life(),
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
        past_sectors: sectors of that flash that hold past samples (`tte.keeping.Kept`).
        life: what else the programs do beside learning; `keep` follows from `keep_bytes`.
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
    life = replace(life, keep=keep_bytes is not None)
    area = keeping.area_for(board, keep_bytes) if keep_bytes is not None else None
    if area:
        files[f"src/{keeping.AREA_SOURCE}"] = keeping.area_source(area, past_sectors)
    files |= _firmware_files(board, stack, area, life)
    files["platformio.ini"] = _platformio_ini(board, name, ram_window_bytes, life)
    try:
        _write_files(out_dir, files)
    except OSError as error:
        raise DataError(f"cannot write the project: {error}", where=str(out_dir)) from None
    return Project(out_dir.resolve(), board, name, life)


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
        life = parse(ini["tte"].get("life", "{}"))
    except (OSError, UnicodeDecodeError, configparser.Error, KeyError, ValueError):
        raise DataError("this is not a folder written by `tte build`", where=str(folder), remedy="give its --out") from None
    return Project(folder.resolve(), boards.load(folder / "boards" / f"{board}.json"), library, life)


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


def twin_name(board: Board) -> str:
    """The environment, and the linker script, of the machine that stands in for a board."""
    return board.name if board.is_emulated else f"{board.name}_qemu"


def _sources(board: Board, emulated: bool, life: Life, uart: bool = False) -> tuple[str, ...]:
    """The firmware's C files for a board, or for the QEMU machine that stands in for it (there by its UART, if wanted)."""
    kept = (*life.sources, *(keeping.sources(board, emulated=emulated) if life.keep else ()))
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
    return (*own, (twin_name(board), True)) if board.emulator else own


def _firmware_files(board: Board, stack_bytes: int, area: FlashArea | None, life: Life) -> dict[str, str | bytes]:
    room = resources.path("firmware")
    sources = {*HOST_SOURCES, *_HEADERS, *life.headers}
    files: dict[str, str | bytes] = {f"boards/{board.name}.json": board.manifest}
    if area:
        sources.update((*keeping.HOST_SOURCES, *keeping.HEADERS))
    script = (room / "cortexm.ld").read_text(encoding="utf-8")
    for env, emulated in _variants(board):
        sources.update(_sources(board, emulated, life))
        if emulated and board.emulator and board.emulator.link:
            sources.update(_sources(board, True, life, uart=True))
        where = board.emulator if emulated and board.emulator else board
        models = life.keep and emulated and not board.is_emulated
        regions = keeping.program_memory(board, where.flash_org, keeps=life.keep)
        values = {
            "REGIONS": "\n    ".join(f"{name} (rx) : ORIGIN = 0x{org:08x}, LENGTH = {size}" for name, org, size in regions),
            "HEAD": regions[0][0],
            "TITLE": board.title if not emulated or board.is_emulated else f"QEMU standing in for {board.title}",
            "FLASH_ORG": f"0x{where.flash_org:08x}",
            "FLASH_BYTES": str(board.flash_bytes),
            "RAM_ORG": f"0x{where.ram_org:08x}",
            "RAM_BYTES": str(board.ram_bytes + models * (_MODEL_RAM + _MODEL_STACK)),
            "STACK_BYTES": str(stack_bytes + models * _MODEL_STACK),
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


def _platformio_ini(board: Board, library: str, ram_window_bytes: int | None, life: Life) -> str:
    parts = [
        "; Written by tte. Build with `pio run`, upload with `pio run -t upload`.",
        f"[platformio]\ndefault_envs = {_variants(board)[0][0]}\nplatforms_dir = platforms",
        f"[tte]\nboard = {board.name}\nlibrary = {library}" + (f"\nlife = {life.text()}" if life != Life() else ""),
        "[env]\nlib_compat_mode = off\ntest_framework = custom\n" + _lines("build_flags", COMMON_FLAGS),
    ]
    for env, emulated in _variants(board):
        defines: tuple[str, ...]
        if emulated:
            assert board.emulator
            defines = (f"-DTTE_MPU={int(board.emulator.mpu)}",)
            if ram_window_bytes is not None:
                more = _MODEL_RAM + _MODEL_STACK if life.keep and not board.is_emulated else 0
                defines += (f"-DTTE_RAM_WINDOW_BYTES={ram_window_bytes + more}u",)
        else:
            defines = ("-DTTE_MPU=0", *_link_flags(board.link_settings))
        defines += (f"-DTTE_BOARD_NAME={board.name}", *life.macros)
        common = "\n".join(
            (
                f"board_build.ldscript = ld/{env}.ld",
                _source_filter(_sources(board, emulated, life)),
                _lines("build_flags", ("${env.build_flags}", *defines)),
            )
        )
        regions = keeping.program_memory(board, board.flash_org, keeps=life.keep)
        gap = not emulated and len(regions) > 1
        place = f"board_upload.program_address = 0x{regions[-1][1]:08x}\n" if gap else ""
        parts.append(f"[env:{env}]\nplatform = tte-cortexm\nboard = {env}\n{place}{common}")
        if emulated:
            for flavour, about in _FLAVOURS.items():
                flags = _lines("build_flags", (f"${{env:{env}.build_flags}}", f"-DTTE_{flavour.upper()}"))
                parts.append(f"; {about}\n[env:{env}_{flavour}]\nextends = env:{env}\n{flags}")
            assert board.emulator
            if board.emulator.link:
                flags = _lines("build_flags", (f"${{env:{env}.build_flags}}", *_link_flags(board.emulator.link_settings)))
                files = _source_filter(_sources(board, True, life, uart=True))
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
