"""Compiles a project's library and command loop for this computer: the same C, checked by sanitizers."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tte import keeping, toolchain
from tte.errors import DataError, ToolchainError
from tte.pioproject import COMMON_FLAGS, HOST_SOURCES, Project

#: Where a project keeps the library without any core's own instructions, if its own has some: made by `keep_portable`.
PORTABLE = Path("host", "portable")
# The fast twin: auto-vectorised for this very computer; integers give the same bytes.
_FAST = ("-O3", "-march=native")
# The checked one runs what the device runs, and not what is written for wide vectors.
_SANITIZE = ("-DTTE_WIDE=0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g")


def build_host(project: Project, *, sanitize: bool = True, trace: bool = False, timeout_s: float = 600) -> Path:
    """Compiles the program for this computer; it speaks the device protocol on standard input and output.

    The program lies in the project's folder `host/`, named after the hash of all it is made of, and is built once.

    Args:
        sanitize: the device's own code with address and undefined-behaviour checks, which stop the program; else the
            fastest code for this computer that computes the same bytes.
        trace: with the arena sent after each step of a train step.

    Raises:
        ToolchainError: there is no C compiler, or it failed.
    """
    compiler = toolchain.require("cc")
    library = project.folder / "lib" / project.library
    if not sanitize and (project.folder / PORTABLE).is_dir():
        library = project.folder / PORTABLE
    names = dict.fromkeys((*HOST_SOURCES, *project.life.sources, *(keeping.HOST_SOURCES if project.keeps else ())))
    sources = [project.folder / "src" / name for name in names]
    sources += sorted((library / "src").rglob("*.c"))
    read = sorted({*sources, *(project.folder / "src").glob("*.h"), *(library / "src").rglob("*.h")})
    read += sorted((library / "include").rglob("*.h"))
    flags = [*COMMON_FLAGS, *(_SANITIZE if sanitize else _FAST), *(("-DTTE_TRACE",) if trace else ())]
    flags += ["-DTTE_BOARD_NAME=host", *project.life.macros]
    own = library.relative_to(project.folder)
    flags += [f"-I{folder}" for folder in ("src", own / "include", own / "src")]
    digest = hashlib.sha256(repr((compiler, flags)).encode())
    for file in read:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(project.folder)} {len(content)}\n".encode() + content)
    program = project.folder / "host" / digest.hexdigest()[:16]
    if program.is_file():
        return program
    program.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent, prefix=".build-") as temporary:
        objects = [Path(temporary) / f"{index}.o" for index in range(len(sources))]
        compile_one = [
            [compiler, *flags, "-c", str(source.relative_to(project.folder)), "-o", str(made)]
            for source, made in zip(sources, objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(lambda command: _run(command, project.folder, timeout_s), compile_one))
        linked = Path(temporary) / "program"
        _run([compiler, *flags, *map(str, objects), "-o", str(linked)], project.folder, timeout_s)
        os.replace(linked, program)
    return program


def keep_portable(folder: Path, library_files: Mapping[str, str] | None) -> None:
    """Keeps the library's portable twin in the project's folder, for the fast program; None: the library itself is portable.

    Raises:
        DataError: the folder cannot be written.
    """
    place = folder / PORTABLE
    wanted = {place / path: text.encode() for path, text in (library_files or {}).items() if path.endswith((".c", ".h"))}
    try:
        for old in [f for f in place.rglob("*") if f.is_file() and f not in wanted]:
            old.unlink()
        if not wanted:
            shutil.rmtree(place, ignore_errors=True)
        for path, content in wanted.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as error:
        raise DataError(f"cannot write the project: {error}", where=str(place)) from None


def _run(command: list[str], folder: Path, timeout_s: float) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", check=False, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        raise ToolchainError(f"the C compiler took longer than {timeout_s:.0f} s", where=command[-3]) from None
    if done.returncode:
        raise ToolchainError(f"the C compiler failed:\n{done.stderr.strip()[:3000]}", where=" ".join(command[-3:]))
