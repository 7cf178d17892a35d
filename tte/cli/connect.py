"""Options of all commands of `tte device`: which device, and what its samples are."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from tte import data, passes, pioproject, project, verify
from tte.cli.output import Number, Output
from tte.data import Dataset, Port
from tte.device import port_failures
from tte.device.link import LinkSilent
from tte.device.port import DEFAULT_BAUD, ReopeningLink, open_port
from tte.device.protocol import Description
from tte.device.session import Session
from tte.errors import DataError, DeviceError
from tte.frontend import tflite
from tte.ir import TensorType
from tte.training.autodiff import TRUTH

_DIR = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_STARTED = ("qemu", "host")  # ports that are programs of a build folder, started for one command
_OPENING_S = 10.0  # for the first answer: a device may be in the middle of a training step
_SILENCE_S = 30.0  # the least for every other


@dataclass(frozen=True)
class Place:
    """Where a device is.

    Attributes:
        port: a serial port, a URL, or `qemu:DIR` and `host:DIR`.
        baud: bits a second, of a serial port.
        reconnect: seconds to try again when the line is lost or silent.
        link: how the emulator of `qemu:DIR` talks.
    """

    port: str
    baud: int
    reconnect: float
    link: str

    @property
    def started(self) -> tuple[str, Path] | None:
        """"qemu" or "host", and the build folder; None for a device that is there already."""
        kind, colon, folder = self.port.partition(":")
        return (kind, Path(folder)) if colon and kind in _STARTED else None

    @contextlib.contextmanager
    def connected(self, output: Output) -> Iterator[Session]:
        """A session with the device; a program that was started is ended, any other device goes on as it was.

        Raises:
            DeviceError: there is no device, or it does not answer.
            DataError, ToolchainError, BoardError: a program cannot be started.
        """
        if self.started:
            kind, folder = self.started
            if folder == Path():
                raise DataError("names no folder", where=self.port, remedy=f"{kind}:DIR, the --out of a `tte build`")
            with verify.open_program(pioproject.open_project(folder), kind, sanitize=False, uart=self.link == "uart") as device:
                yield device
            return
        link = ReopeningLink(lambda: open_port(self.port, self.baud), self.reconnect, output.say)
        with Session(closing(link), max(self.reconnect, _SILENCE_S), ends=False) as device:
            try:
                device.open(_OPENING_S)
            except LinkSilent:
                baud = None if "://" in self.port else self.baud
                raise port_failures.silent(self.port, _OPENING_S, device.heard, baud) from None
            yield device


def say_what_ends(output: Output, place: Place) -> None:
    """Of a program that was started for the command alone: what the command changed goes with it."""
    if place.started:
        output.say("the program ends with this command, and what it has in RAM with it; only what is saved in its flash stays")


def place_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a command, which gets a `Place` as `place`."""

    @click.option("--port", required=True, envvar="TTE_PORT", show_envvar=True, help="The device: /dev/ttyACM0, COM3, "
                  "socket://host:port; or qemu:DIR, host:DIR: the program of a build folder.")  # fmt: skip
    @click.option("--baud", type=click.IntRange(50, 10_000_000), default=DEFAULT_BAUD, show_default=True,
                  help="Bits a second, of a serial port.")  # fmt: skip
    @click.option("--reconnect", type=Number(0, 86_400), default=60.0, show_default=True, metavar="SECONDS",
                  help="How long to try again when the line is lost or silent.")  # fmt: skip
    @click.option("--link", type=click.Choice(["semihosting", "uart"]), default="semihosting", show_default=True,
                  help="How the emulated board of qemu:DIR talks.")  # fmt: skip
    @functools.wraps(function)
    def wrapped(*args: Any, port: str, baud: int, reconnect: float, link: str, **others: Any) -> Any:
        return function(*args, place=Place(port, baud, reconnect, link), **others)

    return wrapped


@dataclass(frozen=True)
class Samples:
    """How samples fit a device.

    Attributes:
        source: the model's input.
        output: what it learns to give; None for a classifier.
        answer: what it gives.
        loss_scale: one unit of the device's loss in nats or real units squared; None: not known.
    """

    source: Port
    output: Port | None
    answer: Port
    loss_scale: float | None

    def load(self, about: Description, path: Path, *, seed: int, turn: str, inputs_only: bool = False) -> Dataset:
        """The samples of a file, as `tte.data.load` gives them.

        Raises:
            DataError: they do not fit the device.
        """
        classes = None if self.output else about.logits_bytes or about.output_bytes
        found = data.load(
            path, self.source, classes=1 if inputs_only else classes, output=None if inputs_only else self.output, seed=seed,
            inputs_only=inputs_only,
        )  # fmt: skip
        return found.turned(int(turn) // 90)


def sample_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what says how a device's input is quantised, and where the samples are."""
    for option in (
        click.option("--turn", type=click.Choice(["0", "90", "180", "270"]), default="0", help="Turn the images first."),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Order, split and random numbers."),
        click.option("--model", type=_FILE, help="The .tflite that the program was built from, instead of --build."),
        click.option("--build", type=_DIR, help="The program's build folder.  [default: DIR of qemu:DIR and host:DIR]"),
        click.option("--data", "data_path", type=_FILE, required=True,
                     help="An .npz with x_train, y_train, x_test, y_test or x, y."),
    ):  # fmt: skip
        function = option(function)
    return function


def samples(place: Place, about: Description, build: Path | None, model: Path | None) -> Samples:
    """How samples fit the device, by its build folder or its model.

    Raises:
        DeviceError: the device runs another program.
        DataError: neither is given, or the folder holds no build.
        ModelError: the model cannot be read.
    """
    if build is None and model is None and place.started:
        build = place.started[1]
    if build is not None:
        return _of_build(about, build)
    if model is not None:
        return _of_model(about, model)
    raise DataError("how the device's input is quantised is not known", where=place.port,
                    remedy="--build DIR, the folder it was built in, or --model FILE.tflite")  # fmt: skip


def _of_build(about: Description, folder: Path) -> Samples:
    _, compiled, facts = project.load(folder)
    if facts["hash"] != about.hash:
        raise DeviceError(
            f"the device runs another program: {about.name} for {about.board}, {about.hash}; this folder's is "
            f"{facts['name']} for {facts['board']}, {facts['hash']}",
            where=str(folder), remedy="`tte flash` this folder, or give the one that the device was built from",
        )  # fmt: skip
    program = compiled.plan.program
    graph = program.graph
    answer = _port(graph.type(program.outputs[0]))
    output = _port(graph.type(program.kept[0])) if about.target_bytes else None
    return Samples(_port(graph.type(next(i for i in graph.inputs if i != TRUTH))), output, answer, compiled.loss_scale or None)


def _of_model(about: Description, path: Path) -> Samples:
    graph = passes.run(passes.NORMALISE, tflite.load(path))
    source, answer = graph.type(graph.inputs[0]), graph.type(graph.outputs[0])
    for what, found, wanted in (
        ("input", source.nbytes, about.input_bytes),
        ("output", answer.nbytes if about.target_bytes else 0, about.target_bytes),
    ):
        if found != wanted:
            raise DeviceError(
                f"the device's model {about.name} has an {what} of {wanted:,} bytes, this one of {found:,}",
                where=str(path), remedy="give the model that the device's program was built from",
            )  # fmt: skip
    return Samples(_port(source), _port(answer) if about.target_bytes else None, _port(answer), None)


def _port(t: TensorType) -> Port:
    return Port(t.shape, t.scale, t.zero_point)
