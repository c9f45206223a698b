"""iTransformer: attention among variates, each of which is one token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from simmst.baselines.networks.config import NetworkConfig, integer
from simmst.baselines.networks.inputs import View
from simmst.baselines.networks.network import Network


@dataclass(frozen=True)
class ITransformerConfig(NetworkConfig):
    """Settings of `ITransformer`.

    Args:
        width: features of a token.
        num_heads: heads of every attention; divides the width.
        layers: layers of the encoder.
        feedforward: hidden width of the feed-forward parts.
        dropout: probability of dropping a feature while training.
    """

    width: int = integer(64)
    num_heads: int = integer(4)
    layers: int = integer(2)
    feedforward: int = integer(128)
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.num_heads:
            self.refuse("width", f"a multiple of num_heads = {self.num_heads}")


class ITransformer(Network):
    """Embed the whole window of each variate as one token, attend among the variates, map each token to its forecast.

    Source: Liu et al. 2024, "iTransformer: inverted Transformers are effective for time series forecasting" (ICLR),
    with its instance norm at input and output and the calendar features as further tokens. Adapted: the variates are
    the services of all cells of the neighbourhood. Cells outside the city are masked, and only the variates of the
    target cell are trained.
    """

    config_class = ITransformerConfig
    calendar = True

    def __init__(self, config: ITransformerConfig) -> None:
        super().__init__(config)
        steps = config.input_length
        self.embedding = nn.Linear(steps * self.inputs.num_features, config.width)
        self.mark_embedding = nn.Linear(steps, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(VariateLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.horizon)

    def forecast(self, view: View) -> Tensor:
        """Return (B, T_out, K)."""
        cells, tasks = view.past.shape[3], self.config.num_tasks
        variates = view.past.transpose(2, 3).flatten(2, 3)  # (B, T_in, N K, F)
        allowed = view.inside.repeat_interleave(tasks, dim=1)  # (B, N K)
        centre = slice(cells // 2 * tasks, (cells // 2 + 1) * tasks)
        return self.forecast_variates(variates, view.past_marks, allowed)[:, :, centre]

    def forecast_variates(self, variates: Tensor, marks: Tensor, allowed: Tensor) -> Tensor:
        """Forecast every variate.

        Args:
            variates: (B, T_in, V, F), the value first.
            marks: (B, T_in, M).
            allowed: (B, V) bool, False for variates that must not be seen.

        Returns:
            (B, T_out, V).
        """
        values = variates[..., 0]
        mean = values.mean(1, keepdim=True)
        deviation = (values.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        variates = torch.cat((((values - mean) / deviation)[..., None], variates[..., 1:]), dim=-1)
        tokens = self.embedding(variates.transpose(1, 2).flatten(2))  # (B, V, C)
        tokens = self.dropout(torch.cat((tokens, self.mark_embedding(marks.transpose(1, 2))), dim=1))
        allowed = torch.cat((allowed, allowed.new_ones(len(allowed), marks.shape[2])), dim=1)
        for layer in self.layers:
            tokens = layer(tokens, allowed)
        forecast: Tensor = self.head(self.norm(tokens[:, : values.shape[2]])).transpose(1, 2)
        # With a memory the forecast is a difference from the base, not from the window's mean.
        return forecast * deviation + (0.0 if self.config.memory else mean)


class VariateLayer(nn.Module):
    """Attention among the variates and a feed-forward part, each added and then normalised."""

    def __init__(self, config: ITransformerConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.in_proj = nn.Linear(config.width, 3 * config.width)
        self.out_proj = nn.Linear(config.width, config.width)
        self.first_norm, self.second_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.wide, self.narrow = (
            nn.Linear(config.width, config.feedforward),
            nn.Linear(config.feedforward, config.width),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, allowed: Tensor) -> Tensor:
        """Map tokens (B, V, C), attending only to the allowed ones, (B, V)."""
        query, key, value = self.in_proj(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed[:, None, None])
        attended = self.out_proj(attended.transpose(1, 2).flatten(2))
        tokens = self.first_norm(tokens + self.dropout(attended))
        hidden = self.narrow(self.dropout(functional.gelu(self.wide(tokens))))
        mapped: Tensor = self.second_norm(tokens + self.dropout(hidden))
        return mapped
