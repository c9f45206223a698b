"""DLinear and NLinear: linear maps from the window to the forecast."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from simmst.baselines.networks.config import NetworkConfig, integer
from simmst.baselines.networks.inputs import View
from simmst.baselines.networks.network import Network


@dataclass(frozen=True)
class DLinearConfig(NetworkConfig):
    """Settings of `DLinear`.

    Args:
        kernel: number of slots in the moving average that makes the trend.
    """

    kernel: int = integer(25)


class DLinear(Network):
    """A moving average (the trend) and the rest, each mapped linearly to the forecast; services share the weights.

    Source: Zeng, Chen, Zhang & Xu 2023, "Are Transformers effective for time series forecasting?" (AAAI), DLinear with
    shared weights. Adapted: the window is centred, as for every network. With a memory, its features and the calendar
    have coefficients of their own.
    """

    config_class = DLinearConfig

    def __init__(self, config: DLinearConfig) -> None:
        super().__init__(config)
        self.trend = nn.Linear(config.input_length, config.horizon)
        self.season = nn.Linear(config.input_length, config.horizon)
        self.memory = _beside(self)

    def forecast(self, view: View) -> Tensor:
        """Return (B, T_out, K)."""
        values = view.values[..., view.values.shape[-1] // 2].transpose(1, 2)  # (B, K, T_in)
        trend = moving_average(values, self.config.kernel)
        forecast = self.trend(trend) + self.season(values - trend)
        return _remembered(self, view, self.memory, forecast).transpose(1, 2)


class NLinear(Network):
    """The window minus its last value, mapped linearly to the forecast, plus that value.

    Source: Zeng et al. 2023, NLinear with weights shared by the services. Adapted in the same way as `DLinear`.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.linear = nn.Linear(config.input_length, config.horizon)
        self.memory = _beside(self)

    def forecast(self, view: View) -> Tensor:
        """Return (B, T_out, K)."""
        values = view.values[..., view.values.shape[-1] // 2].transpose(1, 2)  # (B, K, T_in)
        last = values[..., -1:]
        # With a memory the forecast is a difference from the base, which is a better start than the last value.
        back = 0.0 if self.config.memory else last
        return _remembered(self, view, self.memory, self.linear(values - last) + back).transpose(1, 2)


def moving_average(values: Tensor, kernel: int) -> Tensor:
    """Average the last axis over `kernel` values around each, with the first and last value repeated beyond the ends.

    Example:
        >>> moving_average(torch.tensor([[1.0, 2.0, 6.0]]), 3).tolist()
        [[1.3333333730697632, 3.0, 4.666666507720947]]
    """
    front = values[..., :1].expand(*values.shape[:-1], (kernel - 1) // 2)
    end = values[..., -1:].expand(*values.shape[:-1], kernel // 2)
    padded = torch.cat((front, values, end), dim=-1)
    return functional.avg_pool1d(padded, kernel, stride=1)


def _beside(network: Network) -> nn.Linear | None:
    """Return the coefficients of all features except the value; None without a memory."""
    if not network.config.memory:
        return None
    steps = network.config.input_length * (network.inputs.num_features - 1)
    return nn.Linear(steps + network.config.horizon * network.config.num_marks, network.config.horizon, bias=False)


def _remembered(network: Network, view: View, linear: nn.Linear | None, forecast: Tensor) -> Tensor:
    """Add a linear map of the memory to a forecast (B, K, T_out)."""
    if linear is None:
        return forecast
    features = view.past[:, :, :, view.past.shape[3] // 2, 1:].transpose(1, 2).flatten(2)
    marks = view.future_marks.flatten(1)[:, None].expand(-1, features.shape[1], -1)
    remembered: Tensor = linear(torch.cat((features, marks), dim=-1))
    return forecast + remembered
