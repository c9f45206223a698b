"""The city in space and its habits: user density, land uses, and how present their users are at each hour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simmst.simulation.clock import Clock
from simmst.simulation.config import CityConfig
from simmst.simulation.fields import gaussian_fields
from simmst.simulation.services import ServiceConfig

LAND_USES = ("residential", "business", "transit")
# Log presence: (amplitude, peak hour) of one, two and three cycles a day. Users move rather than vanish: over a whole
# city the three nearly even out, and the hours of the services show.
_HARMONICS = (
    ((0.38, 23.0), (0.12, 20.5), (0.05, 20.0)),
    ((0.50, 13.5), (0.15, 2.0), (0.06, 12.5)),
    ((0.10, 20.0), (0.15, 19.5), (0.08, 8.5)),
)
_WEEKEND = (1.15, 0.5, 1.0)  # Sunday presence relative to the city's weekend factor
_SATURDAY_EXPONENT = 0.55  # how much of Sunday a Saturday is
_VOID_LOG_DEPTH = (1.2, 3.0)
_DAY_H = (np.arange(144) + 0.5) / 6  # ten-minute grid of a day


@dataclass(frozen=True, eq=False)
class LandUse:
    """Where users are.

    Attributes:
        density: float64 ``(cells,)``, mean users of each cell.
        mixture: float32 ``(3, cells)``, shares of residential, business and transit use; columns sum to one.
    """

    density: np.ndarray
    mixture: np.ndarray


def draw_land_use(config: CityConfig, rng: np.random.Generator) -> LandUse:
    """Draw user density (two correlation scales, a centre, voids) and the mixture of land uses.

    Args:
        config: the city.
        rng: source of randomness.

    Example:
        >>> land_use = draw_land_use(CityConfig(users_per_cell=50.0), np.random.default_rng(0))
        >>> round(float(land_use.density.mean()), 6)
        50.0
    """
    shape = (config.height, config.width)
    coarse = config.density_correlation_m / config.cell_m
    fine = config.density_fine_correlation_m / config.cell_m
    quarters, *uses = gaussian_fields(rng, *shape, coarse, count=1 + len(LAND_USES))
    blocks = gaussian_fields(rng, *shape, fine)[0]
    parks = gaussian_fields(rng, *shape, 1.5)[0]
    share = config.density_fine_share
    standard = np.sqrt(1 - share) * quarters + np.sqrt(share) * blocks
    log_density = config.density_log_std * saturate(standard.astype(np.float64), config.density_skew)
    log_density -= config.centre_log_gain * _distance_from_centre(config, rng)
    depth = rng.uniform(*_VOID_LOG_DEPTH)
    if config.void_share > 0:
        log_density -= depth * (parks < np.quantile(parks, config.void_share))
    density = np.exp(log_density - log_density.max()).ravel()
    mixture = np.exp(config.land_use_contrast * np.stack(uses).reshape(len(LAND_USES), -1))
    return LandUse(density * (config.users_per_cell / density.mean()), mixture / mixture.sum(axis=0))


def saturate(standard: np.ndarray, strength: float) -> np.ndarray:
    r"""Skew a standard normal to the left, keeping mean zero and variance one: :math:`(1 - e^{-s z}) / s`,
    standardised.

    Args:
        standard: standard normal values.
        strength: :math:`s`; zero changes nothing.

    Example:
        >>> saturate(np.array([-2.0, 2.0]), 0.0).tolist()
        [-2.0, 2.0]
    """
    if strength < 1e-6:
        return standard
    square = strength**2
    mean = -np.expm1(square / 2) / strength
    std = np.sqrt(np.exp(2 * square) - np.exp(square)) / strength
    saturated: np.ndarray = (-np.expm1(-strength * standard) / strength - mean) / std
    return saturated


def _distance_from_centre(config: CityConfig, rng: np.random.Generator) -> np.ndarray:
    """Return the distance from a centre in the middle half of the grid, one at the farthest cell."""
    centre = rng.uniform(0.25, 0.75, 2) * (config.height - 1, config.width - 1)
    row, column = np.ogrid[: config.height, : config.width]
    distance = np.hypot(row - centre[0], column - centre[1])
    scaled: np.ndarray = distance / max(distance.max(), 1.0)
    return scaled


def presence_levels(config: CityConfig, clock: Clock, rng: np.random.Generator) -> np.ndarray:
    """Return how present the users of each land use are, float32 ``(3, T)``, with weekday mean one.

    Args:
        config: the city.
        clock: its time axis.
        rng: source of randomness (each land use keeps its own hours).
    """
    levels = []
    shifts = config.land_use_phase_std_h * rng.standard_normal(len(LAND_USES))
    for harmonics, weekend, shift in zip(_HARMONICS, _WEEKEND, shifts, strict=True):
        log_day = sum(
            amplitude * np.cos(2 * np.pi * cycles * (_DAY_H - peak) / 24)
            for cycles, (amplitude, peak) in enumerate(harmonics, start=1)
        )
        levels.append(_daily_level(config, clock, np.asarray(log_day), float(shift), weekend * config.weekend_factor))
    return np.stack(levels).astype(np.float32)


def service_level(config: CityConfig, clock: Clock, service: ServiceConfig, rng: np.random.Generator) -> np.ndarray:
    """Return the demand of a present user for a service over time, float32 ``(T,)``, with weekday mean one.

    The service's profile is multiplied by a smooth random change of one to three cycles a day, so that no two cities
    (and no two services of a city) keep exactly the same hours.

    Args:
        config: the city.
        clock: its time axis.
        service: the service.
        rng: source of randomness.
    """
    log_day = np.interp(_DAY_H, np.arange(24) + 0.5, np.log(service.profile), period=24)
    amplitude = config.profile_log_std / np.sqrt(3) * rng.standard_normal((3, 2))
    for cycles, (even, odd) in enumerate(amplitude, start=1):
        angle = 2 * np.pi * cycles * _DAY_H / 24
        log_day = log_day + even * np.cos(angle) + odd * np.sin(angle)
    return _daily_level(config, clock, log_day, 0.0, service.weekend_factor).astype(np.float32)


def _daily_level(config: CityConfig, clock: Clock, log_day: np.ndarray, shift_h: float, sunday: float) -> np.ndarray:
    """Repeat a day's log profile along the clock, later and lower at weekends, and average it over slots."""
    log_day = config.diurnal_amplitude * log_day
    log_day = log_day - np.log(np.exp(log_day).mean())
    weekend = clock.day_type != 0
    # Weekend mornings start late; afternoons are as on any day.
    late = config.weekend_delay_h * weekend * np.exp(-0.5 * ((clock.hour - 9.0) / 3.0) ** 2)
    hour = (clock.hour - config.phase_h - shift_h - late) % 24
    # By day type: weekday, Saturday, Sunday.
    factor = np.array([1.0, sunday**_SATURDAY_EXPONENT, sunday])
    return clock.slot_mean(np.exp(np.interp(hour, _DAY_H, log_day, period=24)) * factor[clock.day_type])
