"""A forecaster in a folder: loading returns what was saved, or raises one clear error."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from simmst import Forecaster
from simmst.errors import CheckpointError, ConfigError, DataError
from simmst.forecaster import saving
from simmst.forecaster.config import ForecasterConfig
from simmst.simulation import surrogate_city
from simmst.training import TrainingConfig, load_checkpoint, save_checkpoint

pd = pytest.importorskip("pandas")
pytest.importorskip("safetensors")

CONFIG = ForecasterConfig(
    horizon=3,
    neighbourhood=3,
    start="scratch",
    network={"width": 8, "encoder_layers": 1, "feedforward": 8},
    training=TrainingConfig(epochs=1, samples_per_epoch=64, batch_size=32, validation_samples=64, device="cpu"),
)


@pytest.fixture(scope="module")
def city():
    return surrogate_city(0, height=3, width=3, days=9)


@pytest.fixture(scope="module")
def fitted(city):
    return Forecaster(config=CONFIG).fit(city, None)


@pytest.fixture
def saved(fitted, tmp_path):
    fitted.save(tmp_path / "run")
    return tmp_path / "run"


def test_a_loaded_forecaster_forecasts_the_same(city, fitted, saved):
    assert sorted(path.name for path in saved.iterdir()) == ["forecaster.safetensors", "recent.npz"]
    loaded = Forecaster.load(saved)
    assert (loaded.config, loaded.spec, loaded.name) == (fitted.config, fitted.spec, fitted.name)
    pd.testing.assert_frame_equal(loaded.predict(levels=(50, 95)), fitted.predict(levels=(50, 95)))
    part = city.slice_steps(0, city.num_steps - 7)
    pd.testing.assert_frame_equal(loaded.predict(part), fitted.predict(part))
    again = loaded.save(saved.parent / "again")
    one, two = load_checkpoint(saved / again.name), load_checkpoint(again)
    assert one.state == two.state
    assert all(torch.equal(tensor, two.tensors[name]) for name, tensor in one.tensors.items())


def test_notes_are_kept(city, saved):
    model = Forecaster(config=dataclasses.replace(CONFIG, start=None)).fit(city.slice_steps(0, 72), None)
    assert "trained from random weights" in model.notes[0]
    model.save(saved)
    assert Forecaster.load(saved).notes == model.notes


def test_only_the_end_of_the_series_is_kept(tmp_path):
    fitted = Forecaster(config=CONFIG).fit(surrogate_city(0, height=2, width=2, days=30), None)
    fitted.save(tmp_path)
    loaded = Forecaster.load(tmp_path)
    assert loaded.dataset.num_steps == 28 * 24 + 3
    assert loaded.dataset.time[-1] == fitted.dataset.time[-1]
    with pytest.raises(DataError, match="was loaded and has only the end of its series"):
        loaded.cross_validation()


def test_a_baseline_has_nothing_to_save(city, tmp_path):
    with pytest.raises(ConfigError, match="model 'ridge' has nothing to save"):
        Forecaster(config=dataclasses.replace(CONFIG, model="ridge")).fit(city).save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_load(tmp_path, saved):
    with pytest.raises(CheckpointError, match=r"no checkpoint .*forecaster\.safetensors"):
        Forecaster.load(tmp_path / "nowhere")
    (saved / "recent.npz").unlink()
    with pytest.raises(CheckpointError, match=r"recent\.npz is missing beside forecaster\.safetensors"):
        Forecaster.load(saved)


def test_damaged_files(saved, city):
    weights, recent = saved / "forecaster.safetensors", saved / "recent.npz"
    whole = recent.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-9] + b"x" + whole[-8:]):
        recent.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"recent\.npz is not the file that was saved"):
            Forecaster.load(saved)
    recent.write_bytes(whole)
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="damaged or cut short: it has 5000 bytes"):
        Forecaster.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update(kind="stage"), "is not a saved forecaster"),
        (lambda state: state.pop("network"), "cannot use.*'network' is missing"),
        (lambda state: state.pop("scaler"), "cannot use.*'scaler' is missing"),
        (lambda state: state["spec"].pop("offsets"), "cannot use.*'offsets' is missing"),
        (lambda state: state["config"].update(horizonn=3), "cannot use.*unknown forecaster setting 'horizonn'"),
        (lambda state: state["config"].update(horizon="a"), "cannot use.*horizon is 'a'"),
        (lambda state: state["network"].update(width=16), r"does not fit the model.*wanted"),
    ],
)
def test_a_checkpoint_of_something_else(saved, change, message):
    path = saved / "forecaster.safetensors"
    checkpoint = load_checkpoint(path)
    change(checkpoint.state)
    save_checkpoint(path, checkpoint.tensors, checkpoint.state)
    with pytest.raises(CheckpointError, match=message):
        Forecaster.load(saved)


def test_a_checkpoint_of_another_version(saved, monkeypatch):
    path = saved / "forecaster.safetensors"
    checkpoint = load_checkpoint(path)
    monkeypatch.setattr("simmst.training.checkpoint.VERSION", 99)
    save_checkpoint(path, checkpoint.tensors, checkpoint.state)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format version '99', this simmst reads version 1"):
        Forecaster.load(saved)


def test_saving_again_that_is_cut_off_is_noticed(city, saved, monkeypatch):
    other = Forecaster(config=CONFIG).fit(city.slice_steps(0, city.num_steps - 24), None)
    monkeypatch.setattr(saving, "save_checkpoint", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        other.save(saved)
    with pytest.raises(CheckpointError, match="saving was cut off"):
        Forecaster.load(saved)


def test_the_state_is_plain_json(saved):
    state = load_checkpoint(saved / "forecaster.safetensors").state
    assert json.loads(json.dumps(state)) == state
