"""An activity network learns six activities from a sensor at the waist; then the sensor is worn turned.

    PYTHONPATH=tests python -m studies.activity --data ../shared/data/uci_har_test.npz --out DIR

writes activity.tflite, activity.keras and activity_rotated.npz. Data: the test part of UCI HAR, 2,947 windows of 128
samples at 50 Hz, three tri-axial sensors (body acceleration, angular velocity, total acceleration), nine people, each
doing the same round of activities twice. Windows overlap by half within an activity. The file does not name the people,
but a round begins where standing follows another activity, and there no window overlaps the one before.

Split by rounds: the first ten (five people) train the base network; of the other four people's eight rounds, each one's first is
there to adapt to, the second to test. For adaptation the sensor is turned: what were axes (x, y, z) are read as
(-y, z, -x), a proper rotation, the same for the three sensors.

Inputs: each sensor divided by one root mean square for its three axes (from the base rounds), cut off at LIMIT; no mean
is subtracted, so that a turned sensor's values stay in range.

Network: four 1-D convolutions along time (as 2-D ones over [128, 1, 9]), average, dense: 38,000 weights.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studies import making
from studies.making import Floats, Split

AXES, SIGNS = (1, 2, 0), (-1, 1, -1)
"""The turned sensor reads SIGNS[i] times the old axis AXES[i] on its axis i."""
STANDING = 4
BASE_ROUNDS = 10
LIMIT = 4.0


def turned(x: Floats) -> Floats:
    """Windows [n, 128, 9] as the turned sensor reads them."""
    sensors = x.reshape(*x.shape[:-1], 3, 3)
    return (sensors[..., AXES] * np.array(SIGNS, x.dtype)).reshape(x.shape)


def rounds(y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number [n] of the round that each window belongs to, from 0: a round begins with standing."""
    begins = (y[1:] == STANDING) & (y[:-1] != STANDING)
    return np.concatenate([[0], np.cumsum(begins)])


@dataclass(frozen=True)
class Parts:
    """Indices of windows: to train the base network, to adapt to, and to test."""

    base: NDArray[np.int64]
    learn: NDArray[np.int64]
    test: NDArray[np.int64]


def parts(y: NDArray[np.int64]) -> Parts:
    """The split by rounds."""
    number = rounds(y)
    later = number >= BASE_ROUNDS
    return Parts(*(np.flatnonzero(m) for m in (~later, later & (number % 2 == 0), later & (number % 2 == 1))))


def scales(x: Floats) -> Floats:
    """Root mean squares [9] of windows [n, 128, 9], one for the three axes of each sensor."""
    squares = (x.astype(np.float64) ** 2).reshape(-1, 3, 3).mean((0, 2))
    return np.sqrt(squares).repeat(3).astype(np.float32)


def features(x: Floats, scale: Floats) -> Floats:
    """Inputs [n, 128, 1, 9] of the network."""
    return (x / scale).clip(-LIMIT, LIMIT)[:, :, np.newaxis]


def network(tf: Any) -> Any:
    """The float network, logits at its end."""
    layers = []
    for i, (channels, kernel, stride) in enumerate([(32, 7, 2), (48, 5, 2), (64, 5, 2), (64, 3, 1)], 1):
        layers += making.convolution(tf, f"conv{i}", channels, (kernel, 1), (stride, 1))
    k = tf.keras.layers
    layers += [k.GlobalAveragePooling2D(name="average"), k.Dropout(0.3), k.Dense(6, name="dense")]
    return tf.keras.Sequential([tf.keras.Input((128, 1, 9)), *layers])


def augment(x: Floats, rng: np.random.Generator) -> Floats:
    """Each window stronger or weaker by up to 10 %, the sensor a little aslant (15 degrees or so), and noise of 0.05."""
    result = np.empty_like(x)
    for i, one in enumerate(x):
        aslant, _ = np.linalg.qr(np.eye(3) + rng.normal(0, 0.15, (3, 3)))
        aslant *= np.sign(np.diag(aslant))
        result[i] = (one.reshape(-1, 3, 3) @ aslant * rng.uniform(0.9, 1.1)).reshape(one.shape)
    return (result + rng.normal(0, 0.05, x.shape)).clip(-LIMIT, LIMIT).astype(np.float32)


def study(path: Path, out: Path, epochs: int = 40, seed: int = 0) -> dict[str, Any]:
    """Make the study's files; returns its figures."""
    tf = making.tensorflow(seed)
    read = making.arrays(path, ("x", "y"))
    x, y = read["x"].astype(np.float32), read["y"].astype(np.int64)
    split = parts(y)
    scale = scales(x[split.base])
    base, upright = (Split(features(x[i], scale), y[i]) for i in (split.base, split.test))
    learn, test = (Split(features(turned(x[i]), scale), y[i]) for i in (split.learn, split.test))
    trained = network(tf)
    making.train(tf, trained, base, augment, epochs, seed)
    model = making.folded(tf, trained)
    made = making.write(tf, model, out, "activity", "activity_rotated", base, learn, test)
    return {
        "scales": scale[::3].tolist(),
        "weights": model.count_params(),
        "samples": {"base": len(base), "learn": len(learn), "test": len(test)},
        "float": {"upright": making.accuracy(model, upright), "rotated": making.accuracy(model, test)},
        "int8": {"upright": making.int8_accuracy(made, upright), "rotated": making.int8_accuracy(made, test)},
    }


def main() -> dict[str, Any]:
    """The command line."""
    parser = argparse.ArgumentParser(prog="studies.activity", description="an activity network, and a turned sensor")
    parser.add_argument("--data", type=Path, required=True, help="uci_har_test.npz")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    return study(options.data, options.out, options.epochs, options.seed)


if __name__ == "__main__":
    sys.exit(making.told(main))
