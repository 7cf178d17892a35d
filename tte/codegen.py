"""A plan becomes C: `{path: text}`. Decides nothing; the same bytes on every machine."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import jinja2
import numpy as np

from tte import resources
from tte.ir import Array, Node, Role, Tensor, TensorType
from tte.ops.base import Kernel
from tte.ops.loss import Loss
from tte.ops.segment import Segment
from tte.planner.arena import Plan
from tte.planner.kernels import rolling_bytes
from tte.planner.schedule import Buffer
from tte.reference import pack
from tte.training.autodiff import LOSS, TRUTH

_C_TYPES = {"int8": "int8_t", "uint8": "uint8_t", "int16": "int16_t", "uint16": "uint16_t", "int32": "int32_t"}
_C_TYPES |= {"bit": "uint8_t", "int4": "uint8_t"}
_STATE_ALIGN = 4
_NAME_LIMIT = 48
_FN = "@fn@"  # a kernel's name while its text is compared
_HEADERS = frozenset({
    "assert", "complex", "ctype", "errno", "fenv", "float", "inttypes", "iso646", "limits", "locale", "math", "setjmp",
    "signal", "stdalign", "stdarg", "stdatomic", "stdbool", "stddef", "stdint", "stdio", "stdlib", "stdnoreturn",
    "string", "strings", "tgmath", "threads", "time", "uchar", "unistd", "wchar", "wctype", "main",
})  # fmt: skip


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


@dataclass
class _Names:
    """C identifiers for tensor names: readable, unique, stable."""

    taken: dict[object, str] = field(default_factory=dict)

    def __call__(self, name: str, key: object = None) -> str:
        """The identifier of a tensor, or of what else `key` stands for."""
        key = key or name
        if key not in self.taken:
            base = re.sub(r"\W+", "_", name.split(";")[0], flags=re.ASCII).strip("_")[-48:].strip("_") or "t"
            base = f"t_{base}" if base[0].isdigit() else base
            wish, i = base, 1
            while wish in self.taken.values():
                wish, i = f"{base}_{i}", i + 1
            self.taken[key] = wish
        return self.taken[key]


@dataclass(frozen=True)
class Step:
    """One call in the generated program."""

    index: int
    comment: str
    call: str


def c_name(wish: str) -> str:
    """A model's name as a C identifier and folder name; no keyword, and no name of a header that C or tte includes."""
    name = re.sub(r"\W+", "_", wish, flags=re.ASCII).strip("_").lower()[:_NAME_LIMIT].strip("_") or "model"
    taken = name in _HEADERS or name.startswith("tte") or name[0].isdigit()
    return f"m_{name}" if taken else name


def comment(text: str) -> str:
    """Text that cannot end or upset a C comment, whatever names it holds: printable ASCII without an asterisk."""
    return re.sub(r"[^ -)+-~]", "_", text)


def render(plan: Plan, name: str, note: str, target: str = "", *, switches: bool = False) -> dict[str, str]:
    """The library: file path to text.

    Args:
        name: C prefix and library name, an identifier.
        note: one line for people: model, scheme, numerics.
        target: code for another target than the plan's, in the same memory: "portable" for the host's fast twin.
        switches: every step can be switched off, for `tte.search.twin`; `src/twin.c` drives it.
    """
    return _Library(plan, name, note, target or plan.program.target, switches).files()


