"""A picture of the arena over time: addresses by steps, every buffer a rectangle."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter

from tte import files
from tte.ir import Role
from tte.ops.loss import Loss
from tte.ops.segment import Segment
from tte.planner.arena import Plan
from tte.planner.schedule import Buffer

# Okabe and Ito's colours: told apart with any colour vision. The order is that of the legend.
KINDS: Mapping[str, str] = {
    "input": "#E69F00",
    "activation": "#9CD3F2",
    "saved for training": "#3B8FC4",
    "mask": "#CC79A7",
    "error": "#EE8A4A",
    "exponent, loss": "#999999",
    "rolling rows": "#5CC4A1",
    "workspace": "#F0E442",
}
_INK, _GREY, _RED = "#111111", "#666666", "#B00020"
_PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0}  # under text that lies on boxes
_WIDTH, _HEIGHT, _DPI = 20.0, 11.5, 130  # inches, inches, dots an inch
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.9, 0.25, 0.95, 2.45  # margins, inches
_FONT = 6.5  # points, of names inside
_SEGMENT_WIDTH = 2.0  # columns for each operator of a segment: so much happens within one step


@dataclass(frozen=True)
class Box:
    """A rectangle: bytes [at, at + nbytes) during steps [first, last], of a kind, with a name."""

    name: str
    kind: str
    at: int
    nbytes: int
    first: int
    last: int


def boxes(plan: Plan) -> list[Box]:
    """What lies in the arena: one box a tensor (a tensor in place begins where its predecessor ends) or workspace; the
    rolling buffers of a segment one by one."""
    program = plan.program
    nodes = program.graph.nodes
    born = {name: i for i, n in enumerate(nodes) for name in n.outputs}
    viewed = {n.outputs[0] for n in nodes if n.op.view}
    loss = next((i for i, n in enumerate(nodes) if isinstance(n.op, Loss)), len(nodes))
    reads: dict[str, int] = {}
    for i, node in enumerate(nodes):
        reads.update(dict.fromkeys(node.inputs, i))
    found: list[Box] = []
    for b in plan.buffers:
        if not b.tensors:
            found += _scratch(plan, b)
            continue
        names = [n for n in b.tensors if n not in viewed] or [b.tensors[0]]
        for name, after in zip(names, [*names[1:], ""], strict=True):
            tensor, first = program.graph.tensors[name], born.get(name, b.first)
            if tensor.role is Role.INPUT:
                kind = "input"
            elif tensor.type.dtype == "bit":
                kind = "mask"
            elif not tensor.type.shape or tensor.type.dtype == "int32":
                kind = "exponent, loss"
            elif first >= loss:
                kind = "error"
            else:
                saved = program.trains and reads.get(name, 0) >= program.forward
                kind = "saved for training" if saved else "activation"
            last = born[after] - 1 if after else b.last
            found.append(Box(name, kind, plan.offsets[name], tensor.type.nbytes, first, max(first, last)))
    return found


def _scratch(plan: Plan, buffer: Buffer) -> Iterator[Box]:
    step = buffer.first
    node, at = plan.program.graph.nodes[step], plan.workspaces[step]
    if not isinstance(node.op, Segment):
        kept = getattr(node.op, "buffered", False)
        yield Box("accumulators" if kept else "workspace", "workspace", at, buffer.nbytes, step, step)
        return
    for name, ring in node.op.order.rings.items():
        yield Box(f"{name} ({ring.rows} rows)", "rolling rows", at + ring.offset, ring.nbytes, step, step)


def arena_picture(
    paths: Sequence[Path], plan: Plan, *, title: str, subtitle: str = "", bound: tuple[int, str] | None = None
) -> None:
    """Writes the picture, in the format that each path's suffix names (.png: 2600 x 1495 pixels; .svg).

    The same plan gives the same bytes, with the same version of Matplotlib.

    Args:
        title: model, board and update scheme.
        subtitle: a second, smaller line.
        bound: a further lower bound: bytes, and what it means.

    Raises:
        TteError: a file cannot be written.
    """
    with matplotlib.rc_context({"svg.hashsalt": "tte", "svg.fonttype": "path", "font.family": "DejaVu Sans"}):
        figure = _drawn(plan, title, subtitle, bound)
        for path in paths:
            content = io.BytesIO()
            svg = path.suffix == ".svg"
            about = {"Date": None, "Creator": None} if svg else {"Software": None}
            figure.savefig(content, format=path.suffix[1:], dpi=_DPI, metadata=about)
            files.write(path, content.getvalue())


def _drawn(plan: Plan, title: str, subtitle: str, bound: tuple[int, str] | None) -> Figure:
    figure = Figure(figsize=(_WIDTH, _HEIGHT))
    FigureCanvasAgg(figure)
    inner = (_WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM)
    axes = figure.add_axes((_LEFT / _WIDTH, _BOTTOM / _HEIGHT, inner[0] / _WIDTH, inner[1] / _HEIGHT))
    edges = _edges(plan)
    top = max(plan.arena_bytes, 1) * 1.1
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(0, top)
    scale = (inner[0] * 72 / edges[-1], inner[1] * 72 / top)  # points a column, points a byte
    kinds, names = [], _Names(plan)
    for box in sorted(boxes(plan), key=lambda b: (b.at, b.first, b.name)):
        x, width = edges[box.first], edges[box.last + 1] - edges[box.first]
        border = 0.5 if box.nbytes * scale[1] > 2 else 0.0
        axes.add_patch(Rectangle((x, box.at), width, box.nbytes, facecolor=KINDS[box.kind], edgecolor=_INK, linewidth=border))
        _name(axes, box, names(box.name), x, width, scale)
        kinds.append(box.kind)
    _phases(axes, plan, edges)
    _limits(axes, plan, edges, names, bound)
    _columns(axes, plan, edges, names, scale[0])
    axes.set_ylabel("address in the arena (bytes)")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    axes.spines[["top", "right"]].set_visible(False)
    figure.text(_LEFT / _WIDTH, 1 - 0.38 / _HEIGHT, title, fontsize=15, fontweight="bold")
    figure.text(_LEFT / _WIDTH, 1 - 0.65 / _HEIGHT, subtitle, fontsize=10.5, color=_GREY)
    handles = [Patch(facecolor=c, edgecolor=_INK, linewidth=0.5, label=k) for k, c in KINDS.items() if k in kinds]
    corner = (1 - _RIGHT / _WIDTH, 1 - 0.12 / _HEIGHT)
    figure.legend(handles=handles, loc="upper right", bbox_to_anchor=corner, ncols=4, frameon=False, fontsize=9.5)
    return figure


def _edges(plan: Plan) -> list[float]:
    """Where each step's column begins, and where the last ends."""
    edges = [0.0]
    for node in plan.program.graph.nodes:
        wide = _SEGMENT_WIDTH * len(node.op.nodes) if isinstance(node.op, Segment) else 1.0
        edges.append(edges[-1] + wide)
    return edges


