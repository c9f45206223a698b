"""The public function of day attention, which checks its arguments and chooses a backend."""

from __future__ import annotations

import torch
from torch import Tensor

from simmst.ops.backends import choose
from simmst.ops.checks import check_float_tensors, describe
from simmst.ops.day_attention.library import PATH, forward, in_plain_torch
from simmst.ops.dispatch import is_any_autocast, wants_gradient


def day_attention(
    query: Tensor,
    key: Tensor,
    bias: Tensor,
    alike: Tensor,
    alike_weight: Tensor,
    known: Tensor,
    values: Tensor,
    apart: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Attend from each slot to the same slot on the days before, as the memory in `simmst.models` does.

    The weight of day l for slot t is the softmax, over the days on which the slot is known, of

    .. math:: q_t \cdot k_l / \sqrt{E} + b_l + w_1 m_{lt1} + w_2 m_{lt2}

    and zero on the other days. If the slot is known on no day, all weights are zero. Every head returns the weighted
    mean of the days' values and the weighted mean of the days' offsets.

    The C++ kernels of backend "cpu" take float32. Plain PyTorch runs every call that a backend has no kernel for
    (another dtype or device, ``torch.func``, autocast, gradients of alike, values or apart).

    Args:
        query: (N, T, heads, E); float32, bfloat16, float16 or float64.
        key: (N, L, heads, E). All tensors except known have the dtype and device of query.
        bias: (heads, L), b of each day.
        alike: (N, L, T, 2), the two similarities m between a day and the day of a slot.
        alike_weight: (heads, 2), their weights w.
        known: bool (N, L, T), whether a day's value is known.
        values: (N, L, T), finite also where they are not known.
        apart: (N, L), offset of today from each day.
        backend: None to choose, or one of "reference", "cpu", "triton", "cuda".

    Returns:
        (N, T, 2 heads): the mean values of all heads, then their mean offsets.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes or devices do not fit.

    Example:
        >>> query, key, known = torch.ones(1, 2, 1, 4), torch.ones(1, 3, 1, 4), torch.ones(1, 3, 2, dtype=torch.bool)
        >>> weights = torch.zeros(1, 3), torch.zeros(1, 3, 2, 2), torch.zeros(1, 2)
        >>> values = torch.tensor([1.0, 2.0, 6.0]).expand(2, 3).mT[None]
        >>> day_attention(query, key, *weights, known, values, torch.zeros(1, 3))[0, 0, 0].item()
        3.0
    """
    floats = {
        "query": query,
        "key": key,
        "bias": bias,
        "alike": alike,
        "alike_weight": alike_weight,
        "values": values,
        "apart": apart,
    }
    tensors = isinstance(query, Tensor)
    cast = is_any_autocast() and tensors and not query.is_meta and torch.is_autocast_enabled(query.device.type)
    if not cast:
        check_float_tensors(**floats)
    _check_shapes(floats, known)
    operands = query, key, bias, alike, alike_weight, known, values, apart
    sizes = query.shape[0], query.shape[1], key.shape[1]
    if cast or wants_gradient(alike, values, apart) or (0 in sizes):
        return in_plain_torch(*operands)
    out: Tensor = forward(*operands, choose(PATH, backend, device=query.device, dtype=query.dtype))
    return out


def _check_shapes(floats: dict[str, Tensor], known: Tensor) -> None:
    query, key = floats["query"], floats["key"]
    if not isinstance(known, Tensor) or known.dtype != torch.bool:
        got = describe(known) if isinstance(known, Tensor) else type(known).__name__
        raise TypeError(f"known must be a bool tensor, got {got}")
    if query.dim() != 4 or key.dim() != 4 or 0 in query.shape[2:]:
        raise ValueError(
            f"query must be (N, T, heads, E) and key (N, L, heads, E), got {describe(query)} and {describe(key)}"
        )
    series, slots, heads, width = query.shape
    days = key.shape[1]
    wanted = {
        "key": (series, days, heads, width),
        "bias": (heads, days),
        "alike": (series, days, slots, 2),
        "alike_weight": (heads, 2),
        "known": (series, days, slots),
        "values": (series, days, slots),
        "apart": (series, days),
    }
    for name, shape in wanted.items():
        tensor = floats.get(name, known)
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape} for query {describe(query)}, got {describe(tensor)}")
    if known.device != query.device:
        raise ValueError(f"known must be on the device of query, {query.device}, got {describe(known)}")
