"""Output of the commands: tables and lines on standard output, progress bars on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from simmst.foundation.extras import import_extra
from simmst.foundation.progress import Progress, RichProgress
from simmst.foundation.progress import quiet as no_progress

if TYPE_CHECKING:
    from rich.console import Console

    from simmst.jobs import Outcome


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[Progress]:
    """Yield a progress callable that draws bars on standard error, or one that shows nothing."""
    with ExitStack() as stack:
        bars: list[Progress] = [no_progress] if quiet else []

        def progress(task: str, done: int, total: int, details: Mapping[str, float] | None = None, /) -> None:
            # The bars start with the first step of the work, so that an error before it prints only its own line.
            if not bars:
                bars.append(stack.enter_context(RichProgress()))
            bars[0](task, done, total, details)

        yield progress


def show_outcome(outcome: Outcome) -> None:
    """Print a report and the names of the files written."""
    outcome.report.print(console())
    if outcome.weights is not None:
        outcome.weights.print(console())
    for path in outcome.files:
        tell(f"written: {path}")


def tell(line: str) -> None:
    """Print one line, however long."""
    sys.stdout.write(line + "\n")


def console() -> Console:
    """Return a console on standard output, wide enough for a table where the output is no terminal."""
    rich = import_extra("rich.console", extra="forecast")
    made: Console = rich.Console(width=None if sys.stdout.isatty() else 140)
    return made
