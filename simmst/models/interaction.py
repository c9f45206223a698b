"""What tasks exchange, and the task MLPs that fuse a task's temporal and spatial features (Sim-MSTNet, Eq. 11)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from simmst.models.config import SimMSTNetConfig
from simmst.models.dropout import FeatureDropout
from simmst.nn.task_interaction import TaskInteraction


class FeatureInteraction(nn.Module):
    """Attention over the concatenated features of all tasks, temporal and spatial apart (Sim-MSTNet, Eq. 11).

    Each of the two has its own residual and LayerNorm. A learned task embedding is added before it: attention over a
    set of tokens could not tell otherwise whose they are.

    Example:
        >>> exchange = FeatureInteraction(SimMSTNetConfig(width=8, num_heads=2))
        >>> temporal, spatial = exchange(torch.zeros(4, 3, 12, 8), torch.zeros(4, 3, 1, 8))
        >>> temporal.shape, spatial.shape
        (torch.Size([4, 3, 12, 8]), torch.Size([4, 3, 1, 8]))
    """

    def __init__(self, config: SimMSTNetConfig) -> None:
        super().__init__()
        self.task = nn.Parameter(0.1 * torch.randn(config.num_tasks, 1, config.width))
        self.temporal = TaskInteraction(config.width, config.num_heads, backend=config.backend)
        self.spatial = (
            TaskInteraction(config.width, config.num_heads, backend=config.backend) if config.spatial else None
        )

    def forward(self, temporal: Tensor, spatial: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Exchange features.

        Args:
            temporal: (B, K, T_in, C).
            spatial: (B, K, 1, C), or None without a spatial branch.

        Returns:
            The same two, each task's tokens having seen every task's.
        """
        temporal = self.temporal(temporal + self.task)
        if self.spatial is not None and spatial is not None:
            spatial = self.spatial(spatial + self.task)
        return temporal, spatial


class TaskMLP(nn.Module):
    r"""Fuse the temporal tokens of a task with its spatial token (Sim-MSTNet, Eq. 11).

    .. math:: f_t = \mathrm{LayerNorm}(h_t + W_2\,\mathrm{GELU}(W_h h_t + W_s s + b_1) + b_2)

    which is an MLP over the concatenation :math:`[h_t; s]`, with the spatial half computed once.

    Example:
        >>> fuse = TaskMLP(SimMSTNetConfig(width=8, num_heads=2))
        >>> fuse(torch.zeros(4, 12, 8), torch.zeros(4, 1, 8)).shape
        torch.Size([4, 12, 8])
    """

    def __init__(self, config: SimMSTNetConfig) -> None:
        super().__init__()
        self.temporal = nn.Linear(config.width, config.feedforward)
        self.spatial = nn.Linear(config.width, config.feedforward, bias=False) if config.spatial else None
        self.out = nn.Linear(config.feedforward, config.width)
        self.dropout = FeatureDropout(config.dropout)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, temporal: Tensor, spatial: Tensor | None) -> Tensor:
        """Fuse temporal tokens (B, T_in, C) and the spatial token (B, 1, C) into (B, T_in, C)."""
        hidden = self.temporal(temporal)
        if self.spatial is not None and spatial is not None:
            hidden = hidden + self.spatial(spatial)
        fused: Tensor = self.norm(temporal + self.dropout(self.out(functional.gelu(hidden))))
        return fused
