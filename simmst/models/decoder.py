"""The decoder of a task: masked self-attention, ProbSparse cross-attention, head (Sim-MSTNet, Eq. 12)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from simmst.models.config import SimMSTNetConfig
from simmst.models.dropout import FeatureDropout
from simmst.models.embedding import SeriesEmbedding
from simmst.models.temporal_encoder import FeedForward
from simmst.nn.prob_sparse_attention import ProbSparseAttention


class DecoderLayer(nn.Module):
    """Masked self-attention, ProbSparse cross-attention and a feed-forward part, each normalised before and added.

    The self-attention has a factor so large that every query gets real attention: ProbSparse's selection looks at keys
    of the future and its causal fill is no mean, full causal attention leaks nothing.

    Example:
        >>> import torch
        >>> layer = DecoderLayer(SimMSTNetConfig(width=8, num_heads=2), length=6).eval()
        >>> layer(torch.zeros(4, 6, 8), torch.zeros(4, 12, 8)).shape
        torch.Size([4, 6, 8])
    """

    def __init__(self, config: SimMSTNetConfig, length: int) -> None:
        super().__init__()
        width, heads, backend = config.width, config.num_heads, config.backend
        self.self_attention_norm = nn.LayerNorm(width)
        self.self_attention = ProbSparseAttention(width, heads, factor=length, is_causal=True, backend=backend)
        self.cross_attention_norm = nn.LayerNorm(width)
        self.cross_attention = ProbSparseAttention(width, heads, factor=config.factor, backend=backend)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, config.feedforward, config.dropout)
        self.dropout = FeatureDropout(config.dropout)

    def forward(self, tokens: Tensor, memory: Tensor, keep: int = 0) -> Tensor:
        """Decode a batch.

        Args:
            tokens: (B, label_length + T_out, C).
            memory: (B, T_in, C), the fused features.
            keep: go on with the last so many tokens after the self-attention, with all of them when 0.
        """
        tokens = tokens + self.dropout(self.self_attention(self.self_attention_norm(tokens)))
        tokens = tokens[:, -keep:]
        tokens = tokens + self.dropout(self.cross_attention(self.cross_attention_norm(tokens), memory))
        decoded: Tensor = tokens + self.feed_forward(self.feed_forward_norm(tokens))
        return decoded


class Decoder(nn.Module):
    """Forecast one task from its fused features in one pass, on the window's own scale (Sim-MSTNet, Eq. 12).

    The decoder's input is the last ``label_length`` values and zeros for the steps to forecast, embedded with their
    calendar features and positions (Informer, Zhou et al. 2021).

    Args:
        config: the model's configuration.
        num_features: features of the window's level and spread, F.

    Example:
        >>> import torch
        >>> decoder = Decoder(SimMSTNetConfig(horizon=2, label_length=4, num_marks=3, width=8, num_heads=2), 0)
        >>> memory, label = torch.zeros(5, 36, 8), torch.zeros(5, 4)
        >>> decoder(memory, label, label + 1, torch.zeros(5, 6, 3), torch.zeros(5, 0)).shape
        torch.Size([5, 2])
    """

    def __init__(self, config: SimMSTNetConfig, num_features: int) -> None:
        super().__init__()
        self.horizon = config.horizon
        length = config.label_length + config.horizon
        self.embedding = SeriesEmbedding(length, config.width, config.num_marks, num_features, config.dropout)
        self.layers = nn.ModuleList(DecoderLayer(config, length) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, 1)

    def forward(self, memory: Tensor, label: Tensor, observed: Tensor, marks: Tensor, features: Tensor) -> Tensor:
        """Forecast a batch.

        Args:
            memory: (B, T_in, C), the fused features.
            label: (B, label_length), the last values, zero where missing.
            observed: (B, label_length), one where observed.
            marks: (B, label_length + T_out, M).
            features: (B, F).

        Returns:
            (B, T_out).
        """
        future = (0, self.horizon)
        tokens = self.embedding(functional.pad(label, future), functional.pad(observed, future), marks, features)
        for layer in self.layers[:-1]:
            tokens = layer(tokens, memory)
        # Of the last layer only the steps to forecast are wanted.
        forecast: Tensor = self.head(self.norm(self.layers[-1](tokens, memory, keep=self.horizon)))
        return forecast.squeeze(-1)
