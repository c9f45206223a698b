"""Ridge regression on the memory of a series, pooled over the cells."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simmst.baselines.memory_features import Features
from simmst.baselines.memory_model import MemoryModel

# Penalties per training sample, on standardised features. All cells of an hour move together, so large penalties help.
PENALTIES = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, np.inf)
_BLOCKS = 4  # parts of the training slots in time; each but the first scores models fitted to the parts before it
_MARGIN = 0.01  # relative gain by which a weaker penalty must beat a stronger one
_FLOOR = 20.0  # least penalty times the number of slots, because few slots can favour a weaker one by chance
_FEWEST_SLOTS = 12  # slots to forecast that a line is fitted to


class RidgeOnLags(MemoryModel):
    """Linear regression with an L2 penalty from the memory of a series to each step ahead, per service.

    The features of a sample are on a log scale and relative to the level of the series: the latest 24 slots; the slot
    to forecast on each of the previous 14 days, with its means; how far the latest slots, the neighbours and the city
    are from usual; and the calendar. One model per service and step ahead is shared by all cells.

    The model learns how far a slot differs from the mean of the same slot on previous days. The difference is bounded
    by those seen in training, and so are the features, so a forecast cannot run away. The penalty is chosen on the
    training slots: models fitted to earlier slots are scored on later ones. If no penalty beats the mean itself, or if
    there is too little to learn from, the forecast is that mean. Where no previous day is known, it is the newest known
    value.

    Args:
        alpha: penalty per training sample, on standardised features; None chooses it for each service and step ahead.
        max_rows: largest number of training windows, drawn with `seed`.
        seed: seed of the draw of windows.

    Example:
        >>> import numpy as np
        >>> from simmst.data import TrafficDataset, WindowSpec
        >>> t = np.arange(21 * 24)
        >>> city = TrafficDataset.from_arrays(50 + 40 * np.sin(t * np.pi / 12), t * 3600, timezone="UTC", country=None)
        >>> model = RidgeOnLags().fit(city, WindowSpec(2, (-1,)), range(14 * 24))
        >>> model.predict(city, np.array([14 * 24 + 6]))[0, 0, :, 0].round().tolist()
        [90.0, 89.0]
    """

    def __init__(self, alpha: float | None = None, *, max_rows: int = 20_000, seed: int = 0) -> None:
        super().__init__(max_rows=max_rows, seed=seed)
        self.alpha = alpha
        self._lines: list[dict[int, Line]] = []  # by service, then by step; no line forecasts no difference

    def _forget(self, num_services: int) -> None:
        self._lines = [{} for _ in range(num_services)]

    def _learn(self, service: int, features: Features, origin: np.ndarray) -> None:
        penalties = PENALTIES if self.alpha is None else (self.alpha,)
        for step in range(features.ahead.shape[1]):
            known = ~np.isnan(features.target[:, step])
            slot = origin[known] + step
            if len(np.unique(slot)) < _FEWEST_SLOTS:
                continue
            usual = features.usual[known, step].astype(np.float64)
            inputs, target = _inputs(features, step)[known], features.target[known, step].astype(np.float64)
            line = best_line(inputs, target, usual, slot, penalties)
            if line is not None:
                self._lines[service][step] = line

    def _differences(self, service: int, features: Features) -> np.ndarray:
        differences = np.zeros_like(features.usual)
        for step, line in self._lines[service].items():
            differences[:, step] = line.predict(_inputs(features, step))
        return differences


class Line(NamedTuple):
    """A linear model of standardised features, which are clipped to the range seen in training."""

    coefficients: np.ndarray  # (F + 1,), the intercept last
    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return the differences (N,) of inputs (N, F)."""
        standardised = (np.clip(inputs, self.low, self.high) - self.mean) / self.std
        difference: np.ndarray = standardised @ self.coefficients[:-1] + self.coefficients[-1]
        return difference


def _inputs(features: Features, step: int) -> np.ndarray:
    return np.concatenate([features.window, features.ahead[:, step]], axis=1)


def best_line(
    inputs: np.ndarray, target: np.ndarray, usual: np.ndarray, slot: np.ndarray, penalties: tuple[float, ...]
) -> Line | None:
    """Fit with the penalty that forecasts later slots best from earlier ones; return None if it is infinite.

    Args:
        inputs: float32 (N, F).
        target: float64 (N,), differences from `usual`.
        usual: float64 (N,), on the relative log scale; errors are compared on the raw scale.
        slot: int64 (N,), slots that are forecast.
        penalties: penalties to choose from, ascending.
    """
    mean, std = inputs.mean(axis=0), inputs.std(axis=0)
    std[std < 1e-4] = 1.0  # a feature that never changed has no effect
    low, high = inputs.min(axis=0), inputs.max(axis=0)
    standardised = np.concatenate([(inputs - mean) / std, np.ones((len(inputs), 1), np.float32)], axis=1)
    slots = np.unique(slot)
    block = np.searchsorted(slots[np.arange(1, _BLOCKS) * len(slots) // _BLOCKS], slot, side="right")
    parts = [standardised[block == number].astype(np.float64) for number in range(_BLOCKS)]
    # Least squares needs, of the first blocks together, the sums of products and the number of samples.
    gram = np.cumsum([part.T @ part for part in parts], axis=0)
    cross = np.cumsum([part.T @ target[block == number] for number, part in enumerate(parts)], axis=0)
    count = np.cumsum([len(part) for part in parts])
    if len(penalties) > 1:
        penalties = tuple(penalty for penalty in penalties if penalty >= _FLOOR / len(slots))
    errors = np.zeros(len(penalties))
    for number in range(1, _BLOCKS) if len(penalties) > 1 else ():
        judged, earlier = block == number, target[block < number]
        truth = np.expm1(usual[judged] + target[judged])
        for place, penalty in enumerate(penalties):
            difference = parts[number] @ _solve(gram[number - 1], cross[number - 1], penalty * count[number - 1])
            difference = np.clip(difference, earlier.min(), earlier.max())
            errors[place] += np.abs(np.expm1(usual[judged] + difference) - truth).sum()
    penalty = penalties[int(np.flatnonzero(errors <= (1 + _MARGIN) * errors.min())[-1])]
    if np.isinf(penalty):
        return None
    return Line(_solve(gram[-1], cross[-1], penalty * count[-1]), mean, std, low, high)


def _solve(gram: np.ndarray, cross: np.ndarray, penalty: float) -> np.ndarray:
    """Return the coefficients of ridge regression; the last, the intercept, is free unless the penalty is infinite."""
    if np.isinf(penalty):
        return np.zeros_like(cross)
    diagonal = np.full(len(gram), penalty)
    diagonal[-1] = 1e-6
    solved: np.ndarray = np.linalg.solve(gram + np.diag(diagonal), cross)
    return solved
