"""ProbSparse attention by the CUDA kernels of ``simmst._cuda``: allocates results and workspaces, hands over addresses.

Not run on a GPU yet; the tests run the same kernels in the emulator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simmst.core.prob_sparse_attention import DEFAULTS, FILLS, Options, divisor, empty_out, resolve_fill, resolve_scale
from simmst.native.cuda.launch import Array, array, array_or_none, module, on

_cuda = module()
_FILLS = {fill: code for code, fill in enumerate(FILLS)}
_MOST_BATCH_DIMS = 4  # of the compiled module


def select(query: Tensor, key: Tensor, sample: Tensor, u: int, normalizer: str = "keys") -> tuple[Tensor, Tensor]:
    """Select the u queries with the largest measure; see the reference's ``select``.

    Indices in sample that are out of range are clamped: reading them here would wait for the device.

    Example:
        >>> query = torch.randn(2, 100, 64, device="cuda")  # doctest: +SKIP
        >>> top, measure = select(query, query, torch.arange(20, device="cuda"), u=25)  # doctest: +SKIP
    """
    top = query.new_empty((*query.shape[:-2], u), dtype=torch.int64)
    measure = query.new_empty(query.shape[:-1], dtype=torch.float32)
    count = divisor(key, sample, normalizer)
    query, key, sample = _matrices(query), _matrices(key), sample.contiguous()
    _cuda.prob_sparse_select(
        array(query),
        array(key),
        array(sample),
        count,
        array(top),
        array(measure),
        *_machine(query),
    )
    return top, measure


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    top: Tensor,
    seed: Tensor | None = None,
    options: Options = DEFAULTS,
) -> tuple[Tensor, Tensor]:
    """Attention in the rows top, the fill in all others; see the reference's ``attend``.

    Indices in top that are out of range are clamped.

    Example:
        >>> x, top = torch.randn(2, 100, 64, device="cuda"), torch.zeros(2, 1, device="cuda")  # doctest: +SKIP
        >>> out, lse = attend(x, x, x, top.long())  # doctest: +SKIP
    """
    out, lse = empty_out(query, value), query.new_empty(top.shape, dtype=torch.float32)
    rows = _matrices(out)
    query, key, value, top = _matrices(query), _matrices(key), _matrices(value), top.contiguous()
    seed = _checked(seed, options.dropout_p)
    _cuda.prob_sparse_attend(
        array(query),
        array(key),
        array(value),
        array(top),
        array_or_none(seed),
        *_told(query, options),
        array(rows),
        array(lse),
        *_machine(query),
    )
    return _returned(out, rows), lse


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sample: Tensor,
    seed: Tensor | None,
    u: int,
    normalizer: str = "keys",
    options: Options = DEFAULTS,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``select`` and ``attend``, in one launch where a sequence is short enough.

    Returns:
        out and lse as of ``attend``, top and measure as of ``select``.

    Example:
        >>> x, sample = torch.randn(2, 96, 64, device="cuda"), torch.arange(20, device="cuda")  # doctest: +SKIP
        >>> out, lse, top, measure = forward(x, x, x, sample, None, 25)  # doctest: +SKIP
    """
    out, top = empty_out(query, value), query.new_empty((*query.shape[:-2], u), dtype=torch.int64)
    lse, measure = (query.new_empty(shape, dtype=torch.float32) for shape in (top.shape, query.shape[:-1]))
    count = divisor(key, sample, normalizer)
    rows = _matrices(out)
    query, key, value, sample = _matrices(query), _matrices(key), _matrices(value), sample.contiguous()
    seed = _checked(seed, options.dropout_p)
    _cuda.prob_sparse_forward(
        array(query),
        array(key),
        array(value),
        array(sample),
        count,
        array_or_none(seed),
        *_told(query, options),
        array(rows),
        array(lse),
        array(top),
        array(measure),
        *_machine(query),
    )
    return _returned(out, rows), lse, top, measure


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
    """Gradients of query, key and value; see the reference's ``attend_backward``.

    Example:
        >>> x, top = torch.randn(2, 100, 64, device="cuda"), torch.zeros(2, 1, device="cuda").long()  # doctest: +SKIP
        >>> out, lse = attend(x, x, x, top)  # doctest: +SKIP
        >>> gradients = attend_backward(torch.ones_like(out), x, x, x, top, out, lse)  # doctest: +SKIP
    """
    gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    rows = [_matrices(gradient) for gradient in gradients]
    grad_out, query, key, value, out = (_matrices(x) for x in (grad_out, query, key, value, out))
    top, lse, seed = top.contiguous(), lse.contiguous(), _checked(seed, options.dropout_p)
    _cuda.prob_sparse_attend_backward(
        array(grad_out),
        array(query),
        array(key),
        array(value),
        array(top),
        array(out),
        array(lse),
        array_or_none(seed),
        *_told(query, options),
        *[array(row) for row in rows],
        *_machine(query),
    )
    results = [_returned(gradient, row) for gradient, row in zip(gradients, rows, strict=True)]
    return results[0], results[1], results[2]


def _checked(seed: Tensor | None, dropout_p: float) -> Tensor | None:
    if dropout_p > 0.0 and seed is None:
        raise ValueError(f"dropout_p={dropout_p} needs a seed, got None")
    return None if seed is None else seed.contiguous()


def _told(query: Tensor, options: Options) -> tuple[bool, float, int, float]:
    fill = _FILLS[resolve_fill(options.fill, options.is_causal)]
    return options.is_causal, resolve_scale(options.scale, query), fill, options.dropout_p


def _machine(query: Tensor) -> tuple[_Workspace, int, int]:
    """How to allocate workspace, the device and its stream."""
    return _Workspace(query.device), *on(query)


class _Workspace:
    """Device memory of the size that a call asks for, held until its kernels have been launched.

    Whoever gets it next from torch's allocator runs after them, on the same stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, size: int) -> Array:
        self._memory = torch.empty(size, dtype=torch.uint8, device=self._device)
        return array(self._memory)


def _matrices(tensor: Tensor) -> Tensor:
    """The tensor with a contiguous last dimension and few leading ones: a view where that is possible, else a copy."""
    if tensor.dim() > _MOST_BATCH_DIMS + 2:
        tensor = tensor.flatten(0, tensor.dim() - _MOST_BATCH_DIMS - 2)
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _returned(result: Tensor, rows: Tensor) -> Tensor:
    """The result, once what the kernel wrote lies in it."""
    if rows.data_ptr() == result.data_ptr():
        return result
    return result.copy_(rows.view(result.shape))


__all__ = ["attend", "attend_backward", "forward", "select"]
