"""Cutting planes on the CUDA kernels, with the signatures of ``simmst.reference.cutting_plane``.

The kernels take float32, bfloat16 and float16 tensors of any strides without a copy, and float64, too, for tensors with
one entry per plane; only planes need stride 1 along N. The compiled module checks sizes and strides once, in a plan
that is cached for them. The kernels work on addresses, so every tensor stays bound to a name until they have been
launched. Nothing here waits for the device.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from simmst.core.cutting_plane import BETA1, BETA2, PackedSigns, Planes
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

_cuda: Any = module()


def values(planes: Planes, offsets: Tensor, point: Tensor) -> Tensor:
    """Return A x + c."""
    rows, scale = _stored(planes)
    point = _single(point)
    out = torch.empty(offsets.shape, dtype=torch.promote_types(point.dtype, offsets.dtype), device=point.device)
    plan = _values_plan(layout(rows), _layout(scale), layout(offsets), layout(point), layout(out))
    run(plan, rows, *map(address, (rows, scale, point, offsets, out)))
    return out


def penalty(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> Tensor:
    """Return sum_l mu_l max(0, v_l)^2."""
    return penalty_and_values(planes, offsets, multipliers, point)[0]


def lagrangian(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> Tensor:
    """Return sum_l mu_l v_l."""
    return lagrangian_and_values(planes, offsets, multipliers, point)[0]


def penalty_and_values(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Return the penalty and the unrounded values of the planes."""
    return _total(True, planes, offsets, multipliers, point, None)


