"""The command line: what goes wrong is told once, with status 2, and leaves nothing behind; what works, as JSON too."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from c_harness import needs
from click.testing import CliRunner
from tflite_builder import GraphBuilder

from tte import resources
from tte.cli import main
from tte.compiler import Options, compile_model
from tte.frontend.schema import write

DIGITS = resources.path("demo") / "digits.tflite"
NPZ = resources.path("demo") / "digits.npz"


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


def tte(*arguments: object, cwd: Path | None = None) -> Outcome:
    """Runs a command in this process."""
    before = Path.cwd()
    os.chdir(cwd or before)
    try:
        result = CliRunner().invoke(main, [str(a) for a in arguments])
    finally:
        os.chdir(before)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def tte_process(*arguments: object, cwd: Path, env: dict[str, str]) -> Outcome:
    """Runs a command as users do, with nothing in the environment but `env`."""
    python_path = str(Path(__file__).parents[1])
    command = [sys.executable, "-m", "tte", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env={"PYTHONPATH": python_path, **env}, capture_output=True, text=True, timeout=240, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def refused(outcome: Outcome, *words: str) -> None:
    """One message on standard error that says `words`; status 2, no traceback."""
    said = outcome.err + outcome.out
    assert outcome.status == 2, said
    assert "Traceback" not in said and 'File "' not in said, said
    assert sum(line.lower().startswith("error") for line in outcome.err.splitlines()) == 1, said
    flat = " ".join(outcome.err.split())
    for word in words:
        assert word in flat, said


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()} | {
        f"{p.relative_to(folder)}/": b"" for p in folder.rglob("*") if p.is_dir()
    }


# ---- what `tte build` and `tte inspect` refuse


def _float(b: GraphBuilder) -> None:
    b.op("ADD", [b.input((1, 4), dtype="float32"), b.input((1, 4), dtype="float32")], (1, 4), None, dtype="float32")


def _unknown(b: GraphBuilder) -> None:
    b.same("TRANSPOSE", b.input((1, 4)), (4, 1), b.int32(1, 0))


def _made(grow: Callable[[GraphBuilder], None]) -> Callable[[Path], bytes]:
    def make(folder: Path) -> bytes:
        b = GraphBuilder(0)
        grow(b)
        return write(b.model())

    return make


BAD_MODELS: dict[str, tuple[Callable[[Path], bytes], tuple[str, ...]]] = {
    "empty": (lambda _: b"", ("model.tflite",)),
    "text": (lambda _: b"not a model at all, but long enough to be looked at\n" * 9, ("model.tflite",)),
    "truncated": (lambda _: DIGITS.read_bytes()[:5000], ("model.tflite",)),
    "zeros": (lambda _: bytes(10_000), ("model.tflite",)),
    "float": (_made(_float), ("float",)),
    "unknown-operator": (_made(_unknown), ("TRANSPOSE",)),
}


@pytest.mark.parametrize("name", BAD_MODELS)
@pytest.mark.parametrize("command", ["build", "inspect"])
def test_bad_models(name: str, command: str, tmp_path: Path) -> None:
    make, words = BAD_MODELS[name]
    (tmp_path / "model.tflite").write_bytes(make(tmp_path))
    before = snapshot(tmp_path)
    more = ("--board", "stm32f746", "--out", "out") if command == "build" else ()
    refused(tte(command, "model.tflite", *more, cwd=tmp_path), *words)
    assert snapshot(tmp_path) == before
    as_json = tte(command, "model.tflite", *more, "--json", cwd=tmp_path)
    assert as_json.status == 2
    found = json.loads(as_json.out)  # one object, no more
    assert found["error"]["what"] if "error" in found else found["problems"]
    assert snapshot(tmp_path) == before


_MODEL = str(DIGITS)
BAD_BUILDS: dict[str, tuple[Sequence[object], tuple[str, ...]]] = {
    "missing-file": (("nothing.tflite", "--board", "stm32f746"), ("nothing.tflite", "No such file")),
    "folder-as-model": ((".", "--board", "stm32f746"), ("directory",)),
    "no-board": ((_MODEL,), ("--board",)),
    "unknown-board": ((_MODEL, "--board", "stm32f764"), ("stm32f764", "stm32f746")),
    "board-not-json": ((_MODEL, "--board", "bad.json"), ("bad.json",)),
    "board-without-limits": ((_MODEL, "--board", "poor.json"), ("poor.json",)),
    "unknown-scheme": ((_MODEL, "--board", "stm32f746", "--update", "lots"), ("lots", "last, bias, full")),
    "scheme-not-toml": ((_MODEL, "--board", "stm32f746", "--update", "bad.toml"), ("bad.toml", "TOML")),
    "scheme-key": ((_MODEL, "--board", "stm32f746", "--update", "key.toml"), ("wieghts",)),
    "scheme-layer": ((_MODEL, "--board", "stm32f746", "--update", "layer.toml"), ("no_such_layer",)),
    "scheme-fraction": ((_MODEL, "--board", "stm32f746", "--update", "fraction.toml"), ("1.5",)),
    "one-class": ((_MODEL, "--board", "stm32f746", "--classes", "1"), ("classes", "2")),
    "negative-classes": ((_MODEL, "--board", "stm32f746", "--classes", "-3"), ("classes",)),
    "classes-no-number": ((_MODEL, "--board", "stm32f746", "--classes", "ten"), ("--classes",)),
    "mse-after-softmax": ((_MODEL, "--board", "stm32f746", "--loss", "mse"), ("softmax",)),
    "ram-no-size": ((_MODEL, "--board", "stm32f746", "--ram", "lots"), ("--ram",)),
    "ram-too-small": ((_MODEL, "--board", "stm32f746", "--ram", "4K"), ("RAM", "too many", "remedy")),
    "too-large": ((_MODEL, "--board", "microbit", "--update", "full"), ("RAM", "too many", "step", "remedy")),
    "learning-rate": ((_MODEL, "--board", "stm32f746", "--learning-rate", "nan"), ("learning-rate",)),
    "mode": ((_MODEL, "--board", "stm32f746", "--mode", "r5"), ("--mode",)),
    "out-is-a-file": ((_MODEL, "--board", "stm32f746", "--out", "bad.toml"), ("bad.toml",)),
    "out-is-foreign": ((_MODEL, "--board", "stm32f746", "--out", "foreign"), ("foreign", "other things")),
    "out-below-a-file": ((_MODEL, "--board", "stm32f746", "--out", "bad.toml/out"), ("bad.toml",)),
    "dump-below-a-file": ((_MODEL, "--board", "stm32f746", "--dump-ir", "bad.toml/ir"), ("bad.toml",)),
}


@pytest.mark.parametrize("name", BAD_BUILDS)
def test_bad_builds(name: str, tmp_path: Path) -> None:
    arguments, words = BAD_BUILDS[name]
    (tmp_path / "bad.json").write_text("{ not json")
    (tmp_path / "poor.json").write_text('{"name": "poor"}')
    (tmp_path / "bad.toml").write_text("= = =")
    (tmp_path / "key.toml").write_text("[wieghts]\n")
    (tmp_path / "layer.toml").write_text('bias = ["no_such_layer"]\n')
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "letter.txt").write_text("mine")
    layer = next(n.name for n in compile_model(DIGITS, Options(update="none")).forward.nodes if n.op.title == "CONV_2D")
    (tmp_path / "fraction.toml").write_text(f'[weights]\n"{layer}" = 1.5\n')
    before = snapshot(tmp_path)
    if "--out" not in arguments:
        arguments = (*arguments, "--out", "out/deep")
    refused(tte("build", *arguments, cwd=tmp_path), *words)
    assert snapshot(tmp_path) == before


def test_json_error_is_one_object(tmp_path: Path) -> None:
    outcome = tte("build", DIGITS, "--board", "no_such", "--json", "--out", tmp_path / "out")
    assert outcome.status == 2 and set(json.loads(outcome.out)["error"]) == {"what", "where", "limit", "remedy"}


@needs("arm-none-eabi-gcc")
def test_flash_overflow_leaves_nothing(tmp_path: Path) -> None:
    """A model that only the linker finds too large."""
    board = json.loads((resources.path("boards") / "mps2-an386.json").read_text())
    tensors = compile_model(DIGITS, Options(update="none")).forward.tensors.values()
    need = sum(t.type.nbytes for t in tensors if t.data is not None)
    board["tte"].pop("flash")  # it would lie beyond
    board["upload"]["maximum_size"] = (need + 2048) // 32 * 32
    (tmp_path / "mps2-an386.json").write_text(json.dumps(board))
    outcome = tte("build", DIGITS, "--board", "mps2-an386.json", "--update", "none", "--out", "out", cwd=tmp_path)
    refused(outcome, "bytes more FLASH", "a board with more flash")
    assert not (tmp_path / "out").exists()


def test_no_compiler(tmp_path: Path) -> None:
    """An empty PATH, no PlatformIO folder and no network to fetch either from."""
    nowhere = {"PATH": str(tmp_path), "HOME": str(tmp_path / "home"), "PIP_NO_INDEX": "1", "PIP_INDEX_URL": "http://127.0.0.1:9"}
    outcome = tte_process("build", DIGITS, "--board", "mps2-an500", "--out", "out", cwd=tmp_path, env=nowhere)
    refused(outcome)
    assert not (tmp_path / "out").exists()


# ---- what works


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """The demo's model built for the STM32F746, and what `tte build --json` said."""
    if not shutil.which("arm-none-eabi-gcc"):
        pytest.skip("arm-none-eabi-gcc not installed")
    folder = tmp_path_factory.mktemp("built") / "digits"
    outcome = tte("build", DIGITS, "--board", "stm32f746", "--update", "full", "--out", folder, "--json")
    assert outcome.status == 0, outcome.err
    return folder, json.loads(outcome.out)


