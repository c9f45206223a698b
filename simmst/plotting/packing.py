"""The packing of numbers into text for a page: quantised, deflated, base64; the page's script reverses it."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

MISSING_16, MISSING_8 = 65535, 255  # the numbers that stand for NaN


def deflated(content: bytes) -> str:
    """Return bytes as text: deflated in zlib's format, which browsers can inflate, and encoded in base64.

    Example:
        >>> zlib.decompress(base64.b64decode(deflated(b"traffic")))
        b'traffic'
    """
    return base64.b64encode(zlib.compress(content, 9)).decode("ascii")


def ranges(*arrays: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Return the least and the greatest known value of each series.

    Args:
        arrays: (..., T), of the same shape.

    Returns:
        float32 (..., 2); zeros where nothing is known.

    Example:
        >>> ranges(np.array([[1.0, 2.0]]), np.array([[np.nan, 5.0]])).tolist()
        [[1.0, 5.0]]
    """
    together = np.concatenate(arrays, axis=-1)
    known = ~np.isnan(together)
    least = np.where(known, together, np.inf).min(axis=-1)
    greatest = np.where(known, together, -np.inf).max(axis=-1)
    some = known.any(axis=-1)
    return np.stack([np.where(some, least, 0.0), np.where(some, greatest, 0.0)], axis=-1).astype(np.float32)


def quantised(values: npt.NDArray[np.floating], limits: npt.NDArray[np.float32], bits: int = 16) -> npt.NDArray[Any]:
    """Return values as whole numbers between the limits of their series, with an error of at most half a step.

    Args:
        values: (..., T), NaN = missing.
        limits: (..., 2), ranges of the series from `ranges`.
        bits: number of bits, 16 or 8.

    Returns:
        uint16 or uint8 (..., T); the greatest number of the type stands for NaN.

    Example:
        >>> quantised(np.array([0.0, 1.0, np.nan]), np.array([0.0, 2.0], np.float32)).tolist()
        [0, 32767, 65535]
    """
    missing, kind = (MISSING_16, np.uint16) if bits == 16 else (MISSING_8, np.uint8)
    low, high = limits[..., :1].astype(np.float64), limits[..., 1:].astype(np.float64)
    width = np.where(high > low, high - low, 1.0)
    scaled = np.rint((values - low) / width * (missing - 1)).clip(0, missing - 1)
    return np.where(np.isnan(values), missing, scaled).astype(kind)


def packed(arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[list[dict[str, Any]], str]:
    """Return arrays as one text, and the place of each array in it.

    The low bytes of 16-bit numbers all precede the high bytes, because they deflate better that way.

    Args:
        arrays: arrays of uint8, uint16 or float32, by name.

    Returns:
        A list with the name, type ("u1", "u2" or "f4"), shape and first byte of each array, and the text.

    Raises:
        TypeError: an array has another type.

    Example:
        >>> packed({"a": np.array([1, 258], np.uint16)})[0]
        [{'name': 'a', 'type': 'u2', 'shape': [2], 'at': 0}]
    """
    entries, parts, at = [], [], 0
    for name, array in arrays.items():
        kind = array.dtype.str[1:]
        if kind not in ("u1", "u2", "f4"):
            raise TypeError(f"array {name!r} is {array.dtype}; a page takes uint8, uint16 and float32")
        content = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
        if kind == "u2":
            content = content[0::2] + content[1::2]
        entries.append({"name": name, "type": kind, "shape": list(array.shape), "at": at})
        content += bytes(-len(content) % 4)  # floats start at multiples of four
        parts.append(content)
        at += len(content)
    return entries, deflated(b"".join(parts))
