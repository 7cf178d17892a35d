"""tte.data and tte.npz: conversions against plain restatements, and every refusal."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tte import npz, resources
from tte.data import Port, load, resize
from tte.errors import DataError

PIXELS = Port((1, 8, 8, 1), 1 / 255, -128)
RGB = Port((1, 8, 8, 3), 1 / 255, -128)
VECTOR = Port((1, 6), 0.1, 3)
RNG = np.random.default_rng(0)
LABELS = np.arange(10) % 3


def images(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def save(folder: Path, **arrays: Any) -> Path:
    path = folder / "data.npz"
    np.savez_compressed(path, **arrays)
    return path


def test_values(tmp_path: Path) -> None:
    """uint8 is p - 128; int8 stays; float is rounded half away from zero and clipped, and each is said."""
    x = images(10, 8, 8, 1)
    data = load(save(tmp_path, x_train=x, y_train=LABELS, x_test=x, y_test=LABELS), PIXELS, classes=3)
    assert np.array_equal(data.train(4).x, x[4:5].astype(int) - 128) and data.test(4).label == 1
    assert "pixels 0..255" in data.notes[0] and "[0, 1]" in data.notes[0]

    x8 = RNG.integers(-128, 128, (10, 6), dtype=np.int8)
    data = load(save(tmp_path, x_train=x8, y_train=LABELS, x_test=x8, y_test=LABELS), VECTOR, classes=3)
    assert np.array_equal(data.train(2).x, x8[2:3]) and "quantised already" in data.notes[0]

    real = np.tile(np.array([0.05, -0.05, 0.04, 100, -100, 1.0]), (10, 1))
    data = load(save(tmp_path, x_train=real, y_train=LABELS, x_test=real, y_test=LABELS), VECTOR, classes=3)
    assert data.train(0).x.tolist() == [[4, 2, 3, 127, -128, 13]]
    assert any("clipped" in note for note in data.notes)


def test_split_is_seeded_and_complete(tmp_path: Path) -> None:
    x = np.arange(100, dtype=np.int8).repeat(6).reshape(100, 6)
    path = save(tmp_path, x=x, y=np.arange(100))
    one, same, other = (load(path, VECTOR, classes=100, seed=s, test_fraction=0.25) for s in (1, 1, 2))
    assert (one.train_count, one.test_count) == (75, 25)
    labels = [one.train(i).label for i in range(75)] + [one.test(i).label for i in range(25)]
    assert sorted(labels) == list(range(100)) and all(one.train(i).x[0, 0] == one.train(i).label for i in range(75))
    assert np.array_equal(one.y_test, same.y_test) and not np.array_equal(one.y_test, other.y_test)
    assert "split by seed 1" in " ".join(one.notes)


@pytest.mark.parametrize(
    ("shape", "port", "said"),
    [
        ((8, 8), PIXELS, ""),
        ((1, 8, 8), PIXELS, ""),
        ((1, 8, 8, 1), PIXELS, ""),
        ((8, 8), RGB, "grey channel repeated 3"),
        ((8, 8, 1), RGB, "grey channel repeated 3"),
        ((5, 5, 3), RGB, "resized from 5x5 to 8x8 (bilinear)"),
        ((32, 16), RGB, "resized from 32x16 to 8x8 (bilinear, stretched)"),
        ((2, 3), VECTOR, "flattened"),
    ],
)
def test_shapes(tmp_path: Path, shape: tuple[int, ...], port: Port, said: str) -> None:
    x = images(10, *shape)
    data = load(save(tmp_path, x_train=x, y_train=LABELS, x_test=x, y_test=LABELS), port, classes=3)
    sample = data.train(0).x
    assert sample.shape == port.shape and sample.dtype == np.int8
    assert said in " ".join(data.notes) and (said or len(data.notes) == 1)
    if "resized" not in said:
        assert np.array_equal(
            sample.reshape(x[0].size, -1),
            np.broadcast_to(x[0].reshape(-1, 1).astype(int) - 128, (x[0].size, sample.size // x[0].size)),
        )


@pytest.mark.parametrize(
    ("source", "target"), [((8, 8), (16, 16)), ((32, 32), (128, 128)), ((33, 20), (7, 9)), ((1, 5), (3, 2))]
)
def test_resize_matches_a_loop_over_pixels(source: tuple[int, int], target: tuple[int, int]) -> None:
    """The definition in exact fractions, at random places; constant images stay constant."""
    image = RNG.integers(-128, 128, (*source, 2), dtype=np.int8)
    out = resize(image, *target)
    for _ in range(20):
        i, j = (int(RNG.integers(n)) for n in target)
        weights = []
        for at, n_in, n_out in ((i, source[0], target[0]), (j, source[1], target[1])):
            scale = max(1.0, n_in / n_out)
            distance = np.abs((at + 0.5) * n_in / n_out - (np.arange(n_in) + 0.5)) / scale
            w = np.maximum(0, 1 - distance)
            weights.append(w / w.sum())
        exact = np.einsum("i,j,ijc->c", *weights, image.astype(float))
        assert np.abs(out[i, j] - exact).max() <= 0.5 + 1e-9
    assert np.all(resize(np.full((*source, 1), -77, np.int8), *target) == -77)


def test_turned(tmp_path: Path) -> None:
    x = images(10, 8, 6)
    port = Port((1, 8, 6, 1), 1 / 255, -128)
    data = load(save(tmp_path, x_train=x, y_train=LABELS, x_test=x, y_test=LABELS), port, classes=3)
    upside_down = data.turned(2)
    assert np.array_equal(upside_down.test(3).x[0, ..., 0], np.rot90(data.test(3).x[0, ..., 0], 2))
    assert "turned by 180" in " ".join(upside_down.notes) and data.turned(4) is data
    quarter = data.turned(1)
    assert quarter.train(0).x.shape == port.shape and "resized from 6x8 to 8x6" in " ".join(quarter.notes)
    with pytest.raises(DataError, match="only images"):
        load(save(tmp_path, x=np.zeros((9, 6)), y=LABELS[:9]), VECTOR, classes=3).turned(1)


def test_mean_squared_error_targets(tmp_path: Path) -> None:
    """Targets of one's own, or the input in the output's parameters; off by at most half an output step."""
    x = RNG.normal(0, 4, (10, 6)).astype(np.float32)
    out = Port((1, 6), 0.25, -5)
    own = load(save(tmp_path, x=x), VECTOR, output=out)
    sample = own.train(0)
    assert sample.target is not None and sample.target.shape == out.shape
    real = 0.1 * (sample.x.astype(int) - 3)
    assert np.abs(0.25 * (sample.target.astype(int) + 5) - real).max() <= 0.125 + 1e-9
    given = load(save(tmp_path, x_train=x, y_train=2 * x, x_test=x, y_test=2 * x), VECTOR, output=out)
    target = given.test(1).target
    assert target is not None and np.abs(0.25 * (target.astype(int) + 5) - 2 * x[1]).max() <= 0.125 + 1e-6


FLOAT = np.zeros((10, 6), np.float32)
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("no arrays", {"z": FLOAT}, "neither x_train"),
    ("no labels", {"x": FLOAT}, "missing, and the model classifies"),
    ("half a test set", {"x_train": FLOAT, "y_train": LABELS, "x_test": FLOAT}, "missing"),
    ("label too high", {"x": FLOAT, "y": LABELS + 1}, "label 3 of sample 2 is out of range"),
    ("label negative", {"x": FLOAT, "y": LABELS - 1}, "label -1 of sample 0"),
    ("one-hot", {"x": FLOAT, "y": np.eye(3)[LABELS]}, "no labels"),
    ("lengths", {"x": FLOAT, "y": LABELS[:9]}, "does not match 10 samples"),
    ("shape", {"x": np.zeros((10, 7)), "y": LABELS}, "do not fit the model's input 6"),
    ("not a number", {"x": np.where(np.arange(60).reshape(10, 6) == 20, np.nan, 0), "y": LABELS}, "sample 3 holds NaN"),
    ("infinite", {"x": np.full((10, 6), np.inf), "y": LABELS}, "sample 0 holds NaN or infinity"),
    ("int16", {"x": np.zeros((10, 6), np.int16), "y": LABELS}, "int16 is not understood"),
    ("objects", {"x": np.array([{}] * 10, object), "y": LABELS}, "object is not understood"),
    ("empty", {"x": np.zeros((0, 6)), "y": LABELS[:0]}, "holds no samples"),
    ("single", {"x": FLOAT[:1], "y": LABELS[:1]}, "cannot be split"),
]


@pytest.mark.parametrize(("arrays", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refusals(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = save(tmp_path, **arrays)
    with pytest.raises(DataError) as error:
        load(path, VECTOR, classes=3)
    assert message in str(error.value) and str(path) in error.value.where and (error.value.remedy or error.value.limit)


def test_channels_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "absent.npz", VECTOR, classes=3)
    with pytest.raises(DataError, match="4 channels"):
        load(save(tmp_path, x=images(10, 8, 8, 4), y=LABELS), RGB, classes=3)


def test_damaged_files(tmp_path: Path) -> None:
    """Truncated, bit-flipped or foreign bytes: a DataError or the data, nothing else; bombs are not unpacked."""
    whole = save(tmp_path, x=images(10, 8, 8), y=LABELS).read_bytes()
    path = tmp_path / "bad.npz"
    cases = [b"", b"hello", whole[:-30], *(whole[: int(n)] for n in RNG.integers(0, len(whole), 60))]
    for _ in range(600):
        flipped = bytearray(whole)
        flipped[int(RNG.integers(len(whole)))] ^= 1 << int(RNG.integers(8))
        cases.append(bytes(flipped))
    refused = 0
    for content in cases:
        path.write_bytes(content)
        try:
            load(path, PIXELS, classes=3)
        except DataError:
            refused += 1
    assert refused > 60

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 8, 8)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header.getvalue())
    with pytest.raises(DataError, match="not a readable"):
        npz.read(path, ("x",))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
        for _ in range(70):
            member.write(bytes(1 << 20))
    with pytest.raises(DataError, match="unpacks to more"):
        npz.read(path, ("x",))


def test_demo_files() -> None:
    """The shipped images fit the shipped model's input, split 1,297 to 500, all ten digits on both sides."""
    demo = resources.path("demo")
    data = load(demo / "digits.npz", PIXELS, classes=10)
    assert (data.train_count, data.test_count) == (1297, 500)
    assert set(data.y_train) == set(data.y_test) == set(range(10))  # type: ignore[arg-type]
    assert (demo / "digits.tflite").stat().st_size < 100_000
