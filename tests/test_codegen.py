"""The text of the generated library: stable, integer only, and C whatever the model's names are."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from c_harness import Bench, compilers, needs
from random_graphs import image_sample, sample
from test_random_graphs import calls
from tflite_builder import GraphBuilder

from tte import codegen, resources
from tte.compiler import Compiled, Options, compile_model
from tte.frontend.schema import RawModel, write
from tte.training.autodiff import Numerics

GOLDEN = Path(__file__).parent / "golden"


def tiny() -> RawModel:
    """Every kind of layer once, small enough to read."""
    b = GraphBuilder(1)
    x = b.conv_2d(b.input((1, 4, 4, 2)), 4, (3, 3), (2, 2), activation="RELU6")
    y = b.depthwise_conv_2d(x, activation="RELU", per_channel=False)
    x = b.mean(b.elementwise("ADD", x, y), (1, 2))
    b.activation("SOFTMAX", b.fully_connected(x, 3))
    return b.model()


def compiled(raw: RawModel, folder: Path, update: str = "full", name: str = "tiny", **numerics: object) -> Compiled:
    """A raw model through the whole way."""
    file = folder / "model.tflite"
    file.write_bytes(write(raw))
    chosen = Numerics(**{"rate": 0.02, **numerics})  # type: ignore[arg-type]
    return compile_model(file, Options(update=update, numerics=chosen), name=name)


def narrow() -> RawModel:
    """A residual block that runs row by row, with the input by rows."""
    b = GraphBuilder(2)
    x = b.conv_2d(b.input((1, 9, 8, 1)), 2, (3, 3), (2, 2), activation="RELU6")
    x = b.elementwise("ADD", x, b.depthwise_conv_2d(x, activation="RELU", per_channel=False))
    b.fully_connected(b.mean(b.pool("MAX_POOL_2D", x), (1, 2)), 2)
    return b.model()


@pytest.mark.parametrize(("name", "make", "update", "rows"), [("tiny", tiny, "full", False), ("rows", narrow, "last", True)])
def test_golden(name: str, make: Callable[[], RawModel], update: str, rows: bool, tmp_path: Path) -> None:
    """Two small models' libraries, for people to read in review. TTE_REFRESH_GOLDEN=1 writes them anew."""
    (tmp_path / "model.tflite").write_bytes(write(make()))
    made = compile_model(tmp_path / "model.tflite", Options(update=update, rows=rows, numerics=Numerics(0.02)), name=name)
    files = codegen.render(made.plan, name, "a model for tests")
    del files["src/tte_runtime.h"]  # a copy of the template
    golden = GOLDEN / name
    if os.environ.get("TTE_REFRESH_GOLDEN"):
        for path, text in files.items():
            (golden / path).parent.mkdir(parents=True, exist_ok=True)
            (golden / path).write_text(text, encoding="utf-8")
    there = {str(p.relative_to(golden)) for p in golden.rglob("*") if p.is_file()}
    assert there == set(files)
    for path, text in files.items():
        assert (golden / path).read_text(encoding="utf-8") == text, f"{path} changed; TTE_REFRESH_GOLDEN=1 accepts it"


_DIGEST = """
import hashlib, sys
from tte import codegen
from tte.compiler import Options, compile_model
c = compile_model(sys.argv[1], Options(update=sys.argv[2]), name="m")
print(hashlib.sha256(repr(sorted(codegen.render(c.plan, "m", "n").items())).encode()).hexdigest())
"""


def test_same_bytes_every_time(tmp_path: Path) -> None:
    """Twice in this process, and in others whose sets and dictionaries are ordered otherwise."""
    model = resources.path("demo") / "digits.tflite"
    texts = [
        repr(sorted(codegen.render(compile_model(model, Options(update="full"), name="m").plan, "m", "n").items()))
        for _ in range(2)
    ]
    assert texts[0] == texts[1]
    want = hashlib.sha256(texts[0].encode()).hexdigest()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", _DIGEST, str(model), "full"],
            env={**os.environ, "PYTHONHASHSEED": seed, "TZ": "Asia/Tokyo", "LC_ALL": "C"},
            cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == want


_FORBIDDEN = re.compile(
    r"\b(float|double|malloc|calloc|realloc|free|alloca|__DATE__|__TIME__|__FILE__)\b"  # heap, float, where and when
    r"|\d\d\d\d-\d\d-\d\d|\d\d:\d\d:\d\d|\b(Jan|Feb|Apr|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d"
    r"|(^|[\s\"'(])/(?![*/ ])\w|\(\s*\*\s*\w+\s*\)\s*\("  # absolute paths, function pointers
)


