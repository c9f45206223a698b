from __future__ import annotations

import numpy as np
import pytest

from simmst.data import TrafficDataset
from simmst.errors import ConfigError, DataError
from simmst.forecaster.similar_cities import cities_like, simulation_step, stand_in_notes, stand_ins
from simmst.simulation import DEFAULT_SERVICES, ServiceConfig, simulate_cities


def series(services, step_minutes=60):
    t = np.arange(48)
    return TrafficDataset.from_arrays(np.ones((48, len(services), 2, 2)), t * step_minutes * 60, services=services)


def test_known_services_stand_for_themselves():
    assert stand_ins(["sms", "call"]) == ("sms", "call")
    assert stand_ins(["Internet", "SMS"]) == ("internet", "sms")
    assert stand_in_notes(["Internet", "SMS"]) == ()


def test_unknown_services_borrow_what_the_series_lacks():
    assert stand_ins(["video", "internet"]) == ("call", "internet")
    assert stand_ins(["a", "b", "c"]) == ("internet", "call", "sms")
    assert len(stand_in_notes(["video", "internet"])) == 1


def test_more_services_than_the_simulator_knows():
    chosen = stand_ins(["a", "b", "c", "d", "e"])
    assert chosen[:3] == ("internet", "call", "sms")
    assert [service.name for service in chosen[3:]] == ["d", "e"]
    assert all(isinstance(service, ServiceConfig) and service.kind == "volume" for service in chosen[3:])
    assert chosen[3].profile == DEFAULT_SERVICES["internet"].profile
    assert "simulated 'internet' for it" in stand_in_notes(["a", "b", "c", "d"])[3]


def test_names_that_differ_in_case_alone():
    chosen = stand_ins(["call", "Call"])
    assert chosen == ("call", "internet")


def test_cities_carry_the_names_and_slots_of_the_series():
    cities = cities_like(series(["video", "call", "x", "y"]), 2, seed=4)
    assert [city.services for city in cities] == [("video", "call", "x", "y")] * 2
    assert {city.step_minutes for city in cities} == {60}
    same = simulate_cities(1, seed=4, services=["internet", "call"])[0]
    np.testing.assert_array_equal(cities_like(series(["video", "call"]), 1, seed=4)[0].activity, same.activity)


def test_slots_that_the_simulators_sum_up_to():
    assert [simulation_step(step) for step in (5, 10, 15, 20, 30, 60, 120)] == [5, 10, 15, 10, 10, 60, 60]
    with pytest.raises(
        DataError, match=r"has slots of 12 minutes; resample it to 10, 30 or 60 minutes, or train without"
    ):
        cities_like(series(["call"], 12), 1, seed=0)


@pytest.mark.slow
def test_half_hours():
    (city,) = cities_like(series(["call"], 30), 1, seed=0)
    assert city.step_minutes == 30


def test_how_many():
    assert cities_like(series(["call"], 15), 0, seed=0) == []
    for wrong in (-1, True, 1.0):
        with pytest.raises(ConfigError, match="the number of simulated cities is"):
            cities_like(series(["call"]), wrong, seed=0)


def test_progress():
    seen = []
    cities_like(series(["call"]), 2, seed=0, progress=lambda *call: seen.append(call))
    assert seen == [("simulate", 1, 2), ("simulate", 2, 2)]