def test_build_json(built: tuple[Path, dict[str, object]]) -> None:
    folder, facts = built
    wanted = {"ram_bytes", "flash_bytes", "arena_bytes", "state_bytes", "stack_bytes", "peak_step", "fits"}
    assert wanted <= set(facts) and facts["fits"] is True
    assert not [p for p in folder.rglob("*") if p.name.startswith((".tte-", ".build-", ".build.json"))][1:]


def test_inspect(tmp_path: Path) -> None:
    outcome = tte("inspect", DIGITS, "--json")
    facts = json.loads(outcome.out)
    assert outcome.status == 0 and {"operators", "macs", "trainable"} <= set(facts)
    for operator in facts["operators"]:
        assert {"input", "output", "quantisation", "macs", "runs", "trains", "why"} <= set(operator)
    text = tte("inspect", DIGITS)
    assert text.status == 0 and "CONV_2D" in text.out and not text.out.lstrip().startswith("{")


def test_boards() -> None:
    listed = json.loads(tte("boards", "--json").out)["boards"]
    want = {"stm32f746", "nucleo_f446re", "nrf52840", "rp2040", "mps2-an500", "mps2-an386", "netduinoplus2"}
    assert want <= {b["name"] for b in listed}
    assert "stm32f746" in tte("boards").out


