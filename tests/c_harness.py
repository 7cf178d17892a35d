"""Generated C against the reference executor: every tensor, after every step, byte for byte.

Many programs share one executable, because starting the compiler costs more than compiling a small model. The
executable (compiled with sanitizers) takes whole arenas: what is not an input is random, so that reading what nobody
wrote shows. After each step it sends the step's outputs, and stops if a byte outside them changed. A model that takes
its input by rows is given them one by one, and must ask for each once, in order.
"""

from __future__ import annotations

import functools
import itertools
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar
from unittest import mock

import numpy as np
import pytest

from tte import codegen
from tte.ir import DTYPES, Array, Builder, Graph, Node, Role, Tensor, TensorType, verify
from tte.ops.base import Control
from tte.planner import arena
from tte.planner.arena import Plan
from tte.planner.check import check
from tte.planner.schedule import Program, schedule
from tte.reference import Executor, pack, unpack
from tte.training.autodiff import LOSS, TRUTH

WARNINGS = ("-std=c11", "-Wall", "-Wextra", "-Werror")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
KINDS = ("portable", "dsp", "dsp roomy")
CORES = ("cortex-m0plus", "cortex-m4", "cortex-m7")
_END = 0xFFFFFFFF
_CROSS = "arm-none-eabi-gcc"
_VECTORS = """\
extern void _start(void);
__attribute__((section(".vectors"), used)) static const void *const vectors[2] = {(void *)0x20400000, (void *)_start};
"""
_T = TypeVar("_T")
_LOGITS = "any"

_MAIN = Path(__file__).with_name("c_harness_main.c")

_MODEL = """\
static const span %(name)s_spans[] = {
%(spans)s};
static void %(name)s_run(void) { (void)%(name)s_infer(); }
"""
_TRAINS = """\
static void %(name)s_control(const uint32_t *v) {
    %(name)s_set_learning_rate(v[0]); %(name)s_set_seed(v[1]); %(name)s_set_step(v[2]);
}
"""
_SLICED = """\
static const span %(name)s_spans[] = {
%(spans)s};
static void %(name)s_run(void) { %(name)s_begin_infer(); while (%(name)s_work(some_budget())) {} }
"""
_ROWS = """\
void %(name)s_read_row(int32_t row, int8_t *to) { supply(%(rows)d, %(row_bytes)d, row, to); }
"""


