"""The shortest way to the C++ forward: for eager calls that want the output alone, it costs what one operator costs.

A call that is the least bit unusual goes the long way in :mod:`simmst.ops.prob_sparse_attention`, which also words the
errors; both ways run the same kernels and a test holds their results together.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from simmst.core.prob_sparse_attention import informer_count
from simmst.ops.backends import choose, implementation

_OPERATOR = "prob_sparse_attention"
_count = functools.lru_cache(maxsize=256)(informer_count)


def forward_in_one_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sample: Tensor,
    factor: int,
    is_causal: bool,
    scale: float | None,
    fill: str | None,
    normalizer: str,
    backend: str | None,
) -> Tensor | None:
    """Run selection and attention at once, or return None where that is not possible or an argument is wrong.

    Example:
        >>> x, sample = torch.eye(3), torch.tensor([0, 1, 2])
        >>> forward_in_one_call(x, x, x, sample, 5, False, None, None, "keys", "reference") is None
        True
    """
    if torch.compiler.is_compiling() or not (
        type(query) is type(key) is type(value) is type(sample) is Tensor
        and query.is_cpu
        and key.is_cpu
        and value.is_cpu
        and sample.is_cpu
        and query.dtype is key.dtype is value.dtype
        and sample.dtype is torch.int64
        and type(factor) is int
        and factor >= 1
        and type(is_causal) is bool
        and (scale is None or (type(scale) is float and scale == scale))
        and torch._C._len_torch_dispatch_stack() == 0
    ):
        return None
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return None
    if choose(_OPERATOR, backend, device=query.device, dtype=query.dtype) != "cpu":
        return None
    try:
        out: Tensor = implementation(_OPERATOR, "cpu").forward(
            query,
            key,
            value,
            sample,
            u=_count(query.shape[-2], factor),
            normalizer=normalizer,
            is_causal=is_causal,
            scale=scale,
            fill=fill,
        )
    except (IndexError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None  # the long way checks one argument after the other and says what is wrong
    return out


__all__ = ["forward_in_one_call"]
