"""Keeping trained state in flash: power cuts at every operation, wear, junk, other programs' records; drivers, linker."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from c_harness import SANITIZE, compilers
from store_bench import WARNINGS, build_harness, device_program, kill_often, run_harness, sources
from studies import powercut
from toy import TOY, needs_cross, needs_host, needs_qemu

from tte import board, firmware, image, keeping, native, pioproject, toolchain
from tte.board import FlashArea
from tte.device import session
from tte.errors import BoardError

REAL = ("stm32f746", "nucleo_f446re", "nrf52840", "rp2040")
SECTIONS = {"stm32f746": 4, "nucleo_f446re": 4, "nrf52840": 64, "rp2040": 128}


@pytest.fixture(scope="module", params=compilers())
def harness(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(f"store-{request.param}")
    return build_harness(folder, request.param, "-O1", "-g", *SANITIZE)


@pytest.mark.parametrize("seed", [1, 2])
def test_power_cut_at_every_operation(harness: Path, seed: int) -> None:
    lines = run_harness(harness, "power", seed, 25)
    assert [line["unit"] for line in lines] == ["1", "4", "8", "256"]
    assert 10 < sum(int(line["erased"]) for line in lines) < 90  # of 100 lives: some saves erase, some append
    for line in lines:
        count = {name: int(value) for name, value in line.items()}
        assert count["new"] + count["old"] + count["none"] == count["stops"] > 100
        assert count["new"] and count["old"] and count["none"] and count["twice"]


def test_weak_units_lose_nothing_that_was_saved(harness: Path) -> None:
    for line in run_harness(harness, "weak", 1, 250):
        count = {name: int(value) for name, value in line.items()}
        assert count["cuts"] > 4000 and count["faults"] > 1000 and count["starts"] > 10_000
        assert count["back"] > 200 and count["wavered"] > 20  # what was cut was there at one start, and not at the next


def test_table_of_counts(tmp_path: Path) -> None:
    text = powercut.table(powercut.measure(tmp_path, lives=5, seed=3))
    assert re.search(r"\| 256 \| 5 \| [\d,]+ \|", text) and text.count("\n") == 7


def test_wear_is_spread(harness: Path) -> None:
    for line in run_harness(harness, "wear", 1, 200):
        most, least, cuts = int(line["most"]), int(line["least"]), int(line["cuts"])
        assert most - least <= (1 if cuts == 0 else 4 + cuts // 8), line
        assert int(line["idle"]) == (2 if line["case"] == "many-sectors" else 0), line  # 32 sectors by threes
    restarted, running = (run_harness(harness, "wear", 1, 200)[i] for i in (4, 3))
    assert int(running["most"]) < int(restarted["most"])  # within a run, records share a slot


def test_worn_sectors_end_saving_and_keep_what_was_saved(harness: Path) -> None:
    for line in run_harness(harness, "worn", 1, 30):
        assert int(line["saves"]) >= int(line["endurance"]) * (int(line["slots"]) - 1)


def test_operations_that_fail(harness: Path) -> None:
    (line,) = run_harness(harness, "faults", 1, 80)
    assert int(line["failed"]) > 100 and int(line["erases"]) > 10


def test_junk_is_never_a_state(harness: Path) -> None:
    (line,) = run_harness(harness, "garbage", 1, 600)
    assert int(line["accepted"]) > 10 and int(line["refused"]) > 300


def test_sequence_numbers_wrap(harness: Path) -> None:
    assert run_harness(harness, "wrap", 1, 30)


def test_state_that_changes_is_not_mixed(harness: Path) -> None:
    (line,) = run_harness(harness, "changing", 1, 60)
    assert int(line["kept"]) > 50 and int(line["refused"]) > 50


def test_reasons(harness: Path) -> None:
    text = (sources() / "store.h").read_text()
    reasons = dict(re.findall(r"STORE_(\w+) = (\d+)", text))
    (line,) = run_harness(harness, "others", 1, 1)
    assert line == {
        "nothing": reasons["EMPTY"], "same": reasons["OK"], "model": reasons["OTHER_MODEL"],
        "length": reasons["OTHER_LENGTH"], "version": reasons["OTHER_VERSION"], "damaged": reasons["DAMAGED"],
        "foreign-damaged": reasons["EMPTY"], "large": reasons["TOO_LARGE"], "over": reasons["TOO_LARGE"],
        "edge": reasons["OTHER_LENGTH"], "huge": reasons["TOO_LARGE"],
    }  # fmt: skip


def test_slots_as_the_firmware_counts_them(harness: Path) -> None:
    for line in run_harness(harness, "fits", 1, 400):
        unit, count, size, count2, size2, state, slots = map(int, line.values())
        area = FlashArea(
            "flash_model", 0, 0, unit, 0, 0, tuple(run for run in ((count, size), (count2, size2)) if run[0])
        )
        assert keeping.slots(area, state) == slots, line
        largest = keeping.largest_state(area)
        assert largest < 0 or keeping.slots(area, largest) >= 2 > keeping.slots(area, largest + 1)


DRIVERS = [("cortex-m7", "flash_stm32f7"), ("cortex-m4", "flash_stm32f4"), ("cortex-m4", "flash_nrf52"),
           ("cortex-m0plus", "flash_rp2040"), ("cortex-m0", "flash_model"), ("cortex-m0", "flash_none")]  # fmt: skip


@needs_cross
@pytest.mark.parametrize(("core", "driver"), DRIVERS)
def test_drivers_compile(core: str, driver: str, tmp_path: Path) -> None:
    files = [f"{driver}.c", "store.c", "store_save.c", "crc32.c", "flash_mapped.c"]
    files += ["flash_stm32.c"] if "stm32" in driver else []
    flags = [f"-mcpu={core}", "-mthumb", "-O2", *WARNINGS, "-Wconversion", "-ffreestanding", f"-I{sources()}"]
    for file in files:
        out = tmp_path / "made.o"
        subprocess.run(["arm-none-eabi-gcc", *flags, "-c", str(sources() / file), "-o", str(out)], check=True)


@needs_cross
@pytest.mark.parametrize("name", REAL)
def test_program_keeps_off_the_kept_sectors(name: str, tmp_path: Path) -> None:
    """With the real driver: what is linked lies outside the area, and the stack's bound is known."""
    loaded = board.load(name)
    area = loaded.flash
    assert area and sum(count for count, _ in area.runs) == SECTIONS[name]
    assert keeping.slots(area, 96 * 1024 - 68) >= 2 or name == "nucleo_f446re"
    for emulated in (False, True):
        built = device_program(tmp_path / str(emulated), loaded, emulated=emulated)
        where = loaded.emulator if emulated and loaded.emulator else loaded
        kept = range(
            area.org - loaded.flash_org + where.flash_org, area.org - loaded.flash_org + where.flash_org + area.nbytes
        )
        program = image.read(built.elf, where.flash_org, loaded.flash_bytes)
        for section in program.sections:
            assert section.address + section.size <= kept.start or section.address >= kept.stop, section
        assert built.kept_flash_bytes == area.nbytes and built.flash_bytes < 32 * 1024 + 10_000  # with the gap before
        assert not program.float_routines and 0 < built.stack_bound_bytes < built.stack_reserve_bytes
    assert pioproject.open_project(tmp_path / "False").keeps


