"""Cutting planes of the re-weighting problem, in plain PyTorch: values, penalty, Lagrangian and the fused step."""

from __future__ import annotations

import torch
from torch import Tensor

from simmst.core.cutting_plane import BETA1, BETA2, EPS, PackedSigns, Planes, unpack_signs


def values(planes: Planes, offsets: Tensor, point: Tensor) -> Tensor:
    """Return the values A x + c, as the reference for ``simmst.ops.cutting_plane_values``, which documents it."""
    return _values(planes, offsets, point).to(torch.promote_types(point.dtype, offsets.dtype))


def penalty(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> Tensor:
    """Return sum_l mu_l max(0, v_l)^2, as the reference for ``simmst.ops.cutting_plane_penalty``."""
    return penalty_and_values(planes, offsets, multipliers, point)[0]


def lagrangian(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> Tensor:
    """Return sum_l mu_l v_l, as the reference for ``simmst.ops.cutting_plane_lagrangian``."""
    return lagrangian_and_values(planes, offsets, multipliers, point)[0]


def penalty_and_values(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Return the penalty and, for its gradient, the unrounded values of the planes."""
    plane_values = _values(planes, offsets, point)
    total = (multipliers * plane_values.relu().square()).sum(-1)
    return total.to(_result_dtype(offsets, multipliers, point)), plane_values


def lagrangian_and_values(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Lagrangian's plane term and, for its gradient, the unrounded values of the planes."""
    plane_values = _values(planes, offsets, point)
    total = (multipliers * plane_values).sum(-1)
    return total.to(_result_dtype(offsets, multipliers, point)), plane_values


def penalty_and_gradient(
    planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the penalty, the values, and d penalty / d point."""
    total, plane_values = penalty_and_values(planes, offsets, multipliers, point)
    return total, plane_values, combine(planes, 2 * multipliers * plane_values.relu(), point.dtype)


def lagrangian_and_gradient(
    planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Lagrangian's plane term, the values, and d term / d point = A^T mu."""
    return *lagrangian_and_values(planes, offsets, multipliers, point), combine(planes, multipliers, point.dtype)


def combine(planes: Planes, coefficients: Tensor, dtype: torch.dtype) -> Tensor:
    """Return A^T s, (..., N) in dtype, for coefficients s (..., L); rows with coefficient zero are skipped."""
    computing = torch.promote_types(dtype, torch.float32)
    matrix = _matrix(planes, computing)
    # 0 * inf is NaN, so rows must be skipped explicitly.
    matrix = matrix.masked_fill((coefficients == 0).unsqueeze(-1), 0.0)
    return torch.matmul(coefficients.to(computing).unsqueeze(-2), matrix).squeeze(-2).to(dtype)


def step_(
    planes: Planes,
    coefficients: Tensor,
    gradient: Tensor,
    point: Tensor,
    anchor: Tensor,
    anchor_values: Tensor,
    *,
    lr: float,
    adam_state: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """Take one step and return the values after it, as the reference for ``simmst.ops.cutting_plane_step_``."""
    with torch.no_grad():
        computing = torch.promote_types(point.dtype, torch.float32)
        direction = combine(planes, coefficients, computing) + gradient.to(computing)
        if adam_state is None:
            updated = point.to(computing).add(direction, alpha=-lr)
        else:
            updated = _adam(point.to(computing), direction, lr, *adam_state)
        point.copy_(updated)
        # Use the stored point, after rounding.
        moved = (point.to(torch.promote_types(computing, anchor.dtype)) - anchor).to(computing)
        return (_product(planes, moved) + anchor_values).to(anchor_values.dtype)


def _adam(point: Tensor, direction: Tensor, lr: float, exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor) -> Tensor:
    """Return Adam's new point and update the state in place, with the operations of torch.optim.Adam in their order."""
    step.add_(1)
    taken = step.to(torch.float64)  # because torch takes the powers in Python's floats
    first = exp_avg.to(point.dtype).lerp(direction, 1 - BETA1)
    second = exp_avg_sq.to(point.dtype).mul(BETA2).addcmul(direction, direction, value=1 - BETA2)
    exp_avg.copy_(first)
    exp_avg_sq.copy_(second)
    denominator = second.sqrt().div((1 - BETA2**taken).sqrt()).add(EPS)
    step_size = lr / (1 - BETA1**taken)
    return point + first.mul(-step_size).div(denominator)


def _matrix(planes: Planes, dtype: torch.dtype) -> Tensor:
    """Return the unpacked planes in the dtype of the computation, as constants to autograd."""
    if isinstance(planes, PackedSigns):
        return unpack_signs(planes.bits, planes.scale, planes.size, dtype).detach()
    return planes.detach().to(dtype)


def _product(planes: Planes, vector: Tensor) -> Tensor:
    """Return A x for planes (..., L, N) and a vector (..., N)."""
    return torch.matmul(_matrix(planes, vector.dtype), vector.unsqueeze(-1)).squeeze(-1)


def _values(planes: Planes, offsets: Tensor, point: Tensor) -> Tensor:
    computing = torch.promote_types(point.dtype, torch.float32)
    return _product(planes, point.to(computing)) + offsets.detach()


def _result_dtype(offsets: Tensor, multipliers: Tensor, point: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(point.dtype, offsets.dtype), multipliers.dtype)
