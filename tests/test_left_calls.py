"""Calls in slices that are left: what is abandoned, forgotten or learnt from to its end, and what holds for the next call."""

from __future__ import annotations

from pathlib import Path

import pytest
from c_harness import needs
from life_bench import LifeBench
from test_latent import life_plans, note_calls


@needs("gcc")
@pytest.mark.parametrize("latent", [False, True])
def test_a_call_that_is_left_is_learnt_from_whole_or_not_at_all(latent: bool, tmp_path: Path) -> None:
    """Each way out of it is taken, of forward passes and of steps that learn; some learn by seed and step count."""
    bench = LifeBench(life_plans(range(604, 609), tmp_path), tmp_path, latent=latent, resumable=True)
    for _ in range(6):
        note_calls(bench, slices=True)
    found = bench.check()
    ways = ("abandoned", "replaced", "begun")
    assert all(found[f"{how} {kind} forgotten"] >= 3 for how in ways for kind in ("infer", "train")), found
    assert all(found[f"{how} train learnt"] >= 3 for how in ways), found
    assert sum(n for outcome, n in found.items() if outcome.endswith("done")) >= 3, found
