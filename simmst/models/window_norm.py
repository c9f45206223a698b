"""Reversible standardisation of every window by its own observed values."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

# Added in quadrature to a window's deviation: a constant window keeps a forecast that can move, and a window of
# ordinary spread (about 1 on the scaler's scale) is divided by its own deviation to within a percent.
SMALLEST_SPREAD = 0.1


class NormalisedWindow(NamedTuple):
    """A window on its own scale, and what maps it back.

    Attributes:
        values: (B, T_in, K, H, W) normalised, zero where missing or outside the city.
        observed: (B, T_in, K, H, W) one where observed, zero elsewhere, in the dtype of the values.
        level: (B, K, H, W) on the input's scale.
        spread: (B, K, H, W) on the input's scale, positive.
        features: (B, F, K, H, W) what the model is told of level and spread; F = 2, or 0 without normalisation.
    """

    values: Tensor
    observed: Tensor
    level: Tensor
    spread: Tensor
    features: Tensor


class WindowNorm(nn.Module):
    r"""Standardise each window, cell and service by its observed mean and deviation over time.

    With :math:`O` the observed steps of a window and :math:`x_t` its values,

    .. math::
        \ell = \frac{1}{|O|} \sum_{t \in O} x_t, \qquad
        s = \sqrt{\frac{1}{|O|} \sum_{t \in O} (x_t - \ell)^2 + s_0^2}, \qquad
        z_t = (x_t - \ell) / s .

    Missing steps enter neither sum and become zero, the window's mean; a window with nothing observed has level 0 and
    spread 1. The forecast of a cell is mapped back with the level and spread of that cell alone. After RevIN (Kim et
    al. 2022), with missing values, without affine parameters, and with level and log spread handed on as features.

    Args:
        mode: ``"standard"``, or ``"none"`` for level 0 and spread 1 everywhere (the plain log form).

    Example:
        >>> window = WindowNorm()(torch.tensor([1.0, 3.0, float("nan")]).reshape(1, 3, 1, 1, 1))
        >>> window.level.item(), window.values.flatten().tolist()[-1]
        (2.0, 0.0)
    """

    def __init__(self, mode: str = "standard") -> None:
        super().__init__()
        self.mode = mode

    @property
    def num_features(self) -> int:
        """How many features of a window's level and spread there are, F."""
        return 2 if self.mode == "standard" else 0

    def forward(self, values: Tensor, mask: Tensor | None = None) -> NormalisedWindow:
        """Normalise a batch of windows.

        Args:
            values: (B, T_in, K, H, W), floating point, NaN = missing.
            mask: (B, H, W) bool, False outside the city; those cells count as missing throughout.
        """
        seen = ~torch.isnan(values)
        if mask is not None:
            seen = seen & mask[:, None, None]
        values = torch.where(seen, values, 0.0)
        observed = seen.to(values.dtype)
        if self.mode == "none":
            level = values.new_zeros(values.shape[:1] + values.shape[2:])
            return NormalisedWindow(values, observed, level, level + 1, level[:, None, :, :, :][:, :0])
        count = observed.sum(1)
        level = values.sum(1) / count.clamp(min=1)
        centred = torch.where(seen, values - level[:, None], 0.0)
        variance = centred.square().sum(1) / count.clamp(min=1)
        spread = torch.where(count > 0, (variance + SMALLEST_SPREAD**2).sqrt(), 1.0)
        features = torch.stack((level, spread.log()), dim=1)
        return NormalisedWindow(centred / spread[:, None], observed, level, spread, features)

    def extra_repr(self) -> str:
        """Show the mode."""
        return f"mode={self.mode!r}"
