"""The last value, for every step ahead."""

from __future__ import annotations

import numpy as np
from typing_extensions import Self

from simmst.baselines.base import checked_origins, last_known
from simmst.data import TrafficDataset, WindowSpec


class Persistence:
    """Forecast y[o + h] = y[o - 1] for every h; where that is missing, the newest known value before it.

    Example:
        >>> import numpy as np
        >>> from simmst.data import TrafficDataset, WindowSpec
        >>> city = TrafficDataset.from_arrays(np.arange(24.0), np.arange(24) * 3600)
        >>> Persistence().fit(city, WindowSpec(2, (-1,)), range(20)).predict(city, np.array([20]))[0, 0, :, 0].tolist()
        [19.0, 19.0]
    """

    def __init__(self) -> None:
        self.horizon = 0

    def fit(self, dataset: TrafficDataset, spec: WindowSpec, train: range) -> Self:
        """Remember the horizon; there is nothing to learn."""
        self.horizon = spec.horizon
        return self

    def predict(self, dataset: TrafficDataset, origins: np.ndarray) -> np.ndarray:
        """Forecast float32 (n, C, T_out, K); see `Baseline.predict`."""
        last = last_known(dataset.series(), checked_origins(dataset, origins))  # (n, K, C)
        return np.repeat(last.transpose(0, 2, 1)[:, :, None], self.horizon, axis=2)
