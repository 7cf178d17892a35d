"""What a model's plans cost: the curve of RAM against arithmetic, and what no plan can go below."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tte import codegen
from tte.board import Board
from tte.compiler import Compiled, Options, compile_model
from tte.errors import ModelError
from tte.ir import Node, Role
from tte.needs import RESERVE
from tte.ops.linear_grad import InputGrad
from tte.ops.segment import Segment
from tte.planner.arena import Plan, plan
from tte.planner.check import check
from tte.planner.order import order
from tte.planner.schedule import ALIGN, Program, buffers, live_bytes
from tte.planner.stream import stream

#: A search for segments looks at up to n * n stretches of n steps. Between the smallest plan and that without segments
#: further searches are made, so many in all, and one at least: planning is to stay within seconds.
_STRETCHES = 4000
_SEARCHES = 6
#: Plans priced for one choice of segments.
_PLANS = 4


@dataclass(frozen=True)
class Point:
    """A plan's costs.

    Attributes:
        rows: the caller supplies the input row by row; else it lies in the arena whole.
        arena_bytes: the arena.
        ram_bytes: arena and trained state; stack and the firmware's own variables (RESERVE) come on top.
        train_macs, infer_macs: multiply-accumulate operations of one training step (0: it only infers) and of one
            inference. A dX that computes its accumulators twice counts twice.
        streamed: operators that run row by row.
        buffered, of_buffered: dX steps that keep their int32 accumulators, of how many.
        fits: arena, state and RESERVE fit the board, and the limit that was asked for.
    """

    rows: bool
    arena_bytes: int
    ram_bytes: int
    train_macs: int
    infer_macs: int
    streamed: int
    buffered: int
    of_buffered: int
    fits: bool


@dataclass(frozen=True)
class Bound:
    """Bytes that must be there at once, and the step that needs them."""

    nbytes: int
    step: str


@dataclass(frozen=True, eq=False)
class Tradeoff:
    """The curve, and the plan that `tte build` takes.

    Attributes:
        points: for whole input, then for input by rows: less RAM from first to last, never fewer MACs.
        chosen: the chosen plan's costs.
        scheme_bound: see `scheme_bound`.
        limit: RAM that may be used, bytes.
        why_no_rows: why the model does not take its input by rows; empty if it does.
    """

    points: tuple[Point, ...]
    chosen: Point
    compiled: Compiled
    scheme_bound: Bound
    limit: int
    why_no_rows: str

    def as_dict(self) -> dict[str, Any]:
        """`curve` and `chosen`, as `tte plan --json` gives them."""
        p = self.compiled.plan
        return {
            "curve": [asdict(point) for point in self.points],
            "chosen": {
                **asdict(self.chosen),
                "state_bytes": codegen.state_bytes(p),
                "reserve_bytes": RESERVE,
                "ram_limit": self.limit,
                "peak_step": peak_name(p),
                "lower_bound": p.lower_bound,
                "scheme_bound": self.scheme_bound.nbytes,
                "scheme_bound_step": self.scheme_bound.step,
            },
        }


def explore(model: Path, board: Board, options: Options, ram: int | None = None) -> Tradeoff:
    """Makes plans for a model and an update scheme, and keeps the best.

    Args:
        options: as for `tte build`; `rows` says which kind of input the chosen plan has, the curve holds both.
        ram: a limit below the board's own, in bytes.

    Raises:
        ModelError: the model or the scheme cannot be run or trained.
    """
    limit = min(ram or board.ram_bytes, board.ram_bytes)
    options = replace(options, target=board.target)
    compiled = compile_model(model, options)
    first = compiled
    room = limit - codegen.state_bytes(compiled.plan) - RESERVE
    if ram and compiled.plan.arena_bytes <= room:
        compiled = compile_model(model, replace(options, budget=room))  # as `tte build` spends what is left
    whole = _unplanned(compile_model(model, replace(options, rows=False, stream=False)).plan.program)
    plans: list[Plan] = []
    why = ""
    for rows in (False, True):
        known = [c.plan for c in (first, compiled) if c.options.rows == rows]
        try:
            plans += pareto([*known, *_plans(whole, rows, known[0].program if known else None)])
        except ModelError as error:
            why = f"{error.where} {error.what}"
    for p in plans:
        check(p)
    points = [point(p, limit) for p in plans]
    bound = scheme_bound(replace(whole, supplied=next(iter(whole.graph.inputs)) if options.rows else ""))
    return Tradeoff(tuple(points), point(compiled.plan, limit), compiled, bound, limit, why)


def pareto(plans: Iterable[Plan]) -> list[Plan]:
    """Those to which no other is preferable, largest RAM first.

    A plan with a larger arena must have fewer MACs (of a training step, else of an inference), or as many with fewer
    steps run row by row: a row costs no arithmetic, but a call.
    """
    kept: list[Plan] = []
    least = (1 << 62, 0)
    for p in sorted(plans, key=lambda p: (p.arena_bytes, _effort(p))):
        if _effort(p) < least:
            kept.append(p)
            least = _effort(p)
    return kept[::-1]


def _effort(found: Plan) -> tuple[int, int]:
    costs = point(found, 0)
    return costs.train_macs or costs.infer_macs, costs.streamed


def point(found: Plan, limit: int) -> Point:
    """A plan's costs; `limit` is the RAM that may be used, in bytes."""
    program = found.program
    grads = [n.op.buffered for n in program.graph.nodes if isinstance(n.op, InputGrad)]
    segments = [n.op for n in program.graph.nodes if isinstance(n.op, Segment)]
    ram = found.arena_bytes + codegen.state_bytes(found)
    return Point(
        rows=bool(program.supplied),
        arena_bytes=found.arena_bytes,
        ram_bytes=ram,
        train_macs=macs(program, program.train_steps) if program.trains else 0,
        infer_macs=macs(program, program.infer_steps),
        streamed=sum(len(s.nodes) for s in segments),
        buffered=sum(grads),
        of_buffered=len(grads),
        fits=ram + RESERVE <= limit,
    )