def compilers() -> list[str]:
    """The C compilers of this computer that tests try."""
    return [c for c in ("gcc", "clang") if shutil.which(c)]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a program.

    Attributes:
        inputs: values of the graph's inputs.
        train: a training step, else inference.
        control: learning-rate factor, seed, step.
        params: values for PARAMs, the others initial; None: as the last call left them.
    """

    inputs: Mapping[str, Array]
    train: bool = False
    control: Control = Control()
    params: Mapping[str, Array] | None = None


def merged(graphs: Sequence[Graph], name: str) -> Graph:
    """Several graphs as one that computes them side by side."""
    builder = Builder(name)
    inputs: list[str] = []
    outputs: list[str] = []
    for i, graph in enumerate(graphs):
        for tensor in graph.tensors.values():
            builder.tensors[f"{i}/{tensor.name}"] = replace(tensor, name=f"{i}/{tensor.name}")
        for node in graph.nodes:
            ins, outs = ([f"{i}/{n}" for n in names] for names in (node.inputs, node.outputs))
            builder.emit(f"{i}/{graph.name}/{node.name}", node.op, ins, outs)
        inputs += [f"{i}/{n}" for n in graph.inputs]
        outputs += [f"{i}/{n}" for n in graph.outputs]
    return builder.graph(inputs, outputs)


def placed(program: Program) -> Plan:
    """A plan by the simple rules alone: graphs put together for a test need no good placement, and dX stays as it is."""
    with mock.patch.object(arena, "_EFFORT", 0):
        return arena._placed(program)


def equipped(program: Program, kind: str) -> Program:
    """The program for a kind of kernels: "portable", "dsp" with the least scratch memory, "dsp roomy" with all it may want."""
    room = {n.name: 1 << 20 for n in program.graph.nodes} if kind == "dsp roomy" else {}
    return replace(program, target=kind.split()[0], scratch=room)


def inference_plan(graph: Graph, kind: str = "portable") -> Plan:
    """A plan that only infers."""
    result = placed(equipped(schedule(verify(graph), graph.outputs), kind))
    check(result)
    return result


def training_plan(graph: Graph, kind: str = "portable") -> Plan:
    """A plan in which a graph that is no whole model runs as a training step: label and loss are made up."""
    tensors = dict(graph.tensors)
    for name in (TRUTH, LOSS):
        tensors[name] = Tensor(name, TensorType((), "int32"), Role.INPUT)
    tensors[_LOGITS] = Tensor(_LOGITS, TensorType((4,), "int8"), Role.INPUT)
    whole = Graph(graph.name, tensors, graph.nodes, (_LOGITS, TRUTH, LOSS, *graph.inputs), graph.outputs)
    ends = [o for o in graph.outputs if tensors[o].role is Role.VALUE]
    result = placed(equipped(schedule(verify(whole), (_LOGITS,), (_LOGITS, LOSS, *ends)), kind))
    check(result)
    return result


class Bench:
    """Programs in one executable.

    Args:
        plans: what they are, by name (a C identifier).
        folder: for sources and objects.
        compiler: gcc, clang or another's command.
        slices: every call is made in slices of random budgets.
    """

    def __init__(self, plans: Mapping[str, Plan], folder: Path, compiler: str = "gcc", slices: bool = False) -> None:
        self.plans, self.folder, self.compiler, self.slices = dict(plans), folder, compiler, slices
        self.sources: list[Path] = []
        self.defines: tuple[str, ...] = ()  # for the sanitized executable
        for name, p in plans.items():
            for path, text in codegen.render(p, name, "test", resumable=slices).items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_text(text, encoding="utf-8")
            self.sources.append(folder / "src" / f"{name}.c")
        data = folder / "src" / "all_data.c"
        data.write_text("".join(f'#include "{name}_data.c"\n' for name in plans))
        self.sources.append(data)

    def compile(self, compiler: str, *flags: str) -> list[Path]:
        """Objects of every source; fails with the compiler's words."""

        def one(source: Path) -> Path:
            made = source.with_suffix(f".{Path(compiler).name}{''.join(flags)[-12:].replace('=', '')}.o")
            includes = (f"-I{self.folder / 'include'}", f"-I{self.folder / 'src'}")
            command = [compiler, *WARNINGS, *flags, *includes, "-DTTE_TRACE", "-c", str(source), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[:4000]}"
            return made

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, self.sources))

    @functools.cached_property
    def program(self) -> Path:
        """The sanitized executable."""
        main = self.folder / "src" / "bench.c"
        main.write_text(self._main())
        self.sources.append(main)
        objects = self.compile(self.compiler, *self.defines, *SANITIZE)  # not optimised: compiling is what takes the time
        self.sources.remove(main)
        program = self.folder / "bench"
        subprocess.run([self.compiler, *SANITIZE, *map(str, objects), "-o", str(program)], check=True)
        return program

    @functools.cached_property
    def emulated(self) -> Path:
        """The executable for a Cortex-M7 in QEMU, with the loops in assembly; files stand for its standard streams."""
        vectors = self.folder / "src" / "vectors.c"
        vectors.write_text(_VECTORS)
        main = self.folder / "src" / "bench.c"
        main.write_text(self._main())
        loops = list((self.folder / "src").glob("tte_dsp.S"))
        extra = [vectors, main, *loops]
        self.sources += extra
        flags = ("-O2", "-mthumb", "-mcpu=cortex-m7")
        objects = self.compile(_CROSS, "-DTTE_FILES", *flags)
        self.sources = [s for s in self.sources if s not in extra]
        program = self.folder / "bench.elf"
        places = [f"-Wl,{place}" for place in ("--section-start=.vectors=0", "-Ttext=0x10000", "-Tdata=0x60000000")]
        command = [_CROSS, *flags, "--specs=rdimon.specs", *places, *map(str, objects), "-o", str(program)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:4000]
        return program

    def _answer(self, requests: bytes, emulated: bool) -> tuple[bytes, int, str]:
        """What the program answers, its exit status and its last words."""
        if not emulated:
            done = subprocess.run([str(self.program)], input=requests, capture_output=True, check=False)
            return done.stdout, done.returncode, done.stderr.decode(errors="replace")[:3000]
        (self.folder / "request.bin").write_bytes(requests)
        command = ["qemu-system-arm", "-M", "mps2-an500", "-nographic", "-monitor", "none", "-serial", "none"]
        command += ["-semihosting-config", "enable=on,target=native", "-kernel", str(self.emulated)]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, check=False, timeout=600)
        return (self.folder / "answer.bin").read_bytes(), done.returncode, done.stderr.decode(errors="replace")[:3000]

    def _main(self) -> str:
        texts, table = [], []
        for name, p in self.plans.items():
            trains = p.program.trains
            lines = "".join(f"    {{{a}, {b}, {c}, {d}}},\n" for a, b, c, d in _spans(p))
            texts.append(((_SLICED if self.slices else _MODEL) + (_TRAINS if trains else "")) % {"name": name, "spans": lines})
            if trains:
                own = [f"{name}_state", f"{name}_init", f"{name}_run", f"{name}_step_", f"{name}_control"]
                takes = "label" if p.program.graph.type(TRUTH).dtype == "int32" else ""
                unused = "" if takes else "(void)label; "
                step = f"return {name}_train_step({takes});"
                if self.slices:
                    work = f"while ({name}_work(some_budget())) {{}}"
                    step = f"if ({name}_begin_train({takes})) return -1; {work} return {name}_loss();"
                texts.append(f"static int32_t {name}_step_(int32_t label) {{ {unused}{step} }}\n")
            else:
                own = ["no_state", f"{name}_init", f"{name}_run", "no_train", "no_control"]
            rows, row_bytes = _supplied(p)
            if rows:
                texts.append(_ROWS % {"name": name, "rows": rows, "row_bytes": row_bytes})
            sizes = f"{max(p.arena_bytes, 8)}, {codegen.state_bytes(p)}, {rows}, {row_bytes}, {len(_spans(p))}"
            table.append(f"    {{{sizes}, {name}_spans, {name}_arena, {', '.join(own)}}},\n")
        nothing = (
            "static uint8_t no_bytes[1];\n"
            "static inline uint8_t *no_state(void) { return no_bytes; }\n"
            "static inline int32_t no_train(int32_t label) { return label; }\n"
            "static inline void no_control(const uint32_t *v) { (void)v; }\n"
            "static uint32_t luck = 1;\n"
            "static inline uint32_t some_budget(void) {\n"
            "    luck = luck * 1664525u + 1013904223u;\n"
            "    return (luck >> 8) >> (luck >> 27); /* 0 to 2^24, of every size */\n"
            "}\n"
        )
        models = nothing + "".join(texts) + "static const model models[] = {\n" + "".join(table) + "};\n"
        includes = "#include <string.h>\n" + "".join(f'#include "{name}.h"\n' for name in self.plans)
        text = _MAIN.read_text(encoding="utf-8")
        return text.replace("/* @includes@ */", includes).replace("/* @models@ */", models)

    def check(self, calls: Mapping[str, Iterable[Call]], seed: int = 0, *, emulated: bool = False) -> int:
        """Makes the calls in C and in the reference and compares; gives the number of values compared.

        Args:
            emulated: in QEMU, on the core the kernels are written for, instead of here with sanitizers.

        Raises:
            AssertionError: naming program, call, operator, tensor, index and both values; or what a sanitizer said.
        """
        random = np.random.default_rng(seed)
        named = [(name, call) for name, several in calls.items() for call in several]
        index = {name: i for i, name in enumerate(self.plans)}
        requests = b"".join(self._request(index[name], self.plans[name], call, random) for name, call in named)
        data, status, words = self._answer(requests, emulated)
        answer = _Answer(data, f"status {status}: {words}")
        executors: dict[str, Executor] = {}
        compared = 0
        for number, (name, call) in enumerate(named):
            p = self.plans[name]
            executor = executors.setdefault(name, Executor(p.program.graph))
            if call.params is not None:
                fresh = {t.name: p.program.graph.data(t.name) for t in p.program.graph.of_role(Role.PARAM)}
                executor.params = {**fresh, **call.params}
            compared += _compare(p, call, executor, answer, f"{name}, call {number}")
        assert not status, answer.failure
        return compared

    def _request(self, index: int, p: Plan, call: Call, random: np.random.Generator) -> bytes:
        graph = p.program.graph
        arena = random.integers(0, 256, max(p.arena_bytes, 8), np.uint8)
        rows = b""
        for name in graph.inputs:
            data = pack(call.inputs[name], graph.type(name).dtype)
            if name == p.program.supplied:
                rows = data
                continue
            arena[p.offsets[name] : p.offsets[name] + len(data)] = np.frombuffer(data, np.uint8)
        label = int(call.inputs[TRUTH]) if call.train and graph.type(TRUTH).dtype == "int32" else 0
        c = call.control
        loads = 0 if call.params is None else 2 if call.params else 1
        head = np.array([index, call.train, c.learning_rate, c.seed, c.step, label, loads], np.uint32).tobytes()
        state = np.zeros(codegen.state_bytes(p), np.uint8)
        if loads == 2:
            for slot in codegen.state_slots(p):
                data = pack(call.params.get(slot.name, graph.data(slot.name)), slot.type.dtype)  # type: ignore[union-attr]
                state[slot.offset : slot.offset + len(data)] = np.frombuffer(data, np.uint8)
        return head + arena.tobytes() + (state.tobytes() if loads == 2 else b"") + rows


