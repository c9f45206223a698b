"""Labels of figures: the name of the data set, its times, its predictors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from simmst.data import TrafficDataset
from simmst.errors import ConfigError
from simmst.evaluation import Forecasts
from simmst.evaluation.report import SURROGATE
from simmst.foundation.extras import import_extra


def label(dataset: TrafficDataset) -> str:
    """Return the name of a data set, with SURROGATE before that of a surrogate.

    Example:
        >>> city = TrafficDataset.from_arrays(np.ones(24), np.arange(24) * 3600, name="toytown", surrogate=True)
        >>> label(city)
        'SURROGATE toytown'
    """
    return f"{SURROGATE} {dataset.name}" if dataset.surrogate else dataset.name


def local_times(dataset: TrafficDataset, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.datetime64]:
    """Return the starts of slots in local time, which readers of daily rhythms expect."""
    pandas = import_extra("pandas", extra="forecast")
    index = pandas.DatetimeIndex(dataset.time[steps]).tz_localize("UTC").tz_convert(dataset.timezone)
    times: npt.NDArray[np.datetime64] = index.tz_localize(None).to_numpy()
    return times


def tell_dates(axes: Any, dataset: TrafficDataset) -> None:
    """Label the horizontal axis with dates in their shortest form."""
    dates = import_extra("matplotlib.dates", extra="forecast")
    locator = dates.AutoDateLocator(maxticks=10)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    axes.set(xlabel=f"local time ({dataset.timezone})")


def tell_whole_numbers(axis: Any) -> None:
    """Label an axis with whole numbers only."""
    axis.set_major_locator(import_extra("matplotlib.ticker", extra="forecast").MaxNLocator(integer=True))


def check_names(forecasts: Forecasts, names: Sequence[str]) -> None:
    """Refuse predictors without forecasts.

    Raises:
        ConfigError: a predictor has no forecasts; the message names it and those that have.
    """
    for name in names:
        if name not in forecasts.by_name:
            raise ConfigError(f"there is no predictor {name!r}; there are: {', '.join(forecasts.by_name)}")
