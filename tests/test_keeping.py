"""Keeping what was learnt, from the build to the next start: the flash's file, power cuts, other models."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import DIGITS, ROOT, shared
from power_bench import cut_learning, cut_saving
from store_bench import device_program
from studies import fieldlife, powercut
from test_cli import refused, tte
from toy import TOY, X, needs_host, needs_qemu

from tte import board, firmware, keeping, pioproject, project, verify
from tte.compiler import Options
from tte.device import flashfile, session
from tte.device.protocol import Stored
from tte.device.session import Session
from tte.errors import BoardError, DataError, DeviceError
from tte.life import Life

REAL = ("stm32f746", "nucleo_f446re", "nrf52840", "rp2040")


def toy(folder: Path, name: str = "stm32f746", model: str = "0123456789abcdef") -> pioproject.Project:
    """A project of the toy that keeps its state; `model`: its hash."""
    files = {path: text.replace(b"0123456789abcdef", model.encode()) for path, text in TOY.items()}
    return pioproject.generate_project(folder, files, board.load(name), name="toy", keep_bytes=8)


def test_what_keeping_takes() -> None:
    found = keeping.kept(board.load("stm32f746"), 21_624)
    assert (found.address, found.flash_bytes, found.slots) == (0x08008000, 229_376, 4)
    assert (found.record_bytes, found.records) == (21_692, (1, 1, 1, 6))
    assert found.saves == (40_000, 90_000)
    paged = keeping.kept(board.load("rp2040"), 21_624)
    assert paged.record_bytes == 256 + 21_760 + 3 * 256 and paged.records == (1,) * 21


def test_past_samples_beside_it() -> None:
    """They have the first sectors, as many as they need; of the state there are two slots left, or the build is refused."""
    paged, few = board.load("nrf52840"), board.load("stm32f746")
    alone = keeping.kept(paged, 1000).slots
    for count, sectors in ((1, 2), (21, 2), (22, 3), (41, 3), (42, 4)):  # 23 of 160 bytes a page; an eighth stays free
        found = keeping.kept(paged, 1000, keeping.Past(count, 160))
        assert (found.past_sectors, found.slots) == (sectors, alone - sectors) == (found.past_sectors, 64 - sectors)
    found = keeping.kept(few, 21_624, keeping.Past(100, 160))
    assert (found.past_sectors, found.slots, found.records) == (2, 2, (1, 6))
    for state, size, limit in ((21_624, 300, "limit"), (40_000, 160, "0 samples"), (1000, 40_000, "0 samples")):
        with pytest.raises(BoardError, match=f"past samples of {size:,} bytes beside {state:,} bytes twice") as caught:
            keeping.kept(few, state, keeping.Past(1000, size))
        assert limit in f"limit {caught.value.limit}" and "leave out --replay-in flash" in caught.value.remedy


@pytest.mark.parametrize("name", REAL)
def test_every_record_that_is_promised_fits(name: str) -> None:
    loaded = board.load(name)
    assert loaded.flash
    for state in (1, 1000, keeping.largest_state(loaded.flash)):
        found = keeping.kept(loaded, state)
        assert len(found.records) == found.slots == keeping.slots(loaded.flash, state) >= 2
        assert min(found.records) >= 1 and sum(found.records) * found.record_bytes <= found.flash_bytes


def test_a_board_without_flash_for_it(tmp_path: Path) -> None:
    fields = json.loads(board.load("stm32f746").manifest)
    del fields["tte"]["flash"]
    (tmp_path / "mine.json").write_text(json.dumps(fields))
    done = tte("build", DIGITS, "--board", tmp_path / "mine.json", "--keep", "--out", tmp_path / "out")
    refused(done, "names no flash to keep trained state in", "leave out --keep")
    assert not (tmp_path / "out").exists()
    with pytest.raises(BoardError, match="does not hold") as caught:
        keeping.kept(replace(board.load("stm32f746")), 200_000)
    assert "leave out --keep" in caught.value.remedy


# ---- the file that is a program's flash


@given(cut=st.integers(0, 2**20), junk=st.binary(max_size=40))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_no_flash_of_this_board_is_refused(cut: int, junk: bytes, tmp_path: Path) -> None:
    area = board.load("nucleo_f446re").flash
    assert area
    whole, path = flashfile.new(area), tmp_path / "flash"
    damaged = whole[: cut % len(whole)] + junk
    path.write_bytes(damaged)
    if damaged:
        with pytest.raises(DataError, match="the flash's file is of") as caught, flashfile.held(path, area):
            pass
        assert str(path) in str(caught.value) and "delete the file" in caught.value.remedy
        assert path.read_bytes() == damaged


def test_the_flash_of_another_board_is_refused(tmp_path: Path) -> None:
    first, second = (toy(tmp_path, name) for name in ("stm32f746", "nrf52840"))
    path = first.flash_file("qemu")
    assert path == second.flash_file("qemu") and path and first.board.flash and second.board.flash
    with flashfile.held(path, first.board.flash), pytest.raises(DataError, match="another program uses"), \
            flashfile.held(path, first.board.flash):  # fmt: skip
        pass
    with pytest.raises(DataError, match="of another board"), flashfile.held(path, second.board.flash):
        pass
    assert pioproject.generate_project(tmp_path, TOY, first.board, name="toy").flash_file("qemu") is None


@dataclass
class Started:
    """A program of the toy, the file that is its flash, and how it is started."""

    made: pioproject.Project
    on: str

    def open(self) -> Session:
        return verify.open_program(self.made, self.on, sanitize=self.on == "host")


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy(tmp_path_factory.mktemp("kept")).folder


@pytest.fixture(scope="module", params=[pytest.param("host", marks=needs_host), pytest.param("qemu", marks=needs_qemu)])
def started(request: pytest.FixtureRequest, on_host: Path) -> Started:
    return Started(pioproject.open_project(on_host), request.param)


def test_a_program_started_again_finds_its_state(started: Started) -> None:
    """Also one that was killed; a fresh one, as `tte verify` starts it, finds nothing and leaves the file alone."""
    with started.open() as device:
        assert device.opened.found == Stored.EMPTY
        for label in (2, 3, 2):
            device.train(X, label)
        device.set_control(20_000, 5, 3)
        assert device.save() == 3
        saved = device.read_state()
        device.train(X, 1)
        assert device.read_state() != saved
        with pytest.raises(DeviceError):
            device._link.failure("was killed")
            device.infer(X)
    with started.open() as device:
        assert (device.opened.found, device.opened.step) == (Stored.OK, 3)
        assert device.read_state() == saved
        now = device.counters()
        assert (now.learning_rate, now.seed, now.step) == (20_000, 5, 3)
        device.reset()
        assert device.read_state() != saved and device.restore() == 3 and device.read_state() == saved
    path = started.made.flash_file(started.on)
    assert path
    before = path.read_bytes()
    with verify.open_program(started.made, started.on, fresh=True) as device:
        assert device.opened.found in (Stored.EMPTY, Stored.NO_FLASH)
    assert path.read_bytes() == before and sum(flashfile.erases(before, keeping.area_for(started.made.board, 8))) == 1


@needs_host
def test_another_model_s_flash_is_refused_with_the_reason(on_host: Path, tmp_path: Path) -> None:
    """And saving works over it."""
    first, other = pioproject.open_project(on_host), toy(tmp_path, model="fedcba9876543210")
    with verify.open_program(first, "host") as device:
        device.train(X, 1)
        device.save()
    path, kept = first.flash_file("host"), other.flash_file("host")
    assert path and kept
    shutil.copy(path, kept)
    with verify.open_program(other, "host") as device:
        assert device.opened.found == Stored.OTHER_MODEL and device.counters().step == 0
        with pytest.raises(DeviceError, match="cannot restore: what is kept belongs to another model or build"):
            device.restore()
        device.train(X, 0)
        assert device.save() == 1
    with verify.open_program(other, "host") as device:
        assert device.opened.found == Stored.OK


# ---- from the command line, and power cuts


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "out"
    done = tte("build", DIGITS, "--board", "stm32f746", "--update", "last", "--keep", "--out", folder)
    assert done.status == 0, done.err
    assert "kept state" in done.out and "at 0x08008000: 4 slots; a save takes 1,0" in " ".join(done.out.split())
    return folder


@needs_qemu
def test_from_the_command_line(digits: Path) -> None:
    facts = json.loads((digits / "build.json").read_text())
    facts["schedule"][0]["counted"] = 1  # so that no other program is built to count
    (digits / "build.json").write_text(json.dumps(facts))
    kept = facts["kept"]
    assert kept["slots"] == 4 and kept["flash_bytes"] == 229_376 and kept["saves"] == [40_000, 10_000 * sum(kept["records"])]
    assert facts["flash_limit"] == 2**20 - 229_376 >= facts["flash_bytes"]
    learn = ("run", digits, "--data", ROOT / "demo" / "digits.npz", "--turn", "90", "--eval-samples", 2, "--final-samples", 2)
    first = tte(*learn, "--steps", 3)
    assert first.status == 0 and "kept in the device's flash: step 3" in first.err, first.err
    again = tte(*learn, "--steps", 2)
    assert "goes on from the state that its flash kept: step 3" in again.err and "step 5" in again.err, again.err
    assert tte("verify", digits, "--on", "qemu", "--steps", 1).status == 0  # as it was built, whatever the flash holds
    flash = digits / "flash-qemu.bin"
    flash.write_bytes(flash.read_bytes()[:-1])
    refused(tte(*learn, "--steps", 1), "flash-qemu.bin", "cut off", "delete the file")
    flash.unlink()


@needs_qemu
def test_power_cut_at_random_instructions(digits: Path, tmp_path: Path) -> None:
    """`make power-cut` does it 2,000 times each."""
    machine = board.load("mps2-an500")
    saver = device_program(tmp_path / "saver", machine, emulated=True, state=3001)
    saving = cut_saving(saver.elf, machine, tmp_path / "saver", 30, 1, within=3_000_000)
    made, compiled, _ = project.load(digits)
    elf = firmware.build(made, made.env(emulated=True)).elf
    (tmp_path / "wire").mkdir()
    learning = cut_learning(elf, made.board, tmp_path / "wire", compiled, powercut.samples_of(compiled, 1), 25, 1)
    for counts in (saving, learning):
        assert not counts.wrong and counts.saving and counts.last and len(counts.places) > 10, counts
    assert learning.training and "| 25 |" in powercut.table_of_cuts({"it": learning})


@needs_qemu
def test_the_emulators_flash_takes_nothing_of_the_board_s_memory(tmp_path: Path) -> None:
    """A window of just what the board's program needs: its twin has the modelled flash beside it."""
    own = firmware.build(toy(tmp_path))
    stack = -(-own.stack_bound_bytes // 32) * 32
    window = -(-(own.ram_static_bytes + stack) // 32) * 32
    made = pioproject.generate_project(
        tmp_path, TOY, board.load("stm32f746"), name="toy", keep_bytes=8, stack_bytes=stack, ram_window_bytes=window
    )
    assert firmware.build(made).ram_bytes <= window
    with verify.open_program(made, "qemu") as device:
        device.train(X, 1)
        assert device.save() == 1 and device.counters().stack_bytes <= stack + 256


@pytest.mark.slow
@needs_qemu
def test_a_life_in_the_field(tmp_path: Path) -> None:
    """The studies' whole course, short: also on the network of the paper, where it is at hand."""
    options = Options(update="full", life=Life(keep=True))
    found = fieldlife.live(
        DIGITS, ROOT / "demo" / "digits.npz", options, tmp_path / "digits", board="stm32f746", samples=20, tested=20, seed=0,
        reference="numpy",
    )  # fmt: skip
    assert found["steps"] == 40 and found["changed_weights"] > 100
    options = replace(options, update=str(shared("schemes", "mcunet-5fps-49kb.toml")), classes=10)
    found = fieldlife.live(
        shared("models", "mcunet-5fps.tflite"), shared("data", "cifar10_5k.npz"), options, tmp_path / "mcunet",
        board="stm32f746", samples=3, tested=2, seed=0, reference="numpy",
    )  # fmt: skip
    assert found["steps"] == 6


@needs_host
def test_a_flash_that_cannot_be_made(tmp_path: Path) -> None:
    area = board.load("stm32f746").flash
    assert area
    nowhere = (tmp_path / "nowhere" / "flash", area)
    with pytest.raises(DataError, match="cannot be opened"), session.open_host(tmp_path / "no program", flash=nowhere):
        pass
