from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
from evaluation_city import city
from page_city import forecast_slots

from simmst.baselines import BASELINES
from simmst.data import TrafficDataset, WindowSpec, chronological_split
from simmst.errors import ConfigError, DataError
from simmst.evaluation import evaluate
from simmst.foundation.pictures import save_picture
from simmst.plotting import (
    plot_error_map,
    plot_errors,
    plot_forecast,
    plot_losses,
    plot_map,
    plot_series,
    plot_task_weights,
)
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
        warnings.simplefilter("ignore", ResourceWarning)  # from objects that another test left behind
        yield


@pytest.fixture(scope="module")
def compared():
    dataset = city(name="toytown", surrogate=True)
    split = chronological_split(dataset.num_steps, 24)
    daily = BASELINES["seasonal-naive-day"]().fit(dataset, SPEC, split.train)
    return dataset, evaluate({"daily": daily}, dataset, SPEC, split, keep_forecasts=True).forecasts


def check_picture(figure, folder):
    path = save_picture(figure, folder / "picture.png")
    assert path.read_bytes().startswith(PNG)
    assert path.stat().st_size > 5000
    assert [entry.name for entry in folder.iterdir()] == [path.name]


def test_losses(compared, tmp_path):
    histories = [history("pretrain"), history("finetune", validation=False)]
    check_picture(plot_losses(histories, dataset=compared[0]), tmp_path)


def test_task_weights(compared, tmp_path):
    first = history("pretrain")
    second = history("finetune")
    second.records.insert(0, {"stage": "finetune", "epoch": 0, "step": 0, "validation_loss": 1.0})
    check_picture(plot_task_weights([first, second], dataset=compared[0]), tmp_path)


def test_forecast_against_truth(compared, tmp_path):
    check_picture(plot_forecast(*compared, ["daily", "persistence"], cell=3, step=2), tmp_path)


def test_error_map(compared, tmp_path):
    check_picture(plot_error_map(*compared, "daily"), tmp_path)


@pytest.mark.parametrize("with_lonlat", [False, True])
def test_error_map_of_unrelated_places(tmp_path, with_lonlat):
    t = np.arange(9 * 24)
    activity = np.random.default_rng(0).uniform(1, 5, (len(t), 1, 1, 5))
    lonlat = np.random.default_rng(1).uniform(9, 10, (1, 5, 2)) if with_lonlat else None
    places = TrafficDataset.from_arrays(activity, t * 3600, services=["net"], geometry="points", lonlat=lonlat)
    split = chronological_split(places.num_steps, 24)
    forecasts = evaluate({}, places, SPEC, split, keep_forecasts=True).forecasts
    check_picture(plot_error_map(places, forecasts, "persistence"), tmp_path)


@pytest.mark.parametrize("geometry", ["grid", "places", "points"])
def test_the_map_of_a_slot(tmp_path, geometry):
    slots = forecast_slots(geometry)
    figure = plot_map(slots, slot=7, service="<b>sms</b>")
    truth = slots.dataset.series()[7, 1]
    for axes, values in zip(figure.axes, (truth, truth * 1.05, truth * 0.05), strict=False):
        if geometry == "grid":
            drawn = axes.images[0].get_array()[slots.dataset.mask]
        elif geometry == "places":
            drawn = axes.collections[0].get_array()
        else:
            drawn = [bar.get_height() for bar in axes.patches]
        np.testing.assert_allclose(drawn, values, rtol=1e-4)
    assert figure.get_suptitle() == "SURROGATE <i>toytown</i>, <b>sms</b>: 2013-11-17 07:00 local time"
    check_picture(figure, tmp_path)


def test_the_series_of_a_cell(tmp_path):
    slots = forecast_slots()
    figure = plot_series(slots, cell=4)
    truth, forecast = (line.get_ydata() for line in figure.axes[1].lines)
    np.testing.assert_array_equal(truth, slots.dataset.series()[:, 1, 4])
    np.testing.assert_array_equal(forecast, slots.forecast[:, 1, 4])
    assert figure.get_suptitle().endswith("cell c4: a & <u>b</u>, 1 to 6 slots ahead"), "cells are named as in the data"
    check_picture(figure, tmp_path)


def test_the_series_beside_a_baseline():
    slots = forecast_slots()
    other = dataclasses.replace(slots, name="naive", forecast=2 * slots.forecast, interval=None)
    figure = plot_series(slots, cell=4, baseline=other)
    np.testing.assert_array_equal(figure.axes[1].lines[2].get_ydata(), 2 * slots.forecast[:, 1, 4])
    assert figure.axes[0].get_legend().get_texts()[-1].get_text() == "naive"


def test_errors_by_slots_ahead(compared, tmp_path):
    dataset, _ = compared
    split = chronological_split(dataset.num_steps, 24)
    report = evaluate({}, dataset, SPEC, split)
    figure = plot_errors(report, "persistence")
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), report.rows[0].mae_by_step[:, 0])
    check_picture(figure, tmp_path)
    with pytest.raises(ConfigError, match="no predictor 'x'; there are: persistence"):
        plot_errors(report, "x")


def test_every_title_names_the_dataset_and_labels_a_surrogate(compared):
    dataset, forecasts = compared
    for wanted, one in (("SURROGATE toytown", dataset), ("toytown", dataset.with_(surrogate=False))):
        for figure in (
            plot_losses([history("real")], dataset=one),
            plot_task_weights([history("real")], dataset=one),
            plot_forecast(one, forecasts, ["daily"]),
            plot_error_map(one, forecasts, "daily"),
        ):
            assert figure.get_suptitle().startswith(wanted)


def test_the_users_backend_is_left_alone(compared):
    import matplotlib

    before = matplotlib.rcParams["backend"]
    plot_losses([history("real")], dataset=compared[0])
    assert matplotlib.rcParams["backend"] == before


def test_what_cannot_be_drawn_is_refused(compared, tmp_path):
    dataset, forecasts = compared
    with pytest.raises(ConfigError, match=r"should end in one of: \.png, \.svg, \.pdf"):
        save_picture(plot_losses([history("real")], dataset=dataset), tmp_path / "a.txt")
    with pytest.raises(DataError, match="no training history"):
        plot_losses([], dataset=dataset)
    with pytest.raises(DataError, match=r"no epoch .* has task weights"):
        plot_task_weights([History("real")], dataset=dataset)
    with pytest.raises(ConfigError, match="no predictor 'x'; there are: daily, persistence"):
        plot_forecast(dataset, forecasts, ["x"])
    with pytest.raises(ConfigError, match="cell is 11; there are 11"):
        plot_forecast(dataset, forecasts, ["daily"], cell=11)
    with pytest.raises(ConfigError, match="step is 3"):
        plot_forecast(dataset, forecasts, ["daily"], step=3)
    slots = forecast_slots()
    with pytest.raises(ConfigError, match="cell is 11; there are 11"):
        plot_series(slots, cell=11)
    with pytest.raises(ConfigError, match="slot is 48; there are 48 slots"):
        plot_map(slots, slot=48)
    with pytest.raises(ConfigError, match="no service 'net'; there are: call, <b>sms</b>"):
        plot_map(slots, service="net")
    assert list(tmp_path.iterdir()) == []
