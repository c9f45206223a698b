"""The shortest way to the fused CUDA kernels, for an eager call like one that has passed all checks before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from simmst.core.spatial_attention import Options
from simmst.ops.backends import implementation, is_transformed
from simmst.ops.dispatch import is_unwatched, wants_gradient
from simmst.ops.known import Known, layout, named
from simmst.ops.spatial_attention.library import DIFFERENTIABLE, PATH, backward

Operands = tuple[Tensor | None, ...]  # in the order of the operator
_MASK = 5
_known = Known()


def seen_before(
    operands: Operands, num_heads: int, residual: bool, eps: float, scale: float | None, backend: str | None
) -> Any:
    """Return what was prepared for a call like this one, or None."""
    if operands[_MASK] is not None or not _known.may_hold(*operands):
        return None
    try:
        return _known.find(_key(operands, num_heads, residual, eps, scale, backend))
    except (AttributeError, RuntimeError):
        return None  # the long way raises the error


def run(prepared: Any, operands: Operands) -> Tensor:
    """Return the output of a call that was prepared for, with autograd if a gradient is wanted."""
    out: Tensor = _Short.apply(prepared, *operands) if wants_gradient(*operands) else prepared.forward(*operands)[0]
    return out


def remember(
    operands: Operands,
    num_heads: int,
    residual: bool,
    eps: float,
    scale: float | None,
    backend: str | None,
    options: Options,
) -> None:
    """Remember a call whose arguments were checked and that ran on backend ``"cuda"``, without a mask."""
    plain = type(num_heads) is int and type(residual) is bool and type(eps) is float
    if is_compiling() or not plain or operands[_MASK] is not None or not is_unwatched(*operands) or is_transformed():
        return
    prepared = implementation(PATH, "cuda").Prepared.of(*operands, options)
    if prepared is not None:
        _known.keep(_key(operands, num_heads, residual, eps, scale, backend), prepared)


def _key(
    operands: Operands, num_heads: int, residual: bool, eps: float, scale: float | None, backend: str | None
) -> Any:
    kinds = type(num_heads), type(residual), type(eps), type(scale)
    # Another backend may be the fastest where gradients are wanted.
    way = (named(None), wants_gradient(*operands)) if backend is None else named(backend)
    return (*map(layout, operands), num_heads, residual, eps, scale, kinds, way)


class _Short(torch.autograd.Function):
    """The prepared call with autograd."""

    @staticmethod
    def forward(ctx: Any, prepared: Any, *operands: Any) -> Tensor:
        out, lse = prepared.forward(*operands)
        ctx.prepared = prepared
        ctx.save_for_backward(*operands, lse)
        checked: Tensor = out
        return checked

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *operands, lse = ctx.saved_tensors
        prepared = ctx.prepared
        wanted = [ctx.needs_input_grad[1 + index] for index in DIFFERENTIABLE]
        if torch.is_grad_enabled() or is_transformed() or not is_unwatched(grad, *operands):
            found = backward(grad, *operands, lse, lse.new_empty(0), prepared.options, wanted, "cuda")
        else:
            found = prepared.backward(grad, operands, lse, wanted)
        results: list[Tensor | None] = [None] * 9
        for index, gradient, want in zip(DIFFERENTIABLE, found, wanted, strict=True):
            results[1 + index] = gradient if want else None
        return tuple(results)


__all__ = ["remember", "run", "seen_before"]
