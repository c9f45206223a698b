from __future__ import annotations

import time

import numpy as np
import pytest

from simmst.data import TrafficDataset
from simmst.errors import ConfigError
from simmst.simulation import (
    Categorical,
    CityConfig,
    DomainPrior,
    ServiceConfig,
    SharedPresenceTraffic,
    StatisticalRadio,
    simulate_cities,
    simulate_city,
    surrogate_city,
)
from simmst.simulation.streams import stream

SMALL = {"height": 6, "width": 7, "days": 2}


def test_a_city_is_a_labelled_data_set():
    city = simulate_city(CityConfig(seed=2, index=5, start="2013-11-04", **SMALL))
    assert isinstance(city, TrafficDataset)
    assert city.activity.shape == (48, 3, 6, 7)
    assert city.activity.dtype == np.float32
    assert city.services == ("call", "sms", "internet")
    assert city.surrogate
    assert city.name == "simulated-2-5"
    assert (city.step_minutes, city.cell_size_m, city.timezone, city.country) == (60, 235.0, "Europe/Rome", "IT")
    assert str(city.time[0]) == "2013-11-03T23:00:00"
    assert city.mask.all()
    assert city.cell_id[0, 0] == 1


def test_cities_are_the_same_alone_in_any_order_and_in_any_process():
    together = simulate_cities(4, seed=3, **SMALL)
    prior = DomainPrior.default()
    for index in (3, 0, 2, 1):
        alone = simulate_city(prior.sample(3, index, **SMALL))
        np.testing.assert_array_equal(alone.activity, together[index].activity)
        np.testing.assert_array_equal(alone.time, together[index].time)
    progress = []
    elsewhere = simulate_cities(4, seed=3, workers=2, progress=lambda done, n: progress.append((done, n)), **SMALL)
    for here, there in zip(together, elsewhere, strict=True):
        np.testing.assert_array_equal(here.activity, there.activity)
        assert here.name == there.name
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_cities_differ_by_seed_and_index():
    first, second = simulate_cities(2, seed=3, **SMALL)
    (other,) = simulate_cities(1, seed=4, **SMALL)
    assert not np.array_equal(first.activity, second.activity, equal_nan=True)
    assert not np.array_equal(first.activity, other.activity, equal_nan=True)


def test_progress_is_reported_city_by_city():
    seen = []
    simulate_cities(3, seed=1, progress=lambda done, n: seen.append((done, n)), height=3, width=3, days=1)
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(("name", "value"), [("n", 0), ("n", 1.0), ("workers", 0), ("workers", True)])
def test_bad_counts_are_named(name, value):
    with pytest.raises(ConfigError, match=f"{name} is {value!r}"):
        simulate_cities(**{"n": 1, "seed": 1, name: value})


@pytest.mark.parametrize("step_minutes", [10, 60])
def test_no_negatives_and_nothing_missing_but_gaps(step_minutes):
    config = CityConfig(seed=1, missing_share=0.0, step_minutes=step_minutes, **SMALL)
    activity = simulate_city(config).activity
    assert np.isfinite(activity).all()
    assert (activity >= 0).all()
    gappy = simulate_city(CityConfig(seed=1, missing_share=0.05, step_minutes=step_minutes, **SMALL)).activity
    missing = np.isnan(gappy)
    assert 0.01 < missing.mean() < 0.12
    # Gaps hide values and leave the others unchanged.
    np.testing.assert_array_equal(gappy[~missing], activity[~missing])


def corners(prior):
    """Priors with one parameter at an end of its law, then with all parameters at one end."""
    for name, values in prior.bounds().items():
        for value in {values[0], values[-1]}:
            yield prior.narrow({name: Categorical((value,))})
    yield prior.narrow({name: Categorical((values[0],)) for name, values in prior.bounds().items()})
    yield prior.narrow({name: Categorical((values[-1],)) for name, values in prior.bounds().items()})


@pytest.mark.parametrize("prior", [DomainPrior.default(), DomainPrior.surrogate()], ids=["default", "surrogate"])
def test_prior_corners_run(prior):
    for number, corner in enumerate(corners(prior)):
        config = corner.sample(9, number, height=5, width=4, days=2)
        start = time.process_time()
        city = simulate_city(config)
        assert time.process_time() - start < 2.0
        present = city.activity[~np.isnan(city.activity)]
        assert present.size > 0.5 * city.activity.size
        assert np.isfinite(present).all()
        assert (present >= 0).all()
        assert present.max() > 0


