"""The measuring side of the search: kept answers, equal results whoever computes them, prices, and the commands."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_harness import needs
from test_cli import DIGITS, NPZ, refused, tte

from tte import board as boards
from tte import codegen
from tte.compiler import Options, compile_model
from tte.errors import DataError, ModelError
from tte.life import Life
from tte.needs import RESERVE, life_room
from tte.search import rate, worker
from tte.search.bench import Workbench
from tte.search.candidate import Candidate
from tte.search.pool import Pool
from tte.search.store import Store
from tte.search.task import Task, division, forward, task
from tte.training import scheme as schemes

_SEARCH = ("search", DIGITS, "--data", NPZ, "--turn", 90, "--board", "stm32f746", "--samples", 60, "--seeds", 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose compiled programs the tests share."""
    return tmp_path_factory.mktemp("search")


def _task(place: Path) -> Task:
    return task(DIGITS, NPZ, place, turns=1)


def _bench(place: Path, store: Store, pool: Pool, **settings: Any) -> Workbench:
    return Workbench(_task(place), boards.load("stm32f746"), store, pool, 0.01, **settings)


def _candidates(bench: Workbench) -> list[Candidate]:
    names = [x.name for x in bench.layers]
    some = tuple(sorted(bench.layers[-2].ranking["random"][:5]))
    weights = tuple(sorted([(names[-2], some), (names[-1], ())]))
    return [Candidate(), Candidate(tuple(sorted(names[-4:]))), Candidate(tuple(sorted(names[-3:])), weights)]


# ---- the store


def test_store_survives_truncation(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with Store(path) as store:
        store.put(["a", 1, 0.5], {"accuracy": 0.25})
        store.put(["b"], 3)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        with Store(path) as store:
            assert (["a", 1, 0.5] in store) == (end >= first)
            assert (["b"] in store) == (end == len(whole))
            store.put(["c"], None)
        with Store(path) as store:
            assert ["c"] in store and len(store) == 1 + (end >= first) + (end == len(whole))


def test_store_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with Store(path), pytest.raises(DataError, match="another search"):
        Store(path)
    for text in ("[1]\n", "{}\n", "no\n", '{"q": ["a"]}\n'):
        path.write_text(text)
        with pytest.raises(DataError, match="line 1"):
            Store(path)


# ---- schemes with lists of channels


def test_every_candidate_is_a_scheme(place: Path, tmp_path: Path) -> None:
    with Store(tmp_path / "answers.jsonl") as store:
        candidates = _candidates(bench := _bench(place, store, Pool()))
    graph = forward(_task(place))
    head = next(n for n in schemes.linear_nodes(graph) if n.name == bench.head)
    for candidate in candidates:
        file = tmp_path / "scheme.toml"
        file.write_text(candidate.scheme("scheme").text(["a comment"]))
        loaded = schemes.load(str(file), graph)
        assert loaded == candidate.scheme("scheme")
        assert schemes.resolve(graph, loaded, head) == candidate.updates(bench.head)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("[]", "at least one"),
        ("3", "whole number"),
        ("[true]", "whole number"),
        ("[1.0]", "whole number"),
        ("[0, 0]", "twice"),
        ("[2, 1]", "out of order"),
        ("[0, 9999]", "no channel 9999"),
        ("[-1]", "no channel -1"),
    ],
)
def test_bad_channels(listed: str, message: str, place: Path, tmp_path: Path) -> None:
    graph = forward(_task(place))
    name = schemes.linear_nodes(graph)[1].name
    file = tmp_path / "scheme.toml"
    for text in (f'[channels]\n"{name}" = {listed}', f'[weights]\n"{name}" = 0.5\n[channels]\n"{name}" = [0]'):
        file.write_text(text)
        with pytest.raises(ModelError) as error:
            schemes.load(str(file), graph)
        assert message in str(error.value) or "both" in str(error.value)


# ---- prices


def test_price_is_the_plan_of_tte_build(place: Path, tmp_path: Path) -> None:
    with Store(tmp_path / "answers.jsonl") as store:
        bench = _bench(place, store, Pool())
        for candidate in _candidates(bench):
            file = tmp_path / "scheme.toml"
            file.write_text(candidate.scheme("scheme").text())
            plan = compile_model(DIGITS, Options(update=str(file), target="dsp")).plan
            found = bench.price([candidate])[0]
            assert found.ram_bytes == plan.arena_bytes + codegen.state_bytes(plan) + RESERVE
            assert found.instructions > 0
            assert bench.least_ram([candidate])[0] <= found.ram_bytes
            bench.life = Life(keep=True, guard=10, replay=4096)
            assert bench.price([candidate])[0].ram_bytes == found.ram_bytes + life_room(plan, bench.life)
            bench.life = Life()


# ---- measurements


