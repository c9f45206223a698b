"""The registered operators of spatial attention, with their fakes and gradients.

The module of a backend (:func:`simmst.ops.backends.implementation`) has ``forward`` and ``backward`` with the
signatures and semantics of :mod:`simmst.reference.spatial_attention`; it may rely on the checks of the public function.
Inputs may have any strides, results are contiguous; lse, the second output, is not differentiable. A module may also
have ``forward_keeping``, whose third output its ``backward`` takes as ``kept``; the other modules keep nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from simmst.core.spatial_attention import Gradients, Options, kept_entries
from simmst.ops.dispatch import Operator
from simmst.reference import spatial_attention as reference
from simmst.reference.spatial_attention_chain import spatial_attention as chained

PATH = "spatial_attention"
_WEIGHTS = (
    "Tensor x, Tensor in_proj_weight, Tensor? in_proj_bias, Tensor out_proj_weight, Tensor? out_proj_bias, "
    "Tensor? key_padding_mask, Tensor? norm_weight, Tensor? norm_bias"
)
# Positions of the seven differentiable inputs among the operands; the mask between them has no gradient.
DIFFERENTIABLE = (0, 1, 2, 3, 4, 6, 7)


def _in_plain_torch(
    x: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    key_padding_mask: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    options: Options,
    keeps: bool,
) -> tuple[Tensor, None, None]:
    weights = in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias
    out = reference.spatial_attention(
        x,
        *weights,
        num_heads=options.num_heads,
        key_padding_mask=key_padding_mask,
        residual=options.residual,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
        eps=options.eps,
        scale=options.scale,
    )
    return out, None, None


def _in_a_chain(*args: Any) -> tuple[Tensor, None, None]:
    return chained(*args[:-1]), None, None  # without keeps: the chain keeps nothing


def _forward_fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    options: Options = rest[-2]
    maps = x.dim() == 4
    positions, channels = (x.shape[2] * x.shape[3], x.shape[1]) if maps else (x.shape[1], x.shape[2])
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    lse = x.new_empty((x.shape[0], options.num_heads, positions), dtype=dtype)
    size = kept_entries(x.shape[0], channels, options.num_heads, positions, rest[4] is not None) if rest[-1] else 0
    kept = x.new_empty((size,), dtype=dtype)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), lse, kept


def _forward_kernel(module: ModuleType) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    return partial(_with_kept, module)


def _with_kept(module: ModuleType, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *operands, keeps = args
    if keeps and hasattr(module, "forward_keeping"):
        kept: tuple[Tensor, Tensor, Tensor] = module.forward_keeping(*operands)
        return kept
    out, lse = module.forward(*operands)
    return out, lse, lse.new_empty(0)


def _backward_fake(grad: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    wanted: list[bool] = rest[-1]
    given = [rest[index] for index in DIFFERENTIABLE]
    return tuple(
        torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        if want and tensor is not None
        else grad.new_empty(0)
        for tensor, want in zip(given, wanted, strict=True)
    )


def _backward_kernel(module: ModuleType) -> Callable[..., tuple[Tensor, ...]]:
    return partial(_all_tensors, module.backward)


def _all_tensors(backward: Callable[..., Gradients], grad: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Put an empty tensor in place of each unwanted gradient, because a library operator returns only tensors."""
    *operands, kept, options, wanted = rest
    found = backward(grad, *operands, options, wanted, *([kept] if kept.numel() else []))
    return tuple(grad.new_empty(0) if gradient is None else gradient for gradient in found)


def _keep(ctx: Any, operands: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*operands[:8], *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _gradients(ctx: Any, grad: Tensor, *_of_lse_and_kept: Tensor | None) -> tuple[Tensor | None, ...]:
    wanted = [ctx.needs_input_grad[index] for index in DIFFERENTIABLE]
    found = backward(grad, *ctx.saved_tensors, ctx.options, wanted, ctx.backend)
    results: list[Tensor | None] = [None] * 8
    for index, gradient, want in zip(DIFFERENTIABLE, found, wanted, strict=True):
        results[index] = gradient if want else None
    return tuple(results)


def _no_second_order(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    raise RuntimeError(
        'spatial_attention has first derivatives only on this backend; call it with backend="reference" for higher ones'
    )


forward = Operator(
    f"spatial_attention({_WEIGHTS}, {{options}}, bool keeps, str backend) -> (Tensor, Tensor, Tensor)",
    path=PATH,
    kernel=_forward_kernel,
    plain=_in_plain_torch,
    chain=_in_a_chain,
    fake=_forward_fake,
    options=Options,
    context=_keep,
    gradients=_gradients,
)
backward = Operator(
    f"spatial_attention_backward(Tensor grad, {_WEIGHTS}, Tensor lse, Tensor kept, {{options}}, bool[7] output_mask, "
    "str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    path=PATH,
    kernel=_backward_kernel,
    plain=None,
    fake=_backward_fake,
    options=Options,
    gradients=_no_second_order,
)

__all__ = ["DIFFERENTIABLE", "PATH", "backward", "forward"]
