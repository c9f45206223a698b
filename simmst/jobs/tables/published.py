"""Published forecasts of others for a series, scored on the same points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from simmst.data import TrafficDataset, data_directory
from simmst.data.readers.archive import read_archive
from simmst.errors import DataError
from simmst.foundation.files import write_atomically

ARRAY = "published_fedgcc_prediction_z"


class Published:
    """One-step forecasts from a file, as a predictor of their series.

    Args:
        path: file that `keep_published` wrote.
    """

    def __init__(self, path: str | Path) -> None:
        self.forecasts: npt.NDArray[np.float32] = np.load(path, allow_pickle=False)  # (T, C)

    def predict(self, dataset: TrafficDataset, origins: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return float32 (n, C, 1, 1)."""
        if self.forecasts.shape != (dataset.num_steps, dataset.num_cells):
            raise DataError(
                f"the published forecasts have shape {self.forecasts.shape}, the series has other slots or cells"
            )
        return self.forecasts[origins][:, :, None, None]


def published_forecasts(data: str | Path, dataset: TrafficDataset) -> npt.NDArray[np.float32] | None:
    """Return the published one-step forecasts in the file of a series, float32 (T, C); None if it has none."""
    path = Path(data).expanduser()
    if not path.is_file() and path.parent == Path():
        try:
            path = data_directory() / path.with_suffix(".npz")
        except DataError:
            return None
    if path.suffix != ".npz" or not path.is_file():
        return None
    found = read_archive(path, ARRAY).get(ARRAY)
    if found is None or dataset.num_services != 1 or found.shape != (dataset.num_steps, dataset.num_cells):
        return None
    return np.asarray(found, dtype=np.float32)


def published_path(folder: str | Path, digest: str) -> Path:
    """Return the path of the published forecasts of a series, for the processes that score them."""
    return Path(folder) / "series" / f"{digest}-published.npy"


def keep_published(folder: str | Path, digest: str, forecasts: npt.NDArray[np.float32]) -> Path:
    """Write published forecasts beside the series."""
    path = published_path(folder, digest)
    return write_atomically(path, lambda temporary: np.save(temporary, forecasts, allow_pickle=False))
