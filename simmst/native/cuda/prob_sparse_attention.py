"""ProbSparse attention on the CUDA kernels of ``simmst._cuda``. The functions allocate results and workspaces.

The compiled module checks sizes and strides once, in a plan that is cached for them; a call then only passes addresses.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from simmst.core.prob_sparse_attention import DEFAULTS, FILLS, Options, divisor, empty_out, resolve_fill
from simmst.native.cuda.launch import PLANS, Layout, Plan, address, layout, module, number_of, run, stream_of, told

_cuda = module()
_FILLS = {fill: code for code, fill in enumerate(FILLS)}
_MOST_BATCH_DIMS = 4  # limit of the compiled module


def select(query: Tensor, key: Tensor, sample: Tensor, u: int, normalizer: str = "keys") -> tuple[Tensor, Tensor]:
    """Select the u queries with the largest measure; see the reference's ``select``.

    Indices in sample that are out of range are clamped, because checking them here would wait for the device.

    Example:
        >>> query = torch.randn(2, 100, 64, device="cuda")  # doctest: +SKIP
        >>> top, measure = select(query, query, torch.arange(20, device="cuda"), u=25)  # doctest: +SKIP
    """
    top = query.new_empty((*query.shape[:-2], u), dtype=torch.int64)
    measure = query.new_empty(query.shape[:-1], dtype=torch.float32)
    count = divisor(key, sample, normalizer)
    query, key, sample = _matrices(query), _matrices(key), sample.contiguous()
    plan = _select_plan(layout(query), layout(key), layout(sample), count, u)
    run(plan, query, *map(address, (query, key, sample, top, measure)))
    return top, measure


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    top: Tensor,
    seed: Tensor | None = None,
    options: Options = DEFAULTS,
) -> tuple[Tensor, Tensor]:
    """Attend in the rows top, and fill all others; see the reference's ``attend``.

    Indices in top that are out of range are clamped.

    Example:
        >>> x, top = torch.randn(2, 100, 64, device="cuda"), torch.zeros(2, 1, device="cuda")  # doctest: +SKIP
        >>> out, lse = attend(x, x, x, top.long())  # doctest: +SKIP
    """
    out, lse = empty_out(query, value), query.new_empty(top.shape, dtype=torch.float32)
    rows = _matrices(out)
    query, key, value, top = _matrices(query), _matrices(key), _matrices(value), top.contiguous()
    seed = _checked(seed, options.dropout_p)
    layouts = (layout(query), layout(key), layout(value), layout(top), layout(rows))
    run(_attend_plan(layouts, options), query, *map(address, (query, key, value, top, seed, rows, lse)))
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
    """Do the work of ``select`` and ``attend``, in one launch if the sequence is short enough.

    Returns:
        out and lse as from ``attend``, top and measure as from ``select``.

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
    layouts = (layout(query), layout(key), layout(value), layout(sample), layout(rows))
    plan = _forward_plan(layouts, count, u, options)
    run(plan, query, *map(address, (query, key, value, sample, seed, rows, lse, top, measure)))
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
    """Return the gradients of query, key and value; see the reference's ``attend_backward``.

    Example:
        >>> x, top = torch.randn(2, 100, 64, device="cuda"), torch.zeros(2, 1, device="cuda").long()  # doctest: +SKIP
        >>> out, lse = attend(x, x, x, top)  # doctest: +SKIP
        >>> gradients = attend_backward(torch.ones_like(out), x, x, x, top, out, lse)  # doctest: +SKIP
    """
    gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    rows = [_matrices(gradient) for gradient in gradients]
    grad_out, query, key, value, out = (_matrices(x) for x in (grad_out, query, key, value, out))
    top, lse, seed = top.contiguous(), lse.contiguous(), _checked(seed, options.dropout_p)
    tensors = (grad_out, query, key, value, top, out, lse, *rows)
    plan = _backward_plan(tuple(map(layout, tensors)), options)
    run(plan, query, *map(address, (query, key, value, out, grad_out, *rows, top, lse, seed)))
    results = [_returned(gradient, row) for gradient, row in zip(gradients, rows, strict=True)]
    return results[0], results[1], results[2]


