"""Attention from slots to the days before on the C++ kernels, in float32, as the operators call it."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from simmst.core.day_attention import Gradients

_cpu: Any = importlib.import_module("simmst._cpu")


def forward(query: Tensor, key: Tensor, *rest: Tensor) -> Tensor:
    """Return the result of ``simmst.reference.day_attention.day_attention``, for sizes of at least one.

    Raises:
        TypeError: a tensor has another dtype or is not on the CPU.
        ValueError: sizes do not fit each other.

    Example:
        >>> query, key, known = torch.ones(1, 2, 1, 4), torch.ones(1, 3, 1, 4), torch.ones(1, 3, 2, dtype=torch.bool)
        >>> weights = torch.zeros(1, 3), torch.zeros(1, 3, 2, 2), torch.zeros(1, 2)
        >>> forward(query, key, *weights, known, torch.ones(1, 3, 2), torch.zeros(1, 3)).tolist()
        [[[1.0, 0.0], [1.0, 0.0]]]
    """
    operands = _contiguous(query, key, *rest)
    out = torch.empty((*query.shape[:2], 2 * query.shape[2]))
    buffers = [_buffer(tensor) for tensor in operands]
    _cpu.day_attention_forward(_sizes(query, key), buffers, _buffer(out), torch.get_num_threads())
    return out


def backward(grad: Tensor, query: Tensor, key: Tensor, *rest: Tensor) -> Gradients:
    """Return the gradients of query, key, bias and alike_weight; the attention weights are computed again.

    Raises:
        TypeError: a tensor has another dtype or is not on the CPU.
        ValueError: sizes do not fit each other.

    Example:
        >>> query, key, known = torch.ones(1, 2, 1, 4), torch.ones(1, 3, 1, 4), torch.ones(1, 3, 2, dtype=torch.bool)
        >>> weights = torch.zeros(1, 3), torch.zeros(1, 3, 2, 2), torch.zeros(1, 2)
        >>> backward(torch.ones(1, 2, 2), query, key, *weights, known, torch.ones(1, 3, 2), torch.zeros(1, 3))[1].shape
        torch.Size([1, 3, 1, 4])
    """
    operands = _contiguous(query, key, *rest)
    (grad,) = _contiguous(grad)
    bias, _, alike_weight = rest[:3]
    gradients = tuple(torch.empty(tensor.shape) for tensor in (query, key, bias, alike_weight))
    _cpu.day_attention_backward(
        _sizes(query, key),
        _buffer(grad),
        [_buffer(tensor) for tensor in operands],
        [_buffer(gradient) for gradient in gradients],
        torch.get_num_threads(),
    )
    return gradients[0], gradients[1], gradients[2], gradients[3]


def _sizes(query: Tensor, key: Tensor) -> list[int]:
    """Return the numbers of series, slots, days and heads, and the width of a head."""
    series, slots, heads, width = query.shape
    return [series, slots, key.shape[1], heads, width]


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    for place, tensor in enumerate(tensors):
        dtype = torch.bool if place == 5 else torch.float32  # 5 is known
        if tensor.dtype != dtype or not tensor.is_cpu:
            raise TypeError(f"expected {dtype} on cpu, got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}")
    return [tensor.contiguous() for tensor in tensors]


def _buffer(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.nbytes


__all__ = ["backward", "forward"]
