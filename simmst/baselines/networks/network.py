"""The contract of the networks: they take centred windows and return differences from a base."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from simmst.baselines.networks.config import NetworkConfig
from simmst.baselines.networks.inputs import NetworkInput, View
from simmst.foundation.memory import Memory


class Network(nn.Module):
    """A network among the baselines, trained by the same training loop on the same windows as Sim-MSTNet.

    A subclass names its settings in `config_class` and implements `forecast`. Its `calendar` says whether its source
    has calendar inputs; with a memory every network has them, because Sim-MSTNet's memory has them.

    Args:
        config: an instance of `config_class`.
    """

    config_class: ClassVar[type[NetworkConfig]] = NetworkConfig
    calendar: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.inputs = NetworkInput(config)

    @property
    def takes_memory(self) -> bool:
        """Whether the network takes the memory of the windows."""
        return bool(self.config.memory)

    @property
    def marks_in_tokens(self) -> int:
        """Number of calendar features in each token: M, or 0 if the source has none and there is no memory."""
        return int(self.config.num_marks) if self.calendar or self.config.memory else 0

    @property
    def token_width(self) -> int:
        """Number of features of a token that holds all services of a cell: K F + M or K F."""
        return int(self.config.num_tasks * self.inputs.num_features + self.marks_in_tokens)

    def forward(
        self, values: Tensor, marks: Tensor, *, mask: Tensor | None = None, memory: Memory | None = None
    ) -> Tensor:
        """Forecast the target cell, the centre of the neighbourhood.

        Args:
            values: (B, T_in, K, H, W) on the scaler's scale, NaN = missing.
            marks: (B, T_in + T_out, M), calendar features of the input slots and the slots to forecast.
            mask: (B, H, W) bool, False outside the city; None when every cell is inside.
            memory: memory of the previous days; only a network with `takes_memory` uses it.

        Returns:
            (B, T_out, K) on the scale of ``values``.

        Raises:
            ValueError: a shape does not fit the settings.
        """
        view: View = self.inputs(values, marks, mask, memory)
        return view.base + self.forecast(view)

    @abstractmethod
    def forecast(self, view: View) -> Tensor:
        """Return (B, T_out, K), the difference from `view.base`."""

    def centre_tokens(self, view: View) -> Tensor:
        """Return the input slots of the target cell, all services side by side, (B, T_in, token_width)."""
        tokens = view.past[:, :, :, view.past.shape[3] // 2].flatten(2)
        return self._with_marks(tokens, view.past_marks)

    def node_tokens(self, view: View) -> Tensor:
        """Return the input slots of every cell, all services side by side, (B, T_in, N, token_width)."""
        tokens = view.past.transpose(2, 3).flatten(3)
        return self._with_marks(tokens, view.past_marks[:, :, None].expand(-1, -1, tokens.shape[2], -1))

    def future_tokens(self, view: View) -> Tensor:
        """Return the target cell's slots to forecast, (B, T_out, token_width): zeros except for memory and marks."""
        return self._with_marks(view.future.flatten(2), view.future_marks)

    def by_step(self, flat: Tensor) -> Tensor:
        """Reshape (B, T_out K) to (B, T_out, K)."""
        steps: Tensor = flat.unflatten(1, (self.config.horizon, self.config.num_tasks))
        return steps

    def _with_marks(self, tokens: Tensor, marks: Tensor) -> Tensor:
        return torch.cat((tokens, marks), dim=-1) if self.marks_in_tokens else tokens