def _supplied(p: Plan) -> tuple[int, int]:
    """Rows of the input, and bytes of one, where the caller supplies them; else 0, 0."""
    if not p.program.supplied:
        return 0, 0
    t = p.program.graph.type(p.program.supplied)
    return t.shape[1], t.nbytes // t.shape[1]


@dataclass
class _Answer:
    """What the executable wrote, and what to say where it ends too soon."""

    data: bytes
    failure: str
    at: int = 0

    def take(self, count: int, where: str) -> bytes:
        self.at += count
        assert self.at <= len(self.data), f"{where}: the program ended, {self.failure}"
        return self.data[self.at - count : self.at]

    def word(self, where: str) -> int:
        return int.from_bytes(self.take(4, where), "little")


def _spans(p: Plan) -> list[tuple[int, int, int, int]]:
    """(step, kind, offset, bytes) of all that each step writes; first the label, as of no step."""
    graph = p.program.graph
    truth = p.program.trains and graph.type(TRUTH).dtype == "int32"
    rows = [(_END - 1, 0, p.offsets[TRUTH] if truth else 0, 4 if truth else 0)]
    slots = {s.name: s.offset for s in codegen.state_slots(p)}
    for step, node in enumerate(graph.nodes):
        if node.op.view:
            continue
        for name in node.outputs:
            param = graph.tensors[name].role is Role.PARAM
            at = slots[name] if param else p.offsets[name]
            rows.append((step, int(param), at, graph.type(name).nbytes))
        if step in p.workspaces:
            size = p.program.kernel(node).workspace
            rows.append((step, 2, p.workspaces[step], size))
    return rows


