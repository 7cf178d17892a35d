"""The tables in the folder `bench/`: reading, comparing, writing. No figure in them is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TOLERANCE = 0.01  # a figure may rise by so much

#: By case, then by row: "macs" and the instructions on each core.
Rows = dict[str, dict[str, dict[str, int]]]


@dataclass(frozen=True)
class Figure:
    """A row of one case on one core: what, its MACs (0: none), its instructions."""

    row: str
    macs: int
    instructions: int


@dataclass(frozen=True)
class Change:
    """A figure that differs from the table by more than the tolerance; `was` or `now` is None where a row is new or gone."""

    case: str
    row: str
    core: str
    was: int | None
    now: int | None

    @property
    def worse(self) -> bool:
        """It fails the comparison: more instructions, or a row that the table does not guard or that is gone."""
        return self.was is None or self.now is None or self.now > self.was

    def __str__(self) -> str:
        where = f"{self.core}  {self.case}: {self.row}"
        if self.was is None:
            return f"{where}: {self.now:,}, not in the table"
        if self.now is None:
            return f"{where}: was {self.was:,}, is gone"
        percent = f"{100 * (self.now / self.was - 1):+.1f} %" if self.was else "from nothing"
        return f"{where}: was {self.was:,}, is {self.now:,}, {percent}"


@dataclass
class Table:
    """One file of figures.

    Attributes:
        tools: the compiler and emulator they were measured with.
    """

    tools: str = ""
    rows: Rows = field(default_factory=dict)

    def replace(self, case: str, core: str, figures: Iterable[Figure]) -> None:
        """Puts a case's new figures of one core in place of all it had."""
        fresh = {f.row: {"macs": f.macs, core: f.instructions} for f in figures}
        old = self.rows.get(case, {})
        for row, values in old.items():
            kept = {k: v for k, v in values.items() if k != core}
            if row in fresh:
                fresh[row] = {**kept, **fresh[row]}
            elif set(kept) - {"macs"}:
                fresh[row] = kept
        self.rows[case] = fresh

    def ordered(self, cases: Sequence[str]) -> Table:
        """The same in the order of `cases`; what is no case any more is dropped."""
        return Table(self.tools, {case: self.rows[case] for case in cases if case in self.rows})


def compare(was: Mapping[str, Mapping[str, int]], core: str, figures: Iterable[Figure], case: str = "") -> list[Change]:
    """What differs by more than the tolerance between a case's rows of the table and what was measured on a core."""
    before = {row: values[core] for row, values in was.items() if core in values}
    after: dict[str, int] = {f.row: f.instructions for f in figures}
    changes = []
    for row in dict.fromkeys((*before, *after)):
        a, b = before.get(row), after.get(row)
        if a is None or b is None or abs(b - a) > TOLERANCE * a:
            changes.append(Change(case, row, core, a, b))
    return changes


def load(path: Path) -> Table:
    """A table; an empty one where there is no file."""
    if not path.exists():
        return Table()
    content = json.loads(path.read_text(encoding="utf-8"))
    return Table(content["tools"], content["instructions"])


def save(path: Path, table: Table, about: str, cores: Sequence[str]) -> None:
    """Writes the table as JSON, a row a line, and beside it as Markdown."""
    lines = []
    for case, rows in table.rows.items():
        inner = ",\n".join(f"   {json.dumps(row)}: {json.dumps(values)}" for row, values in rows.items())
        lines.append(f"  {json.dumps(case)}: {{\n{inner}\n  }}")
    body = ",\n".join(lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{\n "tools": {json.dumps(table.tools)},\n "instructions": {{\n{body}\n }}\n}}\n', encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(table, about, cores), encoding="utf-8")


def markdown(table: Table, about: str, cores: Sequence[str]) -> str:
    """The table for people: instructions, and instructions per MAC, on each core."""
    text = [about.strip(), "", f"Measured with {table.tools}.", ""]
    for case, rows in table.rows.items():
        head = ["", "MACs", *(word for core in cores for word in (core, "per MAC"))]
        text += [f"## {case}", "", "| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
        for row, values in rows.items():
            macs = values["macs"]
            cells = [row, f"{macs:,}" if macs else ""]
            for core in cores:
                count = values.get(core)
                cells.append(f"{count:,}" if count is not None else "")
                cells.append(f"{count / macs:.2f}" if count and macs else "")
            text.append("| " + " | ".join(cells) + " |")
        text.append("")
    return "\n".join(text)
