"""The embedding of a series: value, external time and position (Sim-MSTNet, Eq. 9)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from simmst.models.dropout import FeatureDropout

CHANNELS = 3


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """Return the sinusoidal position table (length, width) of Vaswani et al. 2017.

    Example:
        >>> sinusoidal_positions(2, 4)[0].tolist()
        [0.0, 1.0, 0.0, 1.0]
    """
    position = torch.arange(length, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10_000.0) / width))
    table = torch.zeros(length, width)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate[: width // 2])
    return table


class SeriesEmbedding(nn.Module):
    r"""Embed a series: value + external time + position (Sim-MSTNet, Eq. 9) + features of the whole series.

    .. math:: e_t = W_x [z_t, u_t, o_t] + b + W_m m_t + p_t + W_f f + e_k

    with :math:`z_t` the value relative to the series' level, :math:`u_t` its difference from the same slot of the days
    before, :math:`o_t` one where it was observed, :math:`m_t` the calendar features, :math:`p_t` the position,
    :math:`f` the features of the context and :math:`e_k` the embedding of the task. Positions start at the sinusoids
    and are learned, because the slots of a window need not be evenly spaced.

    Args:
        length: number of tokens of a series, T.
        width: number of features of a token, C.
        num_marks: number of calendar features, M; 0 leaves that term out.
        num_features: number of features of the context, F.
        dropout: probability of dropping a feature while training.

    Example:
        >>> embed = SeriesEmbedding(length=4, width=8, num_marks=3, num_features=2)
        >>> embed(torch.zeros(5, 4, 3), torch.zeros(5, 4, 3), torch.zeros(5, 2), torch.zeros(5, 8)).shape
        torch.Size([5, 4, 8])
    """

    def __init__(self, length: int, width: int, num_marks: int, num_features: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Linear(CHANNELS, width)
        self.marks = nn.Linear(num_marks, width, bias=False) if num_marks else None
        self.context = nn.Linear(num_features, width, bias=False)
        self.position = nn.Parameter(sinusoidal_positions(length, width))
        self.dropout = FeatureDropout(dropout)

    def forward(self, channels: Tensor, marks: Tensor, features: Tensor, task: Tensor) -> Tensor:
        """Embed a batch of series.

        Args:
            channels: (N, T, 3), value, difference from usual, observed; zero where missing.
            marks: (N, T, M).
            features: (N, F).
            task: (N, C), the embedding of each series' task.

        Returns:
            Tokens (N, T, C).
        """
        tokens: Tensor = self.value(channels) + self.position
        if self.marks is not None:
            tokens = tokens + self.marks(marks)
        dropped: Tensor = self.dropout(tokens + (self.context(features) + task)[:, None])
        return dropped