def _name(axes: Axes, box: Box, short: str, x: float, width: float, scale: tuple[float, float]) -> None:
    """The name and size inside, level or upright, or one of them, where there is room."""
    w, h = width * scale[0], box.nbytes * scale[1]
    size = f"{box.nbytes:,}"
    for text in (f"{short}  {size}", "\n".join((*short.split("/"), size)), short, size):
        lines = text.split("\n")
        # A letter of DejaVu Sans is 0.6 of its size wide, on average.
        long, thick = 0.62 * _FONT * max(map(len, lines)) + 2, 1.2 * _FONT * len(lines)
        for length, across, turn in ((w, h, 0), (h, w, 90)):
            if length > long and across > thick - 0.15 * _FONT:
                axes.text(
                    x + width / 2, box.at + box.nbytes / 2, text, fontsize=_FONT, color=_INK, rotation=turn, ha="center",
                    va="center_baseline" if turn == 0 and len(lines) == 1 else "center", clip_on=True,
                )  # fmt: skip
                return


class _Names:
    """Short names: without the folder that most nodes of a TFLite model share, and of a long name the telling end."""

    def __init__(self, plan: Plan) -> None:
        names = [n.name for n in plan.program.graph.nodes]
        folder, count = Counter(n.split("/")[0] for n in names if "/" in n).most_common(1)[0] if names else ("", 0)
        self._folder = f"{folder}/" if count > 0.6 * len(names) else "/"

    def __call__(self, name: str, limit: int = 32) -> str:
        ends = [part.split(";")[0].removeprefix(self._folder) for part in name.split("..")]  # a segment: first..last
        text = re.sub(r"[^ -~]", "?", "..".join(ends))
        text = text if len(text) <= limit else "…" + text[1 - limit :]
        return text.replace("$", r"\$")  # no formula


