"""The registered operators of cutting planes, with their fakes and gradients.

The module of a backend (:func:`simmst.ops.backends.implementation`) has the functions ``values``,
``{penalty,lagrangian}_and_values``, ``{penalty,lagrangian}_and_gradient``, ``combine`` and ``step_`` with the
signatures and semantics of :mod:`simmst.reference.cutting_plane`. It may rely on the checks of the public functions.
Inputs may have any strides, and so may the tensors that ``step_`` updates; results are new and contiguous.

Packed planes are passed as two tensors, bits and scale; plain planes have no scale. Penalty and Lagrangian also return
the values of the planes, which their gradients need. With ``with_gradient`` they compute the gradient for the point,
too, while the planes are in the cache, so that a first derivative does not read the planes again. Every other gradient
is built from operators of this file, so all orders exist in reverse mode.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from simmst.core.cutting_plane import PackedSigns, Planes
from simmst.ops.dispatch import Operator
from simmst.reference import cutting_plane as reference

PATH = "cutting_plane"
_PLANES = "Tensor planes, Tensor? scale"
_PAIR = f"({_PLANES}, Tensor offsets, Tensor multipliers, Tensor point, bool with_gradient, str backend)"

Pair = tuple[Tensor, Tensor, Tensor]  # total, values, and the gradient for the point or an empty tensor


def flat(planes: Planes) -> tuple[Tensor, Tensor | None]:
    """Split planes into the two operands of an operator: the stored tensor, and the scale of packed signs or None."""
    return (planes.bits, planes.scale) if isinstance(planes, PackedSigns) else (planes, None)


def _whole(planes: Tensor, scale: Tensor | None, size: int) -> Planes:
    return planes if scale is None else PackedSigns(planes, scale, size)


def _values(module: ModuleType, planes: Tensor, scale: Tensor | None, offsets: Tensor, point: Tensor) -> Tensor:
    out: Tensor = module.values(_whole(planes, scale, point.shape[-1]), offsets, point)
    return out


def _pair(
    name: str,
    module: ModuleType,
    planes: Tensor,
    scale: Tensor | None,
    offsets: Tensor,
    multipliers: Tensor,
    point: Tensor,
    with_gradient: bool,
) -> Pair:
    stored = _whole(planes, scale, point.shape[-1])
    if with_gradient:
        out: Pair = getattr(module, f"{name}_and_gradient")(stored, offsets, multipliers, point)
        return out
    return (*getattr(module, f"{name}_and_values")(stored, offsets, multipliers, point), point.new_empty(0))


def _combine(
    module: ModuleType, planes: Tensor, scale: Tensor | None, coefficients: Tensor, size: int, dtype: torch.dtype
) -> Tensor:
    out: Tensor = module.combine(_whole(planes, scale, size), coefficients, dtype)
    return out


def _step(
    module: ModuleType,
    planes: Tensor,
    scale: Tensor | None,
    coefficients: Tensor,
    gradient: Tensor,
    point: Tensor,
    anchor: Tensor,
    anchor_values: Tensor,
    exp_avg: Tensor | None,
    exp_avg_sq: Tensor | None,
    step: Tensor | None,
    lr: float,
) -> Tensor:
    adam_state = None if exp_avg is None else (exp_avg, exp_avg_sq, step)
    stored = _whole(planes, scale, point.shape[-1])
    out: Tensor = module.step_(
        stored, coefficients, gradient, point, anchor, anchor_values, lr=lr, adam_state=adam_state
    )
    return out


def _promote(*tensors: Tensor) -> torch.dtype:
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _values_fake(planes: Tensor, scale: Tensor | None, offsets: Tensor, point: Tensor) -> Tensor:
    return torch.empty(offsets.shape, dtype=_promote(point, offsets), device=point.device)


def _pair_fake(
    planes: Tensor, scale: Tensor | None, offsets: Tensor, multipliers: Tensor, point: Tensor, with_gradient: bool
) -> Pair:
    values_dtype = torch.promote_types(_promote(point, offsets), torch.float32)
    total = torch.empty(offsets.shape[:-1], dtype=_promote(point, offsets, multipliers), device=point.device)
    gradient = torch.empty(point.shape if with_gradient else (0,), dtype=point.dtype, device=point.device)
    return total, torch.empty(offsets.shape, dtype=values_dtype, device=point.device), gradient


def _combine_fake(planes: Tensor, scale: Tensor | None, coefficients: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    return torch.empty((*planes.shape[:-2], size), dtype=dtype, device=planes.device)


def _step_fake(planes: Tensor, scale: Tensor | None, *rest: Any) -> Tensor:
    anchor_values: Tensor = rest[4]
    return torch.empty(anchor_values.shape, dtype=anchor_values.dtype, device=anchor_values.device)


def _keep_values(ctx: Any, operands: tuple[Any, ...], output: Tensor) -> None:
    planes, scale, _, point = operands[:4]
    ctx.save_for_backward(planes, scale)
    ctx.point = point.shape[-1], point.dtype


def _values_gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return None, None, None, combine(*ctx.saved_tensors, grad, *ctx.point, ctx.backend)


def _keep_combine(ctx: Any, operands: tuple[Any, ...], output: Tensor) -> None:
    planes, scale, coefficients = operands[:3]
    ctx.save_for_backward(planes, scale)
    ctx.dtype = coefficients.dtype


def _combine_gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    planes, scale = ctx.saved_tensors
    zeros = torch.zeros(planes.shape[:-1], dtype=ctx.dtype, device=planes.device)
    return None, None, values(planes, scale, zeros, grad, ctx.backend).to(ctx.dtype)


def _keep_pair(ctx: Any, operands: tuple[Any, ...], output: Pair) -> None:
    planes, scale, _, multipliers, point, with_gradient = operands[:6]
    _, plane_values, gradient = output
    ctx.save_for_backward(planes, scale, multipliers, plane_values, gradient)
    ctx.mark_non_differentiable(gradient)
    ctx.set_materialize_grads(False)
    ctx.point, ctx.with_gradient = (point.shape[-1], point.dtype), with_gradient


def _pair_gradients(is_penalty: bool, ctx: Any, grad: Tensor | None, grad_values: Tensor | None, _: None) -> Any:
    """Return the gradients for multipliers and point."""
    planes, scale, multipliers, plane_values, gradient = ctx.saved_tensors
    _, _, _, wants_multipliers, wants_point, *_ = ctx.needs_input_grad
    grad_multipliers = grad_point = coefficients = None
    weight = None if grad is None else grad.unsqueeze(-1)
    if weight is not None and wants_multipliers:
        slopes = plane_values.relu().square() if is_penalty else plane_values
        grad_multipliers = (weight * slopes).to(multipliers.dtype)
    if weight is not None and wants_point:
        if ctx.with_gradient and grad_values is None and not torch.is_grad_enabled():
            return None, None, None, grad_multipliers, (weight * gradient).to(ctx.point[1])
        coefficients = weight * (2 * multipliers * plane_values.relu() if is_penalty else multipliers)
    if grad_values is not None:
        coefficients = grad_values if coefficients is None else coefficients + grad_values
    if coefficients is not None and wants_point:
        grad_point = combine(planes, scale, coefficients, *ctx.point, ctx.backend)
    return None, None, None, grad_multipliers, grad_point


def _with_nothing(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, None, None]]:
    """Wrap a function of the reference so that it returns only its total, which plain PyTorch differentiates."""
    return lambda planes, scale, offsets, multipliers, point, _: (
        function(_whole(planes, scale, point.shape[-1]), offsets, multipliers, point),
        None,
        None,
    )


values = Operator(
    f"cutting_plane_values({_PLANES}, Tensor offsets, Tensor point, str backend) -> Tensor",
    path=PATH,
    kernel=lambda module: partial(_values, module),
    plain=partial(_values, reference),
    fake=_values_fake,
    context=_keep_values,
    gradients=_values_gradients,
)
penalty = Operator(
    f"cutting_plane_penalty{_PAIR} -> (Tensor, Tensor, Tensor)",
    path=PATH,
    kernel=lambda module: partial(_pair, "penalty", module),
    plain=_with_nothing(reference.penalty),
    fake=_pair_fake,
    context=_keep_pair,
    gradients=partial(_pair_gradients, True),
)
lagrangian = Operator(
    f"cutting_plane_lagrangian{_PAIR} -> (Tensor, Tensor, Tensor)",
    path=PATH,
    kernel=lambda module: partial(_pair, "lagrangian", module),
    plain=_with_nothing(reference.lagrangian),
    fake=_pair_fake,
    context=_keep_pair,
    gradients=partial(_pair_gradients, False),
)
combine = Operator(
    f"cutting_plane_combine({_PLANES}, Tensor coefficients, SymInt size, ScalarType dtype, str backend) -> Tensor",
    path=PATH,
    kernel=lambda module: partial(_combine, module),
    plain=None,
    fake=_combine_fake,
    context=_keep_combine,
    gradients=_combine_gradients,
)
step_ = Operator(
    f"cutting_plane_step_({_PLANES}, Tensor coefficients, Tensor gradient, Tensor(a!) point, Tensor anchor,"
    " Tensor anchor_values, Tensor(b!)? exp_avg, Tensor(c!)? exp_avg_sq, Tensor(d!)? step, float lr, str backend)"
    " -> Tensor",
    path=PATH,
    kernel=lambda module: partial(_step, module),
    plain=partial(_step, reference),
    fake=_step_fake,
)

__all__ = ["PATH", "combine", "flat", "lagrangian", "penalty", "step_", "values"]
