"""Faults of an operator's counters, applied to published numbers: what is reported, and where it is wrong."""

from __future__ import annotations

import numpy as np

from simmst.simulation.clock import Clock
from simmst.simulation.config import CityConfig
from simmst.simulation.radio.association import Association
from simmst.simulation.streams import stream

HOURS_PER_WEEK = 168.0
MAX_SPIKE = 100.0


def apply_faults(
    config: CityConfig, published: np.ndarray, association: Association
) -> tuple[np.ndarray, np.ndarray | None]:
    """Apply the faults that a configuration asks for to published numbers.

    Each kind of fault draws from a stream of its own, keyed by the city, so changing one leaves the others unchanged.

    Args:
        config: the city.
        published: float32 ``(T, K, H, W)``, NaN where missing; not modified.
        association: association of cells with sectors.

    Returns:
        Reported numbers, float32 of the same shape, and a bool mask ``(T, K, H, W)``, True where a counter is at fault
        (rounding is not a fault). If the configuration has no faults: ``published`` and None.

    Example:
        >>> from simmst.simulation import CounterFaults, StatisticalRadio
        >>> faults = CounterFaults(dip_share=1.0, dip_hour=4, dip_level=0.0)
        >>> config = CityConfig(height=4, width=5, days=1, services=("sms",), faults=faults)
        >>> association = StatisticalRadio().coverage(config, np.random.default_rng(0)).association
        >>> reported, wrong = apply_faults(config, np.ones((24, 1, 4, 5), np.float32), association)
        >>> reported[:6, 0, 0, 0].tolist(), wrong[:6, 0, 0, 0].tolist()
        ([1.0, 1.0, 1.0, 1.0, 0.0, 1.0], [False, False, False, False, True, False])
    """
    if not config.faults.any:
        return published, None
    steps, kinds = published.shape[:2]
    reported = published.reshape(steps, kinds, -1).copy()
    wrong = np.zeros(reported.shape, bool)
    _round(config, reported)
    _spikes(config, reported, wrong)
    _dips(config, reported, wrong)
    missing = _silence(config, association, reported, wrong)
    _zeros(config, reported, wrong)
    _stick(config, reported, wrong)
    missing |= _city_gaps(config)[:, None]
    np.copyto(reported, np.nan, where=missing[:, None])
    wrong |= missing[:, None]
    return reported.reshape(published.shape), wrong.reshape(published.shape)


