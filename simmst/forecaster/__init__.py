"""The high-level interface: fit on a few days of traffic, forecast every cell, and compare with naive forecasts."""

from simmst.forecaster.config import ForecasterConfig
from simmst.forecaster.fitted import FittedForecaster
from simmst.forecaster.forecaster import Forecaster

__all__ = ["FittedForecaster", "Forecaster", "ForecasterConfig"]
