"""Past samples: which are held, against the twin in Python; in flash, over resets, power cuts and faults at any operation."""

from __future__ import annotations

import subprocess
from collections import Counter
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
FLAGS = ("-std=c11", "-Wall", "-Wextra", "-Werror", *PLACES)
SANITIZE = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
CLASSES = 5

Run = Callable[..., list[dict[str, int]]]


@pytest.fixture(scope="module", params=[(37, 12000), (700, 12000), (5, 325000)], ids=["37", "700", "5"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the harness, for samples of so many bytes, in so many bytes; its lines, words and numbers in turn."""
    size, room = request.param
    program = tmp_path_factory.mktemp("replay") / "harness"
    sources = [HERE / "replay_harness.c", *(FIRMWARE / name for name in FILES)]
    flags = [*FLAGS, *SANITIZE, f"-DTTE_MODEL_LATENT_BYTES={size}", f"-DTTE_REPLAY_BYTES={room}", "-DTTE_REPLAY_PLACE=2"]
    subprocess.run(["cc", *flags, *map(str, sources), "-o", str(program)], check=True)

    def call(test: str, seed: int, count: int) -> list[dict[str, int]]:
        command = [str(program), test, str(seed), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        lines = [line.split() for line in done.stdout.splitlines()]
        return [dict(zip(words[::2], map(int, words[1::2]), strict=True)) for words in lines]

    return call


@needs_host
def test_flash_holds_what_it_should_over_resets_and_wears_evenly(run: Run) -> None:
    (line,) = run("lives", 1, 40)
    assert line["spread"] <= 1 and line["erases"] > 100 and line["forgotten"] > 100
    assert line["resets"] > 100 and line["full"] > 50


@needs_host
def test_a_power_cut_leaves_what_was_held_before_or_behind(run: Run) -> None:
    (line,) = run("power", 2, 2000)
    assert line["starts"] >= 2000 and 2 * line["cuts"] > line["starts"] and line["forgotten"] > 100
    assert line["done"] and line["undone"]


@needs_host
def test_a_fault_costs_one_sample_at_most(run: Run) -> None:
    (line,) = run("faults", 3, 300)
    assert line["faults"] >= 300 and line["lost"] and line["forgotten"] > 100


@needs_host
def test_resets_do_not_make_a_memory_a_ring(run: Run) -> None:
    """What it holds is from all its life: half of that old if from every time alike, as what is offered between two resets is
    not all counted, less."""
    (line,) = run("ages", 4, 20)
    assert 250 < line["age"] <= 550


@needs_host
def test_builds_know_what_fits(run: Run) -> None:
    """`tte build` shares the flash out as the firmware will use it, also where it is more than the firmware can number."""
    fits = Counter[str]()
    for line in run("rooms", 3, 100):
        area = FlashArea("model", 0, 0, line["unit"], 0, 0, ((line["sectors"], line["bytes"]), (2, 4096)))
        room = keeping.past_room(area, line["past"], line["sample"])
        assert min(room, line["most"]) == line["places"], line
        fits["all" if room >= line["most"] else "some" if room else "none"] += 1
        fits["numbers end"] += area.runs[0][1] // (16 + line["sample"] + line["unit"]) * line["past"] > 0xFFFF
    assert fits["all"] + fits["numbers end"] > 5 and fits["some"] > 5, fits


@needs_host
def test_choices_are_those_of_the_twin(run: Run) -> None:
    rings, did = set(), Counter[str]()
    for seed in range(20):
        head, *lines = run("trace", seed, 400)
        assert len(lines) == 400
        memory = Memory(head["places"], CLASSES, bool(head["ring"]))
        for step, line in enumerate(lines):
            place = memory.choose(line["label"], head["seed"])
            did["refused" if place < 0 else "replaced" if place in memory.labels else "added"] += 1
            memory.take(line["label"], place)
            assert (place, memory.pick(step % 3, head["seed"])) == (line["place"], line["again"]), (seed, step)
            if step % 17 == 5:
                memory.trust()
            elif step % 41 == 40:
                held = len(memory.labels)
                memory.forget()
                did["forgotten"] += held - len(memory.labels)
        rings.add(memory.ring)
    assert rings == {False, True} and len(did) == 4 and min(did.values()) > 100, did


@pytest.mark.parametrize("forgets", [False, True])
def test_a_full_memory_is_balanced(forgets: bool) -> None:
    """Nine of ten samples are of one class; the others come late: they get their share, and stay; or get it again, if the guard
    took back what was learnt of two, whose places another had for a time."""
    memory = Memory(60, 4)

    def offer(label: int) -> None:
        memory.take(label, memory.choose(label, 7))

    for step in range(3000):
        offer(0 if step < 1500 or step % 10 else 1 + step // 10 % 3)
    assert min(memory.held) >= 14 and sum(memory.held) == 60
    if forgets:
        memory.doubted = {place for place, label in memory.labels.items() if label < 2}
        memory.forget()
        for step in range(1000):
            offer(2 if step < 100 else step % 4)
        assert min(memory.held) >= 14 and sum(memory.held) == 60


def test_a_ring_holds_the_newest() -> None:
    """Also if what was added last was taken back, and if one was lost."""
    memory, ages = Memory(8, 1, ring=True), dict[int, int]()
    for step in range(100):
        place = memory.choose(0, 7)
        memory.take(0, place)
        assert place not in ages or ages[place] == min(ages.values())
        ages[place] = step
        if step % 13 == 9:
            memory.trust()
        elif step % 13 == 12:
            memory.forget(ages)
            assert len(ages) == len(memory.labels) == 5
        elif step == 50:
            memory.drop(memory.choose(0, 7), ages)
            assert len(memory.labels) == 7
    assert len(memory.labels) == 8 and sorted(ages.values()) == sorted(set(ages.values()))


@needs_cross
@pytest.mark.parametrize("place", [0, 1, 2])
def test_compiles_for_the_smallest_core(place: int, tmp_path: Path) -> None:
    own = "replay_flash.c" if place == 2 else "replay_ram.c"
    flags = [*FLAGS, "-mcpu=cortex-m0", "-mthumb", "-O2", "-Wconversion", "-ffreestanding", f"-DTTE_REPLAY_PLACE={place}"]
    flags += ["-DTTE_REPLAY_BYTES=12000"]
    for file in ("replay.c", own):
        subprocess.run(["arm-none-eabi-gcc", *flags, "-c", str(FIRMWARE / file), "-o", str(tmp_path / "made.o")], check=True)
