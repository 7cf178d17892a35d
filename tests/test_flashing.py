"""`tte flash`: what would run, what does run through PlatformIO, and what failures of the tools are told as.

The tools are scripts that print recorded output; no probe and no board took part.
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest
from test_cli import refused, snapshot, tte
from toy import TOY, needs_cross

from tte import board, firmware, flash_failures, flashing, pioproject
from tte.errors import BoardError, DataError, DeviceError

REAL = ("stm32f746", "nucleo_f446re", "nrf52840", "rp2040")
ELF, BIN = "firmware.elf", "firmware.bin"

# Seen: OpenOCD 0.12.0, stlink 1.7.0 and pyOCD 0.46.0, run without a probe.
NO_STLINK = """Open On-Chip Debugger 0.12.0
Info : clock speed 2000 kHz
Error: open failed
in procedure 'program'
** OpenOCD init failed **
shutdown command invoked
"""
NO_CMSIS = "Error: unable to find a matching CMSIS-DAP device\n** OpenOCD init failed **\n"
NO_CONFIG = "embedded:startup.tcl:28: Error: Can't find board/nope.cfg\nin procedure 'script'\n"
NO_PYOCD = "\x1b[31mNo connected debug probes\x1b[0m\n0004531 E No target device available [load_cmd]\n"
NO_ST_FLASH = "st-flash 1.7.0\n2026-11-21T17:58:35 WARN usb.c: Couldn't find any ST-Link devices\n"
# From the tools' sources and bug reports.
NO_PICO = "No accessible RP-series devices in BOOTSEL mode were found.\n"
PICO_DENIED = NO_PICO + "RP2040 device at bus 3, address 14 appears to be in BOOTSEL mode, but picotool was unable to connect.\n"
DENIED = "Error: libusb_open() failed with LIBUSB_ERROR_ACCESS\nError: open failed\n"
ST_DENIED = "libusb: error [get_usbfs_fd] libusb couldn't open USB device /dev/bus/usb/001/050, errno=13\n" + NO_ST_FLASH
UNPOWERED = "Info : Target voltage: 0.001577\nError: target voltage may be too low for reliable debugging\n"
UNREACHED = "Info : Target voltage: 3.255227\nError: init mode failed (unable to connect to the target)\n"
WRITTEN = "** Programming Started **\nInfo : device id = 0x10016449\n"
CUT = WRITTEN + "Error: jtag_libusb_bulk_write error: LIBUSB_ERROR_NO_DEVICE\n** Programming Failed **\n"

SAID = {
    "no ST-LINK": (NO_STLINK, "openocd", "no probe was found", "USB cable"),
    "no CMSIS-DAP": (NO_CMSIS, "openocd", "no probe was found", "USB cable"),
    "no pyOCD probe": (NO_PYOCD, "pyocd", "no probe was found", "USB cable"),
    "no st-flash probe": (NO_ST_FLASH, "st-flash", "no probe was found", "USB cable"),
    "no Pico": (NO_PICO, "picotool", "no board in BOOTSEL mode", "hold BOOTSEL"),
    "permission": (DENIED, "openocd", "this user may not use", "60-openocd.rules"),
    "permission, st-flash": (ST_DENIED, "st-flash", "this user may not use", "udev rules"),
    "permission, Pico": (PICO_DENIED, "picotool", "this user may not use", "picotool/tree/master/udev"),
    "busy": ("Error: libusb_claim_interface() failed with LIBUSB_ERROR_BUSY\n", "openocd", "another program uses", "end other"),
    "several": ("More than one debug probe matches\n", "pyocd", "several probes", "`pyocd list`"),
    "no power": (UNPOWERED, "openocd", "no supply voltage", "power the board"),
    "no contact": (UNREACHED, "openocd", "does not reach the chip", "reset button"),
    "no contact, st-flash": ("Failed to connect to target\n", "st-flash", "does not reach the chip", "reset button"),
    "other chip": ("WARN common.c: unknown chip id! 0xe0042000\n", "st-flash", "the chip is not the one", "build's board"),
    "unknown target": ("0000690 C Target type stm32f746ng not recognized. Use\n", "pyocd", "does not know", "pyocd pack install"),
    "too large": ("ERROR common.c: addr too high\n", "st-flash", "does not fit", "build's board"),
    "protected": ("Error: nRF52 device has AP lock engaged\n", "openocd", "protected", "erases the chip"),
    "no script": (NO_CONFIG, "openocd", "lacks its file board/nope.cfg", "install OpenOCD"),
    "verify": ("ERROR: Verify Failed\n", "picotool", "not what was written", "cable"),
    "something else": ("boom\n", "openocd", "the upload failed; nothing was written:\nboom", "own words"),
}


@pytest.mark.parametrize("case", SAID)
def test_failures_are_explained(case: str) -> None:
    output, tool, what, remedy = SAID[case]
    found = flash_failures.explain(output, tool, None)
    assert what in found.what and "nothing was written" in found.what and "\x1b" not in found.what, found.what
    assert remedy in found.remedy and "run the same command again" in found.remedy, found.remedy


@pytest.mark.parametrize(
    "output",
    [
        CUT,
        "INFO common.c: Flash page at addr: 0x08002000 erased\n",
        "[---|---|---|---|---|---|---|---|---|----]\n[====",
        "Loading into Flash: [===               ]  10%\nERROR: Communication with RP2040 device failed\n",
    ],
)
def test_a_cut_cable(output: str) -> None:
    found = flash_failures.explain(output, "openocd", None)
    assert "broke off" in found.what and "half a program" in found.what and "repeated" in found.what


def test_a_serial_number_that_is_not_there() -> None:
    found = flash_failures.explain(NO_PYOCD, "pyocd", "12AB")
    assert "check the serial number 12AB (`pyocd list`" in found.remedy


def _build(folder: Path, name: str) -> Path:
    """A folder as `tte build` leaves it, but for the compiled program."""
    made = pioproject.generate_project(folder / name, TOY, board.load(name), name="toy")
    (made.folder / "build.json").write_text("{}")
    return made.folder


@pytest.fixture
def builds(tmp_path: Path) -> Path:
    for name in (*REAL, "mps2-an500"):
        _build(tmp_path, name)
    return tmp_path


PROGRAM = " -c 'program {FILE} verify reset exit'"
COMMANDS = {
    ("stm32f746", "openocd"): (ELF, "openocd -f board/stm32f7discovery.cfg{-c 'adapter serial 12AB'}" + PROGRAM),
    ("stm32f746", "pyocd"): (ELF, "pyocd flash -W -t stm32f746ng{-u 12AB} FILE"),
    ("stm32f746", "stlink"): (BIN, "st-flash --reset{--serial 12AB} write FILE 0x08000000"),
    ("nucleo_f446re", "openocd"): (ELF, "openocd -f board/st_nucleo_f4.cfg{-c 'adapter serial 12AB'}" + PROGRAM),
    ("nrf52840", "pyocd"): (ELF, "pyocd flash -W -t nrf52840{-u 12AB} FILE"),
    ("nrf52840", "openocd"): (
        ELF,
        "openocd -f interface/cmsis-dap.cfg -f target/nrf52.cfg{-c 'adapter serial 12AB'}" + PROGRAM,
    ),
    ("rp2040", "picotool"): (ELF, "picotool load -v -x FILE -t elf{--ser 12AB}"),
}  # fmt: skip


def _expected(name: str, protocol: str, serial: bool) -> list[str]:
    file, text = COMMANDS[name, protocol]
    text = text.replace("{FILE}", "<FILE>")
    start, _, rest = text.partition("{")
    probe, _, end = rest.partition("}")
    words = shlex.split(start + (f" {probe}" if serial else "") + end)
    path = f".pio/build/{name}/{file}"
    return [word.replace("<FILE>", f"{{{path}}}").replace("FILE", path) for word in words]


@pytest.mark.parametrize("serial", [False, True])
def test_dry_run(builds: Path, serial: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firmware, "build", lambda *_, **__: pytest.fail("a dry run builds nothing"))
    before = snapshot(builds)
    for name, protocol in COMMANDS:
        more = ("--serial", "12AB") if serial else ()
        done = tte("flash", builds / name, "--protocol", protocol, "--dry-run", "--json", *more)
        facts = json.loads(done.out)
        assert done.status == 0 and not facts["uploaded"] and facts["protocol"] == protocol
        assert shlex.split(facts["commands"]["tool"]) == _expected(name, protocol, serial)
        said = tte("flash", builds / name, "--protocol", protocol, "--dry-run", *more).out
        assert facts["commands"]["tool"] in said and f"TTE_UPLOAD_PROTOCOL={protocol} pio run -d" in said
    assert snapshot(builds) == before


def test_default_protocols(builds: Path) -> None:
    chosen = {name: flashing.plan(builds / name).protocol for name in REAL}
    assert chosen == {"stm32f746": "openocd", "nucleo_f446re": "openocd", "nrf52840": "pyocd", "rp2040": "picotool"}


def test_what_is_refused(builds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(builds))
    disco = builds / "stm32f746"
    refused(tte("flash", disco), "openocd", "is not installed", "apt-get install openocd", "--protocol pyocd or stlink",
            "official_stm32f746")  # fmt: skip
    refused(tte("flash", builds / "rp2040"), "picotool", "is not installed", "github.com/raspberrypi/picotool")
    assert "missing" in tte("flash", disco, "--dry-run").out
    refused(tte("flash", builds / "mps2-an500"), "in the emulator only")
    refused(tte("flash", disco, "--protocol", "picotool"), "'picotool'", "openocd, pyocd, stlink, custom")
    refused(tte("flash", disco, "--protocol", "custom"), "upload_command", "[env:stm32f746]")
    refused(tte("flash", disco, "--serial", "1;rm"), "no serial number")
    refused(tte("flash", builds), "no finished build here")
    (builds / "nrf52840" / "platforms/tte-cortexm/uploaders.json").unlink()
    refused(tte("flash", builds / "nrf52840"), "older version of tte")
    assert json.loads(tte("flash", disco, "--json").out)["error"]["where"] == "STM32F746G-DISCO"


def test_a_board_that_lacks_a_field(tmp_path: Path) -> None:
    folder = _build(tmp_path, "stm32f746")
    file = folder / "boards" / "stm32f746.json"
    fields = json.loads(file.read_text())
    del fields["upload"]["pyocd_target"]
    fields["upload"]["protocols"].append("carrier pigeon")
    file.write_text(json.dumps(fields))
    with pytest.raises(BoardError, match=r"upload\.pyocd_target"):
        flashing.plan(folder, protocol="pyocd")
    with pytest.raises(BoardError, match="no way to upload by 'carrier pigeon'"):
        flashing.plan(folder, protocol="carrier pigeon")


def test_a_command_of_the_user_s_own(tmp_path: Path) -> None:
    ini = _build(tmp_path, "rp2040") / "platformio.ini"
    ini.write_text(ini.read_text().replace("[env:rp2040]\n", "[env:rp2040]\nupload_command = cp $SOURCE /mnt\n"))
    found = flashing.plan(ini.parent)
    assert (found.tool, found.tool_command, found.missing) == ("", "cp $SOURCE /mnt", None)


IN_PARTS = (
    "st-flash{} write .pio/build/{}/firmware_head.bin 0x08000000 && "
    "st-flash --reset{} write .pio/build/{}/firmware_rest.bin {}"
)


@needs_cross
def test_no_upload_writes_the_flash_that_keeps_trained_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in two parts is uploaded so by the tool that would write the gap, too."""
    tools = tmp_path / "tools"
    _tool(tools, "st-flash", "", 0)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    for name, address in (("stm32f746", "0x08040000"), ("nucleo_f446re", "0x08020000")):
        loaded = board.load(name)
        assert loaded.flash
        folder = _build(tmp_path, name)
        pioproject.generate_project(folder, TOY, loaded, name="toy", keep_bytes=8)
        found = flashing.plan(folder, protocol="stlink", serial="12AB")
        probe = " --serial 12AB"
        assert found.tool_command == IN_PARTS.format(probe, name, probe, name, address) and not found.notes
        assert not flashing.plan(folder, protocol="openocd").notes
        (tools / "called").write_text("")
        (tools / "st-flash").write_text(f'#!/bin/sh\necho "$@" >> {tools}/called\n')
        flashing.flash(found, show=lambda _: None, say=lambda _: None)
        written = [line.split() for line in (tools / "called").read_text().splitlines()]
        assert len(written) == 2
        for line in written:
            file, start = folder / line[-2] if not line[-2].startswith("/") else Path(line[-2]), int(line[-1], 0)
            end = start + file.stat().st_size
            assert start < end and (end <= loaded.flash.org or start >= loaded.flash.org + loaded.flash.nbytes)


