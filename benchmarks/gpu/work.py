"""The work of a case of the GPU benchmarks, once its tensors are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Work(NamedTuple):
    """Two sides on the same inputs. `ours`, `results` and `complaint` take the name of a backend."""

    ours: Callable[[str], Any]  # what is timed
    peer: Callable[[], Any]
    results: Callable[[str], Sequence[Tensor]]  # always starts from the same state; two calls must give the same bits
    complaint: Callable[[str], str]  # says what is wrong with the result; empty if nothing is
    bytes: float  # each read or written once
    flops: float
    dtype: torch.dtype  # of the matrix products


def pick(scale: str, full: int, tiny: int) -> int:
    """Return a size by scale."""
    return {"full": full, "tiny": min(full, tiny)}[scale]


def first_words(*complaints: str) -> str:
    """Return the first complaint that is not empty."""
    return next((each for each in complaints if each), "")
