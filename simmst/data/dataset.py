"""The traffic of a city: activity per slot, service and cell, with its time axis and geometry."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simmst.data.calendar import DAY_MINUTES, check_time_axis, checked_days, utc_offset_seconds
from simmst.data.covariates import Covariates
from simmst.data.layout import FrameLayout
from simmst.data.readers import arrays, frames, hdf5, npz, telecom_italia
from simmst.data.readers.covariates import read_covariates
from simmst.errors import DataError

if TYPE_CHECKING:
    import pandas

GEOMETRIES = ("grid", "points")


@dataclass(frozen=True, eq=False)
class TrafficDataset:
    """Cellular traffic on a raster or at unrelated places, on an even time axis.

    Attributes:
        activity: float32 (T, K, H, W), raw units; NaN where missing.
        time: datetime64[s] (T,), slot starts in UTC, ascending and evenly spaced.
        services: K names, such as ``("call", "sms", "internet")``.
        mask: bool (H, W), True inside the city; row 0 is south, column 0 west.
        cell_id: int64 (H, W), -1 outside the city.
        geometry: ``"grid"`` (neighbours on the raster are neighbours) or ``"points"`` ((1, W) unrelated places).
        timezone: IANA name of the local time zone, for the calendar.
        country: ISO code of the country whose public holidays count; None for none.
        unit: unit of the activity; ``"z-score"`` for standardised values.
        name: a short name for tables and pictures.
        surrogate: True where the data was simulated and stands in for a real city.
        cell_size_m: edge of a cell in metres, where known.
        lonlat: float64 (H, W, 2), longitude and latitude of the cells' centres, where known.
        cell_name: text or numbers (H, W), the ``unique_id`` of data frames, where that is not `cell_id`.
        events: local days that count as public holidays, such as ``"2013-12-07"``: matches, strikes, a patron saint's
            day, past or future.
        covariates: numbers about the whole city that are known in advance, such as the weather; None for none.
        layout: layout of the data frames that `to_dataframe` returns; that of the frame the data set was built from.

    Raises:
        DataError: a shape, type or time axis does not fit; the message names the value.

    Example:
        >>> import numpy as np
        >>> hours = np.datetime64("2013-11-01T00:00:00") + np.arange(48) * np.timedelta64(3600, "s")
        >>> city = TrafficDataset.from_arrays(np.ones((48, 3, 4)), hours, services=["internet"], timezone="UTC")
        >>> city.activity.shape, city.step_minutes, city.num_cells
        ((48, 1, 3, 4), 60, 12)
    """

    activity: np.ndarray
    time: np.ndarray
    services: tuple[str, ...]
    mask: np.ndarray
    cell_id: np.ndarray
    geometry: str = "grid"
    timezone: str = "Europe/Rome"
    country: str | None = "IT"
    unit: str = "CDR units"
    name: str = "traffic"
    surrogate: bool = False
    cell_size_m: float | None = None
    lonlat: np.ndarray | None = None
    cell_name: np.ndarray | None = None
    layout: FrameLayout = field(default_factory=FrameLayout)
    events: tuple[str, ...] = ()
    covariates: Covariates | None = None

    def __post_init__(self) -> None:
        if self.activity.ndim != 4 or self.activity.dtype != np.float32:
            raise DataError(
                f"activity must be float32 (T, K, H, W), got {self.activity.dtype} {self.activity.shape}; "
                "TrafficDataset.from_arrays accepts other ranks and types"
            )
        steps, services, height, width = self.activity.shape
        if len(self.services) != services:
            raise DataError(
                f"activity {self.activity.shape} has {services} services, but {len(self.services)} names were given: "
                f"{', '.join(self.services)}; give one name for each service"
            )
        if len(set(self.services)) != len(self.services):
            raise DataError(f"service names must differ, got {', '.join(self.services)}")
        if self.time.shape != (steps,) or self.time.dtype != np.dtype("datetime64[s]"):
            raise DataError(
                f"time must be datetime64[s] ({steps},) to go with activity {self.activity.shape}, "
                f"got {self.time.dtype} {self.time.shape}"
            )
        for what, array, kind in (("mask", self.mask, "b"), ("cell_id", self.cell_id, "i")):
            if array.shape != (height, width) or array.dtype.kind != kind:
                raise DataError(
                    f"{what} must be {'bool' if kind == 'b' else 'int64'} ({height}, {width}) to go with activity "
                    f"{self.activity.shape}, got {array.dtype} {array.shape}"
                )
        if self.lonlat is not None and self.lonlat.shape != (height, width, 2):
            raise DataError(f"lonlat must be ({height}, {width}, 2), got {self.lonlat.shape}")
        if self.cell_name is not None and self.cell_name.shape != (height, width):
            raise DataError(f"cell_name must be ({height}, {width}), got {self.cell_name.shape}")
        if self.geometry not in GEOMETRIES:
            raise DataError(f"geometry must be one of {', '.join(GEOMETRIES)}, got {self.geometry!r}")
        if self.geometry == "points" and height != 1:
            raise DataError(f'geometry "points" needs activity (T, K, 1, W), got {self.activity.shape}')
        if not self.mask.any():
            raise DataError("mask holds no cell at all; at least one must be True")
        check_time_axis(self.time)
        object.__setattr__(self, "events", checked_days(self.events))

    @property
    def num_steps(self) -> int:
        """Number of slots T."""
        return int(self.activity.shape[0])

    @property
    def num_services(self) -> int:
        """Number of services K."""
        return int(self.activity.shape[1])

    @property
    def step_minutes(self) -> int:
        """Length of a slot in minutes."""
        return int((self.time[1] - self.time[0]) // np.timedelta64(60, "s"))

    @property
    def steps_per_day(self) -> int:
        """Number of slots in 24 hours."""
        return DAY_MINUTES // self.step_minutes

    @property
    def num_cells(self) -> int:
        """Number of cells inside the city, C."""
        return int(np.count_nonzero(self.mask))

    @property
    def cells(self) -> np.ndarray:
        """Positions of the cells inside the city, int64 (C, 2), as (row, column), row by row."""
        return np.argwhere(self.mask).astype(np.int64)

    def series(self) -> np.ndarray:
        """Return the activity of the cells inside the city, float32 (T, K, C), in the order of `cells`."""
        return np.ascontiguousarray(self.activity[:, :, self.mask])

    def with_(self, **changes: Any) -> TrafficDataset:
        """Return a copy with the given attributes replaced."""
        return dataclasses.replace(self, **changes)

    def select_services(self, names: Sequence[str]) -> TrafficDataset:
        """Return the data set with only the named services, in that order.

        Raises:
            DataError: a name is not among the services; the message lists the services.

        Example:
            >>> import numpy as np
            >>> hours = np.arange(24) * 3600
            >>> city = TrafficDataset.from_arrays(np.zeros((24, 2)), hours, services=["call", "sms"])
            >>> city.select_services(["sms"]).services
            ('sms',)
        """
        names = [names] if isinstance(names, str) else list(names)
        if not names:
            raise DataError(f"no service was named; {self.name} has {', '.join(self.services)}")
        for name in names:
            if name not in self.services:
                raise DataError(f"there is no service {name!r} in {self.name}; it has {', '.join(self.services)}")
        index = [self.services.index(name) for name in names]
        return self.with_(activity=np.ascontiguousarray(self.activity[:, index]), services=tuple(names))

    def slice_steps(self, start: int, stop: int) -> TrafficDataset:
        """Return the slots start <= t < stop (views, no copy).

        Raises:
            DataError: the slots lie outside the series, or are fewer than two.
        """
        if not 0 <= start < stop <= self.num_steps or stop - start < 2:
            raise DataError(
                f"cannot take slots {start}..{stop} of a series of {self.num_steps}; "
                f"give 0 <= start < stop <= {self.num_steps}, at least two slots apart"
            )
        return self.with_(activity=self.activity[start:stop], time=self.time[start:stop])

    def resample(self, step_minutes: int) -> TrafficDataset:
        """Sum the slots into longer ones.

        The new slots start on the local clock (whole local hours for 60). A new slot with a missing part is NaN; slots
        that lie only partly inside the series are left out. Slots longer than an hour are aligned at the series' start
        and keep an even spacing, so they move by an hour on the local clock when daylight saving time changes.

        Args:
            step_minutes: length of the new slots, a multiple of the current length that divides 24 hours.

        Raises:
            DataError: the step does not fit, no whole slots remain, or the values are z-scores.
        """
        if step_minutes == self.step_minutes:
            return self
        if self.unit == "z-score":
            raise DataError(
                f"{self.name} holds z-scores, which cannot be summed to {step_minutes} min slots; keep its step"
            )
        if step_minutes <= 0 or step_minutes % self.step_minutes or DAY_MINUTES % step_minutes:
            raise DataError(
                f"cannot resample {self.name} from {self.step_minutes} to {step_minutes} min; give a multiple of "
                f"{self.step_minutes} that divides 24 hours"
            )
        factor = step_minutes // self.step_minutes
        offset = self.layout.wall_offset
        offset = utc_offset_seconds(self.time[:1], self.timezone)[0] if offset is None else offset
        local = self.time[0].astype(np.int64) + offset
        past, rest = divmod(int(local) % (step_minutes * 60), self.step_minutes * 60)
        if rest:
            raise DataError(
                f"the slots of {self.name} do not start on multiples of {self.step_minutes} min of local time "
                f"({self.time[0]} UTC in {self.timezone}), so they cannot be summed to {step_minutes} min"
            )
        start = -past % factor
        count = (self.num_steps - start) // factor
        if count < 2:
            raise DataError(
                f"{self.name} has {self.num_steps} slots of {self.step_minutes} min, too few for two whole slots of "
                f"{step_minutes} min; use a longer series or a shorter step"
            )
        whole = self.activity[start : start + count * factor]
        summed = whole.reshape(count, factor, *whole.shape[1:]).sum(axis=1, dtype=np.float64)
        return self.with_(
            activity=summed.astype(np.float32),
            time=np.ascontiguousarray(self.time[start : start + count * factor : factor]),
        )

    def with_covariates(self, source: Any, **options: Any) -> TrafficDataset:
        """Return the data set with covariates: numbers that are known in advance, such as the weather.

        Args:
            source: table with a column of times and one column for each covariate: a frame, a path, or `Covariates`. It
                should cover the slots to forecast. Times without a time zone are local times of the data set.
            **options: see `simmst.data.readers.covariates.read_covariates`.

        Raises:
            DataError: `source` is not such a table.

        Example:
            >>> import pandas as pd
            >>> city = TrafficDataset.from_arrays(np.ones(24), np.arange(24) * 3600)
            >>> rain = pd.DataFrame({"time": pd.date_range("1970-01-01", periods=30, freq="h", tz="UTC"), "rain": 0.5})
            >>> city.with_covariates(rain).covariates.names
            ('rain',)
        """
        return self.with_(covariates=read_covariates(source, self.timezone, **options))

    def clock(self, time_utc: np.ndarray) -> tuple[np.ndarray, str]:
        """Return slot starts and a time zone as the functions of `simmst.data.calendar` take them.

        Slots of the local calendar are moved to the wall clock that they were counted by, with "UTC" as their zone.
        """
        if self.layout.wall_offset is None:
            return time_utc, self.timezone
        return time_utc + np.timedelta64(self.layout.wall_offset, "s"), "UTC"

    def unique_ids(self) -> np.ndarray:
        """Return the identifiers of the cells inside the city, (C,): their names if there are any, else their ids."""
        ids: np.ndarray = (self.cell_id if self.cell_name is None else self.cell_name)[self.mask]
        return ids

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a long frame: unique_id, ds (slot start with the time zone), service, y (NaN = missing).

        A data set that was built from a frame returns that frame's column names, kinds of identifiers and times, and
        library (pandas or polars).
        """
        ids, time = self.unique_ids(), self.layout.times_of(self.time, self.timezone)
        values = self.series().transpose(2, 1, 0)  # (C, K, T)
        return self.layout.frame(
            {
                "unique_id": np.repeat(ids, self.num_services * self.num_steps),
                "ds": time[np.tile(np.arange(self.num_steps), len(ids) * self.num_services)],
                "service": np.tile(np.repeat(np.array(self.services, dtype=object), self.num_steps), len(ids)),
                "y": values.reshape(-1),
            }
        )

    def save(self, path: str | Path) -> Path:
        """Write the data set to a compressed .npz file, which `from_npz` reads back exactly."""
        return npz.write_npz(vars(self), path)

    @classmethod
    def from_arrays(cls, activity: Any, time: Any, **attributes: Any) -> TrafficDataset:
        """Build a data set from arrays; see `simmst.data.readers.arrays.read_arrays`."""
        return cls(**arrays.read_arrays(activity, time, **attributes))

    @classmethod
    def from_dataframe(
        cls,
        frame: Any,
        *,
        cells: Mapping[Any, tuple[int, int]] | str | None = None,
        covariates: Any = None,
        **options: Any,
    ) -> TrafficDataset:
        """Build a data set from a data frame of any layout; see `simmst.data.readers.frames.read_dataframe`.

        `covariates` is passed on to `with_covariates`.
        """
        found = cls(**frames.read_dataframe(frame, cells=cells, **options))
        return found if covariates is None else found.with_covariates(covariates)

    @classmethod
    def from_hdf5(cls, path: str | Path) -> TrafficDataset:
        """Read an HDF5 file of FedDA or STCNet; see `simmst.data.readers.hdf5.read_hdf5`."""
        return cls(**hdf5.read_hdf5(path))

    @classmethod
    def from_npz(cls, path: str | Path) -> TrafficDataset:
        """Read a .npz file; see `simmst.data.readers.npz.read_npz`."""
        return cls(**npz.read_npz(path))

    @classmethod
    def from_telecom_italia(
        cls, pattern: str | Path | Iterable[str | Path], grid: str = "milan", **options: Any
    ) -> TrafficDataset:
        """Read official daily files; see `simmst.data.readers.telecom_italia.read_telecom_italia`."""
        return cls(**telecom_italia.read_telecom_italia(pattern, grid, **options))
