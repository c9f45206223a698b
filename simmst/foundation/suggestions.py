"""The end of an error message about an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggest(name: object, known: Iterable[str], *, otherwise: str = "the known names are:") -> str:
    """Return the nearest known name as a question, or a list of all known names.

    Args:
        name: unknown name.
        known: known names.
        otherwise: text before the list of names, where none is near.

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
    """Return the known name nearest to a given one; None if none is near.

    Example:
        >>> nearest("trian", ["train", "info"])
        'train'
    """
    return next(iter(difflib.get_close_matches(str(name), list(known), n=1)), None)
