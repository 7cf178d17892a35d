"""The studies' features and splits; their networks need TensorFlow and are made by hand."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
from nets import shared
from studies import activity, keywords, making

from tte.data import Port
from tte.errors import DataError, ToolchainError

SPOKEN, WORN = "spoken_digits_8khz.npz", "uci_har_test.npz"


def tone(hertz: float) -> np.ndarray:
    return (8000 * np.sin(2 * np.pi * hertz * np.arange(8000) / 8000)).astype(np.int16)


def test_a_tone_is_loudest_in_the_band_around_it() -> None:
    weights = keywords.bands()
    assert weights.shape == (257, 32) and weights.min() == 0 and (weights.max(0) > 0).all()
    for hertz in (200, 500, 1000, 3000):
        found = keywords.features(tone(hertz)[np.newaxis])
        assert found.shape == (1, 39, 32, 1) and found.dtype == np.float32
        loudest = found[0, :, :, 0].argmax(1)
        assert (loudest == weights[round(hertz * 512 / 8000)].argmax()).all()


def test_silence_is_the_floor_and_finite() -> None:
    assert np.allclose(keywords.features(np.zeros((1, 8000), np.int16)), np.log(keywords.FLOOR))


def test_features_of_real_speech_are_the_same_each_time() -> None:
    with np.load(shared("data", SPOKEN)) as data:
        sound = data["x"][:20]
    once = keywords.features(sound)
    assert np.isfinite(once).all() and once.std() > 1
    np.testing.assert_array_equal(once, keywords.features(sound))
    np.testing.assert_array_equal(once[7:8], keywords.features(sound[7:8]))


@pytest.mark.parametrize("sixth", ["nicolas", "theo"])
def test_takes_of_a_speaker_are_on_one_side(sixth: str) -> None:
    with np.load(shared("data", SPOKEN)) as data:
        speaker, take, y = data["speaker"], data["take"], data["y"]
    found = keywords.parts(speaker, take, y, sixth)
    every = np.concatenate([found.base, found.held, found.learn, found.test])
    assert np.array_equal(np.sort(every), np.arange(3000))
    assert [len(p) for p in (found.base, found.held, found.learn, found.test)] == [2250, 250, 250, 250]
    assert not (speaker[found.base] == sixth).any() and not (speaker[found.held] == sixth).any()
    assert (speaker[found.learn] == sixth).all() and (speaker[found.test] == sixth).all()
    assert take[found.base].min() == take[found.held].max() + 1
    assert take[found.test].min() == take[found.learn].max() + 1
    assert np.bincount(y[found.learn]).tolist() == [25] * 10


def test_an_unknown_speaker_is_named() -> None:
    with pytest.raises(DataError, match="nobody is called ada"):
        keywords.parts(np.array(["eve"]), np.array([0]), np.array([0]), "ada")


def test_augmentation_keeps_shape_and_range() -> None:
    rng = np.random.default_rng(0)
    for x, make, limit in (
        (rng.uniform(-3, 3, (4, 39, 32, 1)), keywords.augment, keywords.LIMIT),
        (rng.uniform(-4, 4, (4, 128, 1, 9)), activity.augment, activity.LIMIT),
    ):
        found = make(x.astype(np.float32), rng)
        assert found.shape == x.shape and found.dtype == np.float32 and np.abs(found).max() <= limit


def test_turning_is_a_proper_rotation_of_each_sensor() -> None:
    matrix = activity.turned(np.tile(np.eye(3, dtype=np.float32), (1, 1, 3)).reshape(1, 3, 9))[0]
    for sensor in range(3):
        part = matrix[:, 3 * sensor : 3 * sensor + 3]
        assert np.linalg.det(part) == 1
        np.testing.assert_array_equal(np.array([1, 2, 3]) @ part, [-2, 3, -1])


def test_no_window_of_one_part_overlaps_another() -> None:
    with np.load(shared("data", WORN)) as data:
        x, y = data["x"], data["y"]
    found = activity.parts(y)
    every = np.concatenate([found.base, found.learn, found.test])
    assert np.array_equal(np.sort(every), np.arange(len(y)))
    assert [len(p) for p in (found.base, found.learn, found.test)] == [1521, 727, 699]
    halves: dict[bytes, set[str]] = {}  # a half window's samples, and the parts that hold them
    for name in ("base", "learn", "test"):
        for i in getattr(found, name):
            for half in (x[i, :64], x[i, 64:]):
                halves.setdefault(half.tobytes(), set()).add(name)
    assert len(halves) < 2 * len(y) - 2000, "windows do overlap within a part"
    assert all(len(names) == 1 for names in halves.values())
    assert all(set(y[p]) == set(range(6)) for p in (found.base, found.learn, found.test))


def test_scales_are_blind_to_the_turn() -> None:
    x = np.random.default_rng(0).normal(0, [1, 2, 3, 4, 5, 6, 7, 8, 9], (5, 128, 9)).astype(np.float32)
    scale = activity.scales(x)
    assert scale.shape == (9,) and np.array_equal(scale[::3].repeat(3), scale)
    np.testing.assert_allclose(activity.scales(activity.turned(x)), scale)
    assert activity.features(x, scale).shape == (5, 128, 1, 9)


def test_quantised_rounds_and_saturates() -> None:
    found = making.quantised(np.array([-9, 0, 0.26, 9], np.float32), Port((1, 4), 0.05, -1))
    assert found.dtype == np.int8 and found.tolist() == [-128, -1, 4, 127]


def test_steps_visit_each_sample_once_a_pass() -> None:
    steps = list(making.courses(10, 0.5, 2, 0))
    assert sorted(i for i, _ in steps[:10]) == sorted(i for i, _ in steps[10:]) == list(range(10))
    assert [i for i, _ in steps[:10]] != [i for i, _ in steps[10:]]
    assert 0 < steps[-1][1] < max(rate for _, rate in steps) <= 0.5


def test_without_tensorflow_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any, **more: Any) -> Any:
        if name == "tensorflow":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ToolchainError, match=r"TensorFlow(.|\n)*pip install '\.\[models\]'"):
        making.tensorflow()


def test_a_file_without_the_arrays_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "other.npz"
    np.savez(path, x=np.zeros(3))
    with pytest.raises(DataError, match="holds no array y, speaker"):
        making.arrays(path, ("x", "y"), ("speaker",))
