"""Row by row in C: odd shapes, and the input's rows from the caller, on this computer and in QEMU."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from c_harness import Bench, needs, placed
from nets import DIGITS
from random_graphs import all_spans
from test_random_graphs import calls
from test_stream import Make, streamed
from tflite_builder import GraphBuilder
from toy import needs_host, needs_qemu

from tte import board, codegen, pioproject
from tte.compiler import Compiled, Options, compile_model
from tte.device.session import Session
from tte.errors import ModelError
from tte.planner import arena
from tte.planner.check import check
from tte.planner.stream import _Search
from tte.verify import open_program, verify

# ---- odd shapes, in C


def _image(b: GraphBuilder, h: int = 9, w: int = 4, c: int = 4) -> int:
    return b.input((1, h, w, c))


def _constant(b: GraphBuilder, x: int) -> int:
    return b.constant(b.rng.integers(-128, 128, b.shape(x), np.int8), 0.04, 5)


def _residual(b: GraphBuilder) -> int:
    x = b.conv_2d(_image(b), 4, (3, 3), activation="RELU6")
    y = b.depthwise_conv_2d(x, 1, (5, 1), activation="RELU")
    return b.conv_2d(b.elementwise("ADD", x, b.conv_2d(y, 4, (1, 1))), 3)


def _odd_bits(b: GraphBuilder) -> int:
    x = b.conv_2d(_image(b, 7, 3, 3), 3, (3, 3), activation="RELU6")
    return b.conv_2d(b.elementwise("ADD", x, b.conv_2d(x, 3), "RELU6"), 2)


def _two_ends(b: GraphBuilder) -> int:
    """A branch that is wanted whole, beside the one that goes on."""
    x = b.conv_2d(_image(b), 4)
    y = b.conv_2d(x, 2, (3, 1), (2, 1))
    z = b.mean(b.conv_2d(x, 4, (1, 1)), (1, 2), True)
    return b.elementwise("MUL", b.conv_2d(y, 4, (1, 1)), z)


ODD: dict[str, Make] = {
    "one row": lambda b: b.conv_2d(b.depthwise_conv_2d(b.conv_2d(_image(b, 1), 3), 1, (5, 3)), 2, (1, 1)),
    "lower than the kernel": lambda b: b.conv_2d(b.conv_2d(b.conv_2d(_image(b, 2), 3, (7, 3)), 4, (5, 1)), 2, (1, 1)),
    "rows never read": lambda b: b.conv_2d(
        b.conv_2d(b.conv_2d(_image(b, 17), 3, (1, 1)), 4, (2, 2), (5, 3)), 2, (1, 1), (2, 1)
    ),
    "last rows unread": lambda b: b.conv_2d(
        b.pool("MAX_POOL_2D", b.conv_2d(_image(b, 11), 3, (1, 1)), (2, 2), (4, 2)), 4, (1, 1), padding="VALID"
    ),
    "odd bits": _odd_bits,
    "constant operand": lambda b: b.conv_2d(
        b.elementwise("SUB", _constant(b, x := b.conv_2d(_image(b), 4)), b.elementwise("ADD", x, _constant(b, x))), 3
    ),
    "twice the same": lambda b: b.conv_2d(b.elementwise("MUL", x := b.conv_2d(_image(b), 4), x), 2),
    "residual": _residual,
    "input is an operand": lambda b: b.elementwise("ADD", x := _image(b), b.conv_2d(b.depthwise_conv_2d(x), 4, (1, 1))),
    "two ends": _two_ends,
    "output": lambda b: b.activation("RELU6", b.conv_2d(b.conv_2d(_image(b), 4), 3)),
    "first is not streamable": lambda b: b.conv_2d(b.conv_2d(b.concatenation([x := _image(b), x], 3), 4), 3),
    "first is a view": lambda b: b.conv_2d(b.conv_2d(b.reshape(b.input((1, 36, 4)), (1, 9, 4, 4)), 4), 3),
    "dilated": lambda b: b.conv_2d(
        b.conv_2d(b.conv_2d(_image(b, 13), 4), 3, (3, 3), (1, 1), (3, 1)), 2, (2, 1), (3, 1), (2, 1)
    ),
    "padding alone": lambda b: b.conv_2d(
        b.conv_2d(b.pad(_image(b), [(0, 0), (4, 3), (2, 0), (0, 0)]), 3, (2, 1), padding="VALID"), 2, (3, 3)
    ),
    "padding before a pool": lambda b: b.pool(
        "MAX_POOL_2D", b.pad(b.conv_2d(_image(b, 7), 4), [(0, 0), (2, 1), (1, 3), (0, 0)]), (3, 2), (2, 1), "VALID"
    ),
    "pools": lambda b: b.pool(
        "AVERAGE_POOL_2D",
        b.pool("MAX_POOL_2D", b.conv_2d(_image(b, 12), 4), (3, 3), (1, 1), "SAME"),
        (2, 2),
        (3, 2),
        "SAME",
    ),
    "several samples": lambda b: b.conv_2d(
        b.reshape(
            b.activation("RELU", b.activation("HARD_SWISH", b.reshape(_image(b, 10, 4, 2), (2, 5, 4, 2)))),
            (1, 10, 4, 2),
        ),
        2,
    ),
}
#: Where the input is needed whole.
_WHOLE = {"first is not streamable", "first is a view", "several samples"}


def odd_plans(name: str, folder: Path) -> dict[str, arena.Plan]:
    """A model for inference and for training, streamed as far as can be, with the input whole and by rows."""
    b = GraphBuilder(3)
    (folder / "odd.tflite").write_bytes(b.build(ODD[name](b)))
    plans = {}
    for update, rows in (("none", False), ("none", True), ("last", True), ("full", False)):
        try:
            options = Options(update=update, loss="auto" if update == "none" else "mse", stream=False)
            search = _Search(compile_model(folder / "odd.tflite", options).plan.program, rows)
        except ModelError as error:
            assert "train" in str(error) or (rows and (name in _WHOLE or "update" in str(error))), error
            continue
        assert not rows or name not in _WHOLE
        last = search.last[search.supplied] + 1 if rows else 1
        kind = f"{update}{'_rows' * rows}"
        plans[kind] = placed(search.apply(min(all_spans(search.streamable, last), key=len)))
        check(plans[kind])
    return plans


@needs("gcc")
def test_odd_shapes(tmp_path: Path) -> None:
    plans = {}
    for i, name in enumerate(ODD):
        some = odd_plans(name, tmp_path)
        assert name in _WHOLE or {"none", "none_rows"} <= set(some)
        plans |= {f"odd{i}_{kind}": plan for kind, plan in some.items()}
    bench = Bench(plans, tmp_path)
    bench.check({name: calls(plan, 5) if plan.program.trains else calls(plan, 5)[:1] for name, plan in plans.items()})
    assert sum(streamed(p.program) > 0 for p in plans.values()) > 0.8 * len(plans)


@pytest.mark.parametrize("compiler", ["gcc", "clang", "arm-none-eabi-gcc"])
def test_compiles_without_warning(compiler: str, tmp_path: Path) -> None:
    """The row kernels and the order of rows, optimised, as users compile them."""
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} not installed")
    plans = {f"w{i}_{k}": p for i, n in enumerate(("residual", "pools")) for k, p in odd_plans(n, tmp_path).items()}
    core = ("-mthumb", "-mcpu=cortex-m0plus") if compiler.startswith("arm") else ()
    Bench(plans, tmp_path).compile(compiler, "-O2", "-Wshadow", "-Wundef", "-Wvla", *core)


def test_packed_rows_of_odd_bits_are_not_streamed(tmp_path: Path) -> None:
    """An element-wise operator's mask whose rows do not fill bytes stays whole; a convolution's may be streamed."""
    b = GraphBuilder(3)
    (tmp_path / "odd.tflite").write_bytes(b.build(_odd_bits(b)))
    program = compile_model(tmp_path / "odd.tflite", Options(update="full", loss="mse", stream=False)).plan.program
    ok = dict(zip([n.op.title for n in program.graph.nodes], _Search(program, False).streamable, strict=False))
    assert ok["CONV_2D"] and not ok["ADD"]


# ---- rows of the input, from the caller


def _project(compiled: Compiled, folder: Path, name: str) -> pioproject.Project:
    files = {path: text.encode() for path, text in codegen.render(compiled.plan, "digits", "rows").items()}
    return pioproject.generate_project(folder, files, board.load(name), name="digits")


def _still_in_step(device: Session, compiled: Compiled) -> None:
    """A label out of range changes nothing, and the next request is understood."""
    x = np.random.default_rng(1).integers(-128, 128, device.describe().input_bytes).astype(np.int8)
    before, state = device.infer(x).tolist(), device.read_state()
    for label in (-1, 10, 2**31 - 1):
        assert device.train(x, label).loss == -1
        assert device.read_state() == state and device.infer(x).tolist() == before
    assert device.train(x, 3).loss > 0 and device.read_state() != state


@needs_host
@pytest.mark.parametrize("update", ["none", "last", "bias"])
def test_rows_on_this_computer(update: str, tmp_path: Path) -> None:
    made = compile_model(DIGITS, Options(update=update, rows=True))
    whole = compile_model(DIGITS, Options(update=update))
    assert made.plan.arena_bytes <= whole.plan.arena_bytes
    assert made.plan.program.supplied not in made.plan.offsets
    project = _project(made, tmp_path / "rows", "stm32f746")
    found = verify(project, made, steps=4, on="host")
    assert found.equal and found.steps == 4 and found.mismatch is None
    if update != "none":
        with open_program(project, "host") as device:
            _still_in_step(device, made)


def test_rows_refused_where_the_first_layer_trains() -> None:
    with pytest.raises(ModelError, match="input whole") as refused:
        compile_model(DIGITS, Options(update="full", rows=True))
    assert refused.value.where and "--rows" in (refused.value.remedy or "")


@needs_qemu
def test_rows_in_qemu(tmp_path: Path) -> None:
    made = compile_model(DIGITS, Options(update="last", rows=True))
    project = _project(made, tmp_path / "rows", "mps2-an500")
    assert verify(project, made, steps=2, on="qemu").equal
    with open_program(project, "qemu") as device:
        _still_in_step(device, made)
        x = np.zeros(device.describe().input_bytes, np.int8)
        counts = [device.train(x, 1).instructions for _ in range(2)]
        assert min(counts) > 10_000 and abs(counts[0] - counts[1]) < counts[0] // 10
