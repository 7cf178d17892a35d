"""`make bench`: counts instructions and holds them against the tables in `bench/`; `--update` writes the tables anew."""

from __future__ import annotations

import argparse
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from benchmark.cases import CASES, ROOT, Case
from benchmark.measure import CORES, measure, tools
from benchmark.table import Change, Figure, Table, compare, load, save
from tte import toolchain
from tte.errors import TteError

_ABOUT = """# Instructions{what}

Written by `make bench-update`; `make bench` fails where a figure rises by more than 1 %. {more}
Counted by QEMU in the generated code alone, one inference or one training step on a random sample, the same in every run.
M7, M4: fast kernels; M3: no SIMD instructions, portable C.
"""
TABLES = {
    False: ("instructions.json", _ABOUT.format(what=" by operator, and of the demo's model", more="")),
    True: (
        "models.json",
        _ABOUT.format(
            what=" of the shared models",
            more="It needs the models' files (../shared/models); where they are absent these rows are neither measured nor "
            "changed.",
        ),
    ),
}


def _measured(name: str, core: str, target: str) -> tuple[list[Figure], str]:
    """A case's figures, or why there are none."""
    try:
        return measure(CASES[name], core, target), ""
    except TteError as error:
        return [], str(error)
    except Exception as error:  # one case's failure must not hide the others' figures
        return [], f"{type(error).__name__}: {error}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--update", action="store_true", help="write the tables anew instead of comparing")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose name matches; the others' rows are kept")
    parser.add_argument("--cores", default=",".join(CORES), help="of %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument("--tables", type=Path, default=ROOT / "bench", help="folder of the tables")
    parser.add_argument("--target", default="", help="kernels of this target on every core: to see what the fast ones gain")
    chosen = parser.parse_args()
    cores = chosen.cores.split(",")
    if unknown := set(cores) - set(CORES):
        parser.error(f"unknown cores: {', '.join(sorted(unknown))}")
    cases = [case for case in CASES.values() if re.search(chosen.only, case.name)]
    for case in cases:
        if case.missing:
            print(f"skipped: {case.name}, as {case.file.name} is not here; its rows stay as they are")
    cases = [case for case in cases if not case.missing]
    try:
        toolchain.prepare_platformio()
        used = tools()
    except TteError as error:
        print(f"error {error}", file=sys.stderr)
        return 2
    tables = {shared: load(chosen.tables / file) for shared, (file, _) in TABLES.items()}
    for shared, table in tables.items():
        if table.rows and table.tools != used:
            print(f"{TABLES[shared][0]} was measured with other tools, which alone may change figures: {table.tools}")
    started = time.monotonic()
    changes, failures = _run(cases, cores, chosen.jobs, chosen.target, tables, used)
    for change in changes:
        if not change.worse:
            print(f"better  {change}")
    worse = [] if chosen.update else [change for change in changes if change.worse]
    for change in worse:
        print(f"WORSE   {change}")
    for failure in failures:
        print(f"FAILED  {failure}")
    if chosen.update:
        for shared, (file, about) in TABLES.items():
            if tables[shared].rows:
                save(chosen.tables / file, tables[shared].ordered(list(CASES)), about, list(CORES))
                print(f"written {chosen.tables / file}")
    count, minutes = len(cases) * len(cores), (time.monotonic() - started) / 60
    print(f"{count} programs in {minutes:.1f} minutes: {len(worse)} figures worse, {len(failures)} programs failed")
    if worse:
        print("if that is meant, `make bench-update` writes the tables anew")
    return 1 if worse or failures else 0


def _run(
    cases: list[Case], cores: list[str], jobs: int, target: str, tables: dict[bool, Table], used: str
) -> tuple[list[Change], list[str]]:
    """Measures every case on every core; the figures go into the tables, what changed is given."""
    changes: list[Change] = []
    failures: list[str] = []
    with ProcessPoolExecutor(jobs) as pool:
        waiting = {pool.submit(_measured, case.name, core, target): (case, core) for case in cases for core in cores}
        for number, done in enumerate(as_completed(waiting), 1):
            case, core = waiting[done]
            figures, problem = done.result()
            print(f"[{number}/{len(waiting)}] {core} {case.name}", flush=True)
            if problem:
                failures.append(f"{core}  {case.name}: {problem}")
                continue
            table = tables[case.shared]
            changes += compare(table.rows.get(case.name, {}), core, figures, case.name)
            table.tools = used
            table.replace(case.name, core, figures)
    order = {name: i for i, name in enumerate(CASES)}
    changes.sort(key=lambda c: (order[c.case], c.row, c.core))
    return changes, failures


if __name__ == "__main__":
    sys.exit(main())
