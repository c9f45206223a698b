from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

import simmst
from simmst import jobs
from simmst.commands import output
from simmst.commands.command import Command
from simmst.commands.main import COMMANDS, main
from simmst.simulation import surrogate_city
from simmst.training import RunFolder

for package in ("pandas", "matplotlib", "rich", "safetensors", "jsonargparse"):
    pytest.importorskip(package)

import pandas as pd  # noqa: E402 - after the skip

TINY = [
    *("--simulated", "1", "--quiet", "--forecaster.horizon", "3", "--forecaster.start", "scratch"),
    *("--forecaster.neighbourhood", "3", "--forecaster.network.width", "8", "--forecaster.network.feedforward", "8"),
    *("--forecaster.training.epochs", "1", "--forecaster.training.samples_per_epoch", "48"),
    *("--forecaster.training.batch_size", "24", "--forecaster.training.validation_samples", "48"),
    *("--forecaster.training.device", "cpu"),
]


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def _interrupts():
    """Restore the handling of Ctrl-C after the test."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def city():
    return surrogate_city(0, height=3, width=3, days=9)


@pytest.fixture(scope="module")
def file(city, tmp_path_factory):
    return str(city.save(tmp_path_factory.mktemp("data") / "city.npz"))


@pytest.fixture(scope="module")
def run(file, tmp_path_factory):
    """A finished run, which tests must not change."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "--data", file, "--out", str(folder), *TINY]) == 0
    return folder


def instead(monkeypatch, command, run):
    """Replace what a command does."""
    monkeypatch.setitem(COMMANDS, command, dataclasses.replace(COMMANDS[command], run=run))


