"""The temporal branch of a task: ProbSparse encoder layers over the tokens of its series."""

from __future__ import annotations

from torch import Tensor, nn

from simmst.models.attend import attend
from simmst.models.config import SimMSTNetConfig
from simmst.models.dropout import FeatureDropout
from simmst.models.feed_forward import FeedForward
from simmst.nn.prob_sparse_attention import ProbSparseAttention


class EncoderLayer(nn.Module):
    """ProbSparse self-attention and a feed-forward part, each with LayerNorm before and residual around.

    Example:
        >>> import torch
        >>> layer = EncoderLayer(SimMSTNetConfig(width=8, num_heads=2)).eval()
        >>> layer(torch.zeros(2, 12, 8)).shape
        torch.Size([2, 12, 8])
    """

    def __init__(self, config: SimMSTNetConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = ProbSparseAttention(
            config.width, config.num_heads, factor=config.factor, backend=config.backend
        )
        self.dropout = FeatureDropout(config.dropout)
        self.backend = config.backend
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.feedforward, config.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode tokens (B, T, C)."""
        tokens = attend(tokens, self.attention_norm, self.attention, self.dropout)
        return self.feed_forward.added(tokens, self.feed_forward_norm, self.backend)


class TemporalEncoder(nn.Module):
    """The attention encoder of a task (Informer, Zhou et al. 2021, without distilling): layers, then LayerNorm.

    Windows are short, so the layers keep every token, and the decoder and the other tasks see each slot.

    Example:
        >>> import torch
        >>> encoder = TemporalEncoder(SimMSTNetConfig(width=8, num_heads=2)).eval()
        >>> encoder(torch.zeros(2, 12, 8)).shape
        torch.Size([2, 12, 8])
    """

    def __init__(self, config: SimMSTNetConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode tokens (B, T, C)."""
        for layer in self.layers:
            tokens = layer(tokens)
        encoded: Tensor = self.norm(tokens)
        return encoded
