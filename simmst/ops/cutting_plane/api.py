"""The public functions of cutting planes, which check their arguments and choose a backend."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simmst.core import dtypes
from simmst.core.cutting_plane import PackedSigns, Planes
from simmst.ops.backends import choose
from simmst.ops.checks import check_number, describe
from simmst.ops.cutting_plane import library
from simmst.ops.cutting_plane.short import remember, seen_before
from simmst.ops.dispatch import wants_gradient
from simmst.ops.measured_choice import bucket
from simmst.ops.numpy_arrays import call_with_arrays

_NO_STATE = (None, None, None)


def cutting_plane_values(planes: Planes, offsets: Tensor, point: Tensor, *, backend: str | None = None) -> Tensor:
    """Evaluate cutting planes at a point: v = A x + c, for one problem or a batch of P independent ones.

    Products are summed in the dtype of the point, at least float32. The result is differentiable only in the point:
    planes and offsets are constants and get no gradient. Sim-MSTNet, Algorithm 1.

    Args:
        planes: A, (P, L, N) or (L, N): float32, bfloat16, float16, float64, or ``PackedSigns``.
        offsets: c, (P, L) or (L,), any of those four dtypes.
        point: x, (P, N) or (N,), any of those four dtypes. If it is a NumPy array, the other arguments and the result
            are NumPy arrays, too; this holds for all functions of cutting planes.
        backend: None to choose, or one of "reference", "cpu", "triton", "cuda".

    Returns:
        v, (P, L) or (L,), in the wider of the dtypes of point and offsets.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes or devices do not fit.
        BackendUnavailableError: the named backend cannot run this call.

    Example:
        >>> planes = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
        >>> cutting_plane_values(planes, torch.tensor([0.5, 0.0]), torch.tensor([1.0, 1.0]))
        tensor([ 3.5000, -1.0000])
    """
    if isinstance(point, np.ndarray):
        array: Tensor = call_with_arrays(cutting_plane_values, planes, offsets, point, backend=backend)
        return array
    found = seen_before("Values", backend, planes, offsets, point)
    out: Tensor
    if found is not None:
        prepared, operands = found
        out = prepared(*operands)
        return out
    _check("cutting_plane_values", planes, point, offsets=offsets)
    chosen = _choose(backend, planes, point)
    out = library.values(*library.flat(planes), offsets, point, chosen)
    if chosen == "cuda":
        remember("Values", backend, planes, offsets, point)
    return out


def cutting_plane_penalty(
    planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor, *, backend: str | None = None
) -> Tensor:
    """Penalise violated planes: sum_l mu_l max(0, v_l)^2 with v = A x + c.

    The result is differentiable in point and multipliers, to any order; planes and offsets are constants and get no
    gradient. This is the second phase of Sim-MSTNet's Algorithm 1.

    Args:
        planes: A, (P, L, N) or (L, N), as in ``cutting_plane_values``.
        offsets: c, (P, L) or (L,).
        multipliers: mu, (P, L) or (L,).
        point: x, (P, N) or (N,).
        backend: None to choose, or one of "reference", "cpu", "triton", "cuda".

    Returns:
        (P,) or (), in the widest of the dtypes of point, offsets and multipliers.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes or devices do not fit.
        BackendUnavailableError: the named backend cannot run this call.

    Example:
        >>> planes = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
        >>> cutting_plane_penalty(planes, torch.zeros(2), torch.ones(2), torch.tensor([1.0, 1.0]))
        tensor(9.)
    """
    if isinstance(point, np.ndarray):
        array: Tensor = call_with_arrays(cutting_plane_penalty, planes, offsets, multipliers, point, backend=backend)
        return array
    _check("cutting_plane_penalty", planes, point, offsets=offsets, multipliers=multipliers)
    chosen, with_gradient = _choose(backend, planes, point), wants_gradient(point)
    out: Tensor = library.penalty(*library.flat(planes), offsets, multipliers, point, with_gradient, chosen)[0]
    return out


def cutting_plane_lagrangian(
    planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor, *, backend: str | None = None
) -> Tensor:
    """Add up planes by their multipliers: sum_l mu_l v_l with v = A x + c.

    The result is differentiable in point and multipliers, to any order; planes and offsets are constants and get no
    gradient. This is the first phase of Sim-MSTNet's Algorithm 1.

    Args:
        planes: A, (P, L, N) or (L, N), as in ``cutting_plane_values``.
        offsets: c, (P, L) or (L,).
        multipliers: mu, (P, L) or (L,).
        point: x, (P, N) or (N,).
        backend: None to choose, or one of "reference", "cpu", "triton", "cuda".

    Returns:
        (P,) or (), in the widest of the dtypes of point, offsets and multipliers.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes or devices do not fit.
        BackendUnavailableError: the named backend cannot run this call.

    Example:
        >>> planes = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
        >>> cutting_plane_lagrangian(planes, torch.zeros(2), torch.ones(2), torch.tensor([1.0, 1.0]))
        tensor(2.)
    """
    if isinstance(point, np.ndarray):
        array: Tensor = call_with_arrays(cutting_plane_lagrangian, planes, offsets, multipliers, point, backend=backend)
        return array
    _check("cutting_plane_lagrangian", planes, point, offsets=offsets, multipliers=multipliers)
    chosen, with_gradient = _choose(backend, planes, point), wants_gradient(point)
    out: Tensor = library.lagrangian(*library.flat(planes), offsets, multipliers, point, with_gradient, chosen)[0]
    return out


def cutting_plane_step_(
    planes: Planes,
    coefficients: Tensor,
    gradient: Tensor,
    point: Tensor,
    anchor: Tensor,
    anchor_values: Tensor,
    *,
    lr: float,
    adam_state: tuple[Tensor, Tensor, Tensor] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Take one optimiser step in place and evaluate the planes after it: the hot loop of re-weighting.

    With A the planes, s the coefficients, x the point, and the anchor x_0 at which the values v_0 are known::

        g = gradient + A^T s;   x <- x - lr g   (or Adam's step);   return v_0 + A (x - x_0)

    Evaluating from an anchor keeps the values from drifting. Set a new anchor whenever the planes change. Rows whose
    coefficient is zero are skipped in A^T s, even if they hold inf or NaN. Products are summed in the dtype of the
    point, at least float32. The step is not differentiable; it runs as under ``torch.no_grad``.

    Args:
        planes: A, (P, L, N) or (L, N), as in ``cutting_plane_values``.
        coefficients: s, (P, L) or (L,): mu in the first phase, 2 mu max(0, v) in the second.
        gradient: gradient of all other terms at the point, of the shape of point.
        point: x, (P, N) or (N,), updated in place.
        anchor: x_0, of the shape of point but in other memory; float64 keeps its precision in x - x_0.
        anchor_values: v_0, (P, L) or (L,).
        lr: step size, at least 0.
        adam_state: None for plain gradient descent, or (exp_avg, exp_avg_sq, step) as torch.optim.Adam keeps them: two
            tensors of the shape and dtype of point (or float32 for a half-precision point) and a tensor of shape (), on
            the device of point or on the CPU. They are updated in place, with betas (0.9, 0.999) and eps 1e-8.
        backend: None to choose, or one of "reference", "cpu", "triton", "cuda".

    Returns:
        The values after the step, (P, L) or (L,), in the dtype of anchor_values.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes or devices do not fit, lr is out of range, or point shares its memory with another argument.
        BackendUnavailableError: the named backend cannot run this call.

    Example:
        >>> planes, point = torch.tensor([[1.0, 0.0]]), torch.zeros(2)
        >>> anchor, anchor_values = torch.zeros(2), torch.tensor([5.0])
        >>> cutting_plane_step_(planes, torch.ones(1), torch.ones(2), point, anchor, anchor_values, lr=0.5)
        tensor([4.])
        >>> point
        tensor([-1.0000, -0.5000])
    """
    name = "cutting_plane_step_"
    if isinstance(point, np.ndarray):
        tensors = planes, coefficients, gradient, point, anchor, anchor_values
        updated = [array for array in (point, *(adam_state or ())) if isinstance(array, np.ndarray)]
        array: Tensor = call_with_arrays(
            cutting_plane_step_, *tensors, updated=updated, lr=lr, adam_state=adam_state, backend=backend
        )
        return array
    out: Tensor
    check_number("lr", lr)
    if not 0.0 <= lr < math.inf:
        raise ValueError(f"{name}: lr must be at least 0 and finite, got {lr}")
    rest = coefficients, gradient, point, anchor, anchor_values
    if adam_state is None or (type(adam_state) is tuple and len(adam_state) == 3):
        found = seen_before("Step", backend, planes, *rest, *(adam_state or _NO_STATE))
        if found is not None:
            prepared, operands = found
            _check_memory(name, point, gradient=gradient, anchor=anchor, exp_avg=operands[7], exp_avg_sq=operands[8])
            out = prepared(float(lr), *operands)
            return out
    _check(name, planes, point, coefficients=coefficients, anchor_values=anchor_values)
    _check_like_point(name, point, gradient=gradient, anchor=anchor)
    if adam_state is not None:
        _check_adam(name, point, adam_state)
    state = adam_state or _NO_STATE
    _check_memory(name, point, gradient=gradient, anchor=anchor, exp_avg=state[0], exp_avg_sq=state[1])
    chosen, stored = _choose(backend, planes, point), library.flat(planes)
    with torch.no_grad():
        out = library.step_(*stored, *rest, *state, float(lr), chosen)
    if chosen == "cuda":
        remember("Step", backend, planes, *rest, *state)
    return out


