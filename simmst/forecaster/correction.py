"""Boosted trees on the errors of a network, learned from the days before a forecast."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from simmst.baselines.gradient_boosting import draw_nearest, grow_trees, step_inputs
from simmst.baselines.memory_features import Features
from simmst.foundation.threads import in_threads, one_openmp_thread

_ROWS = 8192  # most samples (windows at a step ahead), shared out among the services
_TREES = 60
_FEWEST = 100  # samples that trees are grown on
_DOUBT_DAYS = 3.0  # days of learned slots at which a correction counts half

Floats = npt.NDArray[np.float32]


class Correction:
    """A network's forecasts with its errors corrected by gradient boosted trees, one model per service.

    Boosting (Friedman 2001) usually starts from a constant. Here it starts from the network's forecast, so the trees
    spend themselves on what is particular to the place. They see the memory features of the window, the step ahead,
    and how far the forecast is from the mean of the slot on earlier days. All cells and steps ahead share a model. A
    correction stays within the errors seen in learning, and it is shrunk where few days were learned from.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """

    def __init__(self) -> None:
        self._trees: list[Any] = []  # by service; None corrects nothing
        self._bounds: list[tuple[float, float]] = []
        self._trust = 0.0

    @classmethod
    def learn(
        cls, features: list[Features], network: Floats, origin: npt.NDArray[np.int64], per_day: int
    ) -> Correction:
        """Learn from N windows.

        Args:
            features: features of each service; samples without a target are left out.
            network: float32 (N, T_out, K), the network's forecasts on the scale of the features.
            origin: int64 (N,), origins of the windows.
            per_day: number of slots in a day.
        """
        learned = cls()

        def grow(service: int) -> tuple[Any, tuple[float, float], npt.NDArray[np.bool_]]:
            one, forecast = features[service], network[..., service]
            error = one.target + one.usual - forecast
            there = np.isfinite(error)
            window, step = draw_nearest(there, max(_ROWS // len(features), _ROWS // 4), seed=0)
            if len(window) < _FEWEST:
                return None, (0.0, 0.0), there
            errors = error[window, step]
            trees = grow_trees(_inputs(one, forecast, window, step), errors, _TREES, seed=0)
            return trees, (float(errors.min()), float(errors.max())), there

        trees, bounds, there = zip(*in_threads(grow, range(len(features))), strict=True)
        learned._trees, learned._bounds = list(trees), list(bounds)
        days = len(np.unique(origin[np.any(there, axis=(0, 2))])) / per_day
        learned._trust = days / (days + _DOUBT_DAYS)
        return learned

    def forecast(self, service: int, features: Features, network: Floats) -> Floats:
        """Return the corrected forecasts of one service, float32 (N, T_out), from the network's, (N, T_out)."""
        trees, (low, high) = self._trees[service], self._bounds[service]
        corrected = network.copy()
        if trees is None:
            return corrected
        windows, steps = network.shape
        window, step = np.divmod(np.arange(windows * steps), steps)
        with one_openmp_thread():
            error = trees.predict(_inputs(features, network, window, step)).reshape(windows, steps)
        corrected += (self._trust * np.clip(error, low, high)).astype(np.float32)
        return corrected


def _inputs(
    features: Features, network: Floats, window: npt.NDArray[np.int64], step: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Return the inputs of trees, float32 (N, F): those of gradient boosting, and the forecast against the usual."""
    unusual = np.nan_to_num(network[window, step] - features.usual[window, step])
    return np.concatenate([step_inputs(features, window, step), unusual[:, None]], axis=1)
