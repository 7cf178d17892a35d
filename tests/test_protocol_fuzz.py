"""Any bytes as what the host sends: no fault, no hang, no unbounded memory. Coverage-guided, with sanitizers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_codegen import compiled, tiny
from toy import FIXTURES

from tte import codegen, resources
from tte.life import Life

FIRMWARE = resources.path("firmware") / "src"
HERE = Path(__file__).parent
COMMON = ("serve.c", "serve_learn.c", "exchange.c", "frame.c", "measure.c", "counter_none.c", "crc32.c")
PARTS = Life(resumable=True, guard=3, replay=200)


def _toy(folder: Path) -> list[str]:
    return [f"-I{FIXTURES / 'toymodel' / 'include'}", str(FIXTURES / "toymodel" / "src" / "toy.c")]


def _every_part(folder: Path) -> list[str]:
    plan = compiled(tiny(), folder).plan
    for path, text in codegen.render(plan, "tiny", "fuzzed", latent=True, resumable=True).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    own = [str(file) for file in sorted((folder / "src").glob("*.c"))]
    return [f"-I{folder / 'include'}", f"-I{folder / 'src'}", *PARTS.macros, *own, *(str(FIRMWARE / f) for f in PARTS.sources)]


@pytest.mark.parametrize("program", [_toy, _every_part])
@pytest.mark.parametrize("seconds", [4, pytest.param(300, marks=pytest.mark.slow)])
def test_any_bytes(program, seconds: int, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    if not shutil.which("clang"):
        pytest.skip("clang is not installed")
    command = ["clang", "-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-g", f"-I{FIRMWARE}", *program(tmp_path)]
    command += ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all", str(HERE / "protocol_fuzz.c")]
    command += [*(str(FIRMWARE / name) for name in COMMON), "-o", str(tmp_path / "fuzz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "libclang_rt.fuzzer" in done.stderr:
        pytest.skip("clang has no libFuzzer")
    assert done.returncode == 0, done.stderr
    (tmp_path / "corpus").mkdir()
    words = [str(tmp_path / "fuzz"), "-close_fd_mask=1", "-detect_leaks=0", f"-max_total_time={seconds}", "-max_len=2000"]
    words += ["-timeout=5", "-rss_limit_mb=512", "-seed=1", str(tmp_path / "corpus")]
    ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=seconds + 600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    said = re.search(r"fuzzed (\d+) bytes", ran.stderr)
    assert said and int(said[1]) > 10_000
    print(said[0])
