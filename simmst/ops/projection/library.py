"""The registered operators of the projections, with their fakes and gradients.

The module of a backend has ``forward`` and ``backward`` with the signatures of :mod:`simmst.native.cpu.projection`; it
may rely on the checks of the public functions, which call the reference directly. Inputs may have any strides, results
are contiguous; the scale has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter
from types import ModuleType
from typing import Any

from torch import Tensor

from simmst.core.projection import Options
from simmst.ops.dispatch import Operator

PATH = "projection"
_LAYERS = (
    "Tensor x, Tensor first, Tensor? first_bias, Tensor? second, Tensor? second_bias, Tensor? third, "
    "Tensor? third_bias, Tensor? norm_weight, Tensor? norm_bias"
)
_LEARNED = 9  # number of operands in _LAYERS


def _forward_fake(x: Tensor, first: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    options: Options = rest[-1]
    series, steps = x.shape[0], x.shape[2 if options.input_heads else 1]
    outputs, heads = first.shape[0], options.output_heads
    shape = (series, heads, steps, outputs // heads) if heads else (series, steps, outputs)
    there = True, rest[1] is not None, rest[3] is not None
    out = [x.new_empty(shape if each else (0,)) for each in there]
    return out[0], out[1], out[2]


def _backward_fake(a: Tensor, b: Tensor, c: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    wanted: list[bool] = rest[-1]
    return tuple(
        tensor.new_empty(tensor.shape) if want and tensor is not None else a.new_empty(0)
        for tensor, want in zip(rest[:_LEARNED], wanted, strict=True)
    )


def _backward_kernel(module: ModuleType) -> Callable[..., tuple[Tensor, ...]]:
    return partial(_all_tensors, module.backward)


def _all_tensors(
    backward: Callable[..., list[Tensor | None]], a: Tensor, b: Tensor, c: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    """Put an empty tensor in place of each unwanted gradient, because a library operator returns only tensors."""
    found = backward([a, b, c], *rest)
    return tuple(a.new_empty(0) if gradient is None else gradient for gradient in found)


def _keep(ctx: Any, operands: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*operands[:_LEARNED], operands[10])
    ctx.mark_non_differentiable(*(each for each in output if each.dim() == 1))


def _gradients(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:_LEARNED])
    found = backward(*grads, *ctx.saved_tensors, ctx.options, wanted, ctx.backend)
    kept = (gradient if want else None for gradient, want in zip(found, wanted, strict=True))
    return (*kept, grads[0] if ctx.needs_input_grad[_LEARNED] else None, None)


def _no_second_order(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    raise RuntimeError(
        "the projections have first derivatives only on this backend; call them with "
        'backend="reference" for higher ones'
    )


forward = Operator(
    f"projection({_LAYERS}, Tensor? residual, Tensor? scale, {{options}}, str backend) -> (Tensor, Tensor, Tensor)",
    path=PATH,
    kernel=attrgetter("forward"),
    plain=None,
    fake=_forward_fake,
    options=Options,
    context=_keep,
    gradients=_gradients,
)
backward = Operator(
    f"projection_backward(Tensor a, Tensor b, Tensor c, {_LAYERS}, Tensor? scale, {{options}}, bool[9] output_mask, "
    f"str backend) -> ({', '.join(['Tensor'] * _LEARNED)})",
    path=PATH,
    kernel=_backward_kernel,
    plain=None,
    fake=_backward_fake,
    options=Options,
    gradients=_no_second_order,
)

__all__ = ["PATH", "backward", "forward"]
