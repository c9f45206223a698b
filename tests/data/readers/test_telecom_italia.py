from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simmst.data import TrafficDataset, load, load_grid
from simmst.data.readers import telecom_italia as reader
from simmst.data.readers import telecom_italia_day
from simmst.errors import ConfigError, DataError

pytest.importorskip("polars")

START = 1_383_260_400_000  # 1 November 2013, 00:00 in Rome
SLOT = 600_000


def line(cell, slot, country=39, *values, start=START):
    """Return an official row; `values` are SMS in, SMS out, call in, call out, Internet, "" for no activity."""
    return "\t".join(str(x) for x in (cell, start + slot * SLOT, country, *values))


def day(path, cells=(1, 2, 101), slots=6, start=START):
    rows = [line(c, s, 39, 1.5, "", 0.25, 0.5, c + s, start=start) for c in cells for s in range(slots)]
    path.write_text("\n".join(rows) + "\n")
    return path


def write(path, *rows, end="\n"):
    path.write_text("\n".join(rows) + end)
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "sms-call-internet-mi-2013-11-01.txt"


def test_sums_over_countries_and_directions(file):
    write(
        file,
        line(1, 0, 0, 0.5, 0.25, "", "", ""),
        line(1, 0, 39, 1, 2, 4, 8, 16),
        line(1, 0, 33, "", "", 0.5),  # without its trailing tabs
        line(1, 1, 39, "", "", "", "", 3),
        line(3, 1, 39, 7),
    )
    data = TrafficDataset.from_telecom_italia(file)
    assert data.services == ("call", "sms", "internet")
    assert data.activity.shape == (2, 3, 100, 100)
    assert data.activity[0, :, 0, 0].tolist() == [12.5, 3.75, 16]
    assert data.activity[1, :, 0, 0].tolist() == [0, 0, 3]
    assert data.activity[1, :, 0, 2].tolist() == [0, 7, 0]
    assert data.activity[:, :, 0, 1].sum() == 0  # no row in a covered slot: no activity
    assert data.mask.all()
    assert data.time[0] == np.datetime64("2013-10-31T23:00:00")
    assert (data.step_minutes, data.timezone, data.cell_size_m) == (10, "Europe/Rome", 235.0)


def test_row_zero_is_south_and_ids_grow_to_the_north(file):
    data = TrafficDataset.from_telecom_italia(day(file, cells=(1, 100, 101, 10_000)))
    assert data.activity[0, 2, 1, 0] == 101
    assert data.activity[0, 2, 0, 99] == 100
    assert data.activity[0, 2, 99, 99] == 10_000


def test_slots_that_no_file_covers_are_missing(tmp_path):
    day(tmp_path / "a.txt")
    day(tmp_path / "b.txt", start=START + 10 * SLOT)
    seen = []
    data = TrafficDataset.from_telecom_italia(
        str(tmp_path / "*.txt"), progress=lambda done, total, path: seen.append((done, total, path.name))
    )
    assert data.num_steps == 16
    assert np.isnan(data.activity[6:10]).all()
    assert not np.isnan(data.activity[:6]).any()
    assert not np.isnan(data.activity[10:]).any()
    assert seen == [(1, 2, "a.txt"), (2, 2, "b.txt")]
    several = TrafficDataset.from_telecom_italia([tmp_path / "b.txt", tmp_path / "a.txt"])
    np.testing.assert_array_equal(several.activity, data.activity)


def test_a_slot_without_any_row_is_missing(file):
    write(file, line(1, 0, 39, 1), line(1, 2, 39, 1), line(2, 2, 39, 1))
    data = TrafficDataset.from_telecom_italia(file)
    assert np.isnan(data.activity[1]).all()
    assert not np.isnan(data.activity[[0, 2]]).any()


def test_observed_cells_are_cropped(file):
    data = TrafficDataset.from_telecom_italia(day(file, cells=(102, 104, 303)), cells="observed")
    assert data.activity.shape == (6, 3, 3, 3)
    assert data.cell_id[data.mask].tolist() == [102, 104, 303]
    assert data.mask.sum() == 3
    assert data.activity[2, 2, 2, 1] == 305
    assert np.isnan(data.activity[:, :, 0, 1]).all()


