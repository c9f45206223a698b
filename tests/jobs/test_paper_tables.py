"""The paper's tables in one call: finished cells are kept, and anything else in their places is replaced."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import io
import json
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from evaluation_city import city

from simmst.errors import ConfigError, DataError
from simmst.evaluation.tables import Cell, Line, comma_separated, print_table
from simmst.evaluation.tables.figure import best_and_rival
from simmst.jobs import tables
from simmst.jobs.tables import compute, make, plan, tuning
from simmst.jobs.tables.compute import known_slots, merged
from simmst.jobs.tables.systems import QUICK, TABLES

for package in ("pandas", "matplotlib", "rich", "safetensors", "scipy"):
    pytest.importorskip(package)

NAIVE = ("persistence", "seasonal-naive-day")


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    training = {"epochs": 1, "samples_per_epoch": 48, "batch_size": 24, "validation_samples": 48, "adapt_epochs": 1}
    monkeypatch.setattr(make, "QUICK", dataclasses.replace(QUICK, training=training, cities=1))


@pytest.fixture
def data():
    return city(9, name="town")


def made(data, out, *, number=2, systems=NAIVE, **options):
    options = {"horizons": [2], "seeds": 2, "quick": True, "jobs": 1, **options}
    return tables.make_table(number, data, out, systems=systems, **options)


def cells(out):
    return sorted((out / "cells").rglob("*.json"))


@pytest.mark.parametrize("width", [45, 60, 140])
def test_a_table_fits_a_terminal(data, tmp_path, width):
    stream = io.StringIO()
    print_table(made(data, tmp_path).table, importlib.import_module("rich.console").Console(file=stream, width=width))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert ("no room here for seeds" in text) == (width < 140)
    assert text.count("+0.000") == 2, "the skill of the best naive forecast of each service"


def test_a_table_is_made_kept_and_written(data, tmp_path):
    systems = [*NAIVE, "dlinear", "shipped"]
    first = made(data, tmp_path, systems=systems, figure=True)
    # Two seeds for random methods, one for the others.
    assert (first.trained, len(cells(tmp_path))) == (5, 5)
    assert [path.suffix for path in first.files] == [".md", ".csv", ".tex", ".png"]
    before = {path: path.stat().st_mtime_ns for path in cells(tmp_path)}
    again = made(data, tmp_path, systems=systems)
    assert again.trained == 0
    assert not again.warnings
    assert {path: path.stat().st_mtime_ns for path in cells(tmp_path)} == before
    assert comma_separated(again.table) == comma_separated(first.table)
    rows = list(csv.DictReader((tmp_path / "table-2-town-hourly-quick.csv").read_text().splitlines()))
    assert len(rows) == 2 * len(systems)
    assert {row["service"] for row in rows} == {"call", "sms"}
    of_dlinear = next(row for row in rows if row["system"] == "DLinear")
    assert of_dlinear["seeds"] == "2"
    assert float(of_dlinear["mae_std"]) > 0
    text = (tmp_path / "table-2-town-hourly-quick.md").read_text()
    assert "QUICK" in text
    assert "test 3 and validation 3 days instead of 7 and 7" in text
    assert "SURROGATE" not in text


def test_the_table_of_what_is_finished_computes_nothing(data, tmp_path):
    with pytest.raises(DataError, match="no cell of this table is finished"):
        made(data, tmp_path, only_finished=True)
    made(data, tmp_path, systems=["persistence", "dlinear"], seeds=1)
    found = made(data, tmp_path, systems=[*NAIVE, "dlinear"], seeds=2, only_finished=True)
    assert (found.trained, len(cells(tmp_path))) == (0, 2)
    assert [line.entry.name for line in found.table.sections[0].lines] == ["persistence", "dlinear"]
    assert "2 of 4 cells are finished" in " ".join(found.table.caption)


def test_numbers_are_those_of_the_forecasts(data, tmp_path):
    made(data, tmp_path, systems=["persistence"])
    cell = Cell.load(cells(tmp_path)[0])
    split = known_slots(data, plan_protocol(), None).split
    series = data.series()  # (T, K, C)
    origins = np.arange(split.test.start, split.test.stop - 1)
    error = np.abs(series[origins + 1] - series[origins - 1])
    assert cell.mae == pytest.approx(error.mean(axis=(0, 2)), rel=1e-4)
    assert np.array(cell.errors) == pytest.approx(error.mean(axis=2), rel=1e-4)
    assert cell.points == (error.shape[0] * error.shape[2],) * 2


def plan_protocol():
    from simmst.evaluation import protocol

    return protocol("hourly")


def test_a_cell_of_other_data_under_the_same_name_is_not_taken(data, tmp_path):
    made(data, tmp_path)
    activity = data.activity.copy()
    activity[-1] += 1.0
    other = data.with_(activity=activity)
    # Put the first series' file in the place of the second's; the content names its data.
    theirs = plan.tasks([TABLES[2][0]], other, plan_protocol(), make.QUICK, seeds=1, horizons=[2])[0]
    mine = next(path for path in cells(tmp_path) if path.name.startswith("persistence"))
    planted = tmp_path / "cells" / theirs.file
    assert planted != mine
    planted.write_bytes(mine.read_bytes())
    found = made(other, tmp_path)
    assert found.trained == 2
    assert len(found.warnings) == 1
    assert "has other data or settings than its name says; it is computed again" in found.warnings[0]
    assert Cell.load(planted).data["digest"] == plan.describe(other)["digest"] != Cell.load(mine).data["digest"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"format": 1}', b'{"format": 99}'])
def test_a_broken_cell_is_told_in_a_line_and_made_again(data, tmp_path, content):
    made(data, tmp_path)
    whole = cells(tmp_path)[0].read_bytes()
    cells(tmp_path)[0].write_bytes(content)
    found = made(data, tmp_path)
    assert (found.trained, len(found.warnings)) == (1, 1)
    assert str(cells(tmp_path)[0]) in found.warnings[0]
    assert "\n" not in found.warnings[0]
    assert json.loads(cells(tmp_path)[0].read_bytes())["mae"] == json.loads(whole)["mae"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("mae", ["low"]), ("mae", [1.0]), ("errors", [[1.0]]), ("seed", True), ("left_out", 3), ("extra", 1)],
)
def test_a_cell_with_a_wrong_field_is_made_again(data, tmp_path, field, value):
    made(data, tmp_path)
    path = cells(tmp_path)[0]
    path.write_text(json.dumps({**json.loads(path.read_bytes()), field: value}))
    found = made(data, tmp_path)
    assert (found.trained, len(found.warnings)) == (1, 1)


def test_cells_of_other_code_are_made_again_unless_asked_for(data, tmp_path, monkeypatch):
    made(data, tmp_path)
    monkeypatch.setattr(make, "code_digest", lambda: "other")
    assert made(data, tmp_path, any_code=True).trained == 0
    found = made(data, tmp_path)
    assert found.trained == 2
    assert found.warnings == ("2 finished cells are from other code and computed again; --any_code keeps them",)


def test_other_settings_are_other_cells(data, tmp_path):
    made(data, tmp_path, systems=["dlinear"], seeds=1)
    assert made(data, tmp_path, systems=["dlinear"], seeds=1, horizons=[1, 2]).trained == 1
    assert made(data, tmp_path, systems=["dlinear"], seeds=2).trained == 1


def test_an_interrupted_cell_resumes_from_its_checkpoint(data, tmp_path, monkeypatch):
    def cut_off(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compute, "scores", cut_off)
        with pytest.raises(KeyboardInterrupt):
            made(data, tmp_path, systems=["dlinear"], seeds=1)
    assert not cells(tmp_path)
    (run,) = (tmp_path / "running").iterdir()
    epochs = (run / "metrics.jsonl").read_text()
    assert epochs
    with monkeypatch.context() as patch:
        patch.setattr(make.shutil, "rmtree", lambda *_, **__: None)
        made(data, tmp_path, systems=["dlinear"], seeds=1)
    assert (run / "metrics.jsonl").read_text() == epochs  # no epoch was trained again
    made(data, tmp_path / "anew", systems=["dlinear"], seeds=1)
    assert not list((tmp_path / "anew" / "running").iterdir())
    assert Cell.load(cells(tmp_path / "anew")[0]).errors == Cell.load(cells(tmp_path)[0]).errors


def test_what_cannot_be_fitted_is_left_out_with_its_reason(data, tmp_path):
    found = made(data, tmp_path, systems=[*NAIVE, "dlinear"], protocol="lowdata", days=[1, 2], horizons=[12])
    shown = {(section.days, line.entry.name) for section in found.table.sections for line in section.lines}
    assert {(1, "persistence"), (2, "persistence"), (2, "dlinear")} <= shown
    assert (1, "dlinear") not in shown
    assert any(line.startswith("left out: DLinear (h = 12, 1 d): ") for line in found.table.caption)


def test_a_naive_forecast_that_looks_further_back_than_the_series_is_left_out(data, tmp_path):
    found = made(data, tmp_path, systems=[*NAIVE, "seasonal-naive-week"])
    assert {line.entry.name for line in found.table.sections[0].lines} == set(NAIVE)
    assert (
        "left out: seasonal-naive-week (h = 2): it looks 7 days back, but fewer precede the test" in found.table.caption
    )


def test_with_few_days_known_nothing_before_them_counts(data):
    known = known_slots(data, plan_protocol(), 2)
    assert known.dataset.num_steps == (2 + 3) * 24
    assert known.split.test.start == known.past.num_steps == 48
    with pytest.raises(DataError, match="6 days precede the test, fewer than the 7 to be known"):
        known_slots(data, plan_protocol(), 7)


def test_published_forecasts_stand_beside_and_the_test_is_all_but_the_first_day(real_file, tmp_path):
    path = real_file("milan_88_quarters_internet_10min_zscored.npz")
    systems = ["persistence", "fedgcc", "stgcn"]
    found = tables.make_table(1, path, tmp_path, protocol="fedgcc", systems=systems, seeds=1, jobs=1, quick=True)
    lines = {line.entry.name: line.values["mae"] for line in found.table.sections[0].lines}
    with np.load(path) as file:
        truth, published = file["internet_z"], file["published_fedgcc_prediction_z"]
    assert lines["fedgcc"] == pytest.approx(np.abs(published - truth)[144:].mean(), rel=1e-4)
    assert lines["persistence"] == pytest.approx(np.abs(truth[144:] - truth[143:-1]).mean(), rel=1e-4)
    assert any("tested on all but the first 1 day" in line for line in found.table.caption)
    # STGCN takes longer windows than this protocol has; the table says so.
    assert "stgcn" not in lines
    assert any(line.startswith("left out: STGCN (h = 1): ") for line in found.table.caption)


def test_a_series_without_published_forecasts_has_no_such_row(data, tmp_path):
    found = made(data.select_services(["sms"]), tmp_path, number=1, systems=["persistence", "fedgcc"])
    assert [line.entry.name for line in found.table.sections[0].lines] == ["persistence"]


def test_the_work_of_a_process_travels(data):
    for task in plan.tasks(TABLES[2], data, plan_protocol(), QUICK, seeds=1, horizons=[2]):
        assert pickle.loads(pickle.dumps(task)).file == task.file


def test_a_surrogate_says_so_everywhere(data, tmp_path):
    found = made(data.with_(surrogate=True), tmp_path, figure=True)
    assert found.table.title.startswith("SURROGATE")
    for path in found.files[:3]:
        assert "SURROGATE" in path.read_text() or path.suffix == ".csv"
    assert next(csv.DictReader(found.files[1].read_text().splitlines()))["surrogate"] == "True"
    assert "SURROGATE" in found.table.heading(found.table.sections[0])


def test_tuning_gives_all_the_same_budget_and_sees_no_test_slot(data, tmp_path):
    first = made(data, tmp_path / "a", systems=["dlinear"], budget=2, seeds=1)
    cell = Cell.load(cells(tmp_path / "a")[0])
    assert cell.tuning["budget"] == len(cell.tuning["trials"]) == 2
    scores = [trial["score"] for trial in cell.tuning["trials"]]
    chosen = cell.tuning["trials"][int(np.argmin(scores))]["changes"]
    assert cell.tuning["chosen"] == chosen
    assert merged(cell.settings, chosen) == dict(cell.settings)
    record = next((tmp_path / "a" / "tuning").rglob("*.json"))
    assert json.loads(record.read_bytes())["trials"] == list(cell.tuning["trials"])
    # With other test slots, the choice and its scores are the same.
    activity = data.activity.copy()
    activity[-3 * 24 :] *= 4
    made(data.with_(activity=activity), tmp_path / "b", systems=["dlinear"], budget=2, seeds=1)
    assert Cell.load(cells(tmp_path / "b")[0]).tuning["trials"] == cell.tuning["trials"]
    # An existing record is not made again.
    kept = record.stat().st_mtime_ns
    made(data, tmp_path / "a", systems=["dlinear"], budget=2, seeds=2)
    assert record.stat().st_mtime_ns == kept
    assert any("the best of 2 configurations" in line for line in first.table.caption)


def test_the_figure_draws_ours_against_the_best_of_others():
    labels = {system.name: system.entry for system in TABLES[1]}
    errors = {"fit": 1.0, "shipped": 1.1, "lstm": 1.3, "ridge": 1.2}
    lines = [summary_line(labels[name], mae) for name, mae in errors.items()]
    assert [line.entry.name for line in best_and_rival(lines)] == ["fit", "ridge"]
    assert [line.entry.name for line in best_and_rival(lines[2:])] == ["ridge", "lstm"]


def summary_line(entry, mae):
    return Line(entry, 1, {"mae": mae}, 0.0, 1.0, False, {})


def test_every_system_has_settings_that_fit_and_a_space():
    for systems in TABLES.values():
        assert len({system.name for system in systems}) == len(systems)
        for system in systems:
            settings = plan.settings(system, plan_protocol(), QUICK, 6, 0)
            config = make_config(settings)
            assert config.horizon == 6
            if system.random:
                for changes in tuning.configurations(system, 5):
                    make_config(merged(settings, changes))


def make_config(settings):
    from simmst.forecaster import ForecasterConfig

    return ForecasterConfig.from_dict(settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"number": 4}, "table is 4; the paper has tables 1, 2, 3"),
        ({"systems": ["dcrn"]}, "table 2 has no system 'dcrn'"),
        ({"seeds": 0}, "seeds is 0; it must be at least 1"),
        ({"jobs": 0}, "jobs is 0; it must be at least 1"),
        ({"budget": 0}, "tune is 0"),
        ({"days": [1]}, "protocol 'hourly' uses all days"),
        ({"protocol": "daily"}, "no protocol 'daily'"),
        ({"protocol": "tenmin"}, "cannot be summed to"),
    ],
)
def test_what_cannot_work_is_refused_at_once(data, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        made(data, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_table_of_several_services_refuses_one(data, tmp_path):
    with pytest.raises(DataError, match="table 2 needs several services, town has only sms"):
        made(data.select_services(["sms"]), tmp_path)


WATCHED = """
import collections, json, sys
opened = collections.Counter()
sys.addaudithook(lambda event, given: event == "open" and opened.update([str(given[0])]))
from simmst.commands.main import main
status = main(sys.argv[1:])
sys.stderr.write(json.dumps({"status": status, "opened": opened, "modules": list(sys.modules)}))
"""


def test_a_finished_table_needs_neither_forecasts_nor_tests_nor_their_libraries(tmp_path):
    """What a table costs that is only shown again is bounded by what it reads and imports, not by a clock."""
    pytest.importorskip("jsonargparse")
    file, out = city(9, name="town").save(tmp_path / "town.npz"), tmp_path / "out"
    systems = ["persistence", "ridge-lags", "ridge"]
    first = tables.make_table(2, file, out, horizons=[2], systems=systems, seeds=1, jobs=1)
    p_values = [line.p_value for section in first.table.sections for line in section.lines]
    assert sum(0 < value <= 1 for value in p_values) == 4  # two rows of two services, beside the best
    words = ["evaluate", "--table", "2", "--data", str(file), "--out", str(out), "--horizons", "2", "--seeds", "1"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", WATCHED, *words, "--quiet", "--systems", *systems],
        **{"capture_output": True, "text": True, "check": True},
    )
    found = json.loads(done.stderr)
    assert found["status"] == 0
    assert not {name.split(".")[0] for name in found["modules"]} & {"scipy", "sklearn", "matplotlib"}
    opened = found["opened"]
    # The series, and whether forecasts of others lie beside it: each looked at, then read.
    assert opened[str(file)] <= 4
    assert [times for name, times in opened.items() if "/cells/" in name] == [1, 1, 1]
    assert not [name for name in opened if "/series/" in name or name.endswith("weights.safetensors")]
