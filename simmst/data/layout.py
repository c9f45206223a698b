"""The layout of a data frame, kept so that a data set returns frames like the one it was built from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simmst.data.calendar import local_seconds
from simmst.foundation.extras import import_extra

if TYPE_CHECKING:
    import pandas

NAIVE = "naive"


@dataclass(frozen=True)
class FrameLayout:
    """Names, times and library of the frames that a data set returns.

    Attributes:
        id_col: column of the cells' identifiers.
        time_col: column of the slots' starts.
        target_col: column of the activity.
        service_col: column of the services' names.
        times: time zone of the times, or "naive" for local times without one; None takes the data set's.
        wall_offset: seconds from UTC to the wall clock for slots of the local calendar: days that start at midnight in
            summer and winter alike. None for slots of even length.
        library: "pandas" or "polars".
        notes: roles that were guessed, in words.
    """

    id_col: str = "unique_id"
    time_col: str = "ds"
    target_col: str = "y"
    service_col: str = "service"
    times: str | None = None
    wall_offset: int | None = None
    library: str = "pandas"
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> FrameLayout:
        """Restore a layout from `to_dict`; None gives the default layout."""
        return cls() if values is None else cls(**{**values, "notes": tuple(values["notes"])})

    def times_of(self, time_utc: np.ndarray, timezone: str) -> pandas.DatetimeIndex:
        """Return slot starts as the frame shows them.

        Args:
            time_utc: datetime64[s] (T,), UTC.
            timezone: IANA name of the data set's local time zone.

        Example:
            >>> midsummer = np.array(["2013-06-30T23:00"], dtype="datetime64[s]")
            >>> FrameLayout(wall_offset=3600).times_of(midsummer, "Europe/Rome")[0].isoformat()
            '2013-07-01T00:00:00+02:00'
        """
        pd = import_extra("pandas", extra="forecast")
        shown = timezone if self.times in (None, NAIVE) else self.times
        if self.wall_offset is not None:
            wall = pd.DatetimeIndex(time_utc + np.timedelta64(self.wall_offset, "s"))
            if self.times == NAIVE:
                return wall
            first = np.ones(len(wall), dtype=bool)
            return wall.tz_localize(shown, ambiguous=first, nonexistent="shift_forward")
        if self.times == NAIVE:
            return pd.DatetimeIndex(local_seconds(time_utc, timezone).astype("datetime64[s]"))
        return pd.DatetimeIndex(time_utc).tz_localize("UTC").tz_convert(shown)

    def frame(self, columns: Mapping[str, Any]) -> Any:
        """Return columns named unique_id, ds, service, y and others as a frame with this layout's names."""
        pd = import_extra("pandas", extra="forecast")
        names = {"unique_id": self.id_col, "ds": self.time_col, "service": self.service_col, "y": self.target_col}
        table = pd.DataFrame({names.get(key, key): values for key, values in columns.items()})
        return self.in_its_library(table)

    def in_its_library(self, table: pandas.DataFrame) -> Any:
        """Convert a pandas frame to this layout's library."""
        return import_extra("polars", extra="forecast").from_pandas(table) if self.library == "polars" else table
