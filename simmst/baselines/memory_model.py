"""The parts that models on memory features share: drawing training windows, and forecasts that stay bounded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from typing_extensions import Self

from simmst.baselines.base import check_same_cells, checked_origins, checked_train, fill_with_last_known
from simmst.baselines.memory_features import (
    Features,
    concat_features,
    gather_batches,
    memory_features,
    memory_windows,
    training_windows,
)
from simmst.data import Scaler, TrafficDataset, WindowSpec

_MOST_TARGETS = 500_000  # windows times steps to learn from
_DOUBT = 3.0  # number of independent slots at which a learned difference counts half


class MemoryModel(ABC):
    """A model of how far a slot differs from its mean on previous days; see `simmst.baselines.memory_features`.

    A model forecasts, for each service and step ahead, the difference of a target from that mean, and learns nothing
    else. The difference is bounded by those seen in training. It is shrunk where training has few of them, because of n
    slots only n / h are independent h steps ahead. Where no previous day is known, the forecast is the newest known
    value.

    Args:
        max_rows: largest number of training windows, drawn with `seed`.
        seed: seed of everything random.

    Attributes:
        doubt_days: number of days of training slots at which a learned difference counts half, at any step ahead.
    """

    doubt_days: ClassVar[float] = 0.0

    def __init__(self, *, max_rows: int, seed: int) -> None:
        self.max_rows = max_rows
        self.seed = seed
        self._horizon = 1
        self._cells = 0
        self._scaler = Scaler("relative", np.zeros(1), np.ones(1))
        self._bounds = np.zeros((0, 1, 2), dtype=np.float32)  # (K, T_out, 2)
        self._trust = np.zeros((0, 1), dtype=np.float32)  # (K, T_out)

    @abstractmethod
    def _forget(self, num_services: int) -> None:
        """Start from models that have learned nothing: all differences are zero."""

    @abstractmethod
    def _learn(self, service: int, features: Features, origin: np.ndarray) -> None:
        """Learn the differences of one service; those of windows without a target are NaN.

        Args:
            service: number of the service.
            features: features of N training windows.
            origin: int64 (N,), origins of the windows.
        """

    @abstractmethod
    def _differences(self, service: int, features: Features) -> np.ndarray:
        """Forecast the differences of one service, (N, T_out)."""

    def fit(self, dataset: TrafficDataset, spec: WindowSpec, train: range) -> Self:
        """Fit to the training slots; targets lie in `train`, and inputs may begin before it."""
        checked_train(dataset, train)
        self._scaler = Scaler.fit(dataset, train, "relative")
        self._begin(dataset.num_services, spec.horizon)
        self._cells = dataset.num_cells
        if train.stop < 2:
            return self  # no slot has another before it, so every forecast is the mean of the slot
        windows = training_windows(dataset, self._scaler, spec.horizon, train)
        most = max(1, min(self.max_rows, _MOST_TARGETS // spec.horizon))
        index = np.arange(len(windows))
        if len(index) > most:
            index = np.sort(np.random.default_rng(self.seed).choice(index, size=most, replace=False))
        parts = [
            [memory_features(batch, k) for k in range(dataset.num_services)]
            for _, batch in gather_batches(windows, index)
        ]
        features = [concat_features([part[k] for part in parts]) for k in range(dataset.num_services)]
        return self.learn(features, windows.origins[index // windows.num_cells], dataset.steps_per_day)

    def learn(self, features: list[Features], origin: np.ndarray, steps_per_day: int) -> Self:
        """Fit to the features of each service of N windows; `forecast` expects features on the same scale.

        Args:
            features: features of each service.
            origin: int64 (N,), origins of the windows.
            steps_per_day: number of slots in a day.
        """
        self._begin(len(features), features[0].usual.shape[1])
        for k, one in enumerate(features):
            seen = np.nan_to_num(one.target)
            self._bounds[k] = np.stack([seen.min(axis=0), seen.max(axis=0)], axis=1)
            for step in range(self._horizon):
                slots = len(np.unique(origin[~np.isnan(one.target[:, step])]))
                independent, days = slots / (step + 1), slots / steps_per_day
                if slots:
                    self._trust[k, step] = independent / (independent + _DOUBT) * days / (days + self.doubt_days)
            self._learn(k, one, origin)
        return self

    def forecast(self, service: int, features: Features) -> np.ndarray:
        """Forecast one service of N windows from their features, (N, T_out) on their scale; NaN where unknown."""
        low, high = self._bounds[service].T
        difference = np.clip(self._differences(service, features), low, high)
        forecast: np.ndarray = features.usual + self._trust[service] * difference
        return forecast

    def _begin(self, num_services: int, horizon: int) -> None:
        self._horizon = horizon
        self._bounds = np.zeros((num_services, horizon, 2), dtype=np.float32)
        self._trust = np.zeros((num_services, horizon), dtype=np.float32)
        self._forget(num_services)

    def predict(self, dataset: TrafficDataset, origins: np.ndarray) -> np.ndarray:
        """Forecast float32 (n, C, T_out, K); see `Baseline.predict`."""
        services, cells = len(self._bounds), self._cells
        check_same_cells(dataset, services, cells)
        origins = checked_origins(dataset, origins)
        scaled = np.full((len(origins) * cells, self._horizon, services), np.nan, dtype=np.float32)
        if len(origins):
            steps = range(int(origins.min()), int(origins.max()) + self._horizon)
            windows = memory_windows(dataset, self._scaler, self._horizon, steps)
            index = ((origins - windows.origins[0])[:, None] * cells + np.arange(cells)).reshape(-1)
            for place, batch in gather_batches(windows, index):
                for k in range(services):
                    scaled[place, :, k] = self.forecast(k, memory_features(batch, k))
        raw = self._scaler.inverse(scaled, axis=-1).reshape(len(origins), cells, self._horizon, services)
        return fill_with_last_known(raw, dataset.series(), origins)
