"""Counts the instructions of each step of a built program, in the emulator, and keeps them beside the predicted ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tte import files, firmware, steps, verify
from tte.compiler import Compiled
from tte.device import session as sessions
from tte.device.session import Profile
from tte.errors import BoardError, DataError
from tte.pioproject import Project
from tte.project import MANIFEST, STEPS
from tte.steps import StepCost


@dataclass(frozen=True)
class Counted:
    """One inference and one training step (None if the program does not train), counted."""

    infer: Profile
    train: Profile | None

    def lines(self, costs: tuple[StepCost, ...]) -> tuple[StepCost, ...]:
        """The steps with their counts: those of the training step, and of inference where it alone runs them."""
        found = steps.with_counts(costs, self.infer.steps, self.infer.stages)
        return steps.with_counts(found, self.train.steps, self.train.stages) if self.train else found


def count(project: Project, compiled: Compiled, *, seed: int = 0) -> Counted:
    """Builds the project's counting twin and runs it on random samples: an inference, then a training step.

    The figures are the same in every run.

    Args:
        seed: of the samples.

    Raises:
        BoardError: the board has no emulator, or the counting twin does not fit it.
        ToolchainError, DeviceError: it cannot be built or run.
    """
    env = project.env(emulated=True, profile=True)
    if project.board.emulator and project.board.emulator.counter == "none":
        raise BoardError("the board's emulator counts no instructions", where=project.board.name)
    built = firmware.build(project, env)
    samples = verify.samples(compiled, seed)
    x, label, target = next(samples)
    with sessions.open_qemu(built.elf, project.board) as device:
        infer = device.profile_infer(x)
        if not compiled.plan.program.trains:
            return Counted(infer, None)
        return Counted(infer, device.profile_train(x, label if target is None else None, target))


def keep(folder: Path, costs: tuple[StepCost, ...]) -> Path:
    """Writes counted steps into a build folder: its table, whose path is given, and its manifest.

    Raises:
        DataError: a file cannot be written.
    """
    table = folder / STEPS
    files.write(table, steps.text(costs).encode())
    facts = _manifest(folder)
    facts["schedule"] = [line.as_dict() for line in costs]
    files.write(folder / MANIFEST, (json.dumps(facts, indent=1) + "\n").encode())
    return table


def is_counted(folder: Path) -> bool:
    """Whether the build's steps were counted before."""
    return any(line.get("counted") for line in _manifest(folder).get("schedule", []))


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError("no finished build here", where=str(folder), remedy="run `tte build ... --out DIR`") from None
    return facts
