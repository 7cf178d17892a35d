"""The scripts for Renode: their syntax, and that they name what the build and the board have. Renode itself is not run here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from toy import TOY

from tte import board, pioproject, renode
from tte.errors import BoardError

HASH = "0123456789abcdef"
PLAYED = ("stm32f746", "nrf52840")

# The monitor's grammar, as far as these scripts use it: https://renode.readthedocs.io/en/latest/basic/monitor-syntax.html
_PATH = r"(@[\w./-]+|\$ORIGIN/[\w./-]+|\$\w+)"
_MONITOR = re.compile(
    rf""":\w+:\ .+ | \#.* | using\ sysbus | \$\w+\ \?=\ (\d+|{_PATH}) | mach\ create\ "\w+"
    | machine\ LoadPlatformDescription\ {_PATH}
    | emulation\ CreateServerSocketTerminal\ (\d+|\$\w+)\ "\w+"\ (true|false) | connector\ Connect\ sysbus\.\w+\ \w+
    | macro\ \w+ | runMacro\ \$\w+ | sysbus\ LoadELF\ {_PATH} | cpu\ VectorTableOffset\ 0x[0-9a-f]{{8}}""",
    re.VERBOSE,
)
# Keywords that renode-test brings along, for a dry run without it.
_KEYWORDS = """*** Keywords ***
Setup
    No Operation
Teardown
    No Operation
Reset Emulation
    No Operation
Execute Command
    [Arguments]    ${command}
    No Operation
Create Terminal Tester
    [Arguments]    ${uart}    ${timeout}=30    ${binaryMode}=false
    No Operation
Start Emulation
    No Operation
Wait For Bytes On Uart
    [Arguments]    ${bytes}
    No Operation
"""


def problems(script: str) -> list[str]:
    """What is wrong with a .resc: lines that are no command, macros left open, names used before they are there."""
    found, known, open_macro = [], {"ORIGIN"}, False
    lines = [line.strip() for line in script.splitlines() if line.strip()]
    for line in lines:
        if line == '"""':
            open_macro = not open_macro
            continue
        if not _MONITOR.fullmatch(line):
            found.append(f"no command: {line}")
        made = re.match(r"\$(\w+) \?=|macro (\w+)", line)
        used = re.findall(r"\$(\w+)", line.split("?=")[-1])
        if not line.startswith("#"):
            found += [f"unknown ${name}: {line}" for name in used if name not in known]
        if made:
            known.add(made[1] or made[2])
    if open_macro:
        found.append("an open macro")
    return found


def test_the_checker_finds_what_is_wrong() -> None:
    good = renode.files(board.load("stm32f746"), "stm32f746", "toy", HASH)["renode/toy.resc"]
    assert not problems(good)
    for old, new in (("runMacro", "runMakro"), ("$elf ?=", "$alf ?="), ('"""\nrun', "run"), ('"link" false', '"link"'),
                     ("@platforms", "platforms"), ("VectorTableOffset 0x", "VectorTableOffset ")):  # fmt: skip
        assert old in good and problems(good.replace(old, new, 1)), old


@pytest.mark.parametrize("name", PLAYED)
def test_scripts(name: str, tmp_path: Path) -> None:
    loaded = board.load(name)
    assert loaded.renode
    files = renode.files(loaded, name, "toy", HASH)
    made = pioproject.generate_project(tmp_path / "project", TOY, loaded, name="toy", more=files)
    folder = made.folder / "renode"
    assert not problems((folder / "toy.resc").read_text())
    script = (folder / "toy.resc").read_text()
    assert f"$ORIGIN/../.pio/build/{made.env()}/firmware.elf" in script
    assert f"cpu VectorTableOffset {loaded.flash_org:#010x}" in script and f"sysbus.{loaded.renode.uart} link" in script
    if name == "nrf52840":  # the firmware drives the UART without DMA
        assert "machine LoadPlatformDescription $ORIGIN/toy.repl" in script
        text = (folder / "toy.repl").read_text()
        assert re.fullmatch(r'// .*\nusing "platforms/cpus/nrf52840\.repl"\n\nuart0:\n    easyDMA: false\n', text), text
    else:
        assert "machine LoadPlatformDescription @platforms/cpus/stm32f746.repl" in script
        assert dict(loaded.link_settings)["usart"] == 0x40011000 and loaded.renode.uart == "usart1"
        assert not (folder / "toy.repl").exists()
    test = (folder / "toy.robot").read_text()
    assert "  ".join(f"0x{byte:02X}" for byte in renode.describe_request()) in test
    assert " ".join(f"{byte:02X}" for byte in HASH.encode()) in test
    # another board's build in the same folder leaves none of them behind
    pioproject.generate_project(made.folder, TOY, board.load("rp2040"), name="toy")
    assert not list(folder.iterdir())


def test_robot_accepts_the_tests(tmp_path: Path) -> None:
    """Robot Framework's own dry run: it parses, resolves variables and looks for keywords; a misspelt one it finds."""
    pytest.importorskip("robot", reason="robotframework is not installed")
    (tmp_path / "keywords.resource").write_text(_KEYWORDS)
    for name in PLAYED:
        text = renode.files(board.load(name), name, "toy", HASH)["renode/toy.robot"]
        (tmp_path / f"{name}.robot").write_text(text)
        (tmp_path / "misspelt.robot").write_text(text.replace("Wait For Bytes On Uart", "Wait For Bites On Uart"))
    command = [sys.executable, "-m", "robot", "--dryrun", "--output", "NONE", "--log", "NONE", "--report", "NONE"]
    command += ["--variable", f"RENODEKEYWORDS:{tmp_path / 'keywords.resource'}", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1 and "3 tests, 2 passed, 1 failed" in done.stdout, done.stdout + done.stderr
    assert "No keyword with name 'Wait For Bites On Uart'" in done.stdout and "ERROR" not in done.stderr, done.stderr


def test_boards_that_renode_does_not_play() -> None:
    assert {name for name in board.names() if board.load(name).renode} == set(PLAYED)
    assert renode.files(board.load("rp2040"), "rp2040", "toy", HASH) == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [("platform", "../x.repl"), ("platform", "a b.repl"), ("uart", "uart0; quit"), ("overlay", ["a\nb"]), ("overlay", "uart0:")],
)
def test_bad_records(field: str, value: object, tmp_path: Path) -> None:
    fields = json.loads(board.load("nrf52840").manifest)
    fields["tte"]["renode"][field] = value
    (tmp_path / "mine.json").write_text(json.dumps(fields))
    with pytest.raises(BoardError, match=rf"tte\.renode\.{field}"):
        board.load(tmp_path / "mine.json")
