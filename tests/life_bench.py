"""Programs with latents and slices against the reference: what a call gives, and the state it leaves, byte for byte.

Each call finds an arena of random bytes: what it needs must come from the sample, the latent or the state.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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

_MODEL = """\
static void %(n)s_control(uint32_t rate, uint32_t seed, uint32_t step) {
    %(n)s_set_learning_rate(rate); %(n)s_set_seed(seed); %(n)s_set_step(step);
}
static const int8_t *%(n)s_call(uint32_t kind, const uint8_t *latent, int32_t label, uint32_t lucky, int32_t *result) {
    (void)latent; (void)label; (void)lucky;
    switch (lucky ? kind : kind + 4) {
    case INFER + 4: return %(n)s_infer();
    case TRAIN + 4: *result = %(n)s_train_step(%(label)s); break;
%(latent)s%(slices)s    default: exit(7);
    }
    return 0;
}
"""
_LATENT = """\
    case INFER_LATENT + 4: return %(n)s_infer_latent(latent);
    case TRAIN_LATENT + 4: *result = %(n)s_train_latent(latent%(comma_label)s); break;
"""
_SLICES = """\
    case INFER: %(n)s_begin_infer(); break;
    case TRAIN: if (%(n)s_begin_train(%(label)s)) exit(8); break;
"""
_LATENT_SLICES = """\
    case INFER_LATENT: %(n)s_begin_infer_latent(latent); break;
    case TRAIN_LATENT: if (%(n)s_begin_train_latent(latent%(comma_label)s)) exit(8); break;
"""
_WASTE = """\
static void %(n)s_waste(void) { %(n)s_begin_infer(); (void)%(n)s_work(budget(%(n)s_control)); }
"""
_WORK = """\
    }
    if (lucky) {
        if (!%(n)s_busy()) exit(9);
        while (%(n)s_work(budget(%(n)s_control))) { if (!%(n)s_busy()) exit(9); }
        if (%(n)s_busy()) exit(9);
        if (kind == INFER || kind == INFER_LATENT) return %(n)s_output();
        *result = %(n)s_loss();
    }
    return 0;
}
"""


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
    wanted: list[tuple[str, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.executors = {name: Executor(p.program.graph) for name, p in self.plans.items()}
        self.samples: dict[tuple[str, int], dict[str, Array]] = {}

    def call(
        self, name: str, kind: str, values: Mapping[str, Array], control: Control, slot: int | None = None, luck: int = 0
    ) -> None:
        """Notes a call and what it must give.

        Args:
            kind: "infer", "train"; "infer_latent", "train_latent": on the sample that `slot` holds, and `values`' truth.
            values: of the graph's inputs.
            slot: where a fresh sample's latent is kept.
            luck: not 0: in slices of random budgets.
        """
        plan, executor = self.plans[name], self.executors[name]
        graph, fresh = plan.program.graph, not kind.endswith("latent")
        x = next(i for i in graph.inputs if i != TRUTH)
        if fresh and slot is not None:
            self.samples[name, slot] = {x: values[x]}
        if not fresh:
            assert slot is not None
            values = {**values, **self.samples[name, slot]}
        label = int(values[TRUTH]) if graph.type(TRUTH).dtype == "int32" else 0
        words = [list(self.plans).index(name), _KINDS.index(kind), control.learning_rate, control.seed, control.step]
        payload = pack(values[x], graph.type(x).dtype) if fresh else b""
        if graph.type(TRUTH).dtype != "int32":
            payload += pack(values[TRUTH], graph.type(TRUTH).dtype)
        self.requests.append(np.array([*words, label, 0 if slot is None else slot + 1, luck], np.uint32).tobytes() + payload)
        trains = kind.startswith("train")
        result: dict[str, Array] = {}
        for _, _, outputs in run(plan, Call(values, trains, control), executor):
            result.update(outputs)
        given = plan.program.kept[0] if trains else plan.program.outputs[0]
        loss = int(result[LOSS]) if trains else 0
        state = np.zeros(codegen.state_bytes(plan), np.uint8)
        for s in codegen.state_slots(plan):
            data = pack(executor.params[s.name], s.type.dtype)
            state[s.offset : s.offset + len(data)] = np.frombuffer(data, np.uint8)
        want = np.int32(loss).tobytes() + pack(result[given], graph.type(given).dtype) + state.tobytes()
        self.wanted.append((f"call {len(self.wanted)}, {kind} of {name}", want))

    def check(self) -> None:
        """Makes the calls, from the initial state on, and compares."""
        inits = b"".join(np.array([i, 4, 0, 0, 0, 0, 0, 0], np.uint32).tobytes() for i in range(len(self.plans)))
        done = subprocess.run([str(self._program())], input=inits + b"".join(self.requests), capture_output=True, check=False)
        words = f"status {done.returncode}: {done.stderr.decode(errors='replace')[:3000]}"
        at = 0
        for where, want in self.wanted:
            have = done.stdout[at : at + len(want)]
            assert len(have) == len(want), f"{where}: the program ended, {words}"
            wrong = [i for i, (a, b) in enumerate(zip(have, want, strict=True)) if a != b]
            assert not wrong, f"{where}: {len(wrong)} bytes differ, first {wrong[0]} of {len(want)}"
            at += len(want)
        assert not done.returncode, words

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
        data = "".join(f'#include "{name}_data.c"\n' for name in self.plans)
        (src / "all_data.c").write_text(data + "void tte_trace(unsigned step);\nvoid tte_trace(unsigned step) { (void)step; }\n")
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
            parts = how | {
                "latent": _LATENT % how if self.latent else "",
                "slices": (_SLICES % how + (_LATENT_SLICES % how if self.latent else "")) if self.resumable else "",
            }
            text = _MODEL % parts
            yield text.replace("    }\n    return 0;\n}\n", (_WORK + _WASTE) % how) if self.resumable else text
            target = 0 if by_label else graph.type(TRUTH).nbytes
            kept, out = p.program.kept[0], p.program.outputs[0]
            sizes = [max(p.arena_bytes, 8), codegen.state_bytes(p), graph.type(x).nbytes, row_bytes, target]
            sizes += [graph.type(kept).nbytes, graph.type(out).nbytes]
            own = [f"{name}_arena", f"{name}_state", "0" if row_bytes else f"{name}_input"]
            own += ["0" if by_label else f"{name}_target", f"{name}_logits", f"{name}_init", f"{name}_control"]
            own += [f"{name}_keep_latent" if self.latent else "0", f"{name}_waste" if self.resumable else "0", f"{name}_call"]
            rows.append(f"    {{{', '.join(map(str, [*sizes, *own]))}}},\n")
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
