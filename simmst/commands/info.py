"""``simmst info``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simmst.commands.command import Command
from simmst.commands.output import console

if TYPE_CHECKING:
    from jsonargparse import Namespace


def run(options: Namespace) -> None:
    """Show this installation."""
    from simmst.jobs.installation import show

    show(console())


COMMAND = Command(
    "info",
    "",
    brief="show versions, extras and backends",
    about="Show the versions, compiled modules, extras and backends of this installation.",
    run=run,
    config=False,
)
