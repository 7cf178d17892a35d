"""The twin as a device: whole data sets on this computer, with the integers of the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tte.run import FULL_RATE
from tte.search.twin import Twin, route
from tte.training.scheme import LayerUpdate

Int8 = NDArray[np.int8]
#: Bytes of features that are kept, so that the frozen layers run once a sample.
_KEEP = 1 << 30


@dataclass(frozen=True)
class Trained:
    """What a training step answers; instructions are not counted here."""

    loss: int
    logits: Int8
    step: int
    instructions: int = 0


class HostDevice:
    """Implements `tte.run.Device`.

    Args:
        twin: of the program that is compiled for the scheme, so that no channel has to be kept as it was.
        updates: what trains, by layer.
        seed: of the device's random numbers.
    """

    def __init__(self, twin: Twin, updates: Mapping[str, LayerUpdate], seed: int) -> None:
        self._twin, self._updates = twin, updates
        self._way = route(twin.plan, updates)
        self._rate = np.array([FULL_RATE], np.uint16)
        self._first = np.zeros(1, np.uint32)
        self._features: dict[bytes, NDArray[np.uint8]] = {}
        self._kept = self._step = 0
        twin.reset(seed)

    def infer(self, x: Int8) -> Int8:
        """The model's output."""
        found: Int8 = self._twin.infer(self._of(x), self._way)[0]
        return found

    def train(self, x: Int8, label: int | None, target: Int8 | None) -> Trained:
        """One training step."""
        truth = np.array([label], np.int32) if target is None else np.asarray(target, np.int8).reshape(1, -1)
        losses = self._twin.train(self._of(x), truth, self._first, self._rate, self._way, self._updates, own=True)
        self._step += 1
        return Trained(int(losses[0]), np.zeros(0, np.int8), self._step)

    def set_control(self, learning_rate: int, seed: int, step: int) -> None:
        """The learning rate's factor; seed and step are those the twin has already."""
        self._rate = np.array([learning_rate], np.uint16)

    def _of(self, x: Int8) -> NDArray[np.uint8]:
        """Features of a sample, [1, bytes]."""
        name = x.tobytes()
        found = self._features.get(name)
        if found is None:
            found = self._twin.features(x.reshape(1, -1), self._way, fresh=False)
            self._kept += len(name) + found.nbytes
            if self._kept <= _KEEP:
                self._features[name] = found
        return found
