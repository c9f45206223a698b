from __future__ import annotations

import re

import numpy as np
import pytest
from page_city import EVIL, data_of, dataset, forecast_slots, values_of

from simmst.baselines import BASELINES
from simmst.data import WindowSpec, chronological_split
from simmst.errors import ConfigError
from simmst.evaluation import TestedSlots, evaluate
from simmst.plotting import Page, write_page
from simmst.plotting.packing import packed
from simmst.plotting.page import page_data, page_text, slots_shown
from simmst.training import History

pytest.importorskip("plotly")
pytest.importorskip("jinja2")
pytest.importorskip("pandas")

WEIGHTS = {
    "num_samples": 32,
    "effective_samples": 20.0,
    "effective_cities": 1.8,
    "cities": [{"name": "<em>w</em>", "weight": 0.75}, {"name": "v", "weight": 0.25}],
    "parameters": [{"name": "tilt", "prior_mean": 6.0, "posterior_mean": 7.0, "scale": 0.5, "shift": 2.0}],
}


@pytest.fixture(scope="module")
def report():
    city = dataset(days=9)
    spec, split = WindowSpec.recent(2, 6, steps_per_day=24), chronological_split(city.num_steps, 24)
    daily = BASELINES["seasonal-naive-day"]().fit(city, spec, split.train)
    return evaluate({"a & <u>b</u>": daily}, city, spec, split)


@pytest.fixture(scope="module")
def text(report):
    history = History("<s>real</s>", [{"epoch": 1, "train_loss": 0.5, "validation_loss": 0.7}])
    record = {"Data": {"name": "<i>toytown</i>"}, "Settings": {"seed": "0"}}
    return page_text(Page(forecast_slots(), "A <q>source</q>.", report, [history], WEIGHTS, record))


def test_the_numbers_of_the_page_are_the_forecasts(text):
    slots = forecast_slots()
    for name, wanted in [("truth", slots.dataset.series()), ("forecast", slots.forecast)]:
        found = values_of(text, name)  # (K, C, T)
        wanted = wanted.transpose(1, 2, 0)
        spread = np.nanmax(wanted, axis=-1, keepdims=True)
        assert np.array_equal(np.isnan(found), np.isnan(wanted))
        np.testing.assert_array_less(np.nan_to_num(np.abs(found - wanted) / spread), 1e-4)
    for name, wanted in zip(("low", "high"), slots.interval, strict=True):
        found, wanted = values_of(text, name), wanted.transpose(1, 2, 0)
        assert (np.abs(found - wanted) / np.nanmax(wanted, axis=-1, keepdims=True)).max() < 4e-3


def test_the_slots_are_told_by_the_clock_of_the_place(text):
    data = data_of(text)
    assert data["labels"][0] == "Sun 17 Nov 2013, 00:00"
    assert data["labels"][-1] == "Mon 18 Nov 2013, 23:00"
    assert (data["start"], data["step_minutes"], len(data["labels"])) == ("2013-11-17T00:00:00", 60, 48)
    assert data["ahead"][:7] == ["1 slot", "2 slots", "3 slots", "4 slots", "5 slots", "6 slots", "1 slot"]


def test_the_busiest_cell_comes_first(text):
    shares = np.nansum(forecast_slots().dataset.series(), axis=0)
    assert data_of(text)["cell"] == int((shares / shares.sum(axis=1, keepdims=True)).sum(axis=0).argmax())


def test_nothing_of_the_data_is_markup(text):
    assert EVIL not in text
    assert EVIL in data_of(text)["names"]
    for evil in ("<i>toytown", "<u>b", "<b>sms", "<s>real", "<em>w", "<q>source"):
        assert evil not in text, evil
    # the document has only its own four scripts
    assert len(re.findall(r"<script", text)) == 4


def test_nothing_is_asked_for_outside(text):
    assert not re.findall(r"""(?:src|href|action|url)\s*[=(]\s*["']?\s*(?:https?:)?//""", text)
    assert "default-src 'none'" in text
    assert 'name="viewport" content="width=device-width' in text


