"""The decoder of a task: masked self-attention, cross-attention, head (Sim-MSTNet, Eq. 12)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from simmst.models.attend import attend
from simmst.models.config import SimMSTNetConfig
from simmst.models.context import NUM_FEATURES, Context
from simmst.models.day_attention import NUM_DISTANCES, Recollection
from simmst.models.dropout import FeatureDropout
from simmst.models.embedding import SeriesEmbedding
from simmst.models.feed_forward import FeedForward, two_layers
from simmst.models.quantiles import QuantileHead
from simmst.nn.prob_sparse_attention import ProbSparseAttention

_EVERY_QUERY = 10_000  # a factor that gives every query of any horizon real attention


class DecoderLayer(nn.Module):
    """Masked self-attention, cross-attention and a feed-forward part, each with LayerNorm before and residual around.

    Both attentions have a factor so large that every query gets real attention. In the self-attention, ProbSparse's
    selection would see future keys, and its causal fill is not a mean; full causal attention leaks nothing. In the
    cross-attention, the slots to forecast would compete for selection, and a slot's forecast would depend on how many
    other slots are forecast.

    Example:
        >>> import torch
        >>> layer = DecoderLayer(SimMSTNetConfig(width=8, num_heads=2)).eval()
        >>> layer(torch.zeros(4, 6, 8), torch.zeros(4, 12, 8)).shape
        torch.Size([4, 6, 8])
    """

    def __init__(self, config: SimMSTNetConfig) -> None:
        super().__init__()
        width, heads, backend = config.width, config.num_heads, config.backend
        self.backend = backend
        self.self_attention_norm = nn.LayerNorm(width)
        self.self_attention = ProbSparseAttention(width, heads, factor=_EVERY_QUERY, is_causal=True, backend=backend)
        self.cross_attention_norm = nn.LayerNorm(width)
        self.cross_attention = ProbSparseAttention(width, heads, factor=_EVERY_QUERY, backend=backend)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, config.feedforward, config.dropout)
        self.dropout = FeatureDropout(config.dropout)

    def forward(self, tokens: Tensor, memory: Tensor, keep: int = 0) -> Tensor:
        """Decode a batch.

        Args:
            tokens: (B, label_length + T_out, C).
            memory: (B, T_in, C), the fused features.
            keep: number of last tokens to continue with after the self-attention; 0 for all.
        """
        tokens = attend(tokens, self.self_attention_norm, self.self_attention, self.dropout)
        tokens = tokens[:, -keep:]
        tokens = attend(tokens, self.cross_attention_norm, self.cross_attention, self.dropout, memory)
        return self.feed_forward.added(tokens, self.feed_forward_norm, self.backend)


class TargetEmbedding(nn.Module):
    """Embed the slots to forecast from the days before, in place of the zeros of Eq. 12.

    The input of each slot is its recalled features, the calendar, how far ahead it is, the latest values and
    differences from usual of the target cell, the differences of the city, and the context. A residual MLP maps them
    to a vector.

    Args:
        config: configuration of the model.
        num_recalled: number of recalled features of a slot.
    """

    def __init__(self, config: SimMSTNetConfig, num_recalled: int) -> None:
        super().__init__()
        hidden = config.feedforward
        self.backend = config.backend
        self.slot = nn.Linear(num_recalled + config.num_marks + NUM_DISTANCES, hidden)
        self.latest = nn.Linear(4 * config.input_length + NUM_FEATURES + config.width, hidden, bias=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, hidden))
            for _ in range(2)
        )
        self.dropout = FeatureDropout(config.dropout)

    def forward(self, context: Context, recalled: Recollection, marks: Tensor, ahead: Tensor, task: Tensor) -> Tensor:
        """Embed a batch.

        Args:
            context: context of N series.
            recalled: mean and features of the slots to forecast, from the days before.
            marks: (N, T_out, M), calendar features of the slots.
            ahead: (N, T_out, 4), how far ahead the slots are.
            task: (N, C), the embedding of each series' task.

        Returns:
            (N, T_out, feedforward).
        """
        latest = (context.series, context.unusual, context.city, context.observed, context.features, task)
        hidden: Tensor = self.slot(torch.cat((recalled.features, marks, ahead), dim=-1))
        hidden = functional.gelu(hidden + self.latest(torch.cat(latest, dim=-1))[:, None])
        for block in self.blocks:
            norm, first, _, second = block.children()
            hidden = two_layers(hidden, first, second, norm=norm, dropout=self.dropout, backend=self.backend)
        return hidden


class Decoder(nn.Module):
    """Forecast the tasks from their fused features in one pass (Sim-MSTNet, Eq. 12).

    The decoder's input is the last ``label_length`` values, embedded like the encoder's input, and the slots to
    forecast, each embedded from the days before (`TargetEmbedding`). The slots to forecast have no learned positions,
    so one set of weights serves any horizon.

    Args:
        config: configuration of the model.
        num_recalled: number of recalled features of a slot.
    """

    def __init__(self, config: SimMSTNetConfig, num_recalled: int) -> None:
        super().__init__()
        self.horizon = config.horizon
        self.target = TargetEmbedding(config, num_recalled)
        self.token = nn.Linear(config.feedforward, config.width)
        self.label = SeriesEmbedding(config.label_length, config.width, config.num_marks, NUM_FEATURES, config.dropout)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.width)
        self.hidden = nn.Linear(config.width, config.feedforward)
        self.head = QuantileHead(config.feedforward)

    def forward(
        self, fused: Tensor, context: Context, recalled: Recollection, marks: Tensor, ahead: Tensor, task: Tensor
    ) -> Tensor:
        """Forecast a batch.

        Args:
            fused: (N, T_in, C), the fused features.
            context: context of N series.
            recalled: mean and features of the slots to forecast, from the days before.
            marks: (N, label_length + T_out, M), calendar features.
            ahead: (N, T_out, 4), how far ahead the slots to forecast are.
            task: (N, C), the embedding of each series' task.

        Returns:
            (N, T_out, Q), quantiles relative to the base of ``recalled``.
        """
        horizon = ahead.shape[1]
        remembered = self.target(context, recalled, marks[:, -horizon:], ahead, task)
        tokens = self.token(remembered)
        label = marks.shape[1] - horizon
        if label:
            channels = torch.stack((context.series, context.unusual, context.observed), dim=-1)[:, -label:]
            tokens = torch.cat((self.label(channels, marks[:, :label], context.features, task), tokens), dim=1)
        for layer in self.layers[:-1]:
            tokens = layer(tokens, fused)
        # The last layer only needs to return the slots to forecast.
        decoded = self.norm(self.layers[-1](tokens, fused, keep=horizon))
        quantiles: Tensor = self.head(remembered + self.hidden(decoded))
        return quantiles
