"""Penalty and Lagrangian with the gradient for the point made along with the value, for backends that can.

The library operators make the gradient in the backward pass, which reads the planes once more. A backend whose module
has ``penalty_and_gradient`` and ``lagrangian_and_gradient`` (planes, offsets, multipliers, point) -> (result, values,
d result / d point) makes it in the forward pass instead, while the planes are in the cache. For eager calls; compiled
ones and higher derivatives go through the library operators.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simmst.core.cutting_plane import PackedSigns, Planes
from simmst.ops.backends import implementation


def can_fuse(backend: str, point: Tensor) -> bool:
    """Whether a call wants the gradient for the point, eagerly, from a backend that makes it with the value."""
    wanted = point.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return wanted and hasattr(implementation("cutting_plane", backend), "lagrangian_and_gradient")


def fused(name: str, planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor, backend: str) -> Tensor:
    """The ``"penalty"`` or the ``"lagrangian"``, differentiable to any order in point and multipliers."""
    out: Tensor = _Fused.apply(name, planes, offsets, multipliers, point, backend)
    return out


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, name: str, planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor, backend: str
    ) -> Tensor:
        function = getattr(implementation("cutting_plane", backend), f"{name}_and_gradient")
        total: Tensor
        total, values, gradient = function(planes, offsets, multipliers, point)
        stored = planes if not isinstance(planes, PackedSigns) else planes.bits
        scale = planes.scale if isinstance(planes, PackedSigns) else None
        ctx.save_for_backward(stored, scale, offsets, multipliers, point, values, gradient)
        ctx.name, ctx.backend = name, backend
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        stored, scale, offsets, multipliers, point, values, gradient = ctx.saved_tensors
        _, _, _, wants_multipliers, wants_point, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():  # to be differentiated again
            operator = getattr(torch.ops.simmst, f"cutting_plane_{ctx.name}").default
            total = operator(stored, scale, offsets, multipliers, point, ctx.backend)[0]
            wanted = [tensor for tensor, want in ((multipliers, wants_multipliers), (point, wants_point)) if want]
            gradients = iter(torch.autograd.grad(total, wanted, grad, create_graph=True))
            return (
                *(None, None, None),
                next(gradients) if wants_multipliers else None,
                next(gradients) if wants_point else None,
                None,
            )
        weight = grad.unsqueeze(-1)
        grad_multipliers = None
        if wants_multipliers:
            slopes = values.relu().square() if ctx.name == "penalty" else values
            grad_multipliers = (weight * slopes).to(multipliers.dtype)
        grad_point = (weight * gradient).to(point.dtype) if wants_point else None
        return None, None, None, grad_multipliers, grad_point, None
