"""Train the demo's network on scikit-learn's handwritten digits and quantise it to int8 with TensorFlow.

Writes `digits.npz` (images, labels and their fixed split) and `digits.tflite` beside this file, or into `--out`.
Needs the extra `models` (`pip install '.[models]'`: TensorFlow and scikit-learn); nothing else of `tte` does.

    python demo/make_model.py [--seed 0] [--epochs 100] [--out demo]

The same seed gives the same files on the same machine and TensorFlow version (deterministic kernels, one thread).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from sklearn.datasets import load_digits

TEST_IMAGES = 500
CLASSES = 10
SIDE = 8


def digits(seed: int) -> dict[str, NDArray[Any]]:
    """The 1,797 digits as uint8 images [n,8,8,1], labels, and a split drawn once from `seed`.

    The source's grey levels are 0..16; they are spread over 0..255 (exactly invertible).
    """
    source = load_digits()
    images = np.floor(source.images * 255 / 16 + 0.5).astype(np.uint8)[..., np.newaxis]
    labels = source.target.astype(np.uint8)
    order = np.random.default_rng(seed).permutation(len(images))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return {"x_train": images[train], "y_train": labels[train], "x_test": images[test], "y_test": labels[test]}


def network() -> tf.keras.Model:
    """A small MobileNetV2: three inverted bottlenecks (two with a residual addition), global mean, dense, softmax."""
    layers = tf.keras.layers

    def normalised(x: Any, relu: bool) -> Any:
        x = layers.BatchNormalization(momentum=0.9)(x)
        return layers.ReLU(6.0)(x) if relu else x

    def bottleneck(x: Any, expanded: int, out: int, stride: int) -> Any:
        y = normalised(layers.Conv2D(expanded, 1, use_bias=False)(x), relu=True)
        y = normalised(layers.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False)(y), relu=True)
        y = normalised(layers.Conv2D(out, 1, use_bias=False)(y), relu=False)
        return layers.Add()([x, y]) if stride == 1 and x.shape[-1] == out else y

    inputs = layers.Input((SIDE, SIDE, 1))
    x = normalised(layers.Conv2D(16, 3, padding="same", use_bias=False)(inputs), relu=True)
    x = bottleneck(x, 48, 16, 1)
    x = bottleneck(x, 64, 24, 2)
    x = bottleneck(x, 96, 24, 1)
    x = normalised(layers.Conv2D(64, 1, use_bias=False)(x), relu=True)
    x = layers.GlobalAveragePooling2D()(x)
    return tf.keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(x))


def train(model: tf.keras.Model, x: NDArray[np.float32], y: NDArray[np.uint8], epochs: int, seed: int) -> None:
    """Adam, cosine decay, and small shifts, turns (up to 10 degrees) and zooms of the upright images."""
    batch = 32
    augment = tf.keras.Sequential(
        [
            tf.keras.layers.RandomTranslation(0.125, 0.125, fill_mode="constant", seed=seed),
            tf.keras.layers.RandomRotation(10 / 360, fill_mode="constant", seed=seed + 1),
            tf.keras.layers.RandomZoom(0.1, fill_mode="constant", seed=seed + 2),
        ]
    )
    steps = epochs * -(-len(x) // batch)
    model.compile(
        optimizer=tf.keras.optimizers.Adam(tf.keras.optimizers.schedules.CosineDecay(3e-3, steps)),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=seed).batch(batch)
    model.fit(data.map(lambda a, b: (augment(a, training=True), b)), epochs=epochs, verbose=0)


def quantise(model: tf.keras.Model, x: NDArray[np.float32]) -> bytes:
    """Post-training quantisation: int8 throughout, per-channel weights, batch 1, calibrated on all of `x`."""
    # Through Keras' own export: the converter alone leaves Keras 3's variables unresolved.
    with tempfile.TemporaryDirectory() as folder:
        model.export(
            folder, input_signature=[tf.TensorSpec((1, SIDE, SIDE, 1), tf.float32, name="image")], verbose=False
        )
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[np.newaxis]] for image in x)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8
        return bytes(converter.convert())


def int8_accuracy(content: bytes, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> float:
    """Accuracy of the int8 model under TFLite's reference kernels; pixel p enters as p - 128."""
    interpreter = tf.lite.Interpreter(
        model_content=content, experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_REF
    )
    interpreter.allocate_tensors()
    entry, exit_ = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    right = 0
    for image, label in zip(images, labels, strict=True):
        interpreter.set_tensor(entry, (image.astype(np.int16) - 128).astype(np.int8)[np.newaxis])
        interpreter.invoke()
        right += int(interpreter.get_tensor(exit_)[0].argmax()) == int(label)
    return right / len(labels)


def replace(path: Path, content: bytes) -> None:
    """Write under a temporary name, then rename: the old file stays whole until the new one is."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        file.write(content)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def write_npz(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """A compressed npz, written under a temporary name first."""
    with tempfile.TemporaryFile() as file:
        np.savez_compressed(file, **arrays)
        file.seek(0)
        replace(path, file.read())


def main() -> None:
    """Train, quantise, write both files, and print the accuracies."""
    parser = argparse.ArgumentParser(description="train and quantise the demo's network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    options = parser.parse_args()
    tf.keras.utils.set_random_seed(options.seed)
    tf.config.experimental.enable_op_determinism()
    tf.config.threading.set_intra_op_parallelism_threads(1)

    data = digits(options.seed)
    x_train = data["x_train"].astype(np.float32) / 255
    model = network()
    train(model, x_train, data["y_train"], options.epochs, options.seed)
    content = quantise(model, x_train)

    def float_accuracy(images: NDArray[np.uint8]) -> float:
        guess = model.predict(images.astype(np.float32) / 255, verbose=0).argmax(-1)
        return float((guess == data["y_test"]).mean())

    upright, turned = data["x_test"], np.rot90(data["x_test"], axes=(1, 2))
    options.out.mkdir(parents=True, exist_ok=True)
    write_npz(options.out / "digits.npz", data)
    replace(options.out / "digits.tflite", content)
    print(
        json.dumps(
            {
                "train_images": len(x_train),
                "test_images": len(upright),
                "float_upright": float_accuracy(upright),
                "float_turned": float_accuracy(turned),
                "int8_upright": int8_accuracy(content, upright, data["y_test"]),
                "int8_turned": int8_accuracy(content, turned, data["y_test"]),
                "bytes": len(content),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
