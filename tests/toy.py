"""The toy: a hand-written library that obeys the contract of generated ones, and what tests of the firmware share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tte import toolchain
from tte.device.session import Session
from tte.errors import DeviceError

FIXTURES = Path(__file__).parent / "fixtures"
TOY = {
    str(file.relative_to(FIXTURES / "toymodel")): file.read_bytes()
    for file in sorted((FIXTURES / "toymodel").rglob("*"))
    if file.is_file()
}
X = (np.arange(64) % 7 - 3).astype(np.int8)

# Labels by which the toy misbehaves: tests/fixtures/toymodel/include/toy.h
LOOP, WRITE_PAST_RAM, OVERFLOW_STACK, HANG, WRITE_FLASH, WRITE_RAM_END = 1000, *range(1000001, 1000006)


def needs(*tools: str) -> pytest.MarkDecorator:
    missing = {item.tool for item in toolchain.check()} & set(tools)
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(sorted(missing))}")


needs_host = needs("cc")
needs_cross = needs("arm-none-eabi-gcc")
needs_qemu = needs("arm-none-eabi-gcc", "qemu-system-arm")


def with_define(text: str) -> dict[str, bytes]:
    """The toy with a line before its header."""
    return {**TOY, "include/toy.h": text.encode() + b"\n" + TOY["include/toy.h"]}


def instead_of_counting(statement: bytes) -> dict[str, bytes]:
    """The toy with another statement where it counts its steps."""
    return {**TOY, "src/toy.c": TOY["src/toy.c"].replace(b"++step;", statement)}


def converse(device: Session) -> list[int]:
    """Every command once; returns the instructions of inference and of three train steps."""
    model = device.describe()
    assert (model.name, model.hash, model.trains) == ("toy", "0123456789abcdef", True)
    assert (model.input_bytes, model.output_bytes, model.state_bytes, model.arena_bytes) == (64, 4, 8, 128)
    sums = X.reshape(16, 4).sum(axis=0)
    assert device.infer(X).tolist() == (sums + np.array([1, 2, 3, 4])).tolist()
    first = device.counters()
    trained = device.train(X, 2)
    assert trained.logits.tolist() == (sums + np.array([1, 2, 3, 4])).tolist()
    assert trained.loss == sum(1 + int(v) for i, v in enumerate(trained.logits) if i != 2)
    assert device.read_state() == bytes([0, 1, 4, 3, 0, 0, 0, 0])
    device.write_state(bytes([255, 255, 7, 0, 9, 9, 9, 9]))
    assert device.infer(X).tolist() == (sums + np.array([-1, -1, 7, 0])).tolist()
    assert device.read_state() == bytes([255, 255, 7, 0, 9, 9, 9, 9])
    device.set_control(16384, 0xFFFFFFFF, 41)
    again = device.train(X.reshape(4, 4, 4), LOOP)
    counters = device.counters()
    assert (counters.learning_rate, counters.seed, counters.step) == (16384, 0xFFFFFFFF, 42)
    with pytest.raises(DeviceError, match="refuses write_state with 3 bytes"):
        device.write_state(b"123")
    return [first.infer_instructions, trained.instructions, again.instructions, device.train(X, LOOP + 5).instructions]
