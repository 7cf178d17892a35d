"""The firmware round a small hand-written library: on this computer, and in QEMU on every emulated machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy import (
    FIXTURES,
    HANG,
    LOOP,
    OVERFLOW_STACK,
    TOY,
    WRITE_FLASH,
    WRITE_PAST_RAM,
    WRITE_RAM_END,
    X,
    converse,
    instead_of_counting,
    needs_cross,
    needs_host,
    needs_qemu,
    with_define,
)

from tte import board, firmware, image, native, pioproject, resources, toolchain
from tte.device import session
from tte.device.protocol import TraceStep
from tte.device.session import Session
from tte.errors import BoardError, DataError, DeviceError, ToolchainError, TteError

MACHINES = ("mps2-an500", "mps2-an386", "mps2-an385", "netduinoplus2", "microbit")
REAL = ("stm32f746", "nucleo_f446re", "nrf52840", "rp2040")


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pioproject.Project]:
    folder = tmp_path_factory.mktemp("projects of the tests")  # with spaces: paths must survive them
    return {
        name: pioproject.generate_project(folder / name, TOY, board.load(name), name="toy") for name in (*MACHINES, *REAL)
    }


@needs_host
@pytest.mark.parametrize("sanitize", [True, False])
def test_host(projects: dict[str, pioproject.Project], sanitize: bool) -> None:
    program = native.build_host(projects["stm32f746"], sanitize=sanitize)
    made = program.stat().st_mtime_ns
    assert native.build_host(projects["stm32f746"], sanitize=sanitize).stat().st_mtime_ns == made
    with session.open_host(program) as device:
        assert converse(device) == [0, 0, 0, 0]


@needs_host
def test_host_finds_write_past_arena(projects: dict[str, pioproject.Project]) -> None:
    program = native.build_host(projects["stm32f746"])
    with session.open_host(program) as device, pytest.raises(DeviceError, match=r"runtime error|AddressSanitizer"):
        device.train(X, WRITE_PAST_RAM)


@needs_host
def test_host_that_hangs(projects: dict[str, pioproject.Project]) -> None:
    program = native.build_host(projects["stm32f746"])
    with session.open_host(program, timeout_s=0.5) as device, pytest.raises(DeviceError, match=r"within 0\.5 s"):
        device.train(X, HANG)


@needs_host
def test_target_and_wrong_arguments(tmp_path: Path) -> None:
    files = with_define("#define TOY_TARGET_BYTES 4")
    project = pioproject.generate_project(tmp_path, files, board.load("stm32f746"), name="toy")
    with session.open_host(native.build_host(project)) as device:
        assert device.describe().target_bytes == 4
        device.train(X, target=np.array([127, -128, 127, -128], np.int8))
        assert device.read_state()[:4] == bytes([2, 1, 4, 3])
        with pytest.raises(DeviceError, match="learns from a target"):
            device.train(X, 1)
        with pytest.raises(DeviceError, match="64 int8 elements"):
            device.infer(X[1:])
        with pytest.raises(DeviceError, match="64 int8 elements"):
            device.infer(X.astype(np.float32))


def test_programs_that_do_not_answer(tmp_path: Path) -> None:
    for body, says in (("exit 3", "exit status 3"), ("echo oh dear >&2; kill -SEGV $$", "(?s)SIGSEGV.*oh dear")):
        script = tmp_path / "program"
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)
        with session.open_host(script, timeout_s=5) as device, pytest.raises(DeviceError, match=says):
            device.describe()
    with pytest.raises(DeviceError, match="cannot start"):
        session.open_host(tmp_path / "nothing")


def _trace(device: Session) -> list[TraceStep]:
    steps: list[TraceStep] = []
    device.train(X, 1, on_step=steps.append)
    return steps


@needs_qemu
@pytest.mark.parametrize("machine", MACHINES)
def test_qemu(projects: dict[str, pioproject.Project], machine: str) -> None:
    project = projects[machine]
    built = firmware.build(project)
    assert {item.name for item in built.variables} >= {"arena", "state"}
    counted = []
    for icount in (True, True, False):
        with session.open_qemu(built.elf, project.board, icount=icount, timeout_s=30) as device:
            counts = converse(device)
            stack = device.counters()
        if icount:
            # five rounds of 1000 times four instructions, and a few around the loop
            assert 0 < counts[0] < 1000 and 20_000 <= counts[3] - counts[2] < 20_010, counts
            counted.append(counts)
        assert 0 < stack.stack_bytes <= built.stack_bound_bytes <= stack.stack_reserve_bytes
        assert stack.stack_reserve_bytes == project.board.stack_bytes == built.stack_reserve_bytes
    assert counted[0] == counted[1]


@needs_qemu
def test_qemu_counts_past_the_timer_s_wrap(projects: dict[str, pioproject.Project]) -> None:
    project = projects["mps2-an500"]
    with session.open_qemu(firmware.build(project).elf, project.board, timeout_s=60) as device:
        short, long = device.train(X, LOOP + 1).instructions, device.train(X, LOOP + 350_001).instructions
        assert long - short == 1_400_000_000


# What the error says; without an MPU (the Cortex-M0) the core faults, but does not know at which address.
FAULTS = {
    WRITE_PAST_RAM: "exit status 127.*fault: (memory protection, address 0x{past:08x}|address unknown), .*counter 0x",
    OVERFLOW_STACK: "exit status 127.*fault: stack overflow",
    WRITE_FLASH: "exit status 127.*fault: (memory protection, address 0x{flash:08x}|address unknown), .*counter 0x",
    HANG: "did not answer within 1 s",
}


@needs_qemu
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("label", FAULTS)
def test_qemu_fault(projects: dict[str, pioproject.Project], machine: str, label: int) -> None:
    project = projects[machine]
    emulator = project.board.emulator
    assert emulator
    says = "(?s)" + FAULTS[label].format(past=emulator.ram_org + project.board.ram_bytes, flash=emulator.flash_org)
    if emulator.mpu:
        says = says.replace("|address unknown", "")
    elf = firmware.build(project).elf
    with session.open_qemu(elf, project.board, timeout_s=1) as device:
        device.train(X, WRITE_RAM_END)  # the last word is still the board's
        with pytest.raises(DeviceError, match=says):
            device.train(X, label)
        with pytest.raises(DeviceError, match="over"):
            device.counters()


@needs_qemu
@pytest.mark.parametrize("name", REAL)
def test_real_board_and_its_twin(projects: dict[str, pioproject.Project], name: str) -> None:
    project = projects[name]
    built = firmware.build(project)
    content = built.elf.with_suffix(".bin").read_bytes()
    assert abs(len(content) - built.flash_bytes) < 8
    vectors = 256 if name == "rp2040" else 0
    stack_top, reset = np.frombuffer(content[vectors : vectors + 8], "<u4").tolist()
    assert stack_top == project.board.ram_org + project.board.stack_bytes
    assert reset & 1 and project.board.flash_org < reset < project.board.flash_org + len(content)
    twin = firmware.build(project, project.env(emulated=True))
    with session.open_qemu(twin.elf, project.board, timeout_s=30) as device:
        converse(device)
    with session.open_qemu(twin.elf, project.board, timeout_s=30) as device:
        device.train(X, WRITE_RAM_END)
        with pytest.raises(DeviceError, match=f"address 0x{0x20000000 + project.board.ram_bytes:08x}"):
            device.train(X, WRITE_PAST_RAM)


@needs_qemu
def test_trace_is_the_same_on_host_and_qemu(projects: dict[str, pioproject.Project]) -> None:
    project = projects["stm32f746"]
    elf = firmware.build(project, project.env(emulated=True, trace=True)).elf
    with session.open_qemu(elf, project.board, timeout_s=30) as device:
        emulated = _trace(device)
    with session.open_host(native.build_host(project, trace=True)) as device:
        native_steps = _trace(device)
    assert [step.index for step in emulated] == [step.index for step in native_steps] == [0, 1]
    for one, other in zip(emulated, native_steps, strict=True):
        assert one.arena.shape == (128,) and np.array_equal(one.arena, other.arena)


@needs_qemu
def test_window_smaller_than_the_board(tmp_path: Path) -> None:
    loaded = board.load("mps2-an500")
    with pytest.raises(BoardError, match="RAM window of 33 bytes"):
        pioproject.generate_project(tmp_path, TOY, loaded, name="toy", ram_window_bytes=33)
    # an odd size takes many regions; the program's own RAM fits into it
    project = pioproject.generate_project(tmp_path, TOY, loaded, name="toy", stack_bytes=640, ram_window_bytes=1696)
    built = firmware.build(project)
    assert built.stack_reserve_bytes == 640 and 640 + built.ram_static_bytes <= 1696
    with session.open_qemu(built.elf, loaded, timeout_s=10) as device:
        converse(device)
        with pytest.raises(DeviceError, match="fault: memory protection, address 0x2004fffc"):
            device.train(X, WRITE_RAM_END)


@needs_cross
@pytest.mark.parametrize(
    ("files", "error", "says"),
    [
        (
            with_define("#define TOY_EXTRA_BYTES 16384"),
            BoardError,
            r"needs \d+ bytes more RAM.*\n.*16384 bytes of RAM",
        ),
        ({**TOY, "src/bad.c": "int f(void) { int x; return 1 }"}, ToolchainError, "(?s)build failed.*bad.c:1"),
        ({**TOY, "src/warn.c": "int w(void);\nint w(void) { int x; return 1; }"}, ToolchainError, "unused variable"),
        (
            instead_of_counting(b"step = (uint32_t)((float)step * 1.5f);"),
            ToolchainError,
            "floating-point routines.*__aeabi_f",
        ),
        (
            {
                **TOY,
                "src/toy.c": TOY["src/toy.c"].replace(b"++step;", b"if (++step < 5) { label += toy_train_step(3); }"),
            },
            ToolchainError,
            "recurses: toy_train_step -> toy_train_step",
        ),
        (
            {
                **TOY,
                "src/toy.c": TOY["src/toy.c"].replace(
                    b"++step;", b"volatile int8_t a[9000]; a[step] = 1; step += (uint32_t)a[step];"
                ),
            },
            BoardError,
            r"stack may need \d+ bytes, \d+ too many",
        ),
    ],
    ids=["RAM", "syntax", "warning", "float", "recursion", "stack"],
)
def test_what_cannot_be_built(files: dict[str, str | bytes], error: type[TteError], says: str, tmp_path: Path) -> None:
    project = pioproject.generate_project(tmp_path, files, board.load("microbit"), name="toy")
    with pytest.raises(error, match=says):
        firmware.build(project)


def test_project_can_be_written_again(tmp_path: Path) -> None:
    project = pioproject.generate_project(tmp_path, {**TOY, "src/old.c": "int old;"}, board.load("rp2040"), name="toy")
    (tmp_path / "src" / "mine.c").write_text("int mine;")
    kept = (tmp_path / "src" / "main.c").stat().st_mtime_ns
    pioproject.generate_project(tmp_path, TOY, board.load("nrf52840"), name="toy")
    assert not (tmp_path / "lib/toy/src/old.c").exists() and not (tmp_path / "src/rp2040_boot2.c").exists()
    assert (tmp_path / "src" / "mine.c").exists() and (tmp_path / "src" / "main.c").stat().st_mtime_ns == kept
    opened = pioproject.open_project(tmp_path)
    assert (opened.board.name, opened.library) == ("nrf52840", "toy") and project.folder == opened.folder
    with pytest.raises(DataError, match="leads out"):
        pioproject.generate_project(tmp_path, {"../../evil.c": ""}, board.load("rp2040"), name="toy")
    with pytest.raises(DataError, match="tte build"):
        pioproject.open_project(tmp_path / "src")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        pioproject.generate_project(tmp_path / "file" / "sub", TOY, board.load("rp2040"), name="toy")


@needs_qemu
def test_large_arena_and_a_project_written_again(tmp_path: Path) -> None:
    """Traces of 200 KB pass whole; a second build forgets the functions of sources that have gone."""
    loaded = board.load("stm32f746")
    apart = b'#include "toy.h"\nuint32_t toy_step(void) { volatile uint8_t a[3000]; a[0] = 1; return a[0]; }'
    body = b"uint32_t toy_step(void)\n{\n    return step;\n}\n"
    assert body in TOY["src/toy.c"]
    old = {**TOY, "src/toy.c": TOY["src/toy.c"].replace(body, b""), "src/old.c": apart}
    assert firmware.build(pioproject.generate_project(tmp_path, old, loaded, name="toy")).stack_bound_bytes > 3000
    large = with_define("#define TOY_EXTRA_BYTES 200000")
    project = pioproject.generate_project(tmp_path, large, loaded, name="toy")
    assert firmware.build(project).stack_bound_bytes < 1000
    elf = firmware.build(project, project.env(emulated=True, trace=True)).elf
    with session.open_qemu(elf, loaded, timeout_s=30) as device:
        assert [step.arena.size for step in _trace(device)] == [200128, 200128]


def test_no_emulator(tmp_path: Path) -> None:
    plain = replace(board.load("stm32f746"), emulator=None)
    project = pioproject.generate_project(tmp_path, TOY, plain, name="toy")
    assert "qemu" not in (tmp_path / "platformio.ini").read_text()
    with pytest.raises(BoardError, match="no emulator"):
        project.env(emulated=True)


@needs_cross
def test_rp2040_boot_stage_is_what_its_source_says(tmp_path: Path) -> None:
    source = (resources.path("firmware") / "src" / "rp2040_boot2.c").read_text()
    *code, last = re.findall(r"(?:0x[0-9A-F]{2}, ?)+", source)
    held = bytes(int(value, 16) for line in code for value in re.findall(r"0x(\w\w)", line))
    crc = bytes(int(value, 16) for value in re.findall(r"0x(\w\w)", last))
    boot2 = FIXTURES / "rp2040_boot2" / "boot2.S"
    subprocess.run(["arm-none-eabi-gcc", "-c", boot2, "-o", tmp_path / "o"], check=True)
    subprocess.run(["arm-none-eabi-objcopy", "-O", "binary", "-j", ".text", tmp_path / "o", tmp_path / "b"], check=True)
    assert (tmp_path / "b").read_bytes() == held
    # CRC-32 with neither bit order reversed nor result inverted, from zlib's, which does both
    flipped = bytes(int(f"{value:08b}"[::-1], 2) for value in held.ljust(252, b"\0"))
    assert int.from_bytes(crc, "little") == int(f"{zlib.crc32(flipped) ^ 0xFFFFFFFF:032b}"[::-1], 2)


def test_missing_tools(projects: dict[str, pioproject.Project], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert [item.tool for item in toolchain.check()] == ["cc", "arm-none-eabi-gcc", "qemu-system-arm"]
    with pytest.raises(ToolchainError, match=r"(?s)qemu-system-arm is not installed.*apt-get install qemu-system-arm"):
        session.open_qemu(tmp_path / "x.elf", board.load("mps2-an500"))
    with pytest.raises(ToolchainError, match=r"(?s)cc is not installed.*apt-get install gcc"):
        native.build_host(projects["stm32f746"])


@needs_qemu
def test_emulator_leaves_nothing_behind(
    projects: dict[str, pioproject.Project], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    broken = tmp_path / "broken.elf"
    broken.write_bytes(b"no program")
    start = time.monotonic()
    with session.open_qemu(broken, board.load("mps2-an500"), timeout_s=5) as device, pytest.raises(DeviceError):
        device.describe()
    assert time.monotonic() - start < 20
    assert [file.name for file in tmp_path.iterdir()] == ["broken.elf"]


@needs_cross
def test_platformio_is_readied_in_a_new_home(projects: dict[str, pioproject.Project], tmp_path: Path) -> None:
    """Two at once, from nothing, in a core folder of their own; then plain `pio run`, as a user would call it."""
    environment = {**os.environ, "PLATFORMIO_CORE_DIR": str(tmp_path / "core")}
    command = [sys.executable, "-m", "tte.toolchain"]
    root = Path(__file__).parent.parent
    both = [subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert all("tool-scons" in text for text in said)
    packages = tmp_path / "core" / "packages"
    assert [file.name for file in packages.iterdir()] == ["tool-scons"]
    assert json.loads((packages / "tool-scons" / "package.json").read_text())["name"] == "tool-scons"
    again = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert "installed from PyPI" not in again.stdout
    project = shutil.copytree(projects["nucleo_f446re"].folder, tmp_path / "copy", ignore=lambda *_: [".pio", "host"])
    done = subprocess.run(
        [sys.executable, "-m", "platformio", "run", "-d", project, "-e", "nucleo_f446re"],
        env={**toolchain.platformio_environment(), **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert image.read(project / ".pio/build/nucleo_f446re/firmware.elf", 0x08000000, 512 << 10).flash_bytes > 1000
