"""The six shared models: the reference executor equals LiteRT's reference kernels on every tensor."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from oracle import Oracle
from tflite_cases import SHARED, SHARED_MODELS, shared_model

from tte.frontend import tflite
from tte.frontend.schema import read
from tte.ir import Graph
from tte.reference import Executor


@cache
def loaded(name: str) -> tuple[Graph, dict[int, str], Oracle]:
    data = shared_model(name)
    return tflite.load(SHARED / f"{name}.tflite"), tflite.tensor_names(read(data, name)), Oracle(data)


def compare(name: str, x: np.ndarray) -> int:
    """Runs both; gives how many activations were compared."""
    graph, names, oracle = loaded(name)
    want, have = oracle.run([x]), Executor(graph).run({graph.inputs[0]: x})
    compared = {n: i for i, n in names.items() if n in have}
    assert set(compared) == set(have), "the model has activations that the file does not"
    for tensor, index in compared.items():
        np.testing.assert_array_equal(have[tensor], want[index], f"{name}: {tensor}")
    return len(compared)


def shared_data(file: str, array: str, count: int) -> np.ndarray:
    path = SHARED.parent / "data" / f"{file}.npz"
    if not path.exists():
        pytest.skip("../shared/data is absent")
    with np.load(path) as data:
        return data[array][:count]


def spectrogram(samples: np.ndarray, frames: int, bands: int) -> np.ndarray:
    """Logarithmic band energies [frames, bands] of a recording, spread over int8."""
    pieces = samples[: len(samples) // frames * frames].reshape(frames, -1).astype(float)
    power = np.abs(np.fft.rfft(pieces * np.hanning(pieces.shape[1]), 4 * bands)) ** 2
    energy = np.log(power[:, 1 : 2 * bands + 1].reshape(frames, bands, 2).sum(2) + 1)
    return np.rint((energy - energy.min()) / np.ptp(energy) * 255 - 128).astype(np.int8)


def real_inputs(name: str, count: int) -> list[np.ndarray]:
    """Images from CIFAR-10 (enlarged), or spectrograms of spoken digits, as int8 of the model's input shape."""
    shape = loaded(name)[0].type(loaded(name)[0].inputs[0]).shape
    if len(shape) == 4 and shape[3] == 3:
        factor = shape[1] // 32
        images = shared_data("cifar10_5k", "x_test", count).astype(np.int16) - 128
        return [i.repeat(factor, 0).repeat(factor, 1).astype(np.int8)[None] for i in images]
    frames, bands = (shape[1], shape[2]) if len(shape) == 4 else (5, shape[1] // 5)
    sounds = shared_data("spoken_digits_8khz", "x", count)
    return [spectrogram(s, frames, bands).reshape(shape) for s in sounds]


@pytest.mark.parametrize("name", SHARED_MODELS)
def test_random_inputs(name: str) -> None:
    graph, _, oracle = loaded(name)
    rng = np.random.default_rng(0)
    for _ in range(2):
        assert compare(name, oracle.random_inputs(rng)[0]) >= len(graph.nodes)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED_MODELS)
def test_many_inputs(name: str) -> None:
    """Eight random inputs, the extremes, and eight real ones."""
    graph, _, oracle = loaded(name)
    rng = np.random.default_rng(1)
    shape = graph.type(graph.inputs[0]).shape
    random = [oracle.random_inputs(rng)[0] for _ in range(8)]
    extreme = [np.full(shape, v, np.int8) for v in (-128, 127)]
    for x in [*random, *extreme, *real_inputs(name, 8)]:
        compare(name, x)


def test_names_match_the_schemes() -> None:
    """Layers are called as the update schemes call them."""
    names = {n.name for n in loaded("mcunet-5fps")[0].nodes}
    assert {"stem", "block8/pointwise1", "block13/depthwise", "classifier"} <= names