def refused(capsys, *arguments):
    """Run a command that fails, and return its message: one line on standard error, nothing on standard output."""
    assert main([str(argument) for argument in arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(r"simmst: [^\n]+\n", shown.err), shown.err
    return shown.err


def helped(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_help_names_every_command(capsys):
    text = helped(capsys, "--help")
    assert "Forecast cellular traffic with Sim-MSTNet." in text
    assert all(re.search(rf"^ +{name} +\w", text, re.MULTILINE) for name in COMMANDS)
    assert "pretrain" in COMMANDS


def test_a_command_of_ones_own(monkeypatch, capsys):
    def run(options):
        output.tell(f"hello {options.name}")

    hello = Command("hello", "[--name NAME]", brief="greet", about="Greet somebody.", run=run)
    own = dataclasses.replace(hello, add_arguments=lambda parser: parser.add_argument("--name", default="you"))
    monkeypatch.setitem(COMMANDS, "hello", own)
    assert re.search(r"^ +hello +greet$", helped(capsys, "--help"), re.MULTILINE)
    assert helped(capsys, "hello", "--help").startswith("usage: simmst hello [--name NAME]")
    assert main(["hello", "--name", "Ada"]) == 0
    assert capsys.readouterr().out == "hello Ada\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_is_readable(capsys, name):
    lines = helped(capsys, name, "--help").splitlines()
    assert lines[0].startswith(f"usage: simmst {name}")
    assert lines[1] == "", "the usage is one line"
    assert max(len(line) for line in lines) <= 100
    assert not any("==SUPPRESS==" in line or "<class" in line for line in lines)


def test_help_of_train_explains_the_settings(capsys):
    text = " ".join(helped(capsys, "train", "--help").split())
    assert "--forecaster.horizon N forecast this many slots (default: 6)" in text
    text = " ".join(helped(capsys, "train", "--help_all").split())
    assert "--forecaster.horizon N number of slots to forecast (default: 6)" in text
    assert re.search(r"--forecaster\.training\.epochs N [^-]+ \(default: 20\)", text)


def test_version(capsys):
    assert helped(capsys, "--version").strip() == f"simmst {simmst.__version__}"
    assert simmst.__version__ == importlib.metadata.version("simmst")


def test_train(run, file, capsys):
    """Called again on the finished run, it prints the same table at once."""
    assert main(["train", "--data", file, "--out", str(run), *TINY]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.startswith("SURROGATE surrogate-0: 3 steps of 60 min ahead, test part, errors in CDR units")
    for name in (
        "Sim-MSTNet",
        "persistence",
        "seasonal-naive-day",
        "hour-of-week-mean",
        "ridge",
    ):
        assert re.search(rf"^ *{name} +\d", shown.out, re.MULTILINE), name
    for name in ("report.json", "forecaster.safetensors", "figures/forecast.png"):
        assert f"written: {run / name}\n" in shown.out
    settings = RunFolder(run).config()
    assert settings["forecaster"]["training"]["samples_per_epoch"] == 48
    assert settings["forecaster"]["network"] == {"width": 8, "feedforward": 8}


def test_bars_are_drawn_on_standard_error_unless_quiet(tmp_path, capsys):
    city = ["--city.days", "1", "--city.height", "3", "--city.width", "3"]
    assert main(["simulate", "--cities", "1", "--out", str(tmp_path / "a"), *city]) == 0
    shown = capsys.readouterr()
    assert "simulate" in shown.err
    assert "1/1" in shown.err
    assert shown.out == f"written: 1 city and manifest.json in {tmp_path / 'a'}\n"
    assert main(["simulate", "--cities", "2", "--out", str(tmp_path / "b"), *city, "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "2 cities" in shown.out


def test_yaml_and_flags(file, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(jobs, "train", lambda data, out, config, **options: seen.update(config=config, **options))
    monkeypatch.setattr("simmst.commands.train.show_outcome", lambda outcome: None)
    (tmp_path / "a.yaml").write_text(
        f"data: {file}\nout: {tmp_path / 'run'}\nservices: [call, sms]\nsimulated: 0\n"
        "forecaster:\n  horizon: 5\n  network:\n    width: 16\n  training:\n    epochs: 4\n    patience: null\n"
    )
    assert main(["train", "--config", str(tmp_path / "a.yaml"), "--forecaster.horizon", "3", "--quiet"]) == 0
    config = seen["config"]
    assert (config.horizon, config.training.epochs, config.training.patience) == (3, 4, None)
    assert config.network == {"width": 16}
    assert (seen["services"], seen["simulated"], seen["test_days"]) == (["call", "sms"], 0, 7)


def test_a_run_is_repeated_from_the_settings_that_it_wrote(run, file, tmp_path, capsys):
    text = helped(capsys, "train", "--data", file, "--out", str(tmp_path / "again"), *TINY, "--print_config")
    (tmp_path / "printed.yaml").write_text(text)
    assert main(["train", "--config", str(tmp_path / "printed.yaml")]) == 0
    assert (tmp_path / "again" / "report.json").read_bytes() == (run / "report.json").read_bytes()


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("test_dayz: 3", "'test_dayz'"),
        ("forecaster:\n  training:\n    epoch: 3", r"'forecaster\.training\.epoch'"),
        ("test_days: seven", r"test_days: expected int\. Got value: seven"),
        ("forecaster:\n  horizon: [1]", r"forecaster\.horizon: expected int"),
        ("forecaster:\n  horizon: 0", "horizon is 0; it must be an integer of at least 1"),
        ("forecaster:\n  network:\n    widht: 8", "network has 'widht'; it may change: .*width"),
        ("forecaster:\n  training:\n    loss: hubber", "loss is 'hubber'; it must be one of"),
        ("services: call", r"has one; write a list, such as \[call\]; see simmst train --help"),
        ("forecaster: 3", r"forecaster: expected settings, such as 'forecaster: {name: value}'\. Got value: 3; see"),
        ("table: [null]", r"table: expected settings, such as .*\. Got value: \[null\]; see simmst train --help"),
        ("test_days: [1", r"Problems parsing config: .* in .*bad\.yaml, line 1"),
    ],
)
def test_wrong_yaml(file, tmp_path, capsys, yaml, message):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml)
    error = refused(capsys, "train", "--data", file, "--out", tmp_path / "run", "--config", path)
    assert re.search(message, error), error
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"expected \"subcommand\" to be one of .*; see simmst --help"),
        (["trian"], "invalid choice: 'trian' .*; see simmst --help"),
        (["trian"], r"\(did you mean 'train'\? choose from demo, "),
        (["train", "--data", "x", "--out", "y", "--test-days", "3"], r"--test-days 3; did you mean --test_days\?; see"),
        (["demo", "--step", "1h"], r"step: expected int\. Got value: 1h; see simmst demo --help"),
        (["train"], "arguments are required: --data, --out; see simmst train --help"),
        (["train", "--data", "x", "--out", "y", "--nope", "3"], "unrecognized arguments: --nope 3"),
        (["train", "--data", "x", "--out", "y", "--config", "none.yaml"], r"does not exist: .*none\.yaml"),
        (["train", "--data", "x", "--out", "y", "--forecaster.training.epochs", "many"], "expected int.*many"),
        (["train", "--data", "x", "--out", "y", "--forecaster.training.epochs", "-1"], "epochs is -1"),
        (["train", "--data.path", "x", "--out", "y"], r": there is no setting 'data\.path'; 'data' takes str; see"),
        (["forecast", "--data.a.b", "x"], r": there is no setting 'data\.a\.b'; 'data' takes str or null; see"),
        (["train", "--forecaster.training", "3"], r": forecaster\.training: expected settings, .*\. Got value: 3; see"),
        (["train", "--test_days", "{days: null}"], r': test_days: expected int\. Got value: {"days": null}; see'),
        (["simulate", "--cities", "a few", "--out", "y"], "cities: expected int"),
        (["simulate", "--cities", "0", "--out", "y"], "cities is 0"),
        (["simulate", "--cities", "1", "--out", "y", "--city.dayz", "3"], "no field 'dayz'; did you mean 'days'"),
        (["forecast", "--run", "nowhere"], r"no checkpoint nowhere/forecaster\.safetensors"),
        (["evaluate", "--run", "nowhere", "--data", "x"], "no checkpoint nowhere"),
        (["demo", "--data", "nowhere/a.npz"], r"nowhere/a\.npz does not exist"),
        (["demo", "--step", "7"], "step_minutes is 7; choose one of 5, 10, 15, 30, 60, 1440"),
        (["info", "--quiet"], "unrecognized arguments: --quiet"),
    ],
)
def test_wrong_command_lines(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    error = refused(capsys, *arguments)
    assert re.search(message, error), error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:2000], r"bad\.npz is not a readable \.npz file"),
        (lambda data: b"", r"bad\.npz is not a readable"),
        (lambda data: None, r"bad\.npz does not exist"),
    ],
)
def test_files_that_cannot_be_read(file, tmp_path, capsys, damage, message):
    path = tmp_path / "bad.npz"
    with open(file, "rb") as whole:  # noqa: PTH123
        content = damage(whole.read())
    if content is not None:
        path.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    error = refused(capsys, "train", "--data", path, "--out", tmp_path / "run", *TINY)
    assert re.search(message, error), error
    assert sorted(tmp_path.iterdir()) == before


