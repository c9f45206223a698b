"""The realism report on cities of the prior itself, on altered cities and on bad files, and its outputs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from simmst.commands.main import main
from simmst.errors import ConfigError, DataError
from simmst.realism import compare, compare_files
from simmst.realism.measurements import catalogue, measure
from simmst.realism.report import outside_in_words
from simmst.simulation import DomainPrior, simulate_city

SHAPE = {"height": 8, "width": 8, "days": 3, "missing_share": 0.0, "start": "2013-11-01"}


def city(index=0, seed=77, **fields):
    return simulate_city(DomainPrior.default().sample(seed, index, **{**SHAPE, **fields}))


@pytest.fixture(scope="module")
def report():
    return compare([city(), city(index=1, services=["internet"])], cities=20, seed=1)


def test_a_city_of_the_prior_is_as_usual_as_the_others(report):
    for comparison in report.files:
        assert len(comparison.rows) >= 18
        assert len(comparison.outside) < 0.4 * len(comparison.rows)
        assert comparison.usual[0] <= comparison.usual[1]
        for row in comparison.rows:
            assert row.low <= row.median <= row.high
            assert 0 <= row.percentile <= 100
            assert row.inside == (row.note == "")


def test_the_report_says_why_a_statistic_is_missing(report):
    reasons = report.files[0].reasons
    assert reasons["internet", "autocorrelation at 168 h"] == "the file is shorter than 192 h"
    assert "too small for 12 cells" in reasons["call", "spatial autocorrelation at 12 cells"]
    assert reasons["sms", "autocorrelation at one slot"] == "the slots are whole hours"
    assert ("call", "public holidays over working days") in reasons, "the three days are a holiday and a weekend"
    keys = {statistic.label for statistic in catalogue()}
    named = {label for _, label in reasons} | {row.statistic.label for row in report.files[0].rows}
    assert named == keys, "every statistic has a value or a reason"


def test_altered_traffic_falls_out_of_the_band_for_the_right_reason():
    real = city(days=7, start="2013-11-04", services=["internet"])
    rng = np.random.default_rng(0)
    cells = real.activity.reshape(*real.activity.shape[:2], 64)
    shuffled = real.with_(activity=cells[:, :, rng.permutation(64)].reshape(real.activity.shape))
    noisy = real.with_(activity=(real.activity * rng.lognormal(0, 1.5, real.activity.shape)).astype(np.float32))
    flat = real.with_(activity=np.maximum(real.activity, np.float32(0.9) * real.activity.max(axis=0)))
    report = compare([shuffled, noisy, flat], cities=20, seed=1)
    notes = [{row.statistic.key: row.note for row in comparison.outside} for comparison in report.files]
    assert "shorter distances" in notes[0]["cells_1"]
    assert "rougher" in notes[1]["hours_1"]
    assert "rougher" in notes[1]["roughness"]
    assert "busier" in notes[2]["night"]
    lines = outside_in_words(report)
    assert len(lines) == sum(len(comparison.outside) for comparison in report.files)
    assert "more than chance explains" in report.files[1].verdict


def test_frames_have_space_and_no_days():
    frames = city(height=25, width=25, services=["internet"], step_minutes=10, days=1)
    frames = frames.slice_steps(2, 30)
    measured = measure(frames)
    assert measured.values["internet", "cells_12"] < measured.values["internet", "cells_1"]
    for key in ("hours_1", "hours_24", "slot_1", "night", "upper_99"):
        assert ("internet", key) in measured.reasons
    assert "of the 24 hours" in measured.reasons["internet", "night"]


def test_z_scores_have_only_what_needs_no_level():
    scored = city(services=["internet"]).with_(unit="z-score", geometry="grid")
    scored = scored.with_(
        activity=scored.activity.reshape(72, 1, 1, 64),
        mask=np.ones((1, 64), bool),
        cell_id=np.arange(64).reshape(1, 64),
        geometry="points",
    )
    (comparison,) = compare([scored], cities=20).files
    keys = {row.statistic.key for row in comparison.rows}
    assert keys == {"ks", "wasserstein", "synchrony", "hours_1", "hours_24", "kurtosis"}
    assert comparison.reasons["internet", "log-std of cells"] == "z-scores have no level"


def test_json_and_picture(report, tmp_path):
    paths = report.save(tmp_path / "out")
    assert [path.name for path in paths] == ["realism.json", "realism.png"]
    content = json.loads(paths[0].read_text())
    assert content["cities"] == 20
    assert len(content["files"][0]["statistics"]) == len(report.files[0].rows)
    assert content["files"][0]["not_computable"][0].keys() == {"subject", "statistic", "reason"}
    assert paths[1].read_bytes().startswith(b"\x89PNG")


def test_the_same_report_from_any_number_of_processes(report):
    again = compare([city(), city(index=1, services=["internet"])], cities=20, seed=1, workers=2)
    assert again.to_dict() == report.to_dict()


def test_files_that_cannot_be_compared_are_named(tmp_path):
    good, video = tmp_path / "good.npz", tmp_path / "video.npz"
    city().save(good)
    city().with_(services=("call", "sms", "video")).save(video)
    (tmp_path / "notes.md").write_text("nothing")
    report = compare_files([good, video, tmp_path / "notes.md"], cities=20)
    assert len(report.files) == 1
    assert "'video'" in report.skipped[str(video)]
    assert "not a data file" in report.skipped[str(tmp_path / "notes.md")]
    with pytest.raises(DataError, match=r"there is no file to compare: .*'video'"):
        compare_files([video])


@pytest.mark.parametrize(("cities", "workers"), [(19, 1), (20, 0), (True, 1)])
def test_bad_counts_are_named(cities, workers):
    with pytest.raises(ConfigError, match="must be a whole number of at least"):
        compare([city()], cities=cities, workers=workers)


def test_nothing_to_compare():
    with pytest.raises(DataError, match="nothing to compare"):
        compare([])


def test_on_the_command_line(tmp_path, capsys):
    file, out = tmp_path / "city.npz", tmp_path / "report"
    city(height=4, width=4, services=["sms"]).save(file)
    DomainPrior.default().narrow({"weekend_factor": (0.8, 0.9)}).to_yaml(tmp_path / "prior.yaml")
    arguments = ["simulate", "--compare", str(file), str(tmp_path / "prior.yaml"), "--out", str(out), "--cities", "20"]
    assert main([*arguments, "--prior", str(tmp_path / "prior.yaml"), "--workers", "1", "--seed", "4"]) == 0
    shown = capsys.readouterr()
    assert "autocorrelation at 24 h" in shown.out
    assert "statistics in the band" in shown.out
    assert "not a data file" in shown.out
    assert "simulate" in shown.err, "progress"
    assert json.loads((out / "realism.json").read_text())["seed"] == 4
    assert (out / "realism.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x"], "simulate needs --cities NUMBER, or --compare FILE"),
        (["--out", "x", "--compare", "nowhere.npz"], "there is no file to compare: "),
        (["--out", "x", "--compare", "a.npz", "--city.days", "3"], "--city cannot go with --compare"),
    ],
)
def test_wrong_command_lines(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", *arguments]) == 2
    assert message in capsys.readouterr().err
