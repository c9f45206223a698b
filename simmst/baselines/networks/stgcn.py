"""STGCN: gated convolutions over time and Chebyshev convolutions over a graph, in turn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from simmst.baselines.networks.config import integer
from simmst.baselines.networks.graph import Graph, GraphConfig, propagate, symmetric
from simmst.baselines.networks.inputs import View
from simmst.baselines.networks.network import Network


@dataclass(frozen=True)
class STGCNConfig(GraphConfig):
    """Settings of `STGCN`.

    Args:
        width: channels of the temporal convolutions.
        bottleneck: channels of the spatial convolutions between the temporal ones.
        time_kernel: slots of a temporal convolution, Kt; two blocks shorten the window by 4 (Kt - 1).
        order: order of the Chebyshev polynomials, Ks: neighbours up to Ks - 1 edges away.
        dropout: probability of dropping a feature while training.
    """

    width: int = integer(64)
    bottleneck: int = integer(16)
    time_kernel: int = integer(3, 2)
    order: int = integer(3)
    dropout: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input_length <= 4 * (self.time_kernel - 1):
            self.refuse("input_length", f"at least {4 * self.time_kernel - 3} for time_kernel = {self.time_kernel}")


class STGCN(Network):
    """Two blocks of temporal, spatial and temporal convolution with a norm and dropout, and an output layer.

    Source: Yu, Yin & Zhu 2018, "Spatio-temporal graph convolutional networks" (IJCAI): TGTND TGTND TNFF with gated
    linear units, Kt = Ks = 3, 64-16-64 channels. Adapted: the graph is that of the neighbourhood, and its Laplacian's
    largest eigenvalue is replaced by the bound of 2. The output layer forecasts all steps at once instead of one, at
    the target cell.
    """

    config_class = STGCNConfig

    def __init__(self, config: STGCNConfig) -> None:
        super().__init__(config)
        self.graph = Graph(config)
        self.blocks = nn.ModuleList(
            [SpatioTemporalBlock(config, self.token_width), SpatioTemporalBlock(config, config.width)]
        )
        left = config.input_length - 4 * (config.time_kernel - 1)
        self.last = GatedConvolution(config.width, config.width, left)
        self.norm = nn.LayerNorm([config.num_cells, config.width])
        self.hidden = nn.Linear(config.width, config.width)
        self.head = nn.Linear(config.width, config.horizon * config.num_tasks)

    def forecast(self, view: View) -> Tensor:
        """Return (B, T_out, K)."""
        laplacian = -symmetric(self.graph(view))  # 2 L / 2 - I with L = I - D^-1/2 W D^-1/2
        features = self.node_tokens(view)  # (B, T, N, C)
        for block in self.blocks:
            features = block(features, laplacian)
        features = self.norm(self.last(features)[:, 0])[:, self.config.num_cells // 2]
        return self.by_step(self.head(functional.relu(self.hidden(features))))


class SpatioTemporalBlock(nn.Module):
    """Temporal, Chebyshev and temporal convolution, then a norm over cells and channels, then dropout."""

    def __init__(self, config: STGCNConfig, channels: int) -> None:
        super().__init__()
        self.first = GatedConvolution(channels, config.width, config.time_kernel)
        self.spatial = ChebyshevConvolution(config.width, config.bottleneck, config.order)
        self.align = nn.Linear(config.width, config.bottleneck)
        self.second = GatedConvolution(config.bottleneck, config.width, config.time_kernel)
        self.norm = nn.LayerNorm([config.num_cells, config.width])
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, features: Tensor, laplacian: Tensor) -> Tensor:
        """Return (B, T - 2 (Kt - 1), N, width) of features (B, T, N, C) and the scaled Laplacian (B, N, N)."""
        features = self.first(features)
        features = functional.relu(self.spatial(features, laplacian) + self.align(features))
        mapped: Tensor = self.dropout(self.norm(self.second(features)))
        return mapped


class GatedConvolution(nn.Module):
    """A convolution over time without padding, with a gated linear unit and a residual path (Yu et al. 2018, Eq. 7)."""

    def __init__(self, channels: int, width: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.convolution = nn.Conv2d(channels, 2 * width, (kernel, 1))
        self.align = nn.Linear(channels, width) if channels != width else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, T - kernel + 1, N, width) of features (B, T, N, C)."""
        value, gate = self.convolution(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).chunk(2, dim=-1)
        convolved: Tensor = (value + self.align(features[:, self.kernel - 1 :])) * torch.sigmoid(gate)
        return convolved


class ChebyshevConvolution(nn.Module):
    r"""Filter features on a graph: :math:`\sum_k T_k(\tilde L) x \Theta_k` (Yu et al. 2018, Eq. 4)."""

    def __init__(self, channels: int, width: int, order: int) -> None:
        super().__init__()
        self.order = order
        self.linear = nn.Linear(order * channels, width)

    def forward(self, features: Tensor, laplacian: Tensor) -> Tensor:
        """Return (B, T, N, width) of features (B, T, N, C) and the scaled Laplacian (B, N, N)."""
        terms = [features]
        if self.order > 1:
            terms.append(propagate(laplacian, features))
        while len(terms) < self.order:
            terms.append(2 * propagate(laplacian, terms[-1]) - terms[-2])
        filtered: Tensor = self.linear(torch.cat(terms, dim=-1))
        return filtered
