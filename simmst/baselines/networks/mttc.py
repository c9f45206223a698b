"""MTTC: one convolutional trunk over the window, and one linear head for each task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simmst.baselines.networks.config import NetworkConfig, integer
from simmst.baselines.networks.inputs import View
from simmst.baselines.networks.network import Network

_CHANNELS = (32, 64, 128)  # each for two convolutions, with pooling after them


@dataclass(frozen=True)
class MTTCConfig(NetworkConfig):
    """Settings of `MTTC`.

    Args:
        dense: features of the two dense layers.
        scale: divisor of the convolutions' 32, 64 and 128 channels.
    """

    dense: int = integer(256)
    scale: int = integer(1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale > _CHANNELS[0]:
            self.refuse("scale", f"at most {_CHANNELS[0]}")


class MTTC(Network):
    """Three blocks of two convolutions over time and a pooling, two dense layers, and a linear head for each service.

    Source: Rezaei & Liu 2020, "Multitask learning for network traffic classification" (ICCCN), which predicts a flow's
    bandwidth, duration and class from its first packets. Adapted: the channels are the services of the target cell, and
    the heads forecast their slots instead of classes. Convolutions and pooling are padded ("same"), because unpadded
    ones would use up a window of a day.
    """

    config_class = MTTCConfig

    def __init__(self, config: MTTCConfig) -> None:
        super().__init__(config)
        layers: list[nn.Module] = []
        channels, length = self.token_width, config.input_length
        for full in _CHANNELS:
            width = full // config.scale
            for before in (channels, width):
                layers += [nn.Conv1d(before, width, kernel_size=3, padding="same"), nn.ReLU()]
            layers.append(nn.MaxPool1d(2, ceil_mode=True))
            channels, length = width, -(-length // 2)
        self.trunk = nn.Sequential(*layers)
        self.dense = nn.Sequential(
            nn.Linear(channels * length, config.dense), nn.ReLU(), nn.Linear(config.dense, config.dense), nn.ReLU()
        )
        self.heads = nn.ModuleList(nn.Linear(config.dense, config.horizon) for _ in config.services)

    def forecast(self, view: View) -> Tensor:
        """Return (B, T_out, K)."""
        shared = self.dense(self.trunk(self.centre_tokens(view).transpose(1, 2)).flatten(1))
        return torch.stack([head(shared) for head in self.heads], dim=-1)
