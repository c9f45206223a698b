"""The default fit starts from the shipped weights and is never worse than they are."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch

from simmst import Forecaster
from simmst.data import Windows
from simmst.forecaster import fitting
from simmst.forecaster.config import ForecasterConfig
from simmst.forecaster.plan import make_plan
from simmst.pretrained import load_pretrained
from simmst.simulation import surrogate_city
from simmst.training import History, Result, TrainingConfig, validation_score
from simmst.training.recipes import adapt

pd = pytest.importorskip("pandas")
pytest.importorskip("safetensors")

TRAINING = TrainingConfig(epochs=2, samples_per_epoch=64, batch_size=32, validation_samples=64, device="cpu")
CONFIG = ForecasterConfig(horizon=3, training=TRAINING)


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def city():
    return surrogate_city(0, height=3, width=3, days=9, services=["call", "internet"])


@pytest.fixture(scope="module")
def fitted(city):
    return Forecaster(config=CONFIG).fit(city)


def shipped(city):
    return load_pretrained().network(city.services, 3)


def scores(city, *networks):
    plan = make_plan(CONFIG, city)
    windows = Windows(city, plan.spec, plan.scaler, steps=plan.validation)
    return [validation_score(network, windows, TRAINING, where="a test") for network in networks]


def same_weights(one, other):
    state = other.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())


def destroy(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_nothing_is_simulated(city, fitted, monkeypatch):
    monkeypatch.setattr(fitting, "cities_like", None)
    again = Forecaster(config=CONFIG).fit(city)
    assert [history.stage for history in again.result.histories] == ["adapt"]
    assert again.name == "Sim-MSTNet"
    assert again.notes == ()
    pd.testing.assert_frame_equal(again.predict(levels=(80,)), fitted.predict(levels=(80,)))


def test_it_is_no_worse_than_the_shipped_weights_on_validation(city, fitted):
    adapted, untouched = scores(city, fitted.network, shipped(city))
    assert adapted <= untouched
    assert fitted.result.best_score == pytest.approx(adapted, rel=1e-4)


def test_a_fine_tuning_that_destroys_is_undone(city, monkeypatch):
    def destroying(model, train, validation, config, **options):
        before = validation_score(model, validation, config, where="")
        destroy(model)
        after = validation_score(model, validation, config, where="")
        return History("adapt", records=[{"validation_loss": before}], best_epoch=1, best_score=after)

    monkeypatch.setattr(adapt, "train_stage", destroying)
    model = Forecaster(config=CONFIG).fit(city)
    assert model.result.chosen == "pretrained"
    assert same_weights(model.network, shipped(city))
    assert model.result.best_score == pytest.approx(scores(city, shipped(city))[0])


def test_any_other_solver_that_destroys_is_undone_too(city, monkeypatch):
    def destroying(name, model, **options):
        destroy(model)
        score = validation_score(model, options["real_validation"], options["config"], where="")
        return Result((History("joint", best_epoch=1, best_score=score),), "joint")

    monkeypatch.setattr(fitting, "solve", destroying)
    monkeypatch.setattr(fitting, "cities_like", lambda *a, **o: [])
    model = Forecaster(config=dataclasses.replace(CONFIG, solver="joint")).fit(city, 1)
    assert model.result.chosen == "pretrained"
    assert same_weights(model.network, shipped(city))


def test_the_report_has_the_untouched_weights_beside_it(fitted):
    report = fitted.cross_validation(n_windows=2)
    assert report.rows[0].name == "Sim-MSTNet"
    assert "Sim-MSTNet, no training" in [row.name for row in report.rows]
    assert all(np.isfinite(row.mae).all() for row in report.rows)


def test_a_saved_one_forecasts_the_same(city, fitted, tmp_path):
    fitted.save(tmp_path / "run")
    loaded = Forecaster.load(tmp_path / "run")
    pd.testing.assert_frame_equal(loaded.predict(levels=(50, 80, 95)), fitted.predict(levels=(50, 80, 95)))
    part = city.slice_steps(0, city.num_steps - 7)
    pd.testing.assert_frame_equal(loaded.predict(part, levels=(80,)), fitted.predict(part, levels=(80,)))


@pytest.mark.parametrize("days", [1, 2])
def test_one_day_or_two_are_enough(city, days):
    short = city.select_services(["internet"]).slice_steps(0, 24 * days)
    model = Forecaster(training=dataclasses.replace(TrainingConfig(), samples_per_epoch=256)).fit(short)
    frame = model.predict(levels=(80, 95))
    assert len(frame) == 9 * 6
    assert np.isfinite(frame.iloc[:, 3:]).all(axis=None)
    assert (frame["y_hat-lo-95"] <= frame["y_hat-lo-80"]).all()
    assert (frame["y_hat-hi-80"] <= frame["y_hat-hi-95"]).all()


def test_a_service_that_the_weights_do_not_know_and_one_without_a_value(city):
    activity = city.activity.copy()
    activity[:, 1] = np.nan
    odd = dataclasses.replace(city.with_(activity=activity), services=("video", "sms"))
    frame = Forecaster(config=CONFIG).fit(odd).predict(levels=(80,))
    known = (frame.service == "video").to_numpy()
    assert np.isfinite(frame[known].iloc[:, 3:]).all(axis=None)
    assert frame[~known].iloc[:, 3:].isna().all(axis=None)


@pytest.mark.parametrize("solver", ["pretrain-finetune", "cutting-plane"])
def test_a_solver_that_has_no_window_to_train_on_keeps_the_shipped_weights(solver):
    short = surrogate_city(0, height=2, width=2, days=2, services=["internet"])
    fitted = Forecaster(horizon=24, solver=solver, cities=1).fit(short)
    assert any("days are too few to train on: the shipped weights" in note for note in fitted.notes)
    assert len(fitted.predict()) == 24 * short.num_cells
