"""Numbers about the whole city that are known in advance, such as the weather."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simmst.data.calendar import check_time_axis
from simmst.errors import DataError


@dataclass(frozen=True, eq=False)
class Covariates:
    """Numbers that are known for the slots to forecast and for those before, on an even time axis of their own.

    Attributes:
        names: M names, such as ``("temperature", "rain")``.
        time: datetime64[s] (T,), starts in UTC, ascending and evenly spaced; they may reach beyond the traffic.
        values: float32 (T, M), NaN where missing.

    Raises:
        DataError: a shape, type or time axis does not fit.

    Example:
        >>> hours = np.datetime64("2013-11-01T00:00:00", "s") + np.arange(4) * np.timedelta64(3600, "s")
        >>> weather = Covariates(("rain",), hours, np.array([[0], [2], [4], [0]], dtype=np.float32))
        >>> weather.at(hours[:4:2], 120).ravel().tolist(), weather.at(hours[1:2], 10).ravel().tolist()
        ([1.0, 2.0], [2.0])
    """

    names: tuple[str, ...]
    time: np.ndarray
    values: np.ndarray

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names):
            raise DataError(f"covariates need names that differ, got {', '.join(self.names) or 'none'}")
        if self.time.ndim != 1:
            raise DataError(f"times of covariates must be (T,), got {self.time.shape}")
        if self.values.shape != (len(self.time), len(self.names)) or self.values.dtype != np.float32:
            raise DataError(
                f"covariates must be float32 ({len(self.time)}, {len(self.names)}) to go with their times and names, "
                f"got {self.values.dtype} {self.values.shape}"
            )
        if self.time.dtype != np.dtype("datetime64[s]"):
            raise DataError(f"times of covariates must be datetime64[s], got {self.time.dtype}")
        check_time_axis(self.time)
        infinite = np.argwhere(np.isinf(self.values))
        if len(infinite):
            slot, which = infinite[0]
            raise DataError(
                f"covariate {self.names[which]!r} is infinite at {self.time[slot]}Z; write NaN for missing values"
            )

    def at(self, time: np.ndarray, step_minutes: int) -> np.ndarray:
        """Return the values in some slots, float32 (n, M), NaN where missing.

        Covariates with shorter slots are averaged over each slot; those with longer slots give the value of the slot
        that the start falls in.

        Args:
            time: datetime64[s] (n,), starts in UTC.
            step_minutes: length of the slots.
        """
        own, wanted = int((self.time[1] - self.time[0]).astype(np.int64)), step_minutes * 60
        past = (np.asarray(time, dtype="datetime64[s]") - self.time[0]).astype(np.int64)
        if own < wanted:
            place = -(-past // own)[:, None] + np.arange(wanted // own)
        else:  # slots of one length match by their nearest start, because a local day may start an hour off
            place = ((past + own // 2 if own == wanted else past) // own)[:, None]
        there = (place >= 0) & (place < len(self.time))
        values = self.values[np.where(there, place, 0)]
        found: np.ndarray = np.where(there[..., None], values, np.float32(np.nan)).mean(axis=1)
        return found

    def known_at(self, time: np.ndarray, step_minutes: int) -> np.ndarray:
        """Return the values in slots that are to be forecast, as `at` does, and refuse missing ones.

        Raises:
            DataError: a value is missing; the message names the covariate and its slots.
        """
        values = self.at(time, step_minutes)
        for name, column in zip(self.names, values.T, strict=True):
            missing = np.sort(np.asarray(time)[np.isnan(column)])
            if len(missing):
                raise DataError(
                    f"covariate {name!r} has no value from {missing[0]}Z to {missing[-1]}Z ({len(missing)} slots to "
                    f"forecast); it has values {self._span(name)}: give values for all of these slots, or leave "
                    "the covariate out"
                )
        return values

    def joined(self, later: Covariates) -> Covariates:
        """Return these covariates joined with later ones; where both have a value, the later one wins.

        Raises:
            DataError: the later covariates have other names or slots.
        """
        step = self.time[1] - self.time[0]
        ahead, off = divmod((later.time[0] - self.time[0]).astype(np.int64), step.astype(np.int64))
        if later.names != self.names or later.time[1] - later.time[0] != step or off:
            raise DataError(
                f"the new covariates are {', '.join(later.names)} every {later.time[1] - later.time[0]} from "
                f"{later.time[0]}Z on; wanted {', '.join(self.names)} every {step}, in slots "
                "that continue the earlier covariates"
            )
        first = min(int(ahead), 0)
        length = max(len(self.time), int(ahead) + len(later.time)) - first
        values = np.full((length, len(self.names)), np.nan, dtype=np.float32)
        values[-first : len(self.time) - first] = self.values
        window = values[int(ahead) - first : int(ahead) - first + len(later.time)]
        window[:] = np.where(np.isnan(later.values), window, later.values)
        return Covariates(self.names, self.time[0] + (first + np.arange(length)) * step, values)

    def _span(self, name: str) -> str:
        known = self.time[~np.isnan(self.values[:, self.names.index(name)])]
        return f"from {known[0]}Z to {known[-1]}Z" if len(known) else "at no time"
