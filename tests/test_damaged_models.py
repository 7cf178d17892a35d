"""Damaged and senseless models through the whole compiler: only TteError may come of them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from c_harness import Bench, needs
from test_random_graphs import calls
from tflite_builder import GraphBuilder

from tte import resources
from tte.codegen import model_hash
from tte.compiler import Options, compile_model
from tte.errors import TteError
from tte.frontend.schema import RawModel, write
from tte.inspection import inspect

DIGITS = resources.path("demo") / "digits.tflite"


def small(folder: Path) -> RawModel:
    b = GraphBuilder(3)
    x = b.conv_2d(b.input((1, 6, 6, 2)), 4, activation="RELU")
    b.activation("SOFTMAX", b.fully_connected(b.mean(x, (1, 2)), 3))
    return b.model()


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    """A few bits or bytes changed, a piece cut out, or the end cut off."""
    mutant = bytearray(data)
    kind = random.integers(5)
    if kind == 0:
        return bytes(mutant[: random.integers(len(mutant))])
    if kind == 1:
        at = int(random.integers(len(mutant)))
        del mutant[at : at + int(random.integers(1, 40))]
        return bytes(mutant)
    for _ in range(int(random.integers(1, 6))):
        at = int(random.integers(len(mutant)))
        if kind == 2:
            mutant[at] ^= 1 << int(random.integers(8))
        elif kind == 3:
            mutant[at] = int(random.choice([0, 1, 127, 128, 255]))
        else:
            value = int(random.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 65536]))
            mutant[at : at + 4] = value.to_bytes(4, "little")
    return bytes(mutant)


def _survive(count: int, seed: int, folder: Path) -> int:
    """Compiles damaged models; only TteError may come of it. Gives how many were refused."""
    random = np.random.default_rng(seed)
    sources = [write(small(folder)), DIGITS.read_bytes()]
    # Weights can hold anything: what is damaged should be the structure, mostly.
    weights = [np.array(sorted(_structure(s))) for s in sources]
    file = folder / "damaged.tflite"
    refused_count = 0
    for i in range(count):
        source = i % 4 == 3
        data = sources[source]
        mutant = bytearray(data)
        if random.random() < 0.7:
            for _ in range(int(random.integers(1, 4))):
                at = int(random.choice(weights[source]))
                mutant[at] = int(random.choice([mutant[at] ^ 1 << int(random.integers(8)), 0, 255, random.integers(256)]))
            file.write_bytes(bytes(mutant))
        else:
            file.write_bytes(damaged(data, random))
        update = ("full", "bias", "last", "none")[int(random.integers(4))]
        try:
            compile_model(file, Options(update=update, classes=int(random.choice([0, 0, 4]))))
        except TteError as error:
            assert str(error)
            refused_count += 1
        except Exception as error:
            keep = folder / f"crash-{seed}-{i}.tflite"
            keep.write_bytes(file.read_bytes())
            raise AssertionError(f"{keep} with --update {update}: {type(error).__name__}: {error}") from error
    return refused_count


def _structure(data: bytes) -> set[int]:
    """Offsets of bytes outside long constant data: those near zeros and small numbers, where tables are."""
    raw = np.frombuffer(data, np.uint8)
    near = np.convolve(raw == 0, np.ones(9), "same") >= 3
    return set(np.flatnonzero(near).tolist())


def test_damaged_models(tmp_path: Path) -> None:
    assert _survive(400, 1, tmp_path) > 100


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 108))
def test_many_damaged_models(seed: int, tmp_path: Path) -> None:
    _survive(1500, seed, tmp_path)


def test_scales_that_mean_nothing(tmp_path: Path) -> None:
    """Quantisation by 0, infinity and the like is refused, not divided by; the extremes work or are refused."""
    raw = small(tmp_path)
    data, file = write(raw), tmp_path / "scales.tflite"
    tried = 0
    for value in (0.0, np.inf, np.nan, -1.0, 1e-38, 1e-45, 3e38):
        for scale in {np.float32(t.scales[0]) for t in raw.subgraph.tensors if t.scales is not None and len(t.scales)}:
            file.write_bytes(data.replace(scale.tobytes(), np.float32(value).tobytes()))
            for update in ("none", "full"):
                tried += 1
                try:
                    compile_model(file, Options(update=update))
                except TteError:
                    continue
                assert value > 0 and np.isfinite(value), f"scale {scale} -> {value} and --update {update} works"
    assert tried > 40


def test_sizes_beyond_reason(tmp_path: Path) -> None:
    """A padding or dilation that asks for gigabytes is refused, quickly."""
    b = GraphBuilder(0)
    b.fully_connected(b.mean(b.pad(b.input((1, 4, 4, 1)), [(0, 0), (1 << 14, 0), (1 << 14, 0), (0, 0)]), (1, 2)), 2)
    c = GraphBuilder(0)
    c.fully_connected(c.mean(c.conv_2d(c.input((1, 4, 4, 1)), 2, dilation=(1 << 28, 1)), (1, 2)), 2)
    for builder in (b, c):
        (tmp_path / "large.tflite").write_bytes(builder.build())
        for update in ("none", "full"):
            with pytest.raises(TteError):
                compile_model(tmp_path / "large.tflite", Options(update=update))
        assert inspect(tmp_path / "large.tflite").operators


@needs("gcc")
def test_damaged_models_compute_the_same(tmp_path: Path) -> None:
    """What is damaged and still accepted gives C that neither overflows nor strays, and equals the reference."""
    random = np.random.default_rng(5)
    data, file, plans, made = write(small(tmp_path)), tmp_path / "d.tflite", {}, {}
    structure = np.array(sorted(_structure(data)))
    for i in range(2000):
        mutant = bytearray(data)
        for _ in range(int(random.integers(1, 4))):
            mutant[int(random.choice(structure))] = int(random.choice([0, 127, 128, 255, random.integers(256)]))
        file.write_bytes(mutant)
        with contextlib.suppress(TteError):
            result = compile_model(file, Options(update="full"))
            plans.setdefault(model_hash(result.plan), (f"d{i}", result))
        if len(plans) == 25:
            break
    made = dict(plans.values())
    Bench({name: c.plan for name, c in made.items()}, tmp_path).check({name: calls(c.plan, 1) for name, c in made.items()})
