"""The effect of covariates on a forecast that does not use them: linear fits of its errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simmst.baselines.ridge import PENALTIES, Line, best_line
from simmst.data import Scaler, TrafficDataset, Windows
from simmst.evaluation import ModelPredictor

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

_MOST = 8192  # most windows whose errors are used
_FEWEST_SLOTS = 24  # least slots to learn from


@dataclass(frozen=True, eq=False)
class CovariateEffect:
    """Linear fits from covariates to the errors of a forecast, on its scaler's scale, shared by all cells.

    The features of a slot are its covariates, their difference from the latest slot, and their difference from the same
    slot of the day before, because a forecast has already seen the effect of yesterday's rain.

    Attributes:
        lines: linear fits by step ahead and service; none where the covariates explain nothing.
        bounds: least and largest error that each fit has seen.
        scaler: scaler of the forecast.
    """

    lines: Mapping[tuple[int, int], Line]
    bounds: Mapping[tuple[int, int], tuple[float, float]]
    scaler: Scaler

    @classmethod
    def learn(cls, predictor: ModelPredictor, dataset: TrafficDataset, steps: range) -> CovariateEffect:
        """Fit the errors of forecasts.

        Args:
            predictor: predictor that has learned from none of the slots.
            dataset: series in raw units, with covariates.
            steps: consecutive slots to forecast.
        """
        windows = Windows(
            dataset.slice_steps(0, steps.stop),
            predictor.spec,
            predictor.scaler,
            steps=range(steps.start, steps.stop),
            context_days=predictor.context_days,
        )
        total = len(windows)
        index = np.arange(total)
        if total > _MOST:
            index = np.sort(np.random.default_rng(0).choice(total, _MOST, replace=False))
        each = predictor.forecast_windows(windows, index, None)[..., 0]  # (N, T_out, K)
        missed = windows.batch(index).target.numpy() - each
        seen, which = np.unique(index // windows.num_cells, return_inverse=True)
        origins = windows.origins[seen]
        # Covariates are shared by the city, so they are fitted to the mean error of its cells.
        forecast, error = _mean_by(which, np.where(np.isnan(missed), np.nan, each)), _mean_by(which, missed)
        lines: dict[tuple[int, int], Line] = {}
        bounds: dict[tuple[int, int], tuple[float, float]] = {}
        for step in range(error.shape[1]):
            features = _features(dataset, origins, step)
            for service in range(error.shape[2]):
                known = ~np.isnan(error[:, step, service]) & ~np.isnan(features).any(axis=1)
                if np.count_nonzero(known) < _FEWEST_SLOTS:
                    continue
                target, usual = error[known, step, service], forecast[known, step, service]
                line = best_line(features[known], target, usual, origins[known] + step, PENALTIES)
                if line is not None:
                    lines[step, service] = line
                    bounds[step, service] = float(target.min()), float(target.max())
        return cls(lines, bounds, predictor.scaler)

    def add(self, dataset: TrafficDataset, origins: Integers, forecast: Floats) -> Floats:
        """Correct forecasts by the effect of the covariates.

        Args:
            dataset: series with covariates.
            origins: int64 (n,), origins of the forecasts.
            forecast: float32 (n, C, T_out, K, L), raw units.

        Raises:
            DataError: a covariate has no value in a slot to forecast.
        """
        moved = np.moveaxis(self.scaler.transform(np.moveaxis(forecast, -1, 0), axis=-1), 0, -1)
        for (step, service), line in self.lines.items():
            features = _features(dataset, origins, step)
            features = np.where(np.isnan(features), line.mean, features)  # missing in slots before the origin
            effect = np.clip(line.predict(features), *self.bounds[step, service])
            moved[:, :, step, service] += effect.astype(np.float32)[:, None, None]
        found = np.moveaxis(self.scaler.inverse(np.moveaxis(moved, -1, 0), axis=-1), 0, -1)
        return np.ascontiguousarray(found, dtype=np.float32)


def refuse_missing(dataset: TrafficDataset, origins: Integers, horizon: int) -> None:
    """Refuse covariates that do not cover the slots to forecast.

    Raises:
        DataError: a covariate has no value there; the message names it and the slots.
    """
    if dataset.covariates is None or len(origins) == 0:
        return
    slots = np.unique(np.asarray(origins)[:, None] + np.arange(horizon))
    dataset.covariates.known_at(_times(dataset, slots), dataset.step_minutes)


def _mean_by(which: Integers, values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return means (n, T_out, K) of rows (N, T_out, K) by group, 0 to n - 1, without NaN."""
    known = ~np.isnan(values)
    sums, count = np.zeros((2, int(which.max()) + 1, *values.shape[1:]))
    np.add.at(sums, which, np.where(known, values, 0.0))
    np.add.at(count, which, known)
    means: npt.NDArray[np.float64] = np.where(count > 0, sums / np.maximum(count, 1), np.nan)
    return means


def _features(dataset: TrafficDataset, origins: Integers, step: int) -> Floats:
    """Return the features of a step ahead, float32 (n, 3 M); NaN where a covariate is missing."""
    covariates = dataset.covariates
    assert covariates is not None  # noqa: S101 - the callers have checked
    target = np.asarray(origins) + step
    ahead, latest, before = (
        covariates.at(_times(dataset, slots), dataset.step_minutes)
        for slots in (target, np.asarray(origins) - 1, target - dataset.steps_per_day)
    )
    return np.concatenate([ahead, ahead - latest, ahead - before], axis=1)


def _times(dataset: TrafficDataset, slots: Integers) -> npt.NDArray[np.datetime64]:
    times: npt.NDArray[np.datetime64] = dataset.time[0] + slots * np.timedelta64(dataset.step_minutes * 60, "s")
    return times
