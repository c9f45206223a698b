"""ProbSparse attention on Triton kernels. The functions allocate results and launch.

Launches, and what each must move to or from device memory, in tensors of (B, L, D) with L = L_Q = L_K and D = D_V:

                       launches   where                                                   moves
    select             1          L_Q <= 1024, with per-query samples 128; otherwise 2    Q (sampled rows of K: cache)
    attend             1          L <= 1024, or a batch that fills the device             K, V, out
                       2          otherwise                                               K, V, out, partial results
    attend_backward    1          as attend                                               dO, K, V, dQ, dK, dV
                       3          otherwise                                               the same, partial results

A running fill reads V, or dO, once more. Partial results are (u + 1) rows of float32 for each chunk of keys, written
once and read once: at L = 4096, 64 heads, bfloat16 on 132 processors, they are 8 chunks of 512 and 6 MB each way, with
33.6 MB per tensor. At these sizes the forward pass takes 4 launches and moves 134 MB and 12 MB; forward and backward
take 7 launches and move 360 MB.

More than 63 selected rows (float32 wider than 64: 31) take several tiles, and K and V are then read once for each tile.

float32 products are IEEE unless torch allows TF32. Nothing waits for the device, so an index out of range is not
refused: in `sample` or `top` it makes a measure or lse NaN, and no memory out of bounds is read.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from simmst.core.dtypes import tf32_is_allowed
from simmst.core.philox import keep_threshold
from simmst.core.prob_sparse_attention import DEFAULTS, Options, divisor, empty_out, resolve_fill, resolve_scale
from simmst.kernels.configurations import Configuration, configuration
from simmst.kernels.prob_sparse_attention_backward import _combine_query, _gradients, _sum_chunks
from simmst.kernels.prob_sparse_attention_forward import _attend, _combine
from simmst.kernels.prob_sparse_attention_select import _measure, _measure_and_top, _top

_FAMILY = {torch.float32: "single", torch.float16: "half", torch.bfloat16: "half"}
_SHORT = 1024  # up to this many rows, one program does a batch entry
_SHORT_PER_QUERY = 128
_SMALLEST_CHUNK = 256
_PROGRAMS_PER_PROCESSOR = 4


def select(query: Tensor, key: Tensor, sample: Tensor, u: int, normalizer: str = "keys") -> tuple[Tensor, Tensor]:
    """Select the u queries with the largest measure; see the reference's ``select``.

    Example:
        >>> query, key = torch.randn(2, 96, 16, device="cuda"), torch.randn(2, 96, 16, device="cuda")
        >>> top, measure = select(query, key, torch.arange(25, device="cuda"), u=25)
        >>> top.shape, measure.shape
        (torch.Size([2, 25]), torch.Size([2, 96]))
    """
    top = query.new_empty((*query.shape[:-2], u), dtype=torch.int64)
    measure = query.new_empty(query.shape[:-1], dtype=torch.float32)
    if measure.numel() == 0:
        return top, measure
    count = float(divisor(key, sample, normalizer))
    q, k, sample = _four(query), _four(key), sample.contiguous()
    batch, queries, width = q.shape[0] * q.shape[1], q.shape[2], q.shape[3]
    per_query = sample.dim() == 2
    sizes = (q.shape[1], queries, k.shape[2], sample.shape[-1], width)
    strides = (*q.stride()[:3], *k.stride()[:3], count)
    constants = {"PER_QUERY": per_query, "PRECISION": _precision(query), "BLOCK_D": _block(width)}
    kind = "gather" if per_query else "measure"
    tile = _configuration(f"{kind}_{_FAMILY[query.dtype]}", query, length=queries)
    with _device(query):
        if queries <= (_SHORT_PER_QUERY if per_query else _SHORT):
            _measure_and_top[(batch,)](
                q, k, sample, measure, top, *sizes, u, *strides, **constants, BLOCK=_block(queries), **tile.launch()
            )
            return top, measure
        grid = (batch * triton.cdiv(queries, tile.constants["BLOCK_M"]),)
        _measure[grid](q, k, sample, measure, *sizes, *strides, **constants, **tile.launch())
        rows = configuration("prob_sparse_attention.top", f"L{triton.next_power_of_2(queries)}")
        in_registers = queries <= rows.constants["BLOCK"]
        _top[(batch,)](measure, top, queries, u, IN_REGISTERS=in_registers, **rows.launch())
    return top, measure


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    top: Tensor,
    seed: Tensor | None = None,
    options: Options = DEFAULTS,
) -> tuple[Tensor, Tensor]:
    """Attend in the rows `top`, and fill all others; see the reference's ``attend``.

    Example:
        >>> x = torch.eye(3, device="cuda")
        >>> out, lse = attend(x, x, x, torch.tensor([1], device="cuda"))
        >>> out.shape, lse.shape
        (torch.Size([3, 3]), torch.Size([1]))
    """
    out, lse = empty_out(query, value), query.new_empty(top.shape, dtype=torch.float32)
    if query.shape[:-1].numel() == 0:
        return out, lse
    q, k, v, o, top = _four(query), _four(key), _four(value), _four(out), top.contiguous()
    plan = _plan(q, k, v, top.shape[-1] + 1)
    queries, keys, u, width, value_width = q.shape[2], k.shape[2], top.shape[-1], q.shape[3], v.shape[3]
    constants = {
        "FILL": resolve_fill(options.fill, options.is_causal),
        "BLOCK_U": plan.tile,
        "BLOCK_V": _block(value_width),
    }
    keep, dropout_factor, seed = _dropout(options.dropout_p, seed)
    parts = statistics = None
    if not plan.whole:
        parts = lse.new_empty(plan.batch * plan.splits * (u + 1) * value_width)
        statistics = lse.new_empty(2 * plan.batch * plan.splits * (u + 1))
    with _device(query):
        tile = _configuration(f"attend_{_family(query, value)}", query, length=keys)
        _attend[(plan.batch * plan.splits * triton.cdiv(u + 1, plan.tile),)](
            q, k, v, top, seed, o, lse, parts, statistics,
            q.shape[1], queries, keys, u, width, value_width,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *o.stride()[:3],
            resolve_scale(options.scale, query), keep, dropout_factor, plan.chunk, plan.splits,
            WHOLE=plan.whole, CAUSAL=options.is_causal, DROPOUT=seed is not None, PRECISION=_precision(query),
            BLOCK_D=_block(width), **constants, **tile.launch(),
        )  # fmt: skip
        if not plan.whole:
            tile = _configuration("combine", query, length=queries)
            _combine[(plan.batch * triton.cdiv(queries, plan.chunk),)](
                v, top, o, lse, parts, statistics, q.shape[1], queries, keys, u, value_width,
                *v.stride()[:3], *o.stride()[:3], dropout_factor, plan.chunk, plan.splits, **constants, **tile.launch(),
            )  # fmt: skip
    return _returned(out, o), lse


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
        >>> x, top = torch.eye(3, device="cuda"), torch.tensor([1], device="cuda")
        >>> out, lse = attend(x, x, x, top)
        >>> [tuple(g.shape) for g in attend_backward(torch.ones_like(out), x, x, x, top, out, lse)]
        [(3, 3), (3, 3), (3, 3)]
    """
    results = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    if query.shape[:-1].numel() == 0:
        return results[0], results[1].zero_(), results[2].zero_()
    grads = [_four(result) for result in results]
    q, k, v, o, do = (_four(tensor) for tensor in (query, key, value, out, grad_out))
    top, lse = top.contiguous(), lse.contiguous()
    plan = _plan(q, k, v, top.shape[-1])
    queries, keys, u, width, value_width = q.shape[2], k.shape[2], top.shape[-1], q.shape[3], v.shape[3]
    constants = {"FILL": resolve_fill(options.fill, options.is_causal), "BLOCK_V": _block(value_width)}
    keep, dropout_factor, seed = _dropout(options.dropout_p, seed)
    sums = parts = None
    chunks = triton.cdiv(queries, plan.chunk)
    with _device(query):
        if not plan.whole:
            sums = lse.new_empty(plan.batch * chunks * value_width)
            parts = lse.new_empty(plan.batch * plan.splits * u * width)
            tile = _configuration("sum_chunks", query, length=queries)
            _sum_chunks[(plan.batch * chunks,)](
                do, top, sums, q.shape[1], queries, keys, u, value_width, *do.stride()[:3], plan.chunk,
                **constants, **tile.launch(),
            )  # fmt: skip
        tile = _configuration(f"gradients_{_family(query, value)}", query, length=keys)
        _gradients[(plan.batch * plan.splits,)](
            do, q, k, v, top, o, lse, seed, sums, *grads, parts,
            q.shape[1], queries, keys, u, width, value_width,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *o.stride()[:3], *do.stride()[:3],
            *grads[0].stride()[:3], *grads[1].stride()[:3], *grads[2].stride()[:3],
            resolve_scale(options.scale, query), keep, dropout_factor, plan.chunk, plan.splits, chunks,
            WHOLE=plan.whole, ONE_TILE=u <= plan.tile, CAUSAL=options.is_causal, DROPOUT=seed is not None,
            PRECISION=_precision(query), BLOCK_U=plan.tile, BLOCK_D=_block(width), **constants, **tile.launch(),
        )  # fmt: skip
        if not plan.whole:
            tile = _configuration("combine_query", query, length=queries)
            _combine_query[(plan.batch * triton.cdiv(queries, tile.constants["BLOCK_M"]),)](
                top, parts, grads[0], q.shape[1], queries, u, width, *grads[0].stride()[:3], plan.splits,
                BLOCK_D=_block(width), **tile.launch(),
            )  # fmt: skip
    grad_query, grad_key, grad_value = (_returned(a, b) for a, b in zip(results, grads, strict=True))
    return grad_query, grad_key, grad_value


