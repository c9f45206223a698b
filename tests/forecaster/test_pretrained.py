"""The shipped weights forecast any data set, and report what they had to guess."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest

from simmst import Forecaster, TrafficDataset
from simmst.baselines import BASELINES
from simmst.data import Split, chronological_split
from simmst.errors import ConfigError, DataError
from simmst.forecaster.zero_shot import ZeroShotPredictor, zero_shot_notes
from simmst.pretrained import load_pretrained

pytest.importorskip("pandas")
pytest.importorskip("safetensors")


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def series(slots, *, step=60, services=("internet",), side=(2, 2), factor=1.0, **attributes):
    """A daily profile with noise."""
    rng = np.random.default_rng(0)
    day = 2 + np.sin(np.arange(slots) * step / 1440 * 2 * np.pi)
    noise = rng.uniform(0.8, 1.2, (slots, len(services), *side))
    activity = factor * 50 * day[:, None, None, None] * noise
    time = np.arange(slots) * step * 60
    return TrafficDataset.from_arrays(activity, time, services=list(services), timezone="UTC", **attributes)


def values(frame):
    return frame.iloc[:, 3:].to_numpy()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda: series(5 * 24, services=("sms", "video", "internet")), id="services"),
        pytest.param(lambda: series(3 * 144, step=10), id="ten minutes"),
        pytest.param(lambda: series(30, step=1440), id="days"),
        pytest.param(lambda: series(96, step=120), id="two hours"),
        pytest.param(lambda: series(72, side=(1, 1)), id="one cell"),
        pytest.param(lambda: series(72, side=(1, 5), geometry="points"), id="points"),
        pytest.param(lambda: series(3), id="three slots"),
        pytest.param(lambda: series(72, factor=1e-9), id="tiny"),
        pytest.param(lambda: series(72, factor=1e12), id="huge"),
        pytest.param(lambda: series(72, factor=0.0), id="zero"),
    ],
)
def test_any_series_is_forecast(data):
    dataset = data()
    frame = Forecaster.pretrained(horizon=3).predict(dataset, levels=(50, 80, 95))
    assert len(frame) == dataset.num_cells * 3 * dataset.num_services
    found = values(frame)
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    middle = frame.y_hat.mean()
    level = dataset.activity.mean()
    assert 0.3 * level <= middle <= 3 * level
    ordered = [frame[f"y_hat-lo-{level}"] for level in (95, 80, 50)]
    ordered += [frame.y_hat, *(frame[f"y_hat-hi-{level}"] for level in (50, 80, 95))]
    assert all((low <= high).all() for low, high in itertools.pairwise(ordered))


def test_what_the_weights_do_not_know_is_told():
    pretrained = load_pretrained()
    assert zero_shot_notes(series(48, services=("sms", "call")), pretrained, 6) == ()
    (note,) = zero_shot_notes(series(48, services=("sms", "video")), pretrained, 6)
    assert note == "video: forecast as an unknown service; the weights know call, sms, internet"
    (note,) = zero_shot_notes(series(48, step=120), pretrained, 6)
    assert note.startswith("slots of 120 minutes: the weights have learned from 5, 10, ")
    (note,) = zero_shot_notes(series(48), pretrained, 40)
    assert note == "40 slots ahead: the weights have learned to forecast 24"


def test_beyond_the_learned_horizon():
    frame = Forecaster.pretrained(horizon=40).predict(series(10 * 24), levels=(80,))
    assert len(frame) == 4 * 40
    assert np.isfinite(values(frame)).all()
    assert frame.y_hat.max() < 1000


def test_a_short_horizon_is_the_start_of_a_long_one():
    """Of the network alone to rounding; the trees beside it share their samples among all steps ahead."""
    dataset = series(6 * 24, services=("call", "video"))
    for combine, most in ((False, 1e-4), (True, 0.05)):
        made = (ZeroShotPredictor(load_pretrained(), horizon, combine=combine) for horizon in (2, 6))
        short, long = (one.predict(dataset, np.array([dataset.num_steps])) for one in made)
        np.testing.assert_allclose(short, long[:, :, :2], rtol=most)


def test_no_slot_at_or_after_the_origin_is_read():
    dataset, origin = series(8 * 24, services=("call", "internet")), 150
    predictor = ZeroShotPredictor(load_pretrained(), 3)
    found = []
    for planted in (1.0, 1e4, np.nan):
        activity = dataset.activity.copy()
        activity[origin:] *= planted
        other = dataset.with_(activity=activity)
        found.append((predictor.predict(other, np.array([origin])), predictor.quantiles(other, [origin], [0.1, 0.9])))
    for point, bounds in found[1:]:
        np.testing.assert_array_equal(point, found[0][0])
        np.testing.assert_array_equal(bounds, found[0][1])


def test_the_forecast_at_the_end_is_the_one_among_many():
    dataset = series(8 * 24)
    predictor = ZeroShotPredictor(load_pretrained(), 3)
    cut = dataset.slice_steps(0, 150)
    np.testing.assert_allclose(
        predictor.predict(cut, np.array([150])), predictor.predict(dataset, np.array([150, 151]))[:1], rtol=1e-4
    )


def test_nothing_known_gives_nothing_and_a_note():
    dataset = series(72)
    empty = dataset.with_(activity=np.full_like(dataset.activity, np.nan))
    assert np.isnan(values(Forecaster.pretrained(horizon=2).predict(empty, levels=(80,)))).all()
    assert zero_shot_notes(empty, load_pretrained(), 2) == ("4 of 4 cells have no value in the last weeks and get NaN",)
    with pytest.raises(DataError, match="no target point where the truth is known"):
        Forecaster.pretrained(horizon=2).evaluate(empty, chronological_split(72, 24))


def test_one_cell_or_service_without_values():
    dataset = series(72, services=("call", "sms"))
    activity = dataset.activity.copy()
    activity[:, 1, 0, 0] = np.nan
    activity[:, :, 1, 1] = np.nan
    frame = Forecaster.pretrained(horizon=2).predict(dataset.with_(activity=activity), levels=(80,))
    cells = dataset.unique_ids()
    unknown = (frame.unique_id == cells[3]) | ((frame.unique_id == cells[0]) & (frame.service == "sms"))
    assert np.isnan(values(frame[unknown])).all()
    assert np.isfinite(values(frame[~unknown])).all()


def test_a_constant_series_stays_about_the_same():
    dataset = series(14 * 24)
    constant = dataset.with_(activity=np.full_like(dataset.activity, 7.0))
    frame = Forecaster.pretrained(horizon=6).predict(constant, levels=(80,))
    np.testing.assert_allclose(frame.y_hat, 7.0, rtol=0.15)


def test_the_last_week_is_missing():
    dataset = series(21 * 24)
    activity = dataset.activity.copy()
    activity[-7 * 24 :] = np.nan
    frame = Forecaster.pretrained(horizon=6).predict(dataset.with_(activity=activity), levels=(80,))
    assert np.isfinite(values(frame)).all()
    assert 50 < frame.y_hat.mean() < 200


@pytest.mark.parametrize("value", [0.0, 1e7, np.nan])
def test_one_outage_or_burst_does_not_wreck_the_forecast(value):
    dataset = series(14 * 24)
    activity = dataset.activity.copy()
    activity[-30, 0, 0, 0] = value
    one, other = (Forecaster.pretrained(horizon=6).predict(d) for d in (dataset, dataset.with_(activity=activity)))
    np.testing.assert_allclose(other.y_hat, one.y_hat, rtol=0.5)


def test_infinite_and_negative_values():
    dataset = series(72)
    activity = dataset.activity.copy()
    for wrong, message in ((np.inf, "is infinite; use NaN"), (-1.0, 'cannot be negative; .* unit="z-score"')):
        activity[3] = wrong
        with pytest.raises(DataError, match=message):
            TrafficDataset.from_arrays(activity, dataset.time, services=["internet"])


def test_z_scores():
    rng = np.random.default_rng(0)
    activity = np.sin(np.arange(240) / 24 * 2 * np.pi)[:, None, None, None] + rng.normal(0, 0.3, (240, 1, 2, 2))
    dataset = TrafficDataset.from_arrays(activity, np.arange(240) * 3600, services=["internet"], unit="z-score")
    frame = Forecaster.pretrained(horizon=24).predict(dataset, levels=(80,))
    assert np.isfinite(values(frame)).all()
    assert frame.y_hat.min() < 0 < frame.y_hat.max()


@pytest.mark.parametrize(
    ("data", "unknown"),
    [
        (lambda: series(9 * 24, services=("sms", "video")), ["video: forecast as an unknown service"]),
        (lambda: series(5 * 144, step=10), []),
        (lambda: series(30, step=1440), []),
        (lambda: series(9 * 24, side=(1, 3), geometry="points"), []),
        (lambda: series(9 * 24, side=(1, 1)), []),
    ],
)
def test_any_series_is_evaluated_beside_the_baselines(data, unknown):
    dataset = data()
    split = chronological_split(dataset.num_steps, dataset.steps_per_day)
    report = Forecaster.pretrained(horizon=2).evaluate(dataset, split, stride=dataset.steps_per_day // 2 or 1)
    names = [row.name for row in report.rows]
    assert names[0] == "Sim-MSTNet"
    assert {"persistence", "hour-of-week-mean"} <= set(names) <= {"Sim-MSTNet", *BASELINES}
    assert all(np.isfinite(row.mae).all() for row in report.rows)
    for words in unknown:
        assert any(words in note for note in report.notes)


def test_a_baseline_that_cannot_be_fitted_is_left_out_with_a_note():
    dataset = series(9)
    report = Forecaster.pretrained(horizon=2).evaluate(dataset, Split(range(3), range(3, 5), range(5, 9)))
    assert {"Sim-MSTNet", "persistence"} <= {row.name for row in report.rows}
    assert any(note.startswith("seasonal-naive-day is left out") for note in report.notes)
    assert np.isfinite(report.row("Sim-MSTNet").mae).all()


def test_it_needs_traffic_and_is_not_saved(tmp_path):
    model = Forecaster.pretrained(horizon=2)
    with pytest.raises(DataError, match="has no series of its own; give it the traffic to forecast"):
        model.predict()
    with pytest.raises(DataError):
        model.cross_validation()
    with pytest.raises(ConfigError, match="the shipped weights need no saving"):
        model.save(tmp_path)
    with pytest.raises(ConfigError, match="horizon is 0"):
        Forecaster.pretrained(horizon=0)
    with pytest.raises(ConfigError, match="level is 0"):
        model.predict(series(48), levels=[0])
