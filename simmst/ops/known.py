"""Eager calls that have passed their checks, stored by everything that the checks depend on."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor
from torch.compiler import is_compiling

from simmst.ops.backends import is_transformed
from simmst.ops.dispatch import is_unwatched

_MOST = 1024  # number of calls to remember


class Known:
    """What a backend has prepared for calls, by key.

    A key holds the :func:`layout` of every tensor and all options. A dictionary takes 1, 1.0 and True for the same key,
    so a key also holds the types of those options whose type is checked.

    Example:
        >>> import torch
        >>> known, x = Known(), torch.ones(2)
        >>> known.keep((layout(x), 3), "prepared")
        >>> known.find((layout(torch.zeros(2)), 3)), known.find((layout(x), 4))
        ('prepared', None)
    """

    def __init__(self) -> None:
        self._prepared: dict[Any, Any] = {}

    def may_hold(self, *args: Any) -> bool:
        """Tell whether a look-up can succeed: something is known, and nothing except autograd watches the call."""
        return not is_compiling() and bool(self._prepared) and is_unwatched(*args) and not is_transformed()

    def find(self, key: Any) -> Any:
        """Return what was prepared for a key, or None. An unhashable key also gives None."""
        try:
            return self._prepared.get(key)
        except TypeError:
            return None

    def keep(self, key: Any, prepared: Any) -> None:
        """Store what was prepared. A full store is emptied first."""
        if len(self._prepared) >= _MOST:
            self._prepared.clear()
        self._prepared[key] = prepared


def layout(tensor: Tensor | None) -> Any:
    """Return the properties of a tensor that checks and plans depend on, which leave out its values and its address."""
    return None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


def named(backend: str | None) -> str | None:
    """Return the backend that a call names by its argument or, without one, by the environment."""
    return os.environ.get("SIMMST_BACKEND") if backend is None else backend


__all__ = ["Known", "layout", "named"]
