"""Addresses: every buffer gets an offset in one static arena."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tte.ops.linear_grad import InputGrad
from tte.planner import kernels
from tte.planner.schedule import ALIGN, Buffer, Program, buffers, live_bytes

#: The fraction of the arena that scratch memory for fast kernels may add to it.
_SLACK = 80
#: Buffers placed in the local search from each order; the random numbers have a fixed seed, so plans are reproducible.
_EFFORT = 15_000
#: Times that the small buffers are filled in, from each order.
_FILLS = 45
#: Buffers below this fraction of the bound are not searched for.
_SMALL = 128


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
    raise the peak above the budget (bytes), or not at all where the peak is above it anyway. In the same way kernels
    get scratch memory that saves them instructions.
    """
    base = _placed(program)
    limit = max(budget, base.lower_bound + (base.lower_bound // _SLACK if program.target != "portable" else 0))
    # What is granted crowds the arena: where it cannot be placed within the limit, some of it goes.
    for share in (1.0, 0.99, 0.98, 0.96, 0.93, 0.89, 0.84, 0.7, 0.0):
        candidate = _with_free_scratch(program, base, limit, share)
        if candidate is program:
            break
        better = _placed(candidate)
        if better.arena_bytes <= max(limit, base.arena_bytes):
            return better
    return base


def _with_free_scratch(program: Program, base: Plan, limit: int, share: float) -> Program:
    """The program with scratch memory granted to every step that leaves some below a share of the limit; what lies between
    the peak and the limit is for every step."""
    slack = max(0, limit - base.lower_bound)
    nodes = list(program.graph.nodes)
    scratch: dict[str, int] = {}
    for step, node in enumerate(nodes):
        if node.op.view:
            continue
        lean = program.kernel(node)
        free = max(int(limit * share) - base.live[step], min(slack, limit - base.live[step]))
        room = free + -(-lean.workspace // ALIGN) * ALIGN
        kept = replace(node, op=replace(node.op, buffered=True)) if isinstance(node.op, InputGrad) else node
        if -(-program.kernel(kept).workspace // ALIGN) * ALIGN <= room:
            nodes[step] = kept
        granted = kernels.choose(nodes[step].op, program.types(node), program.target, room)
        if granted.workspace > lean.workspace and granted.workspace <= room:
            scratch[node.name] = -(-granted.workspace // ALIGN) * ALIGN
    if not scratch and all(new is old for new, old in zip(nodes, program.graph.nodes, strict=True)):
        return program
    return replace(program, graph=program.graph.with_nodes(nodes), scratch=scratch)


def _placed(program: Program) -> Plan:
    found = buffers(program)
    live = live_bytes(found, len(program.graph.nodes))
    bound = max(live, default=0)
    places, size = place(found, bound)
    offsets = {name: place for buffer, place in zip(found, places, strict=True) for name in buffer.tensors}
    scratch = {b.first: place for b, place in zip(found, places, strict=True) if not b.tensors}
    peak = live.index(bound) if live else 0
    return Plan(program, found, offsets, scratch, size, bound, peak, tuple(live))


@functools.lru_cache(maxsize=32)
def place(found: tuple[Buffer, ...], bound: int) -> tuple[tuple[int, ...], int]:
    """Offsets for the buffers and the arena's size.

    Greedy first fit under several orders; from each, a local search: a buffer that sticks out above the bound is moved
    before one that it conflicts with, and the new order is kept if it is no worse. The search moves large buffers
    only; the small ones fill the gaps, largest first. Stops at the lower bound.

    Args:
        bound: the most bytes that are live at once.
    """
    rules: tuple[Callable[[int], tuple[int, ...]], ...] = (
        lambda i: (-found[i].size, found[i].first),
        lambda i: (-(found[i].last - found[i].first), -found[i].size),
        lambda i: (-(found[i].last - found[i].first) * found[i].size, found[i].first),
        lambda i: (found[i].first, -found[i].size),
    )
    sizes = [b.size for b in found]
    conflicts = [[j for j, b in enumerate(found) if j != i and a.overlaps(b)] for i, a in enumerate(found)]
    large = [i for i, b in enumerate(found) if b.size * _SMALL >= bound]
    small = sorted(set(range(len(found))) - set(large), key=rules[0])
    best, size = _first_fit(sizes, conflicts, range(len(found)))
    generator = random.Random(0)
    for rule in rules:
        order = sorted(large, key=rule)
        places, total = _first_fit(sizes, conflicts, order)
        tried = order
        fills = _FILLS
        for _ in range(max(10, _EFFORT // max(1, len(large)))):
            if max(total, bound) < size and fills:
                fills -= 1
                whole, with_small = _first_fit(sizes, conflicts, [*tried, *small], size - 1)
                if with_small < size:
                    best, size = whole, with_small
            if size <= bound:
                return tuple(best), size
            tried = _nudged(order, places, found, conflicts, bound, generator)
            same = next((k for k, (a, b) in enumerate(zip(order, tried, strict=True)) if a != b), 0)
            new_places, new_total = _first_fit(sizes, conflicts, tried, max(total, bound), places, same)
            if new_total <= max(total, bound):
                order, places, total = tried, new_places, new_total
            else:
                tried = order
    return tuple(best), size


def _nudged(
    order: list[int],
    places: Sequence[int],
    found: Sequence[Buffer],
    conflicts: list[list[int]],
    bound: int,
    generator: random.Random,
) -> list[int]:
    """The order with one buffer, if possible one that ends above the bound, moved before a conflicting one."""
    over = [i for i in order if places[i] + found[i].size > bound] or order
    if not over:
        return order
    chosen = generator.choice(over)
    at = order.index(chosen)
    ahead = [k for k in range(at) if order[k] in conflicts[chosen]]
    to = generator.choice(ahead) if ahead else 0
    new = list(order)
    if generator.random() < 0.5:
        new.insert(to, new.pop(at))
    else:
        new[at], new[to] = new[to], new[at]
    return new


def _first_fit(
    sizes: Sequence[int], conflicts: list[list[int]], order: Sequence[int], most: int = sys.maxsize,
    known: Sequence[int] = (), count: int = 0,
) -> tuple[list[int], int]:  # fmt: skip
    """Places the buffers in this order, each in the lowest gap that holds it; gives up where one ends beyond `most`.

    Args:
        known: places of the first `count` buffers of the order, as this function gave them.
    """
    places = [-1] * len(sizes)
    for i in order[:count]:
        places[i] = known[i]
    end = max((places[i] + sizes[i] for i in order[:count]), default=0)
    for i in order[count:]:
        size, at = sizes[i], 0
        for start, stop in sorted([(place, place + sizes[j]) for j in conflicts[i] if (place := places[j]) >= 0]):
            if start - at >= size:
                break
            at = max(at, stop)
        places[i] = at
        end = max(end, at + size)
        if end > most:
            break
    return places, end
