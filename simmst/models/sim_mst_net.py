"""Sim-MSTNet: multi-task spatiotemporal forecasting of cellular traffic."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simmst.errors import ConfigError
from simmst.foundation.memory import Memory
from simmst.models.config import SimMSTNetConfig
from simmst.models.context import NUM_FEATURES, Context, no_memory, relate
from simmst.models.day_attention import DayAttention, distances
from simmst.models.decoder import Decoder
from simmst.models.embedding import SeriesEmbedding
from simmst.models.highway import Highway
from simmst.models.interaction import FeatureInteraction, TaskMLP
from simmst.models.quantiles import MEDIAN
from simmst.models.spatial_branch import SpatialBranch
from simmst.models.task_weights import TaskWeights
from simmst.models.tasks import TaskEmbedding
from simmst.models.temporal_encoder import TemporalEncoder


class SimMSTNet(nn.Module):
    """Forecast a cell's services from the history of its neighbourhood and from the calendar (Sim-MSTNet).

    Each task (service) has a temporal branch over the target cell's series (Eq. 9) and a spatial branch over the
    neighbourhood (Eq. 10). Tasks exchange features and fuse the two branches (Eq. 11), and a decoder forecasts each
    task (Eq. 12). Every series is relative to its level over the whole context. The slots to forecast get features of
    the days before (`DayAttention`), and the network forecasts the difference from their mean. A linear autoregression
    is added. All tasks share their weights and differ by a learned embedding, so they run side by side in one pass, and
    weights learned on some services serve others. ``task_weights`` holds the weights of the task losses (Eq. 13-14).

    Args:
        config: shape and switches; its method ``ablation`` gives the paper's ablations.

    Example:
        >>> config = SimMSTNetConfig(input_length=12, horizon=3, label_length=4, num_marks=2, width=8, num_heads=2)
        >>> model = SimMSTNet(config).eval()
        >>> values, marks = torch.randn(4, 12, 3, 5, 5), torch.randn(4, 15, 2)
        >>> model(values, marks, mask=torch.ones(4, 5, 5, dtype=torch.bool)).shape
        torch.Size([4, 3, 3])
    """

    takes_memory = True
    forecasts_quantiles = True
    learned = False  # whether the weights come from an earlier training

    def __init__(self, config: SimMSTNetConfig) -> None:
        super().__init__()
        self.config = config
        self.tasks = TaskEmbedding(config.services, config.width)
        self.day_attention = DayAttention(config)
        num_recalled = self.day_attention.num_features
        self.embedding = SeriesEmbedding(
            config.input_length, config.width, config.num_marks, NUM_FEATURES, config.dropout
        )
        self.encoder = TemporalEncoder(config)
        self.spatial = SpatialBranch(config) if config.spatial else None
        self.interaction = FeatureInteraction(config) if config.interaction else None
        self.fusion = TaskMLP(config)
        self.decoder = Decoder(config, num_recalled)
        self.highway = Highway(config, num_recalled) if config.highway else None
        self.task_weights = TaskWeights(config.num_tasks, config.task_weights)

    def forward(
        self,
        values: Tensor,
        marks: Tensor,
        *,
        mask: Tensor | None = None,
        memory: Memory | None = None,
        quantiles: bool = False,
    ) -> Tensor:
        """Forecast the target cell, the centre of the neighbourhood.

        Args:
            values: (B, T_in, K, H, W) on the scaler's scale, NaN = missing; float32 or float64, like the parameters.
            marks: (B, T_in + T_out, M), calendar features of the input slots and the slots to forecast.
            mask: (B, H, W) bool, False outside the city; None if every cell is inside.
            memory: memory of the windows from `simmst.data.Windows`; None if nothing is known of the days before.
            quantiles: whether to return the quantiles at `simmst.models.LEVELS` instead of only the median.

        Returns:
            The medians (B, T_out, K) on the scale of ``values``, or the quantiles (B, T_out, K, Q), ascending in Q.

        Raises:
            ValueError: a shape does not fit the configuration.
            TypeError: a dtype does not fit the parameters.
        """
        context, mask = self._relate(values, marks, mask, memory)
        batch, tasks = values.shape[0], self.config.num_tasks
        marks = marks.repeat_interleave(tasks, dim=0)
        ahead = distances(context, self.config.horizon)
        future = marks[:, -self.config.horizon :]
        recalled = self.day_attention(context, future)
        task = self.tasks(batch)
        fused = self._encode(context, marks, mask, task)
        start = self.config.input_length - self.config.label_length
        forecast = self.decoder(fused, context, recalled, marks[:, start:], ahead, task)
        if self.highway is not None:
            forecast = forecast + self.highway(context, recalled, future, ahead[..., 0])[..., None]
        forecast = forecast + (recalled.base + context.level[:, None])[..., None]
        restored: Tensor = forecast.unflatten(0, (batch, tasks)).transpose(1, 2)  # (B, T_out, K, Q)
        return restored if quantiles else restored[..., MEDIAN]

    @torch.no_grad()
    def fit_highway(
        self, values: Tensor, marks: Tensor, target: Tensor, *, memory: Memory | None = None, ridge: float = 1e-3
    ) -> None:
        """Start the autoregression at its least-squares solution instead of the mean of the days before.

        Gradient descent needs thousands of updates to reach what the normal equations give at once. Errors are measured
        on the scale of ``values``.

        Args:
            values: (B, T_in, K, H, W), as in ``forward``; a few thousand training windows are plenty.
            marks: (B, T_in + T_out, M), as in ``forward``.
            target: (B, T_out, K) on the scale of ``values``, NaN = missing.
            memory: as in ``forward``.
            ridge: penalty on the change from the present coefficients, relative to the mean square of an input.

        Raises:
            ConfigError: the model has no highway.
            ValueError: a shape does not fit the configuration.
        """
        if self.highway is None:
            raise ConfigError("highway is False, so there is no autoregression to fit; set highway=True")
        wanted = (values.shape[0], self.config.horizon, self.config.num_tasks)
        if tuple(target.shape) != wanted:
            raise ValueError(f"target is {tuple(target.shape)}; it must be (B, T_out, K) = {wanted}")
        context, _ = self._relate(values, marks, None, memory)
        future = marks[:, -self.config.horizon :].repeat_interleave(self.config.num_tasks, dim=0)
        recalled = self.day_attention(context, future)
        distance = distances(context, self.config.horizon)[..., 0]
        present = self.highway(context, recalled, future, distance) + recalled.base + context.level[:, None]
        residual = target.transpose(1, 2).flatten(0, 1) - present
        self.highway.fit(context, recalled, future, distance, residual, ridge=ridge)

    def _relate(
        self, values: Tensor, marks: Tensor, mask: Tensor | None, memory: Memory | None
    ) -> tuple[Context, Tensor]:
        """Check the inputs and put them on the scale of each series."""
        self._check(values, marks, mask)
        if mask is None:
            mask = values.new_ones(values.shape[:1] + values.shape[3:], dtype=torch.bool)
        if memory is None:
            memory = no_memory(values, mask, self.config.memory_days, self.config.horizon)
        self._check_memory(values, memory)
        patch_steps = self.spatial.steps if self.spatial is not None else 0
        return relate(values, mask, memory, patch_steps), mask

    def _encode(self, context: Context, marks: Tensor, mask: Tensor, task: Tensor) -> Tensor:
        """Run both branches of every task, let the tasks interact, and fuse the branches: (N, T_in, C)."""
        config = self.config
        tasks = (mask.shape[0], config.num_tasks)
        channels = torch.stack((context.series, context.unusual, context.observed), dim=-1)
        past = marks[:, : config.input_length]
        temporal: Tensor = self.encoder(self.embedding(channels, past, context.features, task))
        spatial: Tensor | None = None if self.spatial is None else self.spatial(context, mask)
        if self.interaction is not None:
            seen = (context.observed > 0).any(1) | context.days_known.flatten(1).any(1)
            temporal, spatial = self.interaction(
                temporal.unflatten(0, tasks),
                None if spatial is None else spatial.unflatten(0, tasks),
                task.unflatten(0, tasks),
                ~seen.unflatten(0, tasks),
            )
            temporal = temporal.flatten(0, 1)
            spatial = None if spatial is None else spatial.flatten(0, 1)
        fused: Tensor = self.fusion(temporal, spatial)
        return fused

    def _check_memory(self, values: Tensor, memory: Memory) -> None:
        config = self.config
        side, tasks, steps = config.neighbourhood, config.num_tasks, config.input_length + config.horizon
        wanted = {
            "days": (config.memory_days, steps, tasks),
            "same_day": (config.memory_days, config.horizon, 2),
            "usual": (config.input_length, tasks, side, side),
            "city": (config.input_length, tasks),
            "level": (tasks, side, side),
            "spread": (tasks, side, side),
            "context": (),
            "steps_per_day": (),
        }
        for name, shape in wanted.items():
            got = tuple(getattr(memory, name).shape)
            if got != (values.shape[0], *shape):
                raise ValueError(
                    f"memory.{name} is {got}; the model expects {(values.shape[0], *shape)} with values "
                    f"{tuple(values.shape)}"
                )

    def _check(self, values: Tensor, marks: Tensor, mask: Tensor | None) -> None:
        config = self.config
        side = config.neighbourhood
        wanted = (config.input_length, config.num_tasks, side, side)
        if values.ndim != 5 or tuple(values.shape[1:]) != wanted:
            raise ValueError(
                f"values are {tuple(values.shape)}; the model expects (B, T_in, K, H, W) = "
                f"(B, {', '.join(map(str, wanted))}) for the services {', '.join(config.services)}"
            )
        steps = config.input_length + config.horizon
        if tuple(marks.shape) != (values.shape[0], steps, config.num_marks):
            raise ValueError(
                f"marks are {tuple(marks.shape)}; the model expects (B, T_in + T_out, M) = "
                f"({values.shape[0]}, {steps}, {config.num_marks}) with values {tuple(values.shape)}"
            )
        dtype = next(self.parameters()).dtype
        if values.dtype != dtype or marks.dtype != dtype:
            raise TypeError(
                f"values are {values.dtype} and marks {marks.dtype}; the parameters are {dtype}: "
                f"convert the inputs with .to({dtype}) or the model"
            )
        if mask is None:
            return
        if tuple(mask.shape) != (values.shape[0], side, side):
            raise ValueError(
                f"mask is {tuple(mask.shape)}; the model expects (B, H, W) = ({values.shape[0]}, {side}, {side})"
            )
        if mask.dtype != torch.bool:
            raise TypeError(f"mask is {mask.dtype}; it must be torch.bool, True inside the city")
