from __future__ import annotations

import warnings

import numpy as np
import pytest
from evaluation_city import city

from simmst.baselines import BASELINES
from simmst.data import TrafficDataset, WindowSpec, chronological_split
from simmst.errors import ConfigError, DataError
from simmst.evaluation import evaluate, plot_error_map, plot_forecast, plot_losses, plot_task_weights
from simmst.training.history import History

pytest.importorskip("matplotlib")

SPEC = WindowSpec.recent(2, 6, steps_per_day=24)
PNG = b"\x89PNG\r\n\x1a\n"


def history(stage, *, validation=True):
    records = [
        {
            "stage": stage,
            "epoch": epoch,
            "step": 10 * epoch,
            "train_loss": 1.0 / epoch,
            "task_weights": {"call": 0.25, "sms": 0.75},
            **({"validation_loss": 1.2 / epoch} if validation else {}),
        }
        for epoch in range(1, 5)
    ]
    return History(stage, records, best_epoch=3, best_score=0.4)


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # of what another test left behind
        yield


@pytest.fixture(scope="module")
def compared():
    dataset = city(name="toytown", surrogate=True)
    split = chronological_split(dataset.num_steps, 24)
    daily = BASELINES["seasonal-naive-day"]().fit(dataset, SPEC, split.train)
    return dataset, evaluate({"daily": daily}, dataset, SPEC, split, keep_forecasts=True).forecasts


def check_picture(path, folder):
    assert path.read_bytes().startswith(PNG)
    assert path.stat().st_size > 5000
    assert [entry.name for entry in folder.iterdir()] == [path.name]


def test_losses(compared, tmp_path):
    histories = [history("pretrain"), history("finetune", validation=False)]
    path = plot_losses(tmp_path / "loss.png", histories, dataset=compared[0])
    check_picture(path, tmp_path)


def test_task_weights(compared, tmp_path):
    first = history("pretrain")
    second = history("finetune")
    second.records.insert(0, {"stage": "finetune", "epoch": 0, "step": 0, "validation_loss": 1.0})
    check_picture(plot_task_weights(tmp_path / "weights.png", [first, second], dataset=compared[0]), tmp_path)


def test_forecast_against_truth(compared, tmp_path):
    path = plot_forecast(tmp_path / "forecast.png", *compared, ["daily", "persistence"], cell=3, step=2)
    check_picture(path, tmp_path)


def test_error_map(compared, tmp_path):
    check_picture(plot_error_map(tmp_path / "map.png", *compared, "daily"), tmp_path)


@pytest.mark.parametrize("with_lonlat", [False, True])
def test_error_map_of_unrelated_places(tmp_path, with_lonlat):
    t = np.arange(9 * 24)
    activity = np.random.default_rng(0).uniform(1, 5, (len(t), 1, 1, 5))
    lonlat = np.random.default_rng(1).uniform(9, 10, (1, 5, 2)) if with_lonlat else None
    places = TrafficDataset.from_arrays(activity, t * 3600, services=["net"], geometry="points", lonlat=lonlat)
    split = chronological_split(places.num_steps, 24)
    forecasts = evaluate({}, places, SPEC, split, keep_forecasts=True).forecasts
    check_picture(plot_error_map(tmp_path / "map.png", places, forecasts, "persistence"), tmp_path)


def titles(compared, tmp_path, monkeypatch):
    """Draw everything and return the figures' titles."""
    import simmst.evaluation.plots as plots

    seen = []
    original = plots.save_picture
    monkeypatch.setattr(plots, "save_picture", lambda f, p: seen.append(f.get_suptitle()) or original(f, p))
    dataset, forecasts = compared
    plot_losses(tmp_path / "a.png", [history("real")], dataset=dataset)
    plot_task_weights(tmp_path / "b.png", [history("real")], dataset=dataset)
    plot_forecast(tmp_path / "c.png", dataset, forecasts, ["daily"])
    plot_error_map(tmp_path / "d.png", dataset, forecasts, "daily")
    return seen


def test_every_title_names_the_dataset_and_labels_a_surrogate(compared, tmp_path, monkeypatch):
    found = titles(compared, tmp_path, monkeypatch)
    assert len(found) == 4
    assert all(title.startswith("SURROGATE toytown") for title in found)


def test_a_real_dataset_is_not_labelled(compared, tmp_path, monkeypatch):
    dataset, forecasts = compared
    found = titles((dataset.with_(surrogate=False), forecasts), tmp_path, monkeypatch)
    assert all(title.startswith("toytown") for title in found)


def test_the_users_backend_is_left_alone(compared, tmp_path):
    import matplotlib

    before = matplotlib.rcParams["backend"]
    plot_losses(tmp_path / "a.png", [history("real")], dataset=compared[0])
    assert matplotlib.rcParams["backend"] == before


def test_what_cannot_be_drawn_is_refused(compared, tmp_path):
    dataset, forecasts = compared
    with pytest.raises(ConfigError, match=r"should end in one of: \.png, \.svg, \.pdf"):
        plot_losses(tmp_path / "a.txt", [history("real")], dataset=dataset)
    with pytest.raises(DataError, match="no training history"):
        plot_losses(tmp_path / "a.png", [], dataset=dataset)
    with pytest.raises(DataError, match=r"no epoch .* has task weights"):
        plot_task_weights(tmp_path / "a.png", [History("real")], dataset=dataset)
    with pytest.raises(ConfigError, match="no predictor 'x'; there are: daily, persistence"):
        plot_forecast(tmp_path / "a.png", dataset, forecasts, ["x"])
    with pytest.raises(ConfigError, match="cell is 11; there are 11"):
        plot_forecast(tmp_path / "a.png", dataset, forecasts, ["daily"], cell=11)
    with pytest.raises(ConfigError, match="step is 3"):
        plot_forecast(tmp_path / "a.png", dataset, forecasts, ["daily"], step=3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".svg", ".pdf"])
def test_other_formats(compared, tmp_path, suffix):
    path = plot_losses(tmp_path / f"loss{suffix}", [history("real")], dataset=compared[0])
    assert path.stat().st_size > 1000
