"""Programs with latents and slices against the reference: what a call gives, and the state it leaves, byte for byte.

A call may find another one under way, which was left anywhere: that one is forgotten, or learnt from to its end, as the
generated header says, and learning rate, seed and step count that were set in its midst hold for the call. Each call finds
an arena of random bytes: what it needs must come from the sample, the latent or the state.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

import numpy as np
from c_harness import SANITIZE, WARNINGS, Call, run

from tte import codegen
from tte.ir import Array, Role
from tte.latent import Cut, frozen_cut
from tte.ops.base import Control
from tte.planner.arena import Plan
from tte.reference import Executor, pack
from tte.training.autodiff import LOSS, TRUTH

_MAIN = Path(__file__).with_name("life_bench_main.c")
_KINDS = ("infer", "train", "infer_latent", "train_latent")
_INIT, _NOTHING = 4, 5
_HOW = ("begun", "abandoned", "replaced")

_MODEL = """\
static void %(n)s_set_control(uint32_t rate, uint32_t seed, uint32_t step) {
    %(n)s_set_learning_rate(rate); %(n)s_set_seed(seed); %(n)s_set_step(step);
}
static void %(n)s_control(uint32_t now[3]) {
    now[0] = %(n)s_learning_rate(); now[1] = %(n)s_seed(); now[2] = %(n)s_step();
}
static const int8_t *%(n)s_whole(uint32_t kind, const uint8_t *latent, int32_t label, int32_t *result) {
    (void)latent; (void)label;
    switch (kind) {
    case INFER: return %(n)s_infer();
    case TRAIN: *result = %(n)s_train_step(%(label)s); break;
%(latent)s    default: exit(7);
    }
    return 0;
}
"""
_LATENT = """\
    case INFER_LATENT: return %(n)s_infer_latent(latent);
    case TRAIN_LATENT: *result = %(n)s_train_latent(latent%(comma_label)s); break;
"""
_SLICES = """\
static int %(n)s_begin(uint32_t kind, const uint8_t *latent, int32_t label) {
    (void)latent; (void)label;
    switch (kind) {
    case INFER: %(n)s_begin_infer(); return 0;
    case TRAIN: return %(n)s_begin_train(%(label)s);
%(latent)s    default: exit(7);
    }
}
"""
_LATENT_SLICES = """\
    case INFER_LATENT: %(n)s_begin_infer_latent(latent); return 0;
    case TRAIN_LATENT: return %(n)s_begin_train_latent(latent%(comma_label)s);
