"""The entry point of ``simmst``: it chooses a command, reads its flags and YAML, and runs it."""

from __future__ import annotations

import ast
import json
import re
import sys
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from simmst import __version__
from simmst.commands import data, demo, evaluate, forecast, info, pretrain, report, simulate, train
from simmst.commands.boundary import exit_status
from simmst.commands.command import Command
from simmst.commands.environment import check_environment, sleep_while_waiting
from simmst.foundation.documents import DocumentError, read_yaml
from simmst.foundation.suggestions import nearest

if TYPE_CHECKING:
    from jsonargparse import Namespace

COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        demo.COMMAND,
        forecast.COMMAND,
        train.COMMAND,
        evaluate.COMMAND,
        report.COMMAND,
        simulate.COMMAND,
        data.COMMAND,
        pretrain.COMMAND,
        info.COMMAND,
    )
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, or 2 after an error, which is reported in one line.

    Args:
        arguments: words after ``simmst``; None takes those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    chosen = COMMANDS.get(words[0]) if words else None

    def work() -> None:
        sleep_while_waiting()
        command, options = parse(words)
        check_environment()
        command.run(options)

    return exit_status(work, resumes=chosen is not None and chosen.resumes)


def parse(words: Sequence[str]) -> tuple[Command, Namespace]:
    """Read a command line and build only the parser of the command that it names.

    Raises:
        ArgumentError: the command line or its YAML file is wrong; the message says why and where to find help.
        SystemExit: help, the version or the settings were requested and have been printed.
    """
    first = words[0] if words else ""
    if first in ("-h", "--help", "--version"):
        sys.stdout.write(f"simmst {__version__}\n" if first == "--version" else overview())
        raise SystemExit(0)
    if first not in COMMANDS:
        raise ArgumentError(None, f"{_no_command(first)}; see simmst --help")
    command = COMMANDS[first]
    for path in config_files(words[1:]):
        _check_config(path)
    parser = command.parser(everything="--help_all" in words)
    try:
        options = parser.parse_args(command.words(words[1:]))
        _check_groups(options, [action.dest for action in parser._actions])
        return command, options
    except (ArgumentError, UnicodeDecodeError) as error:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        message = usage_error(error, words[1:], flags)
        raise ArgumentError(None, f"{message}; see simmst {command.name} --help") from error


def config_files(words: Sequence[str]) -> list[Path]:
    """Return the files that ``--config`` names.

    Example:
        >>> config_files(["--config", "a.yaml", "--seed", "1", "--config=b.yaml"])
        [PosixPath('a.yaml'), PosixPath('b.yaml')]
    """
    after = [word for before, word in pairwise(words) if before == "--config"]
    joined = [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
    return [Path(word) for word in (*after, *joined)]


def _check_config(path: Path) -> None:
    """Refuse a file that is not YAML of plain settings; the parser reports a missing file.

    Raises:
        ArgumentError: the file is invalid; the message names the file, the line and the problem.
    """
    if not path.is_file():
        return
    try:
        settings = read_yaml(path)
    except DocumentError as error:
        if isinstance(error.__cause__, UnicodeDecodeError):
            message = f"{path} is not text in UTF-8 ({error.__cause__}); save it in that encoding"
        elif error.__cause__ is None:
            message = f"{path}: {error}"
        else:
            message = f"Problems parsing config: {error}".replace(" in line ", f" in {path}, line ", 1)
        raise ArgumentError(None, message) from error
    if settings is not None and not isinstance(settings, Mapping):
        raise ArgumentError(None, f"{path} holds no settings; write them as 'name: value', one per line")


def _check_groups(options: Namespace, names: Sequence[str]) -> None:
    """Refuse a single value where a YAML file must have a group of settings, because the parser accepts it.

    Args:
        options: parsed options.
        names: names of all settings, such as forecaster.horizon.

    Raises:
        ArgumentError: a group has a single value; the message names the group.
    """
    for group in sorted({name.rpartition(".")[0] for name in names if "." in name}):
        value = options.get(group)
        if not hasattr(value, "as_dict"):
            raise ArgumentError(
                None, f"{group}: expected settings, such as '{group}: {{name: value}}'. Got value: {value}"
            )


def overview() -> str:
    """Return what ``simmst --help`` prints."""
    width = max(map(len, (*COMMANDS, "--version")))
    lines = [f"  {name:<{width}}  {command.brief}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: simmst COMMAND [options]",
            "",
            "Forecast cellular traffic with Sim-MSTNet.",
            "",
            "commands:",
            *lines,
            "",
            "options:",
            f"  {'--help':<{width}}  show this help, or after COMMAND its own",
            f"  {'--version':<{width}}  show the version",
            "",
            "examples:",
            "  simmst demo --quick",
            "  simmst forecast --data traffic.csv --horizon 24 --levels 80",
            "",
        ]
    )


