"""Informer: ProbSparse attention, an encoder that halves the sequence between its layers, one decoding pass."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from simmst.baselines.networks.config import integer
from simmst.baselines.networks.transformer import EncoderLayer, Transformer, TransformerConfig


@dataclass(frozen=True)
class InformerConfig(TransformerConfig):
    """Settings of `Informer`.

    Args:
        factor: ProbSparse's factor, which sets the samples per query and the queries given real attention.
    """

    factor: int = integer(5)


class Informer(Transformer):
    """ProbSparse self-attention in the encoder, with distilling between its layers, and, made causal, in the decoder.

    Source: Zhou et al. 2021, "Informer: beyond efficient Transformer for long sequence time-series forecasting"; the
    attention is `simmst.nn.ProbSparseAttention`, which samples again in each training step and with a fixed seed in
    evaluation. Adapted as `Transformer` is. At 24 input slots and factor 5, 20 of the 24 queries get real attention,
    because such windows are short. The decoder does not mix heads and steps as the released code's "mix" does.
    """

    config_class = InformerConfig

    @property
    def factor(self) -> int:
        """ProbSparse's factor."""
        return int(self.config.factor)

    def build_encoder(self, config: TransformerConfig) -> nn.ModuleList:
        """Return the layers of the encoder, with a distilling layer between each two neighbours."""
        layers: list[nn.Module] = []
        for number in range(config.encoder_layers):
            layers += [Distilling(config.width)] if number else []
            layers.append(EncoderLayer(config, self.factor))
        return nn.ModuleList(layers)


class Distilling(nn.Module):
    """Halve a sequence: convolution over three steps, batch norm, ELU, maximum of three steps at a stride of two.

    Example:
        >>> import torch
        >>> Distilling(4)(torch.zeros(2, 24, 4)).shape
        torch.Size([2, 12, 4])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, kernel_size=3, padding=1, padding_mode="circular")
        self.norm = nn.BatchNorm1d(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (B, ceil(L / 2), C) of (B, L, C)."""
        hidden = functional.elu(self.norm(self.convolution(tokens.transpose(1, 2))))
        return functional.max_pool1d(hidden, kernel_size=3, stride=2, padding=1).transpose(1, 2)
