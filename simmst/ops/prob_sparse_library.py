"""The seam between ProbSparse attention and its kernels: library operators with fakes and autograd.

The module that :func:`simmst.ops.backends.implementation` imports for a backend has the functions ``select``,
``attend`` and ``attend_backward`` with the signatures and semantics of
:mod:`simmst.reference.prob_sparse_attention`, where scale, fill and u are always given. It may rely on the checks of
the public functions having passed, except for the range of indices that lie on a GPU. ``top`` may have any strides.
Results are new tensors:

    top, measure, lse    contiguous
    out                  as torch.empty_like(query) where D_V == D, so that a (B, L, H, D) view costs nothing;
                         contiguous where D_V != D
    gradients            as torch.empty_like of their tensors

The operators also take backend ``"reference"``, whose gradient is then the closed form; the public functions run the
reference in place instead. Eager calls on plain tensors skip the dispatcher, whose share of a small call is larger than
the kernel's, and reach the same implementation directly or through an ``autograd.Function``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simmst.ops.backends import implementation
from simmst.reference import prob_sparse_attention as reference

_OPERATOR = "prob_sparse_attention"
library = torch.library.Library("simmst", "FRAGMENT")
_OPTIONS = "Tensor? seed, bool is_causal, float scale, str fill, float dropout_p, str backend"
library.define(
    "prob_sparse_select(Tensor query, Tensor key, Tensor sample, SymInt u, str normalizer, str backend)"
    " -> (Tensor top, Tensor measure)"
)
library.define(
    f"prob_sparse_attend(Tensor query, Tensor key, Tensor value, Tensor top, {_OPTIONS}) -> (Tensor out, Tensor lse)"
)
library.define(
    "prob_sparse_attend_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor top, Tensor out,"
    f" Tensor lse, {_OPTIONS}) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value)"
)


def select_operator(
    query: Tensor, key: Tensor, sample: Tensor, u: int, normalizer: str, backend: str
) -> tuple[Tensor, Tensor]:
    """Select on a backend: in place for the reference, as one operator for the others."""
    if backend == "reference":
        return reference.select(query, key, sample, u=u, normalizer=normalizer)
    run: Any = _select if is_plain(query) else torch.ops.simmst.prob_sparse_select.default
    result: tuple[Tensor, Tensor] = run(query, key, sample, u, normalizer, backend)
    return result


def attend_operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    top: Tensor,
    seed: Tensor | None,
    is_causal: bool,
    scale: float,
    fill: str,
    dropout_p: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Attend on a backend: in place for the reference, as one operator for the others."""
    if backend == "reference":
        return reference.attend(
            query, key, value, top, is_causal=is_causal, scale=scale, fill=fill, dropout_p=dropout_p, seed=seed
        )
    if not is_plain(query):
        run: Any = torch.ops.simmst.prob_sparse_attend.default
    elif torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        run = _Attend.apply
    else:
        run = _attend
    result: tuple[Tensor, Tensor] = run(query, key, value, top, seed, is_causal, scale, fill, dropout_p, backend)
    return result


def is_plain(tensor: Tensor) -> bool:
    """Whether nothing but autograd wants to see the operator: no compiler, tensor subclass or dispatch mode."""
    return (
        not torch.compiler.is_compiling()
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and torch._C._len_torch_dispatch_stack() == 0
    )


def _select(query: Tensor, key: Tensor, sample: Tensor, u: int, normalizer: str, backend: str) -> tuple[Tensor, Tensor]:
    return implementation(_OPERATOR, backend).select(query, key, sample, u=u, normalizer=normalizer)  # type: ignore[no-any-return]


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    top: Tensor,
    seed: Tensor | None,
    is_causal: bool,
    scale: float,
    fill: str,
    dropout_p: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    out, lse = implementation(_OPERATOR, backend).attend(
        query, key, value, top, is_causal=is_causal, scale=scale, fill=fill, dropout_p=dropout_p, seed=seed
    )
    return _with_strides_of(_empty_out(query, value), out) if backend == "reference" else out, lse


