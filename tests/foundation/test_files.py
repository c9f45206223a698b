from __future__ import annotations

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
