"""The city in space and its daily rhythm: user density, land uses, and the presence of their users at each hour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simmst.simulation.clock import SATURDAY_REST, Clock
from simmst.simulation.config import CityConfig
from simmst.simulation.fields import gaussian_fields
from simmst.simulation.habits import DAY_SHAPES, Habits
from simmst.simulation.services import ServiceConfig

LAND_USES = ("residential", "business", "transit")
# Log presence: (amplitude, peak hour) of one, two and three cycles a day. Users move rather than vanish, so over the
# whole city the three uses nearly cancel, and the daily profiles of the services show.
_HARMONICS = (
    ((0.45, 0.0), (0.12, 20.5), (0.05, 20.0)),
    ((0.50, 13.5), (0.15, 2.0), (0.06, 12.5)),
    ((0.10, 20.0), (0.15, 19.5), (0.08, 8.5)),
)
_WEEKEND = (1.15, 0.5, 1.0)  # Sunday presence relative to the city's weekend factor
_VOID_LOG_DEPTH = (1.2, 3.0)
CITY_KM = 15.0  # a smaller grid is part of a city of this width
_DAY_H = (np.arange(144) + 0.5) / 6  # ten-minute grid of a day


@dataclass(frozen=True, eq=False)
class LandUse:
    """Distribution of users in space.

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
    coarse, mixed = config.density_correlation_m / config.cell_m, config.land_use_correlation_m / config.cell_m
    fine = config.density_fine_correlation_m / config.cell_m
    quarters = gaussian_fields(rng, *shape, coarse)[0]
    uses = gaussian_fields(rng, *shape, mixed, count=len(LAND_USES))
    blocks = gaussian_fields(rng, *shape, fine)[0]
    parks = gaussian_fields(rng, *shape, 1.5)[0]
    share = config.density_fine_share
    standard = np.sqrt(1 - share) * quarters + np.sqrt(share) * blocks
    log_density = config.density_log_std * saturate(standard.astype(np.float64), config.density_skew)
    log_density -= config.centre_slope_per_km * _km_from_centre(config, rng)
    depth = rng.uniform(*_VOID_LOG_DEPTH)
    if config.void_share > 0:
        log_density -= depth * (parks < np.quantile(parks, config.void_share))
    density = np.exp(log_density - log_density.max()).ravel()
    mixture = np.exp(config.land_use_contrast * uses.reshape(len(LAND_USES), -1))
    return LandUse(density * (config.users_per_cell / density.mean()), mixture / mixture.sum(axis=0))


def saturate(standard: np.ndarray, strength: float) -> np.ndarray:
    r"""Skew a standard normal to the left (to the right for a strength below zero), keeping mean zero and variance one:
    :math:`(1 - e^{-s z}) / s`, standardised.

    Args:
        standard: standard normal values.
        strength: :math:`s`; zero changes nothing.

    Example:
        >>> saturate(np.array([-2.0, 2.0]), 0.0).tolist()
        [-2.0, 2.0]
    """
    if abs(strength) < 1e-6:
        return standard
    square = strength**2
    mean = -np.expm1(square / 2) / strength
    std = np.sqrt(np.exp(2 * square) - np.exp(square)) / abs(strength)
    saturated: np.ndarray = (-np.expm1(-strength * standard) / strength - mean) / std
    return saturated


def _km_from_centre(config: CityConfig, rng: np.random.Generator) -> np.ndarray:
    """Return the distance in km from a centre drawn in the middle half of the city that the grid is part of."""
    grid_km = np.array([config.height, config.width]) * (config.cell_m / 1000)
    centre = grid_km / 2 + rng.uniform(-0.25, 0.25, 2) * np.maximum(grid_km, CITY_KM)
    row, column = ((np.arange(n) + 0.5) * (config.cell_m / 1000) for n in (config.height, config.width))
    distance: np.ndarray = np.hypot(row[:, None] - centre[0], column - centre[1])
    return distance


def presence_levels(config: CityConfig, clock: Clock, rng: np.random.Generator) -> np.ndarray:
    """Return the presence of the users of each land use, float32 ``(3, T)``, with weekday mean one.

    Args:
        config: the city.
        clock: its time axis.
        rng: source of randomness for the shift of each land use.
    """
    levels = []
    shifts = config.land_use_phase_std_h * rng.standard_normal(len(LAND_USES))
    for harmonics, weekend, shift in zip(_HARMONICS, _WEEKEND, shifts, strict=True):
        log_day = sum(
            amplitude * np.cos(2 * np.pi * cycles * (_DAY_H - peak) / 24)
            for cycles, (amplitude, peak) in enumerate(harmonics, start=1)
        )
        log_day = config.habits.evenness * config.presence_amplitude * np.asarray(log_day)
        levels.append(_daily_level(config, clock, log_day, float(shift), weekend * config.weekend_factor))
    return np.stack(levels).astype(np.float32)


