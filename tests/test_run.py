"""tte.run and tte.report with a device made of NumPy: learning, order, schedule, interruption, the files written."""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tte import report, resources
from tte.data import Dataset, Port, load
from tte.display import Display
from tte.errors import DataError, TteError
from tte.run import CROSS_ENTROPY_LOSS_SCALE, FULL_RATE, Event, RunLog, Schedule, run

Int8 = np.ndarray


@dataclass(frozen=True)
class Answer:
    loss: int
    instructions: int
    logits: Int8
    step: int


class Learner:
    """Softmax regression in float behind the interface of a device; keeps what it was told."""

    def __init__(self, inputs: int, classes: int, rate: float = 0.1, stop_at: int | None = None) -> None:
        self.w = np.zeros((classes, inputs + 1))
        self.rate, self.stop_at = rate, stop_at
        self.controls: list[tuple[int, int, int]] = []
        self.trained: list[bytes] = []

    def _forward(self, x: Int8) -> tuple[np.ndarray, np.ndarray]:
        v = np.append((x.reshape(-1).astype(float) + 128) / 255, 1)
        z = self.w @ v
        p = np.exp(z - z.max())
        return v, p / p.sum()

    def infer(self, x: Int8) -> Int8:
        return np.round(self._forward(x)[1] * 255 - 128).astype(np.int8)

    def train(self, x: Int8, label: int, target: Int8 | None) -> Answer:
        if self.stop_at == len(self.trained):
            raise KeyboardInterrupt
        v, p = self._forward(x)
        self.trained.append(x.tobytes())
        loss = -np.log2(p[label] + 1e-12) * 256
        p[label] -= 1
        self.w -= self.rate * self.controls[-1][0] / FULL_RATE * np.outer(p, v)
        return Answer(round(loss), 1000 + len(self.trained) % 3, p.astype(np.int8), len(self.trained))

    def set_control(self, learning_rate: int, seed: int, step: int) -> None:
        assert step == len(self.trained)
        self.controls.append((learning_rate, seed, step))


