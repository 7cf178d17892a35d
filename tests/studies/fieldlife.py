"""A device learns in the field, loses its power, learns on, and gives its model back.

    PYTHONPATH=tests python -m studies.fieldlife ../shared/models/mcunet-5fps.tflite \\
        --update ../shared/schemes/mcunet-5fps-49kb.toml --classes 10 --data ../shared/data/cifar10_5k.npz

The emulated board gets samples over its UART and learns from each; it saves what it learnt into its (modelled) flash and
its process is killed; another is started on the same flash and must find the state; it gets as many again. The state that
is pulled must be that of the program on this computer (the fast twin, `--reference numpy`: the reference in NumPy) after
the same samples without a stop, byte for byte; and LiteRT's reference kernels, given the exported model, must answer on
test samples as the device does. Whatever differs ends the study with an error.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
import numpy as np
from oracle import Oracle

from tte import board as boards
from tte import codegen, export, firmware, native, pioproject, project
from tte.cli.learn import load_data
from tte.compiler import Compiled, Options
from tte.data import Dataset
from tte.device import emulator, protocol, session, statefile
from tte.device.link import ProcessLink
from tte.device.session import Session
from tte.device.statefile import State
from tte.life import Life
from tte.reference import Executor, pack
from tte.training.autodiff import TRUTH


class Stopwatch:
    """Says what was done, and how long it took."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        click.echo(f"{text} ({now - self._last:.1f} s)")
        self._last = now


def indices(dataset: Dataset, count: int, seed: int) -> list[int]:
    """Which samples are learnt from, in order; all differ."""
    return [int(i) for i in np.random.default_rng([seed, 1]).permutation(dataset.train_count)[:count]]


def learn(device: Session, dataset: Dataset, chosen: list[int]) -> None:
    """Trains on each."""
    for index in chosen:
        sample = dataset.train(index)
        device.train(sample.x, None if sample.target is not None else sample.label, sample.target)


def expected_by_twin(made: pioproject.Project, dataset: Dataset, chosen: list[int]) -> State:
    """What the program on this computer has learnt from the samples, without a stop."""
    with session.open_host(native.build_host(made, sanitize=False)) as device:
        learn(device, dataset, chosen)
        return statefile.pull(device)


def expected_by_reference(compiled: Compiled, dataset: Dataset, chosen: list[int]) -> State:
    """The same by the reference in NumPy."""
    program = compiled.plan.program
    executor, source = Executor(program.graph), next(i for i in program.graph.inputs if i != TRUTH)
    for index in chosen:
        sample = dataset.train(index)
        truth = np.array(sample.label, np.int32) if sample.target is None else sample.target
        executor.train({source: sample.x, TRUTH: truth})
    data = bytearray(codegen.state_bytes(compiled.plan))
    for slot in codegen.state_slots(compiled.plan):
        data[slot.offset : slot.offset + slot.type.nbytes] = pack(executor.params[slot.name], slot.type.dtype)
    control = executor.control
    return State(codegen.model_hash(compiled.plan), control.learning_rate, control.seed, control.step, bytes(data))


@contextmanager
def powered(elf: Path, made: pioproject.Project, flash: Path) -> Iterator[tuple[Session, ProcessLink]]:
    """The emulated board on that flash, over its UART if it has one; on leaving its process is killed."""
    with emulator.running(elf, made.board, icount=False, uart=elf.parent.name.endswith("_uart"), flash=flash) as link:
        yield Session(nullcontext(link), timeout_s=600), link


def live(
    model: Path, data: Path, options: Options, folder: Path, *, board: str, samples: int, tested: int, seed: int,
    reference: str,
) -> dict[str, Any]:  # fmt: skip
    """Builds, lives, compares; the figures.

    Raises:
        AssertionError: anything differs.
    """
    say = Stopwatch()
    built = project.build(model, boards.load(board), options, folder)
    made, compiled, _ = project.load(folder)
    dataset = load_data(compiled, data, seed)
    assert made.board.emulator
    program = firmware.build(made, made.env(emulated=True, uart=bool(made.board.emulator.link)))
    flash = folder / "field.flash"
    flash.unlink(missing_ok=True)
    chosen = indices(dataset, 2 * samples, seed)
    say(f"built: state {built.memory.state_bytes:,} bytes")
    with powered(program.elf, made, flash) as (device, link):
        assert device.open().found == protocol.Stored.EMPTY
        learn(device, dataset, chosen[:samples])
        say(f"learnt from {samples} samples in {program.env}")
        assert device.save() == samples
        first = statefile.pull(device)
        link.failure("was killed")
        assert link.exit_status == -9
    say("saved and killed")
    with powered(program.elf, made, flash) as (device, _):
        opened = device.open()
        assert (opened.found, opened.step) == (protocol.Stored.OK, samples), opened
        assert statefile.pull(device) == first
        say("started again: the state is the one that was saved")
        learn(device, dataset, chosen[samples:])
        last = statefile.pull(device)
        say(f"learnt from {samples} more")
        answers = [device.infer(dataset.test(i).x) for i in range(tested)]
        say(f"answered {tested} test samples")
    for count, found in ((samples, first), (2 * samples, last)):
        if reference == "numpy":
            wanted = expected_by_reference(compiled, dataset, chosen[:count])
        else:
            wanted = expected_by_twin(made, dataset, chosen[:count])
        assert found == wanted, f"the state after {count} steps differs from the reference"
        say(f"the state after {count} steps is the reference's, byte for byte")
    statefile.save(folder / "field.state", last)
    learnt = export.export(folder, last, "field.state")
    (folder / "learnt.tflite").write_bytes(learnt.data)
    oracle = Oracle(learnt.data)
    output = oracle.interpreter.get_output_details()[0]["index"]
    right = 0
    for index, answer in enumerate(answers):
        sample = dataset.test(index)
        np.testing.assert_array_equal(oracle.run([sample.x])[output].reshape(-1), answer)
        right += int(answer.argmax()) == sample.label
    say(f"LiteRT answers as the device on {tested} test samples")
    return {
        "steps": last.step, "state_bytes": len(last.data), "tested": tested, "right": right,
        "changed_weights": sum(layer.weights for layer in learnt.layers),
    }  # fmt: skip


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--update", default="last")
@click.option("--classes", default=0)
@click.option("--board", default="stm32f746")
@click.option("--samples", default=200, help="Samples before the cut, and as many after it.")
@click.option("--tested", default=100)
@click.option("--seed", default=0)
@click.option("--reference", type=click.Choice(["twin", "numpy"]), default="twin")
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/fieldlife"))
def main(model: Path, data: Path, update: str, classes: int, out: Path, **choices: Any) -> None:
    """Prints what was found."""
    options = Options(update=update, classes=classes, life=Life(keep=True))
    click.echo(json.dumps(live(model, data, options, out, **choices)))


if __name__ == "__main__":
    main()