def _phases(axes: Axes, plan: Plan, edges: Sequence[float]) -> None:
    """Forward, inference only, backward: told above, parted by lines."""
    program, high = plan.program, plan.arena_bytes * 1.085
    parts = [("forward", 0, program.shared if program.trains else len(edges) - 1)]
    if program.trains:
        parts += [("inference only", program.shared, program.forward), ("backward and updates", program.forward, len(edges) - 1)]
    for i, (label, first, last) in enumerate(p for p in parts if p[2] > p[1]):
        if i:
            axes.axvline(edges[first], color=_INK, linewidth=1)
        narrow = label == "inference only" and edges[last] - edges[first] < 0.08 * edges[-1]
        axes.text(
            (edges[first] + edges[last]) / 2, high, label, ha="center", va="top", fontsize=5.5 if narrow else 11,
            color=_GREY, rotation=90 if narrow else 0,
        )  # fmt: skip
        axes.axvspan(edges[first], edges[last], color="#f5f5f5" if i % 2 == 0 else "#ffffff", zorder=0, linewidth=0)


def _limits(axes: Axes, plan: Plan, edges: Sequence[float], names: _Names, bound: tuple[int, str] | None) -> None:
    """The peak step, the arena's end, and the bounds."""
    step = plan.peak_step
    left, right = edges[step], edges[step + 1]
    node = plan.program.graph.nodes[step]
    axes.axvspan(left, right, facecolor="none", edgecolor=_RED, linewidth=1.6, zorder=4)
    axes.axhline(plan.lower_bound, color=_RED, linewidth=1.2, linestyle=(0, (6, 4)), zorder=4)
    late = left > 0.5 * edges[-1]
    same = "; placement reaches the bound" if plan.arena_bytes == plan.lower_bound else f"; arena {plan.arena_bytes:,}"
    text = f"peak: {plan.lower_bound:,} bytes live in step {step} {names(node.name)}{same}"
    axes.annotate(
        text, (left if late else right, plan.arena_bytes), (-6 if late else 6, 4), textcoords="offset points",
        ha="right" if late else "left", va="bottom", color=_RED, fontsize=10, fontweight="bold", zorder=5,
        bbox=_PAPER,
    )  # fmt: skip
    if plan.arena_bytes > plan.lower_bound:
        axes.axhline(plan.arena_bytes, color=_INK, linewidth=1.2, zorder=4)
    if bound is not None and 0 < bound[0] < plan.lower_bound:
        axes.axhline(bound[0], color=_GREY, linewidth=1.2, linestyle=(0, (1, 2)), zorder=4)
        axes.annotate(
            f"{bound[0]:,}: {bound[1]}", (edges[-1], bound[0]), (-4, 3), textcoords="offset points", ha="right",
            va="bottom", color=_INK, fontsize=9, zorder=5, bbox=_PAPER,
        )  # fmt: skip


def _columns(axes: Axes, plan: Plan, edges: Sequence[float], names: _Names, points: float) -> None:
    """Steps named below, as many as there is room for."""
    nodes = plan.program.graph.nodes
    size = min(7.0, max(5.0, 0.85 * points))
    every = max(1, -(-int(size * 100) // int(points * 100)))
    shown = [i for i in range(len(nodes)) if i % every == 0 or i == plan.peak_step]
    axes.set_xticks([(edges[i] + edges[i + 1]) / 2 for i in shown])
    labels = [f"{names(nodes[i].name)}  {i}" for i in shown]
    for i, label in zip(shown, axes.set_xticklabels(labels, rotation=90, fontsize=size), strict=True):
        if i == plan.peak_step:
            label.set(color=_RED, fontweight="bold")
    axes.tick_params(axis="x", length=2, pad=1)
    axes.set_xlabel("steps in program order; the arena is shared by both calls", color=_GREY)
