"""Cutting planes on the CUDA kernels: the functions of ``simmst.reference.cutting_plane``, same signatures.

Tensors of any strides and of float32, bfloat16, float16 (with one entry a plane float64, too) go in and come out as
they are; planes alone need stride 1 along N. The kernels work on addresses: every tensor stays bound to a name until
they have been launched. Nothing here waits for the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simmst.core import dtypes
from simmst.core.cutting_plane import BETA1, BETA2, PackedSigns, Planes
from simmst.native.cuda.launch import array, array_or_none, module, on

_cuda: Any = module()


def values(planes: Planes, offsets: Tensor, point: Tensor) -> Tensor:
    """A x + c."""
    rows, scale, workspace = _prepare(planes)
    point = _single(point)
    out = torch.empty(offsets.shape, dtype=torch.promote_types(point.dtype, offsets.dtype), device=point.device)
    _cuda.cutting_plane_values(
        array(rows), array_or_none(scale), array(offsets), array(point), array(out), array(workspace), *on(rows)
    )
    return out


def penalty(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> Tensor:
    """sum_l mu_l max(0, v_l)^2."""
    return penalty_and_values(planes, offsets, multipliers, point)[0]


def lagrangian(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> Tensor:
    """sum_l mu_l v_l."""
    return lagrangian_and_values(planes, offsets, multipliers, point)[0]


def penalty_and_values(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """The penalty and the values it was made of, the latter unrounded."""
    return _total(True, planes, offsets, multipliers, point, None)


def lagrangian_and_values(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """The Lagrangian's plane term and the values it was made of, the latter unrounded."""
    return _total(False, planes, offsets, multipliers, point, None)


def penalty_and_gradient(
    planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The penalty, the values, and d penalty / d point, in two passes over the planes."""
    gradient = torch.empty(point.shape, dtype=point.dtype, device=point.device)
    total, plane_values = _total(True, planes, offsets, multipliers, point, gradient)
    return total, plane_values, gradient


def lagrangian_and_gradient(
    planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The Lagrangian's plane term, the values, and d term / d point = A^T mu, in one pass over the planes."""
    gradient = torch.empty(point.shape, dtype=point.dtype, device=point.device)
    total, plane_values = _total(False, planes, offsets, multipliers, point, gradient)
    return total, plane_values, gradient


def combine(planes: Planes, coefficients: Tensor, dtype: torch.dtype) -> Tensor:
    """A^T s, rows with coefficient zero skipped. (..., N) in dtype."""
    rows, scale, workspace = _prepare(planes)
    computed = torch.float32 if dtype == torch.float64 else dtype
    out = torch.empty((*planes.shape[:-2], planes.shape[-1]), dtype=computed, device=rows.device)
    _cuda.cutting_plane_combine(
        array(rows), array_or_none(scale), array(coefficients), array(out), array(workspace), *on(rows)
    )
    return out.to(dtype)


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
    """One optimiser step in place and the values after it, in one pass over the planes."""
    rows, scale, workspace = _prepare(planes)
    gradient = _single(gradient)
    out = torch.empty(anchor_values.shape, dtype=anchor_values.dtype, device=point.device)
    averages, step, step_size, second_root = None, None, lr, 1.0
    if adam_state is not None:
        exp_avg, exp_avg_sq, step = adam_state
        averages = array(exp_avg), array(exp_avg_sq)
        with torch.no_grad():
            step.add_(1)
        if step.device != point.device:  # as torch.optim.Adam keeps it by default: in main memory
            taken = float(step)
            step_size, second_root = lr / (1 - BETA1**taken), (1 - BETA2**taken) ** 0.5
            step = None
    _cuda.cutting_plane_step(
        array(rows),
        array_or_none(scale),
        array(coefficients),
        array(gradient),
        array(point),
        array(anchor),
        array(anchor_values),
        averages,
        array_or_none(step),
        step_size,
        second_root,
        array(out),
        array(workspace),
        *on(rows),
    )
    return out


def _total(
    penalty: bool, planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor, gradient: Tensor | None
) -> tuple[Tensor, Tensor]:
    rows, scale, workspace = _prepare(planes)
    both = torch.promote_types(point.dtype, offsets.dtype)
    dtype = torch.promote_types(both, multipliers.dtype)
    total = torch.empty(offsets.shape[:-1], dtype=dtype, device=point.device)
    values_dtype = torch.promote_types(both, torch.float32)
    plane_values = torch.empty(offsets.shape, dtype=values_dtype, device=point.device)
    _cuda.cutting_plane_total(
        penalty,
        array(rows),
        array_or_none(scale),
        array(offsets),
        array(multipliers),
        array(point),
        array(total),
        array(plane_values),
        array_or_none(gradient),
        array(workspace),
        *on(rows),
    )
    return total, plane_values


def _prepare(planes: Planes) -> tuple[Tensor, Tensor | None, Tensor]:
    """The stored rows with stride 1 along them, the scale of packed signs, and the workspace of a call."""
    rows, scale = (planes.bits, planes.scale) if isinstance(planes, PackedSigns) else (planes, None)
    if rows.stride(-1) != 1 and rows.shape[-1] > 1:
        rows = rows.contiguous()
    shape = planes.shape
    problems = shape[0] if len(shape) == 3 else 1
    floats = _cuda.cutting_plane_workspace(dtypes.CODES[rows.dtype], problems, shape[-2], shape[-1], rows.get_device())
    return rows, scale, torch.empty(floats, dtype=torch.float32, device=rows.device)


def _single(tensor: Tensor) -> Tensor:
    """A vector along N in a dtype the kernels read."""
    return tensor.float() if tensor.dtype == torch.float64 else tensor
