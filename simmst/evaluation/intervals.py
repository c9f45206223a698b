"""Prediction intervals from errors on held-out windows (split conformal)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simmst.data import Scaler, Windows
from simmst.errors import ConfigError, DataError
from simmst.evaluation.evaluate import ModelPredictor, Predictor

_LEVELS = np.arange(1, 100)
_STRETCHES = (0.5, 2.0)
_NARROWEST = 0.85  # least measured stretch that is used


@dataclass(frozen=True, eq=False)
class ErrorQuantiles:
    r"""Quantiles of the absolute errors on held-out windows, by slot ahead and service, on the scaler's scale.

    A central interval of level q is :math:`\hat z \pm e_q`, where :math:`e_q` is the
    :math:`\lceil (n + 1) q \rceil`-th smallest of n errors (Vovk et al. 2005; split conformal), mapped back to raw
    units. Its coverage is exact if the held-out windows are exchangeable with the future and had no part in fitting; it
    is approximate for windows that also stopped the training, or that lie in another season. Where n is too small for
    that rank, the largest error is used.

    Args:
        values: float32 (99, T_out, K), quantiles at 1, 2, ..., 99 percent; NaN where nothing was observed.
        scaler: scaler of the errors.

    Example:
        >>> scaler = Scaler("linear", np.zeros(1), np.ones(1))
        >>> errors = ErrorQuantiles(np.full((99, 1, 1), 2.0, np.float32), scaler)
        >>> [bound.item() for bound in errors.interval(np.array([[[5.0]]], np.float32), 80)]
        [3.0, 7.0]
    """

    values: npt.NDArray[np.float32]
    scaler: Scaler

    @classmethod
    def measure(cls, predictor: Predictor, windows: Windows, *, limit: int | None = 4096) -> ErrorQuantiles:
        """Forecast windows and return the quantiles of the errors.

        Args:
            predictor: predictor fitted without these windows' targets.
            windows: held-out windows.
            limit: most windows to forecast, taken from evenly spaced origins. All cells of an origin are forecast
                together, and at least one origin is. None forecasts all windows.

        Raises:
            DataError: there is no window.
            ConfigError: the limit is below 1.
        """
        if len(windows) == 0:
            raise DataError("there is no window to measure errors on; hold out a longer part of the series")
        if limit is not None and limit < 1:
            raise ConfigError(f"limit is {limit}; it must be at least 1, or None for all windows")
        places = _spread(windows.num_origins, None if limit is None else max(limit // windows.num_cells, 1))
        indices = places[:, None] * windows.num_cells + np.arange(windows.num_cells)
        forecast = predictor.predict(windows.dataset, windows.origins[places])  # (n, C, T_out, K)
        target = windows.raw_target(indices.reshape(-1)).reshape(forecast.shape)
        scaler = windows.scaler
        errors = np.abs(scaler.transform(forecast, -1) - scaler.transform(target, -1))
        errors = np.sort(errors.reshape(-1, *forecast.shape[2:]), axis=0)  # NaN sorts to the end
        values = np.full((len(_LEVELS), *errors.shape[1:]), np.nan, dtype=np.float32)
        for place in np.ndindex(*errors.shape[1:]):
            column = errors[(slice(None), *place)]
            count = int((~np.isnan(column)).sum())
            if count:
                rank = np.ceil((count + 1) * _LEVELS / 100).astype(int) - 1
                values[(slice(None), *place)] = column[np.minimum(rank, count - 1)]
        return cls(values, scaler)

    def interval(
        self, forecast: npt.NDArray[np.float32], level: float
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return the lower and upper bounds around forecasts; the forecast lies between them.

        Args:
            forecast: (..., T_out, K) raw units.
            level: integer between 1 and 99, in percent.

        Raises:
            ConfigError: the level is not such an integer.
        """
        width = self.values[checked_level(level) - 1]
        centre = self.scaler.transform(forecast, -1)
        # Scaling and its inverse round, so a narrow interval could miss its own forecast.
        low = np.minimum(self.scaler.inverse(centre - width, -1), forecast)
        high = np.maximum(self.scaler.inverse(centre + width, -1), forecast)
        return low, high


def measure_stretch(predictor: ModelPredictor, windows: Windows, *, limit: int = 1024) -> float:
    """Return the factor on the widths of a model's 80 % intervals that makes them hold 80 % of held-out targets.

    Args:
        predictor: model with quantiles that was not fitted to these windows' targets.
        windows: held-out windows, with the predictor's spec and scaler.
        limit: most windows to forecast, evenly spaced over all.

    Returns:
        The factor, between 0.5 and 2; 1 where no target is observed.
    """
    chosen = _spread(len(windows), limit)
    low, median, high = np.moveaxis(predictor.forecast_windows(windows, chosen, (0.1, 0.5, 0.9)), -1, 0)
    error = windows.batch(chosen).target.numpy() - median
    return stretch_of(error, np.where(error < 0, median - low, high - median) / predictor.stretch)


def stretch_of(error: npt.NDArray[np.float32], width: npt.NDArray[np.float32]) -> float:
    """Return the factor on half-widths, each on the side of its error, that makes intervals hold 80 % of the errors.

    Example:
        >>> stretch_of(np.arange(-10.0, 11.0), np.full(21, 4.0))
        2.0
    """
    ratio = np.abs(error) / np.maximum(width, 1e-6)
    ratio = ratio[np.isfinite(ratio)]
    return float(np.clip(np.quantile(ratio, 0.8), *_STRETCHES)) if ratio.size else 1.0


def believed_stretch(measured: float, days: float) -> float:
    """Return a measured stretch, shrunk towards 1 for few days and bounded below, because few errors look too small.

    Example:
        >>> believed_stretch(1.4, days=1), round(believed_stretch(0.5, days=4), 2)
        (1.2, 0.88)
    """
    return 1.0 + (max(measured, _NARROWEST) - 1.0) * days / (days + 1.0)


def checked_level(level: float) -> int:
    """Return a level of intervals as an integer.

    Raises:
        ConfigError: the level is not an integer between 1 and 99.

    Example:
        >>> checked_level(0.95)
        Traceback (most recent call last):
        ...
        simmst.errors.ConfigError: level is 0.95; it must be an integer between 1 and 99, in percent
    """
    if isinstance(level, bool) or not isinstance(level, (int, float, np.number)) or level not in _LEVELS:
        raise ConfigError(f"level is {level!r}; it must be an integer between 1 and 99, in percent")
    return int(level)


def _spread(total: int, wanted: int | None) -> npt.NDArray[np.int64]:
    """Return `wanted` numbers evenly spaced over 0..total - 1, or all of them; one number is the middle one."""
    if wanted is None or wanted >= total:
        return np.arange(total, dtype=np.int64)
    # the centres of `wanted` equal parts
    return ((np.arange(wanted) + 0.5) * total / wanted).astype(np.int64)