class _Plan(NamedTuple):
    """How a call is divided among programs."""

    batch: int
    tile: int  # number of selected rows that a program holds
    chunk: int  # number of keys, and of rows, that a program works through
    splits: int  # number of chunks of keys
    whole: bool  # whether one program does a batch entry


def _plan(query: Tensor, key: Tensor, value: Tensor, rows: int) -> _Plan:
    """Divide the work of `rows` rows on all keys into just enough programs to fill the device."""
    batch, keys = query.shape[0] * query.shape[1], key.shape[2]
    length = max(query.shape[2], keys)
    # A program holds fewer selected rows if IEEE products of float32 take many registers.
    few = query.dtype == torch.float32 and (rows > 64 or max(query.shape[-1], value.shape[-1]) > 64)
    tile = min(_block(rows), 32 if few else 64)
    wanted = _PROGRAMS_PER_PROCESSOR * _processors(query.device)
    if rows <= tile and (length <= _SHORT or batch >= wanted):
        return _Plan(batch, tile, length, 1, True)
    chunk = max(_SMALLEST_CHUNK, triton.cdiv(length, triton.cdiv(wanted, batch)))
    chunk = triton.cdiv(chunk, 128) * 128  # a multiple of every tile
    return _Plan(batch, tile, chunk, triton.cdiv(keys, chunk), False)


