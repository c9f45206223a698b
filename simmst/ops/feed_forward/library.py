"""The registered operators of the feed-forward part, with their fakes and gradients.

The module of a backend has ``forward`` and ``backward`` with the signatures of :mod:`simmst.native.cpu.feed_forward`;
it may rely on the checks of the public function. Inputs may have any strides, results are contiguous; the scale has no
gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter
from types import ModuleType
from typing import Any

from torch import Tensor

from simmst.core.feed_forward import Gradients, Options
from simmst.ops.dispatch import Operator
from simmst.reference import feed_forward as reference

PATH = "feed_forward"
_WEIGHTS = (
    "Tensor x, Tensor in_weight, Tensor? in_bias, Tensor out_weight, Tensor? out_bias, Tensor? norm_weight, "
    "Tensor? norm_bias, Tensor? addend, Tensor? scale"
)
_DIFFERENTIABLE = 8  # number of leading operands that have gradients


def in_plain_torch(
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    addend: Tensor | None,
    scale: Tensor | None,
    options: Options,
) -> Tensor:
    """Run the reference, which takes the options by name."""
    return reference.feed_forward(
        *(x, in_weight, in_bias, out_weight, out_bias),
        norm_weight=norm_weight,
        norm_bias=norm_bias,
        norm_first=options.norm_first,
        addend=addend,
        scale=scale,
        residual=options.residual,
        eps=options.eps,
    )


def _forward_fake(x: Tensor, in_weight: Tensor, in_bias: Tensor | None, out_weight: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_weight.shape[0]))


def _backward_fake(grad: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    wanted: list[bool] = rest[-1]
    return tuple(
        tensor.new_empty(tensor.shape) if want and tensor is not None else grad.new_empty(0)
        for tensor, want in zip(rest[:_DIFFERENTIABLE], wanted, strict=True)
    )


def _backward_kernel(module: ModuleType) -> Callable[..., tuple[Tensor, ...]]:
    return partial(_all_tensors, module.backward)


def _all_tensors(backward: Callable[..., Gradients], grad: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Put an empty tensor in place of each unwanted gradient, because a library operator returns only tensors."""
    return tuple(grad.new_empty(0) if gradient is None else gradient for gradient in backward(grad, *rest))


def _keep(ctx: Any, operands: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*operands[: _DIFFERENTIABLE + 1])


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:_DIFFERENTIABLE])
    found = backward(grad, *ctx.saved_tensors, ctx.options, wanted, ctx.backend)
    return (*(gradient if want else None for gradient, want in zip(found, wanted, strict=True)), None)


def _no_second_order(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    raise RuntimeError(
        'feed_forward has first derivatives only on this backend; call it with backend="reference" for higher ones'
    )


forward = Operator(
    f"feed_forward({_WEIGHTS}, {{options}}, str backend) -> Tensor",
    path=PATH,
    kernel=attrgetter("forward"),
    plain=in_plain_torch,
    fake=_forward_fake,
    options=Options,
    context=_keep,
    gradients=_gradients,
)
backward = Operator(
    f"feed_forward_backward(Tensor grad, {_WEIGHTS}, {{options}}, bool[8] output_mask, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    path=PATH,
    kernel=_backward_kernel,
    plain=None,
    fake=_backward_fake,
    options=Options,
    gradients=_no_second_order,
)

__all__ = ["PATH", "backward", "forward", "in_plain_torch"]
