"""JSON and YAML, read against a schema with bounds on size and depth, so that values have the types they should."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

from simmst.errors import SimmstError
from simmst.foundation.extras import import_extra

Schema = TypeVar("Schema")

MOST_BYTES = 64 << 20  # of a document; the largest, a manifest of a hundred thousand cities, has 60 MB
_MOST_YAML_BYTES = 1 << 20
_DEEPEST = 32  # levels of lists and mappings


class DocumentError(SimmstError, ValueError):
    """A document is not JSON or YAML, or does not fit its schema; the message says where and why, but names no file."""


def decode_json(text: str | bytes, schema: type[Schema]) -> Schema:
    """Read JSON against a schema.

    Args:
        text: JSON in UTF-8.
        schema: type of the content: a dataclass, whose ``__post_init__`` may refuse values, or any type with type
            arguments, such as ``dict[str, float]``. Keys that a dataclass does not know are ignored.

    Raises:
        DocumentError: the text is not JSON, is too large or nested too deeply, or does not fit the schema.
        MissingExtraError: msgspec is not installed.

    Example:
        >>> decode_json('{"epoch": 3}', dict[str, int])
        {'epoch': 3}
        >>> decode_json('["three"]', list[int])
        Traceback (most recent call last):
        ...
        simmst.foundation.documents.DocumentError: [0]: expected an integer, got a text
    """
    msgspec = import_extra("msgspec", extra="forecast")
    raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    if len(raw) > MOST_BYTES:
        raise DocumentError(f"it has {len(raw):,} bytes, at most {MOST_BYTES:,} are read")
    try:
        return msgspec.json.decode(raw, type=schema)  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        raise DocumentError(_told(error)) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise DocumentError(_where(raw) or _told(error)) from error


def read_json(path: Path, schema: type[Schema]) -> Schema:
    """Read a JSON file against a schema: see `decode_json`.

    Raises:
        DocumentError: as in `decode_json`.
        OSError: the file cannot be read.
    """
    _check_size(path, MOST_BYTES)
    return decode_json(path.read_bytes(), schema)


def checked(value: Any, schema: type[Schema]) -> Schema:
    """Convert plain values, such as those of a YAML file, to the types of a schema.

    Raises:
        DocumentError: the values have other types.

    Example:
        >>> checked({"days": 7}, dict[str, int])
        {'days': 7}
    """
    msgspec = import_extra("msgspec", extra="forecast")
    try:
        return msgspec.convert(value, schema)  # type: ignore[no-any-return]
    except (msgspec.ValidationError, RecursionError) as error:
        raise DocumentError(_told(error)) from error


def read_yaml(path: Path) -> Any:
    """Read a YAML file of plain values: mappings, lists, texts, numbers, dates.

    The text is parsed once before anything is built from it, so depth and aliases, which can stand for more than memory
    holds, are refused in time.

    Raises:
        DocumentError: the file is not YAML, is too large or nested too deeply, has aliases, or is not text in UTF-8.
        OSError: the file cannot be read.
    """
    _check_size(path, _MOST_YAML_BYTES)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(f"it is not text in UTF-8 ({error}); save it in that encoding") from error
    return decode_yaml(text)


def decode_yaml(text: str) -> Any:
    r"""Read YAML of plain values: see `read_yaml`.

    Raises:
        DocumentError: as in `read_yaml`.

    Example:
        >>> decode_yaml("days: 7")
        {'days': 7}
        >>> decode_yaml("a: &x [1]\nb: *x")
        Traceback (most recent call last):
        ...
        simmst.foundation.documents.DocumentError: line 2: an alias (*x), which is not read; write its value out
    """
    yaml = import_extra("yaml", extra="forecast")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's loader, if there is one
    depth = 0
    try:
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.AliasEvent):
                raise DocumentError(
                    f"line {event.start_mark.line + 1}: an alias (*{event.anchor}), which is not read; "
                    "write its value out"
                )
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise DocumentError(f"line {event.start_mark.line + 1}: more than {_DEEPEST} levels of nesting")
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        raise DocumentError(" ".join(str(error).replace('"<unicode string>", ', "").split())) from error
    except (ValueError, RecursionError) as error:  # a date or number that YAML allows and Python cannot hold
        if isinstance(error, DocumentError):
            raise
        raise DocumentError(f"a value cannot be read ({error})") from error


def _check_size(path: Path, most: int) -> None:
    size = path.stat().st_size
    if size > most:
        raise DocumentError(f"it has {size:,} bytes, at most {most:,} are read")


_NAMES = {
    "int": "an integer",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
}


def _where(raw: bytes) -> str | None:
    """Name the line where the JSON goes wrong; return None if the standard library finds no fault in it."""
    try:
        json.loads(raw)
    except json.JSONDecodeError as error:
        return f"line {error.lineno}: it is not JSON: {error.msg[:1].lower()}{error.msg[1:]}"
    except (ValueError, RecursionError):
        return None
    return None


def _told(error: Exception) -> str:
    """Say in plain words what msgspec found: ``Expected `int`, got `str` - at `$.cities[2].shape` ``."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    message, _, place = str(error).partition(" - at `$")
    missing = re.fullmatch(r"Object missing required field `(.+)`", message)
    if missing:
        message = f"{missing[1]!r} is missing"
    types = re.compile("`([a-z |]+)`")
    message = types.sub(lambda found: " or ".join(_NAMES.get(one, one) for one in found[1].split(" | ")), message)
    message = re.sub(r"^Expected\b", "expected", message).replace("JSON is malformed", "it is not JSON")
    place = place.rstrip("`").lstrip(".").replace("[...]", "[a key]")
    return f"{place}: {message}" if place else message
