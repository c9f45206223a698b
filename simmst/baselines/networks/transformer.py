"""The Transformer as a forecaster: an encoder over the window, a decoder that forecasts in one pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from simmst.baselines.networks.config import NetworkConfig, choice, integer
from simmst.baselines.networks.inputs import View
from simmst.baselines.networks.network import Network
from simmst.nn import ProbSparseAttention
from simmst.ops.backends import BACKENDS

EVERY_QUERY = 10_000  # a factor that gives every query of any window real attention


@dataclass(frozen=True)
class TransformerConfig(NetworkConfig):
    """Settings of `Transformer`.

    Args:
        width: features of a token.
        num_heads: heads of every attention; divides the width.
        encoder_layers: layers of the encoder.
        decoder_layers: layers of the decoder.
        feedforward: hidden width of the feed-forward parts.
        label_length: number of the last input slots that start the decoder's input, or all where there are fewer.
        dropout: probability of dropping a feature while training.
        backend: implementation of every attention; None chooses one for each call.
    """

    width: int = integer(64)
    num_heads: int = integer(4)
    encoder_layers: int = integer(2)
    decoder_layers: int = integer(1)
    feedforward: int = integer(256)
    label_length: int = integer(12, 0)
    dropout: float = 0.05
    backend: str | None = choice(None, BACKENDS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.num_heads:
            self.refuse("width", f"a multiple of num_heads = {self.num_heads}")


class Transformer(Network):
    """Full attention in an encoder and a decoder, whose input is the last values and a placeholder for each target.

    Source: Vaswani et al. 2017, "Attention is all you need", as the forecaster of Zhou et al. 2021 (Informer), whose
    embedding, decoder input and single pass it shares; attention runs on `simmst.nn`. Each part is normalised
    afterwards, as in the source. Adapted: sizes are for windows of a day instead of 512 features. The tokens are those
    of the target cell, with its services as channels.
    """

    config_class: ClassVar[type[NetworkConfig]] = TransformerConfig
    calendar = True

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        channels, marks = config.num_tasks * self.inputs.num_features, config.num_marks
        self.label_length = min(config.label_length, config.input_length)
        self.past_embedding = TokenEmbedding(channels, marks, config.width, config.dropout)
        self.future_embedding = TokenEmbedding(channels, marks, config.width, config.dropout)
        self.encoder = self.build_encoder(config)
        self.encoder_norm = nn.LayerNorm(config.width)
        self.decoder = nn.ModuleList(DecoderLayer(config, self.factor) for _ in range(config.decoder_layers))
        self.decoder_norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.num_tasks)

    @property
    def factor(self) -> int:
        """ProbSparse's factor, so large that every query gets real attention."""
        return EVERY_QUERY

    def build_encoder(self, config: TransformerConfig) -> nn.ModuleList:
        """Return the layers of the encoder."""
        return nn.ModuleList(EncoderLayer(config, self.factor) for _ in range(config.encoder_layers))

    def forecast(self, view: View) -> Tensor:
        """Return (B, T_out, K)."""
        past = view.past[:, :, :, view.past.shape[3] // 2].flatten(2)
        tokens = self.past_embedding(past, view.past_marks)
        for layer in self.encoder:
            tokens = layer(tokens)
        encoded = self.encoder_norm(tokens)
        start = self.config.input_length - self.label_length
        targets = torch.cat((past[:, start:], view.future.flatten(2)), dim=1)
        marks = torch.cat((view.past_marks[:, start:], view.future_marks), dim=1)
        tokens = self.future_embedding(targets, marks)
        for layer in self.decoder:
            tokens = layer(tokens, encoded)
        forecast: Tensor = self.head(self.decoder_norm(tokens[:, -self.config.horizon :]))
        return forecast


class TokenEmbedding(nn.Module):
    """An embedding of values by a convolution over three slots, plus positions and a linear map of the calendar.

    Source: Informer's DataEmbedding with time features; the convolution pads with zeros instead of wrapping around.
    """

    def __init__(self, channels: int, marks: int, width: int, dropout: float) -> None:
        super().__init__()
        self.value = nn.Conv1d(channels, width, kernel_size=3, padding=1, bias=False)
        self.calendar = nn.Linear(marks, width, bias=False) if marks else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, marks: Tensor) -> Tensor:
        """Embed values (B, L, channels) and marks (B, L, M): (B, L, C)."""
        tokens = self.value(values.transpose(1, 2)).transpose(1, 2)
        tokens = tokens + sinusoids(tokens.shape[1], tokens.shape[2], tokens)
        if self.calendar is not None:
            tokens = tokens + self.calendar(marks)
        embedded: Tensor = self.dropout(tokens)
        return embedded


def sinusoids(length: int, width: int, like: Tensor) -> Tensor:
    """Return the positions of Vaswani et al. 2017, section 3.5: (length, width).

    Example:
        >>> sinusoids(2, 3, torch.zeros(())).shape
        torch.Size([2, 3])
    """
    position = torch.arange(length, dtype=like.dtype, device=like.device)[:, None]
    even = torch.arange(0, width, 2, dtype=like.dtype, device=like.device)
    angle = position * (-math.log(10_000.0) * even / width).exp()
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)[:, :width]


def attention(config: TransformerConfig, factor: int, *, is_causal: bool = False) -> ProbSparseAttention:
    """Return one of our attentions, with the sizes of a network."""
    dropout, backend = config.dropout, config.backend
    return ProbSparseAttention(
        config.width, config.num_heads, factor=factor, is_causal=is_causal, dropout=dropout, backend=backend
    )


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward part, each added and then normalised."""

    def __init__(self, config: TransformerConfig, factor: int) -> None:
        super().__init__()
        self.attention = attention(config, factor)
        self.first_norm = nn.LayerNorm(config.width)
        self.second_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode (B, L, C)."""
        tokens = self.first_norm(tokens + self.dropout(self.attention(tokens)))
        encoded: Tensor = self.second_norm(tokens + self.feed_forward(tokens))
        return encoded


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder and a feed-forward part, each added and then normalised."""

    def __init__(self, config: TransformerConfig, factor: int) -> None:
        super().__init__()
        self.self_attention = attention(config, factor, is_causal=True)
        self.cross_attention = attention(config, EVERY_QUERY)
        self.norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in range(3))
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, encoded: Tensor) -> Tensor:
        """Decode (B, label_length + T_out, C) with the encoder's (B, L, C)."""
        tokens = self.norms[0](tokens + self.dropout(self.self_attention(tokens)))
        tokens = self.norms[1](tokens + self.dropout(self.cross_attention(tokens, encoded)))
        decoded: Tensor = self.norms[2](tokens + self.feed_forward(tokens))
        return decoded


class FeedForward(nn.Module):
    """Two linear maps with GELU between them."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.wide = nn.Linear(config.width, config.feedforward)
        self.narrow = nn.Linear(config.feedforward, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, L, C)."""
        hidden = self.dropout(functional.gelu(self.wide(tokens)))
        narrow: Tensor = self.dropout(self.narrow(hidden))
        return narrow
