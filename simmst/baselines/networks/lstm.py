"""LSTM with branches for the latest slots and for the same slots of previous days."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from simmst.baselines.networks.config import NetworkConfig, integer
from simmst.baselines.networks.inputs import View
from simmst.baselines.networks.network import Network


@dataclass(frozen=True)
class LSTMConfig(NetworkConfig):
    """Settings of `LSTM`.

    Args:
        width: features of a hidden state.
        layers: number of layers of each branch.
        period_days: number of previous days in the period branch.
    """

    width: int = integer(64)
    layers: int = integer(2)
    period_days: int = integer(3)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.period_days > self.memory_days:
            self.refuse("period_days", f"at most memory_days = {self.memory_days}")


class LSTM(Network):
    """Two LSTMs over the target cell, whose last states are summed before a linear head.

    The closeness branch reads the input slots, the period branch the slots to forecast on each of the last days.

    Source: Hochreiter & Schmidhuber 1997. The branches are summed, like closeness and period in the cellular-traffic
    literature (Zhang et al. 2018, "Citywide cellular traffic prediction based on densely connected convolutional neural
    networks"). Adapted: one element of the period branch is all the slots to forecast on one previous day.
    """

    config_class = LSTMConfig

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(config)
        out = config.horizon * config.num_tasks
        self.closeness = nn.LSTM(self.token_width, config.width, config.layers, batch_first=True)
        self.period = nn.LSTM(out, config.width, config.layers, batch_first=True)
        self.head = nn.Linear(config.width, out)

    @property
    def takes_memory(self) -> bool:
        """Always True, because the period branch reads the previous days."""
        return True

    def forecast(self, view: View) -> Tensor:
        """Return (B, T_out, K)."""
        close = self.closeness(self.centre_tokens(view))[0][:, -1]
        days = view.days[:, : self.config.period_days].flip(1).flatten(2)  # the oldest day first
        summed = close + self.period(days)[0][:, -1]
        return self.by_step(self.head(summed))
