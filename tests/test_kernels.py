"""Every kernel template: the generated C equals the reference on every tensor, forward, backward and update.

The operators' cases are those that the reference is held against LiteRT on; a case's backward graph is what autodiff
makes of it. So an operator that is added is tested here by its cases alone.
"""

from __future__ import annotations

import itertools
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from c_harness import (
    CORES,
    KINDS,
    Bench,
    Call,
    batched,
    compilers,
    inference_plan,
    merged,
    needs,
    random_values,
    training_plan,
)
from cases import CASES, Case, conv, dense, depthwise, random_cases
from tflite_builder import GraphBuilder

from tte import resources
from tte.ir import DTYPES, Builder, Graph, QuantParams, Role, Tensor, TensorType, verify
from tte.ops.base import Control, Cotangent, Op, Types
from tte.ops.error import ApplyMask, Merge
from tte.ops.linear import Linear, frozen_channels
from tte.ops.linear_grad import MODES, InputGrad
from tte.ops.loss import MeanSquaredError, SoftmaxCrossEntropy
from tte.ops.redraw import Redraw
from tte.ops.segment import Segment
from tte.ops.select import SelectChannels
from tte.passes.save_channels import save_channels
from tte.training import scheme
from tte.training.autodiff import Numerics, _prepare, _Tape
from tte.training.head import Head, find

_BATCH = 28


def backward(case: Case, numerics: Numerics, fraction: float = 1.0, buffered: bool = False, redraw: int = 0) -> Graph:
    """A case's forward graph with masks, its whole backward graph and updates, for an error given as input."""
    forward = case.graph()
    updates = {
        n.name: scheme.LayerUpdate(True, True, scheme.strongest_channels(forward, n, fraction), redraw)
        for n in scheme.linear_nodes(forward)
    }
    end = find(forward).logits
    forward = _prepare(forward, Head(end, None, False), MeanSquaredError(), updates)
    tape = _Tape(forward, updates, numerics)
    tape.trainable = {t.name for r in (Role.INPUT, Role.VALUE) for t in forward.of_role(r)}
    e = tape.builder.add("error", TensorType(forward.type(end).shape, "int8", QuantParams((0.7,))), Role.INPUT)
    k = tape.builder.add("exponent", TensorType((), "int32"), Role.INPUT)
    tape.send(end, Cotangent(e, k))
    tape.walk(forward.nodes)
    nodes = tape.builder.nodes
    if buffered:
        nodes = [replace(n, op=replace(n.op, buffered=True)) if isinstance(n.op, InputGrad) else n for n in nodes]
    read = {i for n in nodes for i in n.inputs}
    ends = [o for n in nodes for o in n.outputs if o not in read and tape.builder.tensors[o].role is Role.VALUE]
    tape.builder.nodes = nodes
    return tape.builder.graph((*forward.inputs, e, k), tuple(dict.fromkeys((end, *ends))))


def single(op: Op, ins: dict[str, TensorType], outs: dict[str, TensorType]) -> Graph:
    """One operator, all its inputs given."""
    builder = Builder(op.title.lower())
    for name, t in ins.items():
        builder.add(name, t, Role.INPUT)
    for name, t in outs.items():
        builder.add(name, t)
    builder.emit(op.title.lower(), op, tuple(ins), tuple(outs))
    return builder.graph(tuple(ins), tuple(outs))


def error(*shape: int, scale: float = 1.0) -> TensorType:
    return TensorType(shape, "int8", QuantParams((scale,)))


_K = TensorType((), "int32")


def losses() -> list[Graph]:
    """The losses over accumulators and over int8, one class to a thousand, scales tiny to huge."""
    graphs = []
    for classes, scale in itertools.product((1, 2, 10, 1000), (1e-9, 1e-4, 0.02, 3.0)):
        kinds = [TensorType((1, classes), "int8", QuantParams((scale,), (-7,)))]
        spread = tuple(float(scale * (1 + i % 7)) for i in range(classes))
        kinds.append(TensorType((1, classes), "int32", QuantParams(spread, (0,) * classes, 1)))
        for x in kinds:
            outs = {"error": error(1, classes), "k": _K, "value": _K}
            graphs.append(single(SoftmaxCrossEntropy(), {"x": x, "label": _K}, outs))
    for count in (1, 37, 700):
        y = TensorType((1, count), "int8", QuantParams((0.1,), (3,)))
        graphs.append(single(MeanSquaredError(), {"x": y, "target": y}, {"error": error(1, count), "k": _K, "value": _K}))
    return graphs


