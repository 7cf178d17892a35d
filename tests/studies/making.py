"""What the studies share: folding, int8 conversion, writing a study's files, and the float fine-tune of comparison.

    PYTHONPATH=tests python -m studies.making DIR/keywords.keras DIR/keywords.tflite DIR/keywords_sixth.npz --passes 5

fine-tunes the whole float network (or by --update bias or last) on the study's own samples and prints the accuracies of
three seeds.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tte import data, files, npz
from tte.errors import DataError, ToolchainError, TteError
from tte.frontend import tflite
from tte.reference import Executor
from tte.run import FULL_RATE, Schedule

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Learning rates that the float fine-tune chooses from."""


@dataclass(frozen=True)
class Split:
    """Samples for one purpose: `x` float [n, model input], standardised; `y` int64 [n]."""

    x: Floats
    y: Labels

    def __len__(self) -> int:
        return len(self.y)


def tensorflow(seed: int = 0) -> Any:
    """TensorFlow, seeded, with deterministic kernels on one thread: the same seed gives the same network on one machine.

    Raises:
        ToolchainError: it is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import tensorflow as tf
    except ImportError:
        raise ToolchainError(
            "TensorFlow, which trains and quantises the network, is not installed", remedy="pip install '.[models]'"
        ) from None
    tf.keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        pass  # settled already, by an earlier call
    return tf


def arrays(path: Path, names: tuple[str, ...], words: tuple[str, ...] = ()) -> dict[str, NDArray[Any]]:
    """The arrays `names` of numbers and `words` of strings in an .npz.

    Raises:
        DataError: no such file, not an .npz, or an array is missing.
    """
    found = npz.read(path, names)
    with np.load(path) as archive:  # npz.read has opened it, and takes numbers alone
        found |= {word: archive[word] for word in words if word in archive}
    if missing := [name for name in (*names, *words) if name not in found]:
        raise DataError(f"holds no array {', '.join(missing)}", where=str(path), remedy="give the study's own data")
    return found


# --- the float network ----------------------------------------------------------------------------------------------


def convolution(
    tf: Any, name: str, channels: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1)
) -> list[Any]:
    """Layers of a convolution (a depthwise one where `channels` is 0), BatchNorm and ReLU6."""
    k = tf.keras.layers
    shared = {"kernel_size": kernel, "strides": stride, "padding": "same", "use_bias": False, "name": name}
    linear = k.Conv2D(channels, **shared) if channels else k.DepthwiseConv2D(**shared)
    return [linear, k.BatchNormalization(momentum=0.9), k.ReLU(6.0)]


def train(
    tf: Any, model: Any, split: Split, augment: Callable[[Floats, np.random.Generator], Floats], epochs: int, seed: int
) -> None:
    """Adam from 0.003 with cosine decay, batches of 32, each epoch on freshly augmented samples."""
    batch, rng = 32, np.random.default_rng([seed, 1])
    steps = epochs * -(-len(split) // batch)
    model.compile(
        optimizer=tf.keras.optimizers.Adam(tf.keras.optimizers.schedules.CosineDecay(3e-3, steps)),
        loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    for epoch in range(epochs):
        history = model.fit(augment(split.x, rng), split.y, batch_size=batch, epochs=1, verbose=0)
        if epoch % 5 == 4:
            print(f"epoch {epoch + 1}/{epochs}  loss {history.history['loss'][0]:.4f}", file=sys.stderr, flush=True)


def folded(tf: Any, model: Any) -> Any:
    """A Sequential network of the same function with each BatchNorm folded into the layer before it, and its ReLU6 fused.

    This is the float twin of what the .tflite holds: the same layers, weights and biases, to train without statistics.
    """
    layers, weights = [], []
    for layer in model.layers:
        kind = type(layer).__name__
        if kind == "BatchNormalization":
            gamma, beta, mean, variance = layer.get_weights()
            factor = gamma / np.sqrt(variance + layer.epsilon)
            kernel = weights[-1][0]
            depthwise = type(layers[-1]).__name__ == "DepthwiseConv2D"
            weights[-1] = [kernel * (factor[:, np.newaxis] if depthwise else factor), beta - mean * factor]
        elif kind == "ReLU":
            layers[-1].activation = tf.keras.activations.relu6
        else:
            config = layer.get_config()
            if "use_bias" in config:
                config["use_bias"] = True
            layers.append(type(layer).from_config(config))
            weights.append(layer.get_weights())
    result = tf.keras.Sequential([tf.keras.Input(model.input_shape[1:]), *layers], name="folded")
    for layer, values in zip(layers, weights, strict=True):
        layer.set_weights(values)
    return result


def accuracy(model: Any, split: Split) -> float:
    """Share of the samples that the float network classifies rightly."""
    return float((model.predict(split.x, verbose=0).argmax(-1) == split.y).mean())


# --- the int8 network -----------------------------------------------------------------------------------------------


def to_int8(tf: Any, model: Any, x: Floats) -> bytes:
    """Full-integer post-training quantisation of `model` with a softmax behind it, calibrated on the samples `x`."""
    # Through Keras' own export: the converter alone leaves Keras 3's variables unresolved.
    whole = tf.keras.Sequential([*model.layers, tf.keras.layers.Softmax()])
    whole.build((None, *x.shape[1:]))
    with tempfile.TemporaryDirectory() as folder:
        signature = [tf.TensorSpec((1, *x.shape[1:]), tf.float32, name="x")]
        whole.export(folder, input_signature=signature, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([sample[np.newaxis]] for sample in x)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8
        return bytes(converter.convert())


def port(path: Path) -> data.Port:
    """The input of an int8 .tflite."""
    graph = tflite.load(path)
    kind = graph.type(graph.inputs[0])
    return data.Port(kind.shape, kind.scale, kind.zero_point)


def quantised(x: Floats, into: data.Port) -> NDArray[np.int8]:
    """Real values as the int8 of a model's input."""
    q = np.rint(x.astype(np.float64) / into.scale) + into.zero_point
    return q.clip(-128, 127).astype(np.int8)


