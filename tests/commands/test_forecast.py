"""``simmst forecast``: a file is forecast at once by the shipped weights, and the message says why one cannot be."""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
import pytest

from simmst import Forecaster, jobs
from simmst.commands.main import main
from simmst.errors import ConfigError
from simmst.simulation import surrogate_city

pd = pytest.importorskip("pandas")
for package in ("rich", "safetensors", "jsonargparse"):
    pytest.importorskip(package)


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def city():
    return surrogate_city(0, height=3, width=3, days=4)


@pytest.fixture(scope="module")
def file(city, tmp_path_factory):
    return str(city.save(tmp_path_factory.mktemp("data") / "city.npz"))


def refused(capsys, *arguments):
    assert main(["forecast", *map(str, arguments)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(r"simmst: [^\n]+\n", shown.err), shown.err
    return shown.err


def test_a_file_is_forecast_at_once(city, file, capsys):
    assert main(["forecast", "--data", file, "--levels", "80"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    frame = pd.read_csv(io.StringIO(shown.out))
    assert frame.columns.tolist() == ["unique_id", "ds", "service", "y_hat", "y_hat-lo-80", "y_hat-hi-80"]
    assert len(frame) == 9 * 6 * 3
    expected = Forecaster.pretrained(horizon=6).predict(city, levels=(80,))
    np.testing.assert_allclose(frame.iloc[:, 3:], expected.iloc[:, 3:], rtol=1e-5)


def test_notes_go_to_standard_error(city, tmp_path, capsys):
    long = city.select_services(["sms"]).to_dataframe()
    long["service"] = "video"
    long.to_csv(tmp_path / "video.csv", index=False)
    out = tmp_path / "forecast.csv"
    assert main(["forecast", "--data", str(tmp_path / "video.csv"), "--horizon", "30", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"written: {out} ({9 * 30} rows)\n"
    assert shown.err.splitlines() == [
        "note: video: forecast as an unknown service; the weights know call, sms, internet",
        "note: 30 slots ahead: the weights have learned to forecast 24",
    ]
    assert not pd.read_csv(out).isna().any(axis=None)


def test_horizon_step_and_services(file, capsys):
    arguments = ["--horizon", "2", "--step", "120", "--services", "sms", "call"]
    assert main(["forecast", "--data", file, *arguments]) == 0
    shown = capsys.readouterr()
    assert "slots of 120 minutes" in shown.err
    frame = pd.read_csv(io.StringIO(shown.out))
    assert frame.service.tolist() == ["sms", "call"] * 18
    first = pd.to_datetime(frame.ds)
    assert first[2] - first[0] == pd.Timedelta(hours=2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: None, r"bad\.npz does not exist"),
        (lambda data: b"", r"bad\.npz is not a readable \.npz file"),
        (lambda data: data[:2000], r"bad\.npz is not a readable \.npz file"),
    ],
)
def test_files_that_cannot_be_read(file, tmp_path, capsys, damage, message):
    with open(file, "rb") as whole:  # noqa: PTH123
        content = damage(whole.read())
    path = tmp_path / "bad.npz"
    if content is not None:
        path.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    assert re.search(message, refused(capsys, "--data", path, "--out", tmp_path / "forecast.csv"))
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_too_short_for_any_context(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("unique_id,ds,y\nA,2013-11-01 00:00,1\n")
    assert "at least two" in refused(capsys, "--data", tmp_path / "a.csv")


def test_without_data_or_a_run(capsys):
    assert "give data to forecast with the shipped weights, or the run of a" in refused(capsys)


def test_settings_that_do_not_go(file, tmp_path, capsys):
    assert "horizon is 0" in refused(capsys, "--data", file, "--horizon", "0")
    assert "there is no service 'video'" in refused(capsys, "--data", file, "--services", "video")
    assert "cannot resample" in refused(capsys, "--data", file, "--step", "45")
    assert "level is 0" in refused(capsys, "--data", file, "--levels", "0")
    for option in ("horizon", "step", "services"):
        with pytest.raises(ConfigError, match=f"has a {option} of its own; leave {option} out"):
            jobs.forecast(tmp_path / "run", **{option: 1})


def test_weights_that_are_not_there(file, tmp_path, monkeypatch, capsys):
    from simmst.pretrained import load_pretrained

    monkeypatch.setattr("simmst.pretrained.weights.__file__", str(tmp_path / "weights.py"))
    load_pretrained.cache_clear()
    assert "the weights that ship with simmst are not in" in refused(capsys, "--data", file)