def _choose(backend: str | None, planes: Planes, point: Tensor) -> str:
    wide = not isinstance(planes, PackedSigns) and planes.dtype == torch.float64
    dtype = torch.float64 if wide else point.dtype
    return choose(library.PATH, backend, device=point.device, dtype=dtype, bucket=bucket(point.shape[-1]))


def _describe_planes(planes: Planes) -> str:
    if isinstance(planes, PackedSigns):
        return f"packed signs of size {planes.size} with bits {describe(planes.bits)}"
    return describe(planes)


def _check_tensor(name: str, argument: str, tensor: Any, device: torch.device | None = None) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: {argument} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in dtypes.FLOATS:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes.FLOATS)
        raise TypeError(f"{name}: {argument} must hold one of {allowed}, got {describe(tensor)}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name}: {argument} must be on the device of point, {device}, got {describe(tensor)}")


def _check(name: str, planes: Planes, point: Tensor, **per_row: Tensor) -> None:
    """Check the planes against the point, and the tensors with one entry per plane against the planes."""
    _check_tensor(name, "point", point)
    if isinstance(planes, PackedSigns):
        _check_packed(name, planes, point.device)
    elif isinstance(planes, Tensor) and planes.dtype == torch.uint8:
        raise TypeError(
            f"{name}: planes of packed signs must come as PackedSigns (see pack_signs), got {describe(planes)}"
        )
    else:
        _check_tensor(name, "planes", planes, point.device)
    # Not planes.shape: torch 2.6 cannot trace the property of a named tuple.
    shape = (*planes.bits.shape[:-1], planes.size) if isinstance(planes, PackedSigns) else tuple(planes.shape)
    if len(shape) not in (2, 3):
        raise ValueError(f"{name}: planes must have shape (L, N) or (P, L, N), got {_describe_planes(planes)}")
    expected = (*shape[:-2], shape[-1])
    if tuple(point.shape) != expected:
        raise ValueError(
            f"{name}: point must have shape {expected} for planes {_describe_planes(planes)}, got {describe(point)}"
        )
    for argument, tensor in per_row.items():
        _check_tensor(name, argument, tensor, point.device)
        if tuple(tensor.shape) != shape[:-1]:
            raise ValueError(
                f"{name}: {argument} must have shape {shape[:-1]}, one entry a plane, for planes "
                f"{_describe_planes(planes)}, got {describe(tensor)}"
            )


