"""The scaled inputs that a model computes from a window and its memory: series relative to their level, and bounded."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from simmst.foundation.memory import Memory

# Bound of the deviations from a level. On the log scale it is a factor of 150, so an outage or a burst shows, but does
# not dominate.
BOUND = 5.0
SMALLEST_SPREAD = 0.05


class Context(NamedTuple):
    """A batch of N = B * K series, relative to their levels; zero where missing, bounded by `BOUND`.

    Attributes:
        series: (N, T_in), the target cell.
        observed: (N, T_in), one where observed.
        unusual: (N, T_in), difference from the mean of the days before; zero where that is unknown.
        patch: (N, S, H, W), the latest S input slots of the neighbourhood.
        patch_observed: (N, S, H, W), one where observed and inside the city.
        patch_unusual: (N, S, H, W), like `unusual`.
        city: (N, T_in), difference of the whole city from usual.
        past: (N, L, T_in), the input slots on the days before.
        past_known: (N, L, T_in) bool.
        days: (N, L, T_out), the slots to forecast on the days before.
        days_known: (N, L, T_out) bool.
        same_day: (N, L, T_out, 2), as in `Memory`.
        level: (N,), the level of each series, on the scale of the values.
        features: (N, F), log spread, log days of context, log slots per day.
    """

    series: Tensor
    observed: Tensor
    unusual: Tensor
    patch: Tensor
    patch_observed: Tensor
    patch_unusual: Tensor
    city: Tensor
    past: Tensor
    past_known: Tensor
    days: Tensor
    days_known: Tensor
    same_day: Tensor
    level: Tensor
    features: Tensor


NUM_FEATURES = 3


def no_memory(values: Tensor, mask: Tensor, days: int, horizon: int) -> Memory:
    """Return a memory for windows that have none; it holds only each window's own level and spread.

    Args:
        values: (B, T_in, K, H, W), NaN = missing.
        mask: (B, H, W) bool.
        days: L.
        horizon: T_out.
    """
    batch, steps, tasks, height, width = values.shape
    seen = ~torch.isnan(values) & mask[:, None, None]
    count = seen.sum(1).clamp(min=1)
    level = torch.where(seen, values, 0.0).sum(1) / count
    variance = torch.where(seen, values - level[:, None], 0.0).square().sum(1) / count
    unknown = values.new_full((), torch.nan)
    return Memory(
        days=unknown.expand(batch, days, steps + horizon, tasks),
        same_day=values.new_zeros(batch, days, horizon, 2),
        usual=unknown.expand(batch, steps, tasks, height, width),
        city=unknown.expand(batch, steps, tasks),
        level=level,
        spread=(variance + SMALLEST_SPREAD**2).sqrt(),
        context=values.new_ones(batch),
        steps_per_day=values.new_full((batch,), 24.0),
    )


def relate(values: Tensor, mask: Tensor, memory: Memory, patch_steps: int | None = None) -> Context:
    """Put windows and their memory on the scale of each series.

    Args:
        values: (B, T_in, K, H, W), NaN = missing.
        mask: (B, H, W) bool, False outside the city.
        memory: memory of the same windows.
        patch_steps: number of latest slots of the patch, S; None for all.
    """
    steps, centre = values.shape[1], values.shape[-1] // 2
    latest = 0 if patch_steps is None else steps - patch_steps
    dtype = values.dtype
    tasks = memory.level.shape[1]
    inside = mask.repeat_interleave(tasks, dim=0)  # (N, H, W)
    cell_level = torch.nan_to_num(memory.level.to(dtype).flatten(0, 1))  # (N, H, W)
    level = cell_level[:, centre, centre]
    spread = torch.nan_to_num(memory.spread.to(dtype).flatten(0, 1)[:, centre, centre])

    series, observed, unusual = _relate_cells(
        _by_series(values[..., centre, centre]),
        _by_series(memory.usual[..., centre, centre].to(dtype)),
        level,
        inside[:, centre, centre],
    )
    patch, patch_observed, patch_unusual = _relate_cells(
        _by_series(values[:, latest:]), _by_series(memory.usual[:, latest:].to(dtype)), cell_level, inside
    )
    city = memory.city.to(dtype).transpose(1, 2).flatten(0, 1)
    days = memory.days.to(dtype).permute(0, 3, 1, 2).flatten(0, 1) - level[:, None, None]  # (N, L, T_in + T_out)
    known = ~torch.isnan(days)
    days = bounded(days, known)
    context = memory.context.to(dtype).clamp(min=0.25).log()
    per_day = (memory.steps_per_day.to(dtype) / 24).log()
    features = torch.stack(
        (
            spread.clamp(min=SMALLEST_SPREAD).log(),
            context.repeat_interleave(tasks) / 3,
            per_day.repeat_interleave(tasks) / 3,
        ),
        dim=-1,
    )
    return Context(
        series=series,
        observed=observed,
        unusual=unusual,
        patch=patch,
        patch_observed=patch_observed,
        patch_unusual=patch_unusual,
        city=bounded(city, ~torch.isnan(city)),
        past=days[..., :steps],
        past_known=known[..., :steps],
        days=days[..., steps:],
        days_known=known[..., steps:],
        same_day=memory.same_day.to(dtype).repeat_interleave(tasks, dim=0),
        level=level,
        features=features,
    )


def _by_series(values: Tensor) -> Tensor:
    """Reshape (B, T, K, ...) to (B * K, T, ...)."""
    return values.transpose(1, 2).flatten(0, 1)


def _relate_cells(values: Tensor, usual: Tensor, level: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return values relative to the level, whether they are observed, and values relative to usual, (N, T, ...)."""
    seen = ~torch.isnan(values) & inside[:, None]
    difference = values - usual
    unusual = bounded(difference, ~torch.isnan(difference) & inside[:, None])
    return bounded(values - level[:, None], seen), seen.to(values.dtype), unusual


def bounded(values: Tensor, known: Tensor) -> Tensor:
    """Return values within `BOUND` of zero, and zero where they are not known."""
    return torch.where(known, values, 0.0).clamp_(-BOUND, BOUND)


def masked_mean(values: Tensor, known: Tensor, dim: int) -> Tensor:
    """Return the mean of the known values, or zero if none is known; unknown values must be zero.

    Example:
        >>> masked_mean(torch.tensor([[2.0, 0.0]]), torch.tensor([[True, False]]), 1).tolist()
        [2.0]
    """
    return values.sum(dim) / known.sum(dim).clamp(min=1)
