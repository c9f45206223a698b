"""Selection and attention as one library operator, for backends that do both at once.

The module of such a backend has, beside the functions of :mod:`simmst.ops.prob_sparse_library`, ``forward``:
(query, key, value, sample, *, u, normalizer, is_causal, scale, fill, dropout_p, seed) -> (out, lse, top, measure). Its
results are those of ``select`` followed by ``attend``, its gradient is that of ``attend``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simmst.ops.backends import implementation
from simmst.ops.prob_sparse_library import attend_fake, attend_vjp, is_plain, library, select_fake

BACKENDS = ("cuda",)

library.define(
    "prob_sparse_forward(Tensor query, Tensor key, Tensor value, Tensor sample, Tensor? seed, SymInt u, str normalizer,"
    " bool is_causal, float scale, str fill, float dropout_p, str backend)"
    " -> (Tensor out, Tensor lse, Tensor top, Tensor measure)"
)

_Results = tuple[Tensor, Tensor, Tensor, Tensor]


def forward_operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sample: Tensor,
    seed: Tensor | None,
    u: int,
    normalizer: str,
    is_causal: bool,
    scale: float,
    fill: str,
    dropout_p: float,
    backend: str,
) -> _Results:
    """Select and attend on one of ``BACKENDS``: out, lse, top and measure."""
    if not is_plain(query):
        run: Any = torch.ops.simmst.prob_sparse_forward.default
    elif torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        run = _Forward.apply
    else:
        run = _forward
    results: _Results = run(query, key, value, sample, seed, u, normalizer, is_causal, scale, fill, dropout_p, backend)
    return results


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sample: Tensor,
    seed: Tensor | None,
    u: int,
    normalizer: str,
    is_causal: bool,
    scale: float,
    fill: str,
    dropout_p: float,
    backend: str,
) -> _Results:
    results: _Results = implementation("prob_sparse_attention", backend).forward(
        query,
        key,
        value,
        sample,
        u=u,
        normalizer=normalizer,
        is_causal=is_causal,
        scale=scale,
        fill=fill,
        dropout_p=dropout_p,
        seed=seed,
    )
    return results


def _forward_fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sample: Tensor,
    seed: Tensor | None,
    u: int,
    normalizer: str,
    is_causal: bool,
    scale: float,
    fill: str,
    dropout_p: float,
    backend: str,
) -> _Results:
    top, measure = select_fake(query, key, sample, u, normalizer, backend)
    return (*attend_fake(query, key, value, top), top, measure)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Results) -> None:
    query, key, value, _, seed, _, _, *options = inputs
    out, lse, top, measure = output
    ctx.save_for_backward(query, key, value, top, out, lse, seed)
    ctx.mark_non_differentiable(lse, top, measure)
    ctx.options = options


def _forward_vjp(ctx: Any, grad_out: Tensor, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    return (*attend_vjp(ctx, grad_out, *gradients)[:3], *[None] * 9)


class _Forward(torch.autograd.Function):
    """The operator's autograd for eager calls, without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> _Results:
        output = _forward(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        return _forward_vjp(ctx, *gradients)


library.impl("prob_sparse_forward", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("simmst::prob_sparse_forward", _forward_fake, lib=library)
torch.library.register_autograd("simmst::prob_sparse_forward", _forward_vjp, setup_context=_setup_context, lib=library)

__all__ = ["BACKENDS", "forward_operator"]