def test_trento(file):
    data = TrafficDataset.from_telecom_italia(day(file, cells=(38, 39, 154)), grid="trento", cells="observed")
    grid = load_grid("trento")
    assert grid.mask.shape == (98, 117)
    assert data.mask.shape == (2, 3)
    assert data.activity[0, 2, 0, 1] == 38
    assert data.activity[0, 2, 1, 0] == 154


BAD = [
    ([line(1, 3)], r":2: 3 fields where 4 to 8 are wanted"),
    (["1"], r":2: 1 fields"),
    ([line(1, 3, 39, 1, 2, 3, 4, 5, 6)], r":2: 9 fields where"),
    ([line(1, 3, 39, 1, "2x", 3, 4, 5)], r":2: sms_out '2x' is not a number"),
    ([line(1, 3, 39, 1, 2, 3, 4, "O.5")], r":2: internet 'O.5' is not a number"),
    ([line("l", 3, 39, 1)], r":2: cell 'l' is not a whole number"),
    ([line("", 3, 39, 1)], r":2: cell '' is not a whole number"),
    ([line(1, 3, "IT", 1)], r":2: country 'IT' is not a whole number"),
    ([line(1, 3, 39, -1)], r":2: sms_in -1 is not an activity"),
    ([line(1, 3, 39, "nan")], r":2: sms_in nan is not an activity"),
    ([line(1, 3, 39, "inf")], r":2: sms_in inf is not an activity"),
    ([line(0, 3, 39, 1)], r":2: cell 0 is not on the milan grid, which has 10000 cells with ids in 1\.\.10000"),
    ([line(10_001, 3, 39, 1)], r":2: cell 10001 is not on the milan grid"),
    ([line(1, 3.5, 39, 1).replace(".0", "")], r":2: time \d+ is not a slot start: .* multiple of 600000"),
    ([line(2, 3, 39, 1), line(1, 3, 39, 1), line(1, 2, 39, 1)], r":4: time \d+ of cell 1 is out of order"),
    ([line(2, 0, 39, 1), line(1, 0, 39, 1)], r":3: cell 1, time \d+, country 39 is a duplicate"),
    ([line(1, 0, 33, 1), line(1, 0, 39, 1)], r":3: .* is a duplicate of an earlier line"),
    ([""], r":2: 1 fields"),
]


@pytest.mark.parametrize(("rows", "message"), BAD)
def test_a_bad_line_names_file_line_value_and_remedy(file, rows, message):
    write(file, line(1, 0, 39, 1, 2, 3, 4, 5), *rows, line(5, 0, 39, 1))
    with pytest.raises(DataError, match=message) as caught:
        TrafficDataset.from_telecom_italia(file)
    assert str(caught.value).startswith(str(file))
    assert "repair" in str(caught.value) or "again" in str(caught.value)


def test_equal_rows_of_different_countries_and_cells_are_no_duplicates(file):
    write(file, line(1, 0, 39, 1), line(1, 0, 7, 1), line(2, 0, 39, 1), line(1, 1, 39, 1), line(2, 1, 7, 1))
    assert TrafficDataset.from_telecom_italia(file).activity[0, 1, 0, 0] == 2


def test_a_line_without_any_activity_is_fine(file):
    write(file, line(1, 0, 39, "", "", "", "", ""), line(1, 1, 39, 1))
    assert TrafficDataset.from_telecom_italia(file).activity[0].sum() == 0


def test_windows_line_ends(file):
    file.write_bytes(b"".join((line(1, s, 39, 1, 2, 3, 4, 5) + "\r\n").encode() for s in range(3)))
    assert TrafficDataset.from_telecom_italia(file).activity[2, :, 0, 0].tolist() == [7, 3, 5]


@pytest.mark.parametrize(
    "tail", ["2\t13832604", "2", line(2, 0, 39, 1, 2), line(2, 0, 39, 1, 2, 3, 4, 5.25), "2\t\t\t\t\t\t\t"]
)
def test_a_cut_last_line(file, tail):
    rows = [line(1, s, 39, 1, 2, 3, 4, 5) for s in range(3)]
    write(file, *rows, tail, end="")
    with pytest.raises(DataError, match=r":4: the file was cut in the middle of its last line.*on_cut=\"drop\""):
        TrafficDataset.from_telecom_italia(file)
    data = TrafficDataset.from_telecom_italia(file, on_cut="drop")
    assert data.activity[:, 2, 0, 0].tolist() == [5, 5, 5]
    assert np.isnan(data.activity[:, :, 0, 1]).all()  # the download never reached it: missing, not 0


