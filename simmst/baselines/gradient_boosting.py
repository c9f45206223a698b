"""Gradient boosting on the memory of a series, pooled over the cells."""

from __future__ import annotations

from typing import Any

import numpy as np

from simmst.baselines.memory_features import Features
from simmst.baselines.memory_model import MemoryModel
from simmst.foundation.extras import import_extra
from simmst.foundation.threads import one_openmp_thread

_JUDGES = 0.25  # share of the training slots, the last ones, that decides the number of trees
_EVERY = 10  # trees
_MARGIN = 0.01  # relative gain by which more trees must beat fewer
_FEWEST_SLOTS = 12  # slots to forecast that trees are grown on


class GradientBoosting(MemoryModel):
    """Gradient boosted trees (scikit-learn, absolute error) on the features of ridge, one model per service.

    The step ahead is a feature, so all steps share a model. As with ridge, the models learn how far a slot differs from
    the mean of the same slot on previous days; a forecast difference is bounded by those seen in training. The last
    quarter of the training slots decides the number of trees. If a model without trees forecasts that quarter best, or
    if there is too little to learn from, the forecast is that mean.

    Args:
        max_rows: largest number of training samples (windows at a step ahead), drawn with `seed`.
        max_trees: largest number of trees for each service.
        seed: seed of the draw of samples and of the trees.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """

    doubt_days = 1.0  # trees memorise two days

    def __init__(self, *, max_rows: int = 20_000, max_trees: int = 120, seed: int = 0) -> None:
        super().__init__(max_rows=max_rows, seed=seed)
        self.max_trees = max_trees
        self._trees: list[Any] = []  # by service; None forecasts no difference

    def _forget(self, num_services: int) -> None:
        self._trees = [None] * num_services

    def _learn(self, service: int, features: Features, origin: np.ndarray) -> None:
        window, step = draw_nearest(~np.isnan(features.target), self.max_rows, seed=self.seed)
        slot = origin[window] + step
        if len(np.unique(slot)) < _FEWEST_SLOTS:
            return
        inputs, target = step_inputs(features, window, step), features.target[window, step]
        count = self._count_trees(inputs, target, features.usual[window, step], slot)
        if count:
            self._trees[service] = self._grow(inputs, target, count)

    def _differences(self, service: int, features: Features) -> np.ndarray:
        differences = np.zeros_like(features.usual)
        if self._trees[service] is not None:
            window = np.arange(len(differences))
            with one_openmp_thread():
                for step in range(differences.shape[1]):
                    differences[:, step] = self._trees[service].predict(step_inputs(features, window, step))
        return differences

    def _count_trees(self, inputs: np.ndarray, target: np.ndarray, usual: np.ndarray, slot: np.ndarray) -> int:
        """Return how many trees, grown on the earlier slots, forecast the last ones best; zero if trees do not help."""
        slots = np.unique(slot)
        last = slot >= slots[-max(1, round(_JUDGES * len(slots)))]
        grown = self._grow(inputs[~last], target[~last], self.max_trees)
        truth = np.expm1(usual[last] + target[last])
        errors = {0: np.abs(np.expm1(usual[last]) - truth).mean()}
        with one_openmp_thread():
            for number, difference in enumerate(grown.staged_predict(inputs[last]), start=1):
                if number % _EVERY == 0 or number == self.max_trees:
                    errors[number] = np.abs(np.expm1(usual[last] + difference) - truth).mean()
        most = (1 + _MARGIN) * min(errors.values())
        return next(number for number, error in errors.items() if error <= most)

    def _grow(self, inputs: np.ndarray, target: np.ndarray, count: int) -> Any:
        return grow_trees(inputs, target, count, seed=self.seed)


def grow_trees(inputs: np.ndarray, target: np.ndarray, count: int, *, seed: int) -> Any:
    """Grow gradient boosted trees with the absolute error as loss.

    Args:
        inputs: float32 (N, F).
        target: (N,).
        count: number of trees.
        seed: seed of the features that each split may use.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    ensemble = import_extra("sklearn.ensemble", extra="forecast")
    trees = ensemble.HistGradientBoostingRegressor(
        loss="absolute_error",
        learning_rate=0.1,
        max_iter=count,
        max_leaf_nodes=8,
        min_samples_leaf=50,
        l2_regularization=1.0,
        max_features=0.4,
        early_stopping=False,
        random_state=seed,
    )
    with one_openmp_thread():
        return trees.fit(inputs, target)


def draw_nearest(known: np.ndarray, most: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw samples from known windows at a step ahead, near steps more often than far ones.

    The nearest steps have most to learn, because the latest slots matter there.

    Args:
        known: bool (N, T_out), samples to draw from.
        most: most samples to draw.
        seed: seed of the draw.

    Returns:
        int64 (M,) windows and int64 (M,) steps, counted from 0.
    """
    window, step = np.nonzero(known)
    if len(window) <= most:
        return window, step
    share = 1.0 / (step + 1)
    drawn = np.random.default_rng(seed).choice(len(window), size=most, replace=False, p=share / share.sum())
    return window[drawn], step[drawn]


def step_inputs(features: Features, window: np.ndarray, step: int | np.ndarray) -> np.ndarray:
    """Return the features of windows, each at a step ahead, with the step: float32 (N, F)."""
    ahead = np.broadcast_to(np.asarray(step, dtype=np.float32), window.shape)[:, None]
    return np.concatenate([features.window[window], features.ahead[window, step], ahead], axis=1)