def test_extremes_of_the_configuration_run():
    low = CityConfig(height=1, width=1, days=1, users_per_cell=0.01, density_log_std=0.0, land_use_contrast=0.0)
    high = CityConfig(
        height=8,
        width=3,
        days=1,
        step_minutes=10,
        density_log_std=4.0,
        density_skew=0.8,
        noise_log_std=2.0,
        void_share=0.5,
        burst_rate_per_sector_hour=1.0,
        burst_gain=20.0,
        burst_pareto_alpha=1.05,
        events_per_week=100.0,
        event_gain=100.0,
        diurnal_amplitude=3.0,
        missing_share=0.9,
        missing_duration_h=100.0,
        coverage_spread=0.0,
        presence_amplitude=3.0,
        land_use_profile_log_std=1.0,
        load_flicker_log_std=0.5,
        flicker_log_std=0.5,
        centre_slope_per_km=2.0,
        holiday_rest=1.5,
        season_rest=1.5,
        free_days=("2013-11-04",),
        noise_correlation_h=500.0,
        cell_m=10.0,
        inter_site_distance_m=20_000.0,
    )
    for config in (low, high):
        activity = simulate_city(config).activity
        assert not np.isinf(activity).any()
        assert not (activity < 0).any()


def test_what_is_published_is_what_was_done():
    """Summing by sector and spreading neither lose nor create activity, over the whole chain and many cities."""
    for index in range(5):
        config = DomainPrior.usual().sample(6, index, missing_share=0.0, flicker_log_std=0.0, **SMALL)
        coverage = StatisticalRadio().coverage(config, stream(config.seed, config.index, "radio"))
        done = SharedPresenceTraffic().simulate(config, coverage, stream(config.seed, config.index, "traffic"))
        units = np.array([service.units_per_event for service in config.services]) * config.reporting_scale
        published = simulate_city(config).activity.sum(axis=(2, 3), dtype=np.float64)
        np.testing.assert_allclose(published, done.sum(axis=(2, 3), dtype=np.float64) * units, rtol=1e-4)


def test_subsets_and_new_services():
    radio_only = {"seed": 5, **SMALL}
    (single,) = simulate_cities(1, services=["internet"], **radio_only)
    assert single.services == ("internet",)
    assert single.activity.shape == (48, 1, 6, 7)
    night = tuple(4.0 if hour < 6 else 0.2 for hour in range(24))
    backup = ServiceConfig("backup", "volume", 2.0, night, dispersion=0.5)
    alarms = ServiceConfig("alarms", "count", 0.05, (1.0,) * 24)
    city = simulate_city(CityConfig(services=(backup, "sms", alarms), missing_share=0.0, **radio_only))
    assert city.services == ("backup", "sms", "alarms")
    by_hour = city.activity.reshape(2, 24, 3, -1).sum(axis=(0, 3))
    assert by_hour[1:5, 0].mean() > 5 * by_hour[9:18, 0].mean()
    assert by_hour[1:5, 1].mean() < 0.5 * by_hour[9:18, 1].mean()


def test_sums_of_ten_minutes_look_like_the_hourly_process():
    def statistics(step_minutes):
        values = []
        for index in range(8):
            config = CityConfig(
                seed=8,
                index=index,
                height=12,
                width=12,
                step_minutes=step_minutes,
                missing_share=0.0,
                events_per_week=0.0,
            )
            hourly = simulate_city(config).activity.reshape(168, -1, 3, 144).sum(axis=1, dtype=np.float64)
            step = np.diff(np.log(hourly[:, 2]), axis=0)
            profile = hourly.sum(axis=(0, 2))
            values.append([np.log(profile[2]), np.log(profile[0]), step.std(), hourly_correlation(hourly[:, 2], 1)])
        return np.mean(values, axis=0)

    fine, coarse = statistics(10), statistics(60)
    np.testing.assert_allclose(fine[:2], coarse[:2], atol=0.06)  # levels, log
    assert fine[2] == pytest.approx(coarse[2], rel=0.06)
    assert fine[3] == pytest.approx(coarse[3], abs=0.02)


def test_the_city_itself_does_not_depend_on_the_step():
    hourly = simulate_city(CityConfig(seed=8, missing_share=0.0)).activity[:, 2].mean(axis=0)
    fine = simulate_city(CityConfig(seed=8, missing_share=0.0, step_minutes=10)).activity[:, 2].mean(axis=0)
    assert np.corrcoef(np.log(hourly).ravel(), np.log(fine).ravel())[0, 1] > 0.98


def test_a_surrogate_city_is_labelled_and_reproducible():
    city = surrogate_city(4, **SMALL)
    assert city.surrogate
    assert city.name == "surrogate-4"
    np.testing.assert_array_equal(city.activity, surrogate_city(4, **SMALL).activity)
    assert not np.array_equal(city.activity, surrogate_city(5, **SMALL).activity, equal_nan=True)


def test_speed():
    config = DomainPrior.default().sample(1, 0, services=["call", "sms", "internet"])
    simulate_city(config)
    start = time.process_time()
    for index in range(5):
        simulate_city(DomainPrior.default().sample(1, index))
    assert (time.process_time() - start) / 5 < 0.5  # measured: 0.035 CPU seconds for 20 x 20 cells, 168 h, 3 services


def hourly_correlation(series, lag):
    series = series - np.nanmean(series, axis=0)
    return float(np.median(np.nanmean(series[:-lag] * series[lag:], axis=0) / np.nanmean(series**2, axis=0)))
