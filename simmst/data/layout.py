"""How a data frame was laid out, so that frames go out as they came in."""

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
    """Names, times and library of the frames that a data set gives.

    Attributes:
        id_col: the column of the cells' identifiers.
        time_col: the column of the slots' starts.
        target_col: the column of the activity.
        service_col: the column of the services' names.
        times: the time zone of the times, or "naive" for local times without one; None takes the data set's.
        wall_offset: seconds from UTC to the clock on the wall for slots of the local calendar: days that start at
            midnight in summer and winter alike. None for slots of even length.
        library: "pandas" or "polars".
        notes: what was taken for what, where names had to be guessed.
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
        """Build it from what `to_dict` gave; the usual one from None."""
        return cls() if values is None else cls(**{**values, "notes": tuple(values["notes"])})

    def times_of(self, time_utc: np.ndarray, timezone: str) -> pandas.DatetimeIndex:
        """Return slot starts as the frame is to show them.

        Args:
            time_utc: datetime64[s] (T,), UTC.
            timezone: IANA name of the data set's local time.

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
        """Return a frame of pandas as one of this layout's library."""
        return import_extra("polars", extra="forecast").from_pandas(table) if self.library == "polars" else table
