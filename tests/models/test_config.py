from __future__ import annotations

import json

import pytest

from simmst.errors import ConfigError
from simmst.models import SimMSTNetConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("services", ()),
        ("services", "call"),
        ("services", ("call", "call")),
        ("services", ("call", "")),
        ("input_length", 0),
        ("horizon", 0),
        ("horizon", 1.5),
        ("label_length", 37),
        ("label_length", -1),
        ("neighbourhood", 4),
        ("neighbourhood", 0),
        ("num_marks", -1),
        ("width", 31),
        ("num_heads", True),
        ("encoder_layers", 0),
        ("decoder_layers", 0),
        ("feedforward", 0),
        ("factor", 0),
        ("dropout", 1.0),
        ("dropout", float("nan")),
        ("dropout", "much"),
        ("memory_days", 0),
        ("spatial_steps", 0),
        ("interaction", 1),
        ("task_weights", "uncertain"),
        ("backend", "fast"),
    ],
)
def test_a_field_out_of_range_is_named_with_its_value(field, value):
    with pytest.raises(ConfigError) as error:
        SimMSTNetConfig(**{field: value})
    assert str(error.value).startswith(f"{field} is {value!r}; it must be ")


def test_round_trip_through_json():
    config = SimMSTNetConfig(services=["a", "b.c"], dropout=0.25, backend="reference", neighbourhood=1)
    assert config.services == ("a", "b.c")
    assert SimMSTNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_keys_are_named():
    with pytest.raises(ConfigError, match=r"unknown settings 'widht', 'depth'; the settings are services"):
        SimMSTNetConfig.from_dict({"widht": 1, "width": 32, "depth": 2})


def test_ablations_change_one_switch_each():
    full = SimMSTNetConfig()
    changed = {
        name: {key for key, value in full.ablation(name).to_dict().items() if full.to_dict()[key] != value}
        for name in ("full", "oInter", "oSpatial", "Average")
    }
    assert changed == {"full": set(), "oInter": {"interaction"}, "oSpatial": {"spatial"}, "Average": {"task_weights"}}
    with pytest.raises(ConfigError, match="ablation is 'oTime'"):
        full.ablation("oTime")


def test_single_task_keeps_one_of_the_services():
    config = SimMSTNetConfig().single_task("internet")
    assert config.services == ("internet",)
    assert not config.interaction
    with pytest.raises(ConfigError, match="service is 'voice'; it must be one of call, sms, internet"):
        SimMSTNetConfig().single_task("voice")