_KINDS = {
    "int": "int",
    "float": "float",
    "str": "str",
    "NoneType": "null",
    "collections.abc.Mapping": "a mapping",
    "collections.abc.Sequence": "a list",
    "typing.Mapping": "a mapping",
    "dict": "a mapping",
    "list": "a list",
}


def usage_error(error: Exception, given: Sequence[str], flags: Sequence[str]) -> str:
    """Say in one line what is wrong with a command line or its YAML file, in the user's terms.

    Args:
        error: exception that the parser raised.
        given: the command line.
        flags: flags of the command.
    """
    named = re.search(r"--config[= ](\S+)", " ".join(given))
    file = named[1] if named else "the YAML text"
    message = " ".join(str(error).split())
    if isinstance(error, UnicodeDecodeError):
        return f"{file} is not text in UTF-8 ({message}); save it in that encoding"
    # jsonargparse says: Parser key "test_days": Expected a <class 'int'>. Got value: seven
    message = re.sub(r'^Parser key "([^"]+)"', r"\1", message)
    # and: Does not validate against any of the Union subtypes Subtypes: [...] Errors: ... Given value: 1h
    union = re.fullmatch(r"(\S+): Does not validate .*?Subtypes: \[(.*?)\] Errors: .*Given value: (.*)", message)
    if union:
        kinds = re.findall(r"<class '([\w.]+)'>|([\w.]+\[[^]]*\])", union[2])
        wanted = " or ".join(dict.fromkeys(_KINDS.get((one or two).split("[")[0], one or two) for one, two in kinds))
        message = f"{union[1]}: expected {wanted}. Got value: {union[3]}"
    message = re.sub(
        r"Expected an? <class '([\w.]+)'>", lambda found: f"expected {_KINDS.get(found[1], found[1])}", message
    )
    message = re.sub(r"<class '[\w.]*?(\w+)'>", r"\1", message)
    # and, of --data.path FILE: data: Expected a <class 'str'>. Got value: NestedArg(key='path', val='FILE')
    message = re.sub(
        r"^(\S+): expected (.*)\. Got value: NestedArg\(key='([^']*)', val=.*",
        r"there is no setting '\1.\3'; '\1' takes \2",
        message,
    )
    # and: forecaster: Unable to load config '3' - Parser key "forecaster": Unable to load config "3"
    message = re.sub(
        r"""^(\S+): Unable to load config (['"])(.*?)\2 - .*""",
        r"\1: expected settings, or a YAML file of them. Got value: \3",
        message,
    )
    message = re.sub(r"(?<=Got value: ).+", lambda found: _as_in_yaml(found[0]), message)
    # and: Group 'forecaster' does not accept option 'training.epoch'
    message = re.sub(r"^Group '([^']+)' does not accept option '([^']+)'", r"there is no setting '\1.\2'", message)
    # and: in "<unicode string>", line 1, column 4
    message = message.replace('"<unicode string>"', file)
    # and, of a setting that takes several values and got one: 'str' object does not support item assignment
    if "does not support item assignment" in message:
        return "a setting that takes several values has one; write a list, such as [call]"
    # and: the following arguments are required: data, out
    required, colon, names = message.partition("required: ")
    if colon:
        message = required + colon + ", ".join(f"--{name.lstrip('-')}" for name in names.split(", "))
    unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
    near = nearest(unknown[1], flags) if unknown else None
    return message.rstrip(".") + (f"; did you mean {near}?" if near else "")


def _as_in_yaml(value: str) -> str:
    """Return a value in YAML's form where the parser quotes it in Python's."""
    try:
        read = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value
    return json.dumps(read, default=str) if read is None or isinstance(read, (bool, dict, list, tuple)) else value


def _no_command(word: str) -> str:
    names = ", ".join(COMMANDS)
    if not word:
        return f'expected "subcommand" to be one of {{{names}}}'
    near = nearest(word, COMMANDS)
    return f"invalid choice: {word!r} ({f'did you mean {near!r}? ' if near else ''}choose from {names})"
