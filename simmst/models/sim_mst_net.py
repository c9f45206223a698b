"""Sim-MSTNet: multi-task spatiotemporal forecasting of cellular traffic."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simmst.errors import ConfigError
from simmst.models.config import SimMSTNetConfig
from simmst.models.decoder import Decoder
from simmst.models.embedding import SeriesEmbedding
from simmst.models.highway import Highway
from simmst.models.interaction import FeatureInteraction, TaskMLP
from simmst.models.spatial_branch import SpatialBranch
from simmst.models.task_weights import TaskWeights
from simmst.models.temporal_encoder import TemporalEncoder
from simmst.models.window_norm import NormalisedWindow, WindowNorm


class SimMSTNet(nn.Module):
    """Forecast the services of a cell from their past on its neighbourhood and from the calendar (Sim-MSTNet).

    Each task (service) has a temporal branch over the target cell's series (Eq. 9) and a spatial branch over the
    neighbourhood (Eq. 10); tasks exchange features and fuse the two (Eq. 11); each has a decoder (Eq. 12). A linear
    autoregression is added, and the sum is mapped back to the input's scale with the target cell's own level and
    spread. ``task_weights`` holds the weights of the task losses (Eq. 13-14).

    Args:
        config: shape and switches; its ``ablation`` gives the paper's ablations.

    Example:
        >>> config = SimMSTNetConfig(input_length=12, horizon=3, label_length=4, num_marks=2, width=8, num_heads=2)
        >>> model = SimMSTNet(config).eval()
        >>> values, marks = torch.randn(4, 12, 3, 5, 5), torch.randn(4, 15, 2)
        >>> model(values, marks, mask=torch.ones(4, 5, 5, dtype=torch.bool)).shape
        torch.Size([4, 3, 3])
    """

    def __init__(self, config: SimMSTNetConfig) -> None:
        super().__init__()
        self.config = config
        tasks = range(config.num_tasks)
        self.window_norm = WindowNorm(config.window_norm)
        num_features = self.window_norm.num_features
        self.embeddings = nn.ModuleList(
            SeriesEmbedding(config.input_length, config.width, config.num_marks, num_features, config.dropout)
            for _ in tasks
        )
        self.encoders = nn.ModuleList(TemporalEncoder(config) for _ in tasks)
        self.spatial = nn.ModuleList(SpatialBranch(config, num_features) for _ in tasks) if config.spatial else None
        self.interaction = FeatureInteraction(config) if config.interaction else None
        self.fusion = nn.ModuleList(TaskMLP(config) for _ in tasks)
        self.decoders = nn.ModuleList(Decoder(config, num_features) for _ in tasks)
        self.highway = Highway(config, num_features) if config.highway else None
        self.task_weights = TaskWeights(config.num_tasks, config.task_weights)

    def forward(self, values: Tensor, marks: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Forecast the target cell, the centre of the neighbourhood.

        Args:
            values: (B, T_in, K, H, W) on the scaler's scale, NaN = missing; float32 or float64, as the parameters.
            marks: (B, T_in + T_out, M), calendar features of the input steps and the steps to forecast.
            mask: (B, H, W) bool, False outside the city; None when every cell is inside.

        Returns:
            (B, T_out, K) on the scale of ``values``.

        Raises:
            ValueError: a shape does not fit the configuration.
            TypeError: a dtype does not.
        """
        self._check(values, marks, mask)
        if mask is None:
            mask = values.new_ones(values.shape[:1] + values.shape[3:], dtype=torch.bool)
        window = self.window_norm(values, mask)
        centre = self.config.neighbourhood // 2
        series, observed = window.values[..., centre, centre], window.observed[..., centre, centre]
        features = window.features[..., centre, centre]
        fused = self._fuse(*self._encode(window, series, observed, features, marks, mask))
        forecast = self._decode(fused, series, observed, features, marks)
        if self.highway is not None:
            forecast = self.highway(series, features, marks[:, -self.config.horizon :], forecast)
        level, spread = window.level[..., centre, centre], window.spread[..., centre, centre]
        restored: Tensor = level[:, None] + spread[:, None] * forecast
        return restored

    @torch.no_grad()
    def fit_highway(self, values: Tensor, marks: Tensor, target: Tensor, *, ridge: float = 1e-3) -> None:
        """Start the autoregression at its least-squares solution instead of persistence.

        Gradient steps take thousands of updates to get where the normal equations get at once. Errors count on the
        scale of ``values``.

        Args:
            values: (B, T_in, K, H, W), as in ``forward``; some thousand training windows are plenty.
            marks: (B, T_in + T_out, M).
            target: (B, T_out, K) on the scale of ``values``, NaN = missing.
            ridge: penalty on the change from the present coefficients, relative to the mean square of an input.

        Raises:
            ConfigError: the model has no highway.
            ValueError: a shape does not fit the configuration.
        """
        if self.highway is None:
            raise ConfigError("highway is False, so there is no autoregression to fit; set highway=True")
        self._check(values, marks, None)
        wanted = (len(values), self.config.horizon, self.config.num_tasks)
        if tuple(target.shape) != wanted:
            raise ValueError(f"target is {tuple(target.shape)}; it must be (B, T_out, K) = {wanted}")
        centre = self.config.neighbourhood // 2
        window = self.window_norm(values[..., centre : centre + 1, centre : centre + 1])
        series, features = window.values[..., 0, 0], window.features[..., 0, 0]
        level, spread = window.level[..., 0, 0], window.spread[..., 0, 0]
        normalised = (target - level[:, None]) / spread[:, None]
        self.highway.fit(series, features, marks[:, -self.config.horizon :], normalised, spread.square(), ridge)

    def _encode(
        self, window: NormalisedWindow, series: Tensor, observed: Tensor, features: Tensor, marks: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Run both branches of every task: temporal (B, K, T_in, C), spatial (B, K, 1, C) or None."""
        past = marks[:, : self.config.input_length]
        tokens = [
            encoder(embed(series[..., task], observed[..., task], past, features[..., task]))
            for task, (embed, encoder) in enumerate(zip(self.embeddings, self.encoders, strict=True))
        ]
        if self.spatial is None:
            return torch.stack(tokens, dim=1), None
        patches = [
            branch(window.values[:, :, task], window.observed[:, :, task], window.features[:, :, task], mask)
            for task, branch in enumerate(self.spatial)
        ]
        return torch.stack(tokens, dim=1), torch.stack(patches, dim=1)

    def _fuse(self, temporal: Tensor, spatial: Tensor | None) -> list[Tensor]:
        """Let the tasks interact, then fuse the two features of each: K times (B, T_in, C)."""
        if self.interaction is not None:
            temporal, spatial = self.interaction(temporal, spatial)
        return [
            fuse(temporal[:, task], None if spatial is None else spatial[:, task])
            for task, fuse in enumerate(self.fusion)
        ]

    def _decode(self, fused: list[Tensor], series: Tensor, observed: Tensor, features: Tensor, marks: Tensor) -> Tensor:
        """Run every task's decoder: (B, T_out, K) on the windows' own scale."""
        start = self.config.input_length - self.config.label_length
        forecasts = [
            decoder(
                fused[task], series[:, start:, task], observed[:, start:, task], marks[:, start:], features[..., task]
            )
            for task, decoder in enumerate(self.decoders)
        ]
        return torch.stack(forecasts, dim=-1)

    def _check(self, values: Tensor, marks: Tensor, mask: Tensor | None) -> None:
        config = self.config
        side = config.neighbourhood
        wanted = (config.input_length, config.num_tasks, side, side)
        if values.ndim != 5 or tuple(values.shape[1:]) != wanted:
            raise ValueError(
                f"values are {tuple(values.shape)}; the model wants (B, T_in, K, H, W) = "
                f"(B, {', '.join(map(str, wanted))}) for the services {', '.join(config.services)}"
            )
        steps = config.input_length + config.horizon
        if tuple(marks.shape) != (len(values), steps, config.num_marks):
            raise ValueError(
                f"marks are {tuple(marks.shape)}; the model wants (B, T_in + T_out, M) = "
                f"({len(values)}, {steps}, {config.num_marks}) beside values {tuple(values.shape)}"
            )
        dtype = next(self.parameters()).dtype
        if values.dtype != dtype or marks.dtype != dtype:
            raise TypeError(
                f"values are {values.dtype} and marks {marks.dtype}; the parameters are {dtype}: "
                f"convert the inputs with .to({dtype}) or the model"
            )
        if mask is None:
            return
        if tuple(mask.shape) != (len(values), side, side):
            raise ValueError(
                f"mask is {tuple(mask.shape)}; the model wants (B, H, W) = ({len(values)}, {side}, {side})"
            )
        if mask.dtype != torch.bool:
            raise TypeError(f"mask is {mask.dtype}; it must be torch.bool, True inside the city")
