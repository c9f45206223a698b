"""Tests for leaks of the future: slots that must not be known are changed, and the forecast may not change."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from simmst.data import Split, TrafficDataset
from simmst.errors import DataError
from simmst.evaluation.evaluate import Predictor

_TOLERANCE = 1e-4  # relative, because sums in another order are not a leak


def refuse_leaking_forecasts(
    name: str, predictor: Predictor, dataset: TrafficDataset, origins: npt.NDArray[np.int64]
) -> None:
    """Refuse a predictor whose forecast from the first origin depends on slots at or after it.

    All slots from the first origin on are changed. The forecast from that origin, made in one call with the forecast
    from the last one, must stay the same. The test finds features that contain the target, or that learn from later
    origins.

    Args:
        name: name of the system, for the message.
        predictor: fitted predictor.
        dataset: series to forecast.
        origins: int64 (n,), ascending.

    Raises:
        DataError: the forecast changed.
    """
    some = np.asarray(origins)[[0, -1]] if len(origins) > 1 else np.asarray(origins)
    before = predictor.predict(dataset, some)[0]
    after = predictor.predict(shaken(dataset, int(some[0])), some)[0]
    if not _alike(before, after):
        raise DataError(f"{name} reads slots at or after the origin of its forecast: it knows the values to forecast")


def refuse_leaking_fit(
    name: str, fit: Callable[[TrafficDataset, Split], Predictor], dataset: TrafficDataset, split: Split
) -> None:
    """Refuse a fit that depends on the test slots.

    The system is fitted twice, the second time with other values in the test slots, and both forecasts from the first
    test slot must agree. This finds a scaler that has seen the test slots, and windows whose targets reach into them.

    Args:
        name: name of the system, for the message.
        fit: function of the series and its split; seeded, so that the same series gives the same forecasts.
        dataset: series to fit.
        split: split of the series.

    Raises:
        DataError: the forecasts differ.
    """
    origin = np.array([split.test.start])
    other = shaken(dataset, split.test.start)
    before = fit(dataset, split).predict(dataset, origin)
    if not _alike(before, fit(other, split).predict(other, origin)):
        raise DataError(f"the fit of {name} reads slots of the test: its scaler, its features or its targets do")


def shaken(dataset: TrafficDataset, start: int) -> TrafficDataset:
    """Return a series with other values from a slot on, three times the old ones plus 1.

    Example:
        >>> city = TrafficDataset.from_arrays(np.ones(24), np.arange(24) * 3600)
        >>> shaken(city, 22).activity.ravel()[-3:].tolist()
        [1.0, 4.0, 4.0]
    """
    activity = dataset.activity.copy()
    activity[start:] = 3 * activity[start:] + 1
    return dataset.with_(activity=activity)


def _alike(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> bool:
    scale = float(np.nanmax(np.abs(one), initial=0.0))
    return bool(np.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE * scale + 1e-12, equal_nan=True))
