"""Files of unrelated patches of an operator's cells: each patch a data set of its own, to compare or to evaluate."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from simmst.data.calendar import utc_offset_seconds
from simmst.data.dataset import TrafficDataset
from simmst.errors import DataError


def read_patches(
    path: str | Path, *, start: str = "2013-11-04", timezone: str = "Asia/Shanghai", service: str = "internet"
) -> list[TrafficDataset]:
    """Read a ``.npz`` file of patches.

    Args:
        path: holds ``traffic`` (P, T, H, W), ``mask`` (P, H, W), False where a cell has no base station, and
            ``step_minutes``.
        start: local date of the first slot. Files whose date nobody published get a Monday.
        timezone: IANA name of the local time zone.
        service: name that the traffic gets.

    Returns:
        One data set a patch, named after the file and its number; cells outside the mask are masked.

    Raises:
        DataError: the file cannot be read, or holds other arrays.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "two.npz"
        >>> np.savez(path, traffic=np.ones((2, 48, 3, 3)), mask=np.ones((2, 3, 3), bool), step_minutes=30)
        >>> [(patch.name, patch.num_steps) for patch in read_patches(path)]
        [('two-0', 48), ('two-1', 48)]
    """
    path = Path(path)
    try:
        with np.load(path) as file:
            traffic, mask, step = file["traffic"], file["mask"], int(file["step_minutes"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} holds no patches: {error}; it needs traffic, mask and step_minutes") from error
    if traffic.ndim != 4 or mask.shape != (traffic.shape[0], *traffic.shape[2:]):
        raise DataError(f"{path}: traffic {traffic.shape} and mask {mask.shape} must be (P, T, H, W) and (P, H, W)")
    midnight = np.datetime64(start, "s").reshape(1)
    first = midnight - utc_offset_seconds(midnight, timezone).astype("timedelta64[s]")
    time = first + np.arange(traffic.shape[1]) * np.timedelta64(step * 60, "s")
    return [
        TrafficDataset.from_arrays(
            np.where(inside, patch, np.nan).astype(np.float32)[:, None],
            time,
            services=[service],
            mask=inside,
            timezone=timezone,
            country=None,
            name=f"{path.stem}-{number}",
        )
        for number, (patch, inside) in enumerate(zip(traffic, mask.astype(bool), strict=True))
    ]
