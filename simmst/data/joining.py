"""New slots at the end of a series."""

from __future__ import annotations

import dataclasses

import numpy as np

from simmst.data.dataset import TrafficDataset
from simmst.errors import DataError

_MOST_SLOTS = 3 * 366 * 144  # more is a wrong time, not a gap


def with_services(dataset: TrafficDataset, names: tuple[str, ...]) -> TrafficDataset:
    """Return a data set with the named services in that order; services that it lacks are NaN throughout.

    Raises:
        DataError: the data set has none of them.

    Example:
        >>> city = TrafficDataset.from_arrays(np.ones(24), np.arange(24) * 3600, services=["sms"])
        >>> with_services(city, ("call", "sms")).activity[0, :, 0, 0].tolist()
        [nan, 1.0]
    """
    there = [name for name in names if name in dataset.services]
    if not there:
        raise DataError(
            f"{dataset.name} has none of the services {', '.join(names)}; it has {', '.join(dataset.services)}"
        )
    shape = (dataset.num_steps, len(names), *dataset.mask.shape)
    activity = np.full(shape, np.nan, dtype=np.float32)
    for name in there:
        activity[:, names.index(name)] = dataset.activity[:, dataset.services.index(name)]
    return dataset.with_(activity=activity, services=tuple(names))


def append(series: TrafficDataset, new: TrafficDataset) -> TrafficDataset:
    """Return a series with new slots at its end.

    Cells are matched by their identifiers and services by their names; those that the new slots lack are NaN there.
    Where both have a slot, new values that are not NaN win, so late counts correct early ones. Slots between the two
    are NaN. Covariates are joined in the same way.

    Args:
        series: series to extend.
        new: new slots, of the same cells or some of them; they may begin before the end of `series`, but not before its
            start.

    Raises:
        DataError: slots have another length or are off the series' slots, a cell or service is unknown, or the start is
            too early.

    Example:
        >>> city = TrafficDataset.from_arrays(np.zeros(24), np.arange(24) * 3600)
        >>> later = TrafficDataset.from_arrays(np.ones(3), np.arange(23, 26) * 3600)
        >>> append(city, later).activity[-4:, 0, 0, 0].tolist()
        [0.0, 1.0, 1.0, 1.0]
    """
    if new.step_minutes != series.step_minutes:
        raise DataError(
            f"the new slots have {new.step_minutes} minutes, those of {series.name} {series.step_minutes}; call "
            f"resample({series.step_minutes}) first"
        )
    series, new = _on_one_wall(series, new)
    step = np.timedelta64(series.step_minutes, "m")
    first, off = divmod((new.time[0] - series.time[0]).astype(np.int64), step.astype("timedelta64[s]").astype(np.int64))
    if off:
        raise DataError(
            f"the new slots start at {new.time[0]}Z, off the slots of {series.name}, such as {series.time[-1]}Z"
        )
    if first < 0:
        raise DataError(
            f"the new slots start at {new.time[0]}Z, before {series.name} does ({series.time[0]}Z); fit on "
            "the longer series"
        )
    total = max(series.num_steps, int(first) + new.num_steps)
    if total > max(_MOST_SLOTS, 2 * series.num_steps):
        raise DataError(f"the new slots end at {new.time[-1]}Z, {total} slots after {series.time[0]}Z; check that time")
    for name in new.services:
        if name not in series.services:
            raise DataError(f"the new slots have service {name!r}; {series.name} has {', '.join(series.services)}")
    place = _places(series, new)
    activity = np.full((total, *series.activity.shape[1:]), np.nan, dtype=np.float32)
    activity[: series.num_steps] = series.activity
    window = activity[first : first + new.num_steps]
    row, column = series.cells[place].T
    values = new.series()  # (t, K', C')
    for k, name in enumerate(new.services):
        kept = window[:, series.services.index(name)]
        fresh = values[:, k]
        kept[:, row, column] = np.where(np.isnan(fresh), kept[:, row, column], fresh)
    time = series.time[0] + np.arange(total) * step.astype("timedelta64[s]")
    covariates = series.covariates if new.covariates is None else new.covariates
    if series.covariates is not None and new.covariates is not None:
        covariates = series.covariates.joined(new.covariates)
    return series.with_(activity=activity, time=time, covariates=covariates)


def _places(series: TrafficDataset, new: TrafficDataset) -> list[int]:
    """Return the number in the series of each new cell."""
    known = {key: number for number, key in enumerate(series.unique_ids().tolist())}
    unknown = [key for key in new.unique_ids().tolist() if key not in known]
    if unknown:
        shown = ", ".join(map(repr, list(known)[:5]))
        raise DataError(
            f"the new slots have cell {unknown[0]!r}, which {series.name} does not have; it has {shown}, ..."
        )
    return [known[key] for key in new.unique_ids().tolist()]


def _on_one_wall(series: TrafficDataset, new: TrafficDataset) -> tuple[TrafficDataset, TrafficDataset]:
    """Bring slots of the local calendar to one offset from UTC: that of standard time, if either has it."""
    ours, theirs = series.layout.wall_offset, new.layout.wall_offset
    if ours is None or theirs is None or ours == theirs:
        return series, new
    offset = min(ours, theirs)
    return _moved(series, ours, offset), _moved(new, theirs, offset)


def _moved(dataset: TrafficDataset, before: int, after: int) -> TrafficDataset:
    layout = dataclasses.replace(dataset.layout, wall_offset=after)
    return dataset.with_(time=dataset.time + np.timedelta64(before - after, "s"), layout=layout)