def test_a_tool_that_would_write_the_gap_is_spoken_of(tmp_path: Path) -> None:
    folder = _build(tmp_path, "stm32f746")
    pioproject.generate_project(folder, TOY, board.load("stm32f746"), name="toy", keep_bytes=8)
    table = folder / "platforms/tte-cortexm/uploaders.json"
    fields = json.loads(table.read_text())
    del fields["stlink"]["parts"]
    table.write_text(json.dumps(fields))
    assert "is erased" in flashing.plan(folder, protocol="stlink").notes[0]


def _tool(folder: Path, name: str, output: str, status: int) -> None:
    """A tool that notes how it was called, prints `output` and ends."""
    folder.mkdir(exist_ok=True)
    (folder / "output").write_text(output)
    script = folder / name
    script.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$PWD" "$@" > {folder}/called\nls -l "$PWD"/.pio/build/*/{ELF} >> {folder}/built\n'
        f"cat {folder}/output >&2\nexit {status}\n"
    )
    script.chmod(0o755)


@needs_cross
def test_through_platformio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds by itself, runs exactly what the dry run prints, and tells a failure."""
    folder = _build(tmp_path / "the builds", "stm32f746")
    tools = tmp_path / "tools"
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    _tool(tools, "openocd", WRITTEN + "** Verified OK **\n", 0)
    done = tte("flash", folder, "--serial", "12AB")
    assert done.status == 0 and "uploaded" in done.out, done.err
    assert "** Verified OK **" in done.err
    called = (tools / "called").read_text().splitlines()
    assert called == [str(folder), *_expected("stm32f746", "openocd", True)[1:]]
    assert ELF in (tools / "built").read_text()
    before = snapshot(folder / ".pio" / "build" / "stm32f746")
    _tool(tools, "st-flash", "INFO common.c: Flash page at addr: 0x08002000 erased\nlibusb: LIBUSB_ERROR_NO_DEVICE\n", 1)
    refused(tte("flash", folder, "--protocol", "stlink"), "STM32F746G-DISCO, by st-flash", "broke off",
            "half a program", "run the same command again")  # fmt: skip
    called = (tools / "called").read_text().splitlines()
    assert called[1:] == _expected("stm32f746", "stlink", False)[1:]
    assert {k: v for k, v in snapshot(folder / ".pio" / "build" / "stm32f746").items() if k in (ELF, BIN)} == {
        k: v for k, v in before.items() if k in (ELF, BIN)
    }


def test_a_tool_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, tools = _build(tmp_path, "stm32f746"), tmp_path / "tools"
    _tool(tools, "openocd", "", 0)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(firmware, "build", lambda *_, **__: None)
    hanging = [str(tools / "hang")]
    (tools / "hang").write_text("#!/bin/sh\necho '** Programming Started **'\nsleep 60 & wait\n")
    (tools / "hang").chmod(0o755)
    real = flashing._run
    monkeypatch.setattr(flashing, "_run", lambda _, *rest: real(hanging, *rest))
    shown: list[str] = []
    with pytest.raises(DeviceError, match=r"longer than 1 s .*half a program"):
        flashing.flash(flashing.plan(folder), show=shown.append, say=lambda _: None, timeout_s=1)
    assert "Programming Started" in "".join(shown)


def test_not_a_build(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished build"):
        flashing.plan(tmp_path / "nothing")
