"""Imports go one way: from the command line down to the errors, never up and never round."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "tte"

#: From the top down; a room imports from its own and from lower layers.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("profile",),
    ("verify", "report", "picture", "display", "journal"),
    ("search",),
    ("run", "tradeoff", "export"),
    ("flashing",),
    ("project", "inspection"),
    ("native",),
    ("firmware",),
    ("pioproject",),
    ("keeping", "renode"),
    ("device",),
    ("needs",),
    ("codegen", "compiler"),
    ("latent", "slices"),
    ("steps", "emit"),
    ("planner",),
    ("training",),
    ("passes", "reference", "frontend"),
    ("ops",),
    ("ir", "fixed", "data", "history"),
    ("image", "toolchain", "board", "npz"),
    ("resources", "files", "flash_failures", "life"),
    ("errors", ""),
)
RANK = {room: i for i, layer in enumerate(LAYERS) for room in layer}


def room(module: str) -> str:
    """The room of `tte.room.module`; "" for `tte` itself."""
    return [*module.split("."), ""][1]


def imports(path: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, module, inside a function) of every import from tte."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    local = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.Lambda)) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            base = node.module or ""
            # `from tte import x` imports the room x (or a name of the package itself).
            names = [f"tte.{a.name}" if base == "tte" and a.name in RANK else base for a in node.names]
        else:
            continue
        for name in names:
            if name == "tte" or name.startswith("tte."):
                yield node.lineno, name, id(node) in local


FILES = sorted(ROOT.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = ("tte", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_down(path: Path) -> None:
    own = room(module_of(path))
    assert own in RANK, f"{own} has no place in LAYERS"
    for line, name, local in imports(path):
        other = room(name)
        assert other in RANK, f"{path.name}:{line} imports {name}, which has no place in LAYERS"
        if other == own and own:
            continue
        assert RANK[other] > RANK[own], f"{path.name}:{line}: {own} imports {other}, which is not below it"
        assert not local or other in ("report", "picture"), f"{path.name}:{line}: a local import hides that {own} needs {other}"


def test_no_cycle_of_modules() -> None:
    """Within a room, too, top-level imports do not go round."""
    known = {module_of(p) for p in FILES}
    needs = {
        module_of(p): {n for _, n, local in imports(p) if not local and n in known and n != module_of(p)} for p in FILES
    }
    # A package's __init__ gathers what its modules offer; modules import each other, not it.
    needs = {m: {n for n in found if not m.startswith(f"{n}.")} for m, found in needs.items()}
    done: set[str] = set()
    while True:
        free = {m for m in needs if m not in done and needs[m] <= done}
        if not free:
            break
        done |= free
    assert done == set(needs), f"imports go round among {sorted(set(needs) - done)}"


def test_the_ir_knows_no_operator() -> None:
    assert not any(room(name) == "ops" for _, name, _ in imports(ROOT / "ir.py"))


def test_every_room_is_there() -> None:
    """LAYERS names nothing that is gone."""
    there = {room(module_of(p)) for p in FILES}
    assert there == set(RANK)
