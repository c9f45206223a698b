from __future__ import annotations

import numpy as np
import pytest

from simmst.errors import ConfigError
from simmst.simulation.radio.path_loss import line_of_sight_probability, path_loss_db
from simmst.simulation.radio.statistical import antenna_gain_db

# Calculated by hand from TR 38.901, Table 7.4.1-1: scenario, distance, line of sight, GHz, antenna height, dB.
BY_HAND = [
    ("UMa", 100.0, True, 2.0, 25.0, 78.277),  # before the breakpoint at 320 m
    ("UMa", 1000.0, True, 2.0, 25.0, 108.912),  # beyond it
    ("UMa", 1000.0, False, 2.0, 25.0, 136.805),
    ("UMi", 50.0, True, 2.0, 10.0, 74.229),
    ("UMi", 200.0, False, 2.0, 10.0, 110.052),
    ("RMa", 500.0, True, 0.8, 35.0, 85.792),  # before the breakpoint at 880 m
    ("RMa", 1000.0, True, 0.8, 35.0, 93.563),
    ("RMa", 3000.0, True, 0.8, 35.0, 112.639),
    ("RMa", 1000.0, False, 0.8, 35.0, 117.605),
]


@pytest.mark.parametrize(("scenario", "distance", "sight", "ghz", "height", "expected"), BY_HAND)
def test_path_loss_equals_values_by_hand(scenario, distance, sight, ghz, height, expected):
    loss = path_loss_db(scenario, distance, line_of_sight=sight, carrier_ghz=ghz, antenna_height_m=height)
    assert float(loss) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("scenario", ["UMa", "UMi", "RMa"])
def test_blocked_links_lose_at_least_as_much_and_loss_grows_with_distance(scenario):
    distance = np.linspace(10, 5000, 400)
    kwargs = {"carrier_ghz": 1.8, "antenna_height_m": 25.0}
    sighted = path_loss_db(scenario, distance, line_of_sight=True, **kwargs)
    blocked = path_loss_db(scenario, distance, line_of_sight=False, **kwargs)
    assert (blocked >= sighted).all()
    # The standard's two slopes meet to within a fraction of a decibel, so allow for a tiny step at the breakpoint.
    assert (np.diff(sighted) > -0.3).all()
    assert sighted[-1] > sighted[0] + 30


def test_line_of_sight_probability_equals_values_by_hand():
    assert line_of_sight_probability("UMa", np.array([10.0, 18.0])).tolist() == [1.0, 1.0]
    # 18/100 + exp(-100/63) * (1 - 18/100) = 0.18 + 0.20446 * 0.82
    assert float(line_of_sight_probability("UMa", 100.0)) == pytest.approx(0.34766, abs=1e-4)
    assert float(line_of_sight_probability("UMi", 100.0)) == pytest.approx(0.18 + 0.0621765 * 0.82, abs=1e-5)
    assert float(line_of_sight_probability("RMa", 1010.0)) == pytest.approx(np.exp(-1.0))


def test_unknown_scenario_is_named():
    with pytest.raises(ConfigError, match="'UMx'"):
        path_loss_db("UMx", 10.0, line_of_sight=True, carrier_ghz=1.0, antenna_height_m=25.0)
    with pytest.raises(ConfigError, match="'UMx'"):
        line_of_sight_probability("UMx", np.array([1.0]))


def test_antenna_falls_by_three_decibels_at_half_its_beam():
    gain = antenna_gain_db(np.array([0.0, 32.5, -32.5, 360.0, 180.0, 0.0]), np.array([0.0, 0.0, 0.0, 0.0, 0.0, 5.0]))
    assert gain.tolist() == pytest.approx([8.0, 5.0, 5.0, 8.0, -22.0, 5.0])
