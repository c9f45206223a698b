"""Files of unrelated patches of an operator's cells, as one data set per patch to compare with cities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from simmst.data.dataset import TrafficDataset
from simmst.data.readers import patches


def read_patches(path: str | Path, **options: Any) -> list[TrafficDataset]:
    """Read a ``.npz`` file of patches, one data set per patch.

    Args:
        path: as in `simmst.data.readers.patches.read_patches`, which reads the file.
        options: options of that function: ``start``, ``timezone`` and ``service``.

    Raises:
        DataError: the file cannot be read, or holds something else.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "two.npz"
        >>> np.savez(path, traffic=np.ones((2, 48, 3, 3)), mask=np.ones((2, 3, 3), bool), step_minutes=30)
        >>> [(patch.name, patch.num_steps) for patch in read_patches(path)]
        [('two-0', 48), ('two-1', 48)]
    """
    return split_patches(TrafficDataset(**patches.read_patches(path, **options)))


def split_patches(dataset: TrafficDataset) -> list[TrafficDataset]:
    """Split a data set of patches on one grid into one data set per patch, named after both the data set and the patch.

    Any other data set is returned unchanged.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "two.npz"
        >>> np.savez(path, traffic=np.ones((2, 48, 3, 3)), mask=np.ones((2, 3, 3), bool), step_minutes=30)
        >>> [patch.activity.shape for patch in split_patches(TrafficDataset.from_npz(path))]
        [(48, 1, 3, 3), (48, 1, 3, 3)]
    """
    numbers = patches.patch_numbers(dataset.cell_name)
    if numbers is None:
        return [dataset]
    return [_patch(dataset, numbers, number) for number in np.unique(numbers[dataset.mask]).tolist()]


def _patch(dataset: TrafficDataset, numbers: np.ndarray, number: int) -> TrafficDataset:
    rows, columns = np.nonzero(numbers == number)
    box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    return dataset.with_(
        activity=np.ascontiguousarray(dataset.activity[:, :, box[0], box[1]]),
        mask=dataset.mask[box],
        cell_id=dataset.cell_id[box],
        lonlat=None if dataset.lonlat is None else dataset.lonlat[box],
        cell_name=None if dataset.cell_name is None else dataset.cell_name[box],
        name=f"{dataset.name}-{number}",
    )
