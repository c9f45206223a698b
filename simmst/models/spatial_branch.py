"""The spatial branch of a task: CNN, spatial attention, linear (Sim-MSTNet, Eq. 10)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from simmst.models.config import SimMSTNetConfig
from simmst.models.context import Context
from simmst.models.dropout import FeatureDropout
from simmst.nn.spatial_attention import SpatialAttention


class SpatialBranch(nn.Module):
    """Summarise the neighbourhood of the target cell as one token (Sim-MSTNet, Eq. 10).

    The latest input slots of the patch are the channels of a two-layer CNN: values relative to each cell's own level,
    differences from its usual day, and whether it was observed. Positions attend to each other, and a linear layer over
    all positions gives the token. Cells outside the city contribute nothing: they are zero after every convolution,
    ignored as keys of the attention, and zero before the last layer.

    Args:
        config: configuration of the model.

    Example:
        >>> from simmst.models.context import no_memory, relate
        >>> config = SimMSTNetConfig(input_length=6, label_length=2, width=8, num_heads=2)
        >>> values, inside = torch.zeros(4, 6, 3, 5, 5), torch.ones(4, 5, 5, dtype=torch.bool)
        >>> SpatialBranch(config)(relate(values, inside, no_memory(values, inside, 28, 6)), inside).shape
        torch.Size([12, 1, 8])
    """

    def __init__(self, config: SimMSTNetConfig) -> None:
        super().__init__()
        side, width = config.neighbourhood, config.width
        kernel = min(side, 3)
        self.num_tasks = config.num_tasks
        self.steps = min(config.spatial_steps, config.input_length)
        self.conv_in = nn.Conv2d(3 * self.steps, width, kernel, padding=kernel // 2)
        self.conv_out = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        self.attention = SpatialAttention(width, config.num_heads, residual=True, norm=True, backend=config.backend)
        self.linear = nn.Linear(width * side * side, width)
        self.dropout = FeatureDropout(config.dropout)

    def forward(self, context: Context, mask: Tensor) -> Tensor:
        """Summarise a batch of patches.

        Args:
            context: context of N = B * K series.
            mask: (B, H, W) bool, False outside the city.

        Returns:
            One token per patch, (N, 1, C).
        """
        latest = slice(-self.steps, None)
        channels = (context.patch[:, latest], context.patch_unusual[:, latest], context.patch_observed[:, latest])
        inside = mask.repeat_interleave(self.num_tasks, dim=0)[:, None]
        planes = torch.cat(channels, dim=1)
        planes = functional.gelu(self.conv_in(planes))
        one = inside.to(planes.dtype)  # multiplying by it takes a third of the time of torch.where with `inside`
        planes = functional.gelu(self.conv_out(planes * one)) * one
        planes = self.attention(planes, key_padding_mask=~inside.flatten(1)) * one
        token: Tensor = self.dropout(self.linear(planes.flatten(1))[:, None])
        return token
