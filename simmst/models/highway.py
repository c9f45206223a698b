"""The linear autoregression beside the network: what a ridge on lags can do, the model can do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simmst.models.config import SimMSTNetConfig

# What of the network's forecast an untrained model adds to the autoregression.
INITIAL_MIX = 0.1


class Highway(nn.Module):
    r"""Add a linear autoregression of the target cell to the network's forecast, per task and step ahead.

    .. math:: \hat z_{h} = \sum_t A_{ht} z_t + B_h f + C_h m_h + d_h + g_h \, n_h

    with :math:`z_t` the normalised values of the target cell's own task (zero, the window's mean, where missing),
    :math:`f` the window's level and log spread, :math:`m_h` the calendar features of the step to forecast and
    :math:`n_h` the network's forecast, mixed in with the learned :math:`g_h`. It starts as persistence:
    A repeats the last value, :math:`g_h` is 0.1, the rest is zero. The idea is LSTNet's autoregressive component (Lai
    et al. 2018).

    Args:
        config: the model's configuration.
        num_features: features of the window's level and spread, F.

    Example:
        >>> highway = Highway(SimMSTNetConfig(services=("sms",), input_length=2, label_length=1, horizon=3), 0)
        >>> window = torch.tensor([[[5.0], [7.0]]])
        >>> highway(window, torch.zeros(1, 0, 1), torch.zeros(1, 3, 8), torch.zeros(1, 3, 1)).flatten().tolist()
        [7.0, 7.0, 7.0]
    """

    def __init__(self, config: SimMSTNetConfig, num_features: int) -> None:
        super().__init__()
        tasks, horizon = config.num_tasks, config.horizon
        lags = torch.zeros(tasks, horizon, config.input_length)
        lags[:, :, -1] = 1.0
        self.lags = nn.Parameter(lags)
        self.level = nn.Parameter(torch.zeros(tasks, horizon, num_features)) if num_features else None
        self.calendar = nn.Parameter(torch.zeros(tasks, horizon, config.num_marks)) if config.num_marks else None
        self.bias = nn.Parameter(torch.zeros(tasks, horizon))
        self.mix = nn.Parameter(torch.full((tasks, horizon), INITIAL_MIX))

    def forward(self, values: Tensor, features: Tensor, marks: Tensor, network: Tensor) -> Tensor:
        """Return the autoregression plus the mixed-in forecast of the network.

        Args:
            values: (B, T_in, K), zero where missing.
            features: (B, F, K).
            marks: (B, T_out, M), of the steps to forecast.
            network: (B, T_out, K).

        Returns:
            (B, T_out, K).
        """
        forecast = torch.einsum("btk,kht->bhk", values, self.lags) + self.bias.t()
        if self.level is not None:
            forecast = forecast + torch.einsum("bfk,khf->bhk", features, self.level)
        if self.calendar is not None:
            forecast = forecast + torch.einsum("bhm,khm->bhk", marks, self.calendar)
        return forecast + self.mix.t() * network

    @torch.no_grad()
    def fit(
        self, values: Tensor, features: Tensor, marks: Tensor, target: Tensor, weight: Tensor, ridge: float
    ) -> None:
        """Solve for the coefficients by weighted ridge regression towards the present ones, the network left out.

        Args:
            values: (B, T_in, K), zero where missing.
            features: (B, F, K).
            marks: (B, T_out, M), of the steps to forecast.
            target: (B, T_out, K) on the window's own scale, NaN = missing; a task and step without any stays as it is.
            weight: (B, K), the weight of each window's squared error.
            ridge: penalty on the change of the coefficients, relative to the mean weighted square of an input.
        """
        num_lags, num_features = values.shape[1], features.shape[1]
        residual = target - self.forward(values, features, marks, torch.zeros_like(values[:, :1]))
        observed = ~torch.isnan(residual)
        residual = torch.where(observed, residual, 0.0).double()
        for task in range(values.shape[2]):
            shared = torch.cat((values[:, :, task], features[:, :, task], torch.ones_like(values[:, :1, 0])), dim=1)
            for step in range(target.shape[1]):
                inputs = torch.cat((shared, marks[:, step]), dim=1).double()
                weighted = inputs * (weight[:, task] * observed[:, step, task])[:, None].double()
                gram = weighted.t() @ inputs
                penalty = ridge * gram.diagonal().mean() + torch.finfo(torch.float64).tiny
                system = gram + penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
                change = torch.linalg.lstsq(system.cpu(), (weighted.t() @ residual[:, step, task]).cpu()[:, None])
                lags, level, bias, calendar = (
                    change.solution[:, 0].to(self.lags).split([num_lags, num_features, 1, marks.shape[2]])
                )
                self.lags[task, step] += lags
                self.bias[task, step] += bias[0]
                if self.level is not None:
                    self.level[task, step] += level
                if self.calendar is not None:
                    self.calendar[task, step] += calendar