@needs_cross
def test_code_for_flash_that_cannot_be_read_lies_in_ram(tmp_path: Path) -> None:
    built = device_program(tmp_path, board.load("rp2040"), emulated=False)
    listing = subprocess.run(
        ["arm-none-eabi-objdump", "-d", "-j", ".data", str(built.elf)], capture_output=True, text=True, check=True
    ).stdout
    body = listing[listing.index("<change>:") :]
    assert "PRIMASK" in body and body.count("blx") == 6
    assert not re.search(r"\sbl\s", body)  # nothing it calls lies in flash


@needs_cross
def test_program_too_large_beside_the_kept_sectors(tmp_path: Path) -> None:
    large = {
        **TOY,
        "src/large.c": "const unsigned char large[800000] = {1}; const unsigned char *see(void) { return large; }",
    }
    main = b"const unsigned char *see(void);\n"
    large["src/toy.c"] = main + TOY["src/toy.c"].replace(b"++step;", b"++step; state[7] = see()[step & 1];")
    for keep in (None, 1000):
        project = pioproject.generate_project(
            tmp_path / str(keep), large, board.load("mps2-an500"), name="toy", keep_bytes=keep
        )
        if keep is None:
            assert firmware.build(project).flash_bytes > 800_000
        else:
            with pytest.raises(BoardError, match="more FLASH than there is") as caught:
                firmware.build(project)
            assert "786432 bytes of FLASH (262144 of flash are for trained state)" in caught.value.limit


