"""ProbSparse attention on the C++ kernels of ``simmst._cpu``. The functions allocate results and pass addresses."""

from __future__ import annotations

import functools
import importlib
import math
from typing import Any

import torch
from torch import Tensor

from simmst.core import dtypes
from simmst.core.prob_sparse_attention import (
    DEFAULTS,
    FILLS,
    Options,
    divisor,
    empty_out,
    informer_count,
    resolve_fill,
    resolve_scale,
)

_cpu: Any = importlib.import_module("simmst._cpu")
_FILLS = {fill: code for code, fill in enumerate(FILLS)}
_count = functools.lru_cache(maxsize=256)(informer_count)

_Parts = tuple[int, torch.Size, tuple[int, ...]]


def select(query: Tensor, key: Tensor, sample: Tensor, u: int, normalizer: str = "keys") -> tuple[Tensor, Tensor]:
    """Select the u queries with the largest measure; see the reference's ``select``.

    Raises:
        IndexError: an index in sample is out of range.

    Example:
        >>> query, key = torch.tensor([[1.0], [0.0], [3.0]]), torch.tensor([[1.0], [-1.0]])
        >>> select(query, key, torch.tensor([0, 1]), u=1)
        (tensor([2]), tensor([1., 0., 3.]))
    """
    top = query.new_empty((*query.shape[:-2], u), dtype=torch.int64)
    measure = _empty_wide(query, query.shape[:-1])
    count = divisor(key, sample, normalizer)
    query, key, sample = _row_major(query), _row_major(key), sample.contiguous()
    _cpu.prob_sparse_select(
        dtypes.CODES[query.dtype],
        torch.get_num_threads(),
        _parts(query),
        _parts(key),
        _parts(sample),
        count,
        _parts(top),
        _parts(measure),
    )
    return top, measure


def infer(
    query: Tensor, key: Tensor, value: Tensor, sample: Tensor, factor: int, normalizer: str, options: Options
) -> Tensor:
    """Do the work of ``select`` and ``attend`` in one call, for calls that want only the output and need no copy.

    Raises:
        IndexError: an index in sample is out of range.
        ValueError: sample, or the last dimension of another tensor, is not contiguous; ``select`` and ``attend`` accept
            such tensors.

    Example:
        >>> x = torch.eye(3)
        >>> infer(x, x, x, torch.tensor([0]), 1, "keys", Options()).shape
        torch.Size([3, 3])
    """
    # Small calls spend most of their time here, so each property of a tensor is read once.
    is_causal, scale, fill, _ = options
    shape, key_shape, value_shape = query.shape, key.shape, value.shape
    width = shape[-1]
    out = torch.empty_like(query) if value_shape[-1] == width else query.new_empty((*shape[:-1], value_shape[-1]))
    _cpu.prob_sparse_forward(
        dtypes.CODES[query.dtype],
        torch.get_num_threads(),
        (query.data_ptr(), shape, query.stride()),
        (key.data_ptr(), key_shape, key.stride()),
        (value.data_ptr(), value_shape, value.stride()),
        (sample.data_ptr(), sample.shape, sample.stride()),
        key_shape[-2] if normalizer == "keys" else divisor(key, sample, normalizer),
        _count(shape[-2], factor),
        is_causal,
        1.0 / math.sqrt(width) if scale is None else scale,
        _FILLS[fill or ("cumsum" if is_causal else "mean")],
        (out.data_ptr(), shape if value_shape[-1] == width else out.shape, out.stride()),
    )
    return out


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    top: Tensor,
    seed: Tensor | None = None,
    options: Options = DEFAULTS,
) -> tuple[Tensor, Tensor]:
    """Attend in the rows top, and fill all others; see the reference's ``attend``.

    Raises:
        IndexError: an index in top is out of range.

    Example:
        >>> x = torch.eye(3)
        >>> out, lse = attend(x, x, x, torch.tensor([1]))
        >>> out.shape, lse.shape
        (torch.Size([3, 3]), torch.Size([1]))
    """
    out = empty_out(query, value)
    lse = _empty_wide(query, top.shape)
    query, key, value, top = _row_major(query), _row_major(key), _row_major(value), top.contiguous()
    rows = _row_major(out)
    _cpu.prob_sparse_attend(*_call(query, key, value, top, seed, options), _parts(rows), _parts(lse))
    return out if rows is out else out.copy_(rows), lse


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
    """Return the gradients of query, key and value; see the reference's ``attend_backward``.

    Example:
        >>> x, top = torch.eye(3), torch.tensor([1])
        >>> out, lse = attend(x, x, x, top)
        >>> [tuple(g.shape) for g in attend_backward(torch.ones(3, 3), x, x, x, top, out, lse)]
        [(3, 3), (3, 3), (3, 3)]
    """
    gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    rows = [_row_major(gradient) for gradient in gradients]
    query, key, value, out = _row_major(query), _row_major(key), _row_major(value), _row_major(out)
    grad_out, lse, top = _row_major(grad_out), lse.contiguous(), top.contiguous()
    _cpu.prob_sparse_attend_backward(
        *_call(query, key, value, top, seed, options),
        _parts(out),
        _parts(lse),
        _parts(grad_out),
        *[_parts(row) for row in rows],
    )
    results = [g if row is g else g.copy_(row) for g, row in zip(gradients, rows, strict=True)]
    return results[0], results[1], results[2]


def _call(
    query: Tensor, key: Tensor, value: Tensor, top: Tensor, seed: Tensor | None, options: Options
) -> tuple[int, int, _Parts, _Parts, _Parts, _Parts, bool, float, int, float, int, int]:
    seed0 = seed1 = 0
    if options.dropout_p > 0.0:
        if seed is None:
            raise ValueError(f"dropout_p={options.dropout_p} needs a seed, got None")
        seed0, seed1 = seed.tolist()
    return (
        dtypes.CODES[query.dtype],
        torch.get_num_threads(),
        _parts(query),
        _parts(key),
        _parts(value),
        _parts(top),
        options.is_causal,
        resolve_scale(options.scale, query),
        _FILLS[resolve_fill(options.fill, options.is_causal)],
        options.dropout_p,
        seed0,
        seed1,
    )


def _parts(tensor: Tensor) -> _Parts:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _empty_wide(query: Tensor, shape: tuple[int, ...]) -> Tensor:
    return query.new_empty(shape, dtype=torch.float64 if query.dtype == torch.float64 else torch.float32)


def _row_major(tensor: Tensor) -> Tensor:
    """Return the tensor, or a contiguous copy if its last dimension is not contiguous."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


__all__ = ["attend", "attend_backward", "infer", "select"]
