"""The memory of a window: what data sets give and models take."""

from __future__ import annotations

from typing import NamedTuple

import torch

MAX_CONTEXT_DAYS = 28


class Memory(NamedTuple):
    """What a forecast knows of the days before its input, on the scaler's scale; NaN = missing or out of reach.

    No value at or after the origin, and none before the context, is in it.

    Attributes:
        days: float32 (B, L, T_in + T_out, K), the target cell at the same slots 1, 2, ... L days before.
        same_day: float32 (B, L, T_out, 2), whether a slot and its namesake L days before are both working days or both
            days of rest, and whether they are the same day of the week.
        usual: float32 (B, T_in, K, n, n), the mean of those days at the input slots, for each cell of the patch.
        city: float32 (B, T_in, K), how far the mean of all cells was from usual.
        level: float32 (B, K, n, n), the mean of the context.
        spread: float32 (B, K, n, n), its standard deviation.
        context: float32 (B,), days of context that the series reaches back.
        steps_per_day: float32 (B,), slots a day.
    """

    days: torch.Tensor
    same_day: torch.Tensor
    usual: torch.Tensor
    city: torch.Tensor
    level: torch.Tensor
    spread: torch.Tensor
    context: torch.Tensor
    steps_per_day: torch.Tensor
