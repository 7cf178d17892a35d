"""What a run leaves behind: a JSON log and a picture of the learning curve. Files are replaced whole or not at all."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from tte import files
from tte.history import Point
from tte.run import RunLog

# Okabe and Ito's blue and vermilion: told apart with any colour vision, and in grey.
_BLUE, _RED, _GREY = "#0072B2", "#D55E00", "#666666"


def write_json(path: Path, log: RunLog, facts: Mapping[str, Any] | None = None) -> None:
    """The log as one JSON object, after the caller's `facts` (model, board, scheme ...).

    Raises:
        TteError: if the file cannot be written.
    """
    content = json.dumps({**(facts or {}), **log.as_dict()}, indent=1, allow_nan=False)
    files.write(path, (content + "\n").encode())


def learning_curve(
    path: Path, log: RunLog, *, title: str, subtitle: str = "", references: Mapping[str, float] | None = None
) -> None:
    """Held-out accuracy (or error) and training loss against training steps, as a PNG of 1600 x 1200 pixels.

    Args:
        title: model, board and update scheme.
        subtitle: a second, smaller line.
        references: held-out accuracies, 0..1 (or errors), to compare with: label -> a dashed line.

    Raises:
        TteError: if the file cannot be written.
    """
    figure = Figure(figsize=(8, 6), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    quality, loss = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    quality.set_title(subtitle, loc="left", fontsize=9.5, color=_GREY)
    above = 24 if subtitle else 6
    quality.annotate(
        title, (0, 1), (0, above), xycoords="axes fraction", textcoords="offset points", fontsize=13, fontweight="bold"
    )
    _draw_quality(quality, log, references or {})
    _draw_loss(loss, log)
    loss.set_xlabel("training steps (one sample each)")
    loss.set_xlim(0, max(1, log.steps))
    for axes in (quality, loss):
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    files.write(path, content.getvalue())


def _draw_quality(axes: Axes, log: RunLog, references: Mapping[str, float]) -> None:
    """Every evaluation; the first and the last named with their values."""
    classifies = all(point.accuracy is not None for point in log.curve)
    values = [_quality(point) for point in log.curve]
    axes.plot([p.step for p in log.curve], values, color=_BLUE, marker="o", markersize=4, linewidth=1.8, clip_on=False)
    if classifies:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axes.set_ylabel("held-out accuracy")
    else:
        axes.set_ylim(0, 1.15 * max([*values, *references.values()], default=1.0))
        axes.set_ylabel("held-out mean squared error")
    for label, value in references.items():
        axes.axhline(value, color=_GREY, linewidth=1, linestyle=(0, (5, 4)))
        axes.annotate(
            f"{label}: {_shown(value, classifies)}",
            (0, value),
            (6, -4),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=9,
            color=_GREY,
            va="top",
        )
    low, high = axes.get_ylim()
    for name, point, right in _ends(log):
        value = _quality(point)
        # Words lie below a curve that rises from the left and to the right, above where the axis is too near.
        below = value > low + (0.75 if right else 0.08) * (high - low)
        axes.plot([point.step], [value], color=_BLUE, marker="o", markersize=8, clip_on=False, zorder=3)
        axes.annotate(
            f"{name}: {_shown(value, classifies)}",
            (point.step, value),
            (-8 if right else 10, (-12 if right else -3) if below else 10),
            textcoords="offset points",
            ha="right" if right else "left",
            va="top" if below else "bottom",
            color=_BLUE,
            fontsize=11,
            fontweight="bold",
        )


def _draw_loss(axes: Axes, log: RunLog) -> None:
    """Each step's training loss, pale, and its moving average; the axis ends at the 99th percentile of the steps."""
    unit = "nats" if not log.curve or log.curve[0].accuracy is not None else "mean squared error"
    axes.set_ylabel(f"training loss ({unit})")
    known = [(step, loss) for step, loss in enumerate(log.losses, 1) if loss is not None]
    if not known:
        return
    steps, losses = (np.asarray(column) for column in zip(*known, strict=True))
    window = max(1, len(losses) // 25)
    average = _moving_average(losses, window)
    top = 1.05 * max(float(np.percentile(losses, 99)), float(average[window - 1 :].max()), 1e-9)
    above = int((losses > top).sum())
    label = f"each step ({above} lie above)" if above else "each step"
    axes.plot(steps, losses, ".", color=_RED, markersize=2.5, alpha=0.3, label=label)
    axes.plot(steps, average, color=_RED, linewidth=1.8, label=f"mean of the last {window} steps")
    axes.set_ylim(0, top)
    axes.legend(loc="upper right", frameon=False, fontsize=9)


def _moving_average(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean of the last `window` values, of fewer at the start; same length."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - window)
    return np.asarray((sums[end] - sums[start]) / (end - start))


def _ends(log: RunLog) -> list[tuple[str, Point, bool]]:
    """The first and last evaluation: name, point, whether it stands at the right edge."""
    ends = [("before", log.curve[0], False)] if log.curve else []
    if len(log.curve) > 1:
        ends.append(("last" if log.interrupted else "after", log.curve[-1], True))
    return ends


def _quality(point: Point) -> float:
    value = point.accuracy if point.accuracy is not None else point.error
    assert value is not None
    return value


def _shown(value: float, classifies: bool) -> str:
    return f"{100 * value:.1f} %" if classifies else f"{value:.4g}"
