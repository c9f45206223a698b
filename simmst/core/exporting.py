"""Operations for exported programs, built from operators that ONNX has."""

from __future__ import annotations

import torch
from torch import Tensor

# Tells whether torch.export is tracing, for a torch or an ONNX program. Always False before torch 2.7.
is_exporting = getattr(torch.compiler, "is_exporting", bool)


def largest(measure: Tensor, count: int) -> Tensor:
    """Return the indices of the largest entries, ascending, with ties to the lower index.

    It uses topk, because ONNX lacks a stable sort.

    Args:
        measure: (..., L) floating point; NaN counts as infinity.
        count: number of entries, from 1 to L.

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
    """Return the lower median of the known values along a dimension, or zero if none is known.

    It avoids nanmedian, which ONNX lacks.

    Args:
        values: floating point.
        known: bool, of the shape of values.
        dim: dimension to reduce.

    Example:
        >>> lower_median(torch.tensor([4.0, 1.0, 9.0]), torch.tensor([True, True, False]), 0)
        tensor(1.)
    """
    count = known.sum(dim, keepdim=True)
    ascending = torch.where(known, values, torch.inf).sort(dim=dim).values
    median = ascending.gather(dim, (count - 1).clamp(min=0) // 2)
    return torch.where(count > 0, median, 0.0).squeeze(dim)


__all__ = ["is_exporting", "largest", "lower_median"]