def _measure(place: Path, answers: Path, workers: int) -> tuple[list[float], list[float], dict[str, tuple[float, ...]]]:
    pool = Pool(workers)
    try:
        with Store(answers) as store:
            bench = _bench(place, store, pool)
            asked = [(c, s) for c in _candidates(bench) for s in (0, 1)]
            return bench.accuracy(asked, 80), bench.rates(asked[-2:]), dict(bench.fisher())
    finally:
        pool.close()


@needs("cc")
@pytest.mark.filterwarnings("default")
def test_workers_do_not_matter(place: Path, tmp_path: Path) -> None:
    one = _measure(place, tmp_path / "one.jsonl", 1)
    assert all(0 <= a <= 1 for a in one[0])
    assert _measure(place, tmp_path / "two.jsonl", 2) == one
    content = (tmp_path / "one.jsonl").read_bytes()
    (tmp_path / "half.jsonl").write_bytes(content[: len(content) // 2])
    assert _measure(place, tmp_path / "half.jsonl", 1) == one


@pytest.mark.filterwarnings("default")
def test_workers_solve_what_is_no_module_function(place: Path, tmp_path: Path) -> None:
    """`within` hands over closures: they must reach other processes, and answers come in the order of the questions."""
    offset = 10
    with Store(tmp_path / "answers.jsonl") as store:
        pool = Pool(2)
        try:
            found = _bench(place, store, pool).map(lambda x, y: offset + x * y, [(i, 2) for i in range(9)])
        finally:
            pool.close()
    assert found == [10 + 2 * i for i in range(9)]


@needs("cc")
def test_a_question_is_answered_once(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path / "answers.jsonl") as store:
        pool = Pool()
        bench = _bench(place, store, pool, fixed_rate=True)
        candidate = _candidates(bench)[1]
        twice = bench.accuracy([(candidate, 0), (candidate, 0)], 40)
        assert twice[0] == twice[1]
        monkeypatch.setattr(pool, "run", lambda *_: pytest.fail("asked again"))
        assert bench.accuracy([(candidate, 0)], 40) == twice[:1]


@needs("cc")
def test_fisher_is_neither_rounded_away_nor_clipped(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Squared gradients read off steps of another size are about the same."""
    found = []
    for name, share in (("one", 1.0), ("other", 0.5)):
        monkeypatch.setattr(worker, "FISHER_RATE", worker.FISHER_RATE * share)
        with Store(tmp_path / f"{name}.jsonl") as store:
            bench = _bench(place, store, Pool())
            found.append(bench.fisher())
            for layer in bench.layers:
                assert len(found[-1][layer.name]) == layer.channels and len(found[-1][f"{layer.name}/bias"]) == layer.biases
                assert sorted(layer.ranking["fisher"]) == sorted(layer.ranking["random"]) == list(range(layer.channels))
    for layer, values in found[0].items():
        assert max(values) > 0
        assert np.allclose(sum(values), sum(found[1][layer]), rtol=0.1), layer


def test_division_keeps_the_test_set_out(place: Path) -> None:
    parts = division(_task(place))
    assert sorted(parts.order) == list(range(parts.training.stop)) and parts.test.start == parts.training.stop
    assert len(parts.validation) == round(0.2 * parts.training.stop)
    sample = parts.samples(parts.training[:1])[0]
    assert (sample == parts.dataset.train(int(parts.order[parts.training[0]])).x[0]).all()
    assert parts.labels[parts.test.start] == parts.dataset.test(0).label


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [
        ({rate.UP: 1.02, rate.UP + 1: 1.0, rate.UP + 2: 1.5}, rate.UP + 1),
        ({rate.UP: 1.0, rate.UP + 1: 1.02, rate.UP + 2: 1.5}, rate.UP + 1),
        ({rate.UP: 1.0, rate.UP + 1: 1.2}, rate.UP),
        ({i: 9.0 - i for i in range(20)}, rate.UP + rate.DOWN),
        ({i: 9.0 + i for i in range(20)}, 0),
    ],
)
def test_rate_is_the_smallest_that_learns_about_best(losses: dict[int, float], chosen: int) -> None:
    known: dict[int, float] = {}
    while wanted := rate.wanted(known):
        known |= {i: losses.get(i, 9.0) for i in wanted}
    assert rate.choose(known) == chosen
    assert rate.choose(known, 1) == min(known, key=lambda i: known[i])


def test_a_class_of_schemes_has_one_that_stands_for_it() -> None:
    assert rate.representative({"a": (2, 0, 1, 3), "b": (1, 0)}, 0) == (("a", ()), ("b", ()))
    assert rate.representative({"a": (2, 0, 1, 3), "b": (1, 0)}, -1) == (("a", (0, 2)), ("b", (1,)))
    assert rate.representative({"a": (2, 0, 1, 3), "b": (1, 0)}, -2) == (("b", (1,)),)


# ---- the commands


def test_samples_and_epochs_together_are_refused() -> None:
    refused(tte(*_SEARCH, "--epochs", 2), "both --samples and --epochs")


@needs("cc")
def test_search_command(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.toml"
    outcome = tte(*_SEARCH, "--strategy", "bias", "--ram", "40K", "--workers", 1, "--folder", place, "--out", out, "--json")
    assert outcome.status == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["chosen"]["ram_bytes"] <= 40 * 1024 and len(found["test_accuracies"]) == 1
    again = tte(*_SEARCH, "--strategy", "bias", "--ram", "40K", "--workers", 1, "--folder", place, "--out", out, "--json")
    assert again.out == outcome.out
    trained = tte("train-host", DIGITS, "--data", NPZ, "--turn", 90, "--update", out, "--steps", 10, "--folder", place, "--json")
    assert trained.status == 0 and json.loads(trained.out)["steps"] == 10


@needs("cc")
def test_killed_and_resumed(place: Path, tmp_path: Path) -> None:
    # Enough samples that a busy computer does not finish before it is told to stop.
    search = (*_SEARCH, "--samples", 1000, "--strategy", "last-k", "--workers", 1, "--learning-rate", 0.01)
    for folder in ("killed", "whole"):
        if (place / "programs").is_dir():
            shutil.copytree(place / "programs", tmp_path / folder / "programs")
    arguments = [*search, "--folder", tmp_path / "killed"]
    command = [sys.executable, "-m", "tte", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    for how, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        answers = tmp_path / "killed" / "answers.jsonl"
        before = answers.stat().st_size if answers.is_file() else 0
        # Who runs the tests in the background ignores Ctrl-C, and what they start inherits that.
        heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed
        ) as running:
            while not answers.is_file() or answers.stat().st_size < before + 300:
                time.sleep(0.002)
                assert running.poll() is None, running.communicate()
            running.send_signal(how)
            said = running.communicate()[1]
        assert running.returncode == status, said
        assert "Traceback" not in said and ("goes on from them" in said) == (how == signal.SIGINT)
    resumed = tte(*arguments, "--json")
    whole = tte(*search, "--folder", tmp_path / "whole", "--json")
    assert resumed.status == whole.status == 0
    first, second = json.loads(resumed.out), json.loads(whole.out)
    assert {k: v for k, v in first.items() if k != "files"} == {k: v for k, v in second.items() if k != "files"}
    scheme = [(tmp_path / f / "scheme.toml").read_bytes() for f in ("killed", "whole")]
    assert scheme[0] == scheme[1]


def test_search_refuses(place: Path, tmp_path: Path) -> None:
    kept = ("--folder", tmp_path / "kept", "--workers", 1)
    refused(tte(*_SEARCH, *kept, "--ram", "2K"), "the smallest scheme", "bytes of RAM", "limit: 2,048")
    refused(tte(*_SEARCH, *kept, "--instructions", 10), "the smallest scheme", "limit: 10 instructions")
    refused(tte(*_SEARCH, *kept, "--learning-rate", 0), "learning rate")
    refused(tte(*_SEARCH[:6], "--board", "rp2040", *kept, "--instructions", 10), "predicts instructions only")
    other = tmp_path / "other.npz"
    np.savez(other, x=np.zeros((10, 3), np.uint8), y=np.zeros(10, np.int64))
    refused(tte("search", DIGITS, "--data", other, "--board", "stm32f746", *kept), "do not fit the model's input")
    np.savez(other, x=np.zeros((2, 8, 8), np.uint8), y=np.zeros(2, np.int64))
    refused(tte("search", DIGITS, "--data", other, "--board", "stm32f746", *kept), "too few")
    refused(tte("search", DIGITS, "--data", tmp_path / "none.npz", "--board", "stm32f746", *kept), "none.npz")
    refused(tte("search", tmp_path / "none.tflite", "--data", NPZ, "--board", "stm32f746", *kept), "none.tflite")
    refused(tte("train-host", DIGITS, "--data", NPZ, "--update", "none"), "nothing would train")


@needs("cc")
@pytest.mark.parametrize("update", ["full", "some"])
def test_train_host_equals_the_device(update: str, tmp_path: Path) -> None:
    if update == "some":
        names = [n.name for n in schemes.linear_nodes(compile_model(DIGITS, Options()).forward)]
        update = str(tmp_path / "some.toml")
        Path(update).write_text(f'bias = ["{names[-4]}"]\n[channels]\n"{names[-3]}" = [1, 4, 5]\n[weights]\n"{names[-2]}" = 0.5')
    build = tte("build", DIGITS, "--board", "stm32f746", "--update", update, "--out", tmp_path / "build")
    assert build.status == 0, build.err
    course = ("--data", NPZ, "--turn", 90, "--steps", 60, "--seed", 3, "--final-samples", 50, "--eval-samples", 20, "--json")
    device = json.loads(tte("run", tmp_path / "build", "--on", "host", *course).out)
    host = json.loads(tte("train-host", DIGITS, "--update", update, "--folder", tmp_path, *course).out)
    for key in ("accuracy_before", "accuracy_after", "losses", "curve"):
        assert host[key] == device[key]
