"""What a search leaves behind, and what `--update auto` makes of it."""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_bench import HEAD_RAM, Synthetic

from tte import board as boards
from tte import resources
from tte.compiler import Compiled, Options, compile_model
from tte.ir import Graph
from tte.search import auto
from tte.search.candidate import Candidate, Found, Layer, Limits, Measured, Price
from tte.search.result import Evidence, comments, nondominated, scheme_of, write
from tte.search.strategies import STRATEGIES
from tte.training import head as heads
from tte.training.scheme import LayerUpdate, channels_by_norm, linear_nodes, load, resolve

_MODEL = resources.path("demo") / "digits.tflite"
_LIMITS = Limits(HEAD_RAM + 12_000, None, 100, 2)
_FACTS = Evidence(
    "digits.tflite", "0" * 64, "digits.npz", 0, "auto", 3, _LIMITS, "a board", 0.01, "r4", 200
)  # fmt: skip


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return compile_model(_MODEL, Options(update="last"))


def _layers(graph: Graph) -> tuple[Layer, ...]:
    """The model's layers; "random" ranks them backwards."""
    found = []
    for i, n in enumerate(linear_nodes(graph)):
        norm = channels_by_norm(graph, n)
        found.append(Layer(n.name, i, len(norm), {"norm": norm, "random": norm[::-1]}, 1, 1, 1))
    return tuple(found)


def _candidate(layers: tuple[Layer, ...]) -> Candidate:
    """Biases; weights whole, the strongest third, and others."""
    parts = [(), tuple(sorted(layers[3].ranking["norm"][:5])), tuple(sorted(layers[4].ranking["random"][:3]))]
    chosen = sorted((x.name, p) for x, p in zip(layers[2:5], parts, strict=True))
    return Candidate(tuple(sorted(x.name for x in layers[1:4])), tuple(chosen))


def _found(candidate: Candidate, accuracy: float = 0.75) -> Found:
    return Found(candidate, (), (Measured("auto", candidate, Price(30_000, 1_000_000), (accuracy, accuracy)),), ("a note\n[x]",))


def test_what_is_written_loads_as_the_same_candidate(tmp_path: Path, compiled: Compiled) -> None:
    graph, head = compiled.forward, heads.find(compiled.forward).node
    assert head is not None
    layers = _layers(graph)
    candidate = _candidate(layers)
    paths = write(tmp_path / "found.toml", _found(candidate), layers, _FACTS)
    assert [p.name for p in paths] == ["found.toml", "found.json", "found-layers.png", "found-front.png"]
    assert all(p.stat().st_size for p in paths)
    assert len(list(tmp_path.iterdir())) == 4
    scheme = load(str(paths[0]), graph)
    assert resolve(graph, scheme, head) == candidate.updates(head.name)
    assert len(scheme.weights) == 2 and len(scheme.channels) == 1
    told = auto.recorded(paths[0])
    assert told["model-sha256"] == "0" * 64 and float(told["accuracy"]) == 0.75
    log = json.loads(paths[1].read_text())
    assert log["chosen"]["ram_bytes"] == 30_000 and log["limits"]["seeds"] == 2


def test_no_comment_becomes_content(compiled: Compiled) -> None:
    lines = comments(_found(Candidate()), replace(_FACTS, data="a\nbias = 3", model="b\rc"))
    text = scheme_of(Candidate(), (), "x").text(lines)
    assert tomllib.loads(text) == {}


@pytest.mark.parametrize("name", ["auto", "fisher", "bias"])
def test_pictures_of_every_kind_of_contribution(name: str, tmp_path: Path) -> None:
    bench = Synthetic(9, noise=0.01)
    found = STRATEGIES[name](bench, _LIMITS, 0)
    baselines = STRATEGIES["last-k"](bench, _LIMITS, 0).front + STRATEGIES["bias"](bench, _LIMITS, 0).front
    paths = write(tmp_path / "x.toml", found, bench.layers, _FACTS, baselines)
    assert paths[2].read_bytes()[1:4] == paths[3].read_bytes()[1:4] == b"PNG"


def test_nondominated() -> None:
    def point(ram: int, accuracy: float) -> Measured:
        return Measured("", Candidate(), Price(ram, 0), (accuracy,))

    points = [point(3, 0.5), point(1, 0.4), point(2, 0.4), point(4, 0.45), point(3, 0.6)]
    assert nondominated(points) == [points[1], points[4]]


class TestAuto:
    """`--update auto`."""

    board = boards.load("mps2-an500")

    def chosen(self, model: Path, ram: int | None = None, update: str = "auto") -> tuple[dict[str, LayerUpdate], list[str]]:
        said: list[str] = []
        with auto.resolved(model, self.board, Options(update=update), ram, said.append) as options:
            return dict(compile_model(model, options).updates), said

    @pytest.fixture
    def model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.delenv(auto.FOLDER, raising=False)
        path = tmp_path / "m.tflite"
        path.write_bytes(_MODEL.read_bytes())
        return path

    def store(self, path: Path, model: Path, candidate: Candidate, layers: tuple[Layer, ...], accuracy: float = 0.7) -> None:
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        facts = replace(_FACTS, model_hash=digest)
        text = scheme_of(candidate, layers, "x").text(comments(_found(candidate, accuracy), facts))
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def test_other_schemes_stay_as_they_are(self, model: Path) -> None:
        updates, said = self.chosen(model, update="last")
        assert len(updates) == 1 and not said

    def test_a_scheme_beside_the_model(self, model: Path, compiled: Compiled) -> None:
        layers = _layers(compiled.forward)
        candidate = _candidate(layers)
        self.store(model.with_name("m.auto.toml"), model, candidate, layers)
        updates, said = self.chosen(model)
        assert set(updates) >= {*candidate.biases, *dict(candidate.weights)}
        assert "m.auto.toml, found by a search (70.0 %" in said[0]

    def test_another_models_scheme_is_not_taken(self, model: Path, compiled: Compiled) -> None:
        layers = _layers(compiled.forward)
        self.store(model.with_name("m.auto.toml"), model, _candidate(layers), layers)
        model.write_bytes(model.read_bytes() + b"\0")
        assert "not found for this model's content" in self.chosen(model)[1][0]

    def test_the_most_accurate_stored_scheme_that_fits(
        self, model: Path, compiled: Compiled, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        layers, folder = _layers(compiled.forward), model.parent / "schemes"
        monkeypatch.setenv(auto.FOLDER, str(folder))
        large = Candidate((), tuple(sorted((x.name, ()) for x in layers[:-1])))
        self.store(folder / "small.toml", model, Candidate((layers[8].name,)), layers, 0.6)
        self.store(folder / "large.toml", model, large, layers, 0.8)
        (folder / "other.toml").write_text("bias = []\n")
        assert "large.toml" in self.chosen(model)[1][-1]
        said = self.chosen(model, 30_000)[1]
        assert "large.toml needs" in said[0] and "small.toml, found" in said[1]

    def test_the_rule_keeps_to_the_memory(self, model: Path, compiled: Compiled) -> None:
        sizes = []
        for ram in (18_000, 26_000, None):
            updates, said = self.chosen(model, ram)
            assert "by rule" in said[-1]
            layers = {x.name: x.channels for x in _layers(compiled.forward)}
            sizes.append(sum((len(u.channels) or layers[n]) if u.weights else 0.1 for n, u in updates.items()))
        assert 1 <= sizes[0] < sizes[1] <= sizes[2]
