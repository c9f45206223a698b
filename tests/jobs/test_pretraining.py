"""Making the shipped weights: the result can be read, is the same every time, and a killed run resumes."""

from __future__ import annotations

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch

from simmst.commands.main import main
from simmst.errors import CheckpointError, ConfigError
from simmst.forecaster.zero_shot import ZeroShotPredictor
from simmst.jobs import pretraining
from simmst.jobs.pretraining import PretrainingConfig, draw_city, make_city, pretrain
from simmst.pretrained import load_pretrained
from simmst.simulation import DomainPrior, surrogate_city
from simmst.training import TrainingConfig, load_checkpoint, stage

pytest.importorskip("safetensors")

CONFIG = PretrainingConfig(
    cities=6,
    held_out=2,
    side=3,
    windows_per_city=8,
    origins_per_city=2,
    horizon=4,
    network={"dropout": 0.0, "task_weights": "average", "width": 8, "feedforward": 8, "memory_days": 28},
    training=TrainingConfig(
        epochs=2, samples_per_epoch=32, batch_size=16, patience=None, fit_highway=False, device="cpu"
    ),
)


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain") / "run"
    pretrain(folder, CONFIG, workers=1)
    return folder


def same_weights(one, other):
    first, second = load_pretrained(one), load_pretrained(other)
    assert first.config == second.config
    assert {**first.record, "made": ""} == {**second.record, "made": ""}
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())


def test_the_weights_can_be_read_and_forecast(made):
    pretrained = load_pretrained(made)
    assert (pretrained.config.width, pretrained.config.horizon) == (8, 4)
    city = surrogate_city(0, height=3, width=3, days=3)
    forecast = ZeroShotPredictor(pretrained, 4).predict(city, np.array([city.num_steps]))
    assert forecast.shape == (1, 9, 4, 3)
    assert np.isfinite(forecast).all()


def test_the_record_tells_how_they_were_made(made):
    record = json.loads((made / "weights.json").read_text())
    assert record["settings"] == json.loads(json.dumps(CONFIG.to_dict()))
    assert PretrainingConfig.from_dict(record["settings"]) == CONFIG
    assert {"made", "commit", "version", "cities_sha256", "sha256", "step_minutes", "best_epoch"} <= record.keys()
    assert np.isfinite(record["validation_loss"])


def test_twice_gives_the_same_bits(made, tmp_path):
    pretrain(tmp_path / "again", CONFIG, workers=1)
    same_weights(made, tmp_path / "again")


def test_it_resumes_where_it_was_killed(made, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    save = stage.save_checkpoint

    def save_and_die(*what):
        save(*what)
        raise Killed

    monkeypatch.setattr(stage, "save_checkpoint", save_and_die)
    folder = tmp_path / "broken"
    with pytest.raises(Killed):
        pretrain(folder, CONFIG, workers=1)
    assert not (folder / "weights.safetensors").exists()
    assert load_checkpoint(folder / "checkpoints" / "pretrain.safetensors").state["epoch"] == 1
    epochs = []
    monkeypatch.setattr(stage, "save_checkpoint", lambda *what: epochs.append(what[2]["epoch"]) or save(*what))
    pretrain(folder, CONFIG, workers=1)
    assert epochs == [2], "the first epoch is not repeated"
    same_weights(made, folder)


def test_other_settings_or_another_prior_do_not_resume(made):
    with pytest.raises(ConfigError, match="cities"):
        pretrain(made, dataclasses.replace(CONFIG, cities=7))
    with pytest.raises(ConfigError, match="cities_sha256 was"):
        pretrain(made, CONFIG, prior=DomainPrior.surrogate())


def test_a_damaged_checkpoint_is_told(made, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(made, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "pretrain.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    monkeypatch.setattr(pretraining, "make_city", lambda drawn: surrogate_city(0, height=3, width=3, days=9))
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        pretrain(tmp_path / "run", CONFIG, workers=1)


@pytest.mark.parametrize("name", ["cities", "held_out", "side", "windows_per_city", "horizon"])
def test_settings_out_of_range(name):
    with pytest.raises(ConfigError, match=f"{name} is 0; it must be an integer of at least 1"):
        PretrainingConfig(**{name: 0})


def test_cities_too_small_for_the_windows():
    with pytest.raises(ConfigError, match="windows_per_city is 19; 2 origins of 3 x 3 cells have 18"):
        dataclasses.replace(CONFIG, windows_per_city=19)


def test_the_cities_are_of_many_kinds():
    prior = DomainPrior.default()
    drawn = [draw_city(prior, 0, index, 3) for index in range(200)]
    assert drawn == [draw_city(prior, 0, index, 3) for index in range(200)]
    assert {one.city.step_minutes for one in drawn} == {5, 10, 15, 30, 60, 1440}
    assert {one.points for one in drawn} == {False, True}
    assert {1, 2, 28} <= {one.context_days for one in drawn}
    one = next(one for one in drawn if one.points and one.present == ("internet",) and one.city.num_steps < 1000)
    city = make_city(one)
    assert city.geometry == "points"
    assert np.isnan(city.activity[:, :2]).all()
    assert not np.isnan(city.activity[:, 2]).all()


def test_the_command(tmp_path, capsys):
    settings = tmp_path / "settings.yaml"
    config = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, epochs=1))
    settings.write_text(json.dumps({"pretraining": config.to_dict()}))
    out = tmp_path / "run"
    arguments = ["pretrain", "--config", str(settings), "--out", str(out), "--workers", "1", "--quiet"]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out == f"written: {out}/weights.safetensors\nwritten: {out}/weights.json\n"
    assert load_pretrained(out).record["settings"] == config.to_dict()
    assert main([*arguments, "--pretraining.horizon", "0"]) == 2
    assert "horizon is 0" in capsys.readouterr().err