def lagrangian_and_values(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Lagrangian's plane term and the unrounded values of the planes."""
    return _total(False, planes, offsets, multipliers, point, None)


def penalty_and_gradient(
    planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the penalty, the values, and d penalty / d point, in two passes over the planes."""
    gradient = torch.empty(point.shape, dtype=point.dtype, device=point.device)
    total, plane_values = _total(True, planes, offsets, multipliers, point, gradient)
    return total, plane_values, gradient


def lagrangian_and_gradient(
    planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Lagrangian's plane term, the values, and d term / d point = A^T mu, in one pass over the planes."""
    gradient = torch.empty(point.shape, dtype=point.dtype, device=point.device)
    total, plane_values = _total(False, planes, offsets, multipliers, point, gradient)
    return total, plane_values, gradient


def combine(planes: Planes, coefficients: Tensor, dtype: torch.dtype) -> Tensor:
    """Return A^T s, (..., N) in dtype; rows with coefficient zero are skipped."""
    rows, scale = _stored(planes)
    computed = torch.float32 if dtype == torch.float64 else dtype
    out = torch.empty((*planes.shape[:-2], planes.shape[-1]), dtype=computed, device=rows.device)
    plan = _combine_plan(layout(rows), _layout(scale), layout(coefficients), layout(out))
    run(plan, rows, *map(address, (rows, scale, coefficients, out)))
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
    """Take one optimiser step in place and return the values after it, in one pass over the planes."""
    rows, scale = _stored(planes)
    gradient = _single(gradient)
    out = torch.empty(anchor_values.shape, dtype=anchor_values.dtype, device=point.device)
    exp_avg, exp_avg_sq, step = adam_state or (None, None, None)
    step_size, second_root, step = _advanced(step, lr, step is not None and step.device == point.device)
    written = (rows, scale, coefficients, gradient, point, anchor, anchor_values, out, exp_avg, exp_avg_sq, step)
    run(_step_plan(tuple(map(_layout, written))), rows, *map(address, written), step_size, second_root)
    return out


def _total(
    penalty: bool, planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor, gradient: Tensor | None
) -> tuple[Tensor, Tensor]:
    rows, scale = _stored(planes)
    both = torch.promote_types(point.dtype, offsets.dtype)
    dtype = torch.promote_types(both, multipliers.dtype)
    total = torch.empty(offsets.shape[:-1], dtype=dtype, device=point.device)
    values_dtype = torch.promote_types(both, torch.float32)
    plane_values = torch.empty(offsets.shape, dtype=values_dtype, device=point.device)
    places = (rows, scale, point, offsets, plane_values, multipliers, total, gradient)
    run(_total_plan(penalty, tuple(map(_layout, places))), rows, *map(address, places))
    return total, plane_values


class Prepared:
    """Calls of one layout, without a check or a copy. Each subclass is for one function. No tensor may need a cast.

    Example:
        >>> planes, offsets, point = (torch.ones(size, device="cuda") for size in ((2, 3), (2,), (3,)))
        >>> PreparedValues(planes, None, offsets, point)(planes, None, offsets, point).tolist()
        [4.0, 4.0]
    """

    def __init__(self, plan: Plan, like: Tensor) -> None:
        self._plan = plan
        self._workspace = -(-plan.workspace // like.element_size())  # in entries of like

    def _run(self, like: Tensor, *places: float) -> None:
        workspace = like.new_empty(self._workspace)
        self._plan(*places, workspace.data_ptr(), stream_of(like))


class PreparedValues(Prepared):
    """Prepared calls of :func:`values`."""

    def __init__(self, rows: Tensor, scale: Tensor | None, offsets: Tensor, point: Tensor) -> None:
        dtype = torch.promote_types(point.dtype, offsets.dtype)
        out = torch.empty(offsets.shape, dtype=dtype, device=point.device)
        super().__init__(_values_plan(layout(rows), _layout(scale), *map(layout, (offsets, point, out))), offsets)
        self._dtype = dtype

    def __call__(self, rows: Tensor, scale: Tensor | None, offsets: Tensor, point: Tensor) -> Tensor:
        """Return A x + c."""
        out = torch.empty(offsets.shape, dtype=self._dtype, device=offsets.device)
        self._run(offsets, rows.data_ptr(), address(scale), point.data_ptr(), offsets.data_ptr(), out.data_ptr())
        return out


class PreparedStep(Prepared):
    """Prepared calls of :func:`step_`."""

    def __init__(self, rows: Tensor, scale: Tensor | None, *rest: Tensor | None) -> None:
        coefficients, gradient, point, anchor, anchor_values, exp_avg, exp_avg_sq, step = rest
        assert point is not None and anchor_values is not None  # noqa: S101, PT018 for the type checker
        self._counts = step is not None and step.device == point.device
        vectors = rows, scale, coefficients, gradient, point, anchor, anchor_values, anchor_values.contiguous()
        places = (*vectors, exp_avg, exp_avg_sq, step if self._counts else None)
        super().__init__(_step_plan(tuple(map(_layout, places))), point)

    def __call__(self, lr: float, rows: Tensor, scale: Tensor | None, *rest: Any) -> Tensor:
        """Take the step and return the values after it."""
        coefficients, gradient, point, anchor, anchor_values, exp_avg, exp_avg_sq, step = rest
        step_size, second_root, counter = _advanced(step, lr, self._counts)
        out: Tensor = anchor_values.new_empty(anchor_values.shape)
        self._run(
            point,
            rows.data_ptr(),
            address(scale),
            coefficients.data_ptr(),
            gradient.data_ptr(),
            point.data_ptr(),
            anchor.data_ptr(),
            anchor_values.data_ptr(),
            out.data_ptr(),
            address(exp_avg),
            address(exp_avg_sq),
            address(counter),
            step_size,
            second_root,
        )
        return out


def _advanced(step: Tensor | None, lr: float, counts: bool) -> tuple[float, float, Tensor | None]:
    """Count a step of Adam; return its size, the root of the second correction, and the counter for the kernel."""
    if step is None:
        return lr, 1.0, None
    with torch.no_grad():
        step.add_(1)
    if counts:
        return lr, 1.0, step
    taken = float(step)  # in main memory, where torch.optim.Adam keeps it by default
    return lr / (1 - BETA1**taken), (1 - BETA2**taken) ** 0.5, None


@functools.lru_cache(PLANS)
def _values_plan(rows: Layout, scale: Layout | None, offsets: Layout, point: Layout, out: Layout) -> Plan:
    number = number_of(rows[3])
    return _cuda.cutting_plane_values(told(rows), told_or_none(scale), told(offsets), told(point), told(out), number)


@functools.lru_cache(PLANS)
def _combine_plan(rows: Layout, scale: Layout | None, coefficients: Layout, out: Layout) -> Plan:
    number = number_of(rows[3])
    return _cuda.cutting_plane_combine(told(rows), told_or_none(scale), told(coefficients), told(out), number)


@functools.lru_cache(PLANS)
def _total_plan(penalty: bool, places: tuple[Layout | None, ...]) -> Plan:
    rows, scale, point, offsets, values, multipliers, total, gradient = map(told_or_none, places)
    return _cuda.cutting_plane_total(
        penalty, rows, scale, offsets, multipliers, point, total, values, gradient, _number(places)
    )


@functools.lru_cache(PLANS)
def _step_plan(places: tuple[Layout | None, ...]) -> Plan:
    rows, scale, coefficients, gradient, point, anchor, anchor_values, out, first, second, step = map(
        told_or_none, places
    )
    averages = None if first is None else (first, second)
    vectors = rows, scale, coefficients, gradient, point, anchor, anchor_values
    return _cuda.cutting_plane_step(*vectors, averages, step, out, _number(places))


def _number(places: tuple[Layout | None, ...]) -> int:
    """Return the number of the device that the planes are on."""
    first = places[0]
    return -1 if first is None else number_of(first[3])


def _layout(tensor: Tensor | None) -> Layout | None:
    return None if tensor is None else layout(tensor)


def _stored(planes: Planes) -> tuple[Tensor, Tensor | None]:
    """Return the stored rows with stride 1 along N, and the scale of packed signs or None."""
    rows, scale = (planes.bits, planes.scale) if isinstance(planes, PackedSigns) else (planes, None)
    if rows.stride(-1) != 1 and rows.shape[-1] > 1:
        rows = rows.contiguous()
    return rows, scale


def _single(tensor: Tensor) -> Tensor:
    """Return a vector along N in a dtype that the kernels read."""
    return tensor.float() if tensor.dtype == torch.float64 else tensor
