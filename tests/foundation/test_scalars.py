"""Settings that come out of an array equal settings that were typed."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from simmst.data import WindowSpec
from simmst.errors import ConfigError
from simmst.forecaster import ForecasterConfig
from simmst.models import SimMSTNetConfig
from simmst.sim2real import ReweightingConfig
from simmst.simulation import CityConfig
from simmst.training import TrainingConfig


@pytest.mark.parametrize(
    ("build", "values"),
    [
        (ForecasterConfig, {"horizon": np.int64(2), "neighbourhood": np.uint8(3)}),
        (ForecasterConfig, {"network": {"width": np.int32(32), "spatial": np.bool_(False)}}),
        (TrainingConfig, {"epochs": np.int64(2), "learning_rate": np.float32(0.5), "fit_highway": np.bool_(True)}),
        (ReweightingConfig, {"steps": np.int64(4)}),
        (SimMSTNetConfig, {"horizon": np.int16(3), "dropout": np.float64(0.25)}),
        (CityConfig, {"height": np.int64(4), "days": np.int64(2)}),
        (lambda **given: WindowSpec(offsets=(-2, -1), **given), {"horizon": np.int64(2)}),
    ],
)
def test_numpy_numbers_are_settings(build, values):
    plain = {
        key: {name: one.item() for name, one in value.items()} if isinstance(value, dict) else value.item()
        for key, value in values.items()
    }
    built = build(**values)
    assert built == build(**plain)
    for key in values:
        json.dumps(getattr(built, key))
        assert not isinstance(getattr(built, key), np.generic)


def test_a_numpy_float_is_no_whole_number():
    with pytest.raises(ConfigError, match=r"horizon is 2\.5; it must be an integer"):
        ForecasterConfig(horizon=np.float64(2.5))
    with pytest.raises(ConfigError, match="horizon is True"):
        ForecasterConfig(horizon=np.bool_(True))
    assert dataclasses.asdict(ForecasterConfig(horizon=np.int64(3)))["horizon"] == 3
