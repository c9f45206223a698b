from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from simmst.foundation.files import write_atomically, write_json


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("ne")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_nan_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_folders_are_made_and_the_file_is_readable_by_others(tmp_path):
    path = write_json(tmp_path / "deep" / "a.json", [1])
    assert path.read_text() == "[\n  1\n]\n"
    assert path.stat().st_mode & 0o400


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "a.txt"
    link.symlink_to(tmp_path / "there" / "b.txt")
    for text in ("first", "second"):
        assert write_atomically(link, lambda path, text=text: path.write_text(text)) == link
        assert link.is_symlink()
        assert (tmp_path / "there" / "b.txt").read_text() == text
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "b.txt", "there"]


def test_pipes_and_devices_are_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_atomically(tmp_path / "pipe", lambda path: path.write_text("through"))
    reader.join(10)
    assert read == ["through"]
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(OSError, match="No space left"):
        write_atomically("/dev/full", lambda path: path.write_text("x"))
    assert Path("/dev/full").is_char_device()
