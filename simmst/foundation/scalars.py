"""NumPy numbers as Python numbers, so that settings may come from arrays."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


def python_scalars(settings: Any) -> None:
    """Replace numpy numbers in the fields of a frozen dataclass by Python's, in place, before it checks them.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Settings:
        ...     horizon: int
        ...     def __post_init__(self):
        ...         python_scalars(self)
        >>> Settings(np.int64(2))
        Settings(horizon=2)
    """
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        if isinstance(value, np.generic):
            object.__setattr__(settings, item.name, value.item())


def python_scalar(value: Any) -> Any:
    """Return a numpy number as Python's, and any other value unchanged.

    Example:
        >>> python_scalar(np.int64(2)), python_scalar("2")
        (2, '2')
    """
    return value.item() if isinstance(value, np.generic) else value
