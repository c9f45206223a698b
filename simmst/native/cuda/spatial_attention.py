"""Spatial attention on the CUDA kernels, with the functions of the reference, as the operators call them.

Maps that fit into the shared memory of a block go to the fused kernels, larger maps to
:mod:`simmst.native.cuda.spatial_attention_long`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from simmst.core import dtypes
from simmst.core.spatial_attention import Gradients, Options
from simmst.native.cuda import spatial_attention_long as long
from simmst.native.cuda.launch import (
    PLANS,
    Layout,
    Plan,
    address,
    layout,
    module,
    number_of,
    run,
    stream_of,
    told,
    told_or_none,
)


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
        TypeError: dtypes differ.
        ValueError: sizes or devices do not fit each other.

    Example:
        >>> x, identity = torch.ones(1, 3, 2, device="cuda"), torch.eye(2, device="cuda")
        >>> weights = torch.cat([identity] * 3), None, identity, None, None, None, None
        >>> out, lse = forward(x, *weights, Options(num_heads=1, residual=True, eps=1e-5, scale=1.0))
        >>> out[0, 0].tolist(), lse.shape
        ([2.0, 2.0], torch.Size([1, 1, 3]))
    """
    weights = in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, norm_weight, norm_bias
    batch, positions, channels = _sizes(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    lse = torch.empty((batch, options.num_heads, positions), dtype=torch.float32, device=x.device)
    if x.numel() == 0:
        return out, lse
    if why_not_fused(x.dtype, positions, channels, options.num_heads, x.get_device()):
        return long.forward(x, *weights, key_padding_mask, options)
    # Contiguous copies must stay alive until the kernel is in the stream.
    held = [_contiguous(tensor) for tensor in (*weights, key_padding_mask)]
    plan = _forward_plan(layout(x), tuple(map(_layout_or_none, held)), options)
    run(plan, x, *map(address, (x, *held, out, lse)))
    return out, lse


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
) -> Gradients:
    """Return the wanted gradients, like ``simmst.reference.spatial_attention.backward``.

    Raises:
        TypeError: dtypes differ.
        ValueError: sizes or devices do not fit each other.

    Example:
        >>> x, identity = torch.ones(1, 3, 2, device="cuda"), torch.eye(2, device="cuda")
        >>> weights = torch.cat([identity] * 3), None, identity, None, None, None, None
        >>> options = Options(num_heads=1, residual=True, eps=1e-5, scale=1.0)
        >>> out, lse = forward(x, *weights, options)
        >>> wanted = [True, False, False, False, False, False, False]
        >>> backward(out, x, *weights, lse, options, wanted)[0].shape
        torch.Size([1, 3, 2])
    """
    weights = in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, norm_weight, norm_bias
    wanted = [
        tensor if want and tensor is not None else None for tensor, want in zip((x, *weights), output_mask, strict=True)
    ]
    gradients = [None if tensor is None else _empty_like(tensor) for tensor in wanted]
    if x.numel() == 0:
        return _seven([None if gradient is None else gradient.zero_() for gradient in gradients])
    _, positions, channels = _sizes(x)
    if why_not_fused(x.dtype, positions, channels, options.num_heads, x.get_device()):
        return _seven(long.backward(grad, x, *weights, key_padding_mask, options, output_mask))
    held = [_contiguous(tensor) for tensor in (*weights, key_padding_mask, lse)]
    plan = _backward_plan(layout(grad), layout(x), tuple(map(_layout_or_none, held)), options)
    run(plan, x, *map(address, (x, *held[:7], grad, held[7], *gradients)))
    return _seven(gradients)