def _check_packed(name: str, planes: PackedSigns, device: torch.device) -> None:
    bits, scale, size = planes
    if not isinstance(bits, Tensor) or bits.dtype != torch.uint8:
        got = describe(bits) if isinstance(bits, Tensor) else type(bits).__name__
        raise TypeError(f"{name}: the bits of packed signs must be a uint8 tensor, got {got}")
    if not isinstance(scale, Tensor) or scale.dtype not in (torch.float32, torch.float64):
        got = describe(scale) if isinstance(scale, Tensor) else type(scale).__name__
        raise TypeError(f"{name}: the scale of packed signs must be a float32 or float64 tensor, got {got}")
    if size < 0 or bits.dim() < 1 or bits.shape[-1] != -(-size // 8):
        raise ValueError(f"{name}: packed signs of size {size} take {-(-size // 8)} bytes a row, got {describe(bits)}")
    if scale.shape != bits.shape[:-1]:
        raise ValueError(
            f"{name}: the scale of packed signs must have shape {tuple(bits.shape[:-1])}, one entry a row, got "
            f"{describe(scale)}"
        )
    if bits.device != device or scale.device != device:
        raise ValueError(
            f"{name}: packed signs must be on the device of point, {device}, got bits {describe(bits)}, "
            f"scale {describe(scale)}"
        )


def _check_like_point(name: str, point: Tensor, **tensors: Tensor) -> None:
    for argument, tensor in tensors.items():
        _check_tensor(name, argument, tensor, point.device)
        if tensor.shape != point.shape:
            raise ValueError(
                f"{name}: {argument} must have the shape of point {tuple(point.shape)}, got {describe(tensor)}"
            )


def _check_adam(name: str, point: Tensor, state: tuple[Tensor, Tensor, Tensor]) -> None:
    if not isinstance(state, (tuple, list)) or len(state) != 3:
        raise TypeError(f"{name}: adam_state must be (exp_avg, exp_avg_sq, step), got {type(state).__name__}")
    exp_avg, exp_avg_sq, step = state
    _check_like_point(name, point, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    allowed = (point.dtype, torch.promote_types(point.dtype, torch.float32))
    if exp_avg.dtype != exp_avg_sq.dtype or exp_avg.dtype not in allowed:
        raise TypeError(
            f"{name}: exp_avg and exp_avg_sq must have the dtype of point, {point.dtype}, or float32 for a "
            f"half-precision point, got {describe(exp_avg)} and {describe(exp_avg_sq)}"
        )
    if not isinstance(step, Tensor):
        raise TypeError(f"{name}: step must be a tensor of shape (), as in torch.optim.Adam, got {type(step).__name__}")
    if step.dim() != 0:
        raise ValueError(f"{name}: step must be a tensor of shape (), as in torch.optim.Adam, got {describe(step)}")


def _check_memory(name: str, point: Tensor, **tensors: Tensor | None) -> None:
    """Refuse arguments that the update of the point would overwrite."""
    plain = not torch.compiler.is_compiling() and type(point) in (Tensor, torch.nn.Parameter) and point.numel() > 0
    for argument, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor is point or (plain and tensor.data_ptr() == point.data_ptr()):
            raise ValueError(
                f"{name}: {argument} shares the memory of point, which is updated in place; pass a clone()"
            )
