"""The seam between the cutting planes and their kernels: library operators with fakes and autograd.

The module that :func:`simmst.ops.backends.implementation` imports for a backend has the functions ``values``,
``penalty_and_values``, ``lagrangian_and_values``, ``combine`` and ``step_`` with the signatures and semantics of
:mod:`simmst.reference.cutting_plane`. It may rely on the checks of the public functions. Inputs may have any strides,
the tensors that ``step_`` updates too; results are new and contiguous.

Packed planes travel as their bits with a scale beside them; plain planes have no scale. The values that penalty and
Lagrangian return beside the result are what their gradients need. Every gradient is made of operators of this file,
so all orders exist in reverse mode. The operators also take backend ``"reference"``; the public functions run the
reference in place instead.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from simmst.core.cutting_plane import PackedSigns, Planes
from simmst.ops.backends import implementation


def _module(backend: str) -> ModuleType:
    return implementation("cutting_plane", backend)


def _planes(planes: Tensor, scale: Tensor | None, size: int) -> Planes:
    return planes if scale is None else PackedSigns(planes, scale, size)


def _promote(*tensors: Tensor) -> torch.dtype:
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _values(planes: Tensor, scale: Tensor | None, offsets: Tensor, point: Tensor, backend: str) -> Tensor:
    out: Tensor = _module(backend).values(_planes(planes, scale, point.shape[-1]), offsets, point)
    return out


def _penalty(
    planes: Tensor, scale: Tensor | None, offsets: Tensor, multipliers: Tensor, point: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    stored = _planes(planes, scale, point.shape[-1])
    out: tuple[Tensor, Tensor] = _module(backend).penalty_and_values(stored, offsets, multipliers, point)
    return out


def _lagrangian(
    planes: Tensor, scale: Tensor | None, offsets: Tensor, multipliers: Tensor, point: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    stored = _planes(planes, scale, point.shape[-1])
    out: tuple[Tensor, Tensor] = _module(backend).lagrangian_and_values(stored, offsets, multipliers, point)
    return out


def _combine(
    planes: Tensor, scale: Tensor | None, coefficients: Tensor, size: int, dtype: torch.dtype, backend: str
) -> Tensor:
    out: Tensor = _module(backend).combine(_planes(planes, scale, size), coefficients, dtype)
    return out


def _step(
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
    backend: str,
) -> Tensor:
    adam_state = None if exp_avg is None else (exp_avg, exp_avg_sq, step)
    stored = _planes(planes, scale, point.shape[-1])
    out: Tensor = _module(backend).step_(
        stored, coefficients, gradient, point, anchor, anchor_values, lr=lr, adam_state=adam_state
    )
    return out


def _values_fake(planes: Tensor, scale: Tensor | None, offsets: Tensor, point: Tensor, backend: str) -> Tensor:
    return torch.empty(offsets.shape, dtype=_promote(point, offsets), device=point.device)


def _pair_fake(
    planes: Tensor, scale: Tensor | None, offsets: Tensor, multipliers: Tensor, point: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    values_dtype = torch.promote_types(_promote(point, offsets), torch.float32)
    total = torch.empty(offsets.shape[:-1], dtype=_promote(point, offsets, multipliers), device=point.device)
    return total, torch.empty(offsets.shape, dtype=values_dtype, device=point.device)


def _combine_fake(
    planes: Tensor, scale: Tensor | None, coefficients: Tensor, size: int, dtype: torch.dtype, backend: str
) -> Tensor:
    return torch.empty((*planes.shape[:-2], size), dtype=dtype, device=planes.device)


def _step_fake(planes: Tensor, scale: Tensor | None, *args: Any) -> Tensor:
    anchor_values: Tensor = args[4]
    return torch.empty(anchor_values.shape, dtype=anchor_values.dtype, device=anchor_values.device)


def _values_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    planes, scale, _, point, backend = inputs
    ctx.save_for_backward(planes, scale)
    ctx.point, ctx.backend = (point.shape[-1], point.dtype), backend


def _values_autograd(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    gradient = torch.ops.simmst.cutting_plane_combine.default(*ctx.saved_tensors, grad, *ctx.point, ctx.backend)
    return None, None, None, gradient, None


def _combine_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    planes, scale, coefficients, _, _, backend = inputs
    ctx.save_for_backward(planes, scale)
    ctx.dtype, ctx.backend = coefficients.dtype, backend


def _combine_autograd(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    planes, scale = ctx.saved_tensors
    zeros = torch.zeros(planes.shape[:-1], dtype=ctx.dtype, device=planes.device)
    gradient = torch.ops.simmst.cutting_plane_values.default(planes, scale, zeros, grad, ctx.backend)
    return None, None, gradient.to(ctx.dtype), None, None, None


def _pair_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    planes, scale, _, multipliers, point, backend = inputs
    ctx.save_for_backward(planes, scale, multipliers, output[1])
    ctx.point, ctx.backend = (point.shape[-1], point.dtype), backend


def _pair_gradients(ctx: Any, grad_multipliers: Tensor, coefficients: Tensor) -> tuple[Any, ...]:
    planes, scale, multipliers, _ = ctx.saved_tensors
    grad_point = None
    if ctx.needs_input_grad[4]:
        grad_point = torch.ops.simmst.cutting_plane_combine.default(
            planes, scale, coefficients, *ctx.point, ctx.backend
        )
    return None, None, None, grad_multipliers.to(multipliers.dtype), grad_point, None


def _penalty_autograd(ctx: Any, grad: Tensor, grad_values: Tensor) -> tuple[Any, ...]:
    _, _, multipliers, values = ctx.saved_tensors
    excess, grad = values.relu(), grad.unsqueeze(-1)
    return _pair_gradients(ctx, grad * excess.square(), 2 * grad * multipliers * excess + grad_values)


def _lagrangian_autograd(ctx: Any, grad: Tensor, grad_values: Tensor) -> tuple[Any, ...]:
    _, _, multipliers, values = ctx.saved_tensors
    grad = grad.unsqueeze(-1)
    return _pair_gradients(ctx, grad * values, grad * multipliers + grad_values)


def _register() -> torch.library.Library:
    library = torch.library.Library("simmst", "FRAGMENT")
    planes, pair = "Tensor planes, Tensor? scale", "Tensor offsets, Tensor multipliers, Tensor point, str backend"
    schemas = {
        "cutting_plane_values": f"({planes}, Tensor offsets, Tensor point, str backend) -> Tensor",
        "cutting_plane_penalty": f"({planes}, {pair}) -> (Tensor, Tensor)",
        "cutting_plane_lagrangian": f"({planes}, {pair}) -> (Tensor, Tensor)",
        "cutting_plane_combine": (
            f"({planes}, Tensor coefficients, SymInt size, ScalarType dtype, str backend) -> Tensor"
        ),
        "cutting_plane_step_": (
            f"({planes}, Tensor coefficients, Tensor gradient, Tensor(a!) point, Tensor anchor, Tensor anchor_values, "
            "Tensor(b!)? exp_avg, Tensor(c!)? exp_avg_sq, Tensor(d!)? step, float lr, str backend) -> Tensor"
        ),
    }
    operators: dict[str, tuple[Any, Any, Any, Any]] = {
        "cutting_plane_values": (_values, _values_fake, _values_autograd, _values_context),
        "cutting_plane_penalty": (_penalty, _pair_fake, _penalty_autograd, _pair_context),
        "cutting_plane_lagrangian": (_lagrangian, _pair_fake, _lagrangian_autograd, _pair_context),
        "cutting_plane_combine": (_combine, _combine_fake, _combine_autograd, _combine_context),
        "cutting_plane_step_": (_step, _step_fake, None, None),
    }
    for name, (function, fake, autograd, context) in operators.items():
        library.define(name + schemas[name])
        library.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"simmst::{name}", fake, lib=library)
        if autograd is not None:
            torch.library.register_autograd(f"simmst::{name}", autograd, setup_context=context, lib=library)
    return library


# Kept alive: the operators disappear with it.
_LIBRARY = _register()
