from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from evaluation_city import city

from simmst.baselines import BASELINES
from simmst.data import WindowSpec, chronological_split
from simmst.errors import DataError
from simmst.evaluation import evaluate

rich_console = pytest.importorskip("rich.console")

SPEC = WindowSpec.recent(2, 6, steps_per_day=24)


def make_report(**attributes):
    dataset = city(**attributes)
    split = chronological_split(dataset.num_steps, 24)
    daily = BASELINES["seasonal-naive-day"]().fit(dataset, SPEC, split.train)
    return evaluate({"daily [bold]": daily}, dataset, SPEC, split, notes=["for the tests"])


def rendered(report, width=140):
    stream = io.StringIO()
    report.print(rich_console.Console(file=stream, width=width))
    return stream.getvalue()


def test_the_table_shows_what_a_reader_needs():
    report = make_report(name="toytown")
    text = rendered(report)
    row = report.row("daily [bold]")
    for part in (
        "toytown",
        "2 steps of 60 min ahead",
        "CDR units",
        "daily [bold]",
        "persistence",
        "call",
        f"mean {report.scale[0]:.2f}",
        "sms",
        "MAE",
        "RMSE",
        f"{row.mae[0]:.2f}",
        f"{row.skill[1]:+.3f}",
        "+0.000",
        f"{report.num_points:,} target points",
        "instead of 7 and 7",
        "for the tests",
    ):
        assert part in text
    assert "SURROGATE" not in text


def test_a_narrow_terminal_gets_a_table_for_each_service_and_every_number():
    report = make_report()
    text = rendered(report, width=50)
    assert len(re.findall("^ *persistence ", text, re.MULTILINE)) == 2
    assert len(re.findall("^ *persistence ", rendered(report), re.MULTILINE)) == 1
    assert "…" not in text
    for row in report.rows:
        assert all(f"{value:.2f}" in text for value in (*row.mae, *row.rmse))


def test_the_table_object_carries_title_and_notes():
    report = make_report()
    table = report.to_table(["sms"])
    assert str(table.title) == report.title
    assert "for the tests" in str(table.caption)
    assert len(table.columns) == 4
    with pytest.raises(DataError, match="no service 'net'; it has: call, sms"):
        report.to_table(["net"])


def test_a_surrogate_is_labelled_everywhere():
    report = make_report(name="toytown", surrogate=True)
    assert rendered(report).count("SURROGATE") == 2
    assert report.to_dict()["surrogate"] is True


def test_json_holds_everything_and_is_whole(tmp_path):
    report = make_report()
    path = report.to_json(tmp_path / "deep" / "report.json")
    values = json.loads(path.read_text())
    assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]
    model = values["models"][0]
    assert model["mae"]["call"] == pytest.approx(report.rows[0].mae[0])
    assert len(model["rmse_by_step"]["sms"]) == 2
    assert model["overall"]["skill"] == pytest.approx(report.rows[0].overall_skill)
    assert values["mean_activity"]["sms"] == pytest.approx(report.scale[1])
    assert "for the tests" in values["notes"]


def test_a_service_nobody_observed_is_a_dash_and_null():
    dataset = city()
    split = chronological_split(dataset.num_steps, 24)
    activity = dataset.activity.copy()
    activity[split.test.start :, 1] = np.nan
    report = evaluate({}, dataset.with_(activity=activity), SPEC, split)
    assert "-" in rendered(report).split("persistence")[1]
    assert report.to_dict()["models"][0]["mae"]["sms"] is None


def test_the_frame_is_long():
    pytest.importorskip("pandas")
    report = make_report()
    frame = report.to_frame()
    assert list(frame.columns) == ["model", "service", "step", "mae", "rmse", "mase", "skill"]
    assert len(frame) == 2 * 2 * 3
    first = frame[(frame.model == "persistence") & (frame.service == "sms") & (frame.step == 2)]
    assert first.mae.item() == pytest.approx(report.row("persistence").mae_by_step[1, 1])


def test_an_unknown_row_lists_those_there_are():
    with pytest.raises(DataError, match=r"no row 'x'; it has: daily \[bold\], persistence"):
        make_report().row("x")


class Spread:
    """Forecasts the same slot of the day before, with quantiles around it."""

    has_quantiles = True

    def __init__(self, dataset, split):
        self.naive = BASELINES["seasonal-naive-day"]().fit(dataset, SPEC, split.train)

    def predict(self, dataset, origins):
        return self.naive.predict(dataset, origins)

    def quantiles(self, dataset, origins, levels):
        width = np.array([level - 0.5 for level in levels], dtype=np.float32)
        return self.predict(dataset, origins)[..., None] + 6 * width


def spread_report():
    dataset = city()
    split = chronological_split(dataset.num_steps, 24)
    week = BASELINES["hour-of-week-mean"]().fit(dataset, SPEC, split.train)
    return evaluate({"spread": Spread(dataset, split), "hour-of-week-mean": week}, dataset, SPEC, split)


def test_quantiles_are_scored_where_there_are_some():
    report = spread_report()
    row = report.row("spread")
    assert ((row.coverage > 0.3) & (row.coverage < 0.9)).all()
    assert (row.wql > 0).all()
    assert np.isnan(report.row("persistence").coverage).all()
    text = rendered(report)
    for part in ("in 80 %", "WQL", f"{100 * row.coverage[0]:.0f} %", f"{row.wql[1]:.3f}"):
        assert part in text
    (line,) = (line for line in text.splitlines() if line.split()[:1] == ["persistence"])
    assert line.split().count("-") == 4
    assert "WQL" not in rendered(make_report())


def test_quantiles_are_in_every_form(tmp_path):
    pytest.importorskip("pandas")
    report = spread_report()
    models = {
        model["name"]: model for model in json.loads(report.to_json(tmp_path / "report.json").read_text())["models"]
    }
    assert models["spread"]["coverage"]["call"] == pytest.approx(report.rows[0].coverage[0])
    assert len(models["spread"]["wql_by_step"]["sms"]) == 2
    assert models["persistence"]["wql"]["sms"] is None
    frame = report.to_frame()
    assert list(frame.columns[-2:]) == ["coverage", "wql"]
    first = frame[(frame.model == "spread") & (frame.service == "sms") & (frame.step == 2)]
    assert first.wql.item() == pytest.approx(report.rows[0].wql_by_step[1, 1])


def test_the_best_naive_forecast_is_named():
    report = spread_report()
    assert set(report.best_naive.values()) == {"hour-of-week-mean"}
    assert report.to_dict()["best_naive"] == report.best_naive
    assert "best naive by MAE: hour-of-week-mean" in rendered(report)
