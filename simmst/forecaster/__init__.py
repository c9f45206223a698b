"""The high-level door: fit on a few days of traffic, forecast every cell, with the naive forecasts beside it."""

from simmst.forecaster.config import ForecasterConfig
from simmst.forecaster.fitted import FittedForecaster
from simmst.forecaster.forecaster import Forecaster

__all__ = ["FittedForecaster", "Forecaster", "ForecasterConfig"]
