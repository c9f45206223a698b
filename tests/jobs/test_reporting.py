"""`simmst report`: the page of a run, and the message if there is none."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

from simmst import Forecaster, jobs
from simmst.commands.main import main
from simmst.evaluation import TestedSlots
from simmst.forecaster.config import ForecasterConfig
from simmst.simulation import surrogate_city
from simmst.training import TrainingConfig

for package in ("pandas", "matplotlib", "rich", "safetensors", "jsonargparse", "plotly", "jinja2"):
    pytest.importorskip(package)

CONFIG = ForecasterConfig(
    horizon=3,
    neighbourhood=3,
    start="scratch",
    solver="real-only",
    network={"width": 8, "encoder_layers": 1, "feedforward": 8},
    training=TrainingConfig(epochs=1, samples_per_epoch=24, batch_size=24, validation_samples=24, device="cpu"),
)


@pytest.fixture(scope="module")
def city():
    return surrogate_city(0, height=3, width=3, days=9, services=("call", "internet"))


@pytest.fixture(scope="module")
def file(city, tmp_path_factory):
    return city.save(tmp_path_factory.mktemp("data") / "city.npz")


@pytest.fixture(scope="module")
def trained(file, tmp_path_factory):
    """A finished run, which tests must not change."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, jobs.train(file, folder, CONFIG, simulated=0)


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "run")


