"""A command of ``simmst`` and its parser, which is built only when the command is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simmst.foundation.extras import import_extra

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def _no_arguments(parser: ArgumentParser) -> None:
    """Add nothing."""


@dataclass(frozen=True)
class Command:
    """One command of ``simmst``.

    Attributes:
        name: the word after ``simmst``.
        usage: short form of the arguments; argparse's own would list every setting.
        brief: half a line for ``simmst --help``.
        about: one sentence for the command's own help.
        run: function that does the work.
        add_arguments: function that adds the arguments to a parser.
        config: whether the command takes ``--config FILE.yaml``.
        quiet: whether it takes ``--quiet``.
        resumes: whether the same command resumes after an interruption.
        words: function that rewrites the command line for the parser.
    """

    name: str
    usage: str
    brief: str
    about: str
    run: Callable[[Namespace], None]
    add_arguments: Callable[[ArgumentParser], None] = _no_arguments
    config: bool = True
    quiet: bool = False
    resumes: bool = False
    words: Callable[[Sequence[str]], list[str]] = list

    def parser(self) -> ArgumentParser:
        """Build the parser, which raises argparse.ArgumentError for a wrong command line or YAML file.

        Raises:
            MissingExtraError: jsonargparse is not installed.
        """
        jsonargparse = import_extra("jsonargparse", extra="forecast")
        usage = f"simmst {self.name} {self.usage}".strip()
        parser: ArgumentParser = jsonargparse.ArgumentParser(description=self.about, usage=usage, exit_on_error=False)
        if self.config:
            parser.add_argument(
                "--config", action="config", metavar="FILE", help="YAML file with any of these settings"
            )
        if self.quiet:
            parser.add_argument("--quiet", action="store_true", help="show no progress bars")
        self.add_arguments(parser)
        return parser
