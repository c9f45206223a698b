"""The feed-forward part on the C++ kernels, in float32, as the operators call it."""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import Tensor

from simmst.core.feed_forward import Gradients, Options

_cpu: Any = importlib.import_module("simmst._cpu")
_NONE = (0, 0)


def forward(
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    addend: Tensor | None,
    scale: Tensor | None,
    options: Options,
) -> Tensor:
    """Return the result of ``simmst.reference.feed_forward.feed_forward``.

    Raises:
        TypeError: a tensor is not float32 on the CPU.
        ValueError: sizes do not fit each other.

    Example:
        >>> x, identity = torch.ones(1, 2, 2), torch.eye(2)
        >>> options = Options(residual=True, norm_first=True, eps=1e-5)
        >>> out = forward(x, identity, None, identity, None, None, None, None, None, options)
        >>> round(out[0, 0, 0].item(), 4)
        1.8413
    """
    x, *weights = _contiguous(x, in_weight, in_bias, out_weight, out_bias, norm_weight, norm_bias, addend, scale)
    out = torch.empty((*x.shape[:-1], out_weight.shape[0]), dtype=x.dtype)
    _cpu.feed_forward_forward(
        _sizes(x, in_weight, out_weight),
        _norm(norm_weight, options),
        options.residual,
        options.eps,
        _buffer(x),
        [_buffer(weight) for weight in weights],
        _buffer(out),
        torch.get_num_threads(),
    )
    return out


def backward(
    grad: Tensor,
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    addend: Tensor | None,
    scale: Tensor | None,
    options: Options,
    output_mask: list[bool],
) -> Gradients:
    """Return the wanted gradients of x, the weights and the addend; the hidden layer is computed again.

    Raises:
        TypeError: a tensor is not float32 on the CPU.
        ValueError: sizes do not fit each other.

    Example:
        >>> x, identity = torch.ones(1, 2, 2), torch.eye(2)
        >>> options = Options(residual=True, norm_first=True, eps=1e-5)
        >>> weights = identity, None, identity, None, None, None, None, None
        >>> backward(x, x, *weights, options, [True] + 7 * [False])[0].shape
        torch.Size([1, 2, 2])
    """
    given = x, in_weight, in_bias, out_weight, out_bias, norm_weight, norm_bias, addend
    wanted = [tensor if want and tensor is not None else None for tensor, want in zip(given, output_mask, strict=True)]
    if x.numel() == 0:
        return _gradients([None if tensor is None else torch.zeros(tensor.shape) for tensor in wanted])
    gradients = [None if tensor is None else torch.empty(tensor.shape) for tensor in wanted]
    grad, x, *weights = _contiguous(grad, *given, scale)
    _cpu.feed_forward_backward(
        _sizes(x, in_weight, out_weight),
        _norm(norm_weight, options),
        options.residual,
        options.eps,
        _buffer(grad),
        _buffer(x),
        [_buffer(weight) for weight in weights],
        [_buffer(gradient) for gradient in gradients],
        torch.get_num_threads(),
    )
    return _gradients(gradients)


def _gradients(found: list[Tensor | None]) -> Gradients:
    return found[0], found[1], found[2], found[3], found[4], found[5], found[6], found[7]


def _sizes(x: Tensor, in_weight: Tensor, out_weight: Tensor) -> list[int]:
    """Return the numbers of series, tokens of a series, and features of the three layers."""
    shape = x.shape
    steps = shape[-2] if len(shape) > 1 else 1
    return [math.prod(shape[:-2]), steps, *in_weight.shape[::-1], out_weight.shape[0]]


def _norm(weight: Tensor | None, options: Options) -> int:
    return 0 if weight is None else 1 if options.norm_first else 2


def _contiguous(*tensors: Any) -> list[Any]:
    for tensor in tensors:
        if tensor is not None and (tensor.dtype != torch.float32 or not tensor.is_cpu):
            raise TypeError(f"expected float32 on cpu, got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}")
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _buffer(tensor: Tensor | None) -> tuple[int, int]:
    return _NONE if tensor is None else (tensor.data_ptr(), tensor.nbytes)


__all__ = ["backward", "forward"]
