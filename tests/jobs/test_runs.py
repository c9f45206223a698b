from __future__ import annotations

import dataclasses
import importlib
import io
import json
import warnings

import numpy as np
import pytest
import torch

import simmst.foundation.files
from simmst import Forecaster, TrafficDataset, jobs
from simmst.baselines import BASELINES
from simmst.errors import CheckpointError, ConfigError, DataError
from simmst.forecaster.config import ForecasterConfig
from simmst.jobs import pictures, runs
from simmst.jobs.inputs import checked_split
from simmst.simulation import surrogate_city
from simmst.training import RunFolder, TrainingConfig, load_checkpoint

pd = pytest.importorskip("pandas")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("safetensors")

CONFIG = ForecasterConfig(
    horizon=3,
    neighbourhood=3,
    start="scratch",
    cities=1,
    network={"width": 8, "encoder_layers": 1, "feedforward": 8},
    training=TrainingConfig(epochs=2, samples_per_epoch=48, batch_size=24, validation_samples=48, device="cpu"),
)
PICTURES = ["error_map.png", "forecast.png", "loss.png", "task_weights.png"]


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def no_pictures(monkeypatch):
    """Skip the pictures, which take longer than the training here."""

    def draw(forecaster, dataset, report, run):
        return [simmst.foundation.files.write_json(run.figures / "picture.json", 1)]

    monkeypatch.setattr(runs, "draw", draw)


@pytest.fixture(scope="module")
def city():
    return surrogate_city(0, height=3, width=3, days=9)


@pytest.fixture(scope="module")
def file(city, tmp_path_factory):
    return city.save(tmp_path_factory.mktemp("data") / "city.npz")


