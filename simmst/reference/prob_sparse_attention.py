"""ProbSparse attention in plain PyTorch: the reference for every kernel, and the fallback where there is no kernel.

Source: Zhou et al., "Informer: Beyond Efficient Transformer for Long Sequence Time-Series Forecasting", AAAI 2021, and
the authors' code for the divisor (the number of keys), the sampling (with replacement, shared by batch and heads) and
the fills. All operations work under autograd of any order, forward-mode AD, torch.func and torch.compile.

Half types are computed in float32, float64 in float64; ``measure`` and ``lse`` stay in that wider type.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simmst.core.exporting import is_exporting, largest
from simmst.core.philox import STREAM_DROPOUT, keep_threshold, philox_words
from simmst.core.prob_sparse_attention import DEFAULTS, Options, divisor, resolve_fill, resolve_scale

# A chunk of rows of scores is at most this many times as large as query and key together, or has this many rows.
_CHUNK_FACTOR = 2
_CHUNK_ROWS = 64
# With more keys per sample than this, gathering the sampled keys is faster than multiplying with all keys (measured,
# AVX-512 CPU).
_KEYS_PER_SAMPLE = 50


def select(query: Tensor, key: Tensor, sample: Tensor, u: int, normalizer: str = "keys") -> tuple[Tensor, Tensor]:
    """Select the queries whose sampled scores are the least uniform.

    measure = max_s(q . k_s) - sum_s(q . k_s) / n, with n = L_K (``"keys"``) or S (``"samples"``); the queries with the
    u largest measures are selected. If two measures are equal, the lower index is selected; a NaN measure counts as
    larger than every number. The results carry no gradient.

    Args:
        query: (..., L_Q, D).
        key: (..., L_K, D).
        sample: keys that a query is measured on, int64 (L_Q, S), or (S,) if all queries share them.
        u: number of queries to select.
        normalizer: ``"keys"`` or ``"samples"``.

    Returns:
        top: int64 (..., u), ascending.
        measure: (..., L_Q), float32 or float64.

    Example:
        >>> query, key = torch.tensor([[1.0], [0.0], [3.0]]), torch.tensor([[1.0], [-1.0]])
        >>> top, measure = select(query, key, torch.tensor([0, 1]), u=1)
        >>> top, measure
        (tensor([2]), tensor([1., 0., 3.]))
    """
    work = torch.promote_types(query.dtype, torch.float32)
    query, key = query.detach().to(work), key.detach().to(work)
    count = divisor(key, sample, normalizer)
    if sample.dim() == 1:
        measure = _measure_shared(query, key[..., sample, :], count)
    else:
        measure = _measure_per_query(query, key, sample, count)
    if is_exporting():
        return largest(measure, u), measure
    order = measure.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :u].sort(dim=-1).values, measure


def _sparsity(scores: Tensor, count: int) -> Tensor:
    return scores.amax(-1) - scores.sum(-1) / count


def _measure_shared(query: Tensor, sampled: Tensor, count: int) -> Tensor:
    queries, samples, width = query.shape[-2], sampled.shape[-2], query.shape[-1]
    chunk = max(_CHUNK_ROWS, _CHUNK_FACTOR * (queries + samples) * width // samples)
    if queries <= chunk:
        return _sparsity(query @ sampled.mT, count)
    starts = range(0, queries, chunk)
    return torch.cat([_sparsity(query[..., start : start + chunk, :] @ sampled.mT, count) for start in starts], -1)


def _measure_per_query(query: Tensor, key: Tensor, sample: Tensor, count: int) -> Tensor:
    queries, keys, width, samples = query.shape[-2], key.shape[-2], query.shape[-1], sample.shape[-1]
    gather_keys = keys > _KEYS_PER_SAMPLE * samples
    budget = _CHUNK_FACTOR * (queries + keys) * width
    chunk = max(_CHUNK_ROWS, budget // (samples * width if gather_keys else keys))
    measures = []
    for start in range(0, max(queries, 1), chunk):
        rows = query[..., start : start + chunk, :]  # [..., R, D]
        index = sample[start : start + chunk]  # [R, S]
        if gather_keys:
            scores = (key[..., index, :] @ rows[..., None]).squeeze(-1)  # [..., R, S]
        else:
            scores = (rows @ key.mT).gather(-1, index.expand(*rows.shape[:-1], samples))
        measures.append(_sparsity(scores, count))
    return torch.cat(measures, -1) if len(measures) > 1 else measures[0]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    top: Tensor,
    seed: Tensor | None = None,
    options: Options = DEFAULTS,
) -> tuple[Tensor, Tensor]:
    """Attend in the selected rows, and fill all others.

    Args:
        query: (..., L_Q, D).
        key: (..., L_K, D).
        value: (..., L_K, D_V).
        top: int64 (..., u), distinct.
        seed: int64 (2,), required with dropout.
        options: causal mask (aligned at the top left as in scaled_dot_product_attention), scale, fill and dropout.

    Returns:
        out: (..., L_Q, D_V) in the dtype of query.
        lse: (..., u), logsumexp of the scaled scores in the order of top, without gradient.

    Example:
        >>> x = torch.eye(3)
        >>> out, lse = attend(x, x, x, torch.tensor([1]))
        >>> out.shape, lse.shape
        (torch.Size([3, 3]), torch.Size([1]))
    """
    work = torch.promote_types(query.dtype, torch.float32)
    scores = _scores(query, key, top, is_causal=options.is_causal, scale=resolve_scale(options.scale, query))
    weights = scores.softmax(-1)
    if options.dropout_p > 0.0:
        weights = weights * _dropout_factor(top, weights, options.dropout_p, seed)
    selected = weights @ value.to(work)  # [..., u, D_V]
    rest = _fill_rows(value.to(work), query.shape[-2], resolve_fill(options.fill, options.is_causal))
    out = rest.scatter(-2, _row_index(top, value.shape[-1]), selected)
    return out.to(query.dtype), scores.detach().logsumexp(-1)


def attend_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    top: Tensor,
    out: Tensor,
    lse: Tensor,
    seed: Tensor | None = None,
    options: Options = DEFAULTS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of :func:`attend` in closed form, from its inputs and results.

    With P = exp(scale q_top K^T - lse) and Z the dropout factor, in the selected rows
    dS = P (Z dO V^T - rowsum(dO O)); dQ = scale dS K, zero elsewhere; dK = scale dS^T q_top;
    dV = (P Z)^T dO + the gradient of the fill from the other rows.

    Args:
        grad_out: (..., L_Q, D_V), the gradient of out. The other arguments are those of :func:`attend` and its results.

    Returns:
        The gradients of query, key and value, in their dtype.

    Example:
        >>> x, top = torch.eye(3), torch.tensor([1])
        >>> out, lse = attend(x, x, x, top)
        >>> [tuple(g.shape) for g in attend_backward(torch.ones(3, 3), x, x, x, top, out, lse)]
        [(3, 3), (3, 3), (3, 3)]
    """
    work = torch.promote_types(query.dtype, torch.float32)
    scale = resolve_scale(options.scale, query)
    wide, key_wide, value_wide = grad_out.to(work), key.to(work), value.to(work)
    row_index = _row_index(top, value.shape[-1])
    grad_top = wide.gather(-2, row_index)  # [..., u, D_V]
    weights = (
        _scores(query, key, top, is_causal=options.is_causal, scale=scale) - lse[..., None]
    ).exp()  # [..., u, L_K]
    grad_weights = grad_top @ value_wide.mT
    kept = weights
    if options.dropout_p > 0.0:
        factor = _dropout_factor(top, weights, options.dropout_p, seed)
        kept, grad_weights = weights * factor, grad_weights * factor
    delta = (grad_top * out.gather(-2, row_index).to(work)).sum(-1, keepdim=True)
    grad_scores = weights * (grad_weights - delta) * scale
    query_index = _row_index(top, query.shape[-1])
    grad_query = torch.zeros_like(query).scatter(-2, query_index, (grad_scores @ key_wide).to(query.dtype))
    grad_key = grad_scores.mT @ query.gather(-2, query_index).to(work)
    grad_value = kept.mT @ grad_top
    if top.shape[-1] < query.shape[-2]:
        rest = wide.scatter(-2, row_index, 0.0)
        grad_value = grad_value + _fill_gradient(rest, key.shape[-2], resolve_fill(options.fill, options.is_causal))
    return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype)