def int8_accuracy(path: Path, split: Split) -> float:
    """Share of the samples that the .tflite classifies rightly, by the NumPy reference."""
    graph, entry = tflite.load(path), port(path)
    run = Executor(graph)
    right = 0
    for x, y in zip(quantised(split.x, entry), split.y, strict=True):
        right += int(run.run({graph.inputs[0]: x[np.newaxis]})[graph.outputs[0]].argmax()) == int(y)
    return right / len(split)


def write(tf: Any, model: Any, out: Path, name: str, samples: str, base: Split, learn: Split, test: Split) -> Path:
    """Write DIR/NAME.keras (float, folded), NAME.tflite and SAMPLES.npz (int8 model inputs); returns the .tflite's path.

    Args:
        base: calibrates the quantisation; only ever what the network was trained on.
        learn, test: what the device adapts to, and what tells how well.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.tflite"
    files.write(path, to_int8(tf, model, base.x))
    model.save(out / f"{name}.keras")
    entry, packed = port(path), io.BytesIO()
    halves = {"train": learn, "test": test}
    np.savez_compressed(
        packed,
        **{f"x_{half}": quantised(s.x, entry) for half, s in halves.items()},
        **{f"y_{half}": s.y for half, s in halves.items()},
    )
    files.write(out / f"{samples}.npz", packed.getvalue())
    return path


# --- the float fine-tune --------------------------------------------------------------------------------------------


def trained_by(model: Any, update: str) -> list[Any]:
    """The variables that `full`, `bias` (all biases and the classifier) or `last` (the classifier) trains, as in `tte`."""
    head = model.layers[-1].trainable_variables
    inner = [layer for layer in model.layers[:-1] if layer.trainable_variables]
    if update == "full":
        return [*(v for layer in inner for v in layer.trainable_variables), *head]
    return [*(layer.bias for layer in inner if update == "bias"), *head]


def stepper(tf: Any, model: Any, update: str) -> Callable[[Any, Any, Any], None]:
    """A compiled step of stochastic gradient descent on samples x, y at learning rate eta, without momentum."""
    loss_of = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    variables = [v.value for v in trained_by(model, update)]

    @tf.function
    def step(x: Any, y: Any, eta: Any) -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=False))
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(eta * gradient)

    compiled: Callable[[Any, Any, Any], None] = step
    return compiled


def courses(count: int, rate: float, passes: int, seed: int) -> Iterator[tuple[int, float]]:
    """Sample and learning rate of each step, as `tte.run` has them: a permutation a pass, warm-up, half a cosine."""
    steps, schedule = passes * count, Schedule()
    order = (i for one in range(passes) for i in np.random.default_rng([seed, one + 1]).permutation(count))
    for step, i in enumerate(order):
        yield int(i), rate * schedule.factor(step, steps) / FULL_RATE


def float_study(
    keras: Path,
    model: Path,
    samples: Path,
    *,
    update: str = "full",
    passes: int = 1,
    seeds: Sequence[int] = (0, 1, 2),
    rates: Sequence[float] = RATES,
) -> dict[str, Any]:
    """Accuracy of the float network fine-tuned on a study's samples: before, and after for each seed.

    The network sees the real values of the int8 inputs, one sample a step. Each rate is tried on the first, the third and
    the last fifth of the training samples, learning from the other four (each with a seed of its own); the one with the
    best mean accuracy, the smaller of equals, then trains on all. The test samples choose nothing.
    """
    tf = tensorflow()
    entry = port(model)
    read = arrays(samples, ("x_train", "y_train", "x_test", "y_test"))
    learn, test = (
        Split((read[f"x_{half}"].astype(np.float32) - entry.zero_point) * np.float32(entry.scale), read[f"y_{half}"])
        for half in ("train", "test")
    )
    try:
        network = tf.keras.models.load_model(keras)
    except (OSError, ValueError) as error:
        raise DataError(f"no float network of a study ({error})", where=str(keras)) from None
    start = network.get_weights()
    before, step = accuracy(network, test), stepper(tf, network, update)

    def after(split: Split, judge: Split, rate: float, seed: int) -> float:
        network.set_weights(start)
        for i, eta in courses(len(split), rate, passes, seed):
            step(tf.constant(split.x[i : i + 1]), tf.constant(split.y[i : i + 1]), tf.constant(eta, tf.float32))
        return accuracy(network, judge)

    def validated(rate: float) -> float:
        found = []
        for fold in (0, 2, 4):
            held = np.arange(len(learn)) * 5 // len(learn) == fold
            most, rest = Split(learn.x[~held], learn.y[~held]), Split(learn.x[held], learn.y[held])
            found.append(after(most, rest, rate, 1000 + fold))
        return float(np.mean(found))

    validation = {rate: validated(rate) for rate in rates}
    best = max(rates, key=lambda rate: validation[rate])
    results = [after(learn, test, best, seed) for seed in seeds]
    return {
        "update": update,
        "passes": passes,
        "before": before,
        "validation": {str(rate): value for rate, value in validation.items()},
        "rate": best,
        "after": results,
        "mean": float(np.mean(results)),
        "spread": float(np.std(results, ddof=1)) if len(results) > 1 else 0.0,
    }


def told(main: Callable[[], dict[str, Any]]) -> int:
    """Runs a command, prints its figures as JSON, or the error; returns the exit status."""
    try:
        print(json.dumps(main(), indent=2))
        return 0
    except TteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def main() -> dict[str, Any]:
    """The command line."""
    parser = argparse.ArgumentParser(prog="studies.making", description="fine-tune a study's float network")
    parser.add_argument("keras", type=Path, help="NAME.keras")
    parser.add_argument("model", type=Path, help="NAME.tflite, whose input parameters the samples have")
    parser.add_argument("samples", type=Path, help="the .npz")
    parser.add_argument("--update", choices=["full", "bias", "last"], default="full")
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    return float_study(
        options.keras, options.model, options.samples, update=options.update, passes=options.passes, seeds=options.seeds
    )


if __name__ == "__main__":
    sys.exit(told(main))