def test_a_whole_last_line_without_line_end(file):
    write(file, line(1, 0, 39, 1), line(1, 1, 39, 1), line(2, 0, 39, 1, 2, 3, 4, 11.028366381681026), end="")
    data = TrafficDataset.from_telecom_italia(file)
    assert data.activity[0, 2, 0, 1] == np.float32(11.028366381681026)
    assert np.isnan(data.activity[1, :, 0, 1]).all()  # after the last row of the last cell
    assert data.activity[1, 1, 0, 0] == 1


def test_cut_file_still_has_its_other_lines_checked(file):
    write(file, line(1, 0, 39, 1), line(1, 0, 39, 1), "2\t138", end="")
    with pytest.raises(DataError, match=r":2: .* duplicate"):
        TrafficDataset.from_telecom_italia(file, on_cut="drop")
    write(file, line(1, 0, 39, 1), line(1, 1, 39, "x"), "2\t138", end="")
    with pytest.raises(DataError, match=":2: sms_in 'x'"):
        TrafficDataset.from_telecom_italia(file, on_cut="drop")


def test_no_files(tmp_path, file):
    with pytest.raises(DataError, match="no file matches the pattern"):
        TrafficDataset.from_telecom_italia(str(tmp_path / "*.txt"))
    with pytest.raises(DataError, match="there is no file"):
        TrafficDataset.from_telecom_italia(tmp_path / "gone.txt")
    with pytest.raises(DataError, match="is a folder"):
        TrafficDataset.from_telecom_italia(tmp_path)
    with pytest.raises(DataError, match="no file was given"):
        TrafficDataset.from_telecom_italia([])
    file.write_text("")
    with pytest.raises(DataError, match="is empty"):
        TrafficDataset.from_telecom_italia(file)
    file.write_text("1\t13")
    with pytest.raises(DataError, match="no whole line"):
        TrafficDataset.from_telecom_italia(file, on_cut="drop")


def test_unknown_options(file):
    day(file)
    with pytest.raises(ConfigError, match="unknown grid 'rome'"):
        TrafficDataset.from_telecom_italia(file, grid="rome")
    with pytest.raises(ConfigError, match="cells must be one of grid, observed, got 'all'"):
        TrafficDataset.from_telecom_italia(file, cells="all")


def test_the_same_day_twice(tmp_path):
    day(tmp_path / "a.txt")
    day(tmp_path / "b.txt", start=START + 5 * SLOT)
    with pytest.raises(DataError, match=r"b\.txt and .*a\.txt both have rows of the slot 2013-10-31T23:50:00"):
        TrafficDataset.from_telecom_italia(str(tmp_path / "*.txt"))


def test_a_wild_time_is_refused_before_memory_is_taken(file):
    write(file, line(1, 0, 39, 1), line(1, 10_000_000, 39, 1))
    with pytest.raises(DataError, match="a time stamp must be wrong"):
        TrafficDataset.from_telecom_italia(file)


def test_cache(tmp_path, file, monkeypatch):
    day(file)
    cache = tmp_path / "milan.npz"
    first = TrafficDataset.from_telecom_italia(file, cache=cache)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["milan.npz", file.name]
    with monkeypatch.context() as patch:
        patch.setattr(reader, "read_day", lambda *a: pytest.fail("the cache was not used"))
        again = TrafficDataset.from_telecom_italia(file, cache=cache)
    np.testing.assert_array_equal(again.activity, first.activity)
    assert again.services == first.services
    day(file, slots=7)
    assert TrafficDataset.from_telecom_italia(file, cache=cache).num_steps == 7
    assert TrafficDataset.from_telecom_italia(file, cache=cache, cells="observed").num_cells == 3


