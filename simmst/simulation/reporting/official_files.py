"""A city as official daily files of the Telecom Italia Big Data Challenge: rows by country, in and out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simmst.data.calendar import utc_offset_seconds
from simmst.data.dataset import TrafficDataset
from simmst.data.grids import load_grid
from simmst.data.readers.telecom_italia_lines import ROW, SLOT_MS
from simmst.errors import ConfigError, DataError
from simmst.foundation.extras import import_extra
from simmst.foundation.files import write_atomically

_HOME, _NONE = 39, 0
_PREFIX = {"milan": "sms-call-internet-mi-", "trento": "sms-call-internet-tn-"}
_FIELDS = ROW[3:]  # sms_in, sms_out, call_in, call_out, internet
_DAY_S = 24 * 3600


@dataclass(frozen=True)
class CountryRows:
    """Division of a cell's records among rows by country code, as in the first 1,245 rows of a genuine file.

    Attributes:
        no_country_sms: share of the received SMS that has code 0, as service messages have.
        foreign_share: share of one of the five numbers that a foreign row takes.
        foreign_probability: probability that a cell has a foreign row in a slot.
        codes: foreign codes, the most frequent first; the probability of the n-th is proportional to 1 / n.

    Raises:
        ConfigError: a share or probability is negative or not below 1, or ``codes`` is empty or holds 39 or 0.

    Example:
        >>> CountryRows(foreign_probability=0.0).no_country_sms
        0.28
    """

    no_country_sms: float = 0.28
    foreign_share: float = 0.03
    foreign_probability: float = 0.8
    codes: tuple[int, ...] = (33, 48, 46, 41, 49, 20, 34, 40, 355, 44, 1, 86, 7, 212)

    def __post_init__(self) -> None:
        for name in ("no_country_sms", "foreign_share", "foreign_probability"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ConfigError(f"CountryRows.{name} is {value!r}; it must be at least 0 and below 1")
        if not self.codes or {_HOME, _NONE} & set(self.codes):
            raise ConfigError(f"CountryRows.codes is {self.codes}; give country codes other than {_HOME} and {_NONE}")


def write_official_files(
    city: TrafficDataset,
    folder: str | Path,
    *,
    grid: str = "milan",
    seed: int = 0,
    countries: CountryRows | None = None,
    progress: Callable[[int, int, Path], None] | None = None,
) -> list[Path]:
    """Write a city as official daily files, one per local day, which `TrafficDataset.from_telecom_italia` reads back.

    The sums over rows are the city's numbers to float32 rounding. The format cannot express a missing value: a slot
    that is missing in one cell gets no row, which a reader takes for 0, and only a slot that is missing in every cell
    stays missing. A day of 100 x 100 cells takes about 300 MB on disk and 1 GB of memory.

    Args:
        city: city with call, SMS and Internet in 10-minute slots, no larger than the grid. It may start at any hour of
            the day. Its south-west corner is placed at the grid's.
        folder: folder for the files, created if missing.
        grid: ``"milan"`` (100 x 100) or ``"trento"`` (98 x 117); cells outside the official mask are refused.
        seed: seed of the division among countries and directions.
        countries: division of the rows among countries; None uses the defaults of `CountryRows`.
        progress: called as progress(done, total, file) after each file.

    Returns:
        The files in order of days. A file is written as a whole or not at all.

    Raises:
        DataError: the city has another slot length or other services, is larger than the grid, or has cells outside
            its mask.
        MissingExtraError: polars is not installed.

    Source: Barlacchi et al. 2015, "A multi-source dataset of urban life in the city of Milan and the Province of
    Trentino".

    Example:
        >>> import tempfile
        >>> from simmst.simulation import simulate_city, CityConfig
        >>> city = simulate_city(CityConfig(height=3, width=4, days=1, step_minutes=10, missing_share=0.0))
        >>> paths = write_official_files(city, tempfile.mkdtemp())
        >>> back = TrafficDataset.from_telecom_italia(paths, cells="observed")
        >>> bool(np.allclose(back.activity, city.select_services(back.services).activity, rtol=1e-5))
        True
    """
    cell_ids = _official_ids(city, grid)
    countries = countries or CountryRows()
    local = city.time.astype(np.int64) + utc_offset_seconds(city.time, city.timezone)
    days = local // _DAY_S
    names = np.unique(days)
    paths = []
    for done, day in enumerate(names, start=1):
        slots = np.flatnonzero(days == day)
        rng = np.random.default_rng([seed, int(day)])
        frame = _rows(city, slots, cell_ids, countries, rng)
        path = Path(folder) / f"{_PREFIX[grid]}{np.datetime64(int(day), 'D')}.txt"
        write_atomically(path, lambda temporary, frame=frame: _write(frame, temporary))  # type: ignore[misc]
        paths.append(path)
        if progress is not None:
            progress(done, len(names), path)
    return paths


def _official_ids(city: TrafficDataset, name: str) -> np.ndarray:
    """Return the square ids, on the official raster, of the cells inside the city, int64 (C,)."""
    grid = load_grid(name)
    if city.step_minutes * 60_000 != SLOT_MS:
        raise DataError(
            f"{city.name} has slots of {city.step_minutes} min, but official files have 10; simulate it at 10"
        )
    missing = [service for service in ("call", "sms", "internet") if service not in city.services]
    if missing or len(city.services) != 3:
        raise DataError(
            f"{city.name} has the services {', '.join(city.services)}; official files hold call, sms and internet"
        )
    height, width = grid.mask.shape
    if city.mask.shape[0] > height or city.mask.shape[1] > width:
        raise DataError(
            f"{city.name} has {city.mask.shape[0]} x {city.mask.shape[1]} cells, the {name} grid {height} x {width}; "
            "simulate a smaller city"
        )
    row, column = city.cells.T
    outside = ~grid.mask[row, column]
    if outside.any():
        r, c = int(row[outside][0]), int(column[outside][0])
        raise DataError(
            f"cell ({r}, {c}) of {city.name} lies outside the {name} grid's mask; simulate a city of its shape"
        )
    ids: np.ndarray = row * width + column + 1
    return ids


def _rows(
    city: TrafficDataset, slots: np.ndarray, cell_ids: np.ndarray, countries: CountryRows, rng: np.random.Generator
) -> Any:
    """Return the rows of one day as a polars frame in the official order: by cell as text, time, country as text."""
    pl = import_extra("polars", extra="forecast")
    series = city.activity[slots][:, :, city.mask].transpose(2, 0, 1)  # (C, t, K)
    by_text = np.argsort([str(cell) for cell in cell_ids], kind="stable")
    series = np.nan_to_num(series[by_text].astype(np.float64))
    call, sms, internet = (series[..., city.services.index(name)] for name in ("call", "sms", "internet"))
    fields = np.stack([*_directions(sms, rng), *_directions(call, rng), internet], axis=-1)  # (C, t, 5)
    none, foreign = np.zeros_like(fields), np.zeros_like(fields)
    none[..., 0] = fields[..., 0] * np.minimum(2 * countries.no_country_sms * rng.random(sms.shape), 1)
    fields[..., 0] -= none[..., 0]
    where = rng.random(sms.shape) < countries.foreign_probability
    field = rng.integers(len(_FIELDS), size=(*sms.shape, 1))
    taken = np.take_along_axis(fields, field, -1) * countries.foreign_share * where[..., None]
    np.put_along_axis(foreign, field, taken, -1)
    fields -= foreign
    chance = 1 / np.arange(1, len(countries.codes) + 1)
    code = rng.choice(np.array(countries.codes), size=sms.shape, p=chance / chance.sum())
    parts = [(np.full(sms.shape, _NONE), none), (np.full(sms.shape, _HOME), fields), (code, foreign)]
    known = np.unique([_NONE, _HOME, *countries.codes])
    text_rank = np.argsort(np.argsort([str(number) for number in known], kind="stable"), kind="stable")
    country = np.stack([part[0] for part in parts], axis=-1)  # (C, t, 3)
    values = np.stack([part[1] for part in parts], axis=-2)  # (C, t, 3, 5)
    order = np.argsort(text_rank[np.searchsorted(known, country)], axis=-1)
    country = np.take_along_axis(country, order, -1)
    values = np.take_along_axis(values, order[..., None], -2)
    there = (values > 0).any(-1)
    cell, slot, _ = np.nonzero(there)
    time_ms = city.time[slots].astype(np.int64) * 1000
    values = values[there]
    columns: dict[str, Any] = {"cell": cell_ids[by_text][cell], "time": time_ms[slot], "country": country[there]}
    columns |= {name: np.where(values[:, i] > 0, values[:, i], np.nan) for i, name in enumerate(_FIELDS)}
    return pl.DataFrame(columns, nan_to_null=True)


def _directions(total: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Divide a total at random into incoming and outgoing."""
    incoming = total * rng.beta(8.0, 8.0, total.shape)
    return incoming, total - incoming


def _write(frame: Any, path: Path) -> None:
    frame.write_csv(path, separator="\t", include_header=False, null_value="")
