from __future__ import annotations

import dataclasses
import json
import time
import warnings

import numpy as np
import pytest

from simmst.baselines import BASELINES
from simmst.commands.main import main
from simmst.errors import ConfigError
from simmst.forecaster import Forecaster
from simmst.jobs import demonstration as demo_module
from simmst.jobs import runs
from simmst.jobs.demonstration import FULL, QUICK, demo
from simmst.jobs.inputs import checked_split
from simmst.simulation import DomainPrior, surrogate_city

for package in ("pandas", "matplotlib", "rich", "safetensors", "jsonargparse"):
    pytest.importorskip(package)

PICTURES = ["error_map.png", "forecast.png", "loss.png", "task_weights.png"]


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def small(monkeypatch):
    """The demo on a smaller city and with less training; its steps are the same."""
    training = dataclasses.replace(
        QUICK.training, epochs=1, samples_per_epoch=48, batch_size=24, adapt_epochs=1, validation_samples=64
    )
    tiny = dataclasses.replace(QUICK, horizon=3, training=training)
    monkeypatch.setattr(demo_module, "QUICK", tiny)

    def city(seed, **settings):
        return surrogate_city(seed, **{**settings, "height": 3, "width": 3, "days": 9})

    monkeypatch.setattr(demo_module, "surrogate_city", city)
    return tiny


@pytest.mark.usefixtures("small")
def test_without_data_a_surrogate_is_forecast(tmp_path):
    outcome = demo(out=tmp_path / "demo", quick=True, seed=2)
    report = outcome.report
    assert report.surrogate
    assert report.title.startswith("SURROGATE surrogate-2")
    assert {row.name for row in report.rows} >= {"Sim-MSTNet", *BASELINES} - {"seasonal-naive-week"}
    assert all(np.isfinite([row.mae, row.rmse, row.skill]).all() for row in report.rows)
    assert sorted(path.name for path in (tmp_path / "demo" / "figures").iterdir()) == PICTURES
    assert all(path.is_file() for path in outcome.files)
    assert [history.stage for history in outcome.forecaster.result.histories] == ["adapt"]
    assert "Sim-MSTNet, no training" in [row.name for row in report.rows]
    assert Forecaster.load(tmp_path / "demo").predict().notna().all(axis=None)


def test_the_surrogate_lies_outside_the_training_prior():
    prior = DomainPrior.default()
    config = DomainPrior.surrogate().sample(0, 0)
    assert prior.log_prob(config) == -np.inf


@pytest.mark.usefixtures("small")
def test_services_and_slots_of_the_default_city(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "draw", lambda *a: [])
    report = demo(out=tmp_path / "demo", quick=True, services=["sms"]).report
    assert report.services == ("sms",)
    assert report.rows[0].name == "Sim-MSTNet"
    with pytest.raises(ConfigError, match="names 'video', which is not a default service"):
        demo(out=tmp_path / "new", quick=True, services=["video"])
    with pytest.raises(ConfigError, match="step_minutes is 45; choose one of 5, 10, 15, 30"):
        demo(out=tmp_path / "new", quick=True, step=45)
    with pytest.raises(ConfigError, match="seed is -1"):
        demo(out=tmp_path / "new", quick=True, seed=-1)
    assert not (tmp_path / "new").exists()


def test_an_interrupted_run_resumes_and_a_finished_one_restarts(small, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "draw", lambda *a: [])
    folder = tmp_path / "demo"
    evaluate = Forecaster.evaluate
    monkeypatch.setattr(Forecaster, "evaluate", lambda *a, **o: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        demo(out=folder, quick=True)
    monkeypatch.setattr(Forecaster, "evaluate", evaluate)
    times = (folder / "times.jsonl").read_text()
    assert len(times.splitlines()) == 1
    first = demo(out=folder, quick=True)
    assert (folder / "times.jsonl").read_text() == times, "no epoch is repeated"
    written = (folder / "times.jsonl").stat().st_mtime_ns
    second = demo(out=folder, quick=True)
    assert (folder / "times.jsonl").stat().st_mtime_ns != written, "a finished demo is shown again"
    assert second.report.to_dict() == first.report.to_dict()
    other = demo(out=folder, quick=True, seed=1)
    assert other.report.dataset == "surrogate-1"
    assert json.loads((folder / "report.json").read_text())["dataset"] == "surrogate-1"


@pytest.mark.usefixtures("small")
def test_other_peoples_folders_are_left_alone(tmp_path):
    for name, content in (("config.json", '{"job": "train"}'), ("notes.txt", "mine")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(ConfigError, match="choose an"):
            demo(out=folder, quick=True)
        assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(name, content)]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["milan_three_services_3cells_hourly", "milan_block5x5_internet_10min"])
def test_on_a_real_file(name, tmp_path, real_file):
    outcome = demo(real_file(f"{name}.npz"), tmp_path / "demo", quick=True)
    report = outcome.report
    assert not report.surrogate
    assert "SURROGATE" not in report.title
    assert report.step_minutes == 60
    assert {row.name for row in report.rows} >= {outcome.forecaster.name, *BASELINES} - {"seasonal-naive-week"}
    assert all(np.isfinite([row.mae, row.rmse, row.skill]).all() for row in report.rows)
    drawn = PICTURES if len(report.services) > 1 else PICTURES[:-1]  # one service has no weights of tasks to draw
    assert sorted(entry.name for entry in (tmp_path / "demo" / "figures").iterdir()) == drawn


@pytest.mark.usefixtures("small")
def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--quick", "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.startswith("SURROGATE surrogate-0")
    for name in ("Sim-MSTNet", *BASELINES, *(f"runs/demo/figures/{name}" for name in PICTURES)):
        assert name in shown.out
    assert "nan" not in shown.out.lower()


def test_the_settings_make_a_plan_of_three_services():
    """The city that the demo simulates is long enough for the training settings."""
    city = surrogate_city(0, height=2, width=2, days=23)
    for config in (FULL, QUICK):
        split = checked_split(city, config, simulated=config.cities)
        assert split.note == ""


@pytest.mark.slow
def test_the_quick_demo_as_it_is(tmp_path, capsys):
    started = time.process_time()
    assert main(["demo", "--quick", "--quiet", "--out", str(tmp_path / "demo")]) == 0
    assert time.process_time() - started < 120
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "SURROGATE" in shown.out
    assert sorted(path.name for path in (tmp_path / "demo" / "figures").iterdir()) == PICTURES
