"""The shortest way to the CUDA kernels, for an eager call like one that has passed all checks before.

A call that has gone the long way is remembered by everything its checks depend on. The next call like it goes straight
to what the backend has prepared: no check runs twice, and the only allocations are the caller's result, what the
backward pass needs, and one block of memory for the rest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from simmst.core.prob_sparse_attention import Options, informer_count
from simmst.ops.backends import implementation, is_transformed
from simmst.ops.checks import check_index_range
from simmst.ops.dispatch import is_unwatched, wants_gradient
from simmst.ops.known import Known, layout, named
from simmst.ops.prob_sparse_attention.library import PATH, attend_backward

_known = Known()


def draw(upper: int, shape: tuple[int, ...], query: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw random integers below a bound, on the device of query."""
    if generator is None:
        return torch.randint(upper, shape, device=query.device)
    return torch.randint(upper, shape, generator=generator, device=generator.device).to(query.device)


def again(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sample: Tensor | None,
    factor: int,
    sampling: str,
    generator: torch.Generator | None,
    normalizer: str,
    options: Options,
    backend: str | None,
) -> Tensor | None:
    """Return the output of a call that is like a remembered one, or None for any other call.

    Example:
        >>> x = torch.ones(3, 1)
        >>> again(x, x, x, None, 5, "shared", None, "keys", Options(), "reference") is None
        True
    """
    if not _known.may_hold(query, key, value, sample):
        return None
    try:
        found = _known.find(_key(query, key, value, sample, factor, sampling, normalizer, options, backend))
    except (AttributeError, RuntimeError):
        return None  # the long way raises the error
    if found is None:
        return None
    prepared, shape = found
    keys = key.shape[-2]
    if sample is None:
        sample = draw(keys, shape, query, generator)
    elif sample.is_cpu:
        check_index_range("sample", sample, keys)
    seed = draw(2**32, (2,), query, generator) if options.dropout_p > 0.0 else None
    if wants_gradient(query, key, value):
        learnt: Tensor = _Short.apply(prepared, query, key, value, sample, seed)
        return learnt
    out: Tensor = prepared.infer(query, key, value, sample, seed)
    return out


def remember(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    given: Tensor | None,
    sample: Tensor,
    factor: int,
    sampling: str,
    normalizer: str,
    options: Options,
    backend: str | None,
    chosen: str,
) -> None:
    """Remember a call whose arguments were checked, if the chosen backend can prepare for others like it.

    Args:
        query, key, value, factor, sampling, normalizer, options, backend: arguments of the call.
        given: the sample that the caller gave, or None.
        sample: the sample that was used, given or drawn.
        chosen: the backend that ran the call.
    """
    if is_compiling() or not is_unwatched(query, key, value, sample):
        return  # the compiler must not look for a backend's module
    prepare = getattr(implementation(PATH, chosen), "Prepared", None)
    if prepare is None:
        return
    plain = type(factor) is int and type(options.is_causal) is bool and type(options.dropout_p) is float
    if not plain or type(options.scale) not in (float, type(None)):
        return  # a dictionary takes 1 and True for the same key
    prepared = prepare.of(query, key, value, sample, informer_count(query.shape[-2], factor), normalizer, options)
    if prepared is not None:
        name = _key(query, key, value, given, factor, sampling, normalizer, options, backend)
        _known.keep(name, (prepared, tuple(sample.shape)))


def _key(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sample: Tensor | None,
    factor: int,
    sampling: str,
    normalizer: str,
    options: Options,
    backend: str | None,
) -> Any:
    return (
        layout(query),
        layout(key),
        layout(value),
        layout(sample),
        factor,
        type(factor),
        sampling,
        normalizer,
        options,
        type(options.is_causal),
        type(options.dropout_p),
        # Another backend may be the fastest where gradients are wanted.
        (named(None), wants_gradient(query, key, value)) if backend is None else named(backend),
    )


class _Short(torch.autograd.Function):
    """The prepared call with autograd."""

    @staticmethod
    def forward(
        ctx: Any, prepared: Any, query: Tensor, key: Tensor, value: Tensor, sample: Tensor, seed: Tensor | None
    ) -> Tensor:
        out, kept = prepared.keep(query, key, value, sample, seed)
        ctx.prepared = prepared
        ctx.save_for_backward(query, key, value, out, kept, seed)
        checked: Tensor = out
        return checked

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, kept, seed = ctx.saved_tensors
        prepared = ctx.prepared
        if torch.is_grad_enabled() or is_transformed() or not is_unwatched(grad_out, query, key, value):
            top, lse = prepared.selection(kept)  # the operator handles this case or raises the error
            found = attend_backward(grad_out, query, key, value, top, out, lse, seed, prepared.options, "cuda")
        else:
            found = prepared.backward(grad_out, query, key, value, out, kept, seed)
        return None, *found, None, None


__all__ = ["again", "draw", "remember"]
