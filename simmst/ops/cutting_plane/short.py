"""The shortest way to the CUDA kernels of values and steps, for a call like one that has passed all checks before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from simmst.core.cutting_plane import PackedSigns, Planes
from simmst.ops.backends import implementation
from simmst.ops.cutting_plane.library import PATH, flat
from simmst.ops.dispatch import is_unwatched, wants_gradient
from simmst.ops.known import Known, layout, named

Operands = tuple[Tensor | None, ...]
_known = Known()


def seen_before(
    function: str, backend: str | None, planes: Planes, *rest: Tensor | None
) -> tuple[Any, Operands] | None:
    """Return what was prepared for a call like this one and its operands, or None.

    None also if a gradient is wanted.

    Args:
        function: function of the backend, ``"Values"`` or ``"Step"``.
        backend: backend that the call names.
        planes: planes of the call.
        rest: the other tensors. A point to be updated must not require a gradient.
    """
    try:
        operands = (*flat(planes), *rest)
        if not _known.may_hold(*operands) or wants_gradient(*operands):
            return None
        found = _known.find(_key(function, backend, planes, operands))
    except (AttributeError, RuntimeError):
        return None  # the long way raises the error
    return None if found is None else (found, operands)


def remember(function: str, backend: str | None, planes: Planes, *rest: Tensor | None) -> None:
    """Remember a call whose arguments were checked and that ran on backend ``"cuda"``."""
    if is_compiling():
        return
    operands = (*flat(planes), *rest)
    rows, vector = operands[0], rest[1]  # the point, or the gradient
    gaps = rows is None or (rows.stride(-1) != 1 and rows.shape[-1] > 1)
    if gaps or vector is None or vector.dtype == torch.float64 or not is_unwatched(*operands):
        return  # the backend copies or rounds these before it reads them
    prepare = getattr(implementation(PATH, "cuda"), f"Prepared{function}")
    _known.keep(_key(function, backend, planes, operands), prepare(*operands))


def _key(function: str, backend: str | None, planes: Planes, operands: Operands) -> Any:
    size = planes.size if isinstance(planes, PackedSigns) else None
    return (function, size, *map(layout, operands), named(backend))


__all__ = ["remember", "seen_before"]
