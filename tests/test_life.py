"""What a device does beside learning: the options, and what is refused before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import DIGITS
from test_cli import refused, tte
from toy import needs_cross

from tte import board, needs, project
from tte.compiler import Options
from tte.life import GUARDS, PLACES, Life, from_facts, parse

counts = st.integers(0, 1 << 32)


@given(
    st.builds(Life, st.booleans(), st.booleans(), counts, st.sampled_from(GUARDS), counts, st.sampled_from(PLACES)),
)
def test_text(life: Life) -> None:
    assert parse(life.text()) == life
    assert len(life.sources) == len(set(life.sources)) and bool(life.headers) == life.latent


@pytest.mark.parametrize("facts", [{"keep": 1}, {"guard": -1}, {"guard": "3"}, {"replay_in": "disk"}, {"guard_in": 0}, {"x": 1}])
def test_other_facts(facts: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        from_facts(facts)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--update", "none", "--keep", "--guard", "3"), ("nothing trains, so --keep and --guard would have no effect",)),
        (("--replay", "40"), ("room for 0 past samples of 64 bytes each", "limit: 1 .. 65,535 samples")),
        (("--replay", "8M"), ("room for 131,072 past samples of 64 bytes each",)),
        (("--replay", "4K", "--replay-in", "flash"), ("--replay-in flash", "add --keep")),
        (("--guard", "3", "--guard-in", "flash"), ("--guard-in flash", "add --keep")),
        (("--guard", "70000"), ("--guard",)),
        (("--replay", "much"), ("is no size",)),
        (("--keep", "--guard-in", "flash"), ("--guard-in flash", "add --guard")),
        (("--replay-in", "external"), ("--replay-in external", "add --replay")),
    ],
)
def test_refused(options: tuple[str, ...], words: tuple[str, ...], tmp_path: Path) -> None:
    done = tte("build", DIGITS, "--board", "stm32f746", "--update", "full", *options, "--out", tmp_path / "out")
    refused(done, *words)
    assert not (tmp_path / "out").exists()


@needs_cross
@pytest.mark.parametrize(("name", "life"), [
    ("stm32f746", Life(keep=True, guard=20, replay=60_000)), ("rp2040", Life(keep=True, resumable=True, guard=5, replay=8192)),
    ("nrf52840", Life(keep=True, guard=20, guard_in="flash", replay=100_000, replay_in="flash")),
])  # fmt: skip
def test_expected_ram_suffices(name: str, life: Life, tmp_path: Path) -> None:
    """What a search and a limit go by is no less than what the program takes, and little more."""
    made = project.build(DIGITS, board.load(name), Options(update="bias", life=life), tmp_path / "out")
    need = needs.ram(made.compiled.plan, life)
    assert made.memory.ram_bytes <= need <= made.memory.ram_bytes + 2048


def test_more_than_the_board_holds(tmp_path: Path) -> None:
    done = tte("build", DIGITS, "--board", "stm32f746", "--update", "full", "--replay", "400K", "--out", tmp_path / "out")
    refused(done, "more RAM than there is", "what --guard and --replay hold binds")