class Prepared:
    """Forward and backward passes of one layout that the fused kernels take, without a check or a copy.

    Example:
        >>> x, identity = torch.ones(1, 3, 2, device="cuda"), torch.eye(2, device="cuda")
        >>> given = x, torch.cat([identity] * 3), None, identity, None, None, None, None
        >>> prepared = Prepared.of(*given, Options(num_heads=1, residual=True, eps=1e-5, scale=1.0))
        >>> prepared.forward(*given)[0].shape
        torch.Size([1, 3, 2])
    """

    def __init__(self, x: Tensor, weights: tuple[Tensor | None, ...], mask: Tensor | None, options: Options) -> None:
        self.options = options
        batch, positions, _ = _sizes(x)
        self._places = tuple(map(_layout_or_none, (*weights, mask)))
        self._plan = _forward_plan(layout(x), self._places, options)
        self._x, self._shape = layout(x), x.shape
        self._lse = batch, options.num_heads, positions
        self._lse_layout = layout(torch.empty(self._lse, device=x.device))
        self._backward: dict[Layout, Plan] = {}

    @classmethod
    def of(
        cls,
        x: Tensor,
        in_proj_weight: Tensor,
        in_proj_bias: Tensor | None,
        out_proj_weight: Tensor,
        out_proj_bias: Tensor | None,
        key_padding_mask: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        options: Options,
    ) -> Prepared | None:
        """Prepare for calls like this one; return None if the fused kernels do not take its tensors without a copy."""
        weights = in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, norm_weight, norm_bias
        _, positions, channels = _sizes(x)
        if x.numel() == 0 or why_not_fused(x.dtype, positions, channels, options.num_heads, x.get_device()):
            return None
        if not all(tensor is None or tensor.is_contiguous() for tensor in (*weights, key_padding_mask)):
            return None
        return cls(x, weights, key_padding_mask, options)

    def forward(self, *given: Any) -> tuple[Tensor, Tensor]:
        """Return the output and lse for the operands of :func:`forward` without the options."""
        x = given[0]
        out = x.new_empty(self._shape)
        lse = torch.empty(self._lse, dtype=torch.float32, device=x.device)
        self._plan(*map(address, _in_order(*given)), out.data_ptr(), lse.data_ptr(), 0, stream_of(x))
        return out, lse

    def backward(self, grad: Tensor, given: Sequence[Any], lse: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Return the wanted gradients of x and the six weights, in the order of :func:`backward`."""
        places = _in_order(*given)
        gradients = [
            tensor.new_empty(tensor.shape) if want and tensor is not None else None
            for tensor, want in zip(places, wanted, strict=False)  # the mask is the last
        ]
        of_grad = layout(grad)
        plan = self._backward.get(of_grad)
        if plan is None:
            held = (*self._places, self._lse_layout)
            plan = self._backward[of_grad] = _backward_plan(of_grad, self._x, held, self.options)
        x = given[0]
        run(plan, x, *map(address, places), grad.data_ptr(), lse.data_ptr(), *map(address, gradients))
        return gradients


def _in_order(
    x: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    key_padding_mask: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Return the operands in the order that plans take, with the mask last."""
    return x, in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, norm_weight, norm_bias, key_padding_mask


@functools.lru_cache(maxsize=1024)
def why_not_fused(dtype: torch.dtype, positions: int, channels: int, num_heads: int, device: int) -> str:
    """Say why the fused kernels do not take maps of these sizes on a device; an empty string if they do.

    Example:
        >>> why_not_fused(torch.bfloat16, 1000, 64, 4, 0)
        'more than 512 positions'
    """
    reason: str = module().spatial_attention_why_not(dtypes.CODES[dtype], positions, channels, num_heads, device)
    return reason


@functools.lru_cache(PLANS)
def _forward_plan(x: Layout, held: tuple[Layout | None, ...], options: Options) -> Plan:
    *weights, mask = map(told_or_none, held)
    return module().spatial_attention_forward(told(x), weights, mask, options, number_of(x[3]))


@functools.lru_cache(PLANS)
def _backward_plan(grad: Layout, x: Layout, held: tuple[Layout | None, ...], options: Options) -> Plan:
    *weights, mask, lse = map(told_or_none, held)
    return module().spatial_attention_backward(told(grad), told(x), weights, mask, lse, options, number_of(x[3]))


def _layout_or_none(tensor: Tensor | None) -> Layout | None:
    return None if tensor is None else layout(tensor)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Return B, N and C."""
    if x.dim() == 4:
        return x.shape[0], x.shape[2] * x.shape[3], x.shape[1]
    return x.shape[0], x.shape[1], x.shape[2]


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _empty_like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _seven(found: list[Tensor | None]) -> Gradients:
    return found[0], found[1], found[2], found[3], found[4], found[5], found[6]


__all__ = ["Prepared", "backward", "forward", "why_not_fused"]
