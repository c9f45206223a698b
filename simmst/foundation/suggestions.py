"""The end of an error message about a name that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggest(name: object, known: Iterable[str], *, otherwise: str = "the known names are:") -> str:
    """Return the nearest known name as a question, or all of them.

    Args:
        name: the name given.
        known: the names there are.
        otherwise: what to put before the list of them, where none is near.

    Example:
        >>> suggest("carier_ghz", ["carrier_ghz", "days"])
        "did you mean 'carrier_ghz'?"
        >>> suggest("x", ["carrier_ghz", "days"])
        'the known names are: carrier_ghz, days'
    """
    known = list(known)
    near = nearest(name, known)
    return f"{otherwise} {', '.join(known)}" if near is None else f"did you mean {near!r}?"


def nearest(name: object, known: Iterable[str]) -> str | None:
    """Return the known name nearest to one that was given, where one is near.

    Example:
        >>> nearest("trian", ["train", "info"])
        'train'
    """
    return next(iter(difflib.get_close_matches(str(name), list(known), n=1)), None)
