"""The measured order of GPU backends for each operator, from the table measured_choice.json beside this file.

`python benchmarks gpu` measures the backends against each other and against the chain of PyTorch's operators that one
would write without this package; `python benchmarks gpu --apply gpu.json` writes the table from its result:

    version      version of this format
    measured     {"device", "date", "commit", "versions"} of the measurement; null until there is one
    inference    operator -> list of [dtype, bucket, backends]; the first backend that can run a call is taken
    training     the same for calls that want gradients; an operator or dtype without an entry takes that of inference,
                 and float16 takes that of bfloat16

Backends that are fast enough against the chain come first, the fastest at the front, then the chain, then the others.

A bucket is the size that the work grows with, rounded up to a power of two: L_Q of ProbSparse attention, the positions
N of spatial attention, the length N of cutting planes. A size that was not measured takes the nearest bucket.
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
VERSION = 2
GPU_BACKENDS = ("cuda", "triton")
ORDERED = (*GPU_BACKENDS, "chain")
_MODES = ("inference", "training")
_DTYPES = ("float32", "bfloat16", "float16")
_ALIKE = {"float16": "bfloat16"}  # stands in for a dtype without measurements: same kernels, entries of the same size


def bucket(size: int) -> int | None:
    """Round a size up to a power of two; None where the size may be symbolic, as while torch.compile traces.

    Example:
        >>> bucket(720), bucket(1024), bucket(0)
        (1024, 1024, 1)
    """
    if torch.compiler.is_compiling() or type(size) is not int:
        return None
    return 1 << max(0, size - 1).bit_length()


def order(operator: str, dtype: torch.dtype, size: int | None, *, training: bool = False) -> tuple[str, ...]:
    """Return the backends for a bucket in the order to try them, or an empty tuple if nothing was measured.

    Args:
        operator: one of ``simmst.ops.backends.OPERATORS``.
        dtype: dtype of the inputs.
        size: a bucket, or None for the order that most buckets have.
        training: whether gradients are wanted.

    Raises:
        ConfigError: the table is damaged.

    Example:
        >>> order("cutting_plane", torch.float64, 1024)
        ()
    """
    name = str(dtype).removeprefix("torch.")
    lines = (_table()[mode].get(operator, {}) for mode in reversed(_MODES[: 1 + training]))
    found = (by_dtype.get(each, {}) for by_dtype in lines for each in (name, _ALIKE.get(name, name)))
    measured = next(filter(None, found), None)
    if measured is None:
        return ()
    if size is None:
        return Counter(measured[key] for key in sorted(measured)).most_common(1)[0][0]
    # Nearest by ratio, not by difference; of two equally near buckets the larger.
    nearest = min(measured, key=lambda each: (abs(each.bit_length() - size.bit_length()), -each))
    return measured[nearest]


def measured() -> dict[str, Any] | None:
    """Return device, date, commit and versions of the measurement, or None if there is none."""
    found: dict[str, Any] | None = json.loads(FILE.read_text())["measured"]
    return found


# mode -> operator -> dtype -> bucket -> backends
Table = dict[str, dict[str, dict[str, dict[int, tuple[str, ...]]]]]


@functools.cache
def _table() -> Table:
    return parse(json.loads(FILE.read_text()))


def parse(content: dict[str, Any]) -> Table:
    """Check the content of a measured_choice.json.

    Raises:
        ConfigError: the content has another version, lacks a part, or has a line that is not [dtype, bucket, backends].
    """
    if content.get("version") != VERSION:
        raise ConfigError(
            f"{FILE.name} must be of version {VERSION}, got {content.get('version')!r}; "
            "write it again with: python benchmarks gpu --apply gpu.json"
        )
    if set(content) != {"version", "measured", *_MODES}:
        raise ConfigError(f"{FILE.name} must hold version, measured, {' and '.join(_MODES)}, got {sorted(content)}")
    if any(content[mode] for mode in _MODES) and content["measured"] is None:
        raise ConfigError(f"{FILE.name} holds choices but does not say what they were measured with")
    table: Table = {mode: {} for mode in _MODES}
    for mode, operator, line in ((m, name, line) for m in _MODES for name, all_ in content[m].items() for line in all_):
        if not _is_sound(line):
            raise ConfigError(
                f"{FILE.name}, {mode}, {operator}: a line must be [one of {', '.join(_DTYPES)}, a power of two, "
                f"some of {', '.join(ORDERED)}], got {line!r}"
            )
        dtype, size, backends = line
        table[mode].setdefault(operator, {}).setdefault(dtype, {})[size] = tuple(backends)
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
        and set(backends) <= set(ORDERED)
    )


__all__ = ["FILE", "bucket", "measured", "order", "parse"]
