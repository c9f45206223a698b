"""Files that appear in a folder are forecast once each; an incomplete file is not, and a bad one stops nothing."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from simmst import jobs
from simmst.commands.main import main
from simmst.errors import ConfigError
from simmst.foundation.files import locked
from simmst.jobs import watching
from simmst.simulation import surrogate_city

pd = pytest.importorskip("pandas")
for package in ("safetensors", "jsonargparse"):
    pytest.importorskip(package)

QUICK = 0.01  # seconds between looks


@pytest.fixture(scope="module")
def city():
    return surrogate_city(0, height=2, width=2, days=3, services=("internet",))


@pytest.fixture(scope="module")
def file(city, tmp_path_factory):
    return city.save(tmp_path_factory.mktemp("data") / "city.npz")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


class Watch:
    """A watch that keeps its messages."""

    def __init__(self, folder, **options):
        self.folder, self.options = folder, {"interval": QUICK, **options}
        self.told, self.complained = [], []

    def once(self):
        return self(once=True)

    def __call__(self, **options):
        self.told.clear()
        self.complained.clear()
        return jobs.watch(
            self.folder, **{**self.options, **options}, tell=self.told.append, complain=self.complained.append
        )


def outputs(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_each_file_is_forecast_once(city, file, folder):
    watch = Watch(folder, levels=(80,))
    shutil.copy(file, folder / "a.npz")
    city.to_dataframe().to_csv(folder / "b.csv", index=False)
    (folder / "readme.md").write_text("no data")
    (folder / ".hidden.csv").write_text("no data")
    assert watch.once() == 2
    out = folder / "forecasts"
    assert outputs(out) == ["a.npz.forecast.csv", "b.csv.forecast.csv"]
    assert watch.told == [f"written: {out / name} (24 rows)" for name in outputs(out)]
    frame = pd.read_csv(out / "a.npz.forecast.csv")
    wanted = jobs.forecast(data=file, levels=(80,)).frame
    np.testing.assert_allclose(frame.iloc[:, 3:], wanted.iloc[:, 3:], rtol=1e-5)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert watch.once() == 0
    assert watch.complained == []
    shutil.copy(file, folder / "c.npz")
    assert watch.once() == 1
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path.suffix == ".csv")


def test_a_file_is_known_by_its_content(city, file, folder, tmp_path):
    watch = Watch(folder, out=tmp_path / "out")
    shutil.copy(file, folder / "a.npz")
    assert watch.once() == 1
    os.utime(folder / "a.npz", (0, 0))  # copied again
    assert watch.once() == 0
    city.slice_steps(0, 48).save(folder / "a.npz")
    assert watch.once() == 1
    assert outputs(folder) == ["a.npz"]


def test_other_settings_forecast_everything_again(file, folder):
    shutil.copy(file, folder / "a.npz")
    assert Watch(folder).once() == 1
    assert Watch(folder, horizon=2).once() == 1
    assert len(pd.read_csv(folder / "forecasts" / "a.npz.forecast.csv")) == 8
    assert Watch(folder, horizon=2).once() == 0


def test_a_folder_that_is_its_own_output(file, folder):
    shutil.copy(file, folder / "a.npz")
    assert Watch(folder, out=folder).once() == 1
    assert Watch(folder, out=folder).once() == 0
    assert outputs(folder) == ["a.npz", "a.npz.forecast.csv"]


def test_bad_files_are_told_and_left_until_they_change(city, file, folder):
    watch = Watch(folder)
    shutil.copy(file, folder / "good.npz")
    (folder / "bad.npz").write_bytes(file.read_bytes()[:500])
    (folder / "empty.csv").write_text("")
    assert watch.once() == 1
    assert len(watch.complained) == 2
    assert re.fullmatch(
        r"[^\n]*bad\.npz is not a readable[^\n]*; it is left alone until it changes", watch.complained[0]
    )
    assert "empty.csv" in watch.complained[1]
    assert outputs(folder / "forecasts") == ["good.npz.forecast.csv"]
    assert watch.once() == 0
    assert watch.complained == [], "no file is tried twice"
    shutil.copy(file, folder / "bad.npz")
    assert watch.once() == 1
    assert watch.complained == []


def test_a_file_that_grows_is_not_read(file, folder, monkeypatch):
    """The file grows between two looks, and stops growing after the third."""
    content = file.read_bytes()
    path = folder / "a.npz"
    path.write_bytes(content[:100])
    waits = []

    class Clock(threading.Event):
        def wait(self, seconds=None):
            assert seconds == QUICK
            waits.append(sorted(outputs(folder / "forecasts")))
            if len(waits) < 4:
                path.write_bytes(content[: 100 + len(content) * len(waits) // 3])
            return len(waits) == 6

    watch = Watch(folder)
    assert watch(stop=Clock()) == 1
    assert watch.complained == []
    assert waits == [[], [], [], [], ["a.npz.forecast.csv"], ["a.npz.forecast.csv"]]


def test_once_leaves_what_still_grows(file, folder, monkeypatch):
    path = folder / "a.npz"
    path.write_bytes(b"1")
    monkeypatch.setattr(watching, "_look", lambda path: (time.monotonic_ns(), 0))
    watch = Watch(folder)
    assert watch.once() == 0
    assert watch.complained == [f"{path}: is still growing; it is left alone"]


def test_a_file_that_changes_while_it_is_read(city, file, folder, monkeypatch):
    path = folder / "a.npz"
    shutil.copy(file, path)
    real, calls = watching.forecast_with, []

    def forecast_with(forecaster, data, **options):
        calls.append(data)
        found = real(forecaster, data, **options)
        if len(calls) == 1:
            city.slice_steps(0, 48).save(path)
        return found

    monkeypatch.setattr(watching, "forecast_with", forecast_with)

    class Clock(threading.Event):
        def wait(self, seconds=None):
            return len(calls) == 2

    assert Watch(folder)(stop=Clock()) == 1
    frame = pd.read_csv(folder / "forecasts" / "a.npz.forecast.csv")
    assert pd.Timestamp(frame.ds[0]) == pd.Timestamp(city.time[48], tz="UTC")


def test_a_forecast_that_cannot_be_written_ends_the_watch(file, folder, monkeypatch):
    shutil.copy(file, folder / "a.npz")
    watch = Watch(folder)

    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(watching.forecast_with.__globals__["ForecastFrame"], "save", full)
    with pytest.raises(OSError, match="No space left"):
        watch.once()
    monkeypatch.undo()
    assert watch.once() == 1, "the file is not recorded as read"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"version": 1, "files": {"a": 3}, "settings": {}}', '{"version": 9}']
)
def test_a_damaged_memory(folder, content):
    (folder / "forecasts").mkdir()
    (folder / "forecasts" / ".simmst-watch.json").write_text(content)
    with pytest.raises(ConfigError, match=r"\.simmst-watch\.json, which remembers .* is damaged .*; delete it"):
        Watch(folder).once()


def test_two_watches_do_not_write_to_one_folder(folder, tmp_path):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out", ConfigError), pytest.raises(ConfigError, match="another process works in"):
        Watch(folder, out=tmp_path / "out").once()
    assert Watch(folder, out=tmp_path / "out").once() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--watch", "nowhere"], "there is no folder nowhere to watch"),
        (["--watch", ".", "--data", "a.npz"], "not both"),
        (["--watch", ".", "--interval", "0"], "interval is 0 seconds"),
        (["--watch", ".", "--levels", "101"], "level is 101"),
        (["--watch", ".", "--horizon", "0"], "horizon is 0"),
        (["--watch", ".", "--run", "nowhere"], "there is no checkpoint"),
        (["--once"], "--once goes with --watch DIR"),
        (["--interval", "3"], "--interval goes with --watch DIR"),
    ],
)
def test_what_cannot_work_is_refused_at_once(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["forecast", *arguments]) == 2
    shown = capsys.readouterr()
    assert re.fullmatch(r"simmst: [^\n]+\n", shown.err), shown.err
    assert message in shown.err
    assert list(tmp_path.iterdir()) == []


def test_messages_name_the_flags_of_the_command(folder, capsys):
    (folder / "a.csv").write_text("unique_id,ds,y\nA,1/11/2013,1\nA,2/11/2013,2\n")
    assert main(["forecast", "--watch", str(folder), "--once", "--interval", str(QUICK)]) == 0
    assert "--table.dayfirst" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_real_watch_until_a_signal(city, file, folder, number):
    command = [sys.executable, "-m", "simmst", "forecast", "--watch", str(folder), "--interval", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            whole = file.read_bytes()
            with (folder / "slow.npz").open("wb", buffering=0) as half:
                half.write(whole[:300])
                shutil.copy(file, folder / "a.npz")
                assert (
                    process.stdout.readline() == f"written: {folder / 'forecasts' / 'a.npz.forecast.csv'} (24 rows)\n"
                )
                half.write(whole[300:])
            line = process.stdout.readline()
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "slow.npz.forecast.csv (24 rows)" in line
    assert out == ""
    assert len(err.splitlines()) <= 1, "an incomplete file that stopped growing is reported once"
    state = json.loads((folder / "forecasts" / ".simmst-watch.json").read_text())
    assert {name: one["forecast"] for name, one in state["files"].items()} == {"a.npz": True, "slow.npz": True}
    frames = [
        pd.read_csv(io.StringIO((folder / "forecasts" / f"{name}.npz.forecast.csv").read_text()))
        for name in ("a", "slow")
    ]
    pd.testing.assert_frame_equal(*frames)
