"""Past samples: which are held, against the twin in Python; in flash, over power cuts at any operation."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from toy import needs_cross, needs_host

from tte import keeping, resources
from tte.board import FlashArea
from tte.device.learner import Memory

HERE = Path(__file__).parent
FIRMWARE = resources.path("firmware") / "src"
FILES = ("replay.c", "replay_flash.c", "flash_model.c", "crc32.c")
PLACES = [f"-I{HERE / 'fixtures' / 'replay'}", f"-I{FIRMWARE}"]
FLAGS = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-DTTE_REPLAY_BYTES=12000", *PLACES)
SANITIZE = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
CLASSES = 5

Run = Callable[..., list[dict[str, int]]]


@pytest.fixture(scope="module", params=[37, 700])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the harness, for samples of so many bytes; its lines, words and numbers in turn."""
    program = tmp_path_factory.mktemp("replay") / "harness"
    sources = [HERE / "replay_harness.c", *(FIRMWARE / name for name in FILES)]
    flags = [*FLAGS, *SANITIZE, f"-DTTE_MODEL_LATENT_BYTES={request.param}", "-DTTE_REPLAY_PLACE=2"]
    subprocess.run(["cc", *flags, *map(str, sources), "-o", str(program)], check=True)

    def call(test: str, seed: int, count: int) -> list[dict[str, int]]:
        command = [str(program), test, str(seed), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        lines = [line.split() for line in done.stdout.splitlines()]
        return [dict(zip(words[::2], map(int, words[1::2]), strict=True)) for words in lines]

    return call


@needs_host
def test_flash_holds_what_it_should_and_wears_evenly(run: Run) -> None:
    (line,) = run("lives", 1, 40)
    assert line["lives"] == 40 and line["spread"] <= 1 and line["erases"] > 100 and line["forgotten"] > 100


@needs_host
def test_power_cuts_tear_no_sample(run: Run) -> None:
    (line,) = run("power", 2, 300)
    assert line["cuts"] >= 300 and line["lost"] < line["kept"]


@needs_host
def test_builds_know_what_fits(run: Run) -> None:
    """`tte build` shares the flash out as the firmware will use it."""
    fits = set()
    for line in run("rooms", 3, 60):
        area = FlashArea("model", 0, 0, line["unit"], 0, 0, ((line["sectors"], line["bytes"]), (2, 4096)))
        room = keeping.past_room(area, line["past"], line["sample"])
        assert min(room, line["most"]) == line["places"], line
        fits.add((room == 0, room < line["most"]))
    assert len(fits) > 1


@needs_host
def test_choices_are_those_of_the_twin(run: Run) -> None:
    rings = set()
    for seed in range(20):
        head, *lines = run("trace", seed, 400)
        memory = Memory(head["places"], CLASSES, bool(head["ring"]))
        for step, line in enumerate(lines):
            place = memory.choose(line["label"], head["seed"])
            memory.take(line["label"], place)
            assert (place, memory.pick(step % 3, head["seed"])) == (line["place"], line["again"]), (seed, step)
            if step % 17 == 5:
                memory.trust()
            elif step % 41 == 40:
                memory.forget()
        rings.add(memory.ring)
    assert rings == {False, True}


def test_a_full_memory_is_balanced() -> None:
    """Nine of ten samples are of one class; the others come late: they get their share, and stay."""
    memory = Memory(60, 4)
    for step in range(3000):
        label = 0 if step < 1500 or step % 10 else 1 + step // 10 % 3
        memory.take(label, memory.choose(label, 7))
    assert min(memory.held) >= 14 and sum(memory.held) == 60


@needs_cross
@pytest.mark.parametrize("place", [0, 1, 2])
def test_compiles_for_the_smallest_core(place: int, tmp_path: Path) -> None:
    own = "replay_flash.c" if place == 2 else "replay_ram.c"
    flags = [*FLAGS, "-mcpu=cortex-m0", "-mthumb", "-O2", "-Wconversion", "-ffreestanding", f"-DTTE_REPLAY_PLACE={place}"]
    for file in ("replay.c", own):
        subprocess.run(["arm-none-eabi-gcc", *flags, "-c", str(FIRMWARE / file), "-o", str(tmp_path / "made.o")], check=True)