@functools.cache
def _processors(device: torch.device) -> int:
    # The interpreter, on the CPU, takes the number of an H200.
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def _configuration(kernel: str, query: Tensor, *, length: int) -> Configuration:
    bucket = f"L{triton.next_power_of_2(length)}-D{_block(query.shape[-1])}-{str(query.dtype).removeprefix('torch.')}"
    return configuration(f"prob_sparse_attention.{kernel}", bucket)


def _family(query: Tensor, value: Tensor) -> str:
    """Return the family of configurations for the size of the numbers and the width of the rows."""
    return _FAMILY[query.dtype] + ("_wide" if max(query.shape[-1], value.shape[-1]) > 64 else "")


def _block(size: int) -> int:
    """Return the tile that covers a size; matrix products need at least 16."""
    return max(16, int(triton.next_power_of_2(size)))


def _precision(query: Tensor) -> str:
    """Return the precision of matrix products, which half types ignore."""
    return "tf32" if query.dtype == torch.float32 and tf32_is_allowed() else "ieee"


def _dropout(dropout_p: float, seed: Tensor | None) -> tuple[int, float, Tensor | None]:
    """Return the threshold of a word minus 2**31, to fit an int32, the factor of kept weights, and the seed or None."""
    if dropout_p == 0.0:
        return 0, 1.0, None
    if seed is None:
        raise ValueError(f"dropout_p={dropout_p} needs a seed, got None")
    return keep_threshold(dropout_p) - 2**31, 1.0 / (1.0 - dropout_p), seed.contiguous()


def _four(tensor: Tensor) -> Tensor:
    """Return the tensor as (B, H, L, D) with adjacent columns, as a view where its strides allow it, else as a copy."""
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        tensor = tensor.contiguous()
    if tensor.dim() == 4:
        return tensor
    if tensor.dim() == 3:
        return tensor[:, None]
    return tensor[None, None] if tensor.dim() == 2 else tensor.flatten(0, -4)


def _returned(result: Tensor, written: Tensor) -> Tensor:
    """Return the result, filled from its copy if the kernels could not write it in place."""
    return result if result.data_ptr() == written.data_ptr() else result.copy_(written.view(result.shape))


def _device(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's device the current one, on which Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


__all__ = ["attend", "attend_backward", "select"]