def test_state_that_does_not_fit_twice(tmp_path: Path) -> None:
    loaded = board.load("stm32f746")
    for size, fits in ((3 * 32768 - 68, True), (3 * 32768 - 67, False)):
        if fits:
            pioproject.generate_project(tmp_path, TOY, loaded, name="toy", keep_bytes=size)
        else:
            with pytest.raises(BoardError, match="does not hold 98,237 bytes twice") as caught:
                pioproject.generate_project(tmp_path, TOY, loaded, name="toy", keep_bytes=size)
            assert caught.value.limit == "98,236 bytes of state"
    with pytest.raises(BoardError, match="names no flash"):
        pioproject.generate_project(tmp_path, TOY, replace(loaded, flash=None), name="toy", keep_bytes=1)


@needs_host
def test_host_program_with_keeping(tmp_path: Path) -> None:
    project = pioproject.generate_project(tmp_path, TOY, board.load("stm32f746"), name="toy", keep_bytes=8)
    with session.open_host(native.build_host(pioproject.open_project(tmp_path))) as device:
        assert device.describe().state_bytes == 8
    assert project.keeps


@needs_qemu
@pytest.mark.parametrize("machine", ["mps2-an500", "netduinoplus2", "microbit"])
def test_killed_while_saving(machine: str, tmp_path: Path) -> None:
    loaded = board.load(machine)
    built = device_program(tmp_path, loaded, emulated=True)
    counts = kill_often(built.elf, loaded, tmp_path, kills=12, seed=1)
    assert not counts.wrong and counts.kills == 12 and counts.saves > 12


@needs_qemu
def test_nvmc_driver_on_the_emulated_chip(tmp_path: Path) -> None:
    """QEMU's micro:bit has the nRF51's flash controller, whose registers are the nRF52's."""
    fields = json.loads(board.load("microbit").manifest)
    fields["upload"] |= {"protocol": "pyocd", "protocols": ["pyocd"]}
    fields["tte"]["link"] = {"driver": "uart_nrf52", "tx_pin": 24, "rx_pin": 25, "baud": 115200}
    fields["tte"]["flash"]["driver"] = "flash_nrf52"
    (tmp_path / "mine.json").write_text(json.dumps(fields))
    loaded = board.load(tmp_path / "mine.json")
    built = device_program(tmp_path / "project", loaded, emulated=False, saves=40)
    command = [
        toolchain.require(toolchain.QEMU),
        "-M",
        "microbit",
        "-display",
        "none",
        "-monitor",
        "none",
        "-serial",
        "none",
    ]
    command += ["-semihosting-config", "enable=on,target=native", "-kernel", str(built.elf)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    lines = (done.stdout + done.stderr).split("\n")
    assert [line for line in lines if line.startswith("empty")] == ["empty 00000002"]
    assert [line for line in lines if line.startswith("saved")] == [f"saved {i:08x}" for i in range(1, 41)]
    assert [line for line in lines if line.startswith("found")] == [f"found {i:08x}" for i in range(5, 41, 5)]
    assert len(lines) == 1 + 40 + 8 + 1 and done.returncode == 0
