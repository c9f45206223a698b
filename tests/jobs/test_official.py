from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from simmst.commands.main import main
from simmst.data import load
from simmst.data.readers.npz import provenance_of
from simmst.data.readers.telecom_italia_day import read_day
from simmst.jobs import prepare

for package in ("polars", "jsonargparse", "rich"):
    pytest.importorskip(package)

START = 1_383_260_400_000  # 1 November 2013, 00:00 in Rome
NAMES = [f"sms-call-internet-mi-2013-11-0{day}.txt" for day in (1, 2)]


def text(day, cells=(1, 2, 101)):
    return "".join(
        f"{cell}\t{START + (144 * day + slot) * 600_000}\t39\t1.5\t\t0.25\t0.5\t{cell + slot}\n"
        for cell in cells
        for slot in range(144)
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "text"
    made.mkdir()
    for day, name in enumerate(NAMES):
        (made / name).write_text(text(day))
    return made


def failing(capsys, *words):
    assert main(["data", *words, "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def test_prepare_writes_a_file_that_says_where_it_comes_from(folder, capsys):
    assert main(["data", "prepare", "text", "--quiet"]) == 0
    assert "ODbL" in capsys.readouterr().out
    city = load("milan.npz")
    assert city.activity.shape == (288, 3, 100, 100)
    assert city.activity[145, :, 1, 0].tolist() == [0.75, 1.5, 102]
    origin = provenance_of("milan.npz")
    assert origin["doi"] == "doi:10.7910/DVN/EGZHFV"
    assert not origin["doi_checked"]  # the files were not fetched
    assert [one["name"] for one in origin["files"]] == NAMES
    whole = (folder / NAMES[1]).read_bytes()
    assert origin["files"][1]["sha256"] == hashlib.sha256(whole).hexdigest()
    assert origin["files"][1]["bytes"] == len(whole)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["milan.npz", "text"]


def test_prepare_wants_to_know_the_grid(folder, capsys):
    (folder / "sms-call-internet-tn-2013-11-01.txt").write_text(text(0, cells=(38, 39)))
    assert "give --grid" in failing(capsys, "prepare", "text")
    assert main(["data", "prepare", "text", "--grid", "trento", "--cells", "observed", "--quiet"]) == 0
    assert load("trento.npz").num_cells == 2
    assert "unknown grid 'rome'" in failing(capsys, "prepare", "text", "--grid", "rome")


def test_prepare_refuses_in_one_line(folder, capsys):
    assert "no file matches" in failing(capsys, "prepare", "none/*.txt")
    (folder.parent / "empty").mkdir()
    assert "empty has no daily file, such as sms-call-internet-mi-2013-11-01.txt" in failing(capsys, "prepare", "empty")
    assert "text has some, give that" in failing(capsys, "prepare", ".")
    assert "cells must be one of" in failing(capsys, "prepare", "text", "--cells", "all")
    (folder / NAMES[1]).write_text(text(1) + "1\t1383\t39\tx\n")
    assert f"{NAMES[1]}:433: sms_in 'x'" in failing(capsys, "prepare", "text")
    np.savez("milan.npz", a=np.ones(1))
    assert "not a cache of daily files" in failing(capsys, "prepare", "text")


KILLED = """
import os, signal
from simmst.jobs import prepare

def kill(what, done, total, *figures):
    if done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

prepare("text", "milan.npz", progress=kill)
"""


def test_a_run_that_was_killed_resumes_after_its_last_day(folder, monkeypatch):
    for number in (3, 4):
        (folder / f"sms-call-internet-mi-2013-11-0{number}.txt").write_text(text(number - 1))
    unbroken = load(prepare("text", "unbroken.npz"))
    died = subprocess.run([sys.executable, "-c", KILLED], check=False, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert not (folder.parent / "milan.npz").exists()
    read = []

    def reading(path, *rest):
        read.append(path.name)
        return read_day(path, *rest)

    monkeypatch.setattr("simmst.data.readers.telecom_italia.read_day", reading)
    city = load(prepare("text", "milan.npz"))
    assert sorted(read) == [f"sms-call-internet-mi-2013-11-0{number}.txt" for number in (3, 4)]
    np.testing.assert_array_equal(city.activity, unbroken.activity)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["milan.npz", "text", "unbroken.npz"]


@pytest.mark.parametrize(
    ("record", "message"),
    [("[]", "expected a mapping, got a list"), ('{"doi": "x"}', "'files' is missing"), ("{", "line 1: it is not JSON")],
)
def test_a_damaged_record_of_fetching_is_refused(folder, capsys, record, message):
    (folder / "simmst-fetch.json").write_text(record)
    error = failing(capsys, "prepare", "text")
    assert "simmst-fetch.json is damaged" in error
    assert message in error


class Dataverse(ThreadingHTTPServer):
    """A server that answers like a Dataverse, from a dictionary of files."""

    def __init__(self, files):
        self.files, self.asked, self.entries = dict(files), [], None
        super().__init__(("127.0.0.1", 0), Answers)

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def listing(self):
        entries = self.entries or [
            {
                "id": number,
                "filename": name,
                "filesize": len(body),
                "md5": hashlib.md5(body).hexdigest(),
                "checksum": {"type": "MD5", "value": hashlib.md5(body).hexdigest()},
            }
            for number, (name, body) in enumerate(self.files.items())
        ]
        return {"status": "OK", "data": {"latestVersion": {"files": [{"dataFile": entry} for entry in entries]}}}


class Answers(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        url = urlsplit(self.path)
        self.server.asked.append(url.path)
        if url.path == "/api/datasets/:persistentId/":
            known = parse_qs(url.query)["persistentId"] == ["doi:10.7910/DVN/EGZHFV"]
            return self.answer(200 if known else 404, json.dumps(self.server.listing()).encode())
        body = list(self.server.files.values())[int(url.path.rsplit("/", 1)[1])]
        return self.answer(404 if body is None else 200, body or b"")

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("pooch")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # pooch waits between its attempts
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Dataverse({name: text(day).encode() for day, name in enumerate(NAMES)} | {"README.txt": b"about"})
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def test_fetch_then_prepare(server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "fetch", "milan", "--server", server.address, "--quiet"]) == 0
    folder = tmp_path / "official-milan"
    assert sorted(path.name for path in folder.iterdir()) == ["simmst-fetch.json", *NAMES]
    assert (folder / NAMES[0]).read_text() == text(0)
    assert json.loads((folder / "simmst-fetch.json").read_text())["doi"] == "doi:10.7910/DVN/EGZHFV"
    assert main(["data", "prepare", "official-milan", "--quiet"]) == 0
    assert provenance_of("milan.npz")["doi_checked"]


def test_fetch_resumes_by_file_and_checks_existing_files(server, tmp_path):
    words = ["data", "fetch", "milan", "--out", str(tmp_path / "x"), "--server", server.address, "--quiet"]
    assert main(words) == 0
    server.asked.clear()
    (tmp_path / "x" / NAMES[1]).write_text("damaged")
    assert main(words) == 0
    assert server.asked == ["/api/datasets/:persistentId/", "/api/access/datafile/1"]
    assert (tmp_path / "x" / NAMES[1]).read_text() == text(1)


def entry(name, **changes):
    return {"id": 0, "filename": name, "filesize": 3, "md5": "0" * 32} | changes


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry("../sms-call-internet-mi-2013-11-01.txt")], "leads out of the folder"),
        ([entry("sms-call-internet-mi-/../../../evil.txt")], "leads out of the folder"),
        ([entry("sms-call-internet-mi-..\\evil.txt")], "leads out of the folder"),
        ([entry("/tmp/sms-call-internet-mi-1.txt")], "leads out of the folder"),
        ([entry(NAMES[0], md5="xyz")], "checksum MD5 'xyz'"),
        ([entry(NAMES[0]), entry(NAMES[0])], "twice"),
        ([entry("other.txt")], "lists no file sms-call-internet-mi-"),
        ([{"id": 0}], "gave no list of files"),
        ([entry(NAMES[0], filesize=10**18)], "make room"),
        ([entry(NAMES[0])], "cannot be fetched"),  # the checksum differs
    ],
)
def test_a_server_that_lies_is_refused(server, tmp_path, capsys, entries, message):
    server.entries = entries
    out = tmp_path / "x"
    assert message in failing(capsys, "fetch", "milan", "--out", str(out), "--server", server.address)
    assert not out.exists() or not list(out.iterdir())
    assert not list(tmp_path.glob("*.txt"))


