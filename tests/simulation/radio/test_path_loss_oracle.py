"""Our implementation of TR 38.901 against that of sionna-no-rt, if it is installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from simmst.simulation.radio.path_loss import line_of_sight_probability, path_loss_db

pytest.importorskip("sionna.phy", reason="the oracle is not installed; install it with: pip install sionna-no-rt")
HEIGHT_M = {"UMa": 25.0, "UMi": 10.0, "RMa": 35.0}
DISTANCE_M = np.array([12.0, 35.0, 90.0, 250.0, 700.0, 1500.0, 4000.0])


def oracle(scenario: str, ghz: float, sight: bool | None):
    from sionna.phy.channel import tr38901

    antenna = tr38901.PanelArray(
        num_rows_per_panel=1,
        num_cols_per_panel=1,
        polarization="single",
        polarization_type="V",
        antenna_pattern="omni",
        carrier_frequency=ghz * 1e9,
    )
    options = {"carrier_frequency": ghz * 1e9, "ut_array": antenna, "bs_array": antenna, "direction": "downlink"}
    if scenario != "RMa":
        options["o2i_model"] = "low"
    made = getattr(tr38901, f"{scenario}Scenario")(**options)
    users, zeros = len(DISTANCE_M), torch.zeros(1, len(DISTANCE_M), 3)
    place = torch.tensor(np.stack([DISTANCE_M, 0 * DISTANCE_M, 0 * DISTANCE_M + 1.5], -1), dtype=torch.float32)[None]
    mast = torch.tensor([[[0.0, 0.0, HEIGHT_M[scenario]]]])
    outdoors = torch.zeros(1, users, dtype=torch.bool)
    made.set_topology(place, mast, zeros, torch.zeros(1, 1, 3), zeros, outdoors, los=sight)
    return made


@pytest.mark.parametrize("scenario", sorted(HEIGHT_M))
@pytest.mark.parametrize("sight", [True, False])
@pytest.mark.parametrize("ghz", [0.8, 1.8, 3.5])
def test_path_loss_equals_the_oracles(scenario, sight, ghz):
    expected = oracle(scenario, ghz, sight).basic_pathloss.reshape(-1).double().numpy()
    found = path_loss_db(
        scenario, DISTANCE_M, line_of_sight=sight, carrier_ghz=ghz, antenna_height_m=HEIGHT_M[scenario]
    )
    np.testing.assert_allclose(found, expected, atol=0.02)


@pytest.mark.parametrize("scenario", sorted(HEIGHT_M))
def test_line_of_sight_probability_equals_the_oracles(scenario):
    expected = oracle(scenario, 2.0, None).los_probability.reshape(-1).double().numpy()
    np.testing.assert_allclose(line_of_sight_probability(scenario, DISTANCE_M), expected, atol=1e-5)
