"""Quantiles of a forecast, which cannot cross."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

LEVELS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975)
MEDIAN = LEVELS.index(0.5)
_GAP = 0.3  # factor for the log scale, on which a gap of softplus(0) = 0.69 would be wide


class QuantileHead(nn.Module):
    """Map features to a median and to the positive gaps between neighbouring quantiles.

    Args:
        width: number of features of a token, C.

    Example:
        >>> quantiles = QuantileHead(8)(torch.randn(4, 2, 8))
        >>> quantiles.shape, bool((quantiles.diff(dim=-1) > 0).all())
        (torch.Size([4, 2, 13]), True)
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, len(LEVELS))
        with torch.no_grad():
            self.linear.weight.mul_(0.1)
            self.linear.bias.fill_(-1.0)
            self.linear.bias[MEDIAN] = 0.0

    def forward(self, tokens: Tensor) -> Tensor:
        """Return quantiles (..., Q) at `LEVELS` from features (..., C)."""
        values = self.linear(tokens)
        median = values[..., MEDIAN : MEDIAN + 1]
        gaps = _GAP * functional.softplus(values)
        below = gaps[..., :MEDIAN].flip(-1).cumsum(-1).flip(-1)
        above = gaps[..., MEDIAN + 1 :].cumsum(-1)
        return torch.cat((median - below, median, median + above), dim=-1)


def at_levels(quantiles: Tensor, levels: tuple[float, ...]) -> Tensor:
    """Interpolate and extrapolate quantiles at `LEVELS` linearly in the normal score of the level.

    Args:
        quantiles: (..., Q), ascending.
        levels: levels wanted, above 0 and below 1.

    Returns:
        (..., len(levels)).

    Example:
        >>> at_levels(torch.linspace(-3, 3, 13), (0.5, 0.1)).tolist()
        [0.0, -2.0]
    """
    normal = torch.distributions.Normal(0.0, 1.0)
    known = normal.icdf(torch.tensor(LEVELS, dtype=torch.float64)).to(quantiles)
    wanted = normal.icdf(torch.tensor(levels, dtype=torch.float64)).to(quantiles)
    place = torch.searchsorted(known, wanted).clamp(1, len(LEVELS) - 1)
    share = (wanted - known[place - 1]) / (known[place] - known[place - 1])
    low, high = quantiles[..., place - 1], quantiles[..., place]
    interpolated: Tensor = low + share * (high - low)
    return interpolated
