"""Ridge regression on lags, pooled over the cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from typing_extensions import Self

from simmst.baselines.base import check_same_cells, checked_origins, checked_train, fill_with_last_known
from simmst.data import Scaler, TrafficDataset, WindowSpec
from simmst.data.calendar import calendar_features, slot_of_day
from simmst.errors import DataError
from simmst.foundation.extras import import_extra

# The calendar has the first two; a day of traffic rises and falls more sharply than those can follow.
_HIGHER_HARMONICS = (3, 4, 5, 6)
_CHUNK = 100_000  # rows of features at a time when forecasting


class RidgeOnLags:
    """Linear regression with an L2 penalty from a cell's own past to each step ahead, per service.

    The features of a sample are the values z at the input offsets on the scaler's scale (log1p for raw activity), and
    the calendar of the target slot with six harmonics of the day. One model per service and step ahead is shared by all
    cells. (On real traffic the plain scale did slightly better than windows standardised by their own mean and
    deviation, one hour as well as a day ahead.)

    Missing input values are taken as the mean of the window's known ones, for this model alone; where the window knows
    nothing, the forecast is the newest known value.

    Args:
        alpha: strength of the penalty, on standardised features.
        max_rows: at most that many training samples, drawn with `seed`.
        seed: seed of that draw.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """

    def __init__(self, alpha: float = 1.0, *, max_rows: int = 200_000, seed: int = 0) -> None:
        self.alpha = alpha
        self.max_rows = max_rows
        self.seed = seed
        self._spec = WindowSpec(1, (-1,))
        self._scaler = Scaler("linear", np.zeros(1), np.ones(1))
        self._shape = (0, 0)
        self._models: list[list[Any]] = []  # [service][step]
        self._bounds: list[tuple[float, float]] = []

    def fit(self, dataset: TrafficDataset, spec: WindowSpec, train: range) -> Self:
        """Fit one model per service and step; targets lie in `train`, inputs may reach back before it.

        Raises:
            DataError: the training part holds no whole window.
        """
        rows = checked_train(dataset, train)
        self._spec, self._scaler = spec, Scaler.fit(dataset, train)
        self._shape = (dataset.num_services, dataset.num_cells)
        origins = np.arange(max(train.start, spec.reach), train.stop)
        if len(origins) == 0:
            raise DataError(
                f"ridge needs {spec.reach} slots before the first target, training ends at slot {train.stop}; "
                "use fewer input slots or more training days"
            )
        total = len(origins) * dataset.num_cells
        picked = np.arange(total)
        if total > self.max_rows:
            picked = np.sort(np.random.default_rng(self.seed).choice(total, size=self.max_rows, replace=False))
        origin, cell = origins[picked // dataset.num_cells], picked % dataset.num_cells
        series = self._scaler.transform(dataset.series()[: rows.stop], axis=1)  # (t, K, C)
        calendar = _calendar(dataset, rows.stop + spec.horizon)
        self._models, self._bounds = [], []
        for k in range(dataset.num_services):
            lags, known = self._window(series[:, k], origin, cell)
            models = []
            for h in range(spec.horizon):
                inside = known & (origin + h < train.stop)
                target = series[np.minimum(origin + h, rows.stop - 1), k, cell]
                use = inside & ~np.isnan(target)
                features = np.concatenate([lags[use], calendar[origin[use] + h]], axis=1)
                models.append(self._regress(features, target[use], dataset, k, h))
            self._models.append(models)
            self._bounds.append((float(np.nanmin(series[:, k])), float(np.nanmax(series[:, k]))))
        return self

    def predict(self, dataset: TrafficDataset, origins: np.ndarray) -> np.ndarray:
        """Forecast float32 (n, C, T_out, K); see `Baseline.predict`. Input slots before the series count as missing."""
        check_same_cells(dataset, *self._shape)
        origins = checked_origins(dataset, origins)
        raw = dataset.series()
        series = self._scaler.transform(raw, axis=1)
        horizon, cells = self._spec.horizon, dataset.num_cells
        calendar = _calendar(dataset, dataset.num_steps + horizon)
        scaled = np.full((len(origins), cells, horizon, dataset.num_services), np.nan, dtype=np.float32)
        block = max(1, _CHUNK // cells)
        for start in range(0, len(origins), block):
            now = origins[start : start + block]
            origin, cell = np.repeat(now, cells), np.tile(np.arange(cells), len(now))
            for k, models in enumerate(self._models):
                lags, known = self._window(series[:, k], origin, cell)
                # A line may run away from a strange window; the values seen in training bound it, with room to grow.
                low, high = self._bounds[k]
                for h, model in enumerate(models):
                    z = model.predict(np.concatenate([lags, calendar[origin + h]], axis=1))
                    z = np.where(known, np.clip(z, low, high + 0.1 * (high - low)), np.nan)
                    scaled[start : start + len(now), :, h, k] = z.reshape(len(now), cells)
        return fill_with_last_known(self._scaler.inverse(scaled, axis=3), raw, origins)

    def _window(self, series: np.ndarray, origin: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lags (n, T_in) of one service's series (T, C), and whether any of them is known (n,)."""
        slot = origin[:, None] + np.array(self._spec.offsets)
        lags = series[np.maximum(slot, 0), cell[:, None]].astype(np.float64)
        lags[slot < 0] = np.nan
        there = ~np.isnan(lags)
        count = there.sum(axis=1)
        mean = np.where(there, lags, 0.0).sum(axis=1) / np.maximum(count, 1)
        return np.where(there, lags, mean[:, None]), count > 0

    def _regress(self, features: np.ndarray, target: np.ndarray, dataset: TrafficDataset, k: int, h: int) -> Any:
        if len(target) == 0:
            raise DataError(
                f"ridge found no training sample of service {dataset.services[k]!r} of {dataset.name} at {h + 1} slots "
                "ahead; use fewer input slots, a shorter horizon or more training days"
            )
        preprocessing = import_extra("sklearn.preprocessing", extra="forecast")
        pipeline = import_extra("sklearn.pipeline", extra="forecast")
        linear = import_extra("sklearn.linear_model", extra="forecast")
        model = pipeline.make_pipeline(preprocessing.StandardScaler(), linear.Ridge(alpha=self.alpha))
        return model.fit(features, target)


def _calendar(dataset: TrafficDataset, num_steps: int) -> np.ndarray:
    """Calendar of the slots 0..num_steps, carried on beyond the end."""
    seconds = dataset.time[0].astype(np.int64) + np.arange(num_steps) * dataset.step_minutes * 60
    time = seconds.astype("datetime64[s]")
    angle = slot_of_day(time, dataset.timezone, dataset.step_minutes)[:, None] * (2 * np.pi / dataset.steps_per_day)
    angle = angle * np.array(_HIGHER_HARMONICS)
    features = calendar_features(time, dataset.timezone, dataset.country)
    return np.concatenate([features, np.sin(angle), np.cos(angle)], axis=1)
