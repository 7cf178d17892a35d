"""`tte device`: a device that is there already, on a serial port, a socket, or started in the emulator for one command."""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.markup import escape
from rich.progress import Progress

from tte import files, journal, run
from tte.cli.aids import aid_options
from tte.cli.connect import Place, Samples, place_options, sample_options, samples, say_what_ends
from tte.cli.output import INTERRUPTED, Number, Output, command
from tte.data import Dataset
from tte.device import aids as learning_aids
from tte.device import statefile
from tte.device.aids import Wanted
from tte.device.exchange import DeviceReset
from tte.device.learning import Status
from tte.device.protocol import STORED_TEXTS, Counters, Description, Evaluated, Stored
from tte.device.session import Session
from tte.device.steady import Steady
from tte.display import Display, outcome
from tte.errors import DataError, DeviceError

_FILE = click.Path(path_type=Path, dir_okay=False)
_SHOWN = 8  # values of an output that is no classifier's


@click.group()
def device() -> None:
    """Talk to a device: what it is, what it says, let it learn, keep and fetch what it learnt."""


@device.command()
@place_options
@command
def info(output: Output, place: Place) -> None:
    """What runs on the device, what it has learnt so far, and how the line does."""
    with place.connected(output) as session:
        opened, about, now = session.opened, session.describe(), session.counters()
        learner = learning_aids.status(session)
    kept = _kept(opened.found)
    target = f", learns from {about.target_bytes:,} bytes" if about.target_bytes else ""
    rows = [
        ("model", f"{about.name}: {about.note}" if about.note else about.name),
        ("board", about.board),
        ("program", about.hash),
        ("input", f"{about.input_bytes:,} bytes" + (f", in {about.input_rows} rows" if about.input_rows else "")),
        ("output", f"{about.output_bytes:,} bytes{target}"),
        ("memory", f"arena {about.arena_bytes:,} bytes, trained state {about.state_bytes:,}"),
    ]
    if about.trains:
        rows.append(("training", f"step {now.step:,}, learning rate x {now.learning_rate / 32768:.4g}, seed {now.seed}"))
        rows.append(("kept", kept))
    rows += [(name, text) for name, text in _lines(now, learner) if text]
    for name, text in rows:
        output.console.print(f"{name:<13} {escape(text)}", soft_wrap=True)
    facts = {"frame_bytes": opened.frame_bytes, "credit": opened.credit, "kept": kept, **_of_learner(learner)}
    output.result({**asdict(about), **asdict(now), **facts, "port": place.port})


def _kept(found: int) -> str:
    if found == Stored.OK:
        return "began with the state from its flash"
    return STORED_TEXTS.get(Stored(found), f"result {found}") if found in set(Stored) else f"result {found}"


def _of_learner(learner: Status | None) -> dict[str, Any]:
    """Guard and replay, for JSON; nothing where neither is built in."""
    return {"learner": asdict(learner)} if learner else {}


def _lines(now: Counters, learner: Status | None) -> Iterator[tuple[str, str]]:
    """What the counters say, but for the training itself; and what guard and replay do."""
    yield from (learning_aids.lines(learner) if learner else {}).items()
    counts = ((now.infer_instructions, "an inference"), (now.train_instructions, "a training step"))
    yield "instructions", ", ".join(f"{count:,} {what}" for count, what in counts if count)
    yield "stack", f"{now.stack_bytes:,} of {now.stack_reserve_bytes:,} bytes used" if now.stack_reserve_bytes else ""
    yield "evaluated", f"{now.right:,} of {now.evaluated:,} right" if now.evaluated else ""
    yield "line", (f"{now.frames:,} frames, {now.damaged_frames:,} damaged, {now.repeated_requests:,} requests repeated, "
                   f"{now.gaps:,} gaps")  # fmt: skip


