"""The traffic stage: what users do, cell by cell, before any operator records it."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from simmst.simulation.clock import Clock
from simmst.simulation.config import CityConfig
from simmst.simulation.fields import gaussian_fields
from simmst.simulation.radio.statistical import Coverage
from simmst.simulation.traffic.land_use import LAND_USES, draw_land_use, habitual_day, presence_levels, service_level
from simmst.simulation.traffic.noise import HOURS_PER_WEEK, bursts, slot_averages, slow_changes

SINR_CLIP_DB = (-6.0, 25.0)


class TrafficModel(Protocol):
    """Anything that turns a configuration and its coverage into activity."""

    def simulate(self, config: CityConfig, coverage: Coverage, rng: np.random.Generator) -> np.ndarray:
        """Return activity, float32 ``(T, K, H, W)``, not negative, drawing only from ``rng``."""
        ...


class SharedPresenceTraffic:
    r"""Traffic of users who move by land use and hour, and ask for every service in proportion to their presence.

    The expected events of service k in cell i and slot t are

    .. math:: \lambda_{kit} = r_k \, \phi_{ki} \, \eta_{kit} \, \Delta \sum_a n_{ait} \, p_{ka}(t)

    with the users :math:`n_{ait}` present of each land use a (density, weekends, holidays, gatherings: shared by all
    services), the rate :math:`r_k` of the service and its profile :math:`p_{ka}`, its popularity :math:`\phi_{ki}` in
    the cell, the noise :math:`\eta_{kit}` of the sectors that serve it (log-normal, part of it correlated in time, part
    of it common to the services and part to the city; bursts), and the slot's length :math:`\Delta`. Counts are
    Poisson. Volumes are compound Poisson: Gamma volumes of mean one, larger where the signal is better.

    Example:
        >>> from simmst.simulation import StatisticalRadio
        >>> config, rng = CityConfig(height=4, width=5, days=1), np.random.default_rng(0)
        >>> SharedPresenceTraffic().simulate(config, StatisticalRadio().coverage(config, rng), rng).shape
        (24, 3, 4, 5)
    """

    def simulate(self, config: CityConfig, coverage: Coverage, rng: np.random.Generator) -> np.ndarray:
        """Draw the activity of a city.

        Args:
            config: the city.
            coverage: result of its radio stage.
            rng: source of randomness.

        Returns:
            float32 ``(T, K, H, W)``: events of count services, volume of volume services.
        """
        clock = Clock.of(config)
        land_use = draw_land_use(config, rng)
        presence = presence_levels(config, clock, rng)
        density = land_use.density[:, None].astype(np.float32)
        # What is fixed in a city is drawn before anything whose size depends on the slots, so that it is the same at
        # every slot length.
        popularity = [self._popularity(config, land_use.mixture, rng) for _ in config.services]
        habitual, weekly, slow = rng.spawn(3)  # spawning draws nothing from the stream itself
        shape = habitual_day(config.habits, habitual)
        level = [service_level(config, clock, service, rng, shape) for service in config.services]
        if config.habits.weekday_log_std:
            of_day = np.exp(config.habits.weekday_log_std * weekly.standard_normal(7))
            level = [one * clock.slot_mean(of_day[clock.weekday]).astype(np.float32) for one in level]
        gatherings = _gatherings(config, clock, rng)
        association = coverage.association
        shared, city = self._common_noise(config, association.num_sectors, rng)
        surges = bursts(config, rng, association.num_sectors)
        changes = slow_changes(config, slow, association.num_sectors)
        throughput = _throughput(coverage.sinr_db)
        activity = np.empty((config.num_steps, len(config.services), config.num_cells), np.float32)
        for number, service in enumerate(config.services):
            own = slot_averages(
                rng, config.num_steps, association.num_sectors, config.step_h / config.noise_correlation_h
            )
            own *= np.float32(np.sqrt((1 - config.noise_city_share) * (1 - config.noise_shared_share)))
            log_noise = own + np.float32(np.sqrt((1 - config.noise_city_share) * config.noise_shared_share)) * shared
            log_noise += np.float32(np.sqrt(config.noise_city_share)) * city
            log_noise *= np.float32(config.noise_log_std * config.habits.unrest)
            log_noise += self._flicker(config, association.num_sectors, rng)
            if changes is not None:
                log_noise += changes
            load = np.ascontiguousarray(log_noise.T)  # contiguous, because whole rows are gathered from it
            np.exp(load, out=load)
            load *= surges[number]
            expected = association.average(load)
            demand = _blend(presence * level[number], land_use.mixture)
            demand *= density
            if gatherings is not None:
                demand += gatherings * level[number].mean(axis=0)
            expected *= demand
            expected *= popularity[number][:, None] * np.float32(service.rate_per_user_hour * config.step_h)
            events = rng.poisson(expected)
            if service.kind == "volume":
                activity[:, number] = (compound(events, service.dispersion, rng) * throughput[:, None]).T
            else:
                activity[:, number] = events.T
        return activity.reshape(config.num_steps, -1, config.height, config.width)

    def _common_noise(
        self, config: CityConfig, num_sectors: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the noise common to all services, by sector ``(T, S)``, and that common to all sectors ``(T, 1)``."""
        step = config.step_h / config.noise_correlation_h
        city = slot_averages(rng, config.num_steps, 1, step)
        return slot_averages(rng, config.num_steps, num_sectors, step), city

    def _flicker(self, config: CityConfig, num_sectors: int, rng: np.random.Generator) -> np.ndarray:
        """Return white log noise of the sectors' loads in one service, float32 ``(T, S)``, part of it city-wide."""
        # White: a sum over n slots has 1/n of the relative variance, at any slot length.
        std = config.habits.unrest * config.load_flicker_log_std / np.sqrt(config.step_h)
        own = rng.standard_normal((config.num_steps, num_sectors), dtype=np.float32)
        own *= np.float32(std * np.sqrt(1 - config.noise_city_share))
        own += rng.standard_normal((config.num_steps, 1), dtype=np.float32) * np.float32(
            std * np.sqrt(config.noise_city_share)
        )
        return own

    def _popularity(self, config: CityConfig, mixture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return how popular a service is in each cell, float32 ``(cells,)``: by land use and by place."""
        correlation = 0.5 * config.density_correlation_m / config.cell_m
        place = gaussian_fields(rng, config.height, config.width, correlation)[0].ravel()
        by_use = np.exp(config.service_log_std * rng.standard_normal(len(LAND_USES)))
        popularity: np.ndarray = np.exp(config.service_log_std * place) * _blend(by_use[:, None], mixture)[:, 0]
        return popularity.astype(np.float32)


def _blend(levels: np.ndarray, mixture: np.ndarray) -> np.ndarray:
    """Return ``sum_a mixture[a, i] levels[a, t]``, float32 ``(cells, T)``, without a threaded matrix product."""
    shape = (mixture.shape[1], levels.shape[1])
    blended, part = np.zeros(shape, np.float32), np.empty(shape, np.float32)
    for level, share in zip(levels, mixture, strict=True):
        blended += np.multiply(share[:, None], level.astype(np.float32), out=part)
    return blended


def _gatherings(config: CityConfig, clock: Clock, rng: np.random.Generator) -> np.ndarray | None:
    """Return the users at gatherings, float32 ``(cells, T)``; None where there are none.

    A gathering is Gaussian in space and time, mostly in the evening.
    """
    hours = config.num_steps * config.step_h
    slot_h = (np.arange(config.num_steps) + 0.5) * config.step_h
    start_hour = clock.hour[0]
    mean_users = float(config.users_per_cell)
    row, column = np.divmod(np.arange(config.num_cells), config.width)
    count = int(rng.poisson(config.events_per_week * hours / HOURS_PER_WEEK))
    if count == 0:
        return None
    users = np.zeros((config.num_cells, config.num_steps), np.float32)
    for _ in range(count):
        place = rng.uniform(0, 1, 2) * (config.height, config.width) - 0.5
        middle_h = rng.integers(config.days) * 24 - start_hour + rng.normal(19.5, 2.5)
        half_h = rng.uniform(1.0, 2.5)
        radius_cells = rng.uniform(140.0, 380.0) / config.cell_m
        gain = config.event_gain * (1 + 0.2 * min(rng.pareto(config.burst_pareto_alpha), 20.0))
        squared = (row - place[0]) ** 2 + (column - place[1]) ** 2
        footprint = mean_users * gain * np.exp(-squared / (2 * max(radius_cells, 0.5) ** 2))
        near = footprint > 1e-3 * mean_users
        bell = np.exp(-0.5 * ((slot_h - middle_h) / half_h) ** 2)
        users[near] += (footprint[near, None] * bell).astype(np.float32)
    return users


def _throughput(sinr_db: np.ndarray) -> np.ndarray:
    """Return the volume of an event by signal quality, float32 ``(cells,)``, with mean one."""
    spectral = np.sqrt(np.log2(1 + 10 ** (np.clip(sinr_db, *SINR_CLIP_DB) / 10)))
    scaled: np.ndarray = spectral / spectral.mean()
    return scaled.astype(np.float32)


def compound(events: np.ndarray, dispersion: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the total volume of Poisson-many events, each Gamma with mean one.

    Args:
        events: numbers of events, integers, any shape.
        dispersion: squared coefficient of variation of one event's volume; zero gives the numbers themselves.
        rng: source of randomness.

    Returns:
        float64 of the same shape; zero where there is no event.

    Example:
        >>> compound(np.array([0, 3]), 0.0, np.random.default_rng(0)).tolist()
        [0.0, 3.0]
    """
    if dispersion == 0:
        return events.astype(np.float64)
    return rng.standard_gamma(events / dispersion) * dispersion