class Copier:
    """A regression device: answers half of its input, learns nothing, counts no instructions."""

    def infer(self, x: Int8) -> Int8:
        return x // 2

    def train(self, x: Int8, label: int, target: Int8 | None) -> Answer:
        assert target is not None
        return Answer(int(((x // 2 - target.astype(int)) ** 2).sum()), 0, x, 0)

    def set_control(self, learning_rate: int, seed: int, step: int) -> None: ...


@pytest.fixture(scope="module")
def turned() -> Dataset:
    return load(resources.path("demo") / "digits.npz", Port((1, 8, 8, 1), 1 / 255, -128), classes=10).turned(1)


@pytest.fixture(scope="module")
def learnt(turned: Dataset) -> tuple[Learner, RunLog, list[Event]]:
    device, events = Learner(64, 10), list[Event]()
    return device, run(device, turned, seed=3, eval_samples=100, on_event=events.append), events


def test_learns_and_logs(turned: Dataset, learnt: tuple[Learner, RunLog, list[Event]]) -> None:
    device, log, events = learnt
    assert log.accuracy_before is not None and log.accuracy_before < 0.2
    assert log.accuracy_after is not None and log.accuracy_after > 0.8
    assert (log.steps, len(log.losses), log.interrupted) == (1297, 1297, False)
    assert [p.step for p in log.curve] == [0, *range(130, 1297, 130), 1297]
    assert [p.samples for p in log.curve] == [500, *[100] * 9, 500]
    assert (log.instructions_min, log.instructions_per_step, log.instructions_max) == (1000, 1001, 1002)
    assert log.losses[0] == pytest.approx(np.log(10), abs=0.01)  # uniform over ten classes, in nats
    assert (events[-1].done, events[-1].step) == (events[-1].total, 1297)
    assert len(set(device.trained)) > 1200  # one pass: every sample once
    assert "turned by 90" in " ".join(log.notes)


def test_repeats_from_its_seed(turned: Dataset, learnt: tuple[Learner, RunLog, list[Event]]) -> None:
    again, other = Learner(64, 10), Learner(64, 10)
    log = run(again, turned, seed=3, eval_samples=100)
    assert (again.trained, again.controls, log.curve) == (learnt[0].trained, learnt[0].controls, learnt[1].curve)
    run(other, turned, steps=20, seed=4, final_samples=10)
    assert other.trained != again.trained[:20] and len(other.trained) == 20


def test_schedule(learnt: tuple[Learner, RunLog, list[Event]]) -> None:
    """Rises to the peak, falls to nearly nothing, and is sent about a hundred times, never twice alike in a row; at the end it
    is the peak again."""
    *rates, last = (c[0] for c in learnt[0].controls)
    assert last == FULL_RATE
    top = rates.index(max(rates))
    assert max(rates) > 0.99 * FULL_RATE and 3 <= top <= 8 and rates[-1] < 0.01 * FULL_RATE
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert 90 <= len(rates) <= 110 and all(a != b for a, b in itertools.pairwise(rates))
    for steps in (1, 2, 7, 99, 100, 101, 1500):
        factors = [Schedule(peak=1000).factor(s, steps) for s in range(steps)]
        assert all(0 <= f <= 1000 for f in factors) and max(factors) >= 500
        assert Schedule(peak=1000).factor(steps, steps) == 1000


@pytest.mark.parametrize("stop_at", [0, 70])
def test_interrupt_keeps_the_log(turned: Dataset, tmp_path: Path, stop_at: int) -> None:
    log = run(Learner(64, 10, stop_at=stop_at), turned, steps=200, eval_samples=50, final_samples=50)
    assert log.interrupted and log.steps == stop_at and log.accuracy_before is not None and log.accuracy_after is None
    assert "stopped by the user" in log.notes[-1]
    report.write_json(tmp_path / "log.json", log)
    report.learning_curve(tmp_path / "curve.png", log, title="stopped")


def test_mean_squared_error(tmp_path: Path) -> None:
    x = np.full((20, 4), 2.0, np.float32)  # 20 steps of 0.1; answered with 10, so the error is 1.0 squared
    np.savez(tmp_path / "x.npz", x=x)
    port = Port((1, 4), 0.1, 0)
    data = load(tmp_path / "x.npz", port, output=port)
    log = run(Copier(), data, steps=30)
    assert log.error_before == pytest.approx(1.0) and log.error_after == pytest.approx(1.0)
    assert log.losses[0] == pytest.approx(1.0) and log.accuracy_before is None and log.instructions_per_step is None
    report.learning_curve(tmp_path / "curve.png", log, title="autoencoder")


def test_files(learnt: tuple[Learner, RunLog, list[Event]], tmp_path: Path) -> None:
    """Both files are whole, repeatable, replace what was there, and leave nothing beside them."""
    out = tmp_path / "new" / "folder"
    for _ in range(2):
        report.write_json(out / "log.json", learnt[1], {"model": "digits"})
        report.learning_curve(out / "curve.png", learnt[1], title="digits", references={"upright": 0.978})
    read = json.loads((out / "log.json").read_text())
    assert read["model"] == "digits" and read["accuracy_after"] == learnt[1].accuracy_after
    assert read["curve"][0]["step"] == 0 and len(read["losses"]) == read["steps"]
    png = (out / "curve.png").read_bytes()
    report.learning_curve(out / "again.png", learnt[1], title="digits", references={"upright": 0.978})
    assert png.startswith(b"\x89PNG") and png == (out / "again.png").read_bytes()
    assert sorted(p.name for p in out.iterdir()) == ["again.png", "curve.png", "log.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(TteError, match="cannot be written"):
        report.write_json(tmp_path / "file" / "log.json", learnt[1])


@pytest.mark.parametrize("terminal", [False, True])
def test_display(turned: Dataset, terminal: bool) -> None:
    out = io.StringIO()
    with Display(Console(file=out, force_terminal=terminal, width=120)) as display:
        run(Learner(64, 10), turned, steps=50, eval_samples=20, final_samples=20, on_event=display)
    text = out.getvalue()
    assert "accuracy" in text and "step 50/50" in text and "instructions/step" in text
    if not terminal:
        assert "\x1b" not in text and len(text.splitlines()) == 11


def test_refusals(turned: Dataset) -> None:
    for wrong in ({"steps": 0}, {"epochs": 0}, {"eval_samples": 0}, {"eval_every": 0}):
        with pytest.raises(DataError):
            run(Learner(64, 10), turned, **wrong)  # type: ignore[arg-type]
    assert pytest.approx(np.log(2)) == 256 * CROSS_ENTROPY_LOSS_SCALE
