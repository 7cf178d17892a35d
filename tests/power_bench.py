"""Cutting an emulated device's power after an exact number of instructions, and looking at what the next start finds.

QEMU's MPS2 machines have a watchdog (0x40008000, 25 MHz) whose first expiry is a non-maskable interrupt. With `-icount`
time is instructions, so a watchdog that is set before the first one stops the program at exactly the one that is wanted,
whatever it does then; its fault handler, which touches no flash, ends the emulator. It is set through QEMU's debugging
port (`Qqemu.PhyMemMode`), so the program is the one that is built for everybody.
"""

from __future__ import annotations

import copy
import random
import re
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tte import codegen
from tte.board import Board
from tte.compiler import Compiled
from tte.data import Sample
from tte.device import emulator, protocol
from tte.device.frame import Frame, Reader, encode
from tte.device.protocol import Command, Kind, Stored
from tte.reference import Executor, pack
from tte.training.autodiff import LOSS, TRUTH

_WATCHDOG, _CONTROL = 0x40008000, 0x40008008
_TICK_NS = 40
_STOPPED = re.compile(r"fault: address unknown, status 0x00000000, program counter 0x(\w{8})\n")


class _Debugger:
    """As much of the GDB remote serial protocol as sets a few words of a machine that has not begun."""

    def __init__(self, line: socket.socket) -> None:
        self._line, self._rest = line, b""

    def tell(self, packet: str) -> None:
        self._line.sendall(f"${packet}#{sum(packet.encode()) % 256:02x}".encode())

    def ask(self, packet: str) -> bytes:
        self.tell(packet)
        while not (found := re.search(rb"\$([^#]*)#..", self._rest, re.DOTALL)):
            part = self._line.recv(4096)
            assert part, "QEMU has ended"
            self._rest += part
        self._rest = self._rest[found.end() :]
        self._line.sendall(b"+")
        return found[1]

    def write(self, address: int, value: int) -> None:
        assert self.ask(f"M{address:x},4:{value.to_bytes(4, 'little').hex()}") == b"OK"