def run(p: Plan, call: Call, executor: Executor) -> Iterator[tuple[int, Node, dict[str, Array]]]:
    """The reference's steps of one call, with their numbers in the plan."""
    program = p.program
    steps = program.train_steps if call.train else tuple(program.infer_steps)
    whole = executor.graph
    executor.graph = replace(whole, nodes=tuple(whole.nodes[i] for i in steps))
    executor.control = call.control
    try:
        for index, (node, outputs) in zip(steps, executor.steps(call.inputs), strict=True):
            yield index, node, outputs
    finally:
        executor.graph = whole


def _compare(p: Plan, call: Call, executor: Executor, answer: _Answer, where: str) -> int:
    graph, compared = p.program.graph, 0
    values: dict[str, Array] = dict(call.inputs)
    for index, node, outputs in run(p, call, executor):
        values.update(outputs)
        if node.op.view:
            continue
        here = f"{where}, step {index}, {node.op.title} {node.name}"
        found = answer.word(here)
        assert found == index, f"{here}: the program is at step {found}; {answer.failure}"
        for name, value in outputs.items():
            dtype = graph.type(name).dtype
            compare(value, answer.take(graph.type(name).nbytes, here), dtype, f"{here}, {name}")
            compared += value.size
    assert answer.word(where) == _END, where
    loss = int.from_bytes(answer.take(4, where), "little", signed=True)
    if call.train:
        assert loss == int(values[LOSS]), f"{where}: loss {loss}, not {values[LOSS]}"
    state = answer.take(codegen.state_bytes(p), where)
    for slot in codegen.state_slots(p):
        data = state[slot.offset : slot.offset + slot.type.nbytes]
        compare(executor.params[slot.name], data, slot.type.dtype, f"{where}, afterwards, {slot.name}")
    return compared