def test_data_that_do_not_do(city, file, run, tmp_path, capsys):
    out = ["--out", tmp_path / "run"]
    error = refused(capsys, "train", "--data", file, *out, "--services", "call", "video", *TINY)
    assert "there is no service 'video' in surrogate-0; it has call, sms, internet" in error
    short = city.slice_steps(0, 8).save(tmp_path / "short.npz")
    assert "longer series" in refused(capsys, "train", "--data", short, *out, *TINY)
    assert "cannot resample" in refused(capsys, "train", "--data", file, *out, *TINY, "--step", "90")
    assert "horizon was 3, now 2" in refused(
        capsys, "train", "--data", file, "--out", run, *TINY, "--forecaster.horizon", "2"
    )
    error = refused(capsys, "evaluate", "--run", run, "--data", short)
    assert "has no slot at" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short.npz"]


def test_a_folder_that_cannot_be_written(file, tmp_path, capsys):
    (tmp_path / "taken").write_text("a file")
    assert "taken is a file" in refused(capsys, "train", "--data", file, "--out", tmp_path / "taken", *TINY)
    assert refused(capsys, "simulate", "--cities", "1", "--out", tmp_path / "taken" / "x", "--city.days", "1")


def test_evaluate(run, file, tmp_path, capsys):
    assert main(["evaluate", "--run", str(run), "--data", file, "--out", str(tmp_path / "report.json")]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "Sim-MSTNet" in shown.out
    assert shown.out.endswith(f"written: {tmp_path / 'report.json'}\n")
    report = json.loads((tmp_path / "report.json").read_text())
    trained = json.loads((run / "report.json").read_text())
    assert report["num_points"] == trained["num_points"]
    assert report["models"][0]["mae"] == trained["models"][0]["mae"]


def test_forecast(run, file, tmp_path, capsys):
    assert main(["forecast", "--run", str(run), "--data", file, "--levels", "80", "95"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    (tmp_path / "piped.csv").write_text(shown.out)
    piped = pd.read_csv(tmp_path / "piped.csv")
    assert (
        main(["forecast", "--run", str(run), "--data", file, "--levels", "80", "95", "--out", str(tmp_path / "f.csv")])
        == 0
    )
    assert capsys.readouterr().out == f"written: {tmp_path / 'f.csv'} (81 rows)\n"
    written = pd.read_csv(tmp_path / "f.csv")
    pd.testing.assert_frame_equal(written, piped)
    assert written.columns.tolist()[3:] == ["y_hat", "y_hat-lo-80", "y_hat-hi-80", "y_hat-lo-95", "y_hat-hi-95"]
    assert not written.isna().any(axis=None)
    assert "level is 101" in refused(capsys, "forecast", "--run", run, "--levels", "101")


def test_a_narrow_terminal_cuts_no_number(run, file, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["evaluate", "--run", str(run), "--data", file]) == 0
    text = capsys.readouterr().out
    assert "…" not in text
    assert text.count("Sim-MSTNet") >= 3, "one table per service"


def test_brackets_in_a_path_are_no_markup(city, file, tmp_path, capsys):
    folder = tmp_path / "[bold]run"
    assert main(["train", "--data", file, "--out", str(folder), *TINY, "--forecaster.model", "persistence"]) == 0
    assert f"written: {folder}/report.json" in capsys.readouterr().out


@pytest.mark.parametrize(("command", "hint"), [("simulate", "; run the same command again to resume"), ("info", "")])
@pytest.mark.usefixtures("_interrupts")
def test_interrupted(monkeypatch, capsys, tmp_path, command, hint):
    instead(monkeypatch, command, lambda options: (_ for _ in ()).throw(KeyboardInterrupt))
    arguments = ["--cities", "1", "--out", str(tmp_path)] if command == "simulate" else []
    assert main([command, *arguments]) == 130
    assert capsys.readouterr().err == f"simmst: interrupted{hint}\n"


def test_a_bug_keeps_its_traceback(monkeypatch):
    instead(monkeypatch, "info", lambda options: {}["missing"])
    with pytest.raises(KeyError):
        main(["info"])


def test_a_missing_extra_is_told_in_one_line(monkeypatch, capsys):
    import_module = importlib.import_module

    def missing(name, *arguments):
        if name == "jsonargparse":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return import_module(name, *arguments)

    monkeypatch.setattr("simmst.foundation.extras.importlib.import_module", missing)
    assert "pip install 'simmst[forecast]'" in refused(capsys, "info")


def test_the_reader_of_a_pipe_may_leave(run):
    command = [sys.executable, "-W", "error", "-m", "simmst", "forecast", "--run", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


@pytest.mark.slow
def test_killed_for_good_and_called_again(file, tmp_path):
    """SIGKILL, not an exception, at random moments of the training; the result is that of an uninterrupted run."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    slower = [*TINY, "--forecaster.training.epochs", "6", "--forecaster.training.samples_per_epoch", "480"]

    def start(folder):
        command = [sys.executable, "-m", "simmst", "train", "--data", file, "--out", str(folder), *slower]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def stamp(folder):
        path = RunFolder(folder).environment_path
        return path.stat().st_mtime_ns if path.exists() else 0

    def finish(folder):
        process = start(folder)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(whole)
    seconds = (RunFolder(whole).summary_path.stat().st_mtime_ns - stamp(whole)) / 1e9
    random = np.random.default_rng(0)
    kills = 0
    for _ in range(4):
        before = stamp(broken)
        process = start(broken)
        while process.poll() is None and stamp(broken) == before:
            time.sleep(0.01)
        try:
            process.wait(timeout=random.uniform(0.1, 0.5) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
    assert kills >= 2
    finish(broken)
    for name in ("report.json", "metrics.jsonl", "summary.json"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
    forecasts = [jobs.forecast(folder, levels=(80,)).frame for folder in (whole, broken)]
    pd.testing.assert_frame_equal(*forecasts)
