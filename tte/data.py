"""Samples for training and evaluation: from an untrusted .npz to int8 tensors of the model's shape.

The file holds `x_train, y_train, x_test, y_test`, or `x, y`, which a seed splits. Samples are quantised when the file
is loaded and resized one by one when asked for: 5,000 CIFAR images at 128x128x3 would be 245 MB, as stored they are 15.
Everything after the quantisation is exact integer arithmetic, so every machine feeds its device the same bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tte import npz
from tte.errors import DataError

Int8 = NDArray[np.int8]

_CHUNK = 256  # samples quantised at a time: bounds the float64 copies


@dataclass(frozen=True)
class Port:
    """A model's int8 input or output: shape with a leading batch of 1, real value = scale * (q - zero_point)."""

    shape: tuple[int, ...]
    scale: float
    zero_point: int

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest real value that int8 can hold here."""
        return self.scale * (-128 - self.zero_point), self.scale * (127 - self.zero_point)


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample: `x` int8 in the model's input shape; `label` (0 with a target); `target` int8 as the output."""

    x: Int8
    label: int
    target: Int8 | None


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples for one model.

    Attributes:
        x_train, x_test: int8 [n, ...], quantised, not resized yet; images [n, height, width, channels].
        y_train, y_test: int64 [n] labels; or int8 [n, output elements] targets; None: the target is the input itself.
        input, output: the model's input, and its output for a mean squared error model (None: classification).
        classes: number of classes, None for a mean squared error model.
        notes: every conversion, one sentence for people each.
    """

    x_train: Int8
    y_train: NDArray[Any] | None
    x_test: Int8
    y_test: NDArray[Any] | None
    input: Port
    output: Port | None
    classes: int | None
    notes: tuple[str, ...]

    @property
    def train_count(self) -> int:
        """Number of samples to train on."""
        return len(self.x_train)

    @property
    def test_count(self) -> int:
        """Number of held-out samples."""
        return len(self.x_test)

    def train(self, index: int) -> Sample:
        """Training sample `index`."""
        return self._sample(self.x_train, self.y_train, index)

    def test(self, index: int) -> Sample:
        """Held-out sample `index`."""
        return self._sample(self.x_test, self.y_test, index)

    def turned(self, quarter_turns: int) -> Dataset:
        """The same samples seen by a camera turned by `quarter_turns` x 90 degrees (images counter-clockwise).

        Raises:
            DataError: if the samples are no images, or targets would have to turn with them.
        """
        turns = quarter_turns % 4
        if turns == 0:
            return self
        if len(self.input.shape) != 4:
            raise DataError("only images can be turned", limit=f"the model's input is {_dims(self.input.shape[1:])}")
        if self.output is not None and self.y_train is not None:
            raise DataError(
                "images with targets of their own cannot be turned", remedy="turn x and y in the file itself"
            )
        x_train, x_test = (np.rot90(x, turns, axes=(1, 2)) for x in (self.x_train, self.x_test))
        notes = [*self.notes, f"x: images turned by {90 * turns} degrees counter-clockwise"]
        for x in (x_train, x_test):
            notes += _Fit.plan(x.shape[1:], self.input.shape[1:]).notes
        return dataclasses.replace(self, x_train=x_train, x_test=x_test, notes=tuple(dict.fromkeys(notes)))

    def _sample(self, xs: Int8, ys: NDArray[Any] | None, index: int) -> Sample:
        fit = _Fit.plan(xs.shape[1:], self.input.shape[1:])
        x = fit(xs[index]).reshape(self.input.shape)
        if self.output is None:
            assert ys is not None
            return Sample(x, int(ys[index]), None)
        flat = ys[index] if ys is not None else _requantise_table(self.input, self.output)[x.astype(np.int16) + 128]
        return Sample(x, 0, np.asarray(flat, np.int8).reshape(self.output.shape))


def load(
    path: Path,
    model_input: Port,
    *,
    classes: int | None = None,
    output: Port | None = None,
    seed: int = 0,
    test_fraction: float = 0.2,
    inputs_only: bool = False,
) -> Dataset:
    """Read samples for a model.

    Args:
        path: an .npz with `x_train, y_train, x_test, y_test`, or `x, y`. x is float (real values), int8 (quantised
            already) or uint8 (pixels, 0..255 mapped linearly onto the model's input range), channels last.
        model_input: the model's input.
        classes: number of classes; y holds labels 0..classes-1. Exactly one of `classes` and `output` is given.
        output: output of a mean squared error model; y holds targets, or is absent: then each sample is its own target.
        seed: splits `x, y`.
        test_fraction: share of `x, y` that is held out, above 0 and below 1.
        inputs_only: no y is looked at (labels are 0), and `x` is held out whole, in the file's order.

    Raises:
        DataError: a missing or corrupt file or array, a wrong shape or type, a label out of range, NaN, infinity.
    """
    if (classes is None) == (output is None):
        raise ValueError("give either classes or output")
    if not 0 < test_fraction < 1:
        raise DataError("the held-out share must lie between 0 and 1", limit=f"it is {test_fraction:g}")
    arrays = npz.read(path, ("x_train", "y_train", "x_test", "y_test", "x", "y"))
    said: list[str] = []
    halves = ("train", "test")
    names = {half: (f"x_{half}", f"y_{half}") for half in halves}
    if not {"x_train", "x_test"} <= arrays.keys():
        if "x" not in arrays:
            raise _bad(
                path,
                "",
                f"neither x_train and x_test, nor x, among its arrays: {', '.join(arrays) or 'none'}",
                "name the arrays x_train, y_train, x_test, y_test, or x, y",
            )
        names = dict.fromkeys(halves, ("x", "y"))
    xs: dict[str, Int8] = {}
    ys: dict[str, NDArray[Any] | None] = {}
    for half, (x_name, y_name) in names.items():
        if x_name == "x" and half == "test":
            continue
        x = arrays[x_name]
        if x.ndim < 2 or 0 in x.shape:
            raise _bad(path, x_name, f"shape {_dims(x.shape)} holds no samples", "the first dimension counts samples")
        y = None if inputs_only else arrays.get(y_name)
        if y is not None and (y.ndim == 0 or len(y) != len(x)):
            raise _bad(path, y_name, f"{_dims(y.shape)} does not match {len(x)} samples in {x_name}", "one entry a sample")
        fit = _fit_of(path, x_name, x.shape[1:], model_input)
        xs[half] = _quantise(path, x_name, x, model_input, said, "input").reshape(len(x), *fit.stored)
        said += fit.notes
        if inputs_only:
            ys[half] = np.zeros(len(x), np.int64)
        elif classes is not None:
            ys[half] = _labels(path, y_name, y, classes)
        else:
            assert output is not None
            ys[half] = _targets(path, y_name, y, output, math.prod(fit.shape), said)
    if "test" not in xs and inputs_only:
        xs["test"], ys["test"] = xs["train"], ys["train"]
    elif "test" not in xs:
        said.append(_split(xs, ys, seed, test_fraction, path))
    if (ys["train"] is None) != (ys["test"] is None):
        raise _bad(path, "", "only one of y_train and y_test is there", "give both, or neither")
    return Dataset(
        xs["train"], ys["train"], xs["test"], ys["test"], model_input, output, classes, tuple(dict.fromkeys(said))
    )


def _split(xs: dict[str, Int8], ys: dict[str, NDArray[Any] | None], seed: int, fraction: float, path: Path) -> str:
    """Move a seeded share of the one set into xs["test"], ys["test"]; returns the note."""
    count = len(xs["train"])
    held = max(1, round(count * fraction))
    if held >= count:
        raise _bad(
            path, "x", f"{count} samples cannot be split", f"a held-out share of {fraction:g} leaves none to learn"
        )
    order = np.random.default_rng(seed).permutation(count)
    x, y = xs["train"], ys["train"]
    for half, chosen in (("test", order[:held]), ("train", order[held:])):
        xs[half], ys[half] = x[chosen], None if y is None else y[chosen]
    return f"x, y split by seed {seed}: {count - held:,} samples to learn from, {held:,} held out"


# --- values ---------------------------------------------------------------------------------------------------------


def _quantise(path: Path, name: str, x: NDArray[Any], port: Port, said: list[str], role: str) -> Int8:
    """Real values, pixels or int8 values, as int8 in `port`'s parameters; same shape. Says what it did."""
    low, high = port.range
    what = f"{name.split('_')[0]}: "
    if x.dtype == np.int8:
        said.append(f"{what}int8 values taken as quantised already")
        return x.astype(np.int8, copy=False)
    if x.dtype == np.uint8:
        said.append(
            f"{what}pixels 0..255 mapped linearly onto the model's {role} range "
            f"[{low:.4g}, {high:.4g}] (int8 value = pixel - 128)"
        )
        shifted: Int8 = np.bitwise_xor(x, np.uint8(128)).view(np.int8)  # p - 128 modulo 256
        return shifted
    if x.dtype.kind != "f":
        raise _bad(
            path,
            name,
            f"type {x.dtype} is not understood",
            "store float (real values), int8 (quantised) or uint8 (pixels)",
        )
    result = np.empty(x.shape, np.int8)
    clipped = 0
    for start in range(0, len(x), _CHUNK):
        real = x[start : start + _CHUNK].astype(np.float64)
        if not np.isfinite(real).all():
            bad = start + int(np.argwhere(~np.isfinite(real))[0][0])
            raise _bad(path, name, f"sample {bad} holds NaN or infinity", "remove or repair it")
        steps = np.abs(real) / port.scale
        q = np.copysign(np.floor(steps + 0.5), real) + port.zero_point
        clipped += int(((q < -128) | (q > 127)).sum())
        result[start : start + _CHUNK] = np.clip(q, -128, 127)
    said.append(
        f"{what}real values quantised with the model's {role} parameters (scale {port.scale:.6g}, "
        f"zero point {port.zero_point})"
    )
    if clipped:
        said.append(
            f"{name}: {100 * clipped / x.size:.2g} % of the values lie outside the model's {role} range "
            f"[{low:.4g}, {high:.4g}] and were clipped"
        )
    return result


def _labels(path: Path, name: str, y: NDArray[Any] | None, classes: int) -> NDArray[np.int64]:
    if y is None:
        raise _bad(path, name, "missing, and the model classifies", "give one label (an integer) a sample")
    if y.dtype.kind not in "iu" or y.size != len(y):
        raise _bad(
            path, name, f"{y.dtype} {_dims(y.shape)} are no labels", "give one integer a sample, not one-hot rows"
        )
    flat = y.reshape(-1)
    wrong = np.flatnonzero((flat < 0) | (flat >= classes))
    if len(wrong):
        raise DataError(
            f"label {int(flat[wrong[0]])} of sample {int(wrong[0])} is out of range",
            where=f"{path}: {name}",
            limit=f"the model has {classes} classes, 0..{classes - 1}",
            remedy="renumber the labels, or build with a head of the right size (--classes)",
        )
    return flat.astype(np.int64)


def _targets(path: Path, name: str, y: NDArray[Any] | None, port: Port, inputs: int, said: list[str]) -> Int8 | None:
    size = math.prod(port.shape)
    if y is None:
        if inputs != size:
            raise _bad(
                path,
                name,
                f"missing, and the model's output ({size} values) is not shaped like its input ({inputs})",
                "give one target a sample",
            )
        said.append("y: none given, so every sample is its own target (autoencoder)")
        return None
    if y.size != len(y) * size:
        raise _bad(
            path,
            name,
            f"shape {_dims(y.shape)} does not match the model's output {_dims(port.shape[1:])}",
            "give one target a sample; leave y out to learn to reproduce the input",
        )
    return _quantise(path, name, y, port, said, "output").reshape(len(y), size)


@functools.lru_cache(maxsize=4)
def _requantise_table(source: Port, target: Port) -> Int8:
    """int8 value + 128 -> the same real value in the other parameters, rounded half away from zero, clipped; [256]."""
    steps = (np.arange(-128, 128) - source.zero_point) * (source.scale / target.scale)
    q = np.copysign(np.floor(np.abs(steps) + 0.5), steps) + target.zero_point
    table: Int8 = np.clip(q, -128, 127).astype(np.int8)
    return table


# --- shapes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fit:
    """How a stored sample becomes one of the model's shape: view as `stored`, repeat grey, resize, view as `shape`."""

    stored: tuple[int, ...]
    shape: tuple[int, ...]
    notes: tuple[str, ...]

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def plan(found: tuple[int, ...], shape: tuple[int, ...]) -> _Fit:
        """Raises ValueError, saying why, where no fit is known."""
        if [d for d in found if d != 1] == [d for d in shape if d != 1]:
            return _Fit(shape, shape, ())
        if len(shape) == 1 and math.prod(found) == shape[0]:
            return _Fit(shape, shape, (f"x: samples {_dims(found)} flattened to {shape[0]}",))
        if len(shape) != 3 or len(found) not in (2, 3):
            raise ValueError(f"samples {_dims(found)} do not fit the model's input {_dims(shape)}")
        stored = (*found, 1) if len(found) == 2 else found
        notes: list[str] = []
        if stored[2] != shape[2]:
            if stored[2] != 1:
                raise ValueError(
                    f"images {_dims(found)} have {stored[2]} channels, the model's input {_dims(shape)} has {shape[2]}"
                )
            notes.append(f"x: the one grey channel repeated {shape[2]} times")
        if stored[:2] != shape[:2]:
            stretched = "" if stored[0] * shape[1] == stored[1] * shape[0] else ", stretched"
            notes.append(f"x: images resized from {_dims(stored[:2])} to {_dims(shape[:2])} (bilinear{stretched})")
        return _Fit(stored, shape, tuple(notes))

    def __call__(self, sample: Int8) -> Int8:
        image = sample.reshape(self.stored)
        if self.stored == self.shape:
            return image
        resized = resize(image, self.shape[0], self.shape[1]) if image.shape[:2] != self.shape[:2] else image
        return np.ascontiguousarray(np.broadcast_to(resized, self.shape))


def _fit_of(path: Path, name: str, found: tuple[int, ...], port: Port) -> _Fit:
    try:
        return _Fit.plan(found, port.shape[1:])
    except ValueError as error:
        raise _bad(
            path, name, str(error), "store samples as [n, height, width, channels], or in the model's own shape"
        ) from None


@functools.lru_cache(maxsize=32)
def _weights(source: int, target: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Triangle filter from `source` to `target` pixels: whole-number weights [target, source], and their row sums.

    Pixel centres lie at i + 1/2. The filter is two pixels wide on the coarser of the two grids, so that shrinking
    averages the whole area instead of skipping pixels. In units of 1/(2*target) source pixels everything is whole.
    """
    centre = (2 * np.arange(target, dtype=np.int64) + 1)[:, None] * source
    pixel = (2 * np.arange(source, dtype=np.int64) + 1)[None, :] * target
    weights = np.maximum(0, 2 * max(source, target) - np.abs(centre - pixel))
    return weights.astype(np.float64), weights.sum(1)


def resize(image: Int8, height: int, width: int) -> Int8:
    """[h,w,c] int8 -> [height,width,c] int8: bilinear when enlarging, area-weighted when shrinking, rounded half up.

    Exact: the products are sums of whole numbers below 2^53, which float64 holds whatever the order of summation.

    Raises:
        DataError: for images so large that the sums would pass 2^53.
    """
    rows, row_sums = _weights(image.shape[0], height)
    columns, column_sums = _weights(image.shape[1], width)
    if 128 * int(row_sums.max()) * int(column_sums.max()) >= 1 << 53:
        raise DataError(
            "images too large to resize",
            limit=f"{_dims(image.shape)} to {height}x{width}",
            remedy="resize them beforehand",
        )
    down = np.tensordot(rows, image.astype(np.float64), axes=(1, 0))  # [height, w, c]
    total = np.einsum("hwc,vw->hvc", down, columns, optimize=True).astype(np.int64)
    divisor = (row_sums[:, None] * column_sums[None, :])[..., None]
    resized: Int8 = ((2 * total + divisor) // (2 * divisor)).astype(np.int8)
    return resized


def _dims(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _bad(path: Path, name: str, what: str, remedy: str) -> DataError:
    return DataError(what, where=f"{path}: {name}" if name else str(path), remedy=remedy)
