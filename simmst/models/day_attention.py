"""Features of each slot of the forecast, by attention to the same slot on the days before."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from simmst.core.exporting import is_exporting, lower_median
from simmst.models.config import SimMSTNetConfig
from simmst.models.context import Context, masked_mean
from simmst.models.feed_forward import two_layers
from simmst.ops import day_attention

_KEY_WIDTH = 8
_HIDDEN = 32
_WINDOWS = (1, 3, 6)  # numbers of latest input slots in which today is compared with another day
_DAY_FEATURES = 2 * len(_WINDOWS) + 6
NUM_DISTANCES = 4
_REACH = 1.0  # on the log scale
_LATEST_DAYS = 7  # number of days whose median is a feature
_STATISTICS = 9


class Recollection(NamedTuple):
    """Mean and features of each slot to forecast, from the days before, for N = B * K series.

    Attributes:
        base: (N, T_out), the robust mean of the days before; zero (the level) where none is known.
        features: (N, T_out, F), further features from the days before.
    """

    base: Tensor
    features: Tensor


class DayAttention(nn.Module):
    r"""Attend from each slot of the forecast to the same slot on the days before.

    The weight of day d for the slot h steps ahead is the softmax, over the days on which the slot is known, of

    .. math:: q_h \cdot k_d + b_d + w \cdot [\text{both working days or both days of rest}, \text{same day of the week}]

    where the key :math:`k_d` encodes how today's latest slots differ from those of day d, and the query :math:`q_h`
    encodes the calendar and the distance of the slot. Every head returns the weighted mean of the days and the weighted
    mean of today's offsets from them. Further features are the mean, median and deviation over the days, the means over
    the days of the same class and of the same weekday, yesterday, and the week before.

    Args:
        config: configuration of the model.
        heads: number of heads.

    Example:
        >>> from simmst.models.context import no_memory, relate
        >>> config = SimMSTNetConfig(services=("sms",), input_length=6, horizon=2, label_length=2, num_marks=3)
        >>> values, mask = torch.zeros(4, 6, 1, 5, 5), torch.ones(4, 5, 5, dtype=torch.bool)
        >>> context = relate(values, mask, no_memory(values, mask, config.memory_days, 2))
        >>> attention = DayAttention(config)
        >>> attention(context, torch.zeros(4, 2, 3)).features.shape == (4, 2, attention.num_features)
        True
    """

    def __init__(self, config: SimMSTNetConfig, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.backend = config.backend
        days = config.memory_days
        self.day = nn.Sequential(nn.Linear(_DAY_FEATURES, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, heads * _KEY_WIDTH))
        self.query = nn.Linear(config.num_marks + NUM_DISTANCES, heads * _KEY_WIDTH)
        self.day_bias = nn.Parameter(torch.zeros(heads, days))
        self.same_day = nn.Parameter(torch.zeros(heads, 2))
        age = torch.arange(1, days + 1, dtype=torch.float32) / max(days, 1)
        self.register_buffer("age", age, persistent=False)
        slots = torch.arange(config.input_length, 0, -1)
        windows = torch.tensor([*_WINDOWS, config.input_length])
        self.register_buffer("windows", (slots[:, None] <= windows).to(torch.float32), persistent=False)

    age: Tensor
    windows: Tensor  # (T_in, 4), one where a slot is among the latest 1, 3, 6 or all slots

    @property
    def num_features(self) -> int:
        """The number of features of a slot to forecast, F."""
        return 2 * self.heads + _STATISTICS

    def forward(self, context: Context, marks: Tensor) -> Recollection:
        """Return the mean and features of each slot to forecast, from the days before.

        Args:
            context: context of N series.
            marks: (N, T_out, M), calendar features of the slots to forecast.
        """
        days, known = context.days, context.days_known  # (N, L, T_out)
        apart, today = self._compare(context)
        first, _, second = self.day
        key = two_layers(today, first, second, residual=False, backend=self.backend).unflatten(
            -1, (self.heads, _KEY_WIDTH)
        )  # (N, L, heads, E)
        query = self.query(torch.cat((marks, distances(context, marks.shape[1])), dim=-1))
        query = query.unflatten(-1, (self.heads, _KEY_WIDTH))  # (N, T_out, heads, E)
        weights = self.day_bias, context.same_day, self.same_day
        both = day_attention(query, key, *weights, known, days, apart, backend=self.backend)
        recalled, offset = both.split(self.heads, dim=-1)  # (N, T_out, heads)

        base = _location(days, known)
        deviation = torch.where(known, days - base[:, None], 0.0)
        present = known.to(days.dtype)
        count = present.sum(1)
        spread = (deviation.square().sum(1) / count.clamp(min=1) + 1e-4).sqrt()
        alike = present[..., None] * (context.same_day > 0)  # (N, L, T_out, 2)
        same_class, same_weekday = ((deviation[..., None] * alike).sum(1) / alike.sum(1).clamp(min=1)).unbind(-1)
        week = min(7, days.shape[1]) - 1
        statistics = (
            base,
            spread,
            _median(deviation[:, :_LATEST_DAYS], known[:, :_LATEST_DAYS]),
            same_class,
            same_weekday,
            deviation[:, 0],
            deviation[:, week],
            count / max(days.shape[1], 1),
            present[:, 0],
        )
        features = torch.cat((recalled - base[..., None], offset, torch.stack(statistics, dim=-1)), dim=-1)
        return Recollection(base, features)

    def _compare(self, context: Context) -> tuple[Tensor, Tensor]:
        """Return today's offset from each day, (N, L), and the inputs of the keys, (N, L, _DAY_FEATURES)."""
        both = context.past_known & (context.observed[:, None] > 0)
        difference = torch.where(both, context.series[:, None] - context.past, 0.0)  # (N, L, T_in)
        counted = both.to(difference.dtype)
        # A product with the windows sums over the latest slots and over all: (N, L, 4).
        windows = self.windows.to(difference.dtype)
        count = (counted @ windows).clamp(min=1)
        apart = difference @ windows / count
        distance = difference.abs() @ windows / count
        whole = apart[..., -1:]
        around = (difference - whole * counted).abs().sum(2, keepdim=True) / count[..., -1:]
        shared = counted.mean(2, keepdim=True)
        latest = torch.stack((apart[..., :-1], distance[..., :-1]), dim=-1).flatten(2)
        # same_day of the first step ahead describes the pair of days, whatever the horizon.
        columns = latest, whole, around, shared, self.age.to(whole)[:, None].expand_as(whole), context.same_day[:, :, 0]
        return apart[..., len(_WINDOWS) - 1], torch.cat(columns, dim=-1)


