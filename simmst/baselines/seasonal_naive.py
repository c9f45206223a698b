"""The same slot of the last day or week."""

from __future__ import annotations

import numpy as np
from typing_extensions import Self

from simmst.baselines.base import checked_origins, fill_with_last_known
from simmst.data import TrafficDataset, WindowSpec


class SeasonalNaive:
    """Forecast y[o + h] = y[o + h - m p] with period p and the least m for which that slot lies before the origin o.

    Where that value is missing or before the series, the forecast takes the slot one period further back, and so on;
    where no such slot is known, it takes the newest known value.

    Args:
        days: period in days, 1 or 7.

    Example:
        >>> import numpy as np
        >>> from simmst.data import TrafficDataset, WindowSpec
        >>> city = TrafficDataset.from_arrays(np.arange(48.0), np.arange(48) * 3600)
        >>> forecast = SeasonalNaive(days=1).fit(city, WindowSpec(2, (-1,)), range(40)).predict(city, np.array([40]))
        >>> forecast[0, 0, :, 0].tolist()
        [16.0, 17.0]
    """

    def __init__(self, days: int) -> None:
        self.days = days
        self.horizon = 0

    def fit(self, dataset: TrafficDataset, spec: WindowSpec, train: range) -> Self:
        """Remember the horizon; there is nothing to learn."""
        self.horizon = spec.horizon
        return self

    def predict(self, dataset: TrafficDataset, origins: np.ndarray) -> np.ndarray:
        """Forecast float32 (n, C, T_out, K); see `Baseline.predict`."""
        origins = checked_origins(dataset, origins)
        period = self.days * dataset.steps_per_day
        series = dataset.series()  # (T, K, C)
        ahead = np.arange(self.horizon)
        source = origins[:, None] + ahead - period * (ahead // period + 1)  # (n, T_out), all below the origin
        forecast = np.full((*source.shape, *series.shape[1:]), np.nan, dtype=np.float32)  # (n, T_out, K, C)
        while (source >= 0).any():
            found = np.where((source >= 0)[..., None, None], series[np.maximum(source, 0)], np.float32(np.nan))
            np.copyto(forecast, found, where=np.isnan(forecast))
            if not np.isnan(forecast).any():
                break
            source = source - period
        return fill_with_last_known(np.ascontiguousarray(forecast.transpose(0, 3, 1, 2)), series, origins)