def compare(want: Array, found: bytes, dtype: str, where: str) -> None:
    """Asserts that a tensor's bytes are what the reference has."""
    bits = DTYPES[dtype][0] * want.size
    if bits % 8 == 0 and pack(want, dtype) == found:
        return
    have = unpack(found, want.shape, dtype)
    wrong = np.flatnonzero(np.atleast_1d(have != want).ravel())
    if wrong.size:
        i = int(wrong[0])
        raise AssertionError(
            f"{where}[{i}] is {have.ravel()[i]} in C, {want.ravel()[i]} in the reference; {wrong.size} of {want.size} differ"
        )


def random_values(
    graph: Graph, random: np.random.Generator, kind: int = 0, exponents: tuple[int, int] = (2, 32)
) -> dict[str, Array]:
    """Values for a graph's inputs: kind 0 and 1 uniform, 2 all lowest, 3 all highest, 4 the two at random.

    An int32 scalar is an exponent, drawn from `exponents`; the dummies of `training_plan` are zero.
    """
    values: dict[str, Array] = {}
    for name in graph.inputs:
        t = graph.type(name)
        if name in (TRUTH, LOSS, _LOGITS):
            values[name] = np.zeros(t.shape, DTYPES[t.dtype][1])
        elif t.dtype == "bit":
            values[name] = random.integers(0, 2, t.shape).astype(np.bool_)
        elif t.dtype == "int32" and t.shape == ():
            values[name] = np.array(random.integers(*exponents), np.int32)
        elif t.dtype == "int32":
            values[name] = random.integers(-(2 ** (31 - 6 * (kind % 5))), 2 ** (31 - 6 * (kind % 5)), t.shape).astype(
                np.int32
            )
        else:
            error = t.quant is not None and name.rsplit("/", 1)[-1].startswith("error")
            low, high = (-127 if error else -128), 127
            if kind < 2:
                values[name] = random.integers(low, high + 1, t.shape).astype(np.int8)
            elif kind < 4:
                values[name] = np.full(t.shape, (low, high)[kind - 2], np.int8)
            else:
                values[name] = random.choice(np.array([low, high], np.int8), t.shape)
    return values


def batched(items: Sequence[_T], size: int) -> list[list[_T]]:
    """The items dealt out so that every batch holds some of each kind."""
    count = -(-len(items) // size)
    return [list(itertools.islice(items, i, None, count)) for i in range(count)]


def needs(*tools: str) -> pytest.MarkDecorator:
    """Skips a test where a tool is missing."""
    missing = [t for t in tools if not shutil.which(t)]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")
