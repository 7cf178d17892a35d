"""The order of steps with the smallest peak: an exact search over sets of executed steps, a beam where that is too long.

What is live depends on which steps have run, not on their order (but for in-place results smaller than what they
overwrite, which the search tells apart). So the search walks over sets of executed steps that could have run, by the
lowest peak so far: the first complete set it meets has the smallest peak. Chain-like graphs have few such sets.

A step is run *at once*, without trying others first, if it raises neither the peak so far nor the bytes held after it.
Any order that runs it later is no better: moved to the front, its results cost the steps it overtakes no more than its
inputs did, what it read dies no later, and its own working set (workspace included) stays within a peak that has been
paid already. Every update is such a step as soon as its workspace fits under the peak: it makes nothing. The rule needs
that running early can only help later in-place results, so it leaves alone what feeds a shrinking one.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from tte.planner.occupancy import Key, Occupancy, State, bits
from tte.planner.schedule import Program, buffers, live_bytes

#: Single steps that each stage of the search (exact, beam, closest to the given order) tries in a part of a program
#: before it gives up: well under a second. Real models need a few hundred.
TRIES = 100_000
#: Sets of one size that the beam search keeps while it has tries left; then it keeps one.
BEAM = 16


@dataclass(frozen=True, eq=False)
class Ordered:
    """A program in its best known order.

    Attributes:
        peak: the largest number of bytes live at one step (of the steps that could be moved).
        bound: no order of the same steps has a smaller peak, whether or not one reaches it.
    """

    program: Program
    peak: int
    bound: int

    @property
    def exact(self) -> bool:
        """Whether the order is proved to be the best."""
        return self.peak == self.bound


def order(program: Program, first: int = 0) -> Ordered:
    """The program with the steps of each part (shared, inference alone, training) in the order of smallest peak.

    The given order stays unless another one has a strictly smaller peak. Among those the steps follow the given order
    as far as the peak allows, and every update runs as early as it may: as soon as what it reads exists and everybody
    else has read what it changes.

    Args:
        first: the start of a part; steps before it stay where they are, and do not count.
    """
    given = max(_live(program)[first:], default=0)
    memory = Occupancy(program)
    ends = (0, program.shared, program.forward, len(program.graph.nodes))
    parts = [range(a, b) for a, b in pairwise(ends) if a < b and a >= first]
    steps = list(range(ends[-1]))
    peaks = {part: memory.replay(memory.before(part.start, steps), part).peak for part in parts}
    bound = max((memory.bound(part) for part in parts), default=0)
    for part in sorted(parts, key=lambda p: (-peaks[p], p.start)):
        if peaks[part] <= bound:
            break  # another part needs as much in any order
        start = memory.before(part.start, steps)
        found, proved = _Search(memory, part, start).run(bound, peaks[part])
        # What earlier parts leave behind depends on their order only where in-place results shrink.
        bound = max(bound, proved if memory.independent or part.start == first else 0)
        if found:
            steps[part.start : part.stop] = found
    best = replace(program, graph=program.graph.with_nodes([program.graph.nodes[i] for i in steps]))
    peak = max(_live(best)[first:], default=0)
    return Ordered(best, peak, bound) if peak < given else Ordered(program, given, bound)


def _live(program: Program) -> list[int]:
    return live_bytes(buffers(program), len(program.graph.nodes))


class _Path(NamedTuple):
    """Steps in the order they ran: the last, and those before it."""

    step: int
    before: _Path | None


class _Node(NamedTuple):
    """A state of the search with the steps that can run next, each with the state after it."""

    state: State
    ready: int
    path: _Path | None
    moves: tuple[tuple[int, State], ...]
    swaps: int  # pairs of steps so far that the given order has the other way round


class _Search:
    """The best order of one part."""

    def __init__(self, memory: Occupancy, part: range, start: State) -> None:
        self.memory, self.part, self.start = memory, part, start
        self.all = sum(1 << i for i in part)
        self.next: dict[int, list[int]] = {i: [] for i in part}
        for i in part:
            for p in bits(memory.before_step[i] & self.all):
                self.next[p].append(i)
        self.ready = sum(1 << i for i in part if not memory.before_step[i] & self.all)
        self.tries = 0

    def run(self, floor: int, limit: int) -> tuple[list[int] | None, int]:
        """An order with a peak below the limit, and a proved bound on all orders' peaks (or the floor, if below).

        Args:
            floor: a peak of so many bytes is as good as any smaller one.
        """
        best, bound = self._exact(floor, limit)
        if best is None and bound < limit:
            best = self._beam(floor, limit)
        if best is None:
            return None, bound
        peak = best.state.peak
        steps = self._given(peak) or self._early(_steps(best.path), peak)
        return steps, bound

    def _exact(self, floor: int, limit: int) -> tuple[_Node | None, int]:
        """Best first, by the peak so far; beyond TRIES steps only a bound."""
        self.tries = 0
        heap: list[tuple[int, int, int, int, _Node]] = []
        known: dict[Key, int] = {}
        count = 0

        def push(node: _Node | None) -> None:
            nonlocal count
            count += 1
            if node is None or node.state.peak >= limit:
                return
            peak = node.state.peak
            if known.get(node.state.key, limit) > peak:
                known[node.state.key] = peak
                heapq.heappush(heap, (peak, -node.state.done.bit_count(), node.swaps, count, node))

        push(self._settle(self.start._replace(peak=floor), self.ready, None, 0, limit))
        while heap:
            peak, _, _, _, node = heapq.heappop(heap)
            if not node.ready:
                return node, peak
            if self.tries > TRIES:
                return None, peak
            if known[node.state.key] < peak:
                continue
            for child in self._children(node, limit):
                push(child)
        return None, limit

    def _beam(self, floor: int, limit: int) -> _Node | None:
        """Level by level, keeping the few sets of each size with the lowest peak, then the fewest bytes held."""
        self.tries = 0
        first = self._settle(self.start._replace(peak=floor), self.ready, None, 0, limit)
        levels: dict[int, dict[Key, _Node]] = {}
        best: _Node | None = None

        def rank(node: _Node) -> tuple[int, int, int]:
            return node.state.peak, node.state.held, node.swaps

        def keep(node: _Node | None) -> None:
            if node is not None:
                level = levels.setdefault(node.state.done.bit_count(), {})
                old = level.get(node.state.key)
                if old is None or rank(node) < rank(old):
                    level[node.state.key] = node

        keep(first)
        while levels:
            width = BEAM if self.tries <= TRIES else 1
            for node in sorted(levels.pop(min(levels)).values(), key=rank)[:width]:
                if not node.ready:
                    best = node if best is None or rank(node) < rank(best) else best
                for child in self._children(node, best.state.peak if best else limit):
                    keep(child)
        return best

    def _children(self, node: _Node, limit: int) -> Iterator[_Node | None]:
        for step, state in node.moves:
            if state.peak < limit:
                swaps = node.swaps + (self.all & ~state.done & (1 << step) - 1).bit_count()
                yield self._settle(state, self._open(node.ready, state, step), _Path(step, node.path), swaps, limit)

    def _settle(self, state: State, ready: int, path: _Path | None, swaps: int, limit: int) -> _Node | None:
        """Runs at once what can be; None where the limit is reached."""
        while True:
            moves = [(step, self.memory.after(state, step)) for step in bits(ready)]
            self.tries += len(moves)
            if moves:
                # Something must run next, so its need is part of every peak from here on.
                least = min(after.peak for _, after in moves)
                if least > state.peak:
                    state = state._replace(peak=least)
            if state.peak >= limit:
                return None
            for step, after in moves:
                if self._at_once(state, step, after):
                    swaps += (self.all & ~after.done & (1 << step) - 1).bit_count()
                    state, ready, path = after, self._open(ready, after, step), _Path(step, path)
                    break
            else:
                return _Node(state, ready, path, tuple(moves), swaps)

    def _at_once(self, state: State, step: int, after: State) -> bool:
        return self.memory.safe[step] and after.peak <= state.peak and after.held <= state.held

    def _open(self, ready: int, state: State, step: int) -> int:
        """The steps that can run after this one."""
        ready &= ~(1 << step)
        for i in self.next[step]:
            if not self.memory.before_step[i] & self.all & ~state.done:
                ready |= 1 << i
        return ready

    def _update(self, state: State, ready: int) -> tuple[int, State] | None:
        """The first update that may run here within the peak."""
        for step in bits(ready & self.memory.updates):
            after = self.memory.after(state, step)
            if self._at_once(state, step, after):
                return step, after
        return None

    def _given(self, peak: int) -> list[int] | None:
        """Of all orders within the peak that run updates early, the one that keeps to the given order longest."""
        start = self.start._replace(peak=peak)
        failed: set[Key] = set()
        self.tries = 0
        steps: list[int] = []
        stack = [(start, self.ready, self._candidates(start, self.ready))]
        while stack:
            state, ready, moves = stack[-1]
            if not ready:
                return steps
            for step, after in moves:
                if after.key not in failed:
                    opened = self._open(ready, after, step)
                    steps.append(step)
                    stack.append((after, opened, self._candidates(after, opened)))
                    break
            else:
                failed.add(state.key)
                if self.tries > TRIES:
                    return None
                stack.pop()
                steps[-1:] = []
        return None

    def _candidates(self, state: State, ready: int) -> Iterator[tuple[int, State]]:
        """What to try next within the peak, in the given order; nothing after a step that can be run at once."""
        update = self._update(state, ready)
        if update:
            yield update
            return
        for step in bits(ready):
            after = self.memory.after(state, step)
            self.tries += 1
            if after.peak <= state.peak:
                yield step, after
                if self._at_once(state, step, after):
                    return

    def _early(self, steps: Sequence[int], peak: int) -> list[int]:
        """The order with every update as early as the peak allows."""
        state, ready = self.start._replace(peak=peak), self.ready
        left, found = list(steps), []
        while left:
            update = self._update(state, ready)
            step, state = update if update else (left[0], self.memory.after(state, left[0]))
            ready = self._open(ready, state, step)
            left.remove(step)
            found.append(step)
        return found


def _steps(path: _Path | None) -> list[int]:
    found = []
    while path is not None:
        found.append(path.step)
        path = path.before
    return found[::-1]
