"""A linear autoregression beside the network, which lets the model do all that a ridge regression on lags can."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from simmst.models.config import SimMSTNetConfig
from simmst.models.context import Context
from simmst.models.day_attention import Recollection

_GRAIN = 2.0**-24


class Highway(nn.Module):
    r"""Add a linear autoregression of the target cell to the network's forecast.

    .. math:: \hat z_h = a \cdot x_h + 2^{-(h-1)/2}\, b \cdot x_h + d_h\, c \cdot x_h

    with :math:`x_h` the latest values, their differences from usual, the city's differences from usual and the recalled
    features of the slot h steps ahead, and :math:`d_h` the slot's distance in days. The coefficients change smoothly
    with the distance, so one set serves every horizon and every slot length. All coefficients start at zero, so the
    autoregression starts from the mean of the days before. The idea is LSTNet's autoregressive component (Lai et al.
    2018).

    Args:
        config: configuration of the model.
        num_recalled: number of recalled features of a slot.
    """

    def __init__(self, config: SimMSTNetConfig, num_recalled: int) -> None:
        super().__init__()
        self.num_inputs = 3 * config.input_length + num_recalled + config.num_marks + 1
        self.coefficients = nn.Parameter(torch.zeros(3, self.num_inputs))

    def forward(self, context: Context, recalled: Recollection, marks: Tensor, distance: Tensor) -> Tensor:
        """Return the autoregression's forecast, (N, T_out).

        Args:
            context: context of N series.
            recalled: mean and features of the slots to forecast, from the days before.
            marks: (N, T_out, M), calendar features of the slots to forecast.
            distance: (N, T_out), days ahead.
        """
        latest, slots = self._inputs(context, recalled, marks)
        of_all, of_each = self.coefficients.split((latest.shape[-1], slots.shape[-1]), dim=1)
        sums = functional.linear(latest, of_all)[:, None] + functional.linear(slots, of_each)  # (N, T_out, 3)
        return (sums * self._scales(distance)).sum(-1)

    @staticmethod
    def _inputs(context: Context, recalled: Recollection, marks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs that all slots share, (N, I'), and the inputs of each slot, (N, T_out, I - I')."""
        latest = torch.cat((context.series, context.unusual, context.city), dim=-1)
        once = marks.new_ones(*marks.shape[:2], 1)
        return latest, torch.cat((recalled.features, marks, once), dim=-1)

    @staticmethod
    def _scales(distance: Tensor) -> Tensor:
        """Return the factor of each row of the coefficients, (N, T_out, 3)."""
        ahead = torch.arange(distance.shape[1], dtype=distance.dtype, device=distance.device)
        return torch.stack((torch.ones_like(distance), (-ahead / 2).exp2().expand_as(distance), distance), dim=-1)

    @torch.no_grad()
    def fit(
        self,
        context: Context,
        recalled: Recollection,
        marks: Tensor,
        distance: Tensor,
        residual: Tensor,
        *,
        ridge: float,
    ) -> None:
        """Update the coefficients by a ridge regression on the residual of the present forecast.

        Args:
            context: context of N series.
            recalled: mean and features of the slots to forecast, from the days before.
            marks: (N, T_out, M), calendar features of the slots to forecast.
            distance: (N, T_out), days ahead.
            residual: (N, T_out), target minus present forecast, NaN = missing.
            ridge: penalty on the change of the coefficients, relative to the mean square of an input.
        """
        observed = ~torch.isnan(residual)
        if not bool(observed.any()):
            return
        latest, slots = self._inputs(context, recalled, marks)
        inputs = torch.cat((latest[:, None].expand(-1, slots.shape[1], -1), slots), dim=-1)
        scaled = self._scales(distance)[..., None] * inputs[:, :, None]  # (N, T_out, 3, I)
        rows = scaled[observed].flatten(1).double()  # (R, 3 I)
        gram = rows.t() @ rows
        penalty = ridge * gram.diagonal().mean() + torch.finfo(torch.float64).tiny
        system = gram + penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        change = torch.linalg.lstsq(system.cpu(), (rows.t() @ residual[observed].double()).cpu()[:, None]).solution
        # The last bits depend on the addresses of the arrays. Rounding them off makes runs identical to the bit.
        change = torch.round(change / _GRAIN) * _GRAIN
        self.coefficients.add_(change.reshape(3, -1).to(self.coefficients))
