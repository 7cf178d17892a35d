"""A plan becomes C: `{path: text}`. Decides nothing; the same bytes on every machine."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

import jinja2

from tte import resources
from tte.emit import C_TYPES, Constants, Names, comment
from tte.emit import c_name as c_name
from tte.ir import Node, Role, TensorType
from tte.latent import frozen_cut
from tte.ops.base import Kernel
from tte.ops.loss import Loss
from tte.ops.phases import PER_PIECE
from tte.ops.segment import Ring, Segment
from tte.planner.arena import Plan
from tte.planner.kernels import rolling_bytes
from tte.planner.schedule import Buffer
from tte.slices import Pieces, call_price, pieces, row_price, sliced
from tte.steps import expected, row_work
from tte.training.autodiff import LOSS, TRUTH

_STATE_ALIGN = 4
_FN = "@fn@"  # a kernel's name while its text is compared

@dataclass(frozen=True)
class StateSlot:
    """Where a trained tensor lies in the state block."""

    name: str
    offset: int
    type: TensorType


def state_slots(plan: Plan) -> tuple[StateSlot, ...]:
    """The layout of the trained state: weights, biases, residuals and held sums, in the graph's order."""
    slots, at = [], 0
    for t in plan.program.graph.of_role(Role.PARAM):
        slots.append(StateSlot(t.name, at, t.type))
        at += -(-t.type.nbytes // _STATE_ALIGN) * _STATE_ALIGN
    return tuple(slots)


def state_bytes(plan: Plan) -> int:
    """Size of the trained state, in bytes."""
    slots = state_slots(plan)
    return slots[-1].offset + -(-slots[-1].type.nbytes // _STATE_ALIGN) * _STATE_ALIGN if slots else 0


@dataclass(frozen=True)
class Step:
    """One call in the generated program.

    Attributes:
        pieces: how it is cut, in a program whose calls can be resumed.
        rows: of a segment, the function that runs it.
    """

    index: int
    comment: str
    call: str
    pieces: Pieces | None = None
    rows: str = ""


@dataclass(frozen=True)
class _Rows:
    """The function of a segment: its stages (comment, call), their order, rolling buffers and instructions a row."""

    fn: str
    name: str
    stages: list[tuple[str, str]]
    order: list[str]
    rings: list[tuple[str, Ring, int, int]]
    prices: list[int]


def render(
    plan: Plan, name: str, note: str, target: str = "", *,
    switches: bool = False, latent: bool = False, resumable: bool = False,
) -> dict[str, str]:  # fmt: skip
    """The library: file path to text.

    Args:
        name: C prefix and library name, an identifier.
        note: one line for people: model, scheme, numerics.
        target: code for another target than the plan's, in the same memory: "portable" for the host's fast twin.
        latent: also steps from the frozen cut (`tte.latent`), where the program trains.
        resumable: every call can also be done in slices (`tte.slices`).
        switches: every step can be switched off, for `tte.search.twin`; `src/twin.c` drives it.
    """
    assert not (switches and resumable), "pieces of a step know nothing of steps that are switched off"
    return _Library(plan, name, note, target or plan.program.target, switches, latent, resumable).files()


class _Library:
    def __init__(
        self, plan: Plan, name: str, note: str, target: str, switches: bool, latent: bool, resumable: bool
    ) -> None:
        self.plan, self.name, self.note, self.target, self.switches = plan, name, comment(note), target, switches
        self.needs: set[str] = set()
        self.program, self.graph = plan.program, plan.program.graph
        loader = jinja2.FileSystemLoader(resources.path("templates"))
        self.env = jinja2.Environment(
            loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
        )
        self.env.globals["switches"] = switches  # kernels of a search keep channels
        self.env.globals["per_piece"] = PER_PIECE
        self.names = Names()
        self.constants = Constants(name, self.names)
        self.functions: dict[tuple[str, bool, tuple[tuple[str, object], ...]], str] = {}
        self.bodies: dict[str, str] = {}
        self.segments: list[_Rows] = []
        self.cut = frozen_cut(plan) if latent and plan.program.trains else None
        self.resumable = resumable
        self.slots = {s.name: s for s in state_slots(plan)}

    def files(self) -> dict[str, str]:
        steps = [s for i, node in enumerate(self.graph.nodes) if (s := self._step(i, node))]
        context = self._context(steps)
        n = self.name
        rendered = {
            f"include/{n}.h": self.env.get_template("model.h.j2").render(context),
            "include/tte_model.h": self.env.get_template("tte_model.h.j2").render(context),
            f"src/{n}.c": self.env.get_template("model.c.j2").render(context),
            f"src/{n}_kernels.h": self.env.get_template("kernels.h.j2").render(context),
            f"src/{n}_data.h": self.env.get_template("data.h.j2").render(context),
            f"src/{n}_data.c": self.env.get_template("data.c.j2").render(context),
            **{f"src/{file}": (resources.path("templates") / file).read_text(encoding="utf-8") for file in self._runtime()},
            "library.json": json.dumps(self._manifest(), indent=2) + "\n",
        }
        if self.resumable:
            rendered |= _examples()
        if self.switches:
            rendered["src/twin.c"] = self.env.get_template("twin.c.j2").render(context)
        return {path: re.sub(r"\n{3,}", "\n\n", text) for path, text in rendered.items()}

    def _runtime(self) -> tuple[str, ...]:
        """The files that every library of its kind shares."""
        return ("tte_runtime.h", *(("tte_dsp.h", "tte_dsp.S") if "dsp" in self.needs else ()))

    def _manifest(self) -> dict[str, object]:
        return {
            "name": self.name,
            "version": "1.0.0",
            "description": self.note,
            "frameworks": "*",
            "platforms": "*",
            "headers": [f"{self.name}.h"],
            "build": {"includeDir": "include", "srcDir": "src", "flags": "-std=gnu11"},
        }

    def _context(self, steps: list[Step]) -> dict[str, object]:
        program, graph = self.program, self.graph
        model_input = next(i for i in graph.inputs if i != TRUTH)
        truth = graph.tensors.get(TRUTH)
        loss = next((n.op for n in graph.nodes if isinstance(n.op, Loss)), None)
        by_label = truth is not None and truth.type.dtype == "int32"
        initial = [(s, self.constants.symbol(graph.tensors[s.name])) for s in self.slots.values() if graph.data(s.name).any()]
        return {
            "name": self.name,
            "upper": self.name.upper(),
            "note": self.note,
            "note_text": re.sub(r'[^ -~]|["\\\\?]', "_", self.note),
            "hash": model_hash(self.plan),
            "trains": program.trains,
            "arena_bytes": max(self.plan.arena_bytes, 8),
            "state_bytes": state_bytes(self.plan),
            "input": self._view(model_input),
            "row_bytes": graph.type(model_input).nbytes // graph.type(model_input).shape[1] if program.supplied else 0,
            "input_rows": graph.type(model_input).shape[1] if program.supplied else 0,
            "outputs": [self._view(o) for o in program.outputs],
            "logits": self._view(program.kept[0]) if program.trains else None,
            "loss": self._view(LOSS) if program.trains else None,
            "loss_unit": loss.unit if loss else "",
            "truth": self._view(TRUTH) if truth else None,
            "by_label": by_label,
            "switches": self.switches,
            "steps": len(graph.nodes),
            "classes": graph.type(program.kept[0]).elements if program.trains else 0,
            "views": [self._view(t) for b in self.plan.buffers for t in b.tensors],
            "buffers": {t: b for b in self.plan.buffers for t in b.tensors},
            "slots": [(self.names(s.name), s) for s in self.slots.values()],
            "initial": initial,
            "segments": self.segments,
            "supplied": bool(program.supplied),
            "shared": [s for s in steps if s.index < program.shared],
            "alone": [s for s in steps if program.shared <= s.index < program.forward],
            "training": [s for s in steps if s.index >= program.forward],
            "resumable": self.resumable,
            "lines": steps,
            "most_pieces": max((s.pieces.count for s in steps if s.pieces), default=0),
            "call_price": call_price(self.target),
            "longest_piece": call_price(self.target) + max((s.pieces.largest for s in steps if s.pieces), default=0),
            "most_stages": max((len(s.prices) for s in self.segments), default=0),
            **self._latent(steps),
            "functions": [
                body.replace(_FN, name).replace(f"static void {name}(", f"TTE_NOINLINE\nstatic void {name}(", 1)
                for body, name in self.bodies.items()
            ],
            "dsp": "dsp" in self.needs,
            "tables": self.constants.texts,
            "declarations": list(self.constants.declarations()),
        }

    def _latent(self, steps: list[Step]) -> dict[str, object]:
        cut = self.cut
        if cut is None:
            return {"latent": False}
        return {
            "latent": True,
            "cut": cut,
            "split": sum(s.index < cut.step for s in steps),
            "rows_cross": self._rows_cross,
            "crossing": [
                {"name": comment(p.name), "at": f"AT_{self.names(p.name)}", "nbytes": p.nbytes} for p in cut.parts
            ],
        }

    @property
    def _rows_cross(self) -> bool:
        """Whether the latent is the input, of which the caller supplies the rows."""
        return self.cut is not None and self.cut.step == 0 and bool(self.program.supplied)

    def _view(self, name: str) -> dict[str, object]:
        tensor = self.graph.tensors[name]
        buffer = next((b for b in self.plan.buffers if name in b.tensors), Buffer(name, (), tensor.type.nbytes, 0, 0))
        return {
            "name": name,
            "id": self.names(name),
            "offset": self.plan.offsets.get(name, 0),
            "nbytes": tensor.type.nbytes,
            "elements": tensor.type.elements,
            "c_type": C_TYPES[tensor.type.dtype],
            "type": str(tensor.type),
            "first": buffer.first,
            "last": buffer.last,
        }

    def _step(self, index: int, node: Node) -> Step | None:
        if node.op.view:
            return None
        if isinstance(node.op, Segment):
            return self._rows(index, node, node.op)
        kernel = self.program.kernel(node, self.target)
        outputs = [o for o in node.outputs if self.graph.tensors[o].role is not Role.PARAM]
        changed = set(self.graph.mutated(node))
        args = [self._argument(n, n in changed) for n in node.inputs]
        args += [self.constants.table(node, label, data) for label, data in kernel.tables]
        args += [self._argument(n, True) for n in outputs]
        if kernel.workspace:
            args.append(f"arena + {self.plan.workspaces[index]}")
        if kernel.control:
            args.append("&now.control" if self.resumable else "&control")
        cut = self.resumable and sliced(kernel)
        if cut:
            args.append("&now.piece")
        shapes = " ".join(str(self.graph.type(n)) for n in (*node.inputs[:1], *outputs[:1])).split(" (")[0]
        about = comment(f"{index} {node.name}: {node.op.title} {shapes}")
        work = expected(node, self.program.types(node), kernel)
        parts = pieces(kernel, work, self.target) if self.resumable else None
        return Step(index, about, f"{self._function(kernel, cut)}({', '.join(args)});", parts)

    def _rows(self, index: int, node: Node, segment: Segment) -> Step:
        """A segment: a function of its own that runs the stages in the order of rows."""
        base = self.plan.workspaces.get(index, 0)
        stages, prices = [], []
        for i, (inner, kernel) in enumerate(zip(segment.nodes, self.program.stage_kernels(node, self.target), strict=True)):
            rule = segment.rule(i)

            def place(name: str, writes: bool, whole: bool = rule.whole, i: int = i) -> str:
                return self._row_argument(segment, base, name, writes, "" if whole else f"row[{i}]")

            args = [place(n, False) for n in inner.inputs]
            args += [self.constants.table(inner, label, data) for label, data in kernel.tables]
            args += [place(n, True) for n in inner.outputs]
            if kernel.workspace:
                args.append(f"arena + {base + rolling_bytes(segment)}")
            args += [f"row[{i}]"] * rule.whole
            about = comment(f"{inner.name}: {inner.op.title}")
            prices.append(row_price(kernel, row_work(segment, inner, kernel), self.target))
            stages.append((about, f"{self._function(kernel)}({', '.join(args)});"))
        if segment.supplied:
            i = len(segment.nodes)
            where = self._row_argument(segment, base, segment.supplied, True, f"row[{i}]")
            prices.append(segment.type(segment.supplied).nbytes // segment.type(segment.supplied).shape[1] + 20)
            reader = "supply_row" if self._rows_cross else f"{self.name}_read_row"
            stages.append((comment(f"{segment.supplied}: from the caller"), f"{reader}(row[{i}], {where});"))
        order = segment.order
        numbers = [", ".join(map(str, order.stages[i : i + 32])) for i in range(0, len(order.stages), 32)]
        rings = [(comment(n), ring, base + ring.offset, segment.type(n).shape[1]) for n, ring in order.rings.items()]
        function = f"rows_{len(self.segments)}"
        self.segments.append(_Rows(function, comment(node.name), stages, numbers, rings, prices))
        parts = Pieces(len(order.stages), max(prices), len(order.stages), 0)
        return Step(index, comment(f"{index} {node.name}: row by row"), f"{function}();", parts, function)

    def _row_argument(self, segment: Segment, base: int, name: str, writes: bool, row: str) -> str:
        """A tensor as an argument of a row step; with `row`, the address of that row."""
        tensor = self.graph.tensors.get(name)
        ring = segment.order.rings.get(name)
        if ring is None and tensor is not None and (tensor.role in (Role.CONST, Role.PARAM) or not row):
            whole = self._argument(name, writes)
            # A parameter is no activation: it has no rows.
            rows = row and tensor.role is not Role.PARAM
            return f"{whole} + {row} * {tensor.type.nbytes // tensor.type.shape[1]}" if rows else whole
        t = segment.type(name)
        row_bytes = t.nbytes // t.shape[1]
        at = f"arena + {base + ring.offset}" if ring else f"arena + AT_{self.names(name)}"
        if row:
            held = segment.held(name)
            at += " + " + (f"{row} % {held} * {row_bytes}" if held < t.shape[1] else f"{row} * {row_bytes}")
        return f"({'' if writes else 'const '}{C_TYPES[t.dtype]} *)({at})"

    def _function(self, kernel: Kernel, cut: bool = False) -> str:
        key = (kernel.template, cut, tuple(sorted(kernel.params.items())))
        self.needs.add(kernel.needs)
        if key not in self.functions:
            template = self.env.get_template(f"kernels/{kernel.template}.c.j2")
            body = template.render(kernel.params, fn=_FN, slices=cut).strip()
            # Parameters that do not show in the text (sizes in a table) make no other function.
            base = kernel.template.replace("/", "_")
            count = sum(1 for name in self.bodies.values() if name.rpartition("_")[0] == base)
            self.functions[key] = self.bodies.setdefault(body, f"{base}_{count}")
        return self.functions[key]

    def _argument(self, name: str, writes: bool) -> str:
        tensor = self.graph.tensors[name]
        const = "" if writes else "const "
        pointer = f"({const}{C_TYPES[tensor.type.dtype]} *)"
        if tensor.role is Role.CONST:
            return self.constants.symbol(tensor)
        if tensor.role is Role.PARAM:
            return f"{pointer}(state + IN_{self.names(name)})"
        return f"{pointer}(arena + AT_{self.names(name)})"


def _examples() -> dict[str, str]:
    """Programs round a model that learns in slices, for people to start from; PlatformIO compiles none of a library's."""
    folder = resources.path("firmware") / "examples"
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".c", ".h"))
    return {f"examples/{p.relative_to(folder).as_posix()}": p.read_text(encoding="utf-8") for p in files}


def model_hash(plan: Plan) -> str:
    """16 hex digits that name a program: its steps, types, places and constants."""
    digest = hashlib.sha256(plan.program.graph.text().encode())
    digest.update(repr((sorted(plan.offsets.items()), sorted(plan.workspaces.items()), plan.arena_bytes)).encode())
    for t in plan.program.graph.tensors.values():
        if t.data is not None:
            digest.update(t.name.encode() + t.data.tobytes())
    return digest.hexdigest()[:16]