@torch.no_grad()
def _location(values: Tensor, known: Tensor) -> Tensor:
    """Return the mean over the days, (N, T_out), with each day clipped to within `_REACH` of their median.

    Otherwise one day of outage among seven would halve the expected value (Huber 1964, "Robust estimation of a location
    parameter", one step from the median).
    """
    if values.shape[1] == 0:
        return values.new_zeros(values.shape[0], values.shape[2])
    median = _median(values, known)
    deviation = torch.where(known, values - median[:, None], 0.0).clamp(-_REACH, _REACH)
    return median + masked_mean(deviation, known, 1)


@torch.no_grad()
def _median(values: Tensor, known: Tensor) -> Tensor:
    """Return the lower median over the known days, (N, T_out), or zero if none is known. It carries no gradient."""
    if values.shape[1] == 0:
        return values.new_zeros(values.shape[0], values.shape[2])
    if is_exporting():
        return lower_median(values, known, 1)
    return torch.nan_to_num(torch.where(known, values, torch.nan).nanmedian(dim=1).values)


def distances(context: Context, horizon: int) -> Tensor:
    """Return how far ahead the slots to forecast are, (N, T_out, 4): days, their root, log slots, log slots per day."""
    ahead = torch.arange(1, horizon + 1, dtype=context.series.dtype, device=context.series.device)
    per_day = context.features[:, 2:3]
    days = ahead / (24 * (3 * per_day).exp())  # (N, T_out)
    log = (ahead.log() / 3).expand_as(days)
    return torch.stack((days, days.sqrt(), log, per_day.expand_as(days)), dim=-1)
