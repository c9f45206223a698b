"""The projections before and after attention on the C++ kernels, in float32, as the operators call them."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from simmst.core.projection import Options

_cpu: Any = importlib.import_module("simmst._cpu")
_NONE = (0, 0)


def forward(
    x: Tensor,
    first: Tensor,
    first_bias: Tensor | None,
    second: Tensor | None,
    second_bias: Tensor | None,
    third: Tensor | None,
    third_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the results of up to three layers, with an empty tensor in place of each missing layer.

    Raises:
        TypeError: a tensor is not float32 on the CPU.
        ValueError: sizes do not fit each other.

    Example:
        >>> options = Options(input_heads=0, output_heads=2, eps=1e-5)
        >>> out, *rest = forward(torch.ones(1, 3, 4), torch.eye(4), *9 * [None], options)
        >>> out.shape, rest[0].shape
        (torch.Size([1, 2, 3, 2]), torch.Size([0]))
    """
    layers = [(first, first_bias), (second, second_bias), (third, third_bias)]
    tensors = _operands(layers, norm_weight, norm_bias, residual, scale)
    (x,) = _contiguous([x])
    sizes = _sizes(x, first, layers, options)
    series, steps, outputs, heads = sizes[0], sizes[1], sizes[3], options.output_heads
    shape = (series, heads, steps, outputs // heads) if heads else (series, steps, outputs)
    out = [torch.empty(shape) if weight is not None else torch.empty(0) for weight, _ in layers]
    _cpu.projection_forward(
        sizes,
        options.eps,
        _buffer(x),
        [_buffer(tensor) for tensor in tensors],
        [_buffer(result) for result in out[: sizes[4]]],
        torch.get_num_threads(),
    )
    return out[0], out[1], out[2]


def backward(
    grads: list[Tensor],
    x: Tensor,
    first: Tensor,
    first_bias: Tensor | None,
    second: Tensor | None,
    second_bias: Tensor | None,
    third: Tensor | None,
    third_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    scale: Tensor | None,
    options: Options,
    output_mask: list[bool],
) -> list[Tensor | None]:
    """Return the wanted gradients of x, the layers and the norm, in the order of the operands.

    Raises:
        TypeError: a tensor is not float32 on the CPU.
        ValueError: sizes do not fit each other.

    Example:
        >>> options = Options(input_heads=0, output_heads=2, eps=1e-5)
        >>> grads = [torch.ones(1, 2, 3, 2), torch.empty(0), torch.empty(0)]
        >>> found = backward(grads, torch.ones(1, 3, 4), torch.eye(4), *8 * [None], options, [True] + 8 * [False])
        >>> found[0].shape
        torch.Size([1, 3, 4])
    """
    layers = [(first, first_bias), (second, second_bias), (third, third_bias)]
    given = [x, *(each for layer in layers for each in layer), norm_weight, norm_bias]
    (x,) = _contiguous([x])
    found = [
        torch.empty(each.shape) if want and each is not None else None
        for each, want in zip(given, output_mask, strict=True)
    ]
    sizes = _sizes(x, first, layers, options)
    count = sizes[4]
    filled = [*found[: 1 + 2 * count], *found[7:]]
    grads, tensors = _contiguous(grads[:count]), _operands(layers, norm_weight, norm_bias, None, scale)
    _cpu.projection_backward(
        sizes,
        options.eps,
        [_buffer(grad) for grad in grads],
        _buffer(x),
        [_buffer(tensor) for tensor in tensors],
        [_buffer(gradient) for gradient in filled],
        torch.get_num_threads(),
    )
    return found


def _operands(layers: list[tuple[Any, Any]], *rest: Tensor | None) -> list[Tensor | None]:
    """Return weight and bias of the given layers, followed by the rest."""
    return _contiguous([*(each for layer in layers if layer[0] is not None for each in layer), *rest])


def _sizes(x: Tensor, first: Tensor, layers: list[tuple[Any, Any]], options: Options) -> list[int]:
    """Return the numbers of series, tokens, inputs, outputs, layers, and heads of x and of the results."""
    outputs, inputs = first.shape
    count = sum(weight is not None for weight, _ in layers)
    return [x.shape[0], x.shape[2 if options.input_heads else 1], inputs, outputs, count, *options[:2]]


def _contiguous(tensors: list[Any]) -> list[Any]:
    for tensor in tensors:
        if tensor is not None and (tensor.dtype != torch.float32 or not tensor.is_cpu):
            raise TypeError(f"expected float32 on cpu, got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}")
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _buffer(tensor: Tensor | None) -> tuple[int, int]:
    return _NONE if tensor is None else (tensor.data_ptr(), tensor.nbytes)


__all__ = ["backward", "forward"]
