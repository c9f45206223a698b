"""Progress of long work: a callable, silent unless the caller passes one that shows something."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

from simmst.foundation.extras import import_extra


class Progress(Protocol):
    """The function that long work calls as it advances.

    Example:
        >>> lines = []
        >>> def note(task: str, done: int, total: int, details: Mapping[str, float] | None = None) -> None:
        ...     lines.append(f"{task} {done}/{total}")
        >>> note("pretrain", 1, 4)
        >>> lines
        ['pretrain 1/4']
    """

    def __call__(self, task: str, done: int, total: int, details: Mapping[str, float] | None = None, /) -> None:
        """Report that `done` of `total` units of `task` are finished, with a few numbers to show beside them."""


def quiet(task: str, done: int, total: int, details: Mapping[str, float] | None = None, /) -> None:
    """Show nothing: the default in library use.

    Example:
        >>> quiet("pretrain", 1, 4)
    """


class RichProgress:
    """Bars on the terminal, one for each task, drawn by `rich`; a context manager.

    Args:
        console: `rich.console.Console` to draw on; standard error by default, so that tables on standard output
            can be piped.

    Raises:
        MissingExtraError: `rich` is not installed.

    Example:
        >>> with RichProgress() as progress:  # doctest: +SKIP
        ...     train_stage(model, train, validation, config, progress=progress)
    """

    def __init__(self, console: Any = None) -> None:
        rich_progress = import_extra("rich.progress", extra="forecast")
        if console is None:
            console = import_extra("rich.console", extra="forecast").Console(stderr=True)
        column = import_extra("rich.table", extra="forecast").Column
        # Numbers need their room first: a narrow terminal has no bar, and cuts only the details.
        bar = [rich_progress.BarColumn(min(40, console.width - 70))] if console.width >= 80 else []
        self._bars = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}", table_column=column(min_width=9, no_wrap=True)),
            *bar,
            rich_progress.MofNCompleteColumn(table_column=column(min_width=7, no_wrap=True, justify="right")),
            rich_progress.TimeElapsedColumn(table_column=column(min_width=7, no_wrap=True)),
            rich_progress.TextColumn("{task.fields[details]}"),
            console=console,
        )
        self._tasks: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> RichProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, task: str, done: int, total: int, details: Mapping[str, float] | None = None, /) -> None:
        """Advance the bar of `task`, which the first call makes."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in (details or {}).items())
        with self._lock:
            if task not in self._tasks:
                self._tasks[task] = self._bars.add_task(task, total=total, details=text)
            self._bars.update(self._tasks[task], completed=done, total=total, details=text)