def data_of(path):
    found = re.search(r'<script id="page-data"[^>]*>(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    return json.loads(found[1])


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main(["report", *map(str, arguments)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(r"simmst: [^\n]+\n", shown.err), shown.err
    return shown.err


def test_a_run_keeps_one_forecast_a_tested_slot(city, trained):
    folder, outcome = trained
    slots, forecasts = TestedSlots.read(folder), outcome.report.forecasts
    assert slots.name == "Sim-MSTNet"
    assert slots.ahead.tolist() == [1, 2, 3] * 24
    np.testing.assert_array_equal(slots.dataset.activity, city.activity[-72:])
    for slot in (0, 4, 71):
        origin, step = slot // 3 * 3, slot % 3
        number = forecasts.origins.tolist().index(city.num_steps - 72 + origin)
        np.testing.assert_array_equal(slots.forecast[slot].T, forecasts.by_name["Sim-MSTNet"][number, :, step])
        for bound, kept in zip(slots.interval, forecasts.intervals["Sim-MSTNet"], strict=True):
            np.testing.assert_array_equal(bound[slot].T, kept[number, :, step])
    low, high = slots.interval
    assert (low <= slots.forecast).all()
    assert (slots.forecast <= high).all()


def test_the_page_of_a_run(run, trained, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["report", str(run)]) == 0
    page = run / "report.html"
    assert capsys.readouterr().out == f"written: {page} ({page.stat().st_size / 1e6:.1f} MB)\n"
    text, data = page.read_text(encoding="utf-8"), data_of(page)
    assert "Sim-MSTNet on SURROGATE surrogate-0" in text
    assert "The run made these forecasts when it was tested" in text
    assert (len(data["labels"]), len(data["names"]), data["services"]) == (72, 9, ["call", "internet"])
    assert [figure["id"] for figure in data["figures"]] == ["errors-0", "errors-1", "training-0"]
    own = next(trace for trace in data["figures"][0]["data"] if trace["meta"] == "Sim-MSTNet")
    assert own["y"] == pytest.approx(trained[1].report.row("Sim-MSTNet").mae_by_step[:, 0].tolist())
    config = json.loads((run / "config.json").read_text())
    environment = json.loads((run / "environment.json").read_text())
    for told in (
        config["digest"],
        "forecaster.training.epochs",
        environment["packages"]["torch"],
        "city.npz",
        "commit",
    ):
        assert told in text
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path != page}
    assert after == before


def test_the_naive_baselines_have_pages_too(file, tmp_path):
    config = ForecasterConfig(horizon=3, model="seasonal-naive-day")
    jobs.train(file, tmp_path / "run", config)
    slots = TestedSlots.read(tmp_path / "run")
    assert slots.name == "seasonal-naive-day"
    assert slots.interval is not None, "the intervals come from the errors of the validation days"
    text = jobs.report(tmp_path / "run").read_text(encoding="utf-8")
    assert "seasonal-naive-day on SURROGATE" in text
    assert ">Training<" not in text


def test_a_saved_forecaster_is_given_its_data(city, file, tmp_path, capsys):
    saved = tmp_path / "saved"
    Forecaster(config=CONFIG).fit(city.slice_steps(0, city.num_steps - 24), None).save(saved)
    assert "saved keeps no forecasts of tested slots" in refused(capsys, saved)
    page = jobs.report(saved, data=file, out=tmp_path / "new" / "page.html")
    assert "for this page, of slots of city.npz that it had not seen" in page.read_text(encoding="utf-8")
    assert len(data_of(page)["labels"]) == 24
    assert sorted(path.name for path in saved.iterdir()) == ["forecaster.safetensors", "recent.npz"]


def test_the_weights_of_simulated_worlds(run):
    weights = {
        "num_samples": 8,
        "effective_samples": 7.0,
        "effective_cities": 1.9,
        "cities": [{"name": "world-1", "weight": 0.75}],
        "parameters": [],
    }
    (run / "weights.json").write_text(json.dumps(weights))
    figures = {figure["id"]: figure for figure in data_of(jobs.report(run))["figures"]}
    assert figures["weights-0"]["data"][0]["y"] == [0.75]


def test_folders_that_hold_no_run(tmp_path, run, capsys):
    assert "there is no run folder" in refused(capsys, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "empty holds no run" in refused(capsys, tmp_path / "empty")
    for name in ("summary.json", "forecasts.npz", "tested.npz", "forecaster.safetensors"):
        (run / name).unlink()
    assert "is not finished; run its command again" in refused(capsys, run)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("forecasts.npz", b"", r"forecasts\.npz is not a readable"),
        ("forecasts.npz", None, r"forecasts\.npz is not a readable"),
        ("tested.npz", None, r"tested\.npz is not a readable"),
        ("report.json", b"{", r"report\.json is damaged .*run the run's command again"),
        ("report.json", b"[]", r"report\.json is damaged"),
        ("report.json", b'{"services": ["call"]}', r"report\.json is damaged \('dataset' is missing"),
        ("weights.json", b'{"cities": 1}', r"weights\.json is damaged"),
        ("config.json", b"\xff", r"config\.json is damaged"),
        ("environment.json", b"3", r"environment\.json is damaged"),
        ("metrics.jsonl", b"no\n{}\n", r"metrics\.jsonl, line 1: not a JSON record"),
        ("metrics.jsonl", b"3\n", r"metrics\.jsonl, line 1: not a JSON record: '3'"),
    ],
)
def test_damaged_files_are_named(run, capsys, name, content, message):
    path = run / name
    path.write_bytes(path.read_bytes()[:999] if content is None else content)
    assert re.search(message, refused(capsys, run))
    assert not (run / "report.html").exists()


def test_forecasts_of_other_slots(run, city, capsys):
    city.slice_steps(0, 72).save(run / "tested.npz")
    assert "tested.npz is not the file that was saved with forecasts.npz" in refused(capsys, run)


def test_settings_that_do_not_go(run, capsys, tmp_path):
    assert "days is 0" in refused(capsys, run, "--days", "0")
    assert "does not end in .html" in refused(capsys, run, "--out", tmp_path / "page.pdf")
    assert "does not exist" in refused(capsys, run, "--data", tmp_path / "none.npz")


def test_open(run, capsys, monkeypatch):
    shown = []
    monkeypatch.setattr("webbrowser.open", lambda url: shown.append(url) or False)
    assert main(["report", str(run), "--open"]) == 0
    assert shown == [(run / "report.html").as_uri()]
    assert "no browser was found" in capsys.readouterr().err
