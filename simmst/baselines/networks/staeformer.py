"""STAEformer: a plain Transformer over time and space on a spatio-temporal adaptive embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from simmst.baselines.networks.config import NetworkConfig, integer
from simmst.baselines.networks.inputs import View
from simmst.baselines.networks.network import Network
from simmst.data import CALENDAR_FEATURES

_AT_ONCE = 64  # windows forecast at a time: each is T_in N tokens wide, and evaluation passes hundreds


@dataclass(frozen=True)
class STAEformerConfig(NetworkConfig):
    """Settings of `STAEformer`.

    Args:
        input_width: number of features of the embedded values; like the next three, a part of a token's width.
        day_width: number of features of the embedded time of the day.
        week_width: number of features of the embedded day of the week.
        adaptive_width: number of features of the adaptive embedding of each slot and cell.
        layers: number of temporal layers, and of spatial layers.
        num_heads: heads of every attention; divides the width.
        feedforward: hidden width of the feed-forward parts.
        steps_per_day: number of distinct times of the day; 144 serves slots of ten minutes and all multiples of that.
        dropout: probability of dropping a feature while training.
    """

    input_width: int = integer(24)
    day_width: int = integer(24)
    week_width: int = integer(24)
    adaptive_width: int = integer(80)
    layers: int = integer(3)
    num_heads: int = integer(4)
    feedforward: int = integer(256)
    steps_per_day: int = integer(144)
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.num_heads:
            self.refuse("num_heads", f"a divisor of the token's width, the sum of its four parts, {self.width}")
        if self.num_marks != len(CALENDAR_FEATURES):
            self.refuse("num_marks", f"{len(CALENDAR_FEATURES)}, those of simmst.data")

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.input_width + self.day_width + self.week_width + self.adaptive_width


class STAEformer(Network):
    """Embed values, time of day, day of week and an adaptive vector; attend over time, then over cells; map linearly.

    Source: Liu et al. 2023, "STAEformer: spatio-temporal adaptive embedding makes vanilla Transformer SOTA for traffic
    forecasting" (CIKM): 24 + 24 + 24 + 80 features, 3 temporal and 3 spatial layers, 4 heads, 256 hidden features.
    Adapted: the adaptive embedding belongs to the places of a neighbourhood instead of the nodes of a network, so all
    cells of a city share it. Cells outside the city are masked, and only the target cell has an output layer.
    """

    config_class = STAEformerConfig
    calendar = True

    def __init__(self, config: STAEformerConfig) -> None:
        super().__init__(config)
        channels = config.num_tasks * self.inputs.num_features
        steps, cells = config.input_length, config.num_cells
        self.value = nn.Linear(channels, config.input_width)
        self.day = nn.Embedding(config.steps_per_day, config.day_width)
        self.week = nn.Embedding(7, config.week_width)
        self.adaptive = nn.Parameter(nn.init.xavier_uniform_(torch.empty(steps, cells, config.adaptive_width)))
        self.temporal = nn.ModuleList(AttentionLayer(config) for _ in range(config.layers))
        self.spatial = nn.ModuleList(AttentionLayer(config) for _ in range(config.layers))
        self.head = nn.Linear(steps * config.width, config.horizon * config.num_tasks)

    def forecast(self, view: View) -> Tensor:
        """Return (B, T_out, K)."""
        if not self.training and len(view.base) > _AT_ONCE:
            parts = zip(*(tensor.split(_AT_ONCE) for tensor in view), strict=True)
            return torch.cat([self.forecast(View(*part)) for part in parts])
        values = view.past.transpose(2, 3).flatten(3)  # (B, T, N, K F)
        batch, cells = len(values), values.shape[2]
        slot, weekday = clock(view.past_marks, self.config.steps_per_day)
        when = torch.cat((self.day(slot), self.week(weekday)), dim=-1)[:, :, None].expand(-1, -1, cells, -1)
        tokens = torch.cat((self.value(values), when, self.adaptive.expand(batch, -1, -1, -1)), dim=-1)
        tokens = tokens.transpose(1, 2)  # (B, N, T, C): the layers attend over the axis before the last
        for layer in self.temporal:
            tokens = layer(tokens)
        tokens = tokens.transpose(1, 2)
        for layer in self.spatial:
            tokens = layer(tokens, view.inside)
        return self.by_step(self.head(tokens[:, :, cells // 2].flatten(1)))


def clock(marks: Tensor, steps_per_day: int) -> tuple[Tensor, Tensor]:
    """Read the slot of the day and the day of the week from calendar features (B, T, M), int64 (B, T) each.

    Example:
        >>> day = torch.tensor(0.25 * 2 * math.pi)  # six o'clock
        >>> week = torch.tensor(1.25 / 7 * 2 * math.pi)  # on the second day
        >>> marks = torch.stack((day.sin(), day.cos(), day, day, week.sin(), week.cos(), day, day))
        >>> [found.item() for found in clock(marks[None, None], 24)]
        [6, 1]
    """
    names = CALENDAR_FEATURES
    parts = []
    for cycle, count in (("day", steps_per_day), ("week", 7)):
        sine, cosine = (marks[..., names.index(f"{cycle}_{kind}")].double() for kind in ("sin", "cos"))
        turn = torch.atan2(sine, cosine) / (2 * math.pi) % 1.0
        # Angles are rounded, so an angle just below the next slot is the next slot.
        parts.append((turn * count + 1e-3).floor().long() % count)
    return parts[0], parts[1]


class AttentionLayer(nn.Module):
    """Self-attention over one axis and a feed-forward part, each added and then normalised."""

    def __init__(self, config: STAEformerConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.num_heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, config.feedforward), nn.ReLU(), nn.Linear(config.feedforward, width)
        )
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Map tokens (B, A, L, C), attending over L; `allowed` (B, L) is False for tokens that must not be seen."""
        query, key, value = self.in_proj(tokens).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)
        mask = None if allowed is None else allowed[:, None, None, None]
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        attended = self.out_proj(attended.transpose(-2, -3).flatten(-2))
        tokens = self.first_norm(tokens + self.dropout(attended))
        mapped: Tensor = self.second_norm(tokens + self.dropout(self.feed_forward(tokens)))
        return mapped
