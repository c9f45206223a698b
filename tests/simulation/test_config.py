from __future__ import annotations

import json
import re

import pytest

from simmst.errors import ConfigError
from simmst.simulation import CityConfig, ServiceConfig
from simmst.simulation.config import PARAMETER_RANGES


def test_round_trip_through_json():
    video = ServiceConfig("video", "volume", 0.5, (1.0,) * 24, dispersion=3.0)
    config = CityConfig(seed=7, index=3, services=("sms", video), scenario="RMa", country=None, tilt_deg=3)
    assert CityConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_sizes_follow_the_step():
    config = CityConfig(days=3, step_minutes=10, height=4, width=5)
    assert (config.steps_per_day, config.num_steps, config.num_cells, config.step_h) == (144, 432, 20, 10 / 60)


@pytest.mark.parametrize(
    ("name", "low", "high"), [(name, low, high) for name, (low, high, _) in PARAMETER_RANGES.items()]
)
def test_every_range_is_held_at_both_ends(name, low, high):
    assert getattr(CityConfig(**{name: low}), name) == low
    assert getattr(CityConfig(**{name: high}), name) == high
    for value in (low - 0.5 * max(abs(low), 1), high * 1.5, float("nan"), "1", None, True):
        with pytest.raises(ConfigError) as caught:
            CityConfig(**{name: value})
        for part in (f"CityConfig.{name}", repr(value), f"{low:g}", f"{high:g}"):
            assert part in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"height": 0}, "CityConfig.height is 0; it must be a whole number from 1 to 1000"),
        ({"days": 1.5}, "CityConfig.days is 1.5"),
        ({"seed": -1}, "CityConfig.seed is -1"),
        ({"step_minutes": 12}, "CityConfig.step_minutes is 12; choose one of 5, 10, 15, 30, 60, 1440"),
        ({"scenario": "InH"}, "CityConfig.scenario is 'InH'; choose one of UMa, UMi, RMa"),
        ({"start": "4.11.2013"}, "CityConfig.start is '4.11.2013'"),
        ({"timezone": "Europe/Milano"}, "CityConfig.timezone is 'Europe/Milano'"),
        ({"services": ()}, "CityConfig.services is ()"),
        ({"free_days": "2013-12-07"}, "CityConfig.free_days is '2013-12-07'; give a list"),
        ({"free_days": ("7.12.",)}, "CityConfig.free_days is '7.12.'"),
        ({"services": "call"}, "CityConfig.services is 'call'"),
        ({"services": ("call", "fax")}, "CityConfig.services names 'fax'"),
        ({"services": ("call", "call")}, "'call' more than once"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        CityConfig(**fields)


def test_unknown_fields_are_named_with_the_nearest_known():
    with pytest.raises(ConfigError, match="no field 'carier_ghz'; did you mean 'carrier_ghz'"):
        CityConfig.from_dict({"carier_ghz": 1.0})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "rate"}, "kind is 'rate'; choose one of count, volume"),
        ({"profile": (1.0,) * 23}, "profile has 23 values"),
        ({"profile": (0.0,) * 24}, "must be above zero"),
        ({"rate_per_user_hour": -1.0}, "rate_per_user_hour is -1.0"),
        ({"name": ""}, "ServiceConfig.name is ''"),
    ],
)
def test_bad_services_are_named(fields, message):
    good = {"name": "call", "kind": "count", "rate_per_user_hour": 1.0, "profile": (1.0,) * 24}
    with pytest.raises(ConfigError, match=re.escape(message)):
        ServiceConfig(**{**good, **fields})


def test_services_from_dictionaries_name_unknown_and_missing_fields():
    with pytest.raises(ConfigError, match="no field 'colour'"):
        ServiceConfig.from_dict({"colour": 1})
    with pytest.raises(ConfigError, match="needs the field 'kind'"):
        ServiceConfig.from_dict({"name": "call"})