"""
#: Of the bench's answers: no step was done yet, or all were.
_NO_STEP, _ALL_STEPS = 2**32 - 1, 2**32 - 2


@dataclass(frozen=True)
class Left:
    """A call that is begun, goes on until a little after a step of the plan, and is left there.

    Attributes:
        kind, values, slot: as of `LifeBench.call`.
        until: the step; -1: none.
        how: what ends it: "begun": the next call, begun in its midst, "abandoned" (once it learns: as the third), or
            "replaced": by an inference, which is abandoned in turn.
    """

    kind: str
    values: Mapping[str, Array]
    until: int
    how: str
    slot: int | None = None


@dataclass(frozen=True)
class _Noted:
    """A call that the reference makes when the program has answered."""

    name: str
    kind: str
    values: Mapping[str, Array]
    control: Control
    left: Left | None

    @property
    def trains(self) -> bool:
        return self.kind.startswith("train")


class _Answers:
    """What the program wrote, from its start to its end."""

    def __init__(self, data: bytes, words: str) -> None:
        self.data, self.words, self.at = data, words, 0

    def take(self, count: int, where: str) -> bytes:
        self.at += count
        assert self.at <= len(self.data), f"{where}: the program ended, {self.words}"
        return self.data[self.at - count : self.at]

    def numbers(self, count: int, where: str) -> list[int]:
        return [int(n) for n in np.frombuffer(self.take(4 * count, where), np.uint32)]


@dataclass
class LifeBench:
    """Programs in one executable, built with sanitizers.

    Args:
        plans: what they are, by name (a C identifier).
        folder: for sources and objects.
        cut: chooses where programs are cut.
    """

    plans: Mapping[str, Plan]
    folder: Path
    latent: bool = True
    resumable: bool = False
    cut: Callable[[Plan], Cut] = frozen_cut
    compiler: str = "gcc"
    flags: Sequence[str] = ()
    requests: list[bytes] = field(default_factory=list)
    noted: list[_Noted] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.executors = {name: Executor(p.program.graph) for name, p in self.plans.items()}
        self.samples: dict[tuple[str, int], dict[str, Array]] = {}

    def call(
        self, name: str, kind: str, values: Mapping[str, Array], control: Control, slot: int | None = None, luck: int = 0,
        left: Left | None = None,
    ) -> None:  # fmt: skip
        """Notes a call.

        Args:
            kind: "infer", "train"; "infer_latent", "train_latent": on the sample that `slot` holds, and `values`' truth.
            values: of the graph's inputs.
            control: of `left`, if there is one, which changes it at random; what it then is holds for this call.
            slot: where a fresh sample's latent is kept.
            luck: not 0: in slices of random budgets.
            left: what is begun before and left; "begun" only where this call is in slices, and neither input nor target is
                to be written for it.
        """
        graph = self.plans[name].program.graph
        shared = [i for i in range(self.plans[name].program.shared) if not graph.nodes[i].op.view]
        known = self._with_sample(name, kind, values, slot)
        words = [list(self.plans).index(name), _KINDS.index(kind), control.learning_rate, control.seed, control.step]
        words += [self._label(name, values), 0 if slot is None else slot + 1, luck]
        payload = self._payload(name, kind, known)
        if left is None:
            words += [_NOTHING, 0, 0, 0, 0, 0]
        else:
            before = self._with_sample(name, left.kind, left.values, left.slot)
            left = replace(left, values=before)
            words += [_KINDS.index(left.kind), self._label(name, before), 0 if left.slot is None else left.slot + 1]
            words += [left.until % 2**32, shared[-1], _HOW.index(left.how)]
            payload = self._payload(name, left.kind, before) + payload
        self.requests.append(np.array(words, np.uint32).tobytes() + payload)
        if not kind.endswith("latent") and slot is not None:
            self.samples[name, slot] = {self._source(name): values[self._source(name)]}
        self.noted.append(_Noted(name, kind, known, control, left))

    def check(self) -> Counter[str]:
        """Makes the calls, from the initial state on, and compares; gives how many calls of which kind were left in which way
        ("begun train", say) and what became of them: "forgotten" in the forward pass, "learnt" to their end by what ended
        them, "done" before."""
        assert {call.name for call in self.noted} == set(self.plans), "not every program is called"
        inits = b"".join(np.array([i, _INIT, *[0] * 12], np.uint32).tobytes() for i in range(len(self.plans)))
        done = subprocess.run([str(self._program())], input=inits + b"".join(self.requests), capture_output=True, check=False)
        words = f"status {done.returncode}: {done.stderr.decode(errors='replace')[:3000]}"
        answers, outcomes = _Answers(done.stdout, words), Counter[str]()
        for number, call in enumerate(self.noted):
            where, control = f"call {number}, {call.kind} of {call.name}", call.control
            if call.left:
                outcome, control = self._check_left(call, call.left, answers, where)
                outcomes[f"{call.left.how} {call.left.kind.removesuffix('_latent')} {outcome}"] += 1
            self._check_result(call, control, answers, where)
        assert not done.returncode, words
        assert answers.at == len(done.stdout), f"{len(done.stdout) - answers.at} bytes more than wanted"
        return outcomes

    def _check_left(self, call: _Noted, left: Left, answers: _Answers, where: str) -> tuple[str, Control]:
        """Compares what a call that was left has done; gives what became of it, and the control that it leaves."""
        where, program = f"{where}, after {left.kind} {left.how}", self.plans[call.name].program
        at, learnt = answers.numbers(2, where)
        state, asked, now = self._state(call.name, answers, where)
        steps = [i for i in range(len(program.graph.nodes)) if not program.graph.nodes[i].op.view]
        last = max(i for i in steps if i < program.shared)
        outcome = "done" if at == _ALL_STEPS else "learnt" if learnt else "forgotten"
        if not left.kind.startswith("train") or at == _NO_STEP or at < last:
            assert not learnt or at == _ALL_STEPS, f"{where}: a forward pass was learnt from"
        elif at != last:  # there it may have begun to learn, or not
            assert learnt, f"{where}: a step was ended in its midst"
        if learnt:
            assert learnt == 1 and left.kind.startswith("train"), f"{where}: {learnt} steps were counted"
            self._reference(call.name, left.values, True, call.control)
        self._same(state, self._packed_state(call.name), where)
        control = Control(min(asked[0], 32768), asked[1], asked[2])
        assert now == [control.learning_rate, control.seed, control.step], where
        return outcome, control

    def _check_result(self, call: _Noted, control: Control, answers: _Answers, where: str) -> None:
        program = self.plans[call.name].program
        result = self._reference(call.name, call.values, call.trains, control)
        given = program.kept[0] if call.trains else program.outputs[0]
        want = np.int32(result[LOSS] if call.trains else 0).tobytes() + pack(result[given], program.graph.type(given).dtype)
        self._same(answers.take(len(want), where), want, where)
        state, asked, now = self._state(call.name, answers, where)
        self._same(state, self._packed_state(call.name), f"{where}, the state")
        assert now == [min(asked[0], 32768), asked[1], (asked[2] + call.trains) % 2**32], where

    @staticmethod
    def _same(have: bytes, want: bytes, where: str) -> None:
        wrong = [i for i, (a, b) in enumerate(zip(have, want, strict=True)) if a != b]
        assert not wrong, f"{where}: {len(wrong)} bytes differ, first {wrong[0]} of {len(want)}"

    def _state(self, name: str, answers: _Answers, where: str) -> tuple[bytes, list[int], list[int]]:
        """The trained state, the control that was set last, and the one that the program then had."""
        state = answers.take(codegen.state_bytes(self.plans[name]), where)
        return state, answers.numbers(3, where), answers.numbers(3, where)

    def _reference(self, name: str, values: Mapping[str, Array], trains: bool, control: Control) -> dict[str, Array]:
        """Every tensor of a call; parameters change."""
        result: dict[str, Array] = {}
        for _, _, outputs in run(self.plans[name], Call(values, trains, control), self.executors[name]):
            result.update(outputs)
        return result

    def _packed_state(self, name: str) -> bytes:
        state = np.zeros(codegen.state_bytes(self.plans[name]), np.uint8)
        for s in codegen.state_slots(self.plans[name]):
            data = pack(self.executors[name].params[s.name], s.type.dtype)
            state[s.offset : s.offset + len(data)] = np.frombuffer(data, np.uint8)
        return state.tobytes()

    def _source(self, name: str) -> str:
        return next(i for i in self.plans[name].program.graph.inputs if i != TRUTH)

    def _with_sample(self, name: str, kind: str, values: Mapping[str, Array], slot: int | None) -> Mapping[str, Array]:
        if not kind.endswith("latent"):
            return values
        assert slot is not None
        return {**values, **self.samples[name, slot]}

    def _label(self, name: str, values: Mapping[str, Array]) -> int:
        return int(values[TRUTH]) if self.plans[name].program.graph.type(TRUTH).dtype == "int32" else 0

    def _payload(self, name: str, kind: str, values: Mapping[str, Array]) -> bytes:
        graph, x = self.plans[name].program.graph, self._source(name)
        payload = b"" if kind.endswith("latent") else pack(values[x], graph.type(x).dtype)
        return payload + (b"" if graph.type(TRUTH).dtype == "int32" else pack(values[TRUTH], graph.type(TRUTH).dtype))

    def _program(self) -> Path:
        src, include = self.folder / "src", self.folder / "include"
        for name, p in self.plans.items():
            with mock.patch.object(codegen, "frozen_cut", self.cut):
                files = codegen.render(p, name, "test", latent=self.latent, resumable=self.resumable)
            for path, text in files.items():
                (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / path).write_text(text, encoding="utf-8")
        text = _MAIN.read_text(encoding="utf-8").replace("/* @models@ */", "".join(self._models()))
        includes = "".join(f'#include "{name}.h"\n' for name in self.plans)
        (src / "bench.c").write_text(text.replace("/* @includes@ */", includes))
        (src / "all_data.c").write_text("".join(f'#include "{name}_data.c"\n' for name in self.plans))
        sources = [str(src / f"{name}.c") for name in self.plans] + [str(src / "bench.c"), str(src / "all_data.c")]
        program = self.folder / "bench"
        flags = [*WARNINGS, *SANITIZE, *self.flags, "-DTTE_TRACE", f"-I{include}", f"-I{src}"]
        done = subprocess.run([self.compiler, *flags, *sources, "-o", str(program)], capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr[:4000]
        return program

    def _models(self) -> Iterator[str]:
        rows = []
        for name, p in self.plans.items():
            graph = p.program.graph
            x = next(i for i in graph.inputs if i != TRUTH)
            by_label = graph.type(TRUTH).dtype == "int32"
            how = {"n": name, "label": "label" if by_label else "", "comma_label": ", label" if by_label else ""}
            row_bytes = graph.type(x).nbytes // graph.type(x).shape[1] if p.program.supplied else 0
            if row_bytes:
                yield f"void {name}_read_row(int32_t row, int8_t *to) {{ supply(row, {row_bytes}, to); }}\n"
            yield _MODEL % (how | {"latent": _LATENT % how if self.latent else ""})
            if self.resumable:
                yield _SLICES % (how | {"latent": _LATENT_SLICES % how if self.latent else ""})
            kept, out = graph.type(p.program.kept[0]), graph.type(p.program.outputs[0])
            sizes = [max(p.arena_bytes, 8), codegen.state_bytes(p), graph.type(x).nbytes, row_bytes]
            sizes += [0 if by_label else graph.type(TRUTH).nbytes, kept.nbytes, out.nbytes]
            own = ["arena", "state", "" if row_bytes else "input", "" if by_label else "target", "logits", "init"]
            own += ["set_control", "control", "keep_latent" if self.latent else "", "whole"]
            own += ["begin", "work", "busy", "abandon", "output", "loss"] if self.resumable else [""] * 6
            columns = [*map(str, sizes), *(f"{name}_{fn}" if fn else "0" for fn in own)]
            rows.append(f"    {{{', '.join(columns)}, {kept.elements if by_label else 0}}},\n")
        yield "static const model models[] = {\n" + "".join(rows) + "};\n"


def values_for(plan: Plan, random: np.random.Generator) -> dict[str, Array]:
    """A random sample with its truth."""
    graph = plan.program.graph
    return {
        name: np.array(random.integers(graph.type(plan.program.kept[0]).elements), np.int32)
        if graph.type(name).dtype == "int32"
        else random.integers(-128, 128, graph.type(name).shape, np.int8)
        for name in graph.inputs
        if graph.tensors[name].role is Role.INPUT
    }
