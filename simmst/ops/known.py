"""Eager calls that have passed their checks, remembered by all that the checks depend on."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor
from torch.compiler import is_compiling

from simmst.ops.backends import is_transformed
from simmst.ops.dispatch import is_unwatched

_MOST = 1024  # calls that are remembered


class Known:
    """What a backend has prepared for calls, each by its key.

    A key holds the :func:`layout` of every tensor and all options. 1, 1.0 and True are one key of a dictionary, so the
    types of options that are checked for their type are part of it.

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
        """Whether it is worth looking: something is known, and nothing but autograd watches the call."""
        return not is_compiling() and bool(self._prepared) and is_unwatched(*args) and not is_transformed()

    def find(self, key: Any) -> Any:
        """What was prepared for a key, or None; None for a key that cannot be one, too."""
        try:
            return self._prepared.get(key)
        except TypeError:
            return None

    def keep(self, key: Any, prepared: Any) -> None:
        """Remember what was prepared. The oldest are forgotten all at once."""
        if len(self._prepared) >= _MOST:
            self._prepared.clear()
        self._prepared[key] = prepared


def layout(tensor: Tensor | None) -> Any:
    """All that checks and plans depend on of a tensor; its values and its place in memory are not among it."""
    return None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


def named(backend: str | None) -> str | None:
    """The backend that a call names: by its argument, or else by the environment."""
    return os.environ.get("SIMMST_BACKEND") if backend is None else backend


__all__ = ["Known", "layout", "named"]