def test_fetch_refuses_in_one_line(server, tmp_path, capsys):
    out = ("--out", str(tmp_path / "x"))
    assert "no official data set 'rome'" in failing(capsys, "fetch", "rome", *out)
    assert "give an address" in failing(capsys, "fetch", "milan", *out, "--server", "ftp://x")
    assert "belongs to simmst data prepare" in failing(capsys, "fetch", "milan", *out, "--grid", "milan")
    assert "belongs to simmst data fetch" in failing(capsys, "prepare", str(tmp_path), "--server", server.address)
    assert "404" in failing(capsys, "fetch", "trento", *out, "--server", server.address)
    server.files[NAMES[1]] = b""
    server.entries = [entry(name, id=i, md5=hashlib.md5(text(i).encode()).hexdigest()) for i, name in enumerate(NAMES)]
    assert NAMES[1] in failing(capsys, "fetch", "milan", *out, "--server", server.address)
    assert [path.name for path in (tmp_path / "x").iterdir()] == [NAMES[0]]  # the complete file is kept
    (tmp_path / "file").write_text("")
    assert "is a file" in failing(capsys, "fetch", "milan", "--out", str(tmp_path / "file"))
    nobody = "http://127.0.0.1:1"
    assert "cannot be fetched" in failing(capsys, "fetch", "milan", *out, "--server", nobody)