def episodes(
    rng: np.random.Generator,
    steps: int,
    units: int,
    *,
    per_unit: float,
    mean_steps: float,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """Draw episodes of exponential length, at least one slot long.

    Args:
        rng: source of randomness.
        steps: slots T.
        units: number of units that they affect, such as sectors.
        per_unit: mean number of episodes per unit in the whole series.
        mean_steps: mean length of an episode in slots.

    Returns:
        bool ``(T, units)``.

    Example:
        >>> episodes(np.random.default_rng(0), 24, 3, per_unit=0.0, mean_steps=2.0).any()
        np.False_
    """
    # Some begin before the first slot.
    count = int(rng.poisson(per_unit * units * (1 + mean_steps / steps)))
    first = rng.uniform(-mean_steps, steps, count).astype(np.int64)
    last = first + np.maximum(np.rint(rng.exponential(mean_steps, count)).astype(np.int64), 1)
    unit = rng.integers(units, size=count)
    change = np.zeros((steps + 1, units), np.int32)
    np.add.at(change, (np.clip(first, 0, steps), unit), 1)
    np.add.at(change, (np.clip(last, 0, steps), unit), -1)
    inside: np.ndarray = np.cumsum(change[:-1], axis=0) > 0
    return inside


def _rng(config: CityConfig, kind: str) -> np.random.Generator:
    return stream(config.seed, config.index, f"faults/{kind}")


def _weeks(config: CityConfig) -> float:
    return config.num_steps * config.step_h / HOURS_PER_WEEK


def _round(config: CityConfig, reported: np.ndarray) -> None:
    if config.faults.rounding == 0:
        return
    for number in range(reported.shape[1]):
        valid = ~np.isnan(reported[:, number])
        step = config.faults.rounding * float(reported[:, number].mean(where=valid)) if valid.any() else 0.0
        if step > 0:
            reported[:, number] = np.rint(reported[:, number] / np.float32(step)) * np.float32(step)


def _spikes(config: CityConfig, reported: np.ndarray, wrong: np.ndarray) -> None:
    if config.faults.spike_share == 0:
        return
    rng = _rng(config, "spikes")
    place = np.flatnonzero(rng.random(reported.shape, dtype=np.float32) < config.faults.spike_share)
    gain = np.exp(config.faults.spike_log_std * np.abs(rng.standard_normal(len(place), dtype=np.float32)))
    reported.reshape(-1)[place] *= np.minimum(gain, MAX_SPIKE)
    wrong.reshape(-1)[place] = True


def _dips(config: CityConfig, reported: np.ndarray, wrong: np.ndarray) -> None:
    faults = config.faults
    if faults.dip_share == 0:
        return
    clock, rng = Clock.of(config), _rng(config, "dips")
    covered = clock.slot_mean(((clock.hour - faults.dip_hour) % 24 < faults.dip_duration_h).astype(np.float32))
    slots = np.flatnonzero(covered)
    if len(slots) == 0:
        return
    night = np.concatenate([[0], np.cumsum(np.diff(slots) > 1)])
    happens = rng.random(int(night[-1]) + 1) < faults.dip_share
    shape = (len(slots), reported.shape[2])
    common = rng.standard_normal(len(happens), dtype=np.float32)[night, None]
    log_level = faults.dip_log_std * np.sqrt(0.5) * (common + rng.standard_normal(shape, dtype=np.float32))
    level = np.minimum(faults.dip_level * np.exp(log_level), 1.0)
    factor = 1 - covered[slots, None] * happens[night, None] * (1 - level)
    reported[slots] *= factor[:, None].astype(np.float32)
    wrong[slots[happens[night]]] = True


def _silence(config: CityConfig, association: Association, reported: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Silence sectors in outages and maintenance, and return the slots that go missing, bool ``(T, cells)``."""
    faults, steps = config.faults, config.num_steps
    missing = np.zeros((steps, reported.shape[2]), bool)
    if faults.outages_per_sector_week == 0 and faults.maintenance_per_week == 0:
        return missing
    serving = _serving_sector(association)
    for kind, silent in (("outages", _outages(config, association)), ("maintenance", _windows(config, association))):
        if silent is None:
            continue
        # A sector's equipment decides whether its silence shows as missing or as zero.
        lost = _rng(config, f"{kind}/missing").random(association.num_sectors) < faults.outage_missing
        cells = silent[:, serving]
        missing |= cells & lost[serving]
        zero = cells & ~lost[serving]
        np.copyto(reported, 0.0, where=zero[:, None] & ~np.isnan(reported))
        wrong |= cells[:, None]
    return missing


def _outages(config: CityConfig, association: Association) -> np.ndarray | None:
    faults = config.faults
    if faults.outages_per_sector_week == 0:
        return None
    return episodes(
        _rng(config, "outages"),
        config.num_steps,
        association.num_sectors,
        per_unit=faults.outages_per_sector_week * _weeks(config),
        mean_steps=faults.outage_duration_h / config.step_h,
    )


def _windows(config: CityConfig, association: Association) -> np.ndarray | None:
    faults = config.faults
    if faults.maintenance_per_week == 0:
        return None
    rng, clock = _rng(config, "maintenance"), Clock.of(config)
    hour = clock.slot_mean(clock.hour)
    nights = np.flatnonzero(hour < 5) if (hour < 5).any() else np.arange(config.num_steps)
    length = faults.maintenance_duration_h / config.step_h
    count = int(rng.poisson(faults.maintenance_per_week * _weeks(config)))
    silent = np.zeros((config.num_steps, association.num_sectors), bool)
    for first in rng.choice(nights, count):
        last = first + max(1, round(length * rng.gamma(4.0, 0.25)))
        silent[first:last] |= rng.random(association.num_sectors) < faults.maintenance_reach
    return silent


def _serving_sector(association: Association) -> np.ndarray:
    """Return the sector with the largest share of each cell, int64 ``(cells,)``."""
    order = np.lexsort((association.share, association.cell))
    last = np.searchsorted(association.cell[order], np.arange(association.num_cells), side="right") - 1
    serving: np.ndarray = association.sector[order[last]]
    return serving


def _zeros(config: CityConfig, reported: np.ndarray, wrong: np.ndarray) -> None:
    if config.faults.zero_share == 0:
        return
    zero = _rng(config, "zeros").random(reported.shape, dtype=np.float32) < config.faults.zero_share
    np.copyto(reported, 0.0, where=zero & ~np.isnan(reported))
    wrong |= zero


def _stick(config: CityConfig, reported: np.ndarray, wrong: np.ndarray) -> None:
    if config.faults.stuck_per_cell_week == 0:
        return
    steps, units = len(reported), reported[0].size
    stuck = episodes(
        _rng(config, "stuck"),
        steps,
        units,
        per_unit=config.faults.stuck_per_cell_week * _weeks(config) / reported.shape[1],
        mean_steps=config.faults.stuck_duration_h / config.step_h,
    )
    stuck[0] = False
    last = np.maximum.accumulate(np.where(stuck, 0, np.arange(steps)[:, None]), axis=0)
    series = reported.reshape(steps, units)
    series[:] = np.take_along_axis(series, last, axis=0)
    wrong |= stuck.reshape(reported.shape)


def _city_gaps(config: CityConfig) -> np.ndarray:
    """Return the slots that are missing in the whole city, bool ``(T,)``."""
    faults = config.faults
    if faults.city_gaps_per_week == 0:
        return np.zeros(config.num_steps, bool)
    gaps: np.ndarray = episodes(
        _rng(config, "city-gaps"),
        config.num_steps,
        1,
        per_unit=faults.city_gaps_per_week * _weeks(config),
        mean_steps=faults.city_gap_duration_h / config.step_h,
    )[:, 0]
    return gaps