@device.command()
@place_options
@sample_options
@click.option("--first", type=click.IntRange(0), default=0, show_default=True, help="Row of the first sample.")
@click.option("--samples", "count", type=click.IntRange(1), default=10, show_default=True, help="How many.")
@command
def infer(output: Output, place: Place, data_path: Path, build: Path | None, model: Path | None, seed: int, turn: str,
          first: int, count: int) -> None:  # fmt: skip
    """What the device says to samples: rows of x_test, or of x, in the file's order."""
    with place.connected(output) as session:
        about = session.describe()
        fit = samples(place, about, build, model)
        dataset = fit.load(about, data_path, seed=seed, turn=turn, inputs_only=True)
        _say_notes(output, dataset)
        if first >= dataset.test_count:
            raise DataError(f"has no sample {first:,}", where=str(data_path), limit=f"{dataset.test_count:,} samples")
        found = []
        for index in range(first, min(first + count, dataset.test_count)):
            answer = session.infer(dataset.test(index).x)
            found.append({"sample": index, "class": None if about.target_bytes else int(answer.argmax()),
                          "output": answer.tolist()})  # fmt: skip
            output.console.print(f"{index:>7}  {_answer(fit, about, answer)}", soft_wrap=True)
    output.result({"model": about.name, "scale": fit.answer.scale, "zero_point": fit.answer.zero_point, "answers": found})


def _answer(fit: Samples, about: Description, answer: run.Int8) -> str:
    real = (answer.astype(np.int64) - fit.answer.zero_point) * fit.answer.scale
    if not about.target_bytes:
        best = int(answer.argmax())
        return f"class {best}, {real[best]:.4g}"
    more = f" ... {answer.size:,} values" if answer.size > _SHOWN else ""
    return " ".join(f"{v:.4g}" for v in real[:_SHOWN]) + more


def _say_notes(output: Output, dataset: Dataset) -> None:
    for note in dataset.notes:
        output.say(note)


@device.command(name="eval")
@place_options
@sample_options
@click.option("--samples", "count", type=click.IntRange(1), help="Held-out samples.  [default: all]")
@command
def evaluate(output: Output, place: Place, data_path: Path, build: Path | None, model: Path | None, seed: int, turn: str,
             count: int | None) -> None:  # fmt: skip
    """How well the device does on the held-out samples; it compares and counts by itself."""
    with place.connected(output) as session:
        about = session.describe()
        fit = samples(place, about, build, model)
        dataset = fit.load(about, data_path, seed=seed, turn=turn)
        _say_notes(output, dataset)
        chosen = run.evaluated(dataset, seed)[:count]
        found = _evaluated(output, session, dataset, chosen.tolist())
        step = session.counters().step
    facts: dict[str, Any] = {"model": about.name, "data": data_path.name, "samples": found.samples, "step": step}
    if fit.output is None:
        share = found.right / found.samples
        facts |= {"accuracy": share, "right": found.right}
        output.console.print(f"accuracy {share:.1%}: {found.right:,} of {found.samples:,}, at step {step:,}")
    else:
        facts["error"] = found.squares * fit.output.scale**2 / (found.samples * math.prod(fit.output.shape))
        output.console.print(f"mean squared error {facts['error']:.5g} on {found.samples:,} samples, at step {step:,}")
    output.result(facts)


def _evaluated(output: Output, session: Session, dataset: Dataset, chosen: list[int]) -> Evaluated:
    """Evaluates the chosen samples; begins again if the device was reset meanwhile."""
    while True:
        step = session.counters().step
        try:
            with Progress(console=output.notes, transient=True, disable=output.json or not output.notes.is_terminal) as bar:
                task = bar.add_task("evaluating", total=len(chosen))
                for number, index in enumerate(chosen):
                    sample = dataset.test(index)
                    found = session.evaluate(sample.x, sample.label, sample.target, new=number == 0)
                    bar.update(task, completed=number + 1)
            return found
        except DeviceReset:
            output.say(f"the device was reset: it was at step {step}, and is at {session.open().step}; evaluating again")


@device.command()
@place_options
@sample_options
@click.option("--epochs", type=click.IntRange(1), default=1, show_default=True, help="Passes over the training samples.")
@click.option("--steps", type=click.IntRange(1), help="Training steps, instead of epochs.")
@click.option("--rate", type=Number(0, 1, min_open=True), default=1.0, show_default=True,
              help="Largest factor on the build's learning rate.")  # fmt: skip
