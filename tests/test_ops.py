"""Every operator's integer semantics: the reference executor equals LiteRT's reference kernels on every tensor."""

from __future__ import annotations

import numpy as np
import pytest
from cases import CASES, Case, random_cases
from oracle import Oracle

from tte.frontend import tflite
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
