"""The tools outside Python: compilers, QEMU, and PlatformIO with its SCons.

`python -m tte.toolchain` readies PlatformIO: its package `tool-scons` is laid out from PyPI's SCons, so that nothing
asks PlatformIO's registry.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tte.errors import ToolchainError

HOST_COMPILERS = ("cc", "gcc", "clang")
CROSS_COMPILER = "arm-none-eabi-gcc"
QEMU = "qemu-system-arm"

# What PlatformIO's scons.py must do: run the SCons beside it.
_START_SCONS = """\
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from SCons.Script.Main import main  # noqa: E402

main()
"""


@dataclass(frozen=True)
class Missing:
    """A tool that is not there, what needs it, and how to get it."""

    tool: str
    purpose: str
    remedy: str


def check() -> tuple[Missing, ...]:
    """The tools that are missing; empty if all are there."""
    missing = []
    if not host_compiler():
        missing.append(Missing("cc", "running generated C on this computer", "apt-get install gcc"))
    if not shutil.which(CROSS_COMPILER):
        missing.append(
            Missing(CROSS_COMPILER, "building firmware", "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi")
        )
    if not shutil.which(QEMU):
        missing.append(Missing(QEMU, "emulated boards", "apt-get install qemu-system-arm"))
    return tuple(missing)


def host_compiler() -> str | None:
    """The C compiler for this computer: the environment's CC, else the first of cc, gcc, clang."""
    own = os.environ.get("CC")
    for name in (own,) if own else HOST_COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    return None


def require(tool: str) -> str:
    """The path of `tool` ("cc", or a name as in `check`).

    Raises:
        ToolchainError: it is missing; the remedy says how to get it.
    """
    found = host_compiler() if tool == "cc" else shutil.which(tool)
    if found:
        return found
    remedy = next((item.remedy for item in check() if item.tool == tool), "")
    raise ToolchainError(f"{tool} is not installed", remedy=remedy)


def platformio_environment() -> dict[str, str]:
    """This process's environment, with PlatformIO's telemetry and update check off: each may wait for a network."""
    return {
        **os.environ,
        "PLATFORMIO_SETTING_ENABLE_TELEMETRY": "no",
        "PLATFORMIO_SETTING_CHECK_PLATFORMIO_INTERVAL": "9999",
        "PLATFORMIO_DISABLE_UPGRADE_CHECK": "true",
        "PLATFORMIO_NO_ANSI": "true",
    }


def _scons_release(requirement: str) -> tuple[str, str]:
    """PlatformIO's requirement of `tool-scons`, such as "~4.41101.0", as (its version, SCons' version "4.11.1").

    PlatformIO writes SCons A.B.C as A.ABBCC.0, B and C with two digits.
    """
    version = requirement.lstrip("~^=> ")
    match = re.match(r"(\d+)\.(\d)(\d\d)(\d\d)\.", version)
    if not match or match[1] != match[2]:
        raise ToolchainError(
            f"PlatformIO wants a tool-scons {requirement!r}, which is not a known SCons release",
            remedy="install the platformio version that tte names in its pyproject.toml",
        )
    return version, ".".join(str(int(match[i])) for i in (2, 3, 4))


def _scons_package() -> Path | None:
    """The installed tool-scons, if it is of the version that PlatformIO wants."""
    from platformio.package.manager.core import get_core_package_dir

    found = get_core_package_dir("tool-scons", auto_install=False)
    return Path(found) if found else None


def compiler_package() -> Path:
    """Where PlatformIO keeps the cross compiler that it fetches from its registry if none is on the PATH."""
    from platformio.project.config import ProjectConfig

    return Path(ProjectConfig.get_instance().get("platformio", "packages_dir")) / "toolchain-gccarmnoneeabi"


def prepare_platformio() -> tuple[Path, bool]:
    """Sees to it that PlatformIO has its SCons, from PyPI; does nothing if it is there already.

    The package goes where PlatformIO itself would put it: its core folder, by default ~/.platformio.

    Returns:
        The folder of tool-scons, and whether it was installed just now.

    Raises:
        ToolchainError: PlatformIO is not installed, or SCons could not be fetched.
    """
    try:
        from platformio import __version__, app
        from platformio.dependencies import get_core_dependencies
        from platformio.project.config import ProjectConfig
    except ImportError:
        raise ToolchainError("PlatformIO is not installed", remedy="pip install platformio") from None
    config = ProjectConfig.get_instance()
    packages = Path(config.get("platformio", "packages_dir"))
    try:
        # PlatformIO makes it, too, but stumbles if two processes do at once
        Path(config.get("platformio", "core_dir")).mkdir(parents=True, exist_ok=True)
        packages.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToolchainError(f"cannot make PlatformIO's folder: {error}", remedy="set PLATFORMIO_CORE_DIR") from None
    # A core folder last used by another PlatformIO would make this one ask the registry at each run.
    if app.get_state_item("last_version", __version__) != __version__:
        app.set_state_item("last_version", __version__)
    found = _scons_package()
    if found:
        return found, False
    version, release = _scons_release(get_core_dependencies()["tool-scons"])
    try:
        # a folder of our own, then one rename: of two processes at once one wins, and both are served
        with tempfile.TemporaryDirectory(dir=packages.parent, prefix="tool-scons-") as temporary:
            made = Path(temporary) / "tool-scons"
            _fetch_scons(release, made)
            _describe_package(made, version)
            found = _scons_package()
            if found:
                return found, False  # another process was first
            # a release that another PlatformIO uses stays, as when PlatformIO itself installs two
            plain = packages / "tool-scons"
            with contextlib.suppress(OSError):  # another process was first after all; looked at below
                os.rename(made, plain if not plain.exists() else packages / f"tool-scons@{version}")
    except OSError as error:
        raise ToolchainError(f"cannot install SCons for PlatformIO: {error}", where=str(packages)) from None
    found = _scons_package()
    if not found:
        raise ToolchainError("PlatformIO does not accept the SCons that was installed for it", where=str(packages))
    return found, True


def _fetch_scons(release: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--target", str(folder), f"scons=={release}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ToolchainError(
            f"cannot fetch SCons {release} from PyPI: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}",
            remedy="check the network, or run `pio pkg install --global --tool platformio/tool-scons`",
        )
    shutil.rmtree(folder / "SCons" / "Tool" / "docbook", ignore_errors=True)  # 17 MB that no build needs


def _describe_package(folder: Path, version: str) -> None:
    """The two files by which PlatformIO knows an installed package, and the script it runs."""
    spec = {"owner": "platformio", "id": None, "name": "tool-scons", "requirements": None, "uri": None}
    package = {"name": "tool-scons", "version": version, "description": "SCons, from PyPI"}
    (folder / "package.json").write_text(json.dumps(package, indent=1))
    (folder / ".piopm").write_text(
        json.dumps({"type": "tool", "name": "tool-scons", "version": version, "spec": spec}, indent=1)
    )
    (folder / "scons.py").write_text(_START_SCONS)


def main() -> int:
    """Readies PlatformIO, lists what is missing; 0 if nothing is, else 2."""
    try:
        folder, installed = prepare_platformio()
    except ToolchainError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"PlatformIO's tool-scons: {folder}{' (installed from PyPI)' if installed else ''}")
    missing = check()
    for item in missing:
        print(f"missing: {item.tool} ({item.purpose}); remedy: {item.remedy}", file=sys.stderr)
    for tool in (CROSS_COMPILER, QEMU):
        if shutil.which(tool):
            print(f"{tool}: {shutil.which(tool)}")
    print(f"C compiler of this computer: {host_compiler() or 'none'}")
    return 2 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
