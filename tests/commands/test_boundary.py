"""Errors from outside the code are reported in one line."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from argparse import ArgumentError

import pytest
import torch

from simmst.commands.boundary import exit_status, explained
from simmst.errors import ConfigError

for package in ("rich", "jsonargparse"):
    pytest.importorskip(package)


def simmst(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "simmst", *arguments],
        text=True,
        check=False,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(argument):
    code = f"""
import sys
from simmst.commands.main import main
try:
    main([{argument!r}])
except SystemExit as stopped:
    assert stopped.code == 0
print(sorted({{'torch', 'numpy', 'pandas', 'jsonargparse', 'rich'}} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("given", "loaded", "kept"),
    [
        ({}, False, ["passive", "1000", None]),
        ({"GOMP_SPINCOUNT": "7"}, False, [None, "7", None]),
        ({"OMP_WAIT_POLICY": "active"}, False, ["active", None, None]),
        ({"KMP_BLOCKTIME": "0"}, False, [None, None, "0"]),
        ({}, True, [None, None, None]),
    ],
)
def test_waiting_threads_sleep_unless_the_user_or_the_program_around_has_decided(given, loaded, kept):
    names = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"]
    code = f"""
import json, os, sys, types
if {loaded}:
    sys.modules["torch"] = types.ModuleType("torch")  # as if it had been imported
from simmst.commands.main import main
main(["no-such-command"])
print(json.dumps([os.environ.get(name) for name in {names}]))
"""
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(run.stdout) == kept


def test_help_takes_a_moment():
    times = []
    for _ in range(3):
        before = os.times()
        simmst("--help")
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(times) < 0.5


@pytest.mark.parametrize("command", ["demo", "forecast", "simulate"])
def test_help_of_a_command_without_the_network_s_settings_needs_no_torch(command):
    code = f"""
import sys
from simmst.commands.main import main
try:
    main([{command!r}, '--help'])
except SystemExit:
    print('torch' in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SIMMST_BACKEND", "cppp", "SIMMST_BACKEND is 'cppp'; it must be one of reference, "),
        ("SIMMST_CPU_ISA", "z80", "SIMMST_CPU_ISA is 'z80'; this machine can run: "),
    ],
)
def test_a_mistyped_variable_is_refused_before_any_work(tmp_path, name, value, message):
    if name == "SIMMST_CPU_ISA":
        pytest.importorskip("simmst._cpu")
    started = time.monotonic()
    run = simmst("demo", "--out", str(tmp_path / "demo"), env={**os.environ, name: value})
    assert time.monotonic() - started < 60
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith("simmst: ")
    assert run.stderr.count("\n") == 1
    assert message in run.stderr
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_output_that_nobody_takes(redirection):
    command = f"{sys.executable} -W error -m simmst info {redirection}"
    run = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("simmst: ")
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["info"]])
def test_a_reader_that_has_left_is_no_error_to_tell(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    run = simmst(*arguments, stdout=writing)
    os.close(writing)
    assert run.stderr == ""


def test_errors_that_nobody_reads():
    run = subprocess.run(["/bin/sh", "-c", f"{sys.executable} -m simmst trian 2>&-"], check=False)
    assert run.returncode == 2


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_yaml_in_another_encoding(tmp_path, encoding):
    path = tmp_path / "a.yaml"
    path.write_bytes("out: Mailänd\n".encode(encoding))
    run = simmst("demo", "--config", str(path))
    assert run.returncode == 2
    assert run.stderr.startswith(f"simmst: {path} is not text in UTF-8 (")
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConfigError("a is\n  wrong"), "a is wrong"),
        (ArgumentError(None, "no such flag"), "no such flag"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.csv"), "[Errno 2] No such file: 'a.csv'"),
        (OSError(errno.ENOSPC, "No space left"), "the disk is full ([Errno 28] No space left); make room; go on"),
        (RuntimeError("Error: I/O error (os error 28)"), "the disk is full (Error: I/O error (os error 28)); make"),
        (MemoryError(), "out of memory; take a smaller batch_size, fewer"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory (CUDA out of memory); take"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9"), "out of memory (DefaultCPUAllocator"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "a file is not text in UTF-8 ("),
    ],
)
def test_one_line_a_cause(capsys, error, message):
    def fail():
        raise error

    assert explained(error, "; go on").startswith(message)
    assert exit_status(fail, resumes=False) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"simmst: {message.split(';')[0]}")
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize("bug", [KeyError("a"), RuntimeError("shapes do not match"), AssertionError()])
def test_a_bug_is_none_of_them(bug):
    assert explained(bug) is None
