"""Which GPU backend an operator prefers, as measured: the table measured_choice.json beside this file.

`python benchmarks gpu --tune` measures the backends against each other and writes the table:

    measured     {"device", "date", "commit", "versions"} of the measurement; null until there is one
    choices      operator -> list of [dtype, bucket, backends from the fastest to the slowest]

A bucket is the size that the work grows with, rounded up to a power of two: L_Q of ProbSparse attention, the positions
N of spatial attention, the length N of cutting planes. A size between or beyond those measured gets the nearest.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from simmst.errors import ConfigError

FILE = Path(__file__).with_suffix(".json")
GPU_BACKENDS = ("cuda", "triton")
_DTYPES = ("float32", "bfloat16", "float16")


def bucket(size: int) -> int | None:
    """Round a size up to a power of two; None where it may be a symbol, as while torch.compile traces.

    Example:
        >>> bucket(720), bucket(1024), bucket(0)
        (1024, 1024, 1)
    """
    if torch.compiler.is_compiling() or type(size) is not int:
        return None
    return 1 << max(0, size - 1).bit_length()


def order(operator: str, dtype: torch.dtype, size: int | None) -> tuple[str, ...]:
    """Return the GPU backends from the fastest to the slowest for a bucket; empty where nothing was measured.

    Args:
        operator: one of ``simmst.ops.backends.OPERATORS``.
        dtype: of the inputs.
        size: a bucket, or None for the order that most buckets have.

    Raises:
        ConfigError: the table is damaged.

    Example:
        >>> order("cutting_plane", torch.float64, 1024)
        ()
    """
    measured = _table().get(operator, {}).get(str(dtype).removeprefix("torch."), {})
    if not measured:
        return ()
    if size is None:
        return Counter(measured[key] for key in sorted(measured)).most_common(1)[0][0]
    # The ratio of two sizes counts, not their difference; of two as near, the larger.
    nearest = min(measured, key=lambda each: (abs(each.bit_length() - size.bit_length()), -each))
    return measured[nearest]


def measured() -> dict[str, Any] | None:
    """Return device, date, commit and versions of the measurement; None where there was none."""
    found: dict[str, Any] | None = json.loads(FILE.read_text())["measured"]
    return found


Table = dict[str, dict[str, dict[int, tuple[str, ...]]]]


@functools.cache
def _table() -> Table:
    return parse(json.loads(FILE.read_text()))


def parse(content: dict[str, Any]) -> Table:
    """Check the content of a measured_choice.json.

    Raises:
        ConfigError: a part is missing, or a line is not [dtype, bucket, backends].
    """
    if set(content) != {"measured", "choices"}:
        raise ConfigError(f"{FILE.name} must hold measured and choices, got {sorted(content)}")
    if content["choices"] and content["measured"] is None:
        raise ConfigError(f"{FILE.name} holds choices but does not say what they were measured with")
    table: Table = {}
    for operator, lines in content["choices"].items():
        for line in lines:
            if not _is_sound(line):
                raise ConfigError(
                    f"{FILE.name}, {operator}: a line must be [one of {', '.join(_DTYPES)}, a power of two, "
                    f"some of {', '.join(GPU_BACKENDS)}], got {line!r}"
                )
            dtype, size, backends = line
            table.setdefault(operator, {}).setdefault(dtype, {})[size] = tuple(backends)
    return table


def _is_sound(line: Any) -> bool:
    if not (isinstance(line, list) and len(line) == 3):
        return False
    dtype, size, backends = line
    return (
        dtype in _DTYPES
        and type(size) is int
        and size > 0
        and size & (size - 1) == 0
        and isinstance(backends, list)
        and 0 < len(backends) == len(set(backends))
        and set(backends) <= set(GPU_BACKENDS)
    )


__all__ = ["FILE", "bucket", "measured", "order", "parse"]
