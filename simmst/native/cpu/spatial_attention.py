"""Spatial attention on the C++ kernels, with the functions of the reference, as the operators call them."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from simmst.core import dtypes
from simmst.core.spatial_attention import Gradients, Options, kept_entries

_cpu: Any = importlib.import_module("simmst._cpu")
_NONE = (0, 0)


def forward(
    x: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    key_padding_mask: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """Return the output and lse, like ``simmst.reference.spatial_attention.forward``.

    Raises:
        TypeError: dtypes or devices differ.
        ValueError: sizes do not fit each other.

    Example:
        >>> x, identity = torch.ones(1, 3, 2), torch.eye(2)
        >>> weights = torch.cat([identity] * 3), None, identity, None, None, None, None
        >>> out, lse = forward(x, *weights, Options(num_heads=1, residual=True, eps=1e-5, scale=1.0))
        >>> out[0, 0].tolist(), lse.shape
        ([2.0, 2.0], torch.Size([1, 1, 3]))
    """
    weights = in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, norm_weight, norm_bias
    out, lse, _ = _forward(x, _contiguous(x, *weights, key_padding_mask), options, keeps=False)
    return out, lse


def forward_keeping(
    x: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    key_padding_mask: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the results of :func:`forward` and, in an internal layout, what :func:`backward` need not compute again.

    Raises:
        TypeError: dtypes or devices differ.
        ValueError: sizes do not fit each other.

    Example:
        >>> x, identity = torch.ones(1, 3, 2), torch.eye(2)
        >>> weights = torch.cat([identity] * 3), None, identity, None, None, None, None
        >>> options = Options(num_heads=1, residual=True, eps=1e-5, scale=1.0)
        >>> out, lse, kept = forward_keeping(x, *weights, options)
        >>> backward(out, x, *weights, lse, options, [True] + [False] * 6, kept)[0].shape
        torch.Size([1, 3, 2])
    """
    weights = in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, norm_weight, norm_bias
    return _forward(x, _contiguous(x, *weights, key_padding_mask), options, keeps=True)


def _forward(
    x: Tensor, weights: list[Tensor | None], options: Options, *, keeps: bool
) -> tuple[Tensor, Tensor, Tensor]:
    shape = x.shape
    positions = shape[1] if len(shape) == 3 else shape[2] * shape[3]
    channels = shape[2] if len(shape) == 3 else shape[1]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    size = kept_entries(shape[0], channels, options.num_heads, positions, weights[6] is not None) if keeps else 0
    out = torch.empty(shape, dtype=x.dtype)
    lse = torch.empty((shape[0], options.num_heads, positions), dtype=wide)
    kept = torch.empty(size, dtype=wide)
    _cpu.spatial_attention_forward(
        dtypes.CODES[x.dtype],
        x.data_ptr(),
        shape,
        x.stride(),
        [_buffer(weight) for weight in weights[:6]],
        _buffer(weights[6]),
        _buffer(out),
        _buffer(lse),
        _buffer(kept),
        *options,
        torch.get_num_threads(),
    )
    return out, lse, kept


def backward(
    grad: Tensor,
    x: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    key_padding_mask: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    lse: Tensor,
    options: Options,
    output_mask: list[bool],
    kept: Tensor | None = None,
) -> Gradients:
    """Return the wanted gradients, like ``simmst.reference.spatial_attention.backward``; lse is not used.

    With ``kept`` from :func:`forward_keeping` only the scores are computed again.

    Raises:
        TypeError: dtypes or devices differ.
        ValueError: sizes do not fit each other.

    Example:
        >>> x, identity = torch.ones(1, 3, 2), torch.eye(2)
        >>> weights = torch.cat([identity] * 3), None, identity, None, None, None, None
        >>> options = Options(num_heads=1, residual=True, eps=1e-5, scale=1.0)
        >>> out, lse = forward(x, *weights, options)
        >>> wanted = [True, False, False, False, False, False, False]
        >>> backward(out, x, *weights, lse, options, wanted)[0].shape
        torch.Size([1, 3, 2])
    """
    given = x, in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, norm_weight, norm_bias
    wanted = [tensor if want and tensor is not None else None for tensor, want in zip(given, output_mask, strict=True)]
    if x.numel() == 0:
        return _gradients([None if tensor is None else _empty_like(tensor).zero_() for tensor in wanted])
    gradients = [None if tensor is None else _empty_like(tensor) for tensor in wanted]
    weights = _contiguous(x, *given[1:], key_padding_mask)
    if grad.dtype != x.dtype or not grad.is_cpu:
        raise TypeError(f"the gradient must be {x.dtype} on cpu like x, got {grad.dtype} on {grad.device}")
    _cpu.spatial_attention_backward(
        dtypes.CODES[x.dtype],
        grad.data_ptr(),
        grad.shape,
        grad.stride(),
        x.data_ptr(),
        x.shape,
        x.stride(),
        [_buffer(weight) for weight in weights[:6]],
        _buffer(weights[6]),
        _buffer(kept),
        [_buffer(gradient) for gradient in gradients],
        *options,
        torch.get_num_threads(),
    )
    return _gradients(gradients)


def _gradients(found: list[Tensor | None]) -> Gradients:
    return found[0], found[1], found[2], found[3], found[4], found[5], found[6]


def _empty_like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def _contiguous(x: Tensor, *tensors: Tensor | None) -> list[Tensor | None]:
    """Return the weights and, last, the mask as contiguous tensors, after a check of their dtypes and devices."""
    found: list[Tensor | None] = []
    for index, tensor in enumerate(tensors):
        if tensor is None:
            found.append(None)
            continue
        dtype = torch.bool if index == len(tensors) - 1 else x.dtype
        if tensor.dtype != dtype or not tensor.is_cpu:
            raise TypeError(
                f"expected {dtype} on cpu like x, got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            )
        found.append(tensor.contiguous())
    return found


def _buffer(tensor: Tensor | None) -> tuple[int, int]:
    return _NONE if tensor is None else (tensor.data_ptr(), tensor.nbytes)


__all__ = ["backward", "forward", "forward_keeping"]
