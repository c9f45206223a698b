from __future__ import annotations

import json
import re

import numpy as np
import pytest

from simmst.baselines import BASELINES
from simmst.data import TrafficDataset
from simmst.errors import ConfigError, DataError
from simmst.forecaster.config import ForecasterConfig
from simmst.forecaster.plan import make_plan, training_and_validation, window_spec
from simmst.pretrained import load_pretrained
from simmst.training import TrainingConfig


def series(slots, step_minutes=60, services=("call", "sms"), **attributes):
    random = np.random.default_rng(0)
    activity = random.uniform(1, 9, (slots, len(services), 3, 3))
    return TrafficDataset.from_arrays(
        activity, np.arange(slots) * step_minutes * 60, services=list(services), timezone="UTC", **attributes
    )


def test_round_trip_through_json():
    config = ForecasterConfig(
        horizon=2,
        solver="joint",
        recent=9,
        network={"width": 8, "spatial": False},
        training=TrainingConfig(epochs=3, gradient_clip=None),
    )
    again = ForecasterConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert ForecasterConfig.from_dict({}) == ForecasterConfig()
    assert ForecasterConfig.from_dict({"training": TrainingConfig(epochs=3)}).training.epochs == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 0}, "horizon is 0; it must be an integer of at least 1"),
        ({"horizon": 2.0}, r"horizon is 2\.0"),
        ({"horizon": True}, "horizon is True"),
        ({"recent": 0}, "recent is 0"),
        ({"start": "anew"}, "start is 'anew'; it must be one of: pretrained, scratch, or None"),
        ({"validation_days": 0}, "validation_days is 0"),
        ({"cities": -1}, "cities is -1"),
        ({"neighbourhood": 4}, "neighbourhood is 4; it must be an odd integer"),
        ({"model": "arima"}, "model is 'arima'; it must be one of: sim-mstnet, .*ridge"),
        ({"solver": "magic"}, "solver is 'magic'; it must be one of: adapt, cutting-plane, joint, .*, real-only"),
        ({"network": {"widht": 8}}, "network has 'widht'; it may change: label_length, width"),
        ({"network": {"horizon": 8}}, "network has 'horizon'"),
        ({"network": {"width": 9}}, "width is 9; it must be a multiple of num_heads = 2"),
        ({"network": {"dropout": 2.0}}, r"dropout is 2\.0"),
        ({"network": 8}, "network is 8"),
        ({"training": None}, "training is None; it must be a TrainingConfig"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ConfigError, match=message):
        ForecasterConfig(**settings)


def test_unknown_keys():
    with pytest.raises(ConfigError, match="unknown forecaster setting 'horizons'; did you mean 'horizon'"):
        ForecasterConfig.from_dict({"horizons": 3})
    with pytest.raises(ConfigError, match="unknown forecaster setting 'xyz'; the settings are: horizon, model"):
        ForecasterConfig.from_dict({"xyz": 3})
    with pytest.raises(ConfigError, match="unknown training setting 'epoch'; did you mean 'epochs'"):
        ForecasterConfig.from_dict({"training": {"epoch": 3}})


@pytest.mark.parametrize(
    ("days", "wanted", "validation"),
    [(30, 7, 7 * 24), (12, 7, 4 * 24), (12, 2, 2 * 24), (3, 7, 24), (2, 7, 16)],
)
def test_validation_is_whole_days_and_at_most_a_third(days, wanted, validation):
    train, held_out = training_and_validation(series(days * 24), ForecasterConfig(validation_days=wanted))
    assert len(held_out) == validation
    assert (train.start, train.stop, held_out.stop) == (0, held_out.start, days * 24)


def test_validation_holds_the_horizon():
    _, held_out = training_and_validation(series(9 * 24), ForecasterConfig(horizon=30, validation_days=1))
    assert len(held_out) == 30
    with pytest.raises(DataError, match=r"24 of them to validate on .* too few for a horizon of 30"):
        training_and_validation(series(9 * 24), ForecasterConfig(horizon=30), 24)
    with pytest.raises(DataError, match="20 of them to validate on"):
        training_and_validation(series(20), ForecasterConfig(horizon=2), 20)


