from __future__ import annotations

import numpy as np
import pytest

from simmst.errors import ConfigError, DataError
from simmst.realism.calibration import _interval, calibrate
from simmst.simulation import CityConfig, DomainPrior, LogUniform, Mixture, Uniform, simulate_city
from simmst.simulation.prior.distributions import sometimes

TRUTH = {"noise_log_std": 0.45, "diurnal_amplitude": 0.7}


@pytest.fixture(scope="module")
def real():
    config = CityConfig(seed=5, height=5, width=5, days=5, services=("internet",), missing_share=0.0, **TRUTH)
    return simulate_city(config)


@pytest.fixture(scope="module")
def calibration(real):
    return calibrate(DomainPrior.usual(), real, period=("2013-11-04", "2013-11-06"), cities=120, keep=0.15)


def test_parameters_that_show_are_narrowed_about_the_truth(calibration):
    assert len(calibration.kept) == 18
    assert calibration.distance[calibration.kept].max() <= np.delete(calibration.distance, calibration.kept).min()
    assert "noise_log_std" in calibration.narrowed
    for name in set(TRUTH) & set(calibration.narrowed):
        (old_low, old_high), (low, high) = calibration.narrowed[name]
        assert low <= TRUTH[name] <= high
        assert high - low < old_high - old_low
    # A parameter that does not show in one service's traffic keeps its law.
    prior, default = calibration.prior, DomainPrior.usual()
    for name in ("call.rate_per_user_hour", "scenario", "missing_share", "start"):
        assert prior.parameters[name] == default.parameters[name]
    assert len(calibration.narrowed) < 0.5 * len(default.parameters)
    for name in calibration.narrowed:
        assert type(prior.parameters[name]) is type(default.parameters[name])


def test_mixtures_are_cut_and_constants_left_alone():
    rng, law = np.random.default_rng(0), Mixture((Uniform(0.0, 1.0), LogUniform(1.0, 10.0)), (0.5, 0.5))
    draws = [law.sample(rng) for _ in range(60)]
    assert _interval(law, draws) is None
    low, high = _interval(law, [value for value in draws if value < 0.8])
    assert 0.0 <= low < high < 1.0
    assert _interval(sometimes(0.5, Uniform(1.0, 2.0)), [0.0] * 20) is None


def test_the_period_is_said_and_survives_yaml(calibration, tmp_path):
    pytest.importorskip("yaml")
    note = calibration.prior.note
    assert "simulated-5-0 from 2013-11-04 to 2013-11-06" in note
    assert "SURROGATE" in note
    assert "18 nearest of 120 cities of seed 0" in note
    again = DomainPrior.from_yaml(calibration.prior.to_yaml(tmp_path / "fitted.yaml"))
    assert again == calibration.prior
    assert again.note == note
    assert again.sample(1, 2) == calibration.prior.sample(1, 2)


def test_slots_outside_the_period_do_not_count(real, calibration):
    activity = real.activity.copy()
    activity[72:] *= 50
    later = real.with_(activity=activity)
    fitted = calibrate(DomainPrior.usual(), later, period=("2013-11-04", "2013-11-06"), cities=120, keep=0.15)
    assert fitted.prior == calibration.prior


@pytest.mark.parametrize("law", [Uniform(-1.0, 3.0), LogUniform(0.01, 10.0)], ids=["uniform", "log-uniform"])
def test_intervals(law):
    rng = np.random.default_rng(0)
    draws = [law.sample(rng) for _ in range(40)]
    assert _interval(law, draws) is None, "draws from the law itself narrow nothing"
    middle = np.median(draws)
    low, high = _interval(law, [value for value in draws if value > middle])
    assert law.low < low < middle * 1.5 + 0.5
    assert high <= law.high


def test_bad_settings_are_named(real):
    prior = DomainPrior.usual()
    with pytest.raises(ConfigError, match=r"keep is 0\.1 of 50 cities"):
        calibrate(prior, real, cities=50)
    with pytest.raises(ConfigError, match="period is 'May'"):
        calibrate(prior, real, period=("May", "2013-11-06"))
    with pytest.raises(DataError, match="has 0 slots from 2014-01-01 to 2014-01-02; it goes from 2013-11-04"):
        calibrate(prior, real, period=("2014-01-01", "2014-01-02"))
    with pytest.raises(DataError, match="nothing to calibrate on"):
        calibrate(prior, [])
