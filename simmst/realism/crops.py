"""Crops: simulations that can be compared with a given file, slot by slot and cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simmst.data.calendar import local_seconds, utc_offset_seconds
from simmst.data.dataset import TrafficDataset
from simmst.errors import ConfigError, DataError
from simmst.realism.statistics import MIN_CELLS, standardised
from simmst.simulation.config import CityConfig, step_for
from simmst.simulation.services import DEFAULT_SERVICES
from simmst.simulation.streams import stream

CITY_CELLS = 20  # smaller grids are cut out of a city of this many cells a side
PLACES_CELLS = 40  # side of the city that is cut into places, or whose total stands for a file of one place
PLACE_SIDES = (1, 2, 4, 7, 10)  # cells a side of a place, drawn at random where the file does not say
_DAY_S = 86_400


@dataclass(frozen=True, eq=False)
class Crop:
    """The shape, slot length, duration, calendar and gaps of a file.

    Attributes:
        like: the file's data set.
        city: fields of `CityConfig` that the file fixes: grid, slot length, start, days, services, calendar, no gaps.
        first: first slot of the simulated city that the file covers, in simulated slots.
        services: name in the simulator of each service of the file.
        place_cells: cells a side of a place, for files of places. None draws one of several sizes for each city.

    Example:
        >>> import numpy as np
        >>> times = np.datetime64("2013-11-05T23:00:00") + np.arange(48) * np.timedelta64(3600, "s")
        >>> real = TrafficDataset.from_arrays(np.ones((48, 5, 5)), times, services=["internet"])
        >>> crop = Crop.of(real)
        >>> (crop.city["start"], crop.city["days"], crop.city["height"])
        ('2013-11-06', 2, 20)
    """

    like: TrafficDataset
    city: dict[str, Any]
    first: int
    services: tuple[str, ...]
    place_cells: int | None

    @classmethod
    def of(cls, dataset: TrafficDataset, *, place_cells: int | None = None) -> Crop:
        """Return the crop that compares with a data set.

        Args:
            dataset: the real traffic.
            place_cells: cells a side of a place, for data sets of places (``geometry="points"``).

        Raises:
            ConfigError: `place_cells` is not a whole number from 1 to 40.
            DataError: the simulator does not know a service, or has no slots that sum to the file's.
        """
        if place_cells is not None and not 1 <= place_cells <= PLACES_CELLS:
            raise ConfigError(f"place_cells is {place_cells!r}; it must be a whole number from 1 to {PLACES_CELLS}")
        names = tuple(name.lower() for name in dataset.services)
        for name, known in zip(dataset.services, names, strict=True):
            if known not in DEFAULT_SERVICES or names.count(known) > 1:
                raise DataError(
                    f"{dataset.name}: there is no simulated service to compare {name!r} with; "
                    f"name the services {', '.join(DEFAULT_SERVICES)}, or select some of them"
                )
        step = step_for(dataset.step_minutes)
        if step is None:
            raise DataError(
                f"{dataset.name}: cities are simulated in slots of 5 minutes or multiples of it, but the file has "
                f"slots of {dataset.step_minutes}; resample it to 10, 30 or 60 minutes"
            )
        local = int(local_seconds(dataset.time[:1], dataset.timezone)[0])
        day = local // _DAY_S
        midnight = np.datetime64(day * _DAY_S, "s")
        # Use the offset at midnight: it differs from that of the first slot on a day when the clocks change.
        start_utc = midnight - int(utc_offset_seconds(midnight.reshape(1), dataset.timezone)[0])
        gone = int((dataset.time[0] - start_utc).astype(np.int64))
        if gone % (step * 60):
            raise DataError(
                f"{dataset.name}: the slots start {gone % (step * 60)} s after a slot that can be simulated; "
                f"shift the times to multiples of {step} minutes of local time"
            )
        length_s = gone + dataset.num_steps * dataset.step_minutes * 60
        grid = dataset.geometry == "grid"
        height, width = dataset.mask.shape
        city: dict[str, Any] = {
            "height": max(height, CITY_CELLS) if grid else PLACES_CELLS,
            "width": max(width, CITY_CELLS) if grid else PLACES_CELLS,
            "start": str(midnight.astype("datetime64[D]")),
            "days": -(-length_s // _DAY_S),
            "step_minutes": step,
            "timezone": dataset.timezone,
            "country": dataset.country,
            "services": names,
            "missing_share": 0.0,
        }
        if grid and dataset.cell_size_m is not None:
            city["cell_m"] = dataset.cell_size_m
        CityConfig(**city)  # raises at once if a value does not fit
        return cls(dataset, city, gone // (step * 60), names, place_cells)

    @property
    def description(self) -> str:
        """Description in words of what is simulated.

        Example:
            >>> import numpy as np
            >>> times = np.arange(28) * 600
            >>> Crop.of(TrafficDataset.from_arrays(np.ones((28, 30, 25)), times, services=["internet"])).description
            '28 slots of 10 min, internet, 750 cells of 30 x 25'
        """
        real = self.like
        height, width = real.mask.shape
        if real.geometry == "points":
            where = f"{width} places" if width > 1 else "the total of one place"
            sizes = self._place_sides()
            cut = f"each the sum of {' or '.join(str(side) for side in sizes)} cells a side"
            where = f"{where}, {cut}" if width > 1 else f"{where}, {sizes[0]} cells a side"
        else:
            where = f"{real.num_cells} cells of {height} x {width}"
            if min(height, width) < CITY_CELLS:
                where += f", cut from {self.city['height']} x {self.city['width']}"
        scores = ", z-scored" if real.unit == "z-score" else ""
        return f"{real.num_steps} slots of {real.step_minutes} min, {', '.join(real.services)}, {where}{scores}"

    @property
    def cautions(self) -> tuple[str, ...]:
        """Cautions about the comparison, in words."""
        real = self.like
        if real.geometry == "points" and real.num_cells == 1:
            side = self._place_sides()[0]
            return (
                f"the place is taken to be {side} x {side} cells; a total of more cells is "
                "smoother, and one of fewer cells is rougher",
            )
        if real.geometry == "points" and self.place_cells is None:
            return ("the file does not say how large its places are, so several sizes take turns",)
        if real.num_cells < MIN_CELLS:
            return (
                f"the file's {real.num_cells} cells were chosen, not drawn at random, which affects marginals and "
                "levels",
            )
        return ()

    def cut(self, city: TrafficDataset, seed: int, index: int) -> TrafficDataset:
        """Cut the part that compares with the file out of a simulated city.

        Args:
            city: city simulated with the fields of the attribute `city`.
            seed: seed of the family of cities. The position and size of the crop depend on it and on the index.
            index: number of the city.

        Returns:
            A data set with the file's services, slots, mask, gaps and unit.
        """
        real, rng = self.like, stream(seed, index, "crop")
        factor = real.step_minutes // city.step_minutes
        activity = city.activity[self.first : self.first + real.num_steps * factor]
        if factor > 1:
            activity = activity.reshape(real.num_steps, factor, *activity.shape[1:]).sum(axis=1)
        if real.geometry == "points":
            sides = self._place_sides()
            activity = _places(activity, sides[int(rng.integers(len(sides)))], real.activity.shape[3])
            return self._like(activity, np.ones(activity.shape[2:], bool))
        height, width = real.mask.shape
        row, column = (int(rng.integers(city.mask.shape[axis] - (height, width)[axis] + 1)) for axis in (0, 1))
        activity = np.where(
            np.isnan(real.activity), np.nan, activity[:, :, row : row + height, column : column + width]
        )
        return self._like(activity, real.mask)

    def _place_sides(self) -> Sequence[int]:
        if self.place_cells is not None:
            return (self.place_cells,)
        return (PLACES_CELLS,) if self.like.activity.shape[3] == 1 else PLACE_SIDES

    def _like(self, activity: np.ndarray, mask: np.ndarray) -> TrafficDataset:
        real = self.like
        if real.unit == "z-score":
            steps, services, height, width = activity.shape
            scores = standardised(activity.reshape(steps, -1)).reshape(steps, services, height, width)
            activity = scores
        return TrafficDataset(
            activity=np.ascontiguousarray(activity, dtype=np.float32),
            time=real.time,
            services=real.services,
            mask=mask,
            cell_id=np.arange(mask.size, dtype=np.int64).reshape(mask.shape),
            geometry=real.geometry,
            timezone=real.timezone,
            country=real.country,
            unit=real.unit,
            name="simulated",
            surrogate=True,
        )


def _places(activity: np.ndarray, side: int, count: int) -> np.ndarray:
    """Sum squares of cells, ``(T, K, H, W)`` to ``(T, K, 1, P)`` with at most `count` places."""
    steps, services, height, width = activity.shape
    rows, columns = height // side, width // side
    whole = activity[:, :, : rows * side, : columns * side]
    squares = whole.reshape(steps, services, rows, side, columns, side)
    # A sum counts the cells that were reported, and is missing where none was.
    sums = np.where(np.isnan(squares).all(axis=(3, 5)), np.nan, np.nansum(squares, axis=(3, 5)))
    places: np.ndarray = sums.reshape(steps, services, 1, rows * columns)[..., :count]
    return places
