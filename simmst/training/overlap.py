"""Refuses a validation split that training has seen."""

from __future__ import annotations

import numpy as np

from simmst.data import CityWindows, Windows
from simmst.errors import DataError


def refuse_overlap(train: CityWindows | None, validation: CityWindows | None) -> None:
    """Raise when a slot to forecast in validation is a slot to forecast in training, of the same cells.

    Inputs of validation windows may reach back into training: a forecaster sees the past.

    Raises:
        DataError: names the series and the slots that both have.

    Example:
        >>> refuse_overlap(None, None)
    """
    if train is None or validation is None:
        return
    for one in train.parts:
        for other in validation.parts:
            common = np.intersect1d(_targets(one), _targets(other))
            if len(common) and _same_cells(one, other):
                raise DataError(
                    f"the validation split overlaps the training split: {one.dataset.name} has {len(common)} slots in "
                    f"both, from {common[0]} to {common[-1]} (UTC), so the score would be of what was trained on; give "
                    "steps that lie apart, such as those of chronological_split"
                )


def _targets(windows: Windows) -> np.ndarray:
    """The starts of the slots that are forecast."""
    first = int(windows.origins[0])
    last = min(int(windows.origins[-1]) + windows.spec.horizon, windows.dataset.num_steps)
    return windows.dataset.time[first:last]


def _same_cells(one: Windows, other: Windows) -> bool:
    if one.dataset is other.dataset:
        return True
    a, b = one.dataset, other.dataset
    return a.name == b.name and bool(np.isin(a.cell_id[a.mask], b.cell_id[b.mask]).any())
