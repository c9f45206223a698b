"""Linear autoregression on the latest slots, for series without a known day before the origin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simmst.data.batch import Batch

LATEST = 12  # slots before the origin
FEWEST_SLOTS = 24  # least origins to learn from, and to judge on
_PENALTY = 0.01  # relative to the mean variance of the inputs

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Autoregression:
    """Linear forecasts, with one set of coefficients per service and step ahead, shared by all cells.

    The forecast is the last value plus a linear map of the differences between the 11 slots before and that value, all
    on the scaler's scale. A window without a last value has no forecast; other missing slots count as equal to it.

    Attributes:
        coefficients: float64 (T_out, K, 12), the intercept last.
    """

    coefficients: npt.NDArray[np.float64]

    @classmethod
    def learn(cls, batch: Batch) -> Autoregression:
        """Fit by least squares with a small L2 penalty; with too few windows, forecast the last value.

        Args:
            batch: windows with their targets.
        """
        target = batch.target.numpy()  # (B, T_out, K)
        coefficients = np.zeros((*target.shape[1:], LATEST))
        for k in range(target.shape[2]):
            last, inputs = _inputs(batch, k)
            for step in range(target.shape[1]):
                difference = target[:, step, k] - last
                known = np.isfinite(difference)
                if known.sum() > LATEST:
                    coefficients[step, k] = _line(inputs[known], difference[known])
        return cls(coefficients)

    def forecast(self, batch: Batch) -> Floats:
        """Return forecasts on the scaler's scale, float32 (B, T_out, K); NaN where the last value is missing."""
        services = range(self.coefficients.shape[1])
        found = []
        for k in services:
            last, inputs = _inputs(batch, k)
            line = self.coefficients[:, k]  # (T_out, 12)
            found.append(last[:, None] + inputs @ line[:, :-1].T + line[:, -1])
        together: Floats = np.stack(found, axis=-1).astype(np.float32)
        return together


def _inputs(batch: Batch, service: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the last value of each window's centre, (B,), and the differences of the slots before from it, (B, 11)."""
    centre = batch.values.shape[-1] // 2
    latest = batch.values[:, -LATEST:, service, centre, centre].numpy().astype(np.float64)
    last = latest[:, -1]
    return last, np.nan_to_num(latest[:, :-1] - last[:, None])


def _line(inputs: npt.NDArray[np.float64], difference: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the coefficients of a ridge regression; the last one, the intercept, is not penalised."""
    width = inputs.shape[1]
    extended = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    gram = extended.T @ extended
    gram[np.arange(width), np.arange(width)] += max(_PENALTY * np.trace(gram[:width, :width]) / width, 1e-9)
    solved: npt.NDArray[np.float64] = np.linalg.solve(gram, extended.T @ difference)
    return solved