def test_verify(built: tuple[Path, dict[str, object]]) -> None:
    folder, _ = built
    facts = json.loads(tte("verify", folder, "--steps", 3, "--on", "host", "--json").out)
    assert facts["equal"] is True and facts["steps"] == 3 and facts["compared"] > 1000


def test_verify_names_the_first_wrong_operator(built: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    """One sign changed in one kernel of the generated C: status 1, and the place is told."""
    folder = tmp_path / "wrong"
    shutil.copytree(built[0], folder, ignore=shutil.ignore_patterns(".pio", "host"))
    kernels = next(folder.rglob("*_kernels.h"))
    text = kernels.read_text()
    assert "k_x = *k + F - s;" in text
    kernels.write_text(text.replace("k_x = *k + F - s;", "k_x = *k + F - s + 1;"))
    outcome = tte("verify", folder, "--steps", 2, "--json")
    found = json.loads(outcome.out)["mismatch"]
    assert outcome.status == 1
    assert found["step"] == 0 and "INPUT_GRAD" in found["operator"] and "exponent" in found["tensor"]
    assert found["found"] == found["expected"] + 1


def test_run(built: tuple[Path, dict[str, object]]) -> None:
    folder, _ = built
    arguments = ("--data", NPZ, "--on", "host", "--steps", 30, "--final-samples", 50, "--eval-samples", 20)
    facts = json.loads(tte("run", folder, *arguments, "--json").out)
    assert {"accuracy_before", "accuracy_after", "instructions_per_step"} <= set(facts)
    assert Path(facts["log"]).is_file() and Path(facts["picture"]).is_file()
    assert json.loads(Path(facts["log"]).read_text())


def _npz(folder: Path, **arrays: object) -> Path:
    np.savez(folder / "data.npz", **{k: np.asarray(v) for k, v in arrays.items()})
    return folder / "data.npz"


_X, _Y = np.zeros((10, 8, 8), np.uint8), np.arange(10) % 3
BAD_DATA: dict[str, Callable[[Path], Path]] = {
    "missing": lambda f: f / "none.npz",
    "folder": lambda f: f,
    "no-archive": lambda f: DIGITS,
    "truncated": lambda f: _written(f, NPZ.read_bytes()[:3000]),
    "other-keys": lambda f: _npz(f, images=_X, labels=_Y),
    "no-labels": lambda f: _npz(f, x=_X),
    "unlike-counts": lambda f: _npz(f, x=_X, y=_Y[:7]),
    "label-too-large": lambda f: _npz(f, x=_X, y=_Y + 1000),
    "negative-label": lambda f: _npz(f, x=_X, y=_Y - 1),
    "float-labels": lambda f: _npz(f, x=_X, y=_Y + 0.5),
    "not-numbers": lambda f: _npz(f, x=_X.astype(str), y=_Y),
    "nan": lambda f: _npz(f, x=np.full((10, 8, 8, 1), np.nan), y=_Y),
    "wrong-channels": lambda f: _npz(f, x=np.zeros((10, 8, 8, 5), np.uint8), y=_Y),
    "nothing": lambda f: _npz(f, x=_X[:0], y=_Y[:0]),
    "objects": lambda f: _npz(f, x=np.array([None, {}], object), y=[0, 1]),
}


def _written(folder: Path, data: bytes) -> Path:
    (folder / "data.npz").write_bytes(data)
    return folder / "data.npz"


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data(name: str, built: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    before = {p.name for p in built[0].iterdir()}
    refused(tte("run", built[0], "--on", "host", "--data", BAD_DATA[name](tmp_path)))
    assert {p.name for p in built[0].iterdir()} == before


def test_commands_on_no_build(tmp_path: Path) -> None:
    for command in (("verify", tmp_path), ("verify", tmp_path / "none"), ("run", tmp_path, "--data", NPZ)):
        refused(tte(*command), "tte build")
    (tmp_path / "build.json").write_text('{"options": 3}')
    refused(tte("verify", tmp_path))


def test_damaged_builds(built: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    """Parts that do not belong together are noticed."""
    for file, content in (
        ("build.json", b"{"),
        ("source/model.tflite", b"x" * 100),
        ("platformio.ini", b"[nothing]\n"),
        ("boards/stm32f746.json", b"{}"),
    ):
        folder = tmp_path / file.replace("/", "-")
        shutil.copytree(built[0], folder, ignore=shutil.ignore_patterns(".pio", "host"))
        (folder / file).write_bytes(content)
        refused(tte("verify", folder))


def test_no_host_compiler(built: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    env = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    refused(tte_process("verify", built[0], "--steps", "1", cwd=tmp_path, env=env), "cc is not installed")


def test_a_failed_build_keeps_the_old_one(built: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    """Where planning shows that it cannot fit, an older build in the same folder stays whole."""
    folder = tmp_path / "old"
    shutil.copytree(built[0], folder, ignore=shutil.ignore_patterns(".pio", "host"))
    before = snapshot(folder)
    refused(tte("build", DIGITS, "--board", "stm32f746", "--ram", "4K", "--out", folder), "RAM")
    assert snapshot(folder) == before


def test_help_and_usage() -> None:
    assert tte("--help").status == 0
    for command in ("inspect", "build", "boards", "verify", "run", "demo"):
        assert tte(command, "--help").status == 0
        assert "--json" in tte(command, "--help").out
    refused(tte("biuld"), "biuld")
