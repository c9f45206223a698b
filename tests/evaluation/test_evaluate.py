from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from evaluation_city import city
from torch import nn

from simmst.baselines import BASELINES
from simmst.data import Scaler, TrafficDataset, WindowSpec, chronological_split, load
from simmst.errors import ConfigError, DataError
from simmst.evaluation import ModelPredictor, evaluate, score

SPEC = WindowSpec.recent(3, 6, steps_per_day=24, neighbourhood=3)


class Constant:
    def __init__(self, value, horizon=3):
        self.value, self.horizon = value, horizon

    def predict(self, dataset, origins):
        shape = (len(origins), dataset.num_cells, self.horizon, dataset.num_services)
        return np.full(shape, self.value, dtype=np.float32)


class Oracle:
    """Forecasts the truth plus one, and has no value at its gaps."""

    def __init__(self, gaps=()):
        self.gaps = gaps

    def predict(self, dataset, origins):
        cells = dataset.activity[..., dataset.mask]
        forecast = np.stack([cells[o : o + 3].transpose(2, 0, 1) for o in origins]) + 1
        for gap in self.gaps:
            forecast[gap] = np.nan
        return forecast


class Last(nn.Module):
    """Persistence as a network, on the scaled window."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.ones(()))
        self.batches = []

    def forward(self, values, marks, *, mask=None):
        assert not torch.is_grad_enabled()
        self.batches.append(len(values))
        last = values[:, -1:, :, 1, 1].expand(-1, 3, -1)
        return self.dropout(self.scale * last)


@pytest.fixture
def setting():
    dataset = city()
    return dataset, chronological_split(dataset.num_steps, 24)


def test_all_predictors_and_persistence_on_the_same_points(setting):
    dataset, split = setting
    daily = BASELINES["seasonal-naive-day"]().fit(dataset, SPEC, split.train)
    report = evaluate({"truth + 1": Oracle(), "daily": daily}, dataset, SPEC, split, keep_forecasts=True)
    assert [row.name for row in report.rows] == ["truth + 1", "daily", "persistence"]
    np.testing.assert_allclose(report.row("truth + 1").mae, 1.0, rtol=1e-4)
    np.testing.assert_allclose(report.row("persistence").skill, 0.0, atol=1e-12)
    assert (report.row("daily").skill > 0).all()
    assert report.num_origins == len(split.test) - 2
    assert report.num_points == report.num_origins * 11 * 3 * 2
    # the origins have their whole target in the test part, and the errors are those of the kept forecasts
    kept = report.forecasts
    assert (kept.origins[0], kept.origins[-1]) == (split.test.start, split.test.stop - 3)
    again = score(kept.by_name["daily"], kept.truth)
    np.testing.assert_allclose(again.mae, report.row("daily").mae)
    np.testing.assert_allclose(report.scale, kept.truth.mean(axis=(0, 1, 2)), rtol=1e-5)


def test_a_point_without_a_value_of_one_is_taken_from_all(setting):
    dataset, split = setting
    gaps = [(0, 0, 0, 0), (slice(4, 8), 2)]
    whole = evaluate({"oracle": Oracle()}, dataset, SPEC, split)
    holed = evaluate({"oracle": Oracle(gaps), "zero": Constant(0.0)}, dataset, SPEC, split)
    assert holed.num_points == whole.num_points - 1 - 4 * 3 * 2
    assert any("left out for all: oracle has no value there" in note for note in holed.notes)
    assert all("zero" not in note for note in holed.notes)


def test_missing_truth_is_masked(setting):
    dataset, split = setting
    activity = dataset.activity.copy()
    activity[split.test.start + 5, 0, 1, 1] = np.nan
    holed = dataset.with_(activity=activity)
    whole = evaluate({"zero": Constant(0.0)}, dataset, SPEC, split)
    report = evaluate({"zero": Constant(0.0)}, holed, SPEC, split)
    assert report.num_points == whole.num_points - 3
    assert np.isfinite(report.row("zero").mae).all()


@pytest.mark.parametrize(
    ("predictor", "message"),
    [
        (Constant(np.nan), "'bad' has no value at all for service 'call'"),
        (Constant(np.inf), "'bad' returned .* infinite values"),
        (Constant(1.0, horizon=2), r"'bad' returned \(\d+, 11, 2, 2\), wanted .* \(\d+, 11, 3, 2\)"),
    ],
)
def test_a_broken_predictor_is_named(setting, predictor, message):
    dataset, split = setting
    with pytest.raises(DataError, match=message):
        evaluate({"bad": predictor}, dataset, SPEC, split)


def test_parts_and_strides(setting):
    dataset, split = setting
    validation = evaluate({}, dataset, SPEC, split, part="validation", stride=5)
    assert validation.part == "validation"
    assert validation.num_origins == len(range(0, len(split.validation) - 2, 5))
    with pytest.raises(ConfigError, match="part is 'tset'"):
        evaluate({}, dataset, SPEC, split, part="tset")
    with pytest.raises(ConfigError, match="stride is 0"):
        evaluate({}, dataset, SPEC, split, stride=0)
    long = WindowSpec.recent(80, 6, steps_per_day=24)
    with pytest.raises(DataError, match="holds no window of 6 steps back and 80 ahead"):
        evaluate({}, dataset, long, split)


def test_notes_of_split_and_caller_reach_the_report(setting):
    dataset, split = setting
    report = evaluate({}, dataset, SPEC, split, notes=["trained for fun", split.note])
    assert report.notes == (split.note, "trained for fun")


def test_the_test_part_may_not_influence_the_mase_scale(setting):
    dataset, split = setting
    louder = dataset.activity.copy()
    louder[split.test.start :] *= 3
    one = evaluate({"zero": Constant(0.0)}, dataset, SPEC, split).row("zero")
    other = evaluate({"zero": Constant(0.0)}, dataset.with_(activity=louder), SPEC, split).row("zero")
    np.testing.assert_allclose(other.mase, 3 * one.mase, rtol=1e-5)


def test_a_network_is_wrapped_into_a_predictor(setting):
    dataset, split = setting
    model = Last().train()
    predictor = ModelPredictor(model, Scaler.fit(dataset, split.train), SPEC, batch_size=50)
    origins = np.array([split.test.start + 9, split.test.start, dataset.num_steps])  # any order, and the series' end
    forecast = predictor.predict(dataset, origins)
    persistence = BASELINES["persistence"]().fit(dataset, SPEC, split.train).predict(dataset, origins)
    np.testing.assert_allclose(forecast, persistence, rtol=1e-4, atol=1e-4)
    assert forecast.dtype == np.float32
    assert max(model.batches) <= 50
    assert model.training  # unchanged


def test_batches_are_forecast_side_by_side_to_the_bits_of_one_thread(setting):
    dataset, split = setting
    last, used = Last(), set()
    last.register_forward_pre_hook(lambda *_: used.add((threading.current_thread().name, torch.get_num_threads())))
    predictor = ModelPredictor(last, Scaler.fit(dataset, split.train), SPEC, batch_size=4)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            used.clear()
            found.append(predictor.predict(dataset, np.array([split.test.start])))
            assert {team for _, team in used} == {1}
            assert (threading.current_thread().name in {name for name, _ in used}) == (threads == 1)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(*found)


def test_forecasts_on_the_log_scale_are_not_negative(setting):
    dataset, split = setting
    model = Last()
    with torch.no_grad():
        model.scale.fill_(-100.0)
    scaler = Scaler.fit(dataset, split.train)
    assert scaler.kind == "log"
    forecast = ModelPredictor(model, scaler, SPEC).predict(dataset, np.array([split.test.start + 6]))
    assert forecast.min() == 0.0


def test_a_network_meets_only_its_own_services(setting):
    dataset, split = setting

    class Named(Last):
        class config:  # noqa: N801
            services = ("call", "internet")

    predictor = ModelPredictor(Named(), Scaler.fit(dataset, split.train), SPEC)
    with pytest.raises(DataError, match=r"forecasts call, internet, .* has call, sms"):
        predictor.predict(dataset, np.array([split.test.start]))


def test_an_origin_without_its_past_is_refused(setting):
    dataset, split = setting
    predictor = ModelPredictor(Last(), Scaler.fit(dataset, split.train), SPEC)
    with pytest.raises(DataError, match="origin 2 has no complete window: the input reaches back 6"):
        predictor.predict(dataset, np.array([2, 30]))
    assert predictor.predict(dataset, np.array([], dtype=np.int64)).shape == (0, 11, 3, 2)


def test_no_predictor_of_the_house_reads_a_step_it_has_to_forecast(setting):
    dataset, split = setting
    scaler = Scaler.fit(dataset, split.train)
    origins = np.array([split.test.start + 2])
    poisoned = dataset.activity.copy()
    poisoned[origins[0] :] = 1e6
    future: TrafficDataset = dataset.with_(activity=poisoned)
    predictors = {name: make().fit(dataset, SPEC, split.train) for name, make in BASELINES.items()}
    predictors["network"] = ModelPredictor(Last(), scaler, SPEC)
    for name, predictor in predictors.items():
        np.testing.assert_array_equal(predictor.predict(future, origins), predictor.predict(dataset, origins), name)


def test_the_published_hardness_of_one_step_ahead_on_the_milan_quarters(real_file):
    """Persistence has a MAE of 0.08 there (z-scored), which every model is compared with."""
    quarters = load(real_file("milan_88_quarters_internet_10min_zscored.npz"))
    split = chronological_split(quarters.num_steps, 144)
    report = evaluate({}, quarters, WindowSpec.recent(1, 6, steps_per_day=144, neighbourhood=1), split)
    assert report.row("persistence").overall_mae == pytest.approx(0.0824, abs=0.02)
    assert report.unit == "z-score"


class Quantiles(Constant):
    def __init__(self, value, has_quantiles=True):
        super().__init__(value)
        self.has_quantiles = has_quantiles

    def quantiles(self, dataset, origins, levels):
        assert self.has_quantiles
        return self.predict(dataset, origins)[..., None] + np.array(levels, dtype=np.float32)


def test_the_median_is_the_point_forecast_of_a_predictor_with_quantiles(setting):
    dataset, split = setting
    predictors = {"with": Quantiles(3.0), "without": Quantiles(3.0, has_quantiles=False)}
    report = evaluate(predictors, dataset, SPEC, split, keep_forecasts=True)
    assert set(np.unique(report.forecasts.by_name["with"])) == {np.float32(3.5)}
    assert set(np.unique(report.forecasts.by_name["without"])) == {np.float32(3.0)}
    assert np.isfinite(report.row("with").wql).all()
    assert np.isnan(report.row("without").wql).all()
    with pytest.raises(DataError, match=r"\(origins, cells, steps, services, levels\)"):
        evaluate({"bad": type("Bad", (Quantiles,), {"quantiles": lambda *_: np.zeros(3)})(1.0)}, dataset, SPEC, split)
