"""Attention in selected rows in plain PyTorch, for layers that return weights, take masks or use torch's dropout."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def attend_rows(
    query: Tensor, key: Tensor, top: Tensor, *, scale: float, mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Return the attention weights of the selected rows.

    Args:
        query: (B, H, L_Q, D).
        key: (B, H, L_K, D).
        top: int64 (B, H, u), the rows, in any order.
        scale: factor of the scores.
        mask: (B, 1 or H, L_Q, L_K), added to the scores.
        is_causal: whether row i sees only the keys j <= i.

    Returns:
        (B, H, u, L_K), each row summing to one, in the order of top.

    Example:
        >>> x = torch.zeros(1, 1, 4, 2)
        >>> attend_rows(x, x, torch.tensor([[[2]]]), scale=1.0, is_causal=True)[0, 0, 0, 1:].tolist()
        [0.3333333432674408, 0.3333333432674408, 0.0]
    """
    chosen = query.gather(2, top[..., None].expand(*top.shape, query.shape[-1]))
    scores = (chosen * scale if scale != 1.0 else chosen) @ key.mT
    if mask is not None:
        rows = mask.expand(*query.shape[:-1], key.shape[-2])
        scores = scores + rows.gather(2, top[..., None].expand(*top.shape, key.shape[-2]))
    if is_causal:
        scores = scores.masked_fill(torch.arange(key.shape[-2], device=top.device) > top[..., None], -torch.inf)
    return scores.softmax(-1)


def fill_and_place(rows: Tensor, top: Tensor, value: Tensor, queries: int, *, running: bool) -> Tensor:
    """Put the selected rows in their places and fill the others with the mean or the running sum of the values.

    Args:
        rows: (B, H, u, D).
        top: int64 (B, H, u).
        value: (B, H, L_K, D).
        queries: number of queries, L_Q; if it is less than L_K, the queries are the last positions.
        running: whether to fill with the running sum, taken in float32.

    Returns:
        (B, H, L_Q, D).
    """
    if running:
        rest = value.cumsum(-2, dtype=torch.promote_types(value.dtype, torch.float32)).to(value.dtype)[
            ..., -queries:, :
        ]
    else:
        rest = value.mean(-2, keepdim=True).expand(*value.shape[:-2], queries, value.shape[-1])
    return rest.scatter(2, top[..., None].expand(*top.shape, value.shape[-1]), rows.to(rest.dtype))


def dropped(weights: Tensor, probability: float, *, training: bool) -> Tensor:
    """Apply dropout to weights, drawn from torch's global generator."""
    return functional.dropout(weights, probability, training) if training and probability > 0.0 else weights


__all__ = ["attend_rows", "dropped", "fill_and_place"]