@pytest.fixture(scope="module")
def trained(file, tmp_path_factory):
    """A finished run, which tests must not change."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, jobs.train(file, folder, CONFIG)


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def same_numbers(one, other):
    """Assert that two runs have the same result, to the last bit."""
    for name in ("report.json", "metrics.jsonl", "summary.json", "recent.npz"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    first, second = (load_checkpoint(folder / "forecaster.safetensors") for folder in (one, other))
    assert first.state == second.state
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), name


def test_train_leaves_a_whole_run_folder(trained):
    folder, outcome = trained
    assert contents(folder) == [
        "checkpoints/finetune.safetensors",
        "checkpoints/pretrain.safetensors",
        "config.json",
        "environment.json",
        *(f"figures/{name}" for name in PICTURES),
        "forecaster.safetensors",
        "forecasts.npz",
        "metrics.jsonl",
        "recent.npz",
        "report.json",
        "summary.json",
        "tested.npz",
        "times.jsonl",
    ]
    assert all(path.is_file() for path in outcome.files)
    assert {path.name for path in outcome.files} == {"forecaster.safetensors", "report.json", *PICTURES}


def test_the_report_is_on_the_last_days_beside_the_baselines(city, trained):
    folder, outcome = trained
    report = json.loads((folder / "report.json").read_text())
    assert {model["name"] for model in report["models"]} == {"Sim-MSTNet", *BASELINES} - {"seasonal-naive-week"}
    assert "NaN" not in (folder / "report.json").read_text()
    assert report["surrogate"] is True
    origins = outcome.report.forecasts.origins
    assert (origins[0], origins[-1]) == (city.num_steps - 3 * 24, city.num_steps - 3)
    assert outcome.forecaster.dataset.time[-1] == city.time[-3 * 24 - 1], "fitted to what came before"
    assert "test 3 and validation 3 days instead of 7 and 7" in report["notes"][0]
    assert json.loads((folder / "summary.json").read_text())["report"] == report


def test_validation_is_the_part_that_the_note_names(trained):
    folder, _ = trained
    state = load_checkpoint(folder / "checkpoints" / "finetune.safetensors").state
    windows_a_day = 24 * 9
    assert state["identity"]["validation_windows"] == 3 * windows_a_day - 2 * 9


def test_a_surrogate_is_labelled_in_the_table_and_in_every_picture(city, trained, tmp_path, monkeypatch):
    console = importlib.import_module("rich.console").Console(width=140, file=io.StringIO())
    trained[1].report.print(console)
    text = console.file.getvalue()
    assert text.startswith("SURROGATE surrogate-0")
    assert "SURROGATE: simulated traffic that stands in for a real city" in text
    titles = []
    monkeypatch.setattr(pictures, "save_picture", lambda figure, path: titles.append(figure.get_suptitle()))
    model = Forecaster(config=CONFIG).fit(city.slice_steps(0, city.num_steps - 72), None)
    pictures.draw(model, city, trained[1].report, RunFolder(tmp_path))
    assert len(titles) == 4
    assert all(title.startswith("SURROGATE") for title in titles)


def test_a_finished_run_is_only_tested_again(file, trained, monkeypatch):
    folder, outcome = trained
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "environment.json"}
    monkeypatch.setattr(Forecaster, "fit", None)
    again = jobs.train(file, folder, CONFIG)
    assert again.report.to_dict() == outcome.report.to_dict()
    assert set(again.files) == set(outcome.files)
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "environment.json"}
    changed = {path.name for path in before if before[path] != after[path] and path.is_file()}
    assert changed <= {"config.json"}


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("simulated", [0, 1])
def test_killed_between_any_two_writes(file, tmp_path, monkeypatch, simulated):
    """The process dies at the n-th write of a file, for every n; the next one resumes to the same numbers."""

    class Killed(BaseException):
        pass

    config = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, finetune_epochs=1))
    jobs.train(file, tmp_path / "whole", config, simulated=simulated)
    left = [0]
    fsync = simmst.foundation.files.os.fsync

    def counted(handle):
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        fsync(handle)

    monkeypatch.setattr(simmst.foundation.files.os, "fsync", counted)
    broken = tmp_path / "broken"
    for number in range(1, 60):
        left[0] = number
        try:
            jobs.train(file, broken, config, simulated=simulated)
            break
        except Killed:
            assert not (broken / "summary.json").exists()
    left[0] = -1
    assert number > 8
    same_numbers(tmp_path / "whole", broken)


def test_other_settings_or_other_data_do_not_resume(file, city, trained, tmp_path):
    folder, _ = trained
    with pytest.raises(ConfigError, match=r"horizon was 3, now 2"):
        jobs.train(file, folder, dataclasses.replace(CONFIG, horizon=2))
    with pytest.raises(ConfigError, match=r"test_days was 7, now 2"):
        jobs.train(file, folder, CONFIG, test_days=2)
    changed = city.activity.copy()
    changed[5, 0, 0, 0] += 1
    other = city.with_(activity=changed).save(tmp_path / "city.npz")
    with pytest.raises(ConfigError, match=r"digest was '[0-9a-f]{16}', now"):
        jobs.train(other, folder, CONFIG)


def test_the_same_data_elsewhere_does(city, trained, tmp_path):
    folder, outcome = trained
    again = jobs.train(city.save(tmp_path / "city.npz"), folder, CONFIG)
    assert again.report.to_dict() == outcome.report.to_dict()


def test_overwriting(file, tmp_path):
    folder = tmp_path / "run"
    jobs.train(file, folder, dataclasses.replace(CONFIG, solver="real-only"))
    naive = dataclasses.replace(CONFIG, model="persistence")
    with pytest.raises(ConfigError, match="made with another config"):
        jobs.train(file, folder, naive)
    jobs.train(file, folder, naive, overwrite=True)
    assert contents(folder) == [
        "config.json",
        "environment.json",
        "figures/error_map.png",
        "figures/forecast.png",
        "forecasts.npz",
        "report.json",
        "summary.json",
        "tested.npz",
    ]


@pytest.mark.parametrize("content", ['{"model": "somebody else\'s"}', '{"job": "demo"}', "no json"])
def test_what_no_training_wrote_is_not_overwritten(file, tmp_path, content):
    (tmp_path / "checkpoints").mkdir()
    for path, text in ((tmp_path / "config.json", content), (tmp_path / "checkpoints" / "a.safetensors", "precious")):
        path.write_text(text)
    with pytest.raises(ConfigError, match="choose another"):
        jobs.train(file, tmp_path, CONFIG, overwrite=True)
    assert (tmp_path / "checkpoints" / "a.safetensors").read_text() == "precious"
    assert (tmp_path / "config.json").read_text() == content


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"services": ["call", "video"]}, "there is no service 'video' in .*; it has call, sms, internet"),
        ({"step": 45}, "cannot resample surrogate-0 from 60 to 45 min"),
        ({"simulated": -2}, "simulated is -2"),
        ({"test_days": 0}, "cannot split"),
        ({"config": dataclasses.replace(CONFIG, horizon=80)}, "test part of surrogate-0 has 72 slots, too few for a"),
        ({"config": dataclasses.replace(CONFIG, solver="joint"), "simulated": 0}, "solver 'joint' needs simulated"),
        ({"config": dataclasses.replace(CONFIG, network={"label_length": 99})}, "label_length is 99"),
    ],
)
def test_what_cannot_work_leaves_no_folder(file, tmp_path, options, message):
    with pytest.raises((ConfigError, DataError), match=message):
        jobs.train(file, tmp_path / "run", **{"config": CONFIG, **options})
    assert not (tmp_path / "run").exists()


def test_series_too_short_leave_no_folder(city, tmp_path):
    path = city.slice_steps(0, 8).save(tmp_path / "short.npz")
    with pytest.raises(DataError, match=r"too few .* longer series"):
        jobs.train(path, tmp_path / "run", CONFIG)
    assert not (tmp_path / "run").exists()


def test_slots_that_cannot_be_simulated(tmp_path):
    eights = TrafficDataset.from_arrays(
        np.ones((9 * 180, 2, 2)) + np.eye(2), np.arange(9 * 180) * 480, services=["sms"]
    )
    path = eights.save(tmp_path / "eights.npz")
    with pytest.raises(DataError, match="slots of 8 minutes; resample it"):
        jobs.train(path, tmp_path / "run", CONFIG)
    assert not (tmp_path / "run").exists()
    assert checked_split(eights, dataclasses.replace(CONFIG, model="ridge"), simulated=1)


@pytest.mark.usefixtures("no_pictures")
def test_a_damaged_checkpoint_in_the_folder(file, trained, tmp_path):
    config = dataclasses.replace(CONFIG, solver="real-only")
    jobs.train(file, tmp_path / "run", config)
    (tmp_path / "run" / "summary.json").unlink()
    checkpoint = tmp_path / "run" / "checkpoints" / "real.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:999])
    with pytest.raises(CheckpointError, match=r"real\.safetensors is damaged or cut short: it has 999 bytes"):
        jobs.train(file, tmp_path / "run", config)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.npz", None, r"cut\.npz is not a readable \.npz file"),
        ("empty.npz", b"", r"empty\.npz is not a readable"),
        ("a.csv", b"", r"a\.csv has no rows below a first line"),
        ("a.csv", b"\xff\xfe\x00", r"a\.csv is not text .*write it as UTF-8"),
        (
            "a.csv",
            b"unique_id,ds,y\nA,2013-11-01 00:00,1\nA,2013-11-01 01:00,x\n",
            r"a\.csv: line 3: y 'x' of 'A' is not a number",
        ),
        ("a.txt", b"1\t2\n", r"a\.txt:1: 2 fields where 4 to 8 are wanted"),
        ("a.json", b"{}", r"a\.json is not a data file"),
    ],
)
def test_files_that_cannot_be_read(file, tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(file.read_bytes()[:1000] if content is None else content)
    with pytest.raises(DataError, match=message):
        jobs.train(path, tmp_path / "run", CONFIG)
    assert not (tmp_path / "run").exists()


def test_evaluate_scores_only_what_was_not_fitted(city, file, trained, tmp_path):
    folder, outcome = trained
    report = jobs.evaluate(folder, file, out=tmp_path / "report.json")
    assert report.forecasts.origins.tolist() == outcome.report.forecasts.origins.tolist()
    assert report.row("Sim-MSTNet").mae.tolist() == outcome.report.row("Sim-MSTNet").mae.tolist()
    assert json.loads((tmp_path / "report.json").read_text()) == report.to_dict()
    # slots before the end of the fitted slots do not change the number of scored forecasts
    late = city.slice_steps(48, city.num_steps).save(tmp_path / "late.npz")
    assert jobs.evaluate(folder, late).num_origins == report.num_origins


def test_evaluate_refuses(city, trained, tmp_path):
    folder, _ = trained
    cut = city.num_steps - 3 * 24
    elsewhere = surrogate_city(4, height=3, width=3, days=3, start="2020-01-06").save(tmp_path / "other.npz")
    with pytest.raises(DataError, match=r"has no slot at .*, the last one that the forecaster"):
        jobs.evaluate(folder, elsewhere)
    with pytest.raises(DataError, match=r"ends 2 slots after the last one .* at least the horizon of 3"):
        jobs.evaluate(folder, city.slice_steps(0, cut + 2).save(tmp_path / "short.npz"))
    assert jobs.evaluate(folder, city.slice_steps(0, cut + 3).save(tmp_path / "enough.npz")).num_origins == 1
    with pytest.raises(DataError, match="there is no service 'call'"):
        jobs.evaluate(folder, city.select_services(["sms"]).save(tmp_path / "sms.npz"))
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        jobs.evaluate(tmp_path / "nowhere", tmp_path / "short.npz")


def test_finer_data_are_summed_up_for_the_forecaster(trained, city, tmp_path):
    folder, _ = trained
    fine = np.repeat(city.activity / 6, 6, axis=0)
    time = city.time[0] + np.arange(len(fine)) * np.timedelta64(600, "s")
    path = city.with_(activity=fine.astype(np.float32), time=time).save(tmp_path / "fine.npz")
    frame = jobs.forecast(folder, data=path).frame
    assert frame.ds.iloc[0] == pd.Timestamp(city.time[-1], tz="UTC") + pd.Timedelta(hours=1)
    whole = jobs.forecast(folder, data=city.save(tmp_path / "a.npz")).frame
    # Sums are rounded otherwise, which can move a split of the trees that correct the network.
    np.testing.assert_allclose(frame.y_hat, whole.y_hat, rtol=0.02)


def test_forecast_to_csv(city, file, trained, tmp_path):
    folder, _ = trained
    frame = jobs.forecast(folder, data=file, levels=(80,), out=tmp_path / "new" / "forecast.csv").frame
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["forecast.csv"]
    written = pd.read_csv(tmp_path / "new" / "forecast.csv")
    assert written.columns.tolist() == ["unique_id", "ds", "service", "y_hat", "y_hat-lo-80", "y_hat-hi-80"]
    assert len(written) == len(frame) == 9 * 3 * 3
    assert not written.isna().any(axis=None)
    np.testing.assert_allclose(written.y_hat, frame.y_hat, rtol=1e-6)
    assert jobs.forecast(folder).frame.ds.iloc[0] == pd.Timestamp(city.time[-3 * 24], tz="UTC")


def test_a_forecast_that_fails_writes_nothing(file, trained, tmp_path):
    with pytest.raises(ConfigError, match="level is 101"):
        jobs.forecast(trained[0], data=file, levels=(101,), out=tmp_path / "forecast.csv")
    assert list(tmp_path.iterdir()) == []


def test_the_busiest_cell_and_the_best_baseline_are_drawn(trained):
    report = trained[1].report
    truth = report.forecasts.truth  # (n, C, T_out, K)
    shares = np.nansum(truth, axis=(0, 2)) / np.nansum(truth, axis=(0, 1, 2))
    by_service = truth.transpose(3, 1, 0, 2)
    assert pictures.busiest_cell(by_service) == int(shares.sum(axis=1).argmax())
    best = pictures.best_baseline(report, "Sim-MSTNet")
    assert best in BASELINES
    assert report.row(best).skill.mean() == max(row.skill.mean() for row in report.rows if row.name in BASELINES)


def test_the_best_baseline_where_persistence_makes_no_error():
    """Skill is undefined in that case, without a warning."""
    flat = TrafficDataset.from_arrays(np.ones((240, 1, 2, 2)), np.arange(240) * 3600, services=["sms"], timezone="UTC")
    model = Forecaster(config=dataclasses.replace(CONFIG, model="ridge")).fit(flat.slice_steps(0, 200))
    report = model.evaluate(flat, checked_split(flat, CONFIG, simulated=0))
    assert np.isnan(report.rows[0].skill).all()
    assert pictures.best_baseline(report, "ridge") in BASELINES


def test_naive_baselines_run_too(file, tmp_path):
    outcome = jobs.train(file, tmp_path / "run", dataclasses.replace(CONFIG, model="seasonal-naive-day"))
    assert outcome.report.rows[0].name == "seasonal-naive-day"
    assert sorted(path.name for path in outcome.files) == ["error_map.png", "forecast.png", "report.json"]
    again = jobs.train(file, tmp_path / "run", dataclasses.replace(CONFIG, model="seasonal-naive-day"))
    assert again.report.to_dict() == outcome.report.to_dict()


@pytest.mark.usefixtures("no_pictures")
def test_a_run_folder_of_ones_own(city, tmp_path):
    run = RunFolder.create(tmp_path / "run", {"mine": 1})
    outcome = jobs.fit_and_test(city, CONFIG, run, simulated=None, test_days=2)
    assert len(outcome.report.forecasts.origins) == 46
    assert run.finished
    assert run.summary()["chosen"] == "real"


def test_milan_three_services_with_every_part(tmp_path, real_file):
    outcome = jobs.train(real_file("milan_three_services_3cells_hourly.npz"), tmp_path / "run", CONFIG, simulated=1)
    report = outcome.report
    assert not report.surrogate
    assert report.services == ("call", "sms", "internet")
    assert "test 2 and validation 2 days instead of 7 and 7" in report.notes[0]
    assert {row.name for row in report.rows} == {"Sim-MSTNet", *BASELINES} - {"seasonal-naive-week"}
    assert all(np.isfinite([row.mae, row.rmse, row.skill]).all() for row in report.rows)
    assert sorted(entry.name for entry in (tmp_path / "run" / "figures").iterdir()) == PICTURES
