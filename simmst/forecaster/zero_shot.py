"""Forecasts of any series with the shipped weights, without training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from simmst.data import Scaler, TrafficDataset, WindowSpec
from simmst.evaluation import ModelPredictor
from simmst.forecaster.combination import CONTEXT_DAYS, combined, known_before, with_covariates
from simmst.forecaster.covariate_effect import refuse_missing
from simmst.models import SimMSTNet
from simmst.pretrained import Pretrained
from simmst.training import resolve_device


class ZeroShotPredictor:
    """The shipped weights as a predictor of any data set, scaled by the slots before the first origin.

    Args:
        pretrained: the shipped weights.
        horizon: number of slots to forecast.
        context_days: days before an origin that a forecast may use, at most 28.
        device: "auto" (the GPU where there is one), "cpu" or "cuda".
        combine: whether the network's forecast is combined with forecasts learned from the days before the first
            origin.

    Example:
        >>> from simmst.pretrained import load_pretrained
        >>> hours = np.arange(60) * 3600
        >>> city = TrafficDataset.from_arrays(np.ones((60, 2, 2)), hours, services=["internet"])
        >>> ZeroShotPredictor(load_pretrained(), 3).predict(city, np.array([48, 60])).shape
        (2, 4, 3, 1)
    """

    def __init__(
        self,
        pretrained: Pretrained,
        horizon: int,
        *,
        context_days: int = CONTEXT_DAYS,
        device: str = "auto",
        combine: bool = True,
    ) -> None:
        self.pretrained, self.horizon, self.context_days = pretrained, horizon, context_days
        self.device: torch.device = resolve_device(device)
        self.combine = combine
        config = pretrained.config
        offsets = tuple(range(-config.input_length, 0))
        self.spec = WindowSpec(horizon, offsets, config.neighbourhood, memory_days=config.memory_days)
        self._networks: dict[tuple[str, ...], SimMSTNet] = {}

    def predict(self, dataset: TrafficDataset, origins: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Forecast all cells from each origin, float32 (n, C, T_out, K); see `ModelPredictor.predict`."""
        refuse_missing(dataset, origins, self.horizon)
        return self._moved(dataset, origins, self.on(dataset, origins).predict(dataset, origins)[..., None])[..., 0]

    def quantiles(
        self, dataset: TrafficDataset, origins: npt.NDArray[np.int64], levels: Sequence[float]
    ) -> npt.NDArray[np.float32]:
        """Forecast quantiles, float32 (n, C, T_out, K, L); see `ModelPredictor.quantiles`."""
        refuse_missing(dataset, origins, self.horizon)
        return self._moved(dataset, origins, self.on(dataset, origins).quantiles(dataset, origins, levels))

    def on(self, dataset: TrafficDataset, origins: npt.NDArray[np.int64]) -> ModelPredictor:
        """Return the predictor of a data set, on the scale of the slots before the first origin."""
        known = known_before(dataset, origins, self.context_days)
        alone = self.alone(dataset, known)
        return combined(alone, dataset, known, calibrate=True, companions=self.combine)

    def _moved(
        self, dataset: TrafficDataset, origins: npt.NDArray[np.int64], forecast: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        if dataset.covariates is None:
            return forecast
        alone = self.alone(dataset, known_before(dataset, origins, self.context_days))
        return with_covariates(alone, dataset, origins, forecast, companions=self.combine)

    def alone(self, dataset: TrafficDataset, known: range) -> ModelPredictor:
        """Return the network on the scale of some slots, without companions."""
        scaler = Scaler.fit(dataset, known, "relative")
        return ModelPredictor(self.network(dataset.services), scaler, self.spec, context_days=self.context_days)

    def for_horizon(self, horizon: int) -> ZeroShotPredictor:
        """Return the same predictor for another horizon, at most as long as the weights have learned to forecast."""
        most = max(self.horizon, self.pretrained.config.horizon)
        return ZeroShotPredictor(
            self.pretrained,
            min(horizon, most),
            context_days=self.context_days,
            device=self.device.type,
            combine=self.combine,
        )

    def network(self, services: tuple[str, ...]) -> SimMSTNet:
        """Return the network for some services."""
        if services not in self._networks:
            self._networks[services] = self.pretrained.network(services, self.horizon).to(self.device)
        return self._networks[services]


def zero_shot_notes(dataset: TrafficDataset, pretrained: Pretrained, horizon: int) -> tuple[str, ...]:
    """Say how a series differs from the data that the weights have learned from."""
    notes = []
    unknown = [name for name in dataset.services if name not in pretrained.config.services]
    if unknown:
        known = ", ".join(pretrained.config.services)
        notes.append(f"{', '.join(unknown)}: forecast as an unknown service; the weights know {known}")
    steps = pretrained.record.get("step_minutes", ())
    if dataset.step_minutes not in steps:
        learned = ", ".join(map(str, steps))
        notes.append(f"slots of {dataset.step_minutes} minutes: the weights have learned from {learned}")
    if horizon > pretrained.config.horizon:
        notes.append(f"{horizon} slots ahead: the weights have learned to forecast {pretrained.config.horizon}")
    empty = np.isnan(dataset.series()[-CONTEXT_DAYS * dataset.steps_per_day :]).all(axis=(0, 1))
    if empty.any():
        notes.append(f"{int(empty.sum())} of {empty.size} cells have no value in the last weeks and get NaN")
    return tuple(notes)
