"""What a program that leaves torch needs: operations that ONNX has."""

from __future__ import annotations

import torch
from torch import Tensor

# Whether torch.export is tracing, for a program of torch or of ONNX; before torch 2.7 nothing tells.
is_exporting = getattr(torch.compiler, "is_exporting", bool)


def largest(measure: Tensor, count: int) -> Tensor:
    """Indices of the largest entries, ascending, ties to the lower index: a stable sort, which ONNX lacks, by topk.

    Args:
        measure: (..., L) floating point; NaN counts as infinity.
        count: how many, from 1 to L.

    Returns:
        int64 (..., count).

    Example:
        >>> largest(torch.tensor([1.0, 3.0, 2.0, 2.0]), 2)
        tensor([1, 2])
    """
    length = measure.shape[-1]
    measure = torch.where(measure.isnan(), torch.inf, measure)
    least = measure.topk(count, dim=-1).values[..., -1:]
    above, level = measure > least, measure == least
    missing = count - above.sum(-1, keepdim=True)
    chosen = above | (level & (level.cumsum(-1) <= missing))
    place = torch.arange(length, device=measure.device)
    return torch.where(chosen, length - place, 0).topk(count, dim=-1).indices


def lower_median(values: Tensor, known: Tensor, dim: int) -> Tensor:
    """Lower median of what is known along a dimension, zero where nothing is, without nanmedian, which ONNX lacks.

    Args:
        values: floating point.
        known: bool, of the shape of values.
        dim: the dimension that goes.

    Example:
        >>> lower_median(torch.tensor([4.0, 1.0, 9.0]), torch.tensor([True, True, False]), 0)
        tensor(1.)
    """
    count = known.sum(dim, keepdim=True)
    ascending = torch.where(known, values, torch.inf).sort(dim=dim).values
    median = ascending.gather(dim, (count - 1).clamp(min=0) // 2)
    return torch.where(count > 0, median, 0.0).squeeze(dim)


__all__ = ["is_exporting", "largest", "lower_median"]