def macs(program: Program, steps: Iterable[int]) -> int:
    """Multiply-accumulate operations of these steps."""
    nodes = [program.graph.nodes[i] for i in steps]
    return sum(n.op.macs(program.types(n)) for n in nodes)


def peak_name(found: Plan) -> str:
    """The step at which most bytes are live: number, name, operator."""
    node = found.program.graph.nodes[found.peak_step]
    return f"{found.peak_step} {node.name} ({node.op.title})"


def _unplanned(program: Program) -> Program:
    """The program as it is before a plan decides which steps get scratch memory, and which dX steps keep their sums."""
    return replace(program, graph=program.graph.with_nodes([_frugal(n) for n in program.graph.nodes]), scratch={})


def _frugal(node: Node) -> Node:
    return replace(node, op=replace(node.op, buffered=False)) if isinstance(node.op, InputGrad) else node


def _plans(whole: Program, rows: bool, known: Program | None) -> list[Plan]:
    """Plans for a few choices of segments, each with accumulators kept as far as growing budgets allow.

    Args:
        whole: the program layer by layer.
        known: the program with the segments of the smallest plan, if it was made before.
    """
    plans = _buffering(_unplanned(known) if known else order(stream(whole, 0, rows)).program)
    sizes = live_bytes(buffers(whole), len(whole.graph.nodes))
    live = sorted({b for b in sizes[: whole.shared] if b > plans[0].arena_bytes})
    if not rows:
        plans.append(plan(whole, plans[-1].arena_bytes))
        live = live[:-1]  # the last of them is the peak of `whole`
    count = max(1, min(_SEARCHES, _STRETCHES // max(1, whole.shared) ** 2))
    return [*plans, *(plan(order(stream(whole, budget, rows)).program, budget) for budget in _spread(live, count))]


def _buffering(program: Program) -> list[Plan]:
    """Plans for a program, from the fewest accumulators kept to all of them."""
    first = plan(program)
    needs = set()
    for step, node in enumerate(program.graph.nodes):
        if isinstance(node.op, InputGrad) and not first.program.graph.nodes[step].op.buffered:
            types = program.types(node)
            extra = replace(node.op, buffered=True).kernel(types).workspace - node.op.kernel(types).workspace
            needs.add(first.live[step] + extra)
    budgets = sorted(b for b in needs if b > first.arena_bytes)
    return [first, *(plan(program, b) for b in (*_spread(budgets[:-1], _PLANS - 1), *budgets[-1:]))]


def _spread(values: Sequence[int], count: int) -> list[int]:
    """At most `count` of the values, evenly chosen by rank."""
    if len(values) <= count:
        return list(values)
    return [values[(2 * i + 1) * len(values) // (2 * count)] for i in range(count)]


def scheme_bound(program: Program) -> Bound:
    """Bytes that no order of these steps, and no choice of segments among them, can do without.

    For each step that can only run whole: its operands and results in the arena (a result that may overwrite an
    operand counts as the larger of the two), its smallest workspace, and every other tensor that some step before it
    *in any order* makes and some step after it *in any order* reads; sizes are rounded up to the arena's alignment.
    Orders are those that the graph allows: makers before readers, and readers of a trained parameter before its
    update. Inference and training are taken apart; a result of a call is there until its end. An input that is not
    supplied by rows is there whole at the start of both.
    """
    graph = program.graph
    given = [n for n in graph.inputs if n != program.supplied]
    best = Bound(sum(_size(program, n) for n in given), "the caller's input")
    calls: list[tuple[Sequence[int], tuple[str, ...]]] = [(program.infer_steps, program.outputs)]
    if program.trains:
        calls.append((program.train_steps, program.kept))
    for steps, results in calls:
        nodes = [graph.nodes[i] for i in steps]
        best = max(best, _call_bound(program, nodes, given, results), key=lambda b: b.nbytes)
    return best


def _call_bound(program: Program, nodes: Sequence[Node], given: Sequence[str], results: Sequence[str]) -> Bound:
    """The largest need of one call's steps."""
    graph = program.graph
    root = {name: name for name in graph.tensors}
    maker: dict[str, int] = {}
    readers: dict[str, list[int]] = {}
    before: list[set[int]] = []  # steps that come before each step, whatever the order
    for i, node in enumerate(nodes):
        mine = {maker[root[n]] for n in node.inputs if root[n] in maker}
        mine |= {r for n in graph.mutated(node) for r in readers.get(n, [])}
        if node.op.view:
            root[node.outputs[0]] = root[node.inputs[0]]
        for n in node.inputs:
            readers.setdefault(root[n], []).append(i)
        for n in node.outputs:
            if graph.tensors[n].role is Role.VALUE and root[n] == n:
                maker[n] = i
        before.append(mine.union(*(before[j] for j in mine)))
    held = {root[n] for n in results}
    best = Bound(0, "")
    for i, node in enumerate(nodes):
        types = program.types(node)
        if node.op.view or (len(types.outs[0].shape) == 4 and node.op.rows(types) is not None):
            continue
        own = {root[n] for n in (*node.inputs, *node.outputs) if root[n] in maker or root[n] in given}
        across = {
            n
            for n in (*maker, *given)
            if n not in own
            and (n in given or maker[n] in before[i])
            and (n in held or any(i in before[r] for r in readers.get(n, [])))
        }
        need = sum(_size(program, n) for n in own | across) - _shared(program, node)
        need += -(-_frugal(node).op.kernel(types).workspace // ALIGN) * ALIGN
        best = max(best, Bound(need, f"{node.name} ({node.op.title})"), key=lambda b: b.nbytes)
    return best


def _shared(program: Program, node: Node) -> int:
    """Bytes that results may take over from operands, at most."""
    pairs = [(node.outputs[o], node.inputs[i]) for o, i in node.op.inplace]
    best: dict[str, int] = {}
    for out, source in pairs:
        if {program.graph.tensors[n].role for n in (out, source)} <= {Role.VALUE, Role.INPUT}:
            best[out] = max(best.get(out, 0), min(_size(program, out), _size(program, source)))
    return sum(best.values())


def _size(program: Program, name: str) -> int:
    return -(-max(1, program.graph.type(name).nbytes) // ALIGN) * ALIGN
