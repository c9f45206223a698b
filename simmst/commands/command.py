"""A command of ``simmst`` and its parser, which is built only when the command is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from simmst.commands.help import arrange, formatter
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
        settings: settings that the short help shows, with their text there; ``--help_all`` shows all.
        examples: command lines for the end of the help.
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
    settings: Mapping[str, str] = field(default_factory=dict)
    examples: tuple[str, ...] = ()

    def parser(self, *, everything: bool = False) -> ArgumentParser:
        """Build the parser, which raises argparse.ArgumentError for a wrong command line or YAML file.

        Args:
            everything: whether its help shows every setting.

        Raises:
            MissingExtraError: jsonargparse is not installed.
        """
        jsonargparse = import_extra("jsonargparse", extra="forecast")
        usage = f"simmst {self.name} {self.usage}".strip()
        parser: ArgumentParser = jsonargparse.ArgumentParser(
            description=self.about,
            usage=usage,
            epilog="\n  ".join(["examples:", *self.examples]) if self.examples else None,
            exit_on_error=False,
            formatter_class=formatter(),
        )
        if self.settings:
            parser.add_argument("--help_all", action="help")
        if self.config:
            parser.add_argument("--config", action="config", metavar="FILE")
        if self.quiet:
            parser.add_argument("--quiet", action="store_true")
        self.add_arguments(parser)
        arrange(parser, shown=self.settings, everything=everything)
        return parser
