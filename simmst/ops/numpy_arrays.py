"""Calls of the operators with NumPy arrays: arguments become tensors without a copy, results become arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def call_with_arrays(
    function: Callable[..., Tensor], *args: Any, updated: Sequence[np.ndarray] = (), **kwargs: Any
) -> Any:
    """Call a function of tensors with arrays, and return its result as an array.

    Args:
        function: function that takes tensors and returns a tensor.
        args: arrays or tuples of arrays, which become tensors that share their memory; other arguments are passed on.
        updated: the arrays that the function writes to.
        kwargs: named arguments, treated like args.

    Raises:
        TypeError: an array has a dtype that torch lacks.
        ValueError: an array to be updated is read-only or runs backwards through memory.

    Example:
        >>> call_with_arrays(torch.add, np.ones(2), np.array([1.0, 2.0]))
        array([2., 3.])
    """
    targets = {id(array) for array in updated}
    tensors = [_convert(argument, targets) for argument in args]
    options = {name: _convert(argument, targets) for name, argument in kwargs.items()}
    return function(*tensors, **options).numpy()


def _convert(argument: Any, targets: set[int]) -> Any:
    if type(argument) in (tuple, list):
        return type(argument)(_convert(item, targets) for item in argument)
    if not isinstance(argument, np.ndarray):
        return argument
    backwards = any(stride < 0 for stride in argument.strides)
    if id(argument) in targets and (backwards or not argument.flags.writeable):
        state = "runs backwards through memory" if backwards else "is read-only"
        raise ValueError(
            f"a NumPy array of shape {argument.shape} that is to be updated in place {state}; pass a copy() of it"
        )
    with warnings.catch_warnings():
        # torch warns about read-only arrays because a tensor is writable; these tensors are only read.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(argument.copy() if backwards else argument)