def errors() -> list[Graph]:
    """Sums of errors with unlike scales, and masks of odd sizes, in place and not."""
    graphs = []
    for ratio, count in itertools.product((1e-6, 0.01, 1.0, 1.37, 900.0), (1, 45, 700)):
        ins = {"error": error(count), "ka": _K, "error.1": error(count, scale=ratio), "kb": _K}
        graphs.append(single(Merge(), ins, {"sum": error(count), "k": _K}))
    for count in (1, 7, 8, 9, 65, 1100):
        graphs.append(single(ApplyMask(), {"error": error(count), "mask": TensorType((count,), "bit")}, {"y": error(count)}))
        graphs.append(single(SelectChannels((0, count - 1)), {"x": error(1, 3, 2, count)}, {"y": error(1, 3, 2, 2)}))
    return graphs


def wide(case: Case) -> Graph:
    """A case with every optional output, and its weights split in two where it has any."""
    graph = case.graph()
    builder = Builder.of(graph)
    builder.nodes = []
    for node in graph.nodes:
        shape = graph.type(node.outputs[0]).shape
        outputs = [*node.outputs]
        op, inputs = node.op, node.inputs
        if hasattr(op, "mask"):
            op = replace(op, mask=True)
            outputs.append(builder.add("mask", TensorType(shape, "bit")))
        if isinstance(op, Linear):
            op = replace(op, acc=True)
            outputs.append(builder.add("accumulators", TensorType(shape, "int32")))
            channels = scheme.strongest_channels(graph, node, 0.4)
            if channels:
                whole = graph.tensors[inputs[1]]
                assert whole.data is not None
                parts = []
                for chosen in (list(channels), frozen_channels(channels, whole.type.shape[-1])):
                    data = np.ascontiguousarray(whole.data[..., chosen])
                    parts.append(builder.add("part", replace(whole.type, shape=data.shape), Role.CONST, data))
                op, inputs = replace(op, trained=channels), (inputs[0], *parts, inputs[-1])
        builder.emit(node.name, op, inputs, outputs)
    made = {o for n in builder.nodes for o in n.outputs}
    return builder.graph(graph.inputs, tuple(sorted(made)))


def forward_calls(graph: Graph, seed: int, count: int = 5) -> list[Call]:
    random = np.random.default_rng(seed)
    return [Call(_with_labels(graph, random_values(graph, random, kind), random)) for kind in range(count)]


def _with_labels(graph: Graph, values: dict[str, np.ndarray], random: np.random.Generator) -> dict[str, np.ndarray]:
    for node in graph.nodes:
        if isinstance(node.op, SoftmaxCrossEntropy):
            classes = graph.type(node.inputs[0]).elements
            values[node.inputs[1]] = np.array(random.integers(classes), np.int32)
    return values


def training_calls(graph: Graph, seed: int) -> list[Call]:
    """Steps that go on from each other, with unlike factors and exponents, from the initial and from a random state."""
    random = np.random.default_rng(seed)
    calls = []
    for number, (kind, rate, exponents) in enumerate(
        [
            (0, 32768, (8, 28)),
            (1, 20001, (2, 24)),
            (4, 32768, (8, 24)),
            (0, 32768, (12, 20)),
            (2, 32768, (8, 20)),
            (3, 1, (-20, 70)),
            (1, 32768, (-70, 70)),
            (0, 0, (8, 28)),
        ]
    ):
        params = None
        if number in (0, 3):
            params = {t.name: _random_param(graph, t, random) for t in graph.of_role(Role.PARAM) if number}
            params = {k: v for k, v in params.items() if v is not None}
        control = Control(rate, int(random.integers(1 << 32)) if number % 3 else 0, number if number < 5 else 2**32 - 1)
        values = random_values(graph, random, kind, exponents)
        calls.append(Call(_with_labels(graph, values, random), True, control, params))
    return calls


def _random_param(graph: Graph, tensor: Tensor, random: np.random.Generator) -> np.ndarray | None:
    """Weights and residuals anywhere in their range, any channels in a table; biases and held sums stay."""
    t = tensor.type
    if t.dtype == "int32":
        return None
    if t.dtype == "uint16":
        (redraw,) = (n for n in graph.nodes if isinstance(n.op, Redraw) and tensor.name in n.inputs)
        channels = random.permutation(graph.type(redraw.inputs[0]).shape[-1])
        return np.sort(channels[: t.elements]).astype(np.uint16)
    low, high = (-8, 8) if t.dtype == "int4" else (-127, 128)
    return random.integers(low, high, t.shape).astype(DTYPES[t.dtype][1])


