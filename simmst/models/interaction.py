"""The exchange of features between tasks, and the MLP that fuses a task's two branches (Sim-MSTNet, Eq. 11)."""

from __future__ import annotations

from torch import Tensor, nn

from simmst.models.config import SimMSTNetConfig
from simmst.models.dropout import FeatureDropout
from simmst.models.feed_forward import two_layers
from simmst.nn.task_interaction import TaskInteraction


class FeatureInteraction(nn.Module):
    """Attention over the concatenated features of all tasks, temporal and spatial separately (Sim-MSTNet, Eq. 11).

    Both attentions have their own residual and LayerNorm. The embedding of its task is added to every token first,
    because attention over a set cannot tell which task a token belongs to. The other tasks ignore a task without any
    observed value, as if it did not exist.

    Example:
        >>> import torch
        >>> exchange = FeatureInteraction(SimMSTNetConfig(width=8, num_heads=2))
        >>> tokens, patch, task = torch.zeros(4, 3, 12, 8), torch.zeros(4, 3, 1, 8), torch.zeros(4, 3, 8)
        >>> temporal, spatial = exchange(tokens, patch, task, torch.zeros(4, 3, dtype=torch.bool))
        >>> temporal.shape, spatial.shape
        (torch.Size([4, 3, 12, 8]), torch.Size([4, 3, 1, 8]))
    """

    def __init__(self, config: SimMSTNetConfig) -> None:
        super().__init__()
        self.temporal = TaskInteraction(config.width, config.num_heads, backend=config.backend)
        self.spatial = (
            TaskInteraction(config.width, config.num_heads, backend=config.backend) if config.spatial else None
        )

    def forward(
        self, temporal: Tensor, spatial: Tensor | None, task: Tensor, absent: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Exchange features.

        Args:
            temporal: (B, K, T_in, C).
            spatial: (B, K, 1, C), or None without a spatial branch.
            task: (B, K, C), the tasks' embeddings.
            absent: (B, K) bool, True where nothing of a task is observed.

        Returns:
            temporal and spatial after the exchange, in the same shapes.
        """
        task = task[:, :, None]
        temporal = self.temporal(temporal + task, absent[:, :, None].expand(temporal.shape[:3]))
        if self.spatial is not None and spatial is not None:
            spatial = self.spatial(spatial + task, absent[:, :, None].expand(spatial.shape[:3]))
        return temporal, spatial


class TaskMLP(nn.Module):
    r"""Fuse the temporal tokens of a task with its spatial token (Sim-MSTNet, Eq. 11).

    .. math:: f_t = \mathrm{LayerNorm}(h_t + W_2\,\mathrm{GELU}(W_h h_t + W_s s + b_1) + b_2)

    which is an MLP over the concatenation :math:`[h_t; s]`, with the spatial half computed once.

    Example:
        >>> import torch
        >>> fuse = TaskMLP(SimMSTNetConfig(width=8, num_heads=2))
        >>> fuse(torch.zeros(4, 12, 8), torch.zeros(4, 1, 8)).shape
        torch.Size([4, 12, 8])
    """

    def __init__(self, config: SimMSTNetConfig) -> None:
        super().__init__()
        self.backend = config.backend
        self.temporal = nn.Linear(config.width, config.feedforward)
        self.spatial = nn.Linear(config.width, config.feedforward, bias=False) if config.spatial else None
        self.out = nn.Linear(config.feedforward, config.width)
        self.dropout = FeatureDropout(config.dropout)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, temporal: Tensor, spatial: Tensor | None) -> Tensor:
        """Fuse temporal tokens (N, T_in, C) and the spatial token (N, 1, C) into (N, T_in, C)."""
        addend = None if self.spatial is None or spatial is None else self.spatial(spatial)[:, 0]
        return two_layers(
            temporal,
            self.temporal,
            self.out,
            norm=self.norm,
            norm_first=False,
            addend=addend,
            dropout=self.dropout,
            backend=self.backend,
        )