def _row_index(top: Tensor, width: int) -> Tensor:
    return top[..., None].expand(*top.shape, width)  # [..., u, width]


def _scores(query: Tensor, key: Tensor, top: Tensor, *, is_causal: bool, scale: float) -> Tensor:
    work = torch.promote_types(query.dtype, torch.float32)
    query_top = query.gather(-2, _row_index(top, query.shape[-1])).to(work)
    scores = (query_top * scale) @ key.to(work).mT  # [..., u, L_K]
    if is_causal:
        future = torch.arange(key.shape[-2], device=top.device) > top[..., None]
        scores = scores.masked_fill(future, -math.inf)
    return scores


def _dropout_factor(top: Tensor, like: Tensor, dropout_p: float, seed: Tensor | None) -> Tensor:
    """Return the factors of the weights, [..., u, L_K]: 0 where a weight is dropped, else 1 / (1 - p)."""
    if seed is None:
        raise ValueError(f"dropout_p={dropout_p} needs a seed, got None")
    batch_shape = top.shape[:-1]
    batch = torch.arange(math.prod(batch_shape), device=top.device).view(*batch_shape, 1)
    words = philox_words(batch, top, like.shape[-1], stream=STREAM_DROPOUT, key=seed)
    return (words >= keep_threshold(dropout_p)).to(like.dtype) * (1.0 / (1.0 - dropout_p))


def _fill_rows(value: Tensor, queries: int, fill: str) -> Tensor:
    """Return the fill of every row, [..., L_Q, D_V]."""
    keys = value.shape[-2]
    if fill == "mean":
        return value.mean(-2, keepdim=True).expand(*value.shape[:-2], queries, value.shape[-1])
    running = value[..., :queries, :].cumsum(-2)
    if queries > keys:  # later rows see every key
        last = running[..., -1:, :].expand(*value.shape[:-2], queries - keys, value.shape[-1])
        running = torch.cat((running, last), -2)
    return running / _visible_keys(queries, keys, value) if fill == "cummean" else running


def _fill_gradient(grad: Tensor, keys: int, fill: str) -> Tensor:
    """Apply the transpose of :func:`_fill_rows`: [..., L_Q, D_V] -> [..., L_K, D_V]."""
    queries = grad.shape[-2]
    shape = (*grad.shape[:-2], keys, grad.shape[-1])
    if fill == "mean":
        return (grad.sum(-2, keepdim=True) / keys).expand(shape)
    if fill == "cummean":
        grad = grad / _visible_keys(queries, keys, grad)
    running = grad.flip(-2).cumsum(-2).flip(-2)[..., :keys, :]
    if queries >= keys:
        return running
    return torch.cat((running, running.new_zeros((*grad.shape[:-2], keys - queries, grad.shape[-1]))), -2)


def _visible_keys(queries: int, keys: int, like: Tensor) -> Tensor:
    rows = torch.arange(1, queries + 1, device=like.device).clamp(max=keys)
    return rows.to(like.dtype)[:, None]  # [L_Q, 1]


__all__ = ["attend", "attend_backward", "select"]