def gathered() -> list[Graph]:
    """Sparse updates of layers whose input is saved in part: dX, and the channels that train."""

    def behind(kind: str) -> Case:
        def make(b: GraphBuilder) -> None:
            x = b.conv_2d(b.input((1, 5, 6, 3)), 11, (1, 1))
            if kind == "conv":
                b.conv_2d(x, 4, (3, 2), (2, 1), activation="RELU6")
            else:
                b.depthwise_conv_2d(x, 1, (3, 3), activation="RELU")

        return Case(f"{kind} behind", make)

    kinds = itertools.product(zip(MODES, (1, 3, 1, 2), strict=True), ("conv", "depthwise"), (0, 1, 2))
    return [
        verify(save_channels(backward(behind(kind), Numerics(0.02, mode, batch), 0.4, redraw=redraw * batch)))
        for (mode, batch), kind, redraw in kinds
    ]


def all_cases() -> list[Case]:
    return [*CASES, *random_cases(60)]


def backward_graphs() -> list[Graph]:
    """Every case's backward graph; the modes, batch sizes, fractions and dX variants come round in turn."""
    variants = list(itertools.product(MODES, (1, 3), (1.0, 0.4), (False, True)))
    own = [
        Case("odd", conv(5, 7, 5, 3, kernel=(3, 5), stride=(3, 2), activation="RELU6")),
        Case("wise", depthwise(7, 5, 5, 2, kernel=(5, 3), stride=(2, 3), activation="RELU")),
        Case("full", dense(9, 5)),
        Case("many", depthwise(6, 5, 11, 1, kernel=(3, 3), activation="RELU6")),
    ]
    graphs = [
        backward(case, Numerics(0.02, mode, batch), fraction, buffered)
        for i, case in enumerate(own)
        for mode, batch, fraction, buffered in variants[min(i, 1) :: 1 + min(i, 1)]
    ]
    for i, case in enumerate(all_cases()):
        mode, batch, fraction, buffered = variants[i * 5 % len(variants)]
        graphs.append(backward(case, Numerics(0.02, mode, batch), fraction, buffered, batch * (i // 2 % 3)))
    return graphs + gathered()


GROUPS: dict[str, tuple[Callable[[], list[Graph]], bool]] = {
    "forward": (lambda: [c.graph() for c in all_cases()], False),
    "wide": (lambda: [wide(c) for c in all_cases()], False),
    "errors": (lambda: [*losses(), *errors()], False),
    "backward": (backward_graphs, True),
}


def bench(
    group: str, folder: Path, kernels: str = "portable", slices: bool = False, every: int = 1
) -> tuple[Bench, dict[str, list[Call]]]:
    """A group's graphs in one executable, and the calls to make.

    Args:
        slices: the calls are made in slices.
        every: of so many graphs one is taken.
    """
    make, trains = GROUPS[group]
    plans, calls = {}, {}
    for i, some in enumerate(batched(make()[::every], _BATCH)):
        name = f"{group}{i}"
        graph = merged(some, name)
        plans[name] = (training_plan if trains else inference_plan)(graph, kernels)
        whole = plans[name].program.graph
        calls[name] = training_calls(whole, i) if trains else forward_calls(whole, i)
    return Bench(plans, folder, slices=slices), calls


@needs("gcc")
@pytest.mark.parametrize("kernels", KINDS)
@pytest.mark.parametrize("group", GROUPS)
def test_equals_the_reference(group: str, kernels: str, tmp_path: Path) -> None:
    """On random and saturating inputs, with sanitizers and a watch on the bytes that each step may write."""
    made, calls = bench(group, tmp_path, kernels)
    assert made.check(calls) > 40_000


@needs("gcc")
def test_equals_the_reference_without_wide_vectors(tmp_path: Path) -> None:
    """What portable kernels do on a microcontroller, where this computer would go pixel by pixel."""
    made, calls = bench("wide", tmp_path)
    made.defines = ("-DTTE_WIDE=0",)
    assert made.check(calls) > 40_000


@needs("arm-none-eabi-gcc", "qemu-system-arm")
@pytest.mark.parametrize("kernels", ["dsp roomy", pytest.param("dsp", marks=pytest.mark.slow)])
@pytest.mark.parametrize("group", GROUPS)
def test_equals_the_reference_on_its_core(group: str, kernels: str, tmp_path: Path) -> None:
    """The same in QEMU, where SIMD instructions and assembly run instead of their twins in C."""
    made, calls = bench(group, tmp_path, kernels)
    assert made.check(calls, emulated=True) > 40_000


def _flavour(graph: Graph) -> set[tuple[object, ...]]:
    """What distinguishes the text of a graph's kernels, but for the sizes."""
    found = set()
    for node in graph.nodes:
        if not node.op.view:
            kernel = node.op.kernel(Types(graph.types(node.inputs), graph.types(node.outputs)))
            kinds = {k: v if isinstance(v, (str, bool)) else v > 1 for k, v in kernel.params.items() if k in _CHOICES}
            found.add((kernel.template, *kinds.items()))
    return found


#: Template parameters that choose lines of text.
_CHOICES = (
    *("mask", "acc", "trained", "mode", "batch", "buffered", "rounding", "operator", "product", "sums", "x_type", "rows"),
    *("gathered", "drawn"),
)


@pytest.fixture(scope="module")
def flavours(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """At least one kernel of each flavour."""
    plans, seen = {}, set()
    for group, (make, trains) in GROUPS.items():
        chosen = []
        for graph in make():
            if not _flavour(graph) <= seen:
                seen |= _flavour(graph)
                chosen.append(graph)
        plans[group] = (training_plan if trains else inference_plan)(merged(chosen, group))
    return Bench(plans, tmp_path_factory.mktemp("flavours"))


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_compiles_without_warning(compiler: str, flavours: Bench) -> None:
    """Optimised, as users compile it: other warnings come then."""
    if compiler not in compilers():
        pytest.skip(f"{compiler} not installed")
    flavours.compile(compiler, "-O2", "-Wshadow", "-Wundef", "-Wvla")


@needs("arm-none-eabi-gcc")
@pytest.mark.parametrize("core", CORES)
def test_compiles_for_the_boards(core: str, flavours: Bench) -> None:
    """And calls nothing beside memcpy, memset and the compiler's own integer routines: no heap, no float."""
    objects = flavours.compile("arm-none-eabi-gcc", "-O2", "-mthumb", f"-mcpu={core}")
    listed = subprocess.run(["arm-none-eabi-nm", "-u", *map(str, objects)], capture_output=True, text=True, check=True)
    undefined = {line.split()[-1] for line in listed.stdout.splitlines() if line.split()[:1] == ["U"]}
    own = {s for s in undefined if any(s.startswith(f"{g}_") for g in GROUPS)}
    integer = {s for s in undefined if re.fullmatch(r"__(aeabi_(l|ul|i|ui|idiv|uidiv).*|clzsi2|gnu_thumb1_case_\w+)", s)}
    assert undefined - own - integer <= {"memcpy", "memset", "tte_trace", "__aeabi_memset"}


def test_every_operator_has_its_template() -> None:
    """Every template is rendered by some case, and no operator lacks one."""
    rendered = set()
    operators = set()
    for make, _ in GROUPS.values():
        for graph in make():
            operators |= {type(n.op) for n in graph.nodes}
            rendered |= {flavour[0] for flavour in _flavour(graph)}
    there = {p.name.removesuffix(".c.j2") for p in (resources.path("templates") / "kernels").glob("*.c.j2")}
    # Kernels that exist for rows alone are rendered in tests/test_rows.py.
    assert rendered == {name for name in there if not name.endswith("_row")}
    assert _leaves(Op) - {Segment} <= operators  # its code is the model's own: tests/test_rows.py


def test_every_kernel_that_is_cut_is_cut_here() -> None:
    """Templates that take pieces, and kernels that have them, are the same; and some case has more than one."""
    most: dict[str, int] = {}
    for make, _ in GROUPS.values():
        for graph in make():
            for node in graph.nodes:
                types = Types(graph.types(node.inputs), graph.types(node.outputs))
                for kernel in () if node.op.view else (node.op.kernel(types), *node.op.fast_kernels(types)):
                    count = sum(p.count for p in kernel.phases)
                    most[kernel.template] = max(most.get(kernel.template, 0), count)
    folder = resources.path("templates") / "kernels"
    texts = {str(p.relative_to(folder)).removesuffix(".c.j2"): p.read_text(encoding="utf-8") for p in folder.rglob("*.c.j2")}
    assert {name for name, text in texts.items() if "{{ argument() }}" in text} == {name for name, n in most.items() if n > 1}


def _leaves(kind: type) -> set[type]:
    """The operator classes that are no mere bases: those that have a title of their own."""
    below = set().union(*(_leaves(k) for k in kind.__subclasses__()))
    return below | ({kind} if kind.__module__.startswith("tte.") and kind.__dict__.get("title") else set())