def _checked(seed: Tensor | None, dropout_p: float) -> Tensor | None:
    if dropout_p > 0.0 and seed is None:
        raise ValueError(f"dropout_p={dropout_p} needs a seed, got None")
    return None if seed is None else seed.contiguous()


def _told(query: Layout, options: Options) -> tuple[bool, float, int, float]:
    fill = _FILLS[resolve_fill(options.fill, options.is_causal)]
    scale = 1.0 / math.sqrt(query[1][-1]) if options.scale is None else float(options.scale)
    return options.is_causal, scale, fill, options.dropout_p


@functools.lru_cache(PLANS)
def _select_plan(query: Layout, key: Layout, sample: Layout, count: int, u: int) -> Plan:
    return _cuda.prob_sparse_select(told(query), told(key), told(sample), count, u, number_of(query[3]))


@functools.lru_cache(PLANS)
def _attend_plan(layouts: tuple[Layout, ...], options: Options) -> Plan:
    query, _, _, top, _ = layouts
    u = top[1][-1]
    return _cuda.prob_sparse_attend(*map(told, layouts), _told(query, options), u, number_of(query[3]))


@functools.lru_cache(PLANS)
def _forward_plan(layouts: tuple[Layout, ...], count: int, u: int, options: Options) -> Plan:
    query = layouts[0]
    return _cuda.prob_sparse_forward(*map(told, layouts), count, _told(query, options), u, number_of(query[3]))


@functools.lru_cache(PLANS)
def _backward_plan(layouts: tuple[Layout, ...], options: Options) -> Plan:
    query, u = layouts[1], layouts[4][1][-1]
    tensors = [told(each) for each in layouts]
    return _cuda.prob_sparse_attend_backward(tensors, _told(query, options), u, number_of(query[3]))


