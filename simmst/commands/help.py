"""The layout of a command's help: short lines, the most important options first, settings only when asked for."""

from __future__ import annotations

import re
import shutil
import types
from argparse import ONE_OR_MORE, SUPPRESS, Action
from collections.abc import Collection, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from simmst.foundation.extras import import_extra

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

WIDEST = 100  # characters of a line
_GENERAL = {
    "help": "show this help and exit",
    "help_all": "show the help with every setting and exit",
    "config": "read options and settings from this YAML file",
    "print_config": "print all options and settings as YAML and exit",
    "quiet": "show no progress bars",
}
_HIDDEN = "hidden_in_short_help"  # argparse.SUPPRESS would hide a setting from --print_config, too
_METAVARS: dict[Any, str] = {int: "N", float: "X", str: "NAME", bool: "true|false"}


def arrange(parser: ArgumentParser, *, shown: Mapping[str, str], everything: bool) -> None:
    """Put the general options last, and hide settings that are not asked for.

    Args:
        parser: parser with all its arguments.
        shown: settings that the short help shows, such as ``forecaster.horizon``, with their text there.
        everything: whether to show every setting.
    """
    parser._positionals.title = "arguments"
    general = parser.add_argument_group("general options")
    groups: list[Any] = parser._action_groups  # type: ignore[assignment]
    for action in list(parser._actions):
        name = action.dest.partition(".")[0]
        if action.dest in _GENERAL:
            action.help = _GENERAL[action.dest]
            _move(action, groups, general)
        elif name in _settings(shown):
            if action.metavar in (None, "CONFIG") or "{" in str(action.metavar):
                action.metavar = _metavar(action)
            if not everything:
                action.help = shown.get(action.dest)
                setattr(action, _HIDDEN, action.dest not in shown)
            elif action.metavar == "FILE" and action.help:
                action.help = "read these settings from this YAML file"
    for group in groups:
        names = {action.dest.rpartition(".")[0] for action in group._group_actions}
        section = max(names, key=len, default="")
        if section and section.partition(".")[0] in _settings(shown):
            group.title = f"settings under {section}" if everything else "settings (--help_all shows all of them)"
    if not everything and shown:
        _merge_settings(groups, shown)
    groups.sort(key=lambda group: group is general)  # stable: only the general options move


def _settings(shown: Collection[str]) -> set[str]:
    return {name.partition(".")[0] for name in shown}


def _move(action: Action, groups: Collection[Any], general: Any) -> None:
    for group in groups:
        if action in group._group_actions:
            group._group_actions.remove(action)
    general._group_actions.append(action)


def _merge_settings(groups: Collection[Any], shown: Collection[str]) -> None:
    """Gather the settings of the short help in one group, in the order of `shown`."""
    found: dict[str, Action] = {}
    first: Any = None
    for group in groups:
        mine = [action for action in group._group_actions if action.dest in shown]
        if mine:
            first = first or group
            found |= {action.dest: action for action in mine}
            group._group_actions[:] = [action for action in group._group_actions if action not in mine]
    first._group_actions[:0] = [found[name] for name in shown]


def _metavar(action: Action) -> str:
    kind = getattr(action, "_typehint", None) or action.type
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(one for one in get_args(kind) if one is not type(None))
    return _METAVARS.get(kind, "MAPPING" if get_origin(kind) is not None else "FILE")


@cache
def formatter() -> type:
    """Return the class that formats help.

    Raises:
        MissingExtraError: jsonargparse is not installed.
    """
    base: Any = import_extra("jsonargparse", extra="forecast").DefaultHelpFormatter

    class HelpFormatter(base):
        def __init__(self, prog: str, **options: Any) -> None:
            width = min(shutil.get_terminal_size().columns, WIDEST) - 1
            super().__init__(
                prog, **{**options, "width": width, "max_help_position": 42 if width > 90 else 34 if width > 70 else 24}
            )

        def add_argument(self, action: Action) -> None:
            if not getattr(action, _HIDDEN, False):
                super().add_argument(action)

        def _expand_help(self, action: Action) -> str:
            text = _as_typed((action.help or "").removesuffix("."))
            if action.dest in _GENERAL or not action.option_strings:
                return text
            default = "" if action.default is SUPPRESS else plain(action.default)
            note = "required" if action.required else f"default: {default}" if default else ""
            return f"{text} ({note})" if note else text

        def _format_action_invocation(self, action: Action) -> str:
            if action.dest == "print_config":
                return "--print_config"
            found: str = super()._format_action_invocation(action)
            return found.replace("--paper_table", "--table")  # the parser's name of the flag

        def _format_args(self, action: Action, default_metavar: str) -> str:
            found: str = super()._format_args(action, default_metavar)
            return f"{action.metavar or default_metavar} ..." if action.nargs == ONE_OR_MORE else found

        def _fill_text(self, text: str, width: int, indent: str) -> str:
            if text.startswith("example"):  # lines to copy
                return "\n".join(f"{indent}{line}" for line in text.splitlines())
            filled: str = super()._fill_text(text, width, indent)
            return filled

    return HelpFormatter


def _as_typed(text: str) -> str:
    """Take the marks of a docstring off, and write None as YAML does."""
    return re.sub(r"\bNone\b", "null", re.sub(r"(?::math:)?`([^`]*)`", r"\1", text))


def plain(value: Any) -> str:
    """Return a default as a user would write it; empty if there is nothing to show.

    Example:
        >>> plain(7), plain({"dropout": 0.0}), plain(True), plain(None), plain([])
        ('7', 'dropout: 0.0', 'true', '', '')
    """
    if value is None or value is False or value in ("", [], {}):
        return ""
    if value is True:
        return "true"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {plain(item) or 'false'}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(plain, value))
    return str(value)
