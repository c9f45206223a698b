"""Properties of every network: shapes, what it may see, learning, saving and loading."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_networks import NAMES, SMALL, call, city, small_network, small_windows

from simmst import Forecaster
from simmst.baselines.networks import NETWORKS
from simmst.errors import CheckpointError, ConfigError
from simmst.models import task_losses
from simmst.training import TrainingConfig, load_checkpoint, save_checkpoint, train_stage

MEMORY = pytest.mark.parametrize("memory", [False, True], ids=["plain", "memory"])
EVERY = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def batch():
    windows = small_windows()
    return windows.batch([700, 800, 900, 1000])


@EVERY
@MEMORY
def test_shape_and_missing_values(name, memory, batch):
    network = small_network(name, memory=memory)
    assert call(network, batch).shape == (4, 3, 2)
    values, mask = batch.values.clone(), batch.mask.clone()
    values[0] = torch.nan
    values[1, ::2] = torch.nan
    mask[2, 0] = False
    holes = batch._replace(values=values, mask=mask)
    forecast = call(network, holes)
    assert forecast.dtype == torch.float32
    assert torch.isfinite(forecast).all()
    # cells outside the city have no effect
    values = values.clone()
    values[2, :, :, 0] = 1e3
    assert torch.allclose(call(network, holes._replace(values=values)), forecast, atol=1e-6)
    single = small_network(name, services=("sms",), memory=memory)
    assert call(single, small_windows(services=("sms",)).batch([700])).shape == (1, 3, 1)


@EVERY
@MEMORY
def test_every_parameter_takes_part(name, memory, batch):
    network = small_network(name, memory=memory).train()
    options = {"penalty": True} if getattr(network, "has_penalty", False) else {}
    if network.takes_memory:
        options["memory"] = batch.memory
    answer = network(batch.values, batch.marks, mask=batch.mask, **options)
    forecast = answer[0] if options.get("penalty") else answer
    forecast.square().sum().backward()
    assert [key for key, value in network.named_parameters() if value.grad is None] == []


@EVERY
def test_a_wrong_shape_is_told(name, batch):
    network = small_network(name)
    with pytest.raises(ValueError, match=r"values are .* the network wants"):
        call(network, batch._replace(values=batch.values[:, :-1]))
    with pytest.raises(ValueError, match=r"marks are .* the network wants"):
        call(network, batch._replace(marks=batch.marks[:, :-1]))


@EVERY
def test_the_memory_is_a_switch(name, batch):
    # The same slot on the days before changes the forecast with a memory, and does not without one.
    days = batch.memory.days.clone()
    days[:, 0, -1] += 1.0
    other = batch._replace(days=days)
    told, plain = small_network(name, memory=True), small_network(name)
    assert not torch.allclose(call(told, other), call(told, batch), atol=1e-3)
    if name != "lstm":  # its period branch reads the days before
        assert torch.equal(call(plain, other), call(plain, batch))
    assert torch.isfinite(told(batch.values, batch.marks, mask=batch.mask, memory=None)).all()


@EVERY
def test_over_fits_a_few_windows_by_the_one_loop(name):
    windows = small_windows(steps=range(96, 102))  # 4 origins of 9 cells
    network = small_network(name).train()
    config = TrainingConfig(
        epochs=30, batch_size=36, learning_rate=0.01, warmup_steps=0, schedule="constant", loss="mae", device="cpu"
    )
    history = train_stage(network, windows, None, config, stage="real")
    everything = windows.batch(range(len(windows)))
    with torch.no_grad():
        loss = task_losses(network, *everything[:3], everything.memory, everything.target, "mae").mean()
    assert len(windows) == 36
    assert loss < min(0.16, 0.5 * history.records[0]["train_loss"])  # 0.08 of it is noise


TRAINING = TrainingConfig(epochs=1, samples_per_epoch=32, batch_size=32, validation_samples=32, device="cpu")


def fitted(name, **settings):
    settings = {"network": {**SMALL.get(name, {}), "memory_days": 3}, "training": TRAINING, **settings}
    model = Forecaster(horizon=2, model=name, recent=9, neighbourhood=3, validation_days=1, **settings)
    return model.fit(city(days=4), None)


@EVERY
def test_a_loaded_forecaster_is_the_same(name, tmp_path):
    pytest.importorskip("pandas")
    pytest.importorskip("safetensors")
    model = fitted(name)
    assert (model.name, model.result.chosen) == (name, "real")
    assert isinstance(model.network, NETWORKS[name])
    frame = model.predict(levels=(80,))
    assert (frame["y_hat-lo-80"] <= frame.y_hat).all()
    model.save(tmp_path)
    loaded = Forecaster.load(tmp_path)
    assert isinstance(loaded.network, NETWORKS[name])
    assert loaded.network.config == model.network.config
    assert loaded.predict(levels=(80,)).equals(frame)


def test_the_command_trains_one(tmp_path, capsys):
    pytest.importorskip("jsonargparse")
    pytest.importorskip("matplotlib")
    from simmst.commands.main import main

    data = city(days=6).save(tmp_path / "city.npz")
    settings = {
        "model": "mttc",
        "horizon": 2,
        "recent": 9,
        "neighbourhood": 3,
        "network.memory": "true",
        "network.memory_days": 3,
        "training.epochs": 1,
        "training.samples_per_epoch": 32,
        "training.validation_samples": 32,
    }
    flags = [part for name, value in settings.items() for part in (f"--forecaster.{name}", str(value))]
    arguments = ["train", "--data", str(data), "--out", str(tmp_path / "run"), "--simulated", "0", "--test_days", "1"]
    assert main([*arguments, *flags, "--quiet"]) == 0
    assert settings["model"] in capsys.readouterr().out
    network = Forecaster.load(tmp_path / "run").network
    assert network.config.memory


def test_what_is_loaded_is_what_was_saved(tmp_path):
    pytest.importorskip("pandas")
    pytest.importorskip("safetensors")
    path = fitted("lstm").save(tmp_path)
    saved = load_checkpoint(path)
    for changes, message in (
        ({"model": "nlinear"}, "settings of model 'lstm' and weights of 'nlinear'"),
        ({"network": {**saved.state["network"], "width": 16}}, "a network with width = 16, its settings ask for 8"),
        ({"network": {**saved.state["network"], "dense": 16}}, "unknown setting 'dense'"),
    ):
        save_checkpoint(path, saved.tensors, {**saved.state, **changes})
        with pytest.raises(CheckpointError, match=message):
            Forecaster.load(tmp_path)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match=r"solver 'adapt' adapts the shipped weights, which are Sim-MSTNet's"):
        Forecaster(model="lstm", solver="adapt")
    with pytest.raises(ConfigError, match="model 'lstm' cannot start from them"):
        Forecaster(model="lstm", start="pretrained")
    with pytest.raises(ConfigError, match="network has 'highway'; it may change: memory, memory_days"):
        Forecaster(model="nlinear", network={"highway": False})


def test_random_weights_and_solvers_by_default():
    model = fitted("dlinear", start="scratch")
    assert model.notes == ()
    simulated = Forecaster(horizon=2, model="dlinear", recent=9, neighbourhood=3, training=TRAINING, validation_days=1)
    simulated.fit(city(days=4), [city(days=4, seed=1)])
    assert [history.stage for history in simulated.result.histories] == ["pretrain", "finetune"]


@pytest.mark.filterwarnings("ignore:forward-mode differentiation")  # torch has none for recurrent layers
@pytest.mark.parametrize("name", ["lstm", "nlinear"])
def test_simulated_windows_can_be_weighed(name):
    reweighting = dataclasses.replace(TRAINING.reweighting, steps=2, simulated_batch=8, real_batch=8, chunk=8)
    training = dataclasses.replace(TRAINING, reweighting=reweighting, samples_per_city=8, after_reweighting="nothing")
    network = {**SMALL.get(name, {}), "memory_days": 3}
    options = {"solver": "online", "training": training, "network": network, "validation_days": 1}
    model = Forecaster(horizon=2, model=name, recent=9, neighbourhood=3, **options)
    model.fit(city(days=4), [city(days=4, seed=1)])
    assert model.weight_report is not None


def test_the_quantile_loss_of_a_point_forecast_weighs_errors_by_the_traffic(batch):
    network = small_network("nlinear")
    with torch.no_grad():
        error = (call(network, batch) - batch.target).abs()
        level = batch.memory.level[:, None, :, 1, 1]
        expected = (error * (0.5 * (batch.target - level).clamp(-3, 3)).exp()).mean((0, 1))
        found = task_losses(network, *batch[:3], batch.memory, batch.target, "quantile")
        unknown = task_losses(network, *batch[:3], None, batch.target, "quantile")
    assert torch.allclose(found, expected)
    assert torch.allclose(unknown, error.mean((0, 1)))