def test_windows_follow_the_settings():
    spec = window_spec(ForecasterConfig(horizon=2))
    assert (spec.horizon, spec.offsets, spec.neighbourhood) == (2, tuple(range(-24, 0)), 5)
    assert spec.memory_days == 28
    spec = window_spec(ForecasterConfig(recent=5, neighbourhood=3, network={"memory_days": 7}))
    assert (spec.offsets, spec.neighbourhood, spec.memory_days) == ((-5, -4, -3, -2, -1), 3, 7)


@pytest.mark.parametrize(("slots", "step_minutes"), [(9, 60), (36, 60), (300, 10), (12, 1440)])
def test_windows_are_the_same_for_a_short_series_and_a_long_one(slots, step_minutes):
    """Inputs before the start of the series are masked, not left out."""
    plan = make_plan(ForecasterConfig(horizon=2), series(slots, step_minutes))
    assert plan.spec == window_spec(ForecasterConfig(horizon=2))
    adapts = slots * step_minutes >= 4 * 24 * 60
    assert plan.solver == ("adapt" if adapts else None)
    assert [note for note in plan.notes if "too few to train on" in note] == ([] if adapts else list(plan.notes))


def test_plan():
    data = series(12 * 24)
    plan = make_plan(ForecasterConfig(horizon=2, network={"width": 16}), data, simulated=True)
    assert (plan.train, plan.validation) == (range(192), range(192, 288))
    assert plan.network.width == 16
    assert plan.network.services == ("call", "sms")
    assert plan.network.input_length == plan.spec.input_length
    assert plan.solver == "pretrain-finetune"
    assert plan.learns_from_cities
    assert plan.scaler.kind == "relative"
    np.testing.assert_allclose(plan.scaler.std, 0.01 * data.activity[:192].astype(np.float64).mean(axis=(0, 2, 3)))
    assert make_plan(ForecasterConfig(start="scratch"), data).solver == "real-only"
    assert not make_plan(ForecasterConfig(solver="real-only"), data, simulated=True).learns_from_cities


@pytest.mark.parametrize("simulated", [False, True])
def test_the_default_starts_from_the_shipped_weights(simulated):
    plan = make_plan(ForecasterConfig(horizon=2), series(12 * 24), simulated=simulated)
    assert plan.solver == "adapt"
    assert plan.pretrained is load_pretrained()
    assert not plan.learns_from_cities
    assert plan.notes == ()


@pytest.mark.parametrize(
    ("settings", "fields"),
    [({"network": {"width": 16}}, "width"), ({"recent": 12, "neighbourhood": 3}, "input_length, .*neighbourhood")],
)
def test_a_network_that_the_shipped_weights_do_not_fit(settings, fields):
    data = series(12 * 24)
    plan = make_plan(ForecasterConfig(**settings), data)
    assert (plan.pretrained, plan.solver) == (None, "real-only")
    assert re.search(
        f"trained from random weights: the shipped ones fit no network with another {fields}", plan.notes[0]
    )
    with pytest.raises(ConfigError, match=f"fit no network with another {fields}; set start='scratch'"):
        make_plan(ForecasterConfig(start="pretrained", **settings), data)


@pytest.mark.parametrize("settings", [{"start": "scratch"}, {"solver": "real-only"}, {"model": "ridge"}])
def test_plans_that_need_no_shipped_weights(settings, monkeypatch):
    monkeypatch.setattr("simmst.forecaster.plan.load_pretrained", None)
    assert make_plan(ForecasterConfig(**settings), series(12 * 24)).pretrained is None


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_plan_of_a_baseline(name):
    plan = make_plan(ForecasterConfig(model=name), series(12 * 24), simulated=True)
    assert plan.network is None
    assert not plan.learns_from_cities


def test_a_plan_refuses_what_cannot_work():
    data = series(12 * 24)
    with pytest.raises(ConfigError, match="solver 'joint' needs simulated cities"):
        make_plan(ForecasterConfig(solver="joint"), data)
    with pytest.raises(ConfigError, match="label_length is 900; it must be between 0 and input_length"):
        make_plan(ForecasterConfig(network={"label_length": 900}), data)
    empty = data.activity.copy()
    empty[-96:] = np.nan
    with pytest.raises(DataError, match="no value in its last 96 slots"):
        make_plan(ForecasterConfig(), data.with_(activity=empty))


def test_a_plan_refuses_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch sees no CUDA GPU"):
        make_plan(ForecasterConfig(training=TrainingConfig(device="cuda")), series(12 * 24))
