"""DCRNN: a recurrent sequence-to-sequence network whose products are diffusions on a graph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from simmst.baselines.networks.config import integer
from simmst.baselines.networks.graph import Graph, GraphConfig, random_walk
from simmst.baselines.networks.inputs import View
from simmst.baselines.networks.network import Network
from simmst.foundation.memory import Memory


@dataclass(frozen=True)
class DCRNNConfig(GraphConfig):
    """Settings of `DCRNN`.

    Args:
        width: features of a hidden state of a cell.
        layers: recurrent layers of encoder and decoder.
        diffusion_steps: number of steps of the random walks, K.
        sampling_decay: number of batches over which scheduled sampling goes from the truth to the network's own
            forecasts.
    """

    width: int = integer(64)
    layers: int = integer(2)
    diffusion_steps: int = integer(2)
    sampling_decay: int = integer(2000)


class DCRNN(Network):
    """Encode the window by diffusion-convolutional GRUs, and decode step by step.

    Source: Li, Yu, Shahabi & Liu 2018, "Diffusion convolutional recurrent neural network" (ICLR): Eq. 2 and 3, dual
    random walks with K = 2, 2 layers of 64, scheduled sampling with probability tau / (tau + exp(i / tau)), Adam with
    epsilon 1e-3, time of the day among the inputs. Adapted: the graph is that of the neighbourhood (on a symmetric
    graph the two walks are the same). Scheduled sampling feeds back the truth of the target cell only, because windows
    have no other. The gradient's norm is clipped as the training settings say (the source's bound is 5).
    """

    config_class = DCRNNConfig
    calendar = True
    takes_target: ClassVar[bool] = True
    adam_epsilon: ClassVar[float] = 1e-3

    batches_seen: Tensor

    def __init__(self, config: DCRNNConfig) -> None:
        super().__init__(config)
        self.graph = Graph(config)
        tasks, width, steps = config.num_tasks, config.width, config.diffusion_steps
        widths = [width] * (config.layers - 1)
        fed = tasks * (1 + self.inputs.num_features) + self.marks_in_tokens
        self.encoder = nn.ModuleList(DiffusionGRUCell(c, width, steps) for c in (self.token_width, *widths))
        self.decoder = nn.ModuleList(DiffusionGRUCell(c, width, steps) for c in (fed, *widths))
        self.head = nn.Linear(width, tasks)
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.int64))

    def forward(
        self,
        values: Tensor,
        marks: Tensor,
        *,
        mask: Tensor | None = None,
        memory: Memory | None = None,
        target: Tensor | None = None,
    ) -> Tensor:
        """Forecast as `Network.forward` does; `target` (B, T_out, K) feeds scheduled sampling in training."""
        view: View = self.inputs(values, marks, mask, memory)
        truth = None
        if target is not None:
            truth = target.to(view.base) - view.base
            self.batches_seen = self.batches_seen + 1
        return view.base + self.decode(view, truth)

    def forecast(self, view: View) -> Tensor:
        """Return (B, T_out, K)."""
        return self.decode(view, None)

    def decode(self, view: View, truth: Tensor | None) -> Tensor:
        """Encode a window and decode it, fed by the truth (B, T_out, K) with the probability of scheduled sampling."""
        walks = walk_powers(self.graph(view), self.config.diffusion_steps)
        tokens = self.node_tokens(view)
        states = [tokens.new_zeros(*tokens.shape[:1], tokens.shape[2], self.config.width) for _ in self.encoder]
        for step in range(tokens.shape[1]):
            states = _advance(self.encoder, tokens[:, step], states, walks)
        cells, horizon = tokens.shape[2], self.config.horizon
        # The memory of the slots is the target cell's; every cell gets it, as every cell gets the calendar.
        told = self.future_tokens(view)[:, :, None].expand(-1, -1, cells, -1)
        own = tokens.new_zeros(len(tokens), cells, self.config.num_tasks)
        probability = self.truth_probability() if truth is not None else 0.0
        forecasts = []
        for step in range(horizon):
            states = _advance(self.decoder, torch.cat((own, told[:, step]), dim=-1), states, walks)
            own = self.head(states[-1])
            forecasts.append(own[:, cells // 2])
            if truth is not None and torch.rand(()) < probability:
                own = self._with_truth(own, truth[:, step])
        return torch.stack(forecasts, dim=1)

    def truth_probability(self) -> float:
        """Return the probability of feeding the decoder the truth, by the number of batches trained on."""
        decay = float(self.config.sampling_decay)
        return decay / (decay + math.exp(min(float(self.batches_seen) / decay, 700.0)))

    def _with_truth(self, own: Tensor, truth: Tensor) -> Tensor:
        """Replace the target cell's forecast in (B, N, K) by the truth (B, K), where it is known."""
        centre = own.shape[1] // 2
        known = torch.where(torch.isnan(truth), own[:, centre], truth)
        return torch.cat((own[:, :centre], known[:, None], own[:, centre + 1 :]), dim=1)


def _advance(layers: nn.ModuleList, features: Tensor, states: list[Tensor], walks: Tensor) -> list[Tensor]:
    """Take one step through all layers, and return their states."""
    after = []
    for layer, state in zip(layers, states, strict=True):
        features = layer(features, state, walks)
        after.append(features)
    return after


class DiffusionGRUCell(nn.Module):
    """A GRU cell whose products are diffusion convolutions (Li et al. 2018, Eq. 3)."""

    def __init__(self, channels: int, width: int, steps: int) -> None:
        super().__init__()
        self.gates = DiffusionConvolution(channels + width, 2 * width, steps)
        self.candidate = DiffusionConvolution(channels + width, width, steps)
        nn.init.ones_(self.gates.linear.bias)  # as in the released code

    def forward(self, features: Tensor, state: Tensor, walks: Tensor) -> Tensor:
        """Return the next state (B, N, width) of features (B, N, C), the state and the powers of the walks."""
        reset, update = torch.sigmoid(self.gates(torch.cat((features, state), dim=-1), walks)).chunk(2, dim=-1)
        candidate = torch.tanh(self.candidate(torch.cat((features, reset * state), dim=-1), walks))
        return update * state + (1 - update) * candidate


class DiffusionConvolution(nn.Module):
    r"""Diffuse features by both random walks.

    .. math:: x \Theta_0 + \sum_{k=1}^K (D_O^{-1} W)^k x \Theta_{k1} + (D_I^{-1} W^T)^k x \Theta_{k2}

    Source: Li et al. 2018, Eq. 2. The released code uses Chebyshev polynomials of the walks instead of their powers.
    """

    def __init__(self, channels: int, width: int, steps: int) -> None:
        super().__init__()
        self.linear = nn.Linear((1 + 2 * steps) * channels, width)

    def forward(self, features: Tensor, walks: Tensor) -> Tensor:
        """Return (B, N, width) of features (B, N, C) and the powers of the walks (B, 2 K N, N)."""
        diffused = (walks @ features).unflatten(1, (-1, features.shape[1])).transpose(1, 2).flatten(2)
        convolved: Tensor = self.linear(torch.cat((features, diffused), dim=-1))
        return convolved


def walk_powers(weights: Tensor, steps: int) -> Tensor:
    """Return the first powers of the random walks along and against the edges, one below the other, (B, 2 K N, N).

    Example:
        >>> walk_powers(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), 2).shape
        torch.Size([1, 8, 2])
    """
    powers = []
    for walk in (random_walk(weights), random_walk(weights.transpose(1, 2))):
        powers.append(walk)
        for _ in range(steps - 1):
            powers.append(powers[-1] @ walk)
    return torch.cat(powers, dim=1)
