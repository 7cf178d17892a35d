"""`make bench`: what fails it, how its tables are kept, and one small case from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmark.__main__ import main
from benchmark.cases import CASES
from benchmark.measure import CORES, board, measure
from benchmark.table import Change, Figure, Table, compare, load, markdown, save
from test_kernels import _leaves
from tflite_builder import GraphBuilder
from toy import needs_qemu

from tte.compiler import compile_model
from tte.ops.base import Op
from tte.ops.loss import MeanSquaredError
from tte.ops.redraw import Redraw
from tte.ops.segment import Segment
from tte.ops.select import SelectChannels

_WAS = {"a": {"macs": 4, "M7": 1000, "M4": 2000}, "b": {"macs": 0, "M7": 100}}


@pytest.mark.parametrize(
    ("now", "worse", "better"),
    [
        ({"a": 1010, "b": 100}, [], []),
        ({"a": 1011, "b": 100}, ["a"], []),
        ({"a": 989, "b": 101}, [], ["a"]),
        ({"a": 1000}, ["b"], []),
        ({"a": 1000, "b": 100, "c": 1}, ["c"], []),
    ],
)
def test_compare(now: dict[str, int], worse: list[str], better: list[str]) -> None:
    """One per cent is allowed; a row that is gone, or that the table does not guard, is not."""
    found = compare(_WAS, "M7", [Figure(row, 0, count) for row, count in now.items()], "case")
    assert [c.row for c in found if c.worse] == worse
    assert [c.row for c in found if not c.worse] == better


def test_a_change_says_what_it_is() -> None:
    assert str(Change("net", "row", "M4", 1000, 1500)) == "M4  net: row: was 1,000, is 1,500, +50.0 %"
    assert "not in the table" in str(Change("net", "row", "M4", None, 5))
    assert "is gone" in str(Change("net", "row", "M4", 5, None))


def test_table(tmp_path: Path) -> None:
    """Other cores' and other cases' figures stay; rows that no core has any more go."""
    table = Table("gcc 1", {"net": {k: dict(v) for k, v in _WAS.items()}, "absent": {"x": {"macs": 1, "M7": 7}}})
    table.replace("net", "M7", [Figure("a", 4, 900), Figure("c", 2, 5)])
    net = {"a": {"macs": 4, "M4": 2000, "M7": 900}, "c": {"macs": 2, "M7": 5}}
    assert table.rows == {"net": net, "absent": {"x": {"macs": 1, "M7": 7}}}
    assert list(table.ordered(["absent", "net"]).rows) == ["absent", "net"] and not table.ordered([]).rows
    save(tmp_path / "t.json", table, "# About", ["M7", "M4"])
    assert load(tmp_path / "t.json") == table and load(tmp_path / "none.json") == Table()
    text = (tmp_path / "t.md").read_text()
    assert text == markdown(table, "# About", ["M7", "M4"])
    assert "| a | 4 | 900 | 225.00 | 2,000 | 500.00 |" in text and "| c | 2 | 5 | 2.50 |  |  |" in text


def test_the_networks_hold_every_operator(tmp_path: Path) -> None:
    """Each kind of operator, forward and backward, is a row of its own."""
    found: set[type[Op]] = set()
    for case in CASES.values():
        if case.grow and case.options.update == "full":
            builder = GraphBuilder(1)
            (tmp_path / "m.tflite").write_bytes(builder.build(case.grow(builder)))
            found |= {type(n.op) for n in compile_model(tmp_path / "m.tflite", case.options).plan.program.graph.nodes}
    # a part of the channels is selected (and drawn anew) where a part trains; the other two are no network's
    assert _leaves(Op) - found <= {SelectChannels, Redraw, Segment, MeanSquaredError}


@needs_qemu
def test_one_case_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Measured twice alike; written, compared, and refused where the table says less."""
    arguments = ["bench", "--only", "^dense, inference", "--cores", "M7", "--jobs", "1", "--tables", str(tmp_path)]

    def bench(*more: str) -> int:
        monkeypatch.setattr("sys.argv", [*arguments, *more])
        return main()

    assert bench() == 1 and "not in the table" in capsys.readouterr().out
    assert bench("--update") == 0 and bench() == 0
    content = json.loads((tmp_path / "instructions.json").read_text())
    figures = {row: values["M7"] for row, values in content["instructions"]["dense, inference"].items()}
    assert figures == {f.row: f.instructions for f in measure(CASES["dense, inference"], "M7")}
    row = next(iter(figures))
    content["instructions"]["dense, inference"][row]["M7"] = figures[row] * 98 // 100
    (tmp_path / "instructions.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert bench() == 1
    assert f"WORSE   M7  dense, inference: {row}: was" in capsys.readouterr().out


def test_cores(tmp_path: Path) -> None:
    """All have one memory, so that plans differ by the core alone; the last has no SIMD instructions."""
    loaded = [board(core, tmp_path) for core in CORES]
    assert len({(b.ram_bytes, b.flash_bytes) for b in loaded}) == 1
    assert [b.target for b in loaded] == ["dsp", "dsp", "portable"] and len({b.core for b in loaded}) == 3
