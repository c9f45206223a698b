"""CSLSL: tasks in a chain of causes, each recurrent branch fed by the one before, under a spatial constraint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from simmst.baselines.networks.config import integer
from simmst.baselines.networks.graph import Graph, GraphConfig
from simmst.baselines.networks.inputs import View
from simmst.baselines.networks.network import Network
from simmst.foundation.memory import Memory

CHAIN = ("call", "sms", "internet")


@dataclass(frozen=True)
class CSLSLConfig(GraphConfig):
    """Settings of `CSLSL`.

    Args:
        width: features of a branch's recurrent state.
        order: services from the first cause to the last effect; empty takes call, sms, internet and then others.
        constraint: weight of the spatial constraint relative to a task's loss, c.
    """

    width: int = integer(64)
    order: tuple[str, ...] = ()
    constraint: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", tuple(self.order))
        super().__post_init__()
        if self.order and sorted(self.order) != sorted(self.services):
            self.refuse("order", f"all of {', '.join(self.services)}, each once, or empty")

    @property
    def chain(self) -> tuple[int, ...]:
        """The numbers of the services from the first cause to the last effect."""
        known = {name: place for place, name in enumerate(self.order or CHAIN)}
        numbers = range(self.num_tasks)
        return tuple(sorted(numbers, key=lambda number: known.get(self.services[number].lower(), len(known))))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold."""
        return {**super().to_dict(), "order": list(self.order)}


class CSLSL(Network):
    r"""One GRU for each service over each cell's window, fed by the states of the service before it in the chain.

    In training the loss gains the spatial constraint

    .. math:: c \sum_{ij} w_{ij} (\hat y_i - \hat y_j)^2 \Big/ \sum_{ij} w_{ij},

    which is the quadratic form of the grid's Laplacian over the cells' forecasts, as differences from their levels.

    Source: Huang et al. 2024, "Human mobility prediction with causal and spatial-constrained multi-task network" (EPJ
    Data Science), which predicts when, what and where a person goes next, each from the ones before, with a loss in the
    distance of the place. Adapted: the chain is that of the services, by default Call, SMS, Internet. The places are
    the cells of the neighbourhood, and the constraint pulls the forecasts of neighbours together.
    """

    config_class = CSLSLConfig
    calendar = True
    has_penalty: ClassVar[bool] = True

    def __init__(self, config: CSLSLConfig) -> None:
        super().__init__(config)
        self.graph = Graph(config)
        channels = self.inputs.num_features + self.marks_in_tokens
        inputs = [channels] + [channels + config.width] * (config.num_tasks - 1)
        self.branches = nn.ModuleList(nn.GRU(fed, config.width, batch_first=True) for fed in inputs)
        self.heads = nn.ModuleList(nn.Linear(config.width, config.horizon) for _ in inputs)

    def forward(
        self,
        values: Tensor,
        marks: Tensor,
        *,
        mask: Tensor | None = None,
        memory: Memory | None = None,
        penalty: bool = False,
    ) -> Any:
        """Forecast as `Network.forward` does; with `penalty`, also return the constraint (B, K) of each sample."""
        view: View = self.inputs(values, marks, mask, memory)
        cells = self.forecast_cells(view)
        forecast = view.base + cells[..., cells.shape[3] // 2]
        return (forecast, self.constraint(view, cells)) if penalty else forecast

    def forecast(self, view: View) -> Tensor:
        """Return (B, T_out, K)."""
        cells = self.forecast_cells(view)
        return cells[..., cells.shape[3] // 2]

    def forecast_cells(self, view: View) -> Tensor:
        """Forecast every cell as a difference from its level, (B, T_out, K, N)."""
        batch, _, tasks, cells = view.past.shape[:4]
        marks = view.past_marks[:, None].expand(-1, cells, -1, -1).flatten(0, 1)
        forecasts: list[Tensor] = [view.base] * tasks
        before: list[Tensor] = []
        for number, branch, head in zip(self.config.chain, self.branches, self.heads, strict=True):
            tokens = view.past[:, :, number].transpose(1, 2).flatten(0, 1)  # (B N, T, F)
            states, _ = branch(torch.cat((self._with_marks(tokens, marks), *before), dim=-1))
            before = [states]
            forecasts[number] = head(states[:, -1]).unflatten(0, (batch, cells)).transpose(1, 2)
        return torch.stack(forecasts, dim=2)

    def constraint(self, view: View, cells: Tensor) -> Tensor:
        """Return the Laplacian's quadratic form of forecasts (B, T_out, K, N) over the sum of the weights, (B, K)."""
        weights = self.graph(view)  # (B, N, N)
        apart = (cells[..., :, None] - cells[..., None, :]).square().mean(1)  # (B, K, N, N)
        total = weights.sum((1, 2)).clamp(min=1e-12)
        form: Tensor = (weights[:, None] * apart).sum((2, 3)) / total[:, None]
        return form * float(self.config.constraint)
