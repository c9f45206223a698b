"""Forecasts of a model with a memory: bounded, without a look ahead, and sensible where little is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluation_city import city

from simmst.data import Scaler, Windows, WindowSpec, batches
from simmst.errors import ConfigError
from simmst.evaluation import ModelPredictor
from simmst.models import SimMSTNet, SimMSTNetConfig, task_losses

SPEC = WindowSpec.recent(3, 6, steps_per_day=24, neighbourhood=3, memory_days=7)
LEVELS = (0.05, 0.5, 0.95)
ORIGIN = 9 * 24 - 40
# No forecast changes by more than this factor when a few of some two hundred slots do. The input is bounded, so a
# longer outage or a larger burst changes it no further.
LARGEST_FACTOR = 3.0


def model(seed: int = 0) -> SimMSTNet:
    torch.manual_seed(seed)
    config = SimMSTNetConfig(
        services=("call", "sms"), input_length=6, horizon=3, label_length=2, neighbourhood=3, width=8, num_heads=2,
        feedforward=16, memory_days=7, dropout=0.0,
    )  # fmt: skip
    made = SimMSTNet(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return made


@pytest.fixture(scope="module")
def trained() -> SimMSTNet:
    data, made = city(), model()
    windows = Windows(data, SPEC, Scaler.fit(data, range(ORIGIN), "relative"), steps=range(24, ORIGIN))
    batch = windows.batch(range(0, len(windows), 3))
    made.fit_highway(batch.values, batch.marks, batch.target, memory=batch.memory)
    optimiser = torch.optim.Adam(made.parameters(), lr=3e-3)
    for batch in batches(windows, 64, seed=0, limit=64 * 30):
        loss = task_losses(made, *batch[:3], batch.memory, batch.target, "quantile").mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return made


@pytest.fixture(params=["untrained", "trained"])
def predictor(request, trained) -> ModelPredictor:
    data = city()
    made = trained if request.param == "trained" else model()
    return ModelPredictor(made, Scaler.fit(data, range(ORIGIN), "relative"), SPEC)


def test_no_forecast_reads_a_slot_it_has_to_forecast(predictor):
    data, origins = city(), np.array([ORIGIN])
    activity = data.activity.copy()
    activity[ORIGIN:] = 1e6
    future = data.with_(activity=activity)
    np.testing.assert_array_equal(predictor.predict(future, origins), predictor.predict(data, origins))
    one, two = (predictor.quantiles(x, origins, LEVELS) for x in (future, data))
    np.testing.assert_array_equal(one, two)
    later = np.array([ORIGIN, ORIGIN + 5])
    np.testing.assert_allclose(predictor.predict(future, later)[0], two[0][..., 1], rtol=1e-4)


def outage(activity):
    activity[ORIGIN - 60 : ORIGIN - 36] = 0


def dip(activity):
    activity[ORIGIN - 30] = 0


def burst(activity):
    activity[ORIGIN - 50] *= 1e4


def outage_now(activity):
    activity[ORIGIN - 2 : ORIGIN] = 0


def burst_now(activity):
    activity[ORIGIN - 1] *= 1e4


@pytest.mark.parametrize("event", [outage, dip, burst, outage_now, burst_now])
def test_one_event_does_not_wreck_a_forecast(predictor, event):
    data, origins = city(), np.array([ORIGIN])
    activity = data.activity.copy()
    event(activity)
    quantiles = predictor.quantiles(data.with_(activity=activity), origins, LEVELS)
    assert np.isfinite(quantiles).all()
    ratio = quantiles[..., 1] / predictor.quantiles(data, origins, LEVELS)[..., 1]
    assert ratio.min() > 1 / LARGEST_FACTOR
    assert ratio.max() < LARGEST_FACTOR


def test_a_larger_burst_moves_a_forecast_no_further(predictor):
    """The exception is the level, whose mean grows with the logarithm."""
    data, origins, found = city(), np.array([ORIGIN]), []
    for factor in (1e3, 1e6):
        activity = data.activity.copy()
        activity[ORIGIN - 50] *= factor
        found.append(predictor.predict(data.with_(activity=activity), origins))
    np.testing.assert_allclose(found[1], found[0], rtol=0.3)


def test_quantiles_ascend_around_the_forecast(predictor):
    origins = np.array([1, 30, ORIGIN])
    levels = tuple(np.linspace(0.01, 0.99, 33).tolist())
    quantiles = predictor.quantiles(city(), origins, levels)
    assert quantiles.shape == (3, 11, 3, 2, 33)
    assert (np.diff(quantiles, axis=-1) >= -1e-4 * quantiles[..., 1:]).all()
    np.testing.assert_allclose(quantiles[..., 16], predictor.predict(city(), origins), rtol=1e-4)


def test_a_series_of_which_nothing_is_known_has_no_forecast(predictor):
    data = city()
    activity = data.activity.copy()
    activity[:, 1] = np.nan
    activity[:, :, 1, 2] = np.nan
    cell = data.mask[:1].sum() + 2
    holed = data.with_(activity=activity)
    for forecast in (
        predictor.predict(holed, np.array([5, ORIGIN])),
        predictor.quantiles(holed, np.array([5, ORIGIN]), LEVELS),
    ):
        assert np.isnan(forecast[:, :, :, 1]).all()
        assert np.isnan(forecast[:, cell]).all()
        assert np.isfinite(np.delete(forecast[:, :, :, 0], cell, axis=1)).all()


def test_a_series_whose_last_day_is_missing_is_forecast_from_the_days_before(predictor):
    data = city()
    activity = data.activity.copy()
    activity[ORIGIN - 24 : ORIGIN] = np.nan
    forecast = predictor.predict(data.with_(activity=activity), np.array([ORIGIN]))
    assert np.isfinite(forecast).all()


@pytest.mark.parametrize("constant", [0.0, 3.0, 1e6])
def test_a_constant_series_stays_constant(predictor, constant):
    data = city()
    activity = data.activity.copy()
    activity[:, 0] = constant
    flat = data.with_(activity=activity)
    predictor = ModelPredictor(predictor.model, Scaler.fit(flat, range(ORIGIN), "relative"), SPEC)
    quantiles = predictor.quantiles(flat, np.array([24, ORIGIN]), LEVELS)
    np.testing.assert_allclose(quantiles[:, :, :, 0], constant, rtol=1e-3)
    assert (np.ptp(quantiles[:, :, :, 1], axis=-1) > 0).all()
    first = predictor.quantiles(flat, np.array([1]), LEVELS)
    assert np.isfinite(first).all()
    assert (np.ptp(first[..., 1, :], axis=-1) > 0).all(), "one slot does not make a constant"


def test_a_model_without_quantiles_says_so():
    data = city()
    predictor = ModelPredictor(torch.nn.Identity(), Scaler.fit(data, range(48)), SPEC)
    assert not predictor.has_quantiles
    with pytest.raises(ConfigError, match="Identity forecasts no quantiles"):
        predictor.quantiles(data, np.array([48]), LEVELS)
