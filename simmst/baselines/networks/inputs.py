"""The inputs of every network: one place where values are centred and where the memory joins the tokens."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from simmst.baselines.networks.config import NetworkConfig
from simmst.foundation.memory import Memory

BOUND = 5.0  # a factor of 150 on the log scale: an outage or burst still shows, but has no larger effect
MIDDLE = math.log1p(100.0)  # the mean activity on the relative scale, whose unit is a hundredth of that mean
_RECALL = 8  # features, shared by a window's tokens, of the memory of all slots to forecast
_TOKEN = 7  # features of a token with a memory: value, observed, usual, unusual, yesterday, last week, same kind of day
_CONTEXT = 3  # level, spread and length of the context


class View(NamedTuple):
    """A window as the networks get it; zero where missing, unknown or outside the city.

    Attributes:
        past: (B, T_in, K, N, F), each input slot of each service and cell; the target cell is number N // 2.
        future: (B, T_out, K, F), each slot to forecast of the target cell: zeros without a memory.
        past_marks: (B, T_in, M), calendar features of the input slots.
        future_marks: (B, T_out, M), calendar features of the slots to forecast.
        inside: (B, N) bool, whether a cell is in the city.
        base: (B, T_out, K), base that the network's forecast is a difference from.
        days: (B, L, T_out, K), the slots to forecast on each of the previous days, relative to the level.
    """

    past: Tensor
    future: Tensor
    past_marks: Tensor
    future_marks: Tensor
    inside: Tensor
    base: Tensor
    days: Tensor

    @property
    def values(self) -> Tensor:
        """The values without the other features, (B, T_in, K, N)."""
        return self.past[..., 0]


class NetworkInput(nn.Module):
    """Centre a window and, with `memory`, concatenate the memory to the tokens.

    Without a memory a token is the value only, relative to the mean of the window (or to a fixed number) of its cell
    and service. So F = 1, as in the networks' sources, and the forecast is a difference from that mean.

    With a memory the networks get what Sim-MSTNet gets, and values are relative to the level of the whole context. A
    token of the past holds the value, whether it was observed, the usual value of its slot, and the difference of the
    two. A token of a slot to forecast holds the usual value of the slot, and how far yesterday, last week and days of
    the same kind differed from it; without a memory it is zero. All tokens share a linear embedding of the memory of
    all slots to forecast, with level, spread and length of the context, so that a network without a decoder has it too.
    The forecast is a difference from the mean of the same slot on previous days.

    Args:
        config: settings of the network.

    Attributes:
        num_features: number of features of a token, F.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.num_features = 1
        if config.memory:
            self.num_features = _TOKEN + _RECALL
            self.recall = nn.Linear(config.horizon * _TOKEN + _CONTEXT, _RECALL)

    def forward(self, values: Tensor, marks: Tensor, mask: Tensor | None, memory: Memory | None) -> View:
        """Return the view of a batch.

        Args:
            values: (B, T_in, K, H, W) on the scaler's scale, NaN = missing.
            marks: (B, T_in + T_out, M).
            mask: (B, H, W) bool, False outside the city; None when every cell is inside.
            memory: memory of the days before; None where nothing is known.

        Raises:
            ValueError: a shape does not fit the settings.
        """
        self._check(values, marks, mask)
        values = values.flatten(3)  # (B, T_in, K, N)
        inside = values.new_ones(len(values), values.shape[-1], dtype=torch.bool) if mask is None else mask.flatten(1)
        seen = ~torch.isnan(values) & inside[:, None, None]
        level = self._level(values, seen, memory)  # (B, K, N)
        centred = bounded(values - level[:, None], seen)
        centre = values.shape[-1] // 2
        steps, horizon = self.config.input_length, self.config.horizon
        base = level[:, None, :, centre].expand(-1, horizon, -1)
        past = centred[..., None]
        future = base.new_zeros(*base.shape, self.num_features)
        days = base.new_full((len(base), self.config.memory_days, *base.shape[1:]), torch.nan)
        if memory is not None:
            days = memory.days[:, :, steps:].to(values) - base[:, None, :1]
        if self.config.memory:
            past, future, base = self._remember(values, seen, centred, level, base, days, memory)
        return View(past, future, marks[:, :steps], marks[:, steps:], inside, base, bounded(days, ~torch.isnan(days)))

    def _level(self, values: Tensor, seen: Tensor, memory: Memory | None) -> Tensor:
        """Return the reference of the values of each cell and service, (B, K, N)."""
        mean = torch.where(seen, values, 0.0).sum(1) / seen.sum(1).clamp(min=1)
        if self.config.memory:
            if memory is None:
                return mean
            known = memory.level.flatten(2).to(values)
            return torch.where(torch.isnan(known), mean, known)
        return mean if self.config.centre == "window" else torch.full_like(mean, MIDDLE)

    def _remember(
        self,
        values: Tensor,
        seen: Tensor,
        centred: Tensor,
        level: Tensor,
        base: Tensor,
        days: Tensor,
        memory: Memory | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens with a memory, (B, T_in, K, N, F) and (B, T_out, K, F), and the base."""
        batch, steps, tasks, cells = values.shape
        past = values.new_zeros(batch, steps, tasks, cells, _TOKEN)
        future = values.new_zeros(batch, base.shape[1], tasks, _TOKEN)
        context = values.new_zeros(batch, tasks, _CONTEXT)
        past[..., 0], past[..., 1] = centred, seen.to(values.dtype)
        if memory is not None:
            usual = memory.usual.flatten(3).to(values)  # (B, T_in, K, N)
            past[..., 2] = bounded(usual - level[:, None], ~torch.isnan(usual))
            past[..., 3] = bounded(values - usual, seen & ~torch.isnan(usual))
            centre_level = level[..., cells // 2]
            mean, future[..., 2:] = _slots(days, memory.same_day[..., :1] > 0)
            base = base + mean
            spread = torch.nan_to_num(memory.spread.flatten(2)[..., cells // 2].to(values))
            length = (memory.context.to(values).clamp(min=0.25).log() / 3)[:, None].expand_as(spread)
            context = torch.stack((bounded(centre_level - MIDDLE, spread >= 0), spread, length), dim=-1)
        recalled = self.recall(torch.cat((future.transpose(1, 2).flatten(2), context), dim=-1))  # (B, K, R)
        past = torch.cat((past, recalled[:, None, :, None].expand(-1, steps, -1, cells, -1)), dim=-1)
        future = torch.cat((future, recalled[:, None].expand(-1, future.shape[1], -1, -1)), dim=-1)
        return past, future, base

    def _check(self, values: Tensor, marks: Tensor, mask: Tensor | None) -> None:
        config = self.config
        side = config.neighbourhood
        wanted = (config.input_length, config.num_tasks, side, side)
        if values.ndim != 5 or tuple(values.shape[1:]) != wanted:
            raise ValueError(
                f"values are {tuple(values.shape)}; the network wants (B, T_in, K, H, W) = "
                f"(B, {', '.join(map(str, wanted))}) for the services {', '.join(config.services)}"
            )
        steps = config.input_length + config.horizon
        if tuple(marks.shape) != (len(values), steps, config.num_marks):
            raise ValueError(
                f"marks are {tuple(marks.shape)}; the network wants (B, T_in + T_out, M) = "
                f"({len(values)}, {steps}, {config.num_marks})"
            )
        if mask is not None and tuple(mask.shape) != (len(values), side, side):
            raise ValueError(
                f"mask is {tuple(mask.shape)}; the network wants (B, H, W) = ({len(values)}, {side}, {side})"
            )


def bounded(values: Tensor, known: Tensor) -> Tensor:
    """Return values within `BOUND` of zero, and zero where they are not known."""
    return torch.where(known, values, 0.0).clamp(-BOUND, BOUND)


def _slots(days: Tensor, same_kind: Tensor) -> tuple[Tensor, Tensor]:
    """Summarise the slots to forecast over the previous days: their mean, (B, T_out, K), and five features.

    The features (B, T_out, K, 5) are that mean, whether any day is known, and three differences from that mean: of
    yesterday, of the week before, and of the mean of days of the same kind (of work or rest).

    Args:
        days: (B, L, T_out, K), relative to the level, NaN = unknown.
        same_kind: (B, L, T_out, 1) bool.
    """
    known = ~torch.isnan(days)
    days = bounded(days, known)
    mean = days.sum(1) / known.sum(1).clamp(min=1)
    apart = torch.where(known, days - mean[:, None], 0.0)
    week = min(7, days.shape[1]) - 1
    alike = known & same_kind
    kind = torch.where(alike, apart, 0.0).sum(1) / alike.sum(1).clamp(min=1)
    features = (mean, known.any(1).to(days.dtype), apart[:, 0], apart[:, week], kind)
    return mean, torch.stack(features, dim=-1)
