"""LiteRT's reference kernels as the oracle: run a .tflite and read every tensor.

Development only; nothing in `tte` imports LiteRT.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

try:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType
except ImportError:  # the older package of the same interpreter
    try:
        from tflite_runtime.interpreter import Interpreter, OpResolverType
    except ImportError:
        Interpreter = None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep native code's messages (LiteRT's banner) off standard error; show them where an exception passes."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as capture:
        os.dup2(capture.fileno(), 2)
        try:
            yield
        except Exception as error:
            capture.seek(0)
            error.add_note(capture.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


class Oracle:
    """A model in LiteRT with its reference kernels (BUILTIN_REF), one thread, every tensor kept.

    Skips the running test where no LiteRT is installed. LiteRT's own ValueError/RuntimeError comes through where it
    refuses the model.
    """

    def __init__(self, data: bytes) -> None:
        if Interpreter is None:
            pytest.skip("neither ai-edge-litert nor tflite-runtime is installed")
        with _quiet():
            self.interpreter = Interpreter(
                model_content=data,
                experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
                experimental_preserve_all_tensors=True,
                num_threads=1,
            )
            self.interpreter.allocate_tensors()
        self.inputs = self.interpreter.get_input_details()

    def run(self, inputs: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
        """Invoke once.

        Args:
            inputs: one array for each graph input, in the model's order; shape and dtype are LiteRT's to check.

        Returns:
            tensor index -> value (a copy), for constants and activations alike. Absent: tensors that own no memory.
            Indices beyond the file's are kernels' scratch tensors.
        """
        assert len(inputs) == len(self.inputs)
        values = {}
        with _quiet():
            for detail, value in zip(self.inputs, inputs, strict=True):
                self.interpreter.set_tensor(detail["index"], value)
            self.interpreter.invoke()
            for detail in self.interpreter.get_tensor_details():
                with contextlib.suppress(ValueError):
                    values[detail["index"]] = self.interpreter.get_tensor(detail["index"])
        return values

    def random_inputs(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Inputs for `run`: integers over the whole range of their type, floats standard normal."""
        arrays = []
        for detail in self.inputs:
            shape, dtype = detail["shape"], np.dtype(detail["dtype"])
            if dtype.kind in "iu":
                limits = np.iinfo(dtype)
                arrays.append(rng.integers(limits.min, limits.max, shape, dtype, endpoint=True))
            else:
                arrays.append(rng.standard_normal(shape).astype(dtype))
        return arrays


def run(data: bytes, inputs: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    """`Oracle(data).run(inputs)`, for a model that runs once."""
    return Oracle(data).run(inputs)
