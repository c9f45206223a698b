"""Checks that the operators share. Each raises TypeError or ValueError with the value it got, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from simmst.core import dtypes


def describe(tensor: Tensor) -> str:
    """Describe a tensor for an error message.

    Example:
        >>> describe(torch.zeros(2, 3))
        'float32 (2, 3) on cpu'
    """
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} on {tensor.device}"


def describe_all(**tensors: Tensor) -> str:
    """Describe several tensors by name.

    Example:
        >>> describe_all(query=torch.zeros(2), key=torch.zeros(1, dtype=torch.float64))
        'query float32 (2,) on cpu, key float64 (1,) on cpu'
    """
    return ", ".join(f"{name} {describe(tensor)}" for name, tensor in tensors.items())


def check_float_tensors(**tensors: Tensor) -> None:
    """Require tensors of one floating dtype on one device.

    Raises:
        TypeError: an argument is not a tensor or not floating, or the dtypes differ.
        ValueError: the devices differ.

    Example:
        >>> check_float_tensors(query=torch.zeros(2), key=torch.zeros(2, dtype=torch.float64))
        Traceback (most recent call last):
        TypeError: query and key must have one dtype, got query float32 (2,) on cpu, key float64 (2,) on cpu
    """
    first: Tensor | None = None
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dtype not in dtypes.FLOATS:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes.FLOATS)
            raise TypeError(f"{name} must hold one of {allowed}, got {describe(tensor)}")
        if first is None:
            first = tensor
        elif tensor.dtype != first.dtype:
            raise TypeError(f"{_names(tensors)} must have one dtype, got {describe_all(**tensors)}")
        elif tensor.device != first.device:
            raise ValueError(f"{_names(tensors)} must be on one device, got {describe_all(**tensors)}")


def _names(tensors: dict[str, Tensor]) -> str:
    *head, last = tensors
    return f"{', '.join(head)} and {last}" if head else last


def check_index_tensor(name: str, tensor: Tensor, *, device: torch.device) -> None:
    """Require an int64 tensor on a device.

    Raises:
        TypeError: the argument is not a tensor or not int64.
        ValueError: the tensor is on another device.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be an int64 torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {describe(tensor)}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device} like the other inputs, got {describe(tensor)}")


def check_index_range(name: str, tensor: Tensor, upper: int) -> None:
    """Require 0 <= index < upper where reading the values is free: plain CPU tensors in eager mode.

    On a GPU the values are not read, because that would wait for the device.

    Raises:
        ValueError: an index is out of range; the message gives the smallest and the largest index.

    Example:
        >>> check_index_range("top", torch.tensor([0, 7]), 5)
        Traceback (most recent call last):
        ValueError: top must hold indices from 0 to 4, got values from 0 to 7 in int64 (2,) on cpu
    """
    if torch.compiler.is_compiling() or not _is_readable(tensor):
        return
    low, high = map(int, tensor.aminmax())
    if low < 0 or high >= upper:
        raise ValueError(
            f"{name} must hold indices from 0 to {upper - 1}, got values from {low} to {high} in {describe(tensor)}"
        )


def _is_readable(tensor: Tensor) -> bool:
    # Fake tensors are subclasses. Tensors inside torch.func transforms are plain, but have no single value to read.
    return (
        type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and tensor.numel() > 0
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def check_choice(name: str, value: str | None, choices: Sequence[str | None]) -> None:
    """Require one of a few names.

    Raises:
        ValueError: the value is none of them.

    Example:
        >>> check_choice("fill", "zero", ("mean", "cumsum"))
        Traceback (most recent call last):
        ValueError: fill must be one of 'mean', 'cumsum', got 'zero'
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_integer(name: str, value: int, *, minimum: int, maximum: int | None = None) -> None:
    """Require an integer in a range; True and 5.0 are not integers.

    Raises:
        TypeError: the value is not an integer.
        ValueError: the value is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int, got {value!r} ({type(value).__name__})")
    if value < minimum or (maximum is not None and value > maximum):
        limits = f"at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise ValueError(f"{name} must be {limits}, got {value}")


def check_flag(name: str, value: bool) -> None:
    """Require True or False.

    Raises:
        TypeError: the value is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__})")


def check_number(name: str, value: float) -> None:
    """Require a real number that is not NaN.

    Raises:
        TypeError: the value is not a number.
        ValueError: the value is NaN.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    if value != value:
        raise ValueError(f"{name} must be a number, got NaN")


def check_dropout(dropout_p: float) -> None:
    """Require 0 <= dropout_p < 1.

    Raises:
        TypeError: the value is not a number.
        ValueError: the value is out of range.

    Example:
        >>> check_dropout(1.5)
        Traceback (most recent call last):
        ValueError: dropout_p must be at least 0 and less than 1, got 1.5
    """
    check_number("dropout_p", dropout_p)
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be at least 0 and less than 1, got {dropout_p}")