class Prepared:
    """Forward and backward passes of one layout, with as few allocations as possible and no further checks.

    Everything that no caller sees shares one block of memory beside the output, in this order: top, lse, measure,
    workspace. If gradients are wanted, top and lse have their own block, which the backward pass needs.

    Example:
        >>> x, sample = torch.randn(2, 96, 64, device="cuda"), torch.arange(20, device="cuda")  # doctest: +SKIP
        >>> prepared = Prepared.of(x, x, x, sample, 25, "keys", DEFAULTS)  # doctest: +SKIP
        >>> out = prepared.infer(x, x, x, sample, None)  # doctest: +SKIP
    """

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, sample: Tensor, u: int, normalizer: str, options: Options
    ) -> None:
        out = empty_out(query, value)
        count = divisor(key, sample, normalizer)
        layouts = (layout(query), layout(key), layout(value), layout(sample), layout(out))
        self.options = options
        self._plan = _forward_plan(layouts, count, u, options)
        self._entries, self._u = math.prod(query.shape[:-2]), u
        self._shape = None if value.shape[-1] == query.shape[-1] else out.shape
        self._top = (*query.shape[:-2], u)
        selected, item = self._entries * u, query.element_size()
        self._lse = 8 * selected
        self._measure = _rounded(self._lse + 4 * selected)
        self._workspace = _rounded(self._measure + 4 * self._entries * query.shape[-2])
        # Sizes in entries of query, because query.new_empty is the fastest way to allocate.
        self._all = (self._workspace + self._plan.workspace + item - 1) // item
        self._kept = self._measure // item
        self._passing = self._all - self._kept
        self._backward: dict[Layout, tuple[Plan, int]] = {}

    @classmethod
    def of(
        cls, query: Tensor, key: Tensor, value: Tensor, sample: Tensor, u: int, normalizer: str, options: Options
    ) -> Prepared | None:
        """Prepare for calls like this one; return None if a tensor must be copied first."""
        given = query, key, value
        results = empty_out(query, value), *map(torch.empty_like, given)
        if not sample.is_contiguous() or any(_matrices(each) is not each for each in (*given, *results)):
            return None
        return cls(query, key, value, sample, u, normalizer, options)

    def infer(self, query: Tensor, key: Tensor, value: Tensor, sample: Tensor, seed: Tensor | None) -> Tensor:
        """Return only the output."""
        memory = query.new_empty(self._all)
        at = memory.data_ptr()
        return self._run(query, key, value, sample, seed, at, at + self._measure)

    def keep(
        self, query: Tensor, key: Tensor, value: Tensor, sample: Tensor, seed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the output, and the memory of top and lse that :meth:`backward` needs."""
        kept, passing = query.new_empty(self._kept), query.new_empty(self._passing)
        return self._run(query, key, value, sample, seed, kept.data_ptr(), passing.data_ptr()), kept

    def _run(
        self, query: Tensor, key: Tensor, value: Tensor, sample: Tensor, seed: Tensor | None, kept: int, passing: int
    ) -> Tensor:
        out = torch.empty_like(query) if self._shape is None else query.new_empty(self._shape)
        self._plan(
            query.data_ptr(),
            key.data_ptr(),
            value.data_ptr(),
            sample.data_ptr(),
            address(seed),
            out.data_ptr(),
            kept + self._lse,
            kept,
            passing,
            passing + self._workspace - self._measure,
            stream_of(query),
        )
        return out

    def backward(
        self,
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        kept: Tensor,
        seed: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of query, key and value."""
        grad_out = _matrices(grad_out)
        gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        given = layout(grad_out)
        plan, size = self._backward.get(given) or self._planned(given, query, key, value, out, gradients)
        workspace = query.new_empty(size) if size else None
        at = kept.data_ptr()
        plan(
            query.data_ptr(),
            key.data_ptr(),
            value.data_ptr(),
            out.data_ptr(),
            grad_out.data_ptr(),
            gradients[0].data_ptr(),
            gradients[1].data_ptr(),
            gradients[2].data_ptr(),
            at,
            at + self._lse,
            address(seed),
            address(workspace),
            stream_of(query),
        )
        return gradients

    def selection(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Return top and lse in the form that :func:`attend_backward` takes."""
        selected = self._entries * self._u
        memory = kept.view(torch.uint8)
        top = memory[: 8 * selected].view(torch.int64).view(self._top)
        return top, memory[self._lse : self._lse + 4 * selected].view(torch.float32).view(self._top)

    def _planned(
        self, given: Layout, query: Tensor, key: Tensor, value: Tensor, out: Tensor, gradients: tuple[Tensor, ...]
    ) -> tuple[Plan, int]:
        top = query.new_empty(self._top, dtype=torch.int64)
        lse = query.new_empty(self._top, dtype=torch.float32)
        layouts = tuple(map(layout, (query, key, value, top, out, lse, *gradients)))
        plan = _backward_plan((given, *layouts), self.options)
        self._backward[given] = plan, -(-plan.workspace // query.element_size())
        return self._backward[given]


def _rounded(size: int) -> int:
    return -(-size // 16) * 16


def _matrices(tensor: Tensor) -> Tensor:
    """Return a view, or else a copy, with a contiguous last dimension and at most `_MOST_BATCH_DIMS` leading ones."""
    if tensor.dim() > _MOST_BATCH_DIMS + 2:
        tensor = tensor.flatten(0, tensor.dim() - _MOST_BATCH_DIMS - 2)
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _returned(result: Tensor, rows: Tensor) -> Tensor:
    """Return the result, after copying to it what the kernel wrote elsewhere."""
    if rows.data_ptr() == result.data_ptr():
        return result
    return result.copy_(rows.view(result.shape))


__all__ = ["Prepared", "attend", "attend_backward", "forward", "select"]
