"""The registered operators of day attention, with their fakes and gradients.

The module of a backend has ``forward`` and ``backward`` with the signatures of :mod:`simmst.native.cpu.day_attention`;
it may rely on the checks of the public function. Inputs may have any strides, results are contiguous. ``backward``
always returns the gradients of query, key, bias and alike_weight.
"""

from __future__ import annotations

import inspect
from operator import attrgetter
from typing import Any

from torch import Tensor

from simmst.ops.dispatch import Operator
from simmst.reference.day_attention import day_attention as in_plain_torch

PATH = "day_attention"
_OPERANDS = ", ".join(f"Tensor {name}" for name in inspect.signature(in_plain_torch).parameters)


def _forward_fake(query: Tensor, *rest: Any) -> Tensor:
    return query.new_empty((*query.shape[:2], 2 * query.shape[2]))


def _backward_fake(grad: Tensor, query: Tensor, key: Tensor, bias: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (query, key, bias, rest[1]))


def _keep(ctx: Any, operands: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*operands[:8])


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    query, key, bias, alike_weight = backward(grad, *ctx.saved_tensors, ctx.backend)
    return query, key, bias, None, alike_weight


def _no_second_order(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    raise RuntimeError(
        'day_attention has first derivatives only on this backend; call it with backend="reference" for higher ones'
    )


forward = Operator(
    f"day_attention({_OPERANDS}, str backend) -> Tensor",
    path=PATH,
    kernel=attrgetter("forward"),
    plain=in_plain_torch,
    fake=_forward_fake,
    context=_keep,
    gradients=_gradients,
)
backward = Operator(
    f"day_attention_backward(Tensor grad, {_OPERANDS}, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    path=PATH,
    kernel=attrgetter("backward"),
    plain=None,
    fake=_backward_fake,
    gradients=_no_second_order,
)

__all__ = ["PATH", "backward", "forward", "in_plain_torch"]
