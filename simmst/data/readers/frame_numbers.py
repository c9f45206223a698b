"""The numbers of a table, written with decimal points or commas, and their checks."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from simmst.errors import DataError

if TYPE_CHECKING:
    import pandas

_COMMA_DECIMAL = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+),\d+([eE][+-]?\d+)?")
_COMMA_GROUPS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?([eE][+-]?\d+)?")
_POINT_GROUPS = re.compile(r"[+-]?\d{1,3}(\.\d{3})+")
_SPACES = re.compile(r"(?<=\d)[\u00a0\u202f ](?=\d{3})")

Where = Callable[..., str]  # (row, column[, value])


def read_numbers(table: pandas.DataFrame, decimal: str | None, where: Where, pd: Any) -> np.ndarray:
    """Read the numbers of columns, float64 (R, M); empty fields are NaN.

    Args:
        table: columns of numbers, or of numbers as text.
        decimal: decimal sign in text, ``"."`` or ``","``; None takes the one that the values show.
        where: function that names a row and column for messages, as in "row 7: y of 'a'".
        pd: the pandas module.

    Raises:
        DataError: a value is not a number, or can be read in two ways; the message names it.
    """
    if decimal not in (None, ".", ","):
        raise DataError(f"decimal is {decimal!r}; it must be '.' or ',', or None to find it")
    numbers = np.empty(table.shape)
    texts: dict[int, pandas.Series] = {}
    for m, name in enumerate(table.columns):
        column = table[name] if table.columns.is_unique else table.iloc[:, m]
        if pd.api.types.is_numeric_dtype(column.dtype):
            numbers[:, m] = column.to_numpy(dtype=np.float64, na_value=np.nan)
        else:
            texts[m] = column.reset_index(drop=True)
    decimal = decimal or _decimal(texts, where)
    for m, column in texts.items():
        numbers[:, m] = _from_text(column, decimal, m, where, pd)
    return numbers


def _decimal(texts: dict[int, pandas.Series], where: Where) -> str:
    """Return the decimal sign that the values show."""
    open_place: tuple[int, int] | None = None
    shown: dict[str, tuple[int, int]] = {}
    open_text = ""
    for m, column in texts.items():
        for row, value in column.items():
            if not isinstance(value, str) or "," not in value:
                continue
            text = _SPACES.sub("", value.strip())
            comma = _COMMA_DECIMAL.fullmatch(text) is not None
            groups = _COMMA_GROUPS.fullmatch(text) is not None
            if comma and groups:
                open_place, open_text = open_place or (row, m), open_text or text
            elif comma:
                shown.setdefault(",", (row, m))
            elif groups:
                shown.setdefault(".", (row, m))
    if len(shown) == 2:
        places = " and ".join(f"{where(*place)} {texts[place[1]].iloc[place[0]]!r}" for place in shown.values())
        raise DataError(f"{places} disagree on the decimal sign; bring the numbers to one form")
    if shown:
        return next(iter(shown))
    if open_place is not None:
        raise DataError(
            f"{where(*open_place)} is {open_text!r}, and no value shows whether its comma comes before decimals or "
            "marks thousands; give decimal=',' or decimal='.'"
        )
    return "."


def _from_text(column: pandas.Series, decimal: str, m: int, where: Where, pd: Any) -> np.ndarray:
    codes, distinct = pd.factorize(column.astype(object))
    numbers = np.empty(len(distinct) + 1)
    numbers[-1] = np.nan  # code -1: missing
    for number, value in enumerate(distinct):
        found = _number(value, decimal)
        if found is None:
            row = int((codes == number).argmax())
            commas = "" if decimal == "." else " with decimal commas"
            raise DataError(f"{where(row, m, repr(value))} is not a number{commas}; leave missing values empty")
        numbers[number] = found
    found_numbers: np.ndarray = numbers[codes]
    return found_numbers


def _number(value: Any, decimal: str) -> float | None:
    if not isinstance(value, str):
        try:
            return float(value)
        except (TypeError, ValueError):
            return None
    text = _SPACES.sub("", value.strip())
    if not text:
        return float("nan")
    if decimal == ",":
        if "." in text and not (_POINT_GROUPS.fullmatch(text) or _COMMA_DECIMAL.fullmatch(text)):
            return None
        text = text.replace(".", "").replace(",", ".")
    elif "," in text:
        if not _COMMA_GROUPS.fullmatch(text):
            return None
        text = text.replace(",", "")
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        return None


def check_activity(numbers: np.ndarray, unit: str, where: Where) -> None:
    """Refuse infinite activity, and negative activity in any unit but z-scores.

    Args:
        numbers: (R, M).
        unit: unit of the activity.
        where: function that names a row and column for messages.

    Raises:
        DataError: a value is infinite or negative; the message names row, cell and value.
    """
    with np.errstate(over="ignore"):
        infinite = np.isinf(numbers.astype(np.float32))
    if infinite.any():
        row, m = map(int, np.argwhere(infinite)[0])
        raise DataError(
            f"{where(row, m)} is {numbers[row, m]:g}; activity is finite and below 3.4e38; leave missing values empty"
        )
    if unit != "z-score" and (numbers < 0).any():
        row, m = map(int, np.argwhere(numbers < 0)[0])
        raise DataError(
            f"{where(row, m)} is {numbers[row, m]:g}; activity cannot be negative; leave missing values empty, or give "
            'unit="z-score" if the data is standardised'
        )
