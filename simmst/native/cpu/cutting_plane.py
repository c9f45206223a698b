"""Cutting planes on the compiled CPU kernels, with the signatures of ``simmst.reference.cutting_plane``.

The kernels read and write vectors along N in any dtype. They take and return tensors with one entry per plane in
float32 or float64, and this module rounds a narrower result. The kernels work on addresses, so every tensor stays bound
to a name until they have run.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from simmst.core import dtypes
from simmst.core.cutting_plane import BETA1, BETA2, PackedSigns, Planes

_cpu: Any = importlib.import_module("simmst._cpu")
_HALF = (torch.bfloat16, torch.float16)
_Array = tuple[int, int, tuple[int, ...], tuple[int, ...]]  # address, number of the dtype, shape, strides


def values(planes: Planes, offsets: Tensor, point: Tensor) -> Tensor:
    """Return A x + c."""
    rows, scale = _rows(planes)
    dtype = torch.promote_types(point.dtype, offsets.dtype)
    offsets, point = _wide(offsets), _unit_stride(point)
    out = torch.empty(offsets.shape, dtype=_wide_dtype(dtype))
    _cpu.cutting_plane_values(
        _array(rows), _array_or_none(scale), _array(offsets), _array(point), _array(out), torch.get_num_threads()
    )
    return out.to(dtype)


def penalty(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> Tensor:
    """Return sum_l mu_l max(0, v_l)^2."""
    return penalty_and_values(planes, offsets, multipliers, point)[0]


def lagrangian(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> Tensor:
    """Return sum_l mu_l v_l."""
    return lagrangian_and_values(planes, offsets, multipliers, point)[0]


def penalty_and_values(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Return the penalty and the unrounded values of the planes."""
    return _total(_cpu.cutting_plane_penalty, planes, offsets, multipliers, point, None)


def lagrangian_and_values(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Lagrangian's plane term and the unrounded values of the planes."""
    return _total(_cpu.cutting_plane_lagrangian, planes, offsets, multipliers, point, None)


def penalty_and_gradient(
    planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the penalty, the values, and d penalty / d point, one problem after the other with its planes in cache."""
    gradient = torch.empty(point.shape, dtype=point.dtype)
    total, plane_values = _total(_cpu.cutting_plane_penalty, planes, offsets, multipliers, point, gradient)
    return total, plane_values, gradient


def lagrangian_and_gradient(
    planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Lagrangian's plane term, the values, and d term / d point = A^T mu, in one pass over the planes."""
    gradient = torch.empty(point.shape, dtype=point.dtype)
    total, plane_values = _total(_cpu.cutting_plane_lagrangian, planes, offsets, multipliers, point, gradient)
    return total, plane_values, gradient


def combine(planes: Planes, coefficients: Tensor, dtype: torch.dtype) -> Tensor:
    """Return A^T s, (..., N) in dtype; rows with coefficient zero are skipped."""
    rows, scale = _rows(planes)
    coefficients = _wide(coefficients)
    out = torch.empty((*planes.shape[:-2], planes.shape[-1]), dtype=dtype)
    _cpu.cutting_plane_combine(
        _array(rows), _array_or_none(scale), _array(coefficients), _array(out), torch.get_num_threads()
    )
    return out


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
    """Take one optimiser step in place and return the values after it, in one pass over the planes."""
    rows, scale = _rows(planes)
    targets = [point] if adam_state is None else [point, adam_state[0], adam_state[1]]
    written = [_apart(target) for target in targets]
    averages: list[_Array | None] = [_array(target) for target in written[1:]] if adam_state else [None, None]
    step_size, second_root = lr, 1.0
    if adam_state is not None:
        taken = float(adam_state[2] + 1)
        step_size, second_root = lr / (1 - BETA1**taken), (1 - BETA2**taken) ** 0.5
    coefficients, known = _wide(coefficients), _wide(anchor_values)
    gradient, anchor = _unit_stride(gradient), _unit_stride(anchor)
    out = torch.empty(known.shape, dtype=known.dtype)
    _cpu.cutting_plane_step(
        _array(rows),
        _array_or_none(scale),
        _array(coefficients),
        _array(gradient),
        _array(written[0]),
        _array(anchor),
        _array(known),
        *averages,
        step_size,
        second_root,
        _array(out),
        torch.get_num_threads(),
    )
    with torch.no_grad():
        for target, result in zip(targets, written, strict=True):
            if result is not target:
                target.copy_(result)
        if adam_state is not None:
            adam_state[2].add_(1)
    return out.to(anchor_values.dtype)


def _total(
    function: Callable[..., None],
    planes: Planes,
    offsets: Tensor,
    multipliers: Tensor,
    point: Tensor,
    gradient: Tensor | None,
) -> tuple[Tensor, Tensor]:
    rows, scale = _rows(planes)
    values_dtype = _wide_dtype(torch.promote_types(point.dtype, offsets.dtype))
    dtype = torch.promote_types(torch.promote_types(point.dtype, offsets.dtype), multipliers.dtype)
    offsets, multipliers, point = _wide(offsets), _wide(multipliers), _unit_stride(point)
    total = torch.empty(offsets.shape[:-1], dtype=_wide_dtype(dtype))
    plane_values = torch.empty(offsets.shape, dtype=values_dtype)
    function(
        _array(rows),
        _array_or_none(scale),
        _array(offsets),
        _array(multipliers),
        _array(point),
        _array(total),
        _array(plane_values),
        _array_or_none(gradient),
        torch.get_num_threads(),
    )
    return total.to(dtype), plane_values


def _array(tensor: Tensor) -> _Array:
    return tensor.data_ptr(), dtypes.CODES[tensor.dtype], tensor.shape, tensor.stride()


def _array_or_none(tensor: Tensor | None) -> _Array | None:
    return None if tensor is None else _array(tensor)


def _rows(planes: Planes) -> tuple[Tensor, Tensor | None]:
    """Return the stored rows with stride 1 along N, and the scale of packed signs or None."""
    if isinstance(planes, PackedSigns):
        return _unit_stride(planes.bits), planes.scale
    return _unit_stride(planes), None


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] < 2 else tensor.contiguous()


def _apart(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy that the kernel can write to if its stride is not 1 or its problems overlap."""
    overlap = tensor.dim() == 2 and tensor.shape[0] > 1 and tensor.stride(0) < tensor.shape[1]
    return tensor.contiguous() if overlap else _unit_stride(tensor)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _HALF else tensor


def _wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in _HALF else dtype