@click.option("--eval-every", type=click.IntRange(1), help="Training steps between evaluations.  [default: a tenth]")
@click.option("--eval-samples", type=click.IntRange(1), default=200, show_default=True, help="Samples of those.")
@click.option("--final-samples", type=click.IntRange(1), help="Held-out samples before and after.  [default: all]")
@click.option("--save-every", type=click.IntRange(1), metavar="STEPS", help="The device saves in its flash so often, and at "
              "the beginning and the end.  [default: not; a program of qemu:DIR or host:DIR as it ends]")  # fmt: skip
@click.option("--journal", "journal_path", type=_FILE, help="Where the run is written down, to go on from if it is stopped.  "
              "[default: BUILD/device.journal, or build/MODEL-HASH.journal]")  # fmt: skip
@aid_options
@click.option("--fresh", is_flag=True, help="Begin a new run from what the device has learnt, even if one was not finished.")
@command
def train(output: Output, place: Place, data_path: Path, build: Path | None, model: Path | None, seed: int, turn: str,
          epochs: int, steps: int | None, rate: float, eval_every: int | None, eval_samples: int, final_samples: int | None,
          save_every: int | None, journal_path: Path | None, aids: Wanted, fresh: bool) -> int:  # fmt: skip
    """Stream samples to the device, which learns from one after the other. Stopped, the same command goes on."""
    with place.connected(output) as session:
        about = session.describe()
        if not about.trains:
            raise DeviceError(f"the model {about.name} was built for inference only", where=place.port)
        fit = samples(place, about, build, model)
        care, dataset = learning_aids.plan(session, fit.load(about, data_path, seed=seed, turn=turn), aids, seed, save_every)
        _say_notes(output, dataset)
        planned = steps or epochs * dataset.train_count
        arguments = {
            "program": about.hash, "data": hashlib.sha256(data_path.read_bytes()).hexdigest()[:16], "steps": planned,
            "seed": seed, "rate": rate, "turn": turn, "eval_every": eval_every, "eval_samples": eval_samples,
            "final_samples": final_samples, **(care.arguments() if care else {}),
        }  # fmt: skip
        folder = build or (place.started[1] if place.started else None)
        path = journal_path or (folder / "device.journal" if folder else Path("build", f"{about.name}-{about.hash}.journal"))
        known = None if fresh else journal.unfinished(path, arguments)
        with known.append() if known else journal.begin(path, arguments, statefile.pull(session)) as past:
            if known:
                most = care.most_steps if care else 1
                by_itself = care is not None and care.saves_itself
                journal.take_up(
                    known, session, seed=seed & 0xFFFFFFFF, steps=planned, most=most, saves_itself=by_itself, say=output.say
                )
            given = care is not None and known is not None and care.are_given(session)
            if care:
                output.say("guard and replay lose what they have in RAM when the device is reset: the result is then another")
                if known and not given:
                    output.say("they begin anew: the device was reset, or did not have them yet")
            if place.started and not save_every and session.opened.found == Stored.NO_FLASH:
                say_what_ends(output, place)
            elif place.started and not save_every:
                save_every = planned  # a program that ends with the command saves when it is done, as with `tte run`
            steady = Steady(
                session, past, past, save_every=save_every or 0, steps=planned, aids=care, given=given, say=output.say
            )
            with Display(output.notes) as display:
                log = run.run(
                    steady, dataset, steps=planned, seed=seed, schedule=run.Schedule(peak=max(1, round(rate * 32768))),
                    loss_scale=fit.loss_scale, eval_every=eval_every, eval_samples=eval_samples, final_samples=final_samples,
                    history=past, on_event=display,
                )  # fmt: skip
            learner = None if log.interrupted else steady.learner()
            if learner:
                log = replace(log, notes=(*log.notes, *learning_aids.notes(learner)))
            if not log.interrupted:
                past.end()
    for line in (*outcome(log), *(learning_aids.notes(learner) if learner else ())):
        output.console.print(escape(line), soft_wrap=True)
    if log.interrupted:
        output.console.print(f"stopped; the same command goes on from {escape(str(path))}", soft_wrap=True)
    output.result({"model": about.name, "board": about.board, "data": data_path.name, "port": place.port,
                   "journal": str(path), **log.as_dict(), **_of_learner(learner)})  # fmt: skip
    return INTERRUPTED if log.interrupted else 0


@device.command()
@place_options
@command
def save(output: Output, place: Place) -> None:
    """Keep what the device has learnt in its own flash: it begins with that after a reset."""
    with place.connected(output) as session:
        step = session.save()
    output.console.print(f"saved in the device's flash: step {step:,}")
    output.result({"step": step})


