"""Training in slices: how long the longest uninterruptible stretch is, in instructions that QEMU counts on a Cortex-M7.

    PYTHONPATH=tests python -m studies.slices MODEL [--update full] [--classes 10] [--rows]

One step, whole (built without and with --resumable) and in slices of several budgets, the first of them the longest piece's
price; then the longest pieces, alone.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import click

from tte import codegen
from tte.compiler import Options, compile_model
from tte.planner.arena import Plan

_MAIN = Path(__file__).with_name("slices_main.c")
_VECTORS = """\
extern void _start(void);
__attribute__((section(".vectors"), used)) static const void *const vectors[2] = {(void *)0x20400000, (void *)_start};
"""
_PLACES = ("--section-start=.vectors=0", "-Ttext=0x10000", "-Tdata=0x60000000")
_MACHINE = ("-M", "mps2-an500", "-nographic", "-monitor", "none", "-serial", "none", "-icount", "shift=7")


def measure(plan: Plan, folder: Path, *, resumable: bool) -> list[list[str]]:
    """The words of each line that the program prints."""
    for path, text in codegen.render(plan, "m", "study", resumable=resumable).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    (folder / "vectors.c").write_text(_VECTORS)
    src = folder / "src"
    sources = [folder / "vectors.c", _MAIN, src / "m_data.c", *src.glob("*.S")]
    flags = ["-std=gnu11", "-O2", "-mthumb", "-mcpu=cortex-m7", f"-I{folder / 'include'}", f"-I{src}", "--specs=rdimon.specs"]
    flags += [f"-Wl,{place}" for place in _PLACES]
    program = folder / "slices.elf"
    subprocess.run(["arm-none-eabi-gcc", *flags, *map(str, sources), "-o", str(program)], check=True)
    host = ["-semihosting-config", "enable=on,target=native", "-kernel", str(program)]
    done = subprocess.run(["qemu-system-arm", *_MACHINE, *host], capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


def table(rows: list[list[str]]) -> str:
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---:"] * len(head), *body]) + "\n"


@click.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--update", default="full")
@click.option("--classes", default=0)
@click.option("--rows", is_flag=True)
def main(model: Path, update: str, classes: int, rows: bool) -> None:
    plan = compile_model(model, Options(classes, update, rows=rows, target="dsp")).plan
    with tempfile.TemporaryDirectory() as name:
        (_, plain, state), *_ = measure(plan, Path(name) / "plain", resumable=False)
        lines = measure(plan, Path(name) / "slices", resumable=True)
        text = (Path(name) / "slices" / "src" / "m.c").read_text(encoding="utf-8")
    steps = re.findall(r"case \d+: /\* (.*?) \*/", text[text.index("static void run(") : text.index("static uint32_t price(")])

    states = {line[-1] for line in lines if line[0] in ("whole", "budget")}
    if states != {state}:
        raise click.ClickException("a budget changes what is learnt")

    def over(count: str) -> str:
        return f"{100 * (int(count) / int(plain) - 1):.2f} %"

    whole = lines[0][1]
    found = [["budget", "calls", "longest slice", "step", "more than without --resumable"]]
    found += [["whole", "1", f"{int(whole):,}", f"{int(whole):,}", over(whole)]]
    for _, budget, calls, longest, total, _ in (line for line in lines if line[0] == "budget"):
        found.append([*(f"{int(n):,}" for n in (budget, calls, longest, total)), over(total)])
    click.echo(f"{model.stem}, {Path(update).stem}: one step takes {int(plain):,} instructions without --resumable.\n")
    click.echo(table(found))
    most: dict[int, tuple[int, int, int]] = {}
    for _, at, count, price in (line for line in lines if line[0] == "piece"):
        times, longest_piece, highest = most.get(int(at), (0, 0, 0))
        most[int(at)] = (times + 1, max(longest_piece, int(count)), max(highest, int(price)))
    order = sorted(most, key=lambda at: -most[at][1])[:10]
    pieces = [[f"`{steps[at].split(' ', 1)[1]}`", str(most[at][0]), f"{most[at][1]:,}", f"{most[at][2]:,}"] for at in order]
    click.echo(table([["step", "pieces", "longest piece", "its price"], *pieces]))
    click.echo(f"What is under way takes {lines[-1][1]} bytes of variables.")


if __name__ == "__main__":
    main()
