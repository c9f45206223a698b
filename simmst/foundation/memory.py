"""The memory of a window, which data sets return and models take."""

from __future__ import annotations

from typing import NamedTuple

import torch

MAX_CONTEXT_DAYS = 28


class Memory(NamedTuple):
    """The days before a forecast's input, on the scaler's scale; NaN = missing or out of reach.

    It holds no value at or after the origin, and none from before the context.

    Attributes:
        days: float32 (B, L, T_in + T_out, K), target cell at the same slots 1, 2, ... L days before.
        same_day: float32 (B, L, T_out, 2), whether a slot and the same slot L days before are both on working days or
            both on days of rest, and whether they are on the same day of the week.
        usual: float32 (B, T_in, K, n, n), mean of those days at the input slots, for each cell of the patch.
        city: float32 (B, T_in, K), mean deviation of all cells from the usual.
        level: float32 (B, K, n, n), mean of the context.
        spread: float32 (B, K, n, n), standard deviation of the context.
        context: float32 (B,), days of context that the series reaches back.
        steps_per_day: float32 (B,), number of slots in a day.
    """

    days: torch.Tensor
    same_day: torch.Tensor
    usual: torch.Tensor
    city: torch.Tensor
    level: torch.Tensor
    spread: torch.Tensor
    context: torch.Tensor
    steps_per_day: torch.Tensor
