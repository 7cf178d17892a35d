"""Jobs on all cores, or on a cluster: results as they come, with the time left; Ctrl-C leaves nothing running."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tte.errors import ToolchainError

T = TypeVar("T")


class Pool:
    """Runs jobs; the order in which they end is anyone's guess, so they must not depend on each other.

    Args:
        workers: processes; 1: this one. 0: as many as there are cores.
        scheduler: address of a Dask scheduler, whose workers see the same files under the same paths; empty: none.
        console: where progress goes.

    Raises:
        ToolchainError: the scheduler cannot be used.
    """

    def __init__(self, workers: int = 1, scheduler: str = "", console: Console | None = None) -> None:
        self.workers = workers or _cores()
        self.scheduler = scheduler
        self._console = console or Console(stderr=True, quiet=True)
        self._client = _connect(scheduler) if scheduler else None

    def run(self, title: str, job: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, T]]:
        """Runs `job` with each of the arguments; gives (index, result) as results come.

        Raises:
            whatever a job raises; KeyboardInterrupt. The other jobs are stopped then.
        """
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
                   TextColumn("left"), TimeRemainingColumn())  # fmt: skip
        shown = self._console.is_terminal and not self._console.quiet
        with Progress(*columns, console=self._console, transient=True, disable=not shown) as progress:
            bar = progress.add_task(title, total=len(arguments))
            for index, result in self._results(job, arguments):
                progress.advance(bar)
                yield index, result

    def _results(self, job: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, T]]:
        if not self.scheduler and (self.workers == 1 or len(arguments) == 1):
            yield from ((i, job(*a)) for i, a in enumerate(arguments))
            return
        import joblib  # slow to load, and other commands do without

        backend: dict[str, Any] = {"backend": "dask"} if self.scheduler else {"backend": "loky", "n_jobs": self.workers}
        with joblib.parallel_config(**backend):
            parallel = joblib.Parallel(return_as="generator_unordered", batch_size=1)
            results = parallel(joblib.delayed(_numbered)(i, job, a) for i, a in enumerate(arguments))
            try:
                yield from results
            except BaseException:
                self._stop()
                with contextlib.suppress(BaseException):
                    results.close()
                raise

    def _stop(self) -> None:
        if self.scheduler:
            return
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True, kill_workers=True)

    def close(self) -> None:
        """Ends the workers."""
        if self._client is not None:
            self._client.close()
        elif self.workers > 1:
            from joblib.externals.loky import get_reusable_executor

            get_reusable_executor().shutdown(wait=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _numbered(index: int, job: Callable[..., T], arguments: tuple[Any, ...]) -> tuple[int, T]:
    with contextlib.suppress(ValueError):  # a cluster's worker runs jobs in a thread
        # Ctrl-C reaches the whole process group: the search itself decides what happens.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return index, job(*arguments)


def _connect(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError:
        raise ToolchainError("Dask is not installed", where="--scheduler", remedy="pip install 'tte[cluster]'") from None
    try:
        return Client(address, timeout="10s")
    except (OSError, ValueError) as error:
        raise ToolchainError(f"no Dask scheduler answers: {error}", where=address) from None
