"""Every operator's integer semantics: the reference executor equals LiteRT's reference kernels on every tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import CASES, Case, random_cases
from oracle import Oracle

from tte import fixed
from tte.frontend import tflite
from tte.ops import elementwise, linear, pool, table
from tte.reference import Executor


@pytest.mark.parametrize("case", [*CASES, *random_cases(60)], ids=lambda c: c.name)
def test_equals_litert(case: Case) -> None:
    """All cases, random and saturating inputs, every tensor."""
    oracle, graph = Oracle(case.model()), case.graph()
    names = tflite.tensor_names(case.raw())
    for inputs in case.inputs():
        want = oracle.run(inputs)
        have = Executor(graph).run(dict(zip(graph.inputs, inputs, strict=True)))
        compared = [i for i, name in names.items() if name in have and i in want]
        assert len(compared) == len(case.raw().subgraph.operators)
        for i in compared:
            np.testing.assert_array_equal(have[names[i]], want[i], names[i])


@pytest.mark.parametrize(
    ("kind", "rounding"),
    [
        *((k, "double") for k in ("conv", "depthwise", "ADD", "SUB", "MUL", "mean", "RELU", "RELU6", "RELU_N1_TO_1")),
        *((k, "double") for k in ("LEAKY_RELU", "QUANTIZE")),
        ("dense", "single"),
    ],
)
def test_rounding_is_pinned(kind: str, rounding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which rounding each operator uses, and that the cases above would notice the other one."""
    other = "single" if rounding == "double" else "double"

    def swapped(x: Any, m: Any, s: Any, _: str = "") -> Any:
        return fixed.requantise(x, m, s, other)

    def results() -> list[np.ndarray]:
        cases = [c for c in CASES if c.name.split("-")[0] == kind]
        runs = [(c.graph(), inputs) for c in cases for inputs in c.inputs(1)]
        return [Executor(g).run(dict(zip(g.inputs, i, strict=True)))[g.outputs[0]] for g, i in runs]

    stands = results()
    for module in (elementwise, linear, pool, table):
        monkeypatch.setattr(module, "requantise", swapped)
    assert any((a != b).any() for a, b in zip(stands, results(), strict=True))
