"""Channels that are drawn anew every so many steps, on the twin: training in stretches, the draw between them.

The twin's program trains everything and knows no table of channels; what a scheme leaves frozen is put back after each step.
So the draw is the reference's (`tte.ops.redraw`) on the twin's state, at the steps where the device draws. The results are
those of the program compiled for the scheme, bit for bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tte.codegen import StateSlot
from tte.ir import Graph
from tte.ops.base import Control, Types
from tte.ops.linear_grad import WeightUpdate
from tte.ops.redraw import Redraw
from tte.reference import pack, unpack
from tte.training.scheme import LayerUpdate

Channels = Mapping[str, tuple[int, ...]]


def stretches(updates: Mapping[str, LayerUpdate], step: int, count: int) -> Iterator[tuple[int, int]]:
    """(first, end) of runs of steps without a draw inside, of `count` steps from number `step` on; counted from 0."""
    periods = {u.redraw for u in updates.values() if u.redraw}
    ends = {at for every in periods for at in range(every - step % every, count, every)}
    edges = [0, *sorted(ends), count]
    yield from ((a, b) for a, b in itertools.pairwise(edges) if a < b)


def current(updates: Mapping[str, LayerUpdate], drawn: Channels) -> dict[str, LayerUpdate]:
    """The updates with the channels that train now, those that were drawn instead of the first choice."""
    return {n: replace(u, channels=drawn.get(n, u.channels) if u.redraw else u.channels) for n, u in updates.items()}


def redrawn(
    graph: Graph, slots: Sequence[StateSlot], state: bytes, updates: Mapping[str, LayerUpdate], control: Control
) -> tuple[bytes, dict[str, tuple[int, ...]]]:
    """A state after the draws of a step that has just been trained; and the channels drawn, by layer.

    Args:
        graph: the program in which everything trains.
        updates: with the channels that trained in this step.
    """
    made, drawn = bytearray(state), dict[str, tuple[int, ...]]()
    places = {s.name: s for s in slots}
    changers = {n.inputs[3]: n for n in graph.nodes if isinstance(n.op, WeightUpdate)}
    layers = {n.name: n for n in graph.nodes}
    for name, update in updates.items():
        if not (update.redraw and update.channels):
            continue
        node = changers[layers[name].inputs[1]]
        op = Redraw(node.op.stream, update.redraw, node.op.mode)
        if not op.due(control):
            continue
        own = [places[n] for n in node.inputs[3:]]
        w, *residuals = (_read(state, s) for s in own)
        table = np.array(update.channels, np.uint16)
        parts = [r[..., list(update.channels)] for r in residuals]
        w, *parts, table = op.reference(Types((), ()), [w, *parts, table], control)
        drawn[name] = tuple(int(c) for c in table)
        for r, part in zip(residuals, parts, strict=True):
            r[:] = 0
            r[..., list(drawn[name])] = part
        for slot, value in zip(own, [w, *residuals], strict=True):
            made[slot.offset : slot.offset + slot.type.nbytes] = pack(value, slot.type.dtype)
    return bytes(made), drawn


def _read(state: bytes, slot: StateSlot) -> NDArray[np.int8]:
    data = state[slot.offset : slot.offset + slot.type.nbytes]
    return unpack(data, slot.type.shape, slot.type.dtype).copy()