@device.command()
@place_options
@command
def restore(output: Output, place: Place) -> None:
    """Go back to what the device saved last."""
    with place.connected(output) as session:
        step = session.restore()
    say_what_ends(output, place)
    output.console.print(f"the device is back at step {step:,}")
    output.result({"step": step})


@device.command()
@place_options
@command
def reset(output: Output, place: Place) -> None:
    """Begin again with the weights that the program was built with; what is in the device's flash stays there."""
    with place.connected(output) as session:
        before = session.counters().step
        session.reset()
    say_what_ends(output, place)
    output.console.print(f"the device has its initial weights again; it was at step {before:,}")
    output.result({"step_before": before})


@device.command()
@place_options
@click.argument("state", type=_FILE)
@command
def pull(output: Output, place: Place, state: Path) -> None:
    """Fetch what the device has learnt into the file STATE, for `tte export`, `tte run --load-state` and `push`."""
    with place.connected(output) as session:
        found = statefile.pull(session)
    files.write(state, statefile.pack(found))
    output.console.print(f"{len(found.data):,} bytes of trained state, step {found.step:,}, written to {escape(str(state))}",
                         soft_wrap=True)  # fmt: skip
    output.result({"state": str(state), "bytes": len(found.data), "step": found.step, "hash": found.hash})


@device.command()
@place_options
@click.argument("state", type=_FILE)
@command
def push(output: Output, place: Place, state: Path) -> None:
    """Give the device what was learnt before: a file that `pull` or `tte run --save-state` wrote."""
    found = statefile.load(state)
    with place.connected(output) as session:
        statefile.push(session, found, str(state))
    say_what_ends(output, place)
    output.console.print(f"the device has {escape(str(state))}: step {found.step:,}", soft_wrap=True)
    output.result({"state": str(state), "bytes": len(found.data), "step": found.step, "hash": found.hash})


@device.command()
@place_options
@click.option("--interval", type=Number(0.01, 3600), default=1.0, show_default=True, help="Seconds between looks.")
@click.option("--looks", type=click.IntRange(1), help="End after so many.  [default: at Ctrl-C]")
@command
def monitor(output: Output, place: Place, interval: float, looks: int | None) -> None:
    """Show the device's counters as they change; only looks, so that a device which learns by itself is not disturbed.

    With --json one object a line, instead of one at the end.
    """
    with place.connected(output) as session:
        about, before, seen = session.describe(), None, 0
        try:
            while looks is None or seen < looks:
                if seen:
                    time.sleep(interval)
                try:
                    now, learner = session.counters(), learning_aids.status(session)
                except DeviceReset:
                    output.say(f"the device was reset, or used by another program; it is at step {session.open().step}")
                    continue
                seen += 1
                if before is None or _apart_from_looking(now) != _apart_from_looking(before):
                    facts = {"time": round(time.time(), 3), "model": about.name, **asdict(now), **_of_learner(learner)}
                    output.result(facts)
                    output.console.print(escape(_change(now, before, learner)), soft_wrap=True)
                    sys.stdout.flush()  # into a pipe, too
                before = now
        except KeyboardInterrupt:
            return


def _apart_from_looking(now: Counters) -> dict[str, int]:
    """What can change on a device that nobody but a monitor talks to."""
    return {name: value for name, value in asdict(now).items() if name != "frames"}


def _change(now: Counters, before: Counters | None, learner: Status | None) -> str:
    """One line: where the device is, and what has changed."""
    parts = [time.strftime("%H:%M:%S"), f"step {now.step:,}"]
    if before and before.step != now.step:
        parts[-1] += f" ({(now.step - before.step) % 2**32:+,})"
    parts.append(f"rate x {now.learning_rate / 32768:.4g}")
    shown = {name: text for name, text in _lines(now, learner) if text and name != "line"}
    parts += [f"{name}: {text}" if name in ("guard", "replay") else text for name, text in shown.items()]
    errors = {"damaged frames": now.damaged_frames, "repeated requests": now.repeated_requests, "gaps": now.gaps}
    parts += [f"{count:,} {name}" for name, count in errors.items() if count]
    return "  ".join(parts)
