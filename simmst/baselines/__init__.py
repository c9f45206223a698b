"""Naive and linear baselines and boosted trees, one file each, under one contract."""

from collections.abc import Callable
from functools import partial

from simmst.baselines.base import Baseline
from simmst.baselines.gradient_boosting import GradientBoosting
from simmst.baselines.hour_of_week_mean import HourOfWeekMean
from simmst.baselines.moving_average import MovingAverage
from simmst.baselines.persistence import Persistence
from simmst.baselines.ridge import RidgeOnLags
from simmst.baselines.ridge_lags import RidgeLags
from simmst.baselines.seasonal_naive import SeasonalNaive

BASELINES: dict[str, Callable[[], Baseline]] = {
    "persistence": Persistence,
    "seasonal-naive-day": partial(SeasonalNaive, days=1),
    "seasonal-naive-week": partial(SeasonalNaive, days=7),
    "hour-of-week-mean": HourOfWeekMean,
    "moving-average": MovingAverage,
    "ridge": RidgeOnLags,
    "ridge-lags": RidgeLags,
    "gradient-boosting": GradientBoosting,
}

__all__ = [
    "BASELINES",
    "Baseline",
    "GradientBoosting",
    "HourOfWeekMean",
    "MovingAverage",
    "Persistence",
    "RidgeLags",
    "RidgeOnLags",
    "SeasonalNaive",
]
