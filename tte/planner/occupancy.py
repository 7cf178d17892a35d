"""What is live after any set of steps: the memory model of `tte.planner.schedule.buffers`, free of an order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tte.ir import Role
from tte.planner.schedule import ALIGN, Program

Key = tuple[int, tuple[tuple[int, int], ...]]


class State(NamedTuple):
    """What has run and what that leaves.

    Attributes:
        done: bit i: step i has run. Two more bits: see `Occupancy`.
        held: bytes that a later step reads.
        extra: (group, bytes) of in-place results in buffers larger than themselves.
        peak: bytes live at the worst step so far.
    """

    done: int
    held: int
    extra: tuple[tuple[int, int], ...]
    peak: int

    @property
    def key(self) -> Key:
        """What decides all that follows."""
        return self.done, self.extra


class Occupancy:
    """A program's memory, step by step and in any order that its dependencies allow.

    Tensors that are views of each other form a group. A group is needed while a step that reads it has not run; bit
    `n` (the end of inference) "reads" the outputs, bit `n + 1` (the end of all) reads what is kept.
    """

    def __init__(self, program: Program) -> None:
        self.program, self.graph = program, program.graph
        self.nodes = program.graph.nodes
        self.size: list[int] = []
        self.readers: list[int] = []
        self.maker: list[int] = []  # the step that makes a group; -1: the caller
        self.inputs: list[tuple[int, ...]] = []
        #: For each step: the groups it makes, each with the groups whose bytes it may take over.
        self.outputs: list[tuple[tuple[int, tuple[int, ...]], ...]] = []
        self.work: list[int] = []
        self.group: dict[str, int] = {}
        for name in self.graph.inputs:
            if name != program.supplied:
                self._add(name, -1)
        for step in range(len(self.nodes)):
            self._add_step(step)
        for names, bit in ((program.outputs, len(self.nodes)), (program.kept, len(self.nodes) + 1)):
            for g in {self.group[n] for n in names if n in self.group}:
                self.readers[g] |= 1 << bit
        #: Inputs that nothing reads are live at the very first step.
        self.idle = sum(s for s, r, m in zip(self.size, self.readers, self.maker, strict=True) if m < 0 and not r)
        self.before_step = self._dependencies()
        shrinking = self._shrinking()
        self.independent = not shrinking
        #: Steps that may be run at once, see the module's text.
        self.safe = [not shrinking.intersection(groups) for groups in self.inputs]
        self.updates = sum(1 << i for i, n in enumerate(self.nodes) if self.graph.mutated(n) and not self.outputs[i])

    def _add(self, name: str, step: int) -> int:
        self.group[name] = len(self.size)
        self.size.append(-(-max(1, self.graph.type(name).nbytes) // ALIGN) * ALIGN)
        self.readers.append(0)
        self.maker.append(step)
        return self.group[name]

    def _add_step(self, step: int) -> None:
        node = self.nodes[step]
        places = [self.group.get(n) for n in node.inputs]
        self.inputs.append(tuple(dict.fromkeys(g for g in places if g is not None)))
        for g in self.inputs[-1]:
            self.readers[g] |= 1 << step
        made = []
        for index, name in enumerate(node.outputs):
            if self.graph.tensors[name].role is not Role.VALUE:
                continue
            if node.op.view and places[0] is not None:
                self.group[name] = places[0]
                continue
            sources = [i for out, i in node.op.inplace if out == index and places.count(places[i]) == 1]
            fits = [i for i in sources if self.graph.type(name).nbytes <= self.graph.type(node.inputs[i]).nbytes]
            over = [g for g in (places[i] for i in fits) if g is not None]
            made.append((self._add(name, step), tuple(dict.fromkeys(over))))
        self.outputs.append(tuple(made))
        kernel = None if node.op.view else self.program.kernel(node)
        self.work.append(-(-kernel.workspace // ALIGN) * ALIGN if kernel else 0)

    def _dependencies(self) -> list[int]:
        """For each step the steps that must have run, as bits: who makes what it reads, and all that touched a
        parameter before it, if either changes it."""
        maker = {o: i for i, n in enumerate(self.nodes) for o in n.outputs if self.graph.tensors[o].role is Role.VALUE}
        found = []
        touched: dict[str, int] = {}
        changed: dict[str, int] = {}
        for step, node in enumerate(self.nodes):
            needs = sum(1 << i for i in {maker[n] for n in node.inputs if n in maker})
            mutated = self.graph.mutated(node)
            for name in {*node.inputs, *mutated}:
                needs |= (touched if name in mutated else changed).get(name, 0)
                touched[name] = touched.get(name, 0) | 1 << step
                if name in mutated:
                    changed[name] = touched[name]
            found.append(needs & ~(1 << step))
        return found

    def _shrinking(self) -> set[int]:
        """Groups that may be, or feed, an in-place result smaller than its buffer."""
        root = list(range(len(self.size)))

        def find(g: int) -> int:
            while root[g] != g:
                g = root[g]
            return g

        pairs = [(g, c) for made in self.outputs for g, over in made for c in over]
        for g, c in pairs:
            root[find(g)] = find(c)
        shrinking = {find(g) for g, c in pairs if self.size[g] < self.size[c]}
        return {g for g in range(len(self.size)) if find(g) in shrinking}

    def before(self, step: int, steps: Sequence[int]) -> State:
        """The state at the start of the part that starts at `step`, earlier parts having run as `steps` says."""
        held = sum(s for s, r, m in zip(self.size, self.readers, self.maker, strict=True) if m < 0 and r)
        state = self.replay(State(0, held, (), 0), steps[:step])
        if step < self.program.forward:
            return state._replace(peak=0)
        # Outputs that training does not read are free once inference has ended.
        done = state.done | 1 << len(self.nodes)
        extra = dict(state.extra)
        gone = [g for g, r in enumerate(self.readers) if r & ~state.done and not r & ~done]
        held = state.held - sum(self.size[g] + extra.pop(g, 0) for g in gone)
        return State(done, held, tuple(sorted(extra.items())), 0)

    def replay(self, state: State, steps: Iterable[int]) -> State:
        for step in steps:
            state = self.after(state, step)
        return state

    def after(self, state: State, step: int) -> State:
        """The state after one step more; everything that it reads must exist."""
        done = state.done | 1 << step
        waiting, size = ~done, self.size
        dying = [g for g in self.inputs[step] if not self.readers[g] & waiting]
        need = state.held + self.work[step]
        held = state.held
        if not state.done:
            need += self.idle
        extra = dict(state.extra)
        for g, over in self.outputs[step]:
            taken = next((c for c in over if c in dying), None)
            if taken is None:
                room = size[g]
                need += room
                held += room
            else:
                dying.remove(taken)
                room = size[taken] + extra.pop(taken, 0)
            if not self.readers[g] & waiting:
                held -= room
            elif room > size[g]:
                extra[g] = room - size[g]
        for g in dying:
            held -= size[g] + extra.pop(g, 0)
        return State(done, held, tuple(sorted(extra.items())) if extra else (), max(state.peak, need))

    def bound(self, part: range) -> int:
        """The largest working set of a step: what must be there when it runs, in whatever order the part runs."""
        earlier, inside = (1 << part.start) - 1, (1 << part.stop) - (1 << part.start)
        later = ((1 << len(self.nodes) + 2) - 1) & ~earlier & ~inside
        if part.start >= self.program.forward:
            later &= ~(1 << len(self.nodes))
        before, after = dict.fromkeys(part, 0), dict.fromkeys(part, 0)
        for step in part:
            for p in bits(self.before_step[step] & inside):
                before[step] |= before[p] | 1 << p
        for step in reversed(part):
            for p in bits(self.before_step[step] & inside):
                after[p] |= after[step] | 1 << step
        worst = 0
        for step in part:
            made, waiting = earlier | before[step], later | after[step]
            needed = waiting | 1 << step
            total = self.work[step]
            for g, maker in enumerate(self.maker):
                if self.readers[g] & needed and (maker < 0 or made >> maker & 1):
                    total += self.size[g]
            for g, over in self.outputs[step]:
                if all(self.readers[c] & waiting for c in over):
                    total += self.size[g]
            worst = max(worst, total)
        return worst


def bits(mask: int) -> Iterator[int]:
    """The positions of set bits, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
