"""How a run looks while it goes on."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tte.run import Event, RunLog


class Display:
    """Progress for people: a bar on a terminal, elsewhere a plain line after each evaluation.

    Use as a context manager and pass as `on_event`. Writes to standard error by default, so that `--json` stays clean.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(compact=True),
                console=self._console,
            )
            self._task = self._bar.add_task("measuring", text="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        if self._bar:
            doing = "learning " if event.kind == "train" else "measuring"
            self._bar.update(
                self._task, completed=event.done, total=event.total, description=doing, text=describe(event)
            )
        elif event.kind == "score":
            self._console.print(describe(event), highlight=False, soft_wrap=True)


def describe(event: Event) -> str:
    """One line: step, held-out accuracy (or error), loss, instructions."""
    parts = [f"step {event.step}/{event.steps}"]
    if event.score and event.score.accuracy is not None:
        parts.append(f"accuracy {100 * event.score.accuracy:.1f} %")
    if event.score and event.score.error is not None:
        parts.append(f"error {event.score.error:.4g}")
    if event.loss is not None:
        parts.append(f"loss {event.loss:.3g}")
    if event.instructions:
        parts.append(f"{event.instructions:,} instructions/step")
    return "  ".join(parts)


def outcome(log: RunLog) -> list[str]:
    """Held-out accuracy, or error, before and after."""
    lines = []
    for label, first, last in (
        ("accuracy", log.accuracy_before, log.accuracy_after),
        ("mean squared error", log.error_before, log.error_after),
    ):
        if first is not None:
            shown = [f"{v:.1%}" if label == "accuracy" else f"{v:.5g}" for v in (first, last) if v is not None]
            how = f"{' -> '.join(shown)} after" if last is not None else f"{shown[0]} before; not measured since, stopped after"
            lines.append(f"{label}: {how} {log.steps} steps")
    return lines
