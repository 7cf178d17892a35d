"""Addresses: every buffer gets an offset in one static arena."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tte.ops.linear_grad import InputGrad
from tte.planner.schedule import Buffer, Program, buffers, live_bytes

#: Promotions tried under each order; the random numbers have a fixed seed, so plans are reproducible.
_TRIES = 60


@dataclass(frozen=True, eq=False)
class Plan:
    """A program with an address for everything.

    Attributes:
        offsets: tensor name to offset in the arena, bytes.
        workspaces: step to offset of its scratch memory.
        arena_bytes: size of the arena.
        lower_bound: the largest number of bytes live at one step: no placement for this order can do better.
        peak_step: that step.
        live: bytes live at each step.
    """

    program: Program
    buffers: tuple[Buffer, ...]
    offsets: Mapping[str, int]
    workspaces: Mapping[int, int]
    arena_bytes: int
    lower_bound: int
    peak_step: int
    live: tuple[int, ...]


def plan(program: Program, budget: int = 0) -> Plan:
    """Chooses scratch sizes and places every buffer.

    A dX step that may keep its int32 accumulators, instead of computing them twice, does so where that does not
    raise the peak above the budget (bytes), or not at all where the peak is above it anyway.
    """
    base = _placed(program)
    better = _placed(_with_free_buffers(program, base, max(budget, base.lower_bound)))
    return better if better.arena_bytes <= max(budget, base.arena_bytes) else base


def _with_free_buffers(program: Program, base: Plan, limit: int) -> Program:
    nodes = list(program.graph.nodes)
    for step, node in enumerate(nodes):
        if isinstance(node.op, InputGrad):
            kept = replace(node.op, buffered=True)
            types = program.types(node)
            extra = kept.kernel(types).workspace - node.op.kernel(types).workspace
            if base.live[step] + extra <= limit:
                nodes[step] = replace(node, op=kept)
    return replace(program, graph=program.graph.with_nodes(nodes))


def _placed(program: Program) -> Plan:
    found = buffers(program)
    live = live_bytes(found, len(program.graph.nodes))
    bound = max(live, default=0)
    places, size = place(found, bound)
    offsets = {name: place for buffer, place in zip(found, places, strict=True) for name in buffer.tensors}
    scratch = {b.first: place for b, place in zip(found, places, strict=True) if not b.tensors}
    peak = live.index(bound) if live else 0
    return Plan(program, found, offsets, scratch, size, bound, peak, tuple(live))


def place(found: Sequence[Buffer], bound: int) -> tuple[list[int], int]:
    """Offsets for the buffers and the arena's size.

    Greedy first fit under several orders; then the buffer that ends highest is promoted, again and again: whatever
    sticks out gets its place earlier. Stops at the lower bound.
    """
    rules: tuple[Callable[[int], tuple[int, ...]], ...] = (
        lambda i: (-found[i].size, found[i].first),
        lambda i: (-(found[i].last - found[i].first), -found[i].size),
        lambda i: (-(found[i].last - found[i].first) * found[i].size, found[i].first),
        lambda i: (found[i].first, -found[i].size),
    )
    conflicts = [[j for j, b in enumerate(found) if j != i and a.overlaps(b)] for i, a in enumerate(found)]
    best, size = _first_fit(found, conflicts, range(len(found)))
    generator = random.Random(0)
    for rule in rules:
        order = sorted(range(len(found)), key=rule)
        for _ in range(_TRIES):
            if size <= bound:
                return best, size
            places, total = _first_fit(found, conflicts, order)
            if total < size:
                best, size = places, total
            highest = max(range(len(found)), key=lambda i: places[i] + found[i].size)
            # A random jump ahead rather than the very front: two buffers would only take turns there.
            at = order.index(highest)
            order.insert(generator.randrange(at + 1) if generator.random() < 0.5 else 0, order.pop(at))
    return best, size


def _first_fit(found: Sequence[Buffer], conflicts: list[list[int]], order: Sequence[int]) -> tuple[list[int], int]:
    places = [-1] * len(found)
    for i in order:
        taken = sorted((places[j], places[j] + found[j].size) for j in conflicts[i] if places[j] >= 0)
        at = 0
        for start, end in taken:
            if start - at >= found[i].size:
                break
            at = max(at, end)
        places[i] = at
    return places, max((p + b.size for p, b in zip(places, found, strict=True)), default=0)
