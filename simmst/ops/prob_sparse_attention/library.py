"""The registered operators of ProbSparse attention, with their fakes and gradients.

The module of a backend (:func:`simmst.ops.backends.implementation`) has the functions ``select``, ``attend`` and
``attend_backward`` with the signatures and semantics of :mod:`simmst.reference.prob_sparse_attention`. It may rely on
the checks of the public functions, except that nobody checks the range of indices on a GPU. ``top`` may have any
strides. Results are new tensors:

    top, measure, lse    contiguous
    out                  as simmst.core.prob_sparse_attention.empty_out
    gradients            as torch.empty_like of their tensors

A backend in ``FUSED`` also has ``forward``, which does the work of ``select`` and ``attend`` in one call. The backend
``"cpu"`` has ``infer``, which does the same and returns only the output.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from simmst.core.prob_sparse_attention import Options, empty_out
from simmst.ops.backends import choose, implementation
from simmst.ops.dispatch import Operator, is_unwatched, marks_all, no_gradients, wants_gradient
from simmst.reference import prob_sparse_attention as reference

PATH = "prob_sparse_attention"
FUSED = ("cuda",)
_CPU = torch.device("cpu")


def infer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sample: Tensor,
    factor: int,
    normalizer: str,
    options: Options,
    backend: str | None,
) -> Tensor | None:
    """Take the shortest way to the C++ kernels, for eager calls that want only the output.

    Return None where that is not possible or an argument is wrong: the long way then checks each argument and raises
    the error. Both ways run the same kernels.

    Example:
        >>> x, sample = torch.eye(3), torch.tensor([0, 1, 2])
        >>> infer(x, x, x, sample, 5, "keys", Options(), "reference") is None
        True
    """
    is_causal, scale, _, _ = options
    try:
        if not (
            query.is_cpu
            and key.is_cpu
            and value.is_cpu
            and sample.is_cpu
            and query.dtype is key.dtype is value.dtype
            and sample.dtype is torch.int64
            and type(factor) is int
            and factor >= 1
            and type(is_causal) is bool
            and (scale is None or (type(scale) is float and scale == scale))
            and is_unwatched(query, key, value, sample)
            and not wants_gradient(query, key, value)
            and choose(PATH, backend, device=_CPU, dtype=query.dtype) == "cpu"
        ):
            return None
        out: Tensor = implementation(PATH, "cpu").infer(query, key, value, sample, factor, normalizer, options)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return out


def _select_fake(query: Tensor, key: Tensor, sample: Tensor, u: int, normalizer: str) -> tuple[Tensor, Tensor]:
    top = query.new_empty((*query.shape[:-2], u), dtype=torch.int64)
    return top, query.new_empty(query.shape[:-1], dtype=torch.promote_types(query.dtype, torch.float32))


def _attend_fake(query: Tensor, key: Tensor, value: Tensor, top: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return empty_out(query, value), query.new_empty(top.shape, dtype=torch.promote_types(query.dtype, torch.float32))


def _forward_fake(
    query: Tensor, key: Tensor, value: Tensor, sample: Tensor, seed: Tensor | None, u: int, normalizer: str, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    top, measure = _select_fake(query, key, sample, u, normalizer)
    return (*_attend_fake(query, key, value, top), top, measure)


def _backward_fake(grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep_attend(ctx: Any, operands: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, top, seed = operands[:5]
    out, lse = output
    ctx.save_for_backward(query, key, value, top, out, lse, seed)
    ctx.mark_non_differentiable(lse)


def _keep_forward(ctx: Any, operands: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    query, key, value, _, seed = operands[:5]
    out, lse, top, measure = output
    ctx.save_for_backward(query, key, value, top, out, lse, seed)
    ctx.mark_non_differentiable(lse, top, measure)


def _gradients(ctx: Any, grad_out: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...] = attend_backward(grad_out, *ctx.saved_tensors, ctx.options, ctx.backend)
    return gradients


def _no_second_order(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
    raise RuntimeError(
        "the compiled backends of prob_sparse_attention have first derivatives only; "
        'call it with backend="reference" to differentiate twice'
    )


select = Operator(
    "prob_sparse_select(Tensor query, Tensor key, Tensor sample, SymInt u, str normalizer, str backend)"
    " -> (Tensor top, Tensor measure)",
    path=PATH,
    kernel=attrgetter("select"),
    plain=reference.select,
    fake=_select_fake,
    context=marks_all,
    gradients=no_gradients,
)
attend = Operator(
    "prob_sparse_attend(Tensor query, Tensor key, Tensor value, Tensor top, Tensor? seed, {options}, str backend)"
    " -> (Tensor out, Tensor lse)",
    path=PATH,
    kernel=attrgetter("attend"),
    plain=reference.attend,
    fake=_attend_fake,
    options=Options,
    context=_keep_attend,
    gradients=_gradients,
)
attend_backward = Operator(
    "prob_sparse_attend_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor top, Tensor out,"
    " Tensor lse, Tensor? seed, {options}, str backend) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value)",
    path=PATH,
    kernel=attrgetter("attend_backward"),
    plain=None,
    fake=_backward_fake,
    options=Options,
    gradients=_no_second_order,
)
forward = Operator(
    "prob_sparse_forward(Tensor query, Tensor key, Tensor value, Tensor sample, Tensor? seed, SymInt u, str normalizer,"
    " {options}, str backend) -> (Tensor out, Tensor lse, Tensor top, Tensor measure)",
    path=PATH,
    kernel=attrgetter("forward"),
    plain=None,
    fake=_forward_fake,
    options=Options,
    context=_keep_forward,
    gradients=_gradients,
)

__all__ = ["FUSED", "PATH", "attend", "attend_backward", "forward", "infer", "select"]
