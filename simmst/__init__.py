"""simmst: cellular traffic forecasting with Sim-MSTNet, and its hot paths as fast drop-in operators.

There are three entry points: :mod:`simmst.ops` and :mod:`simmst.nn` for the operators and layers, :mod:`simmst.models`
for the networks, and :class:`Forecaster` (or the command ``simmst``) for forecasts of a city's cells.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Forecaster", "STNet", "SimMSTNet", "TrafficDataset", "__version__", "nn", "ops"]

if TYPE_CHECKING:
    from simmst import nn, ops
    from simmst.data import TrafficDataset
    from simmst.forecaster import Forecaster
    from simmst.models import SimMSTNet, STNet

# Imported on first use, so that users of the kernels alone do not pay for the rest.
_ATTRIBUTES = {
    "Forecaster": "simmst.forecaster",
    "TrafficDataset": "simmst.data",
    "SimMSTNet": "simmst.models",
    "STNet": "simmst.models",
}


def __getattr__(name: str) -> Any:
    if name in _ATTRIBUTES:
        return getattr(importlib.import_module(_ATTRIBUTES[name]), name)
    if name in _rooms():
        return importlib.import_module(f"simmst.{name}")
    raise AttributeError(f"module 'simmst' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ATTRIBUTES, *_rooms()})


def _rooms() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