def service_level(
    config: CityConfig,
    clock: Clock,
    service: ServiceConfig,
    rng: np.random.Generator,
    shape: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Return the demand of a present user for a service by land use, float32 ``(3, T)``, with weekday mean one.

    The service's profile is multiplied by smooth random changes of one to three cycles a day, one for the service and
    one for each land use, so that no two cities, services or land uses keep exactly the same hours.

    Args:
        config: the city.
        clock: its time axis.
        service: the service.
        rng: source of randomness.
        shape: log levels of the city's habits, ``(144,)``, from `habitual_day`.
    """
    hourly = config.diurnal_amplitude * np.log(service.profile)
    gradual = np.interp(_DAY_H, np.arange(24) + 0.5, hourly, period=24)
    log_day = config.habits.evenness * (gradual + service.hour_step * (np.repeat(hourly, 6) - gradual))
    log_day = log_day + shape + _smooth_change(config.profile_log_std, rng)
    return np.stack(
        [
            _daily_level(
                config,
                clock,
                log_day + _smooth_change(config.land_use_profile_log_std, rng),
                0.0,
                service.weekend_factor,
                service.hour_peak,
            )
            for _ in LAND_USES
        ]
    ).astype(np.float32)


def habitual_day(habits: Habits, rng: np.random.Generator) -> np.ndarray:
    """Return what a city's habits add to the log profile of its days, float64 ``(144,)``.

    Args:
        habits: habits of the city.
        rng: source of randomness, for the shape "random".

    Example:
        >>> float(np.abs(habitual_day(Habits(), np.random.default_rng(0))).max())
        0.0
    """
    bumps = [(habits.day_shape_strength * size, hour, width) for size, hour, width in DAY_SHAPES[habits.day_shape]]
    bumps += [(habits.noon_log_peak, 12.4, 0.55), (-habits.night_log_depth, 4.0, 2.0)]
    log_day = np.zeros(len(_DAY_H))
    for size, hour, width in bumps:
        apart = (_DAY_H - hour + 12) % 24 - 12
        log_day += size * np.exp(-0.5 * (apart / width) ** 2)
    if habits.day_shape == "random":
        cycles = np.arange(1, 6)[:, None]
        amplitude = habits.day_shape_strength * rng.standard_normal((5, 2)) / (2 * np.sqrt(cycles))
        angle = 2 * np.pi * cycles * _DAY_H / 24
        log_day += (amplitude[:, :1] * np.cos(angle) + amplitude[:, 1:] * np.sin(angle)).sum(axis=0)
    return log_day


def _smooth_change(log_std: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a smooth change of a day's log profile, float64 ``(144,)``: one to three cycles of random amplitude."""
    amplitude = log_std / np.sqrt(3) * rng.standard_normal((3, 2))
    angle = 2 * np.pi * np.arange(1, 4)[:, None] * _DAY_H / 24
    change: np.ndarray = (amplitude[:, :1] * np.cos(angle) + amplitude[:, 1:] * np.sin(angle)).sum(axis=0)
    return change


def _daily_level(
    config: CityConfig, clock: Clock, log_day: np.ndarray, shift_h: float, sunday: float, hour_peak: float = 0.0
) -> np.ndarray:
    """Repeat a day's log profile along the clock, later and lower at weekends, and average it over slots."""
    log_day = log_day - np.log(np.exp(log_day).mean())
    # Mornings of free days start late; afternoons are unchanged.
    late = (
        config.weekend_delay_h
        * np.minimum(clock.rest / SATURDAY_REST, 1.0)
        * np.exp(-0.5 * ((clock.hour - 9.0) / 3.0) ** 2)
    )
    hour = (clock.hour - config.phase_h - shift_h - late) % 24
    log_level = np.interp(hour, _DAY_H, log_day, period=24) + np.log(sunday) * clock.rest
    if hour_peak:
        log_level += hour_peak * (clock.hour % 1 < 1 / 6) - np.log1p(np.expm1(hour_peak) / 6)
    return clock.slot_mean(np.exp(log_level))
