"""Ridge regression on lags only, pooled over the cells: the linear baseline without a memory."""

from __future__ import annotations

import warnings

import numpy as np
from typing_extensions import Self

from simmst.baselines.base import check_same_cells, checked_origins, checked_train, fill_with_last_known, last_known
from simmst.data import CALENDAR_FEATURES, TrafficDataset, WindowSpec, calendar_features
from simmst.foundation.extras import import_extra

_RECENT = 24
_DAYS = (1, 2, 3, 7)  # days back whose same slots are inputs, up to half the length of the training part
_DAILY_MARKS = 4  # the first features of the calendar, waves of the day; the others are of the week
_PENALTIES = tuple(10.0**power for power in range(-2, 5))
_MOST_ROWS = 20_000
_FEWEST = 12  # slots to forecast that a line is fitted to


class RidgeLags:
    """Linear regression with an L2 penalty on lags, per service and step ahead, shared by all cells.

    Its inputs are log1p activity at the latest 24 slots and at the target's slot one, two, three and seven days before
    (lags of at most half of the training part), and the calendar of the target. The target is log1p activity. The
    penalty is chosen by leave-one-out (`sklearn.linear_model.RidgeCV`). Forecasts stay within the values that training
    has seen in the cell, so they cannot run away.

    Args:
        seed: seed of the draw of training windows, where there are more than 20,000.

    Example:
        >>> t = np.arange(21 * 24)
        >>> city = TrafficDataset.from_arrays(50 + 40 * np.sin(t * np.pi / 12), t * 3600, timezone="UTC", country=None)
        >>> model = RidgeLags().fit(city, WindowSpec(2, (-1,)), range(14 * 24))
        >>> model.predict(city, np.array([14 * 24 + 6]))[0, 0, :, 0].round().tolist()
        [90.0, 89.0]
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self._horizon = 1
        self._bounds = np.zeros((2, 1, 1))  # log scale, (2, K, C)
        self._lags: tuple[int, ...] = ()  # slots before the target
        self._marks = _DAILY_MARKS  # features of the calendar: those of the day, or all after a week of training
        self._lines: dict[tuple[int, int], tuple[np.ndarray, float]] = {}

    def fit(self, dataset: TrafficDataset, spec: WindowSpec, train: range) -> Self:
        """Fit to the targets in `train`; nothing after it is read, and inputs may begin before it."""
        linear = import_extra("sklearn.linear_model", extra="forecast")
        rows = checked_train(dataset, train)
        self._horizon, self._lines = spec.horizon, {}
        past = dataset.slice_steps(0, train.stop)
        log = _log(past.series())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=RuntimeWarning)  # a cell without any value
            self._bounds = np.stack([np.nanmin(log[rows], axis=0), np.nanmax(log[rows], axis=0)])
        random, cells = np.random.default_rng(self.seed), log.shape[2]
        # A lag that training lacks would have another meaning once it is known.
        self._lags = tuple(
            day * dataset.steps_per_day for day in _DAYS if day * dataset.steps_per_day <= train.stop // 2
        )
        first = max(train.start, 1, *self._lags)
        self._marks = len(CALENDAR_FEATURES) if len(train) >= 7 * dataset.steps_per_day else _DAILY_MARKS
        for step in range(spec.horizon):
            origins = np.arange(first, train.stop - step)
            origins = np.sort(random.permutation(origins)[: max(_MOST_ROWS // cells, _FEWEST)])
            some = np.sort(random.permutation(cells)[: _MOST_ROWS // max(len(origins), 1) + 1])
            for service in range(log.shape[1]):
                inputs = _inputs(past, log[:, service, some], origins, step, self._lags, self._marks).transpose(
                    0, 2, 1
                )  # (n, C, F)
                target = log[origins + step, service][:, some]
                known = ~np.isnan(target) & ~np.isnan(inputs).any(-1)
                if len(np.unique(origins[known.any(1)])) >= _FEWEST:
                    found = linear.RidgeCV(alphas=_PENALTIES).fit(inputs[known], target[known])
                    self._lines[step, service] = (found.coef_, float(found.intercept_))
        return self

    def predict(self, dataset: TrafficDataset, origins: np.ndarray) -> np.ndarray:
        """Forecast float32 (n, C, T_out, K), the newest value where nothing was fitted; see `Baseline.predict`."""
        check_same_cells(dataset, self._bounds.shape[1], self._bounds.shape[2])
        origins = checked_origins(dataset, origins)
        log = _log(dataset.series())
        forecast = np.full((len(origins), log.shape[2], self._horizon, log.shape[1]), np.nan, dtype=np.float32)
        for (step, service), (slope, intercept) in self._lines.items():
            inputs = _inputs(dataset, log[:, service], origins, step, self._lags, self._marks)  # (n, F, C)
            line = np.einsum("nfc,f->nc", inputs, slope) + intercept
            line = np.clip(line, *self._bounds[:, service])
            forecast[:, :, step, service] = np.sign(line) * np.expm1(np.abs(line))
        return fill_with_last_known(forecast, dataset.series(), origins)


def _log(series: np.ndarray) -> np.ndarray:
    """Return activity on a signed log scale, (T, K, C), because z-scores have signs."""
    logged: np.ndarray = np.sign(series) * np.log1p(np.abs(series))
    return logged


def _inputs(
    dataset: TrafficDataset, log: np.ndarray, origins: np.ndarray, step: int, lags: tuple[int, ...], num_marks: int
) -> np.ndarray:
    """Return the inputs of the targets `step` slots after the origins, (n, F, C); unknown lags take the newest value.

    Args:
        dataset: series, for its calendar.
        log: activity of one service on the log scale, (T, C).
        origins: int64 (n,).
        step: step ahead, from 0.
        lags: slots before the target that are inputs, besides the latest ones.
        num_marks: number of calendar features.
    """
    target = origins + step
    newest = last_known(log[:, None], origins)  # (n, 1, C)
    slots = np.stack(
        [*(origins - lag for lag in range(1, _RECENT + 1)), *(target - lag for lag in lags)], axis=1
    )  # (n, L)
    there = (slots >= 0) & (slots < origins[:, None])
    looked = np.where(there[..., None], log[np.where(there, slots, 0)], np.nan)  # (n, L, C)
    looked = np.where(np.isnan(looked), newest, looked)
    start = dataset.time[0].astype("datetime64[s]")
    times = start + target * np.timedelta64(dataset.step_minutes * 60, "s")
    marks = calendar_features(times, dataset.timezone, dataset.country, dataset.events)[:, :num_marks]
    wide = np.broadcast_to(marks[..., None], (*marks.shape, log.shape[1]))
    return np.concatenate([looked, wide], axis=1)