def run(elf: Path, board: Board, folder: Path, instructions: int, timeout_s: float = 60) -> tuple[int | None, str]:
    """Runs a program whose power goes after so many instructions.

    Args:
        folder: its working directory: flash, and the files of its link.

    Returns:
        Where it was then, by its program counter (None: it had ended by itself), and what it said.
    """
    assert board.emulator and board.emulator.machine.startswith("mps2-")
    ticks = -(-instructions * (1 << board.emulator.icount_shift) // _TICK_NS)
    ours, its = socket.socketpair()
    with ours:
        with its:
            words = emulator.command(elf, board, icount=True)
            words += ["-S", "-chardev", f"socket,id=gdb,fd={its.fileno()}", "-gdb", "chardev:gdb"]
            process = subprocess.Popen(
                words, cwd=folder, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
        with process:
            try:
                debugger = _Debugger(ours)
                assert debugger.ask("Qqemu.PhyMemMode:1") == b"OK"
                debugger.write(_WATCHDOG, ticks)
                debugger.write(_CONTROL, 1)
                debugger.tell("D")  # and on it goes
                said, _ = process.communicate(timeout=timeout_s)
            finally:
                process.kill()
    stopped = _STOPPED.search(said)
    return (int(stopped[1], 16) if stopped else None), _STOPPED.sub("", said)


@dataclass
class Cuts:
    """What the starts after cuts found.

    Attributes:
        kills: cuts.
        start, training, saving: what the program was doing.
        last: the state that was reported as saved last.
        newer: the one after it, of which the save was not reported any more.
        none: nothing, as nothing was saved before.
        saves: saves that were reported.
        places: instructions, by their address, at which the power went.
        wrong: whatever else was found.
    """

    kills: int = 0
    start: int = 0
    training: int = 0
    saving: int = 0
    last: int = 0
    newer: int = 0
    none: int = 0
    saves: int = 0
    places: set[int] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    def found(self, step: int, saved: int) -> None:
        """Counts what a start found (0: nothing), after `saved` was reported last."""
        self.none += step == saved == 0
        self.last += step == saved > 0
        self.newer += step == saved + 1
        if step not in (saved, saved + 1):
            self.wrong.append(f"found {step} where {saved} was saved last")


def cut_saving(elf: Path, board: Board, folder: Path, kills: int, seed: int, within: int) -> Cuts:
    """Cuts the power of store_device.c, which does nothing but save, after 1 to `within` instructions of each start."""
    draw, counts, saved = random.Random(seed), Cuts(), 0
    (folder / "flash").unlink(missing_ok=True)
    while counts.kills < kills:
        place, said = run(elf, board, folder, draw.randint(1, within))
        assert place is not None, said
        lines = [line.split() for line in said.splitlines()]
        counts.kills += 1
        counts.places.add(place)
        if not lines:
            counts.start += 1
            continue
        counts.saving += 1
        kind, number = lines.pop(0)
        if kind not in ("found", "empty"):
            counts.wrong.append(f"{kind} {number} where {saved} was saved last")
        found = int(number, 16) if kind == "found" else 0
        counts.found(found, saved)
        saved = found
        for kind, number in lines:
            if (kind, int(number, 16)) != ("saved", saved + 1):
                counts.wrong.append(f"{kind} {number} after {saved}")
            saved += kind == "saved"
            counts.saves += kind == "saved"
    return counts


def reference_state(compiled: Compiled, executor: Executor) -> bytes:
    """The trained state of the reference, as the generated header lays it out."""
    data = bytearray(codegen.state_bytes(compiled.plan))
    for slot in codegen.state_slots(compiled.plan):
        packed = pack(executor.params[slot.name], slot.type.dtype)
        data[slot.offset : slot.offset + len(packed)] = packed
    return bytes(data)


class Reference:
    """The reference in NumPy after each of the steps that a device may have done.

    Attributes:
        known: by the number of steps.
    """

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        graph = compiled.plan.program.graph
        self._source = next(i for i in graph.inputs if i != TRUTH)
        self.known = {0: Executor(graph)}

    def state(self, step: int) -> bytes:
        """The state after that step; empty if it is none of those."""
        return reference_state(self._compiled, self.known[step]) if step in self.known else b""

    def learn(self, step: int, sample: Sample) -> int:
        """Makes step + 1 known, from step by one on this sample; gives the loss."""
        after = copy.copy(self.known[step])
        after.params = {name: value.copy() for name, value in after.params.items()}
        found = after.train({self._source: sample.x, TRUTH: np.array(sample.label, np.int32)})
        self.known[step + 1] = after
        return int(found[LOSS])


def _script(number: int, samples: Sequence[Sample]) -> bytes:
    """What a host sends that asks for the state, then trains on each sample and saves: the bytes on the wire."""
    requests = [(Command.OPEN, b"", b""), (Command.READ_STATE, b"", b"")]
    for sample in samples:
        label = sample.label.to_bytes(4, "little", signed=True)
        requests += [(Command.TRAIN, label, sample.x.tobytes()), (Command.SAVE, b"", b"")]
    out = bytearray()
    for sequence, (command, arguments, content) in enumerate(requests, 1):
        window = protocol.request(1 << 24, arguments)
        out += b"\0" + encode(Frame(Kind.REQUEST, command, number, sequence, 0, len(content), window))
        for at in range(0, len(content), 256):
            part = content[at : at + 256]
            out += encode(Frame(Kind.DATA, 0, number, sequence, at, len(content), part))
    return bytes(out)


def _answers(content: bytes) -> Iterator[bytes]:
    """The whole answers in what a device has sent, in order."""
    answer = bytearray()
    for frame in Reader().feed(content):
        if frame.kind == Kind.ANSWER:
            assert frame.code == 0 and frame.offset == len(answer), frame
            answer += frame.payload
            if len(answer) == frame.total:
                yield bytes(answer)
                answer.clear()


def cut_learning(
    elf: Path, board: Board, folder: Path, compiled: Compiled, draw_sample: Callable[[], Sample], kills: int, seed: int,
    rounds: int = 3, life: int = 100, say: Callable[[Cuts], None] = lambda _: None,
) -> Cuts:  # fmt: skip
    """Cuts the power of a device that trains and saves in turn, at any instruction of a start and so many rounds.

    The host's side of the conversation is a file, so that a run depends on the number of instructions alone.

    Args:
        draw_sample: the next sample.
        life: kills after which the flash is replaced by a new one.
        say: told what was counted, after each start.
    """
    draw, counts, saved = random.Random(seed), Cuts(), 0
    flash, sent, reference = folder / "flash", folder / "from_device", Reference(compiled)
    program = compiled.plan.program
    logits_bytes = program.graph.type(program.kept[0]).nbytes

    def start(number: int, samples: Sequence[Sample], instructions: int) -> int | None:
        (folder / "to_device").write_bytes(_script(number, samples))
        sent.unlink(missing_ok=True)
        place, said = run(elf, board, folder, instructions)
        assert "fault" not in said, said
        if place is None:  # it has ended by itself, and not before all was done
            assert sent.exists() and len(list(_answers(sent.read_bytes()))) == 2 + 2 * len(samples), said
        return place

    def is_whole(samples: Sequence[Sample], instructions: int) -> bool:
        flash.unlink(missing_ok=True)
        return start(1, samples, instructions) is None

    def length() -> int:
        """Instructions of a whole run, a little more."""
        samples, high = [draw_sample() for _ in range(rounds)], 1 << 20
        while not is_whole(samples, high):
            high *= 2
        low = high // 2
        while high - low > low // 16:
            middle = (low + high) // 2
            low, high = (low, middle) if is_whole(samples, middle) else (middle, high)
        return high

    within = length()
    flash.unlink(missing_ok=True)
    while counts.kills < kills:
        samples = [draw_sample() for _ in range(rounds)]
        place = start(counts.kills + 1, samples, draw.randint(1, within))
        answers = list(_answers(sent.read_bytes())) if sent.exists() else []
        if place is not None:
            counts.kills += 1
            counts.places.add(place)
            kind = "start" if len(answers) < 2 else "saving" if len(answers) % 2 else "training"
            setattr(counts, kind, getattr(counts, kind) + 1)
        if len(answers) < 2:
            continue
        opened = protocol.parse_opened(answers[0])
        found = opened.step if opened.found == Stored.OK else 0
        counts.found(found, saved)
        if opened.found not in (Stored.OK, Stored.EMPTY) or opened.step != found:
            counts.wrong.append(f"opened with {opened}")
        if answers[1] != reference.state(found):
            counts.wrong.append(f"the state found at step {found} is not the reference's")
            break
        saved, reference.known = found, {found: reference.known[found]}
        losses = [  # of one more than were answered: the last may have been saved without an answer
            reference.learn(max(reference.known), sample) for sample in samples[: len(answers) // 2]
        ]
        for answer, loss in zip(answers[2::2], losses, strict=False):
            if (told := protocol.parse_trained(answer, logits_bytes).loss) != loss:
                counts.wrong.append(f"a step ended with the loss {told} instead of {loss}")
        for answer in answers[3::2]:
            result, step = protocol.parse_stored(answer)
            if (result, step) != (Stored.OK, saved + 1):
                counts.wrong.append(f"saving ended with {result.name} at step {step} after {saved}")
            saved = step
            counts.saves += 1
        if counts.kills % life == 0:
            flash.unlink()
            saved, reference = 0, Reference(compiled)
        say(counts)
    return counts
