"""Autocast for the operators: what scaled_dot_product_attention does under torch.autocast."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def cast_under_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function cast its floating inputs, float64 excepted, to the autocast dtype and run with autocast off.

    Outside autocast the function runs as it is. The device is that of the first tensor among the arguments.

    Example:
        >>> @cast_under_autocast
        ... def double(x):
        ...     return 2 * x
        >>> with torch.autocast("cpu", dtype=torch.bfloat16):
        ...     double(torch.ones(1)).dtype
        torch.bfloat16
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0] if args else next(iter(kwargs.values()), None)
        # Asking about autocast on the meta device is an error.
        if not isinstance(first, Tensor) or first.is_meta or not torch.is_autocast_enabled(first.device.type):
            return function(*args, **kwargs)
        device_type = first.device.type
        dtype = torch.get_autocast_dtype(device_type)
        cast_args: Any = [_cast(argument, dtype) for argument in args]
        cast_kwargs: Any = {name: _cast(argument, dtype) for name, argument in kwargs.items()}
        with torch.autocast(device_type, enabled=False):
            return function(*cast_args, **cast_kwargs)

    return wrapper


def _cast(argument: object, dtype: torch.dtype) -> object:
    if isinstance(argument, Tensor) and argument.is_floating_point() and argument.dtype != torch.float64:
        return argument.to(dtype)
    return argument
