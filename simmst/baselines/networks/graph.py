"""Graphs of the cells of a neighbourhood, and products with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simmst.baselines.networks.config import NetworkConfig, choice, integer
from simmst.baselines.networks.inputs import View

GRAPHS = ("gaussian", "rook", "queen", "correlation")
_THRESHOLD = 0.1  # smaller weights make no edge (Li et al. 2018, appendix E)


@dataclass(frozen=True)
class GraphConfig(NetworkConfig):
    """Settings of networks on a graph.

    Args:
        graph: edges between the cells of the neighbourhood: weights "gaussian" in their distance, the four ("rook") or
            eight ("queen") cells around each, or the cells whose values in the window correlate best ("correlation").
        top: number of edges of a cell in the correlation graph.
    """

    graph: str = choice("gaussian", GRAPHS)
    top: int = integer(4)


class Graph(nn.Module):
    """The graph of each window's neighbourhood; cells outside the city have no edge.

    Gaussian weights are exp(-(d / s)^2), where s is the standard deviation of all distances, as in DCRNN. The
    correlation graph is directed: it has each cell's `top` largest positive correlations.

    Args:
        config: settings of the network.

    Example:
        >>> grid_weights("rook", 3).sum(1).tolist()
        [2.0, 3.0, 2.0, 3.0, 4.0, 3.0, 2.0, 3.0, 2.0]
    """

    weights: Tensor

    def __init__(self, config: GraphConfig) -> None:
        super().__init__()
        self.config = config
        kind = "rook" if config.graph == "correlation" else config.graph
        self.register_buffer("weights", grid_weights(kind, config.neighbourhood), persistent=False)

    def forward(self, view: View) -> Tensor:
        """Return the weights of the edges, (B, N, N); row i holds the edges of cell i, without one to itself."""
        inside = view.inside.to(self.weights.dtype)
        both = inside[:, :, None] * inside[:, None]
        if self.config.graph == "correlation":
            return correlation_weights(view.values.mean(2), self.config.top) * both
        return self.weights * both


def grid_weights(kind: str, side: int) -> Tensor:
    """Return the edges of a square of cells, float32 (side^2, side^2): "gaussian", "rook" or "queen"."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack((row.flatten(), column.flatten()), dim=1).float()
    apart = (places[:, None] - places).abs()
    if kind == "rook":
        return (apart.sum(2) == 1).float()
    if kind == "queen":
        return (apart.amax(2) == 1).float()
    distance = apart.square().sum(2).sqrt()
    weights = torch.exp(-((distance / distance.std(unbiased=False).clamp(min=1e-6)) ** 2))
    return torch.where((weights < _THRESHOLD) | (distance == 0), 0.0, weights)


def correlation_weights(values: Tensor, top: int) -> Tensor:
    """Return each cell's `top` largest positive correlations, (B, N, N), of values (B, T, N)."""
    centred = values - values.mean(1, keepdim=True)
    unit = centred / centred.square().sum(1, keepdim=True).sqrt().clamp(min=1e-6)
    correlation = (unit.transpose(1, 2) @ unit).clamp(min=0.0)
    correlation = correlation * (1 - torch.eye(values.shape[2], dtype=values.dtype, device=values.device))
    least = correlation.topk(min(top, values.shape[2]), dim=2).values[..., -1:]
    return torch.where(correlation >= least, correlation, 0.0)


def random_walk(weights: Tensor) -> Tensor:
    """Divide each row by its sum: D^-1 W; rows without an edge stay zero.

    Example:
        >>> random_walk(torch.tensor([[0.0, 2.0], [0.0, 0.0]])).tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights / total.clamp(min=1e-12), 0.0)


def symmetric(weights: Tensor) -> Tensor:
    """Return D^-1/2 W D^-1/2 of the graph without directions, (W + W^T) / 2; cells without an edge stay zero."""
    weights = (weights + weights.transpose(-1, -2)) / 2
    degree = weights.sum(-1)
    scale = torch.where(degree > 0, degree.clamp(min=1e-12).rsqrt(), 0.0)
    return scale[..., :, None] * weights * scale[..., None, :]


def propagate(matrix: Tensor, features: Tensor) -> Tensor:
    """Return the products of matrices (B, N, N) with features (B, ..., N, C)."""
    while matrix.ndim < features.ndim:
        matrix = matrix.unsqueeze(1)
    return matrix @ features
