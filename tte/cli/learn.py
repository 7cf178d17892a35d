"""`tte run` and `tte demo`: a device learns while one watches."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.markup import escape

from tte import board as boards
from tte import data, export, profile, project, resources, steps, verify
from tte.cli import show
from tte.cli.aids import aid_options
from tte.cli.output import INTERRUPTED, Number, Output, command
from tte.compiler import Compiled, Options
from tte.data import Dataset, Port
from tte.device import aids as learning_aids
from tte.device import statefile
from tte.device.aids import Wanted
from tte.device.learning import Status
from tte.device.protocol import STORED_TEXTS, Stored
from tte.device.session import Session
from tte.display import Display, outcome
from tte.errors import DataError, TteError
from tte.ir import TensorType
from tte.ops.loss import SoftmaxCrossEntropy
from tte.pioproject import Project
from tte.run import RunLog, Schedule, evaluate
from tte.run import run as learn
from tte.training.autodiff import TRUTH, Numerics

_DEMO_RATE = 0.01
_DIR = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


@dataclass(frozen=True)
class Course:
    """How a run goes: where, how long, how often it is evaluated, and with what guard and replay."""

    on: str = "qemu"
    uart: bool = False
    epochs: int = 1
    steps: int | None = None
    seed: int = 0
    rate: float = 1.0
    eval_every: int | None = None
    eval_samples: int | None = 200
    final_samples: int | None = None
    load_state: Path | None = None
    save_state: Path | None = None
    aids: Wanted = Wanted()


def load_data(compiled: Compiled, path: Path, seed: int) -> Dataset:
    """Samples for a compiled model.

    Raises:
        DataError: they do not fit it, or the build only infers.
    """
    program = compiled.plan.program
    if not program.trains:
        raise DataError("this build only infers", remedy="build it with another --update scheme than none")
    graph = program.graph
    source = _port(graph.type(next(i for i in graph.inputs if i != TRUTH)))
    if isinstance(compiled.loss, SoftmaxCrossEntropy):
        return data.load(path, source, classes=graph.type(program.kept[0]).elements, seed=seed)
    return data.load(path, source, output=_port(graph.type(program.kept[0])), seed=seed)


def _port(t: TensorType) -> Port:
    return Port(t.shape, t.scale, t.zero_point)


def teach(
    output: Output, made: Project, compiled: Compiled, samples: Dataset, course: Course, before: Dataset | None = None
) -> tuple[RunLog, float | None, int, Status | None]:
    """Runs the course; gives the log, the accuracy on `before` (another view of the data), the stack used, guard and replay."""
    schedule = Schedule(peak=max(1, round(course.rate * 32768)))
    state = statefile.load(course.load_state) if course.load_state else None
    if state:
        export.parameters(compiled.plan, state, str(course.load_state))
    with verify.open_program(made, course.on, sanitize=False, uart=course.uart) as device:
        first, begun = None, _found(output, device) if made.keeps else 0
        if state:
            statefile.push(device, state, str(course.load_state))
            begun = state.step
        if before is not None:
            count = min(before.test_count, course.final_samples or before.test_count)
            first = evaluate(device, before, np.arange(count)).accuracy
        care, left = learning_aids.plan(device, samples, course.aids, course.seed)
        if care:
            for note in left.notes[len(samples.notes) :]:
                output.say(note)
            care.give(device)
        with Display(output.notes) as display:
            log = learn(
                device, left, epochs=course.epochs, steps=course.steps, seed=course.seed, schedule=schedule,
                loss_scale=compiled.loss_scale, eval_every=course.eval_every, eval_samples=course.eval_samples,
                final_samples=course.final_samples, first_step=begun, on_event=display,
            )  # fmt: skip
        stack = 0 if log.interrupted else device.counters().stack_bytes
        learner = learning_aids.status(device) if care and not log.interrupted else None
        if learner:
            log = replace(log, notes=(*log.notes, *learning_aids.notes(learner)))
        if course.save_state and not log.interrupted:
            statefile.save(course.save_state, statefile.pull(device))
        if made.keeps and not log.interrupted:
            output.say(f"kept in the device's flash: step {device.save():,}")
    return log, first, stack, learner


def _found(output: Output, device: Session) -> int:
    """Says what the device found in its flash when it began; gives its step."""
    opened = device.opened
    if opened.found == Stored.OK:
        output.say(f"goes on from the state that its flash kept: step {opened.step:,}")
    elif opened.found != Stored.EMPTY:
        output.say(f"begins as it was built: {STORED_TEXTS.get(Stored(opened.found), 'its flash is not understood')}")
    return opened.step


def _report(
    output: Output, log: RunLog, facts: dict[str, Any], folder: Path, title: str, references: dict[str, float]
) -> dict[str, Any]:
    """Writes log and picture, prints the outcome, gives the JSON object."""
    from tte import report  # matplotlib is slow to load, and no other command draws

    json_path, png_path = folder / "run.json", folder / "run.png"
    report.write_json(json_path, log, facts)
    report.learning_curve(png_path, log, title=title, subtitle=facts["subtitle"], references=references)
    for line in outcome(log):
        output.console.print(line)
    if log.instructions_per_step:
        output.console.print(f"instructions per training step: {log.instructions_per_step:,}")
    output.console.print(f"log {escape(str(json_path))}\npicture {escape(str(png_path))}", soft_wrap=True)
    return {**facts, **log.as_dict(), "log": str(json_path), "picture": str(png_path)}


@click.command()
@click.argument("folder", type=_DIR)
@click.option("--data", "data_path", type=_FILE, required=True, help="An .npz with x_train, y_train, x_test, y_test or x, y.")
@click.option("--on", type=click.Choice(["qemu", "host"]), default="qemu", show_default=True,
              help="The emulated board, or this computer.")  # fmt: skip
@click.option("--link", type=click.Choice(["semihosting", "uart"]), default="semihosting", show_default=True,
              help="How the emulated board talks; its UART is slower.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(1), default=1, show_default=True, help="Passes over the training samples.")
@click.option("--steps", type=click.IntRange(1), help="Training steps, instead of epochs.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Order, split and random numbers.")
@click.option("--rate", type=Number(0, 1, min_open=True), default=1.0, show_default=True,
              help="Largest factor on the build's learning rate.")  # fmt: skip
@click.option("--eval-every", type=click.IntRange(1), help="Training steps between evaluations.  [default: a tenth]")
@click.option("--eval-samples", type=click.IntRange(1), default=200, show_default=True, help="Samples of those.")
@click.option("--final-samples", type=click.IntRange(1), help="Held-out samples before and after.  [default: all]")
@click.option("--load-state", type=_FILE, help="Go on from what was learnt before, as --save-state wrote it.")
@click.option("--save-state", type=_FILE, help="Write what was learnt into this file, for --load-state and `tte export`.")
@click.option("--steps-table", is_flag=True, help="Print the instructions of each step, counted by the emulator.")
@click.option("--turn", type=click.Choice(["0", "90", "180", "270"]), default="0", help="Turn the images first.")
@aid_options
@command
def run(
    output: Output, folder: Path, data_path: Path, turn: str, steps_table: bool, link: str, **course: Any
) -> int:
    """Stream real samples to the device built in FOLDER; it learns one by one and is evaluated on held-out ones."""
    made, compiled, facts = project.load(folder)
    samples = load_data(compiled, data_path, course["seed"]).turned(int(turn) // 90)
    for note in samples.notes:
        output.say(note)
    log, _, stack, learner = teach(output, made, compiled, samples, Course(uart=link == "uart", **course))
    title = f"{facts['name']} on {facts['board']}, update {facts['scheme']}"
    about = {
        "name": facts["name"], "board": facts["board"], "scheme": facts["scheme"], "on": course["on"],
        "data": data_path.name, "stack_watermark_bytes": stack, "subtitle": f"{data_path.name}, on {course['on']}",
    }  # fmt: skip
    if learner:
        about["learner"] = asdict(learner)
    facts = _report(output, log, about, folder, title, {})
    for note in learning_aids.notes(learner) if learner else ():
        output.console.print(escape(note), soft_wrap=True)
    if course["save_state"]:
        saved = "not saved: the run was interrupted" if log.interrupted else f"saved as {course['save_state']}"
        output.console.print(f"trained state {escape(saved)}", soft_wrap=True)
    if course["on"] == "qemu" and not log.interrupted:
        _count_steps(output, made, compiled, folder, steps_table)
    output.result(facts)
    return INTERRUPTED if log.interrupted else 0


def _count_steps(output: Output, made: Project, compiled: Compiled, folder: Path, print_table: bool) -> None:
    """Counts the instructions of each step, once for a build: the figures are the same in every run."""
    if profile.is_counted(folder) and not print_table:
        return
    try:
        counted = profile.count(made, compiled).lines(steps.costs(compiled.plan.program))
    except TteError as error:
        # The counting twin is a little larger than the program itself, which has run.
        output.say(f"the steps' instructions cannot be counted: {error.what}")
        return
    table = profile.keep(folder, counted)
    output.console.print(f"instructions of each step {escape(str(table))}", soft_wrap=True)
    if print_table:
        show.steps(output.console, counted)


@click.command()
@click.option("--on", type=click.Choice(["qemu", "host"]), default="qemu", show_default=True, help="Where it runs.")
@click.option("--out", type=_DIR, default=Path("build/demo"), show_default=True, help="Folder to write.")
@command
def demo(output: Output, on: str, out: Path) -> int:
    """A digit reader on an emulated STM32F746 has its camera turned by 90 degrees, and learns its way back."""
    folder = resources.path("demo")
    options = Options(update="full", numerics=Numerics(_DEMO_RATE))
    made = project.build(folder / "digits.tflite", boards.load("stm32f746"), options, out, say=output.say)
    opened, compiled, _ = project.load(out)
    memory = made.memory
    output.console.print(
        f"[bold]digits[/] on an emulated STM32F746: {memory.ram_bytes:,} bytes of RAM, {memory.flash_bytes:,} of flash; "
        f"every layer trains"
    )
    upright = load_data(compiled, folder / "digits.npz", 0)
    turned = upright.turned(1)
    for note in turned.notes:
        output.say(note)
    output.console.print("the camera is now mounted turned by 90 degrees; the device learns from what it sees")
    log, before, stack, _ = teach(output, opened, compiled, turned, Course(on=on), upright)
    if before is None:
        raise DataError("the demo's data has no labels", where=str(folder / "digits.npz"))
    about = {
        "name": "digits", "board": "stm32f746", "scheme": "full", "on": on, "accuracy_upright": before,
        "stack_watermark_bytes": stack, "ram_bytes": memory.ram_bytes, "flash_bytes": memory.flash_bytes,
        "subtitle": "real handwritten digits; the camera turned by 90 degrees",
    }  # fmt: skip
    output.console.print(f"camera upright: {before:.1%} of {turned.test_count} held-out digits; turned:")
    title = "A digit reader learns its turned camera"
    output.result(_report(output, log, about, out, title, {"before the turn": before}))
    return INTERRUPTED if log.interrupted else 0