def test_no_float_no_heap_no_paths_no_dates(tmp_path: Path) -> None:
    """In models of every kind."""
    plans = [compiled(tiny(), tmp_path, mode=mode, batch=batch).plan for mode, batch in (("r4", 1), ("r8", 3), ("sr", 2))]
    plans += [c.plan for c in (sample(seed).compile(tmp_path) for seed in range(300, 312)) if c]
    plans += [c.plan for c in (image_sample(seed).compile(tmp_path, rows=True) for seed in range(300, 312)) if c]
    for p in plans:
        for path, text in codegen.render(p, "m", "n").items():
            found = _FORBIDDEN.search(text) if path.endswith((".c", ".h")) else None
            assert not found, f"{path}: {text[max(0, found.start() - 80) : found.end() + 40]}"
            assert str(tmp_path) not in text and str(Path.home()) not in text


def test_no_recursion(tmp_path: Path) -> None:
    """A function calls only functions defined before it, so that no call comes back."""
    samples = [sample(seed).compile(tmp_path) for seed in range(300, 312)]
    samples += [image_sample(seed).compile(tmp_path, rows=True) for seed in range(300, 312)]
    for made in filter(None, samples):
        files = codegen.render(made.plan, "m", "n")
        text = files["src/tte_runtime.h"] + files["src/m_kernels.h"] + files["src/m.c"]
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
        before = r"^(?:__attribute__\(\(\w+\)\) )?(?:TTE_NOINLINE )?(?:static )?(?:inline )?(?:const )?"
        defined = re.compile(before + r"\w+ \**(\w+)\([^;{]*\) \{", re.M)
        functions = [(m[1], m.start(), m.end()) for m in defined.finditer(text)]
        for (name, _, body), (_, end, _) in zip(functions, [*functions[1:], ("", len(text), 0)], strict=True):
            later = {n for n, start, _ in functions if start >= body} | {name}
            called = set(re.findall(r"\b(\w+)\(", text[body:end]))
            assert not called & later - {"m_loss"}, f"{name} calls {called & later}"


HOSTILE = [
    "*/ int x = ;", "**//", "/* open", "// line \\", "a\nb\r\n#error x", "\x00\x01\x1b[31m", '"quoted\'', "", "", "int", "for",
    "double", "é²ñ名前", "\u202e\u2066reversed", "x" * 5000, "a/b;c/d;e", "9lives", "%s%n{{ name }}{% raw %}", "__attribute__",
    "arena", "state", "control", "init", "input", "infer", "loss", "logits", "truth", "same", "same", "AT_x", "??/", "-", "_",
    "A b", "a_b", "a__b", "a b_1", "shift/multiplier", "main", "NULL",
]  # fmt: skip


@needs("gcc")
@pytest.mark.parametrize("turn", range(4))
def test_hostile_names_compile(turn: int, tmp_path: Path) -> None:
    """Tensors and models of any name give C without a warning, that computes the same."""
    raw = tiny()
    names = HOSTILE[turn * 9 :] + HOSTILE[: turn * 9]
    tensors = tuple(replace(t, name=names[i % len(names)]) for i, t in enumerate(raw.subgraph.tensors))
    raw = replace(raw, subgraph=replace(raw.subgraph, tensors=tensors))
    made = compiled(raw, tmp_path, name=names[-1])
    bench = Bench({"m": made.plan}, tmp_path)
    bench.check({"m": calls(made.plan, 0)})
    for compiler in compilers():
        bench.compile(compiler, "-O1")


@pytest.mark.parametrize("wish", [*HOSTILE, "string", "stdint", "math", "tte_model", "tte_runtime", "TTE", "Tte Model"])
def test_names_of_models(wish: str, tmp_path: Path) -> None:
    """A library's name is an identifier in ASCII, no longer than a file system bears, and hides no header."""
    name = codegen.c_name(wish)
    assert re.fullmatch(r"[a-z][a-z0-9_]{0,59}", name)
    assert not name.startswith("tte") and f"{name}.h" not in ("string.h", "stdint.h", "math.h")


@needs("gcc")
def test_hostile_model_name_compiles(tmp_path: Path) -> None:
    """Also in comments, where the note names the model, and in the facade."""
    made = compiled(tiny(), tmp_path)
    for wish in ("string", "a*/b\n\\", "**//é\u202e", "/*"):
        name = codegen.c_name(wish)
        for path, text in codegen.render(made.plan, name, f"{wish}, full update").items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(text, encoding="utf-8")
        (tmp_path / name / "use.c").write_text('#include "tte_model.h"\nint f(void) { return (int)TTE_MODEL_ARENA_BYTES; }\n')
        sources = [str(p) for p in (tmp_path / name).rglob("*.c")]
        flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{tmp_path / name / 'include'}"]
        for compiler in compilers():
            done = subprocess.run([compiler, *flags, *sources], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[:2000]