class _Library:
    def __init__(self, plan: Plan, name: str, note: str, target: str, switches: bool) -> None:
        self.plan, self.name, self.note, self.target, self.switches = plan, name, comment(note), target, switches
        self.needs: set[str] = set()
        self.program, self.graph = plan.program, plan.program.graph
        loader = jinja2.FileSystemLoader(resources.path("templates"))
        self.env = jinja2.Environment(
            loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
        )
        self.env.globals["switches"] = switches  # kernels of a search keep channels
        self.names = _Names()
        self.functions: dict[tuple[str, tuple[tuple[str, object], ...]], str] = {}
        self.bodies: dict[str, str] = {}
        self.segments: list[dict[str, object]] = []
        self.tables: dict[str, str] = {}
        self.shared: dict[tuple[str, str, bytes], str] = {}
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
        initial = [(s, self.symbol(graph.tensors[s.name])) for s in self.slots.values() if graph.data(s.name).any()]
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
            "functions": [
                body.replace(_FN, name).replace(f"static void {name}(", f"TTE_NOINLINE\nstatic void {name}(", 1)
                for body, name in self.bodies.items()
            ],
            "dsp": "dsp" in self.needs,
            "tables": self.tables,
            "declarations": list(declarations(self.tables)),
        }

    def _view(self, name: str) -> dict[str, object]:
        tensor = self.graph.tensors[name]
        buffer = next((b for b in self.plan.buffers if name in b.tensors), Buffer(name, (), tensor.type.nbytes, 0, 0))
        return {
            "name": name,
            "id": self.names(name),
            "offset": self.plan.offsets.get(name, 0),
            "nbytes": tensor.type.nbytes,
            "elements": tensor.type.elements,
            "c_type": _C_TYPES[tensor.type.dtype],
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
        args += [self._table(node, label, data) for label, data in kernel.tables]
        args += [self._argument(n, True) for n in outputs]
        if kernel.workspace:
            args.append(f"arena + {self.plan.workspaces[index]}")
        if kernel.control:
            args.append("&control")
        shapes = " ".join(str(self.graph.type(n)) for n in (*node.inputs[:1], *outputs[:1])).split(" (")[0]
        about = comment(f"{index} {node.name}: {node.op.title} {shapes}")
        return Step(index, about, f"{self._function(kernel)}({', '.join(args)});")

    def _rows(self, index: int, node: Node, segment: Segment) -> Step:
        """A segment: a function of its own that runs the stages in the order of rows."""
        base = self.plan.workspaces.get(index, 0)
        stages = []
        for i, (inner, kernel) in enumerate(zip(segment.nodes, self.program.stage_kernels(node, self.target), strict=True)):
            rule = segment.rule(i)

            def place(name: str, writes: bool, whole: bool = rule.whole, i: int = i) -> str:
                return self._row_argument(segment, base, name, writes, "" if whole else f"row[{i}]")

            args = [place(n, False) for n in inner.inputs]
            args += [self._table(inner, label, data) for label, data in kernel.tables]
            args += [place(n, True) for n in inner.outputs]
            if kernel.workspace:
                args.append(f"arena + {base + rolling_bytes(segment)}")
            args += [f"row[{i}]"] * rule.whole
            about = comment(f"{inner.name}: {inner.op.title}")
            stages.append((about, f"{self._function(kernel)}({', '.join(args)});"))
        if segment.supplied:
            i = len(segment.nodes)
            where = self._row_argument(segment, base, segment.supplied, True, f"row[{i}]")
            stages.append((comment(f"{segment.supplied}: from the caller"), f"{self.name}_read_row(row[{i}], {where});"))
        order = segment.order
        numbers = [", ".join(map(str, order.stages[i : i + 32])) for i in range(0, len(order.stages), 32)]
        rings = [(comment(n), ring, base + ring.offset, segment.type(n).shape[1]) for n, ring in order.rings.items()]
        function = f"rows_{len(self.segments)}"
        self.segments.append({"fn": function, "name": comment(node.name), "stages": stages, "order": numbers, "rings": rings})
        return Step(index, comment(f"{index} {node.name}: row by row"), f"{function}();")

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
        return f"({'' if writes else 'const '}{_C_TYPES[t.dtype]} *)({at})"

    def _function(self, kernel: Kernel) -> str:
        key = (kernel.template, tuple(sorted(kernel.params.items())))
        self.needs.add(kernel.needs)
        if key not in self.functions:
            template = self.env.get_template(f"kernels/{kernel.template}.c.j2")
            body = template.render(kernel.params, fn=_FN).strip()
            # Parameters that do not show in the text (sizes in a table) make no other function.
            base = kernel.template.replace("/", "_")
            count = sum(1 for name in self.bodies.values() if name.rpartition("_")[0] == base)
            self.functions[key] = self.bodies.setdefault(body, f"{base}_{count}")
        return self.functions[key]

    def _argument(self, name: str, writes: bool) -> str:
        tensor = self.graph.tensors[name]
        const = "" if writes else "const "
        pointer = f"({const}{_C_TYPES[tensor.type.dtype]} *)"
        if tensor.role is Role.CONST:
            return self.symbol(tensor)
        if tensor.role is Role.PARAM:
            return f"{pointer}(state + IN_{self.names(name)})"
        return f"{pointer}(arena + AT_{self.names(name)})"

    def symbol(self, tensor: Tensor) -> str:
        """The C name of a constant (or of a parameter's initial contents), which is emitted once."""
        symbol = f"{self.name}_data_{self.names(tensor.name)}"
        if symbol not in self.tables:
            assert tensor.data is not None
            data = tensor.data
            if tensor.type.dtype in ("bit", "int4"):
                data = np.frombuffer(pack(data, tensor.type.dtype), np.uint8)
            self.tables[symbol] = self._array(symbol, data, comment(f"{tensor.name}: {tensor.type}"))
        return symbol

    def _table(self, node: Node, label: str, data: Array) -> str:
        # Many layers share tables (the powers of two, equal channels): one copy in flash serves them.
        key = (label, str(data.dtype), data.tobytes())
        if key not in self.shared:
            wish = f"{node.name.split(';')[0]}/{label}"
            symbol = self.shared[key] = f"{self.name}_data_{self.names(wish, key)}"
            self.tables[symbol] = self._array(symbol, data, "")
        return self.shared[key]

    @staticmethod
    def _array(symbol: str, data: Array, about: str) -> str:
        flat = data.ravel()
        lines = [", ".join(map(str, flat[i : i + 24].tolist())) for i in range(0, flat.size, 24)]
        head = f"/* {about} */\n" if about else ""
        body = ",\n    ".join(lines)
        # Words are read from arrays of bytes, too.
        align = "" if data.dtype.itemsize == 4 else "_Alignas(4) "
        return f"{head}{align}const {_C_TYPES[str(data.dtype)]} {symbol}[{flat.size}] = {{\n    {body}}};"


def model_hash(plan: Plan) -> str:
    """16 hex digits that name a program: its steps, types, places and constants."""
    digest = hashlib.sha256(plan.program.graph.text().encode())
    digest.update(repr((sorted(plan.offsets.items()), sorted(plan.workspaces.items()), plan.arena_bytes)).encode())
    for t in plan.program.graph.tensors.values():
        if t.data is not None:
            digest.update(t.name.encode() + t.data.tobytes())
    return digest.hexdigest()[:16]


def declarations(tables: Mapping[str, str]) -> Iterable[str]:
    """`extern` lines for the constants."""
    for symbol, text in tables.items():
        kind = text.split("*/\n")[-1].split("const ")[1].split(" ")[0]
        yield f"extern const {kind} {symbol}[];"
