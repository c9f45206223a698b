"""The features that the weights of simulated cities may depend on: each city's rank among the others, by parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def rank_features(parameters: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return standardised ranks of the cities' parameters.

    A number gives one feature, its rank among the cities, so a law's unit and shape do not matter. Anything else gives
    one feature for each value, which marks the cities that have it. Parameters that all cities share, or that some
    lack, give none. Each feature has mean 0 and standard deviation 1 over the cities, and all are divided by the square
    root of their number, so weights of size one on every feature move a city's weight by about one.

    Args:
        parameters: parameters of C cities, by name, as `DomainPrior.values` returns them.

    Returns:
        float32 (C, P).

    Example:
        >>> rank_features([{"tilt_deg": 2.0, "scenario": "UMa"}, {"tilt_deg": 12.0, "scenario": "UMa"}]).tolist()
        [[-1.0], [1.0]]
    """
    columns = []
    for name in parameters[0] if parameters else ():
        values = [city.get(name) for city in parameters]
        if any(value is None for value in values):
            continue
        if all(_is_number(value) for value in values):
            known = np.array(values, dtype=np.float64)
            below, upto = (np.searchsorted(np.sort(known), known, side) for side in ("left", "right"))
            columns.append((below + upto) / 2)
        else:
            columns += [
                np.array([str(value) == one for value in values], float) for one in sorted(set(map(str, values)))
            ]
    spread = [column for column in columns if column.std() > 0]
    if not spread:
        return np.zeros((len(parameters), 1), dtype=np.float32)
    ranks = np.stack([(column - column.mean()) / column.std() for column in spread], axis=1)
    return (ranks / math.sqrt(ranks.shape[1])).astype(np.float32)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)