def test_cache_never_overwrites_another_file(tmp_path, file):
    day(file)
    other = tmp_path / "mine.npz"
    np.savez(other, a=np.ones(3))
    with pytest.raises(DataError, match="not a cache of daily files"):
        TrafficDataset.from_telecom_italia(file, cache=other)
    assert np.load(other)["a"].sum() == 3


def test_load_by_path(file):
    day(file)
    assert load(file).num_cells == 3
    assert Path(load(file).name).stem == "sms-call-internet-mi-2013-11-01"


def test_blocks_end_anywhere(file, monkeypatch):
    write(file, *(line(c, s, 39, 1.5, "", 0.25, 0.5, c + s) for c in (7, 1, 70) for s in range(9)))
    whole = TrafficDataset.from_telecom_italia(file).activity
    for size in (1, 40, 100):  # shorter and longer than a line
        monkeypatch.setattr(telecom_italia_day, "_BLOCK", size)
        np.testing.assert_array_equal(TrafficDataset.from_telecom_italia(file).activity, whole)
    monkeypatch.setattr(telecom_italia_day, "_BLOCK", 100)
    write(file, line(1, 0, 39, 1), line(1, 1, 39, 1), line(2, 0, 39, 1), line(1, 0, 39, 1), line(1, 5, 39, 1))
    with pytest.raises(DataError, match=r":4: time \d+ of cell 1 is out of order"):
        TrafficDataset.from_telecom_italia(file)


def test_rows_in_another_order_are_read_too(file):
    rows = [line(c, s, k, 1) for s in range(3) for c in (3, 1) for k in (39, 7)]  # by time
    write(file, *rows)
    assert TrafficDataset.from_telecom_italia(file).activity[:, 1, 0, [0, 2]].tolist() == [[2, 2]] * 3
    write(file, *rows, rows[-1])
    with pytest.raises(DataError, match=r":13: .* is a duplicate"):
        TrafficDataset.from_telecom_italia(file)


def test_a_killed_run_resumes_after_the_last_finished_day(tmp_path, monkeypatch):
    for n in range(3):
        day(tmp_path / f"{n}.txt", start=START + 6 * n * SLOT)
    expected = TrafficDataset.from_telecom_italia(str(tmp_path / "*.txt")).activity
    cache, read = tmp_path / "milan.npz", []

    def reading(path, *rest):
        if len(read) == 2:
            raise KeyboardInterrupt
        read.append(path.name)
        return telecom_italia_day.read_day(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(reader, "read_day", reading)
        with pytest.raises(KeyboardInterrupt):
            TrafficDataset.from_telecom_italia(str(tmp_path / "*.txt"), cache=cache)
        assert sorted(read) == ["0.txt", "1.txt"]  # two days are read at a time
        assert not cache.exists()
        read.clear()
        day(tmp_path / "1.txt", start=START + 6 * SLOT)  # written again, so read again
        again = TrafficDataset.from_telecom_italia(str(tmp_path / "*.txt"), cache=cache)
    assert sorted(read) == ["1.txt", "2.txt"]
    np.testing.assert_array_equal(again.activity, expected)
    assert not (tmp_path / "milan.npz.days").exists()


def test_a_damaged_finished_day_is_read_again(tmp_path, monkeypatch):
    day(tmp_path / "0.txt")
    write(tmp_path / "1.txt", "x")
    cache = tmp_path / "milan.npz"
    with pytest.raises(DataError, match=r"1\.txt:1"):
        TrafficDataset.from_telecom_italia(str(tmp_path / "*.txt"), cache=cache)
    next((tmp_path / "milan.npz.days").iterdir()).write_bytes(b"PK")
    day(tmp_path / "1.txt", start=START + 6 * SLOT)
    assert TrafficDataset.from_telecom_italia(str(tmp_path / "*.txt"), cache=cache).num_steps == 12


def test_a_file_without_activity_in_a_line_needs_no_second_pass(file, monkeypatch):
    monkeypatch.setattr(telecom_italia_day, "check_lines", lambda *a, **k: pytest.fail("looked line by line"))
    write(file, line(1, 0, 39, "", "", "", "", ""), line(1, 1, 39, 1))
    assert TrafficDataset.from_telecom_italia(file).activity[1, 1, 0, 0] == 1