def test_tables_curves_weights_and_record(text, report):
    for row in report.rows:
        assert f"{row.mae[0]:,.2f}" in text
    assert text.count("<caption>") == len(report.services) + 1
    assert 'class="own"' in text
    assert "A &lt;q&gt;source" in text
    for heading in ("Errors beside the baselines", "Weights of the simulated cities", "Training", "Record of the run"):
        assert heading in text
    figures = {figure["id"]: figure for figure in data_of(text)["figures"]}
    assert figures.keys() == {"errors-0", "errors-1", "weights-0", "training-0"}
    assert all(f'id="{name}"' in text for name in figures)
    by_name = {trace["name"]: trace["y"] for trace in figures["errors-0"]["data"]}
    assert by_name["a &amp; &lt;u&gt;b&lt;/u&gt;"] == report.row("a & <u>b</u>").mae_by_step[:, 0].tolist()
    assert figures["weights-0"]["data"][0]["y"] == [0.75, 0.25]
    assert [trace["y"] for trace in figures["training-0"]["data"]] == [[0.5], [0.7]]


def test_a_page_of_forecasts_alone():
    text = page_text(Page(forecast_slots()))
    for heading in ("Errors beside", "Which simulated", ">Training<"):
        assert heading not in text
    assert data_of(text)["figures"] == []


@pytest.mark.parametrize(("geometry", "kind"), [("grid", "grid"), ("places", "places"), ("points", "bars")])
def test_places(geometry, kind):
    data, _ = page_data(forecast_slots(geometry))
    assert data["geometry"]["kind"] == kind
    assert len(data["names"]) == (11 if kind == "grid" else 12)


def test_slots_without_a_truth_or_a_forecast():
    slots = forecast_slots()
    nothing = np.full_like(slots.forecast, np.nan)
    empty = slots.dataset.with_(activity=np.full_like(slots.dataset.activity, np.nan))
    text = page_text(Page(TestedSlots(empty, "none", np.zeros(48, dtype=np.int64), nothing)))
    assert np.isnan(values_of(text, "truth")).all()
    assert "low" not in [entry["name"] for entry in data_of(text)["arrays"]]


@pytest.mark.parametrize(("side", "services", "days"), [(20, 3, 5), (100, 3, 1)])
def test_large_cities_are_shown_for_fewer_days(side, services, days):
    class City:
        num_cells, num_services, steps_per_day, num_steps = side * side, services, 24, 120

    class Slots:
        dataset = City

    assert slots_shown(Slots) == 24 * days
    assert slots_shown(Slots, 2) == 48
    assert slots_shown(Slots, 99) == 120


def test_the_size_of_a_page():
    """The library takes 2 MB, and 400,000 values of noise, the default limit, take less than 3 MB."""
    noise = np.random.default_rng(0).integers(0, 2**16, 2 * 400_000).astype(np.uint16)
    bounds = noise.astype(np.uint8)
    _, text = packed({"truth": noise[:400_000], "forecast": noise[400_000:], "low": bounds[:400_000]})
    assert len(text) < 2.8e6
    assert len(page_text(Page(forecast_slots()))) < 2.2e6


def test_fewer_days_say_so(tmp_path):
    text = write_page(tmp_path / "a.html", Page(forecast_slots()), days=1).read_text()
    assert "show the last day; the tables cover all days" in text
    assert len(data_of(text)["labels"]) == 24
    np.testing.assert_allclose(
        values_of(text, "forecast"), forecast_slots().forecast[24:].transpose(1, 2, 0), rtol=1e-3
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


def test_refusals(tmp_path):
    with pytest.raises(ConfigError, match=r"a\.txt does not end in \.html"):
        write_page(tmp_path / "a.txt", Page(forecast_slots()))
    with pytest.raises(ConfigError, match="days is 0"):
        write_page(tmp_path / "a.html", Page(forecast_slots()), days=0)
    with pytest.raises(TypeError, match="'a' is int64"):
        packed({"a": np.arange(3)})
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    import simmst.plotting.page as module

    path = tmp_path / "a.html"
    path.write_text("old")
    monkeypatch.setattr(module, "page_data", lambda slots: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_page(path, Page(forecast_slots()))
    assert path.read_text() == "old"
