"""ConvLSTM: an LSTM whose state is a map and whose products are convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from simmst.baselines.networks.config import NetworkConfig, integer
from simmst.baselines.networks.inputs import View
from simmst.baselines.networks.network import Network


@dataclass(frozen=True)
class ConvLSTMConfig(NetworkConfig):
    """Settings of `ConvLSTM`.

    Args:
        width: channels of a hidden map.
        layers: number of ConvLSTM cells on top of each other.
    """

    width: int = integer(32)
    layers: int = integer(2)


class ConvLSTM(Network):
    """Convolutional LSTM cells over the maps of the neighbourhood, and a 1x1 convolution of the last hidden map.

    Source: Shi et al. 2015, "Convolutional LSTM network" (NeurIPS), Eq. 3 without the peepholes, which common
    implementations leave out. Adapted: the head forecasts all steps from the last state instead of a second forecasting
    network, and is applied at the target cell only. Cells outside the city are zero.
    """

    config_class = ConvLSTMConfig

    def __init__(self, config: ConvLSTMConfig) -> None:
        super().__init__(config)
        widths = [self.token_width] + [config.width] * config.layers
        self.cells = nn.ModuleList(ConvLSTMCell(one, two) for one, two in pairwise(widths))
        self.head = nn.Conv2d(config.width, config.horizon * config.num_tasks, kernel_size=1)

    def forecast(self, view: View) -> Tensor:
        """Return (B, T_out, K)."""
        side = self.config.neighbourhood
        maps = self.node_tokens(view) * view.inside[:, None, :, None]
        maps = maps.transpose(2, 3).unflatten(-1, (side, side))  # (B, T_in, C, H, W)
        for cell in self.cells:
            maps = cell(maps)
        middle = maps[:, -1, :, side // 2, side // 2, None, None]
        return self.by_step(self.head(middle).flatten(1))


class ConvLSTMCell(nn.Module):
    """One cell over a sequence of maps; one 3x3 convolution of input and hidden map makes the four gates.

    Example:
        >>> ConvLSTMCell(2, 4)(torch.zeros(3, 6, 2, 5, 5)).shape
        torch.Size([3, 6, 4, 5, 5])
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.gates = nn.Conv2d(channels + width, 4 * width, kernel_size=3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the hidden maps (B, T, width, H, W) of maps (B, T, channels, H, W)."""
        hidden = maps.new_zeros(len(maps), self.width, *maps.shape[-2:])
        memory, states = hidden, []
        for step in range(maps.shape[1]):
            gates = self.gates(torch.cat((maps[:, step], hidden), dim=1))
            let_in, forget, let_out, candidate = gates.chunk(4, dim=1)
            memory = torch.sigmoid(forget) * memory + torch.sigmoid(let_in) * torch.tanh(candidate)
            hidden = torch.sigmoid(let_out) * torch.tanh(memory)
            states.append(hidden)
        return torch.stack(states, dim=1)
