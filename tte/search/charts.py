"""Pictures of a search: what each layer contributes, and accuracy against RAM."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from tte import files
from tte.search.candidate import Found, Layer, Limits, Measured
from tte.search.result import nondominated

# Okabe and Ito's colours: told apart with any colour vision, and in grey by the markers.
_BLUE, _RED, _GREEN, _ORANGE, _GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#666666"
_BARS = {0.125: "#BBDDF2", 0.25: "#8CC4E8", 0.5: "#4B9FD3", 1.0: _BLUE}
_KINDS = {"last": ("s", _GREY, "last layers whole"), "bias": ("^", _ORANGE, "biases alone"), "full": ("D", _GREEN, "everything")}


def layers(path: Path, found: Found, known: Sequence[Layer], title: str) -> None:
    """Bars of each layer's contribution, chosen layers marked, as a PNG; layers from first to last.

    Raises:
        DataError: the file cannot be written.
    """
    names = [x.name for x in known]
    figure = Figure(figsize=(max(8.0, 0.27 * len(names) + 2), 6), dpi=200, layout="constrained")
    axes = figure.subplots()
    _titled(axes, title, "what training a layer contributes; below: what the scheme trains")
    accuracy = all(abs(c.gain) <= 1 for c in found.contributions)
    scale = 100 if accuracy else 1
    for part, colour, marker in (("bias", _ORANGE, "o"), ("biases", _RED, ".")):
        points = {c.layer: scale * c.gain for c in found.contributions if c.part == part}
        if points:
            label = "its bias" if part == "bias" else "biases from here to the end"
            x = [i for i, n in enumerate(names) if n in points]
            line = "-" if part == "biases" else ""
            axes.plot(x, [points[names[i]] for i in x], marker + line, color=colour, label=label, zorder=3)
    fractions = sorted({c.fraction for c in found.contributions if c.part == "weights"})
    for i, fraction in enumerate(fractions):
        gains = {c.layer: scale * c.gain for c in found.contributions if c.part == "weights" and c.fraction == fraction}
        width = 0.8 / len(fractions)
        x = [names.index(n) for n in gains]
        left = [at - 0.4 + (i + 0.5) * width for at in x]
        axes.bar(left, list(gains.values()), width, color=_BARS.get(fraction, _GREY), label=f"weights, {fraction:g}")
    axes.set_ylabel("gain in accuracy, points" if accuracy else "score")
    axes.axhline(0, color=_GREY, linewidth=0.8)
    biases, weights = set(found.candidate.biases), {n: len(c) for n, c in found.candidate.weights}
    for i, layer in enumerate(known):
        share = (weights[layer.name] or layer.channels) / layer.channels if layer.name in weights else 0.0
        text = (f"w {share:.2g}" if share else "") + (" b" if layer.name in biases else "")
        axes.annotate(text.strip(), (i, 0), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points", rotation=90,
                      fontsize=6.5, ha="center", va="bottom", color=_RED)  # fmt: skip
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6.5)
    axes.set_xlim(-0.7, len(names) - 0.3)
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.15 * (high - low), high)  # room for the words
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def front(
    path: Path, best: Measured, found: Sequence[Measured], baselines: Sequence[Measured], limits: Limits, title: str
) -> None:
    """Accuracy against RAM: what was measured, its front, the baselines and the chosen scheme, as a PNG.

    Raises:
        DataError: the file cannot be written.
    """
    figure = Figure(figsize=(8, 6), dpi=200, layout="constrained")
    axes = figure.subplots()
    bars = f"bars: standard deviation over {len(best.accuracies)} seeds"
    _titled(axes, title, f"validation accuracy after {limits.samples:,} training steps; {bars}")
    edge = nondominated(found)
    _points(axes, found, "o", _BLUE, "searched", 0.45)
    axes.step([_kib(m) for m in edge], [m.mean for m in edge], where="post", color=_BLUE, linewidth=1.8, label="front")
    groups: dict[str, list[Measured]] = {}
    for m in baselines:
        groups.setdefault(m.name.split("-")[0], []).append(m)
    for kind, members in groups.items():
        marker, colour, label = _KINDS.get(kind, ("v", _RED, kind))
        _points(axes, sorted(members, key=lambda m: m.price.ram_bytes), marker, colour, label, 1.0, line=len(members) > 1)
    label = f"chosen: {100 * best.mean:.1f} %"
    axes.plot([_kib(best)], [best.mean], "*", color=_RED, markersize=16, zorder=4, label=label)
    if limits.ram_bytes is not None:
        axes.axvline(limits.ram_bytes / 1024, color=_GREY, linewidth=1, linestyle=(0, (5, 4)), label="limit")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.set_xlabel("RAM of the whole program, KiB")
    axes.set_ylabel("validation accuracy")
    axes.legend(frameon=False, fontsize=9)
    _save(figure, path)


def _points(
    axes: Axes, members: Sequence[Measured], marker: str, colour: str, label: str, alpha: float, *, line: bool = False
) -> None:
    x, y = [_kib(m) for m in members], [m.mean for m in members]
    style = marker + ("--" if line else "")
    axes.errorbar(
        x, y, [m.spread for m in members], fmt=style, color=colour, alpha=alpha, label=label, markersize=5, linewidth=1,
        elinewidth=0.8,
    )  # fmt: skip


def _kib(m: Measured) -> float:
    return m.price.ram_bytes / 1024


def _titled(axes: Axes, title: str, subtitle: str) -> None:
    axes.set_title(subtitle, loc="left", fontsize=9.5, color=_GREY)
    axes.annotate(
        title, (0, 1), (0, 24), xycoords="axes fraction", textcoords="offset points", fontsize=13, fontweight="bold"
    )
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    files.write(path, content.getvalue())
