"""The spatial branch of a task: CNN, spatial attention, linear (Sim-MSTNet, Eq. 10)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from simmst.models.config import SimMSTNetConfig
from simmst.models.dropout import FeatureDropout
from simmst.nn.spatial_attention import SpatialAttention


class SpatialBranch(nn.Module):
    """Summarise the neighbourhood of the target cell as one token (Sim-MSTNet, Eq. 10).

    The time steps of the patch, values and observed mask, are the channels of a two-layer CNN; its positions attend to
    each other; a linear layer over all positions gives the token. Cells outside the city are zero after every
    convolution, are no keys of the attention, and are zero before the last layer: they contribute nothing.

    Args:
        config: the model's configuration.
        num_features: planes that tell the level and spread of each cell's window, F.

    Example:
        >>> branch = SpatialBranch(SimMSTNetConfig(input_length=6, label_length=2, width=8, num_heads=2), 2)
        >>> inside = torch.ones(4, 5, 5, dtype=torch.bool)
        >>> branch(torch.zeros(4, 6, 5, 5), torch.ones(4, 6, 5, 5), torch.zeros(4, 2, 5, 5), inside).shape
        torch.Size([4, 1, 8])
    """

    def __init__(self, config: SimMSTNetConfig, num_features: int) -> None:
        super().__init__()
        side, width = config.neighbourhood, config.width
        kernel = min(side, 3)
        channels = 2 * config.input_length + num_features
        self.conv_in = nn.Conv2d(channels, width, kernel, padding=kernel // 2)
        self.conv_out = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        self.attention = SpatialAttention(width, config.num_heads, residual=True, norm=True, backend=config.backend)
        self.linear = nn.Linear(width * side * side, width)
        self.dropout = FeatureDropout(config.dropout)

    def forward(self, values: Tensor, observed: Tensor, features: Tensor, mask: Tensor) -> Tensor:
        """Summarise a batch of patches.

        Args:
            values: (B, T_in, H, W), zero where missing or outside.
            observed: (B, T_in, H, W), one where observed.
            features: (B, F, H, W).
            mask: (B, H, W) bool, False outside the city.

        Returns:
            One token a patch, (B, 1, C).
        """
        inside = mask[:, None]
        planes = torch.cat((values, observed, features), dim=1)
        planes = functional.gelu(self.conv_in(torch.where(inside, planes, 0.0)))
        planes = functional.gelu(self.conv_out(torch.where(inside, planes, 0.0)))
        planes = torch.where(inside, planes, 0.0)
        planes = self.attention(planes, key_padding_mask=~mask.flatten(1))
        planes = torch.where(inside, planes, 0.0)
        token: Tensor = self.dropout(self.linear(planes.flatten(1))[:, None])
        return token
