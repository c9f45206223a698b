from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from simmst.simulation import CityConfig, ServiceConfig
from simmst.simulation.clock import Clock
from simmst.simulation.traffic.land_use import draw_land_use, presence_levels, saturate, service_level

FLAT = ServiceConfig("flat", "count", 1.0, (1.0,) * 24)
CALM = {"profile_log_std": 0.0, "land_use_profile_log_std": 0.0, "start": "2013-11-05", "days": 1, "step_minutes": 10}


def level(service, **fields):
    config = CityConfig(services=(service,), **{**CALM, **fields})
    return service_level(config, Clock.of(config), service, np.random.default_rng(0))


def test_full_hours_stand_out_and_the_mean_stays():
    (peaked, *_) = level(dataclasses.replace(FLAT, hour_peak=0.5)).reshape(3, 24, 6)
    np.testing.assert_allclose(np.log(peaked[:, 0] / peaked[:, 1]), 0.5, rtol=1e-5)
    np.testing.assert_allclose(peaked[:, 1:], peaked[:, 1:2].repeat(5, axis=1))
    assert peaked.mean() == pytest.approx(1.0, abs=1e-6)


def test_a_step_at_the_full_hour():
    profile = tuple(1.0 if hour < 8 else 4.0 for hour in range(24))

    def jump(share):
        (day, *_) = level(dataclasses.replace(FLAT, profile=profile, hour_step=share))
        return np.log(day[48] / day[47])  # 7:50 to 8:00

    assert jump(1.0) == pytest.approx(np.log(4), rel=1e-5)
    assert jump(0.0) == pytest.approx(np.log(4) / 6, rel=1e-5)
    assert jump(0.5) == pytest.approx((jump(0.0) + jump(1.0)) / 2, rel=1e-5)


def test_land_uses_have_profiles_of_their_own():
    same = level(FLAT)
    np.testing.assert_array_equal(same[0], same[1])
    own = level(FLAT, land_use_profile_log_std=0.3)
    assert np.abs(np.log(own[0] / own[1])).max() > 0.1
    np.testing.assert_allclose(own.mean(axis=1), 1.0, atol=1e-3)


def test_users_stay_where_they_are_without_presence():
    config = CityConfig(presence_amplitude=0.0, **CALM)
    np.testing.assert_allclose(presence_levels(config, Clock.of(config), np.random.default_rng(0)), 1.0)


def test_the_centre_is_denser_and_its_distance_does_not_depend_on_the_grid():
    def slope(cells):
        fields = {"height": cells, "width": cells, "density_log_std": 0.0, "void_share": 0.0}
        config = CityConfig(centre_slope_per_km=0.5, **fields)
        density = draw_land_use(config, np.random.default_rng(3)).density.reshape(cells, cells)
        step = np.hypot(*np.gradient(np.log(density), 0.235))
        return float(np.median(step))

    assert slope(100) == pytest.approx(0.5, rel=0.05)
    assert slope(12) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("strength", [-0.5, -0.1, 0.1, 0.5])
def test_saturation_skews_to_its_side_and_keeps_mean_and_variance(strength):
    skewed = saturate(np.random.default_rng(0).standard_normal(200_000), strength)
    assert skewed.mean() == pytest.approx(0.0, abs=0.01)
    assert skewed.std() == pytest.approx(1.0, abs=0.02)
    assert np.sign((skewed**3).mean()) == -np.sign(strength)