def _attend_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    top: Tensor,
    out: Tensor,
    lse: Tensor,
    seed: Tensor | None,
    is_causal: bool,
    scale: float,
    fill: str,
    dropout_p: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = implementation(_OPERATOR, backend).attend_backward(
        grad_out,
        query,
        key,
        value,
        top,
        out,
        lse,
        is_causal=is_causal,
        scale=scale,
        fill=fill,
        dropout_p=dropout_p,
        seed=seed,
    )
    if backend != "reference":
        return gradients
    grad_query, grad_key, grad_value = gradients
    return (
        _with_strides_of(torch.empty_like(query), grad_query),
        _with_strides_of(torch.empty_like(key), grad_key),
        _with_strides_of(torch.empty_like(value), grad_value),
    )


def _with_strides_of(empty: Tensor, result: Tensor) -> Tensor:
    return result if empty.stride() == result.stride() else empty.copy_(result)


def _empty_out(query: Tensor, value: Tensor) -> Tensor:
    if value.shape[-1] == query.shape[-1]:
        return torch.empty_like(query)
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


def select_fake(
    query: Tensor, key: Tensor, sample: Tensor, u: int, normalizer: str, backend: str
) -> tuple[Tensor, Tensor]:
    """Empty results of select."""
    top = query.new_empty((*query.shape[:-2], u), dtype=torch.int64)
    return top, query.new_empty(query.shape[:-1], dtype=torch.promote_types(query.dtype, torch.float32))


def attend_fake(query: Tensor, key: Tensor, value: Tensor, top: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    """Empty results of attend."""
    lse = query.new_empty(top.shape, dtype=torch.promote_types(query.dtype, torch.float32))
    return _empty_out(query, value), lse


def _attend_backward_fake(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _select_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(*output)


def _select_vjp(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
    return (None,) * 6


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, top, seed, *options = inputs
    ctx.save_for_backward(query, key, value, top, *output, seed)
    ctx.mark_non_differentiable(output[1])
    ctx.options = options


def attend_vjp(ctx: Any, grad_out: Tensor, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of attend, from what ``_setup_context`` kept."""
    # With gradients on, the operator's own autograd refuses a second differentiation.
    direct = is_plain(grad_out) and not torch.is_grad_enabled()
    run: Any = _attend_backward if direct else torch.ops.simmst.prob_sparse_attend_backward.default
    return (*run(grad_out, *ctx.saved_tensors, *ctx.options), *[None] * 7)


class _Attend(torch.autograd.Function):
    """The operator's autograd for eager calls, without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = _attend(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        return attend_vjp(ctx, *gradients)


def _no_second_order(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError(
        "the compiled backends of prob_sparse_attention have gradients of first order; "
        'call it with backend="reference" to differentiate twice'
    )


library.impl("prob_sparse_select", _select, "CompositeExplicitAutograd")
library.impl("prob_sparse_attend", _attend, "CompositeExplicitAutograd")
library.impl("prob_sparse_attend_backward", _attend_backward, "CompositeExplicitAutograd")
torch.library.register_fake("simmst::prob_sparse_select", select_fake, lib=library)
torch.library.register_fake("simmst::prob_sparse_attend", attend_fake, lib=library)
torch.library.register_fake("simmst::prob_sparse_attend_backward", _attend_backward_fake, lib=library)
torch.library.register_autograd("simmst::prob_sparse_select", _select_vjp, setup_context=_select_context, lib=library)
torch.library.register_autograd("simmst::prob_sparse_attend", attend_vjp, setup_context=_setup_context, lib=library)
torch.library.register_autograd("simmst::prob_sparse_attend_backward", _no_second_order, lib=library)

__all__ = ["attend_fake", "attend_operator", "attend_vjp", "is_plain", "library", "select_fake", "select_operator"]
