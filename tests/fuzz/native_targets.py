"""Every entry point of simmst._cpu, called as the operators call it, and then again with one argument spoilt.

The spoilt argument is a size, a flag or a missing array. It never claims more memory than there is, because no binding
can notice that. The call must raise an exception, or compute without a report of the sanitizers.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import Any

import torch
from drawing import Draw

from simmst import ops

_cpu = importlib.import_module("simmst._cpu")
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_ENTRIES = tuple(
    name
    for name in dir(_cpu)
    if name.startswith(("prob_sparse_", "spatial_", "cutting_plane_", "feed_forward_", "day_attention_", "projection_"))
)
_REFUSALS = (ValueError, TypeError, IndexError, MemoryError, OverflowError)
# Calls whose first argument is the type of arrays that carry none: changing it would misstate their memory.
_UNTYPED = ("prob_sparse_", "spatial_")


def _prob_sparse(draw: Draw) -> None:
    dtype, batch, heads = draw.choice(_DTYPES), draw.below(3), 1 + draw.below(3)
    queries, keys, width, out = 1 + draw.below(70), 1 + draw.below(70), 1 + draw.below(40), 1 + draw.below(40)
    query, key = (draw.tensor(batch, heads, rows, width, dtype=dtype) for rows in (queries, keys))
    value = draw.tensor(batch, heads, keys, out, dtype=dtype)
    causal = draw.flag() and queries == keys
    for tensor in (query, key, value):
        tensor.requires_grad_(draw.flag())
    found = ops.prob_sparse_attention(query, key, value, factor=1 + draw.below(6), is_causal=causal, backend="cpu")
    _backward(found)


def _prob_sparse_parts(draw: Draw) -> None:
    rows, width = 1 + draw.below(40), 1 + draw.below(24)
    query, key, value = (draw.tensor(2, rows, width, dtype=torch.float32) for _ in range(3))
    sample = torch.randint(rows, (rows, 1 + draw.below(8)))
    top, _ = ops.prob_sparse_select(query, key, sample, u=draw.below(rows + 1), backend="cpu")
    query.requires_grad_(draw.flag())
    found, _ = ops.prob_sparse_attend(query, key, value, top, dropout_p=draw.below(9) / 10, backend="cpu")
    _backward(found)


def _spatial(draw: Draw) -> None:
    dtype, heads = draw.choice(_DTYPES), 1 + draw.below(4)
    channels = heads * (1 + draw.below(12))
    x = draw.tensor(draw.below(3), channels, 1 + draw.below(12), 1 + draw.below(12), dtype=dtype)
    in_weight, out_weight = (draw.tensor(n * channels, channels, dtype=dtype) for n in (3, 1))
    in_bias, out_bias = (draw.tensor(n * channels, dtype=dtype) if draw.flag() else None for n in (3, 1))
    norm = draw.tensor(channels, dtype=dtype) if draw.flag() else None
    for tensor in (x, in_weight, out_weight):
        tensor.requires_grad_(draw.flag())
    residual = draw.flag()
    options: dict[str, Any] = {"num_heads": heads, "residual": residual, "norm_weight": norm, "norm_bias": norm}
    _backward(ops.spatial_attention(x, in_weight, in_bias, out_weight, out_bias, **options, backend="cpu"))


def _cutting_plane(draw: Draw) -> None:
    dtype, batch = draw.choice(_DTYPES[:3]), (1 + draw.below(3),) if draw.flag() else ()
    planes, size = draw.below(9), 1 + draw.below(200)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    matrix: Any = draw.tensor(*batch, planes, size, dtype=dtype)
    offsets, multipliers = (draw.tensor(*batch, planes, dtype=wide) for _ in range(2))
    point, anchor, gradient = (draw.tensor(*batch, size, dtype=wide).contiguous() for _ in range(3))
    if draw.flag() and planes:
        matrix = ops.pack_signs(matrix)
    work = draw.below(4)
    point.requires_grad_(work < 3 and draw.flag())
    if work == 0:
        _backward(ops.cutting_plane_values(matrix, offsets, point, backend="cpu"))
    elif work == 1:
        _backward(ops.cutting_plane_penalty(matrix, offsets, multipliers, point, backend="cpu"))
    elif work == 2:
        _backward(ops.cutting_plane_lagrangian(matrix, offsets, multipliers, point, backend="cpu"))
    else:
        state = (torch.zeros_like(point), torch.zeros_like(point), torch.tensor(0.0)) if draw.flag() else None
        more: dict[str, Any] = {"lr": 0.1, "adam_state": state, "backend": "cpu"}
        ops.cutting_plane_step_(matrix, multipliers, gradient, point, anchor, offsets, **more)


def _feed_forward(draw: Draw) -> None:
    series, rows, width, hidden = 1 + draw.below(3), 1 + draw.below(40), 1 + draw.below(40), 1 + draw.below(60)
    x = draw.tensor(series, rows, width)
    first, last = draw.tensor(hidden, width), draw.tensor(width, hidden)
    norm = draw.tensor(width) if draw.flag() else None
    biases = [draw.tensor(count) if draw.flag() else None for count in (hidden, width)]
    for tensor in (x, first, last):
        tensor.requires_grad_(draw.flag())
    more: dict[str, Any] = {"norm_weight": norm, "norm_bias": norm, "norm_first": draw.flag(), "residual": draw.flag()}
    _backward(ops.feed_forward(x, first, biases[0], last, biases[1], **more, backend="cpu"))


def _projection(draw: Draw) -> None:
    series, rows, heads = 1 + draw.below(3), 1 + draw.below(40), 1 + draw.below(4)
    width = heads * (1 + draw.below(16))
    x = draw.tensor(series, rows, width).requires_grad_(draw.flag())
    weights = [draw.tensor(width, width) for _ in range(1 + draw.below(3))]
    biases = [draw.tensor(width) if draw.flag() else None for _ in weights]
    parts = ops.split_heads(x, weights, biases, heads, backend="cpu")
    _backward(ops.merge_heads(parts[0], weights[0], biases[0], residual=x if draw.flag() else None, backend="cpu"))


def _day_attention(draw: Draw) -> None:
    series, slots, days, heads, width = (1 + draw.below(most) for most in (3, 30, 30, 4, 24))
    sizes = {
        **{"query": (series, slots, heads, width), "key": (series, days, heads, width), "bias": (heads, days)},
        **{"alike": (series, days, slots, 2), "alike_weight": (heads, 2), "apart": (series, days)},
        "values": (series, days, slots),
    }
    given = {name: draw.tensor(*size) for name, size in sizes.items()}
    for name in ("query", "key", "bias", "alike_weight"):
        given[name].requires_grad_(draw.flag())
    known = draw.tensor(series, days, slots) > -0.5
    _backward(ops.day_attention(**given, known=known, backend="cpu"))


TARGETS: dict[str, Callable[[Draw], None]] = {
    "prob-sparse": _prob_sparse,
    "prob-sparse-parts": _prob_sparse_parts,
    "spatial": _spatial,
    "cutting-plane": _cutting_plane,
    "feed-forward": _feed_forward,
    "projection": _projection,
    "day-attention": _day_attention,
}


def run(name: str, data: bytes) -> None:
    """Call an operator with drawn arguments, and spoil some of the calls that reach the compiled module."""
    draw = Draw(data)
    spoilt = draw.below(4)  # 0: none
    kept = {entry: getattr(_cpu, entry) for entry in _ENTRIES}
    try:
        for entry, function in kept.items():
            setattr(_cpu, entry, _spoiling(entry, function, draw, spoilt))
        TARGETS[name](draw)
    except _REFUSALS:
        pass
    finally:
        for entry, function in kept.items():
            setattr(_cpu, entry, function)


def _spoiling(entry: str, function: Callable[..., None], draw: Draw, spoilt: int) -> Callable[..., None]:
    def call(*arguments: Any, **named: Any) -> None:
        function(*arguments, **named)
        for _ in range(spoilt):
            changed = list(arguments)
            place = draw.below(len(changed)) if changed else 0
            if not changed or (place == 0 and entry.startswith(_UNTYPED)):
                continue
            changed[place] = _spoil(changed[place], draw)
            with contextlib.suppress(*_REFUSALS):
                function(*changed, **named)

    return call


def _spoil(value: Any, draw: Draw) -> Any:
    """Return a replacement for an argument; an argument with an address keeps the memory behind it."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int) and value < 1 << 20:  # addresses are kept
        return draw.choice((0, -1, value + 1, max(value - 1, 0), 1 << 62))
    if isinstance(value, float):
        return draw.choice((0.0, -1.0, float("nan"), float("inf"), 1e308))
    if isinstance(value, list):
        return draw.choice((value[:-1], value[:1], [*value, None], [None] * len(value), value[::-1]))
    return draw.choice((None, (), value))


def _backward(found: torch.Tensor) -> None:
    if found.requires_grad:
        found.float().sum().backward()
