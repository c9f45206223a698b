"""Tables in files: separators, packing, several files, and messages that name file and line."""

from __future__ import annotations

import gzip
import zipfile

import numpy as np
import pytest

from simmst.data import TrafficDataset, load
from simmst.errors import DataError

pd = pytest.importorskip("pandas")
pytest.importorskip("holidays")

DS = pd.date_range("2013-11-01", periods=24, freq="h")


def long():
    parts = [pd.DataFrame({"unique_id": one, "ds": DS, "y": np.arange(24.0) + 0.5}) for one in ("0042", "0043")]
    return pd.concat(parts, ignore_index=True)


def written(tmp_path, text, name="t.csv", encoding="utf-8"):
    (tmp_path / name).write_bytes(text.encode(encoding))
    return tmp_path / name


def hours(rows, header="ds,a,b"):
    return header + "\n" + "".join(row.format(f"2013-11-01 {hour:02d}:00") + "\n" for hour, row in enumerate(rows))


def test_identifiers_of_a_file_stay_as_they_are(tmp_path):
    data = load(written(tmp_path, long().to_csv(index=False)))
    assert data.unique_ids().tolist() == ["0042", "0043"]
    again = data.to_dataframe()
    assert again.unique_id.tolist() == long().unique_id.tolist()
    for text, kind in (("4259", np.int64), ("12E4", np.str_), ("4259.50", np.str_)):
        text_ids = long().assign(unique_id=text)[:24].to_csv(index=False)
        ids = load(written(tmp_path, text_ids)).unique_ids()
        assert (str(ids[0]), type(ids[0])) == (text, kind)
    wide = pd.DataFrame({"ds": DS, "4259": 1.0, "4456": 2.0})
    assert load(written(tmp_path, wide.to_csv(index=False)), cells="milan").cell_id.max() == 4456


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separators(tmp_path, separator):
    path = written(tmp_path, long().to_csv(index=False, sep=separator))
    np.testing.assert_array_equal(load(path).activity, TrafficDataset.from_dataframe(long()).activity)


def test_semicolons_with_decimal_commas(tmp_path):
    text = hours(["{0};1,5;1.234,25"] * 24, "Zeit;a;b").replace("Zeit", "time")
    assert load(written(tmp_path, text)).activity[0, 0, 0].tolist() == [1.5, 1234.25]
    text = hours(["{0};1,234;2,345"] * 24, "time;a;b")
    with pytest.raises(DataError, match=r"t\.csv: line 2: y of 'a' is '1,234'.*give decimal=','"):
        load(written(tmp_path, text))
    assert load(tmp_path / "t.csv", decimal=",").activity[0, 0, 0].tolist() == pytest.approx([1.234, 2.345])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_encodings(tmp_path, encoding):
    path = written(tmp_path, hours(["{0},1,2"] * 24, "ds,Città,b"), encoding=encoding)
    assert load(path).unique_ids().tolist() == ["Città", "b"]


def test_epoch_milliseconds_and_dates_with_the_day_first(tmp_path):
    milliseconds = 1_383_260_400_000 + np.arange(24) * 3_600_000
    data = load(written(tmp_path, pd.DataFrame({"ds": milliseconds, "a": 1.5}).to_csv(index=False)))
    assert data.time[0] == np.datetime64("2013-10-31T23:00:00")
    text = pd.DataFrame({"ds": DS.strftime("%d/%m/%Y %H:%M"), "a": 1.5}).to_csv(index=False)
    with pytest.raises(DataError, match=r"t\.csv: ds: '01/11/2013 00:00' may have the day or the month first"):
        load(written(tmp_path, text))
    assert load(tmp_path / "t.csv", dayfirst=True).time[0] == data.time[0]


def test_packed_tables(tmp_path):
    text = long().to_csv(index=False).encode()
    expected = load(written(tmp_path, text.decode())).activity
    (tmp_path / "p.csv.gz").write_bytes(gzip.compress(text))
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.writestr("inside/p.csv", text)
        archive.writestr("__MACOSX/inside/._p.csv", b"x")
    for name in ("p.csv.gz", "p.zip"):
        data = load(tmp_path / name)
        np.testing.assert_array_equal(data.activity, expected)
        assert data.name == "p"
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(text)[:-20])
    with pytest.raises(DataError, match=r"cut\.csv\.gz cannot be unpacked .*cut short: fetch it again"):
        load(tmp_path / "cut.csv.gz")
    (tmp_path / "no.zip").write_bytes(b"PK no archive")
    with pytest.raises(DataError, match=r"no\.zip cannot be unpacked"):
        load(tmp_path / "no.zip")


def test_several_files_are_one_table(tmp_path):
    frame = long()
    for number, day in enumerate((frame[frame.ds.dt.hour < 12], frame[frame.ds.dt.hour >= 12])):
        day.to_csv(tmp_path / f"day{number}.csv", index=False)
    expected = TrafficDataset.from_dataframe(frame)
    for source in (tmp_path, str(tmp_path / "day*.csv"), [tmp_path / "day1.csv", tmp_path / "day0.csv"]):
        np.testing.assert_array_equal(load(source).activity, expected.activity)
    (tmp_path / "day1.csv").write_text((tmp_path / "day1.csv").read_text().replace(",13.5", ",x", 1))
    with pytest.raises(DataError, match=r"day1\.csv, line 3: y 'x' of '0042' is not a number"):
        load(tmp_path)
    (tmp_path / "day1.csv").write_text("when,cell\n1,2\n")
    with pytest.raises(DataError, match=r"day1\.csv has columns when, cell, and .*day0\.csv has unique_id, ds, y"):
        load(tmp_path)


def test_parquet(tmp_path):
    long().to_parquet(tmp_path / "t.parquet")
    np.testing.assert_array_equal(load(tmp_path / "t.parquet").activity, TrafficDataset.from_dataframe(long()).activity)
    (tmp_path / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-9])
    with pytest.raises(DataError, match=r"t\.parquet cannot be read as Parquet"):
        load(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (hours(["{0},1,2"] * 5 + ["", "{0},1,x"]), r"line 8: y 'x' of 'b' is not a number"),
        (hours(["{0},1,2"] * 5 + ["{0},1,2,3"]), r"Expected 3 fields in line 7, saw 4"),
        (hours(["{0},1,2"] * 5, "ds,a,a"), r"two columns are named 'a'"),
        (hours(["{0},1,2"] * 5, "2013-11-01,1,2"), r"the first line has no names of columns"),
        ("ds,a\n", r"has no rows below a first line"),
        ("", r"has no rows below a first line"),
        # before Python 3.11, csv itself refuses it
        ("ds,a\n2013-11-01\x00,1\n", r"(line 2: ds '2013-11-01.*' is not a time|is not a row .*line contains NUL)"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path, text, message):
    with pytest.raises(DataError, match=rf"t\.csv.*{message}"):
        load(written(tmp_path, text))


def test_commas_at_the_ends_of_lines(tmp_path):
    for header in ("ds,a,b", "ds,a,b,"):
        data = load(written(tmp_path, hours(["{0},1,2,"] * 24, header)))
        assert data.unique_ids().tolist() == ["a", "b"]
    with pytest.raises(DataError, match="column 'Unnamed: 3' has no role"):
        load(written(tmp_path, hours(["{0},1,2,7"] * 24)))


def test_hourly_files_of_milan(tmp_path):
    fields = "datetime,CellID,countrycode,smsin,smsout,callin,callout,internet"
    path = written(tmp_path, hours(["{0},4456,39,1,2,,0.5,9"] * 24, fields), "sms-call-internet-mi-2013-11-01.csv")
    data = load(path)
    assert data.services == ("call", "sms", "internet")
    assert data.activity[5, :, 0, 0].tolist() == [0.5, 3.0, 9.0]
    assert data.cell_id.tolist() == [[4456]]
    assert data.layout.notes[-1] == "the cells are those of the milan grid"
    trento = load(path.rename(tmp_path / "sms-call-internet-tn-2013-11-01.csv"))
    assert (trento.cell_size_m, trento.layout.notes[-1]) == (1000, "the cells are those of the trento grid")
    assert load(tmp_path / "sms-call-internet-tn-2013-11-01.csv", cells="milan").cell_size_m == 235


def official(day=0):
    slot = 1_383_260_400_000 + day * 86_400_000
    return "".join(
        f"{cell}\t{slot + i * 600_000}\t39\t0.1\t0.2\t0.3\t0.4\t10.0\n" for cell in (1, 2) for i in range(144)
    )


def test_packed_official_text(tmp_path):
    pytest.importorskip("polars")
    expected = load(written(tmp_path, official(), "sms-call-internet-mi-2013-11-01.txt"))
    (tmp_path / "sms-call-internet-mi-2013-11-01.txt.gz").write_bytes(gzip.compress(official().encode()))
    with zipfile.ZipFile(tmp_path / "dataverse_files.zip", "w") as archive:
        for day in range(2):
            archive.writestr(f"sms-call-internet-mi-2013-11-0{day + 1}.txt", official(day))
    packed = load(tmp_path / "sms-call-internet-mi-2013-11-01.txt.gz")
    np.testing.assert_array_equal(packed.activity, expected.activity)
    assert packed.services == ("call", "sms", "internet")
    both = load(tmp_path / "dataverse_files.zip")
    assert (both.num_steps, int(np.isnan(both.activity).sum())) == (288, 0)
    renamed = load(written(tmp_path, official(), "rows.csv"))  # official rows under another name
    np.testing.assert_array_equal(renamed.activity, expected.activity)
    bad = official().replace("0.2", "0.2x", 1)
    (tmp_path / "bad.txt.gz").write_bytes(gzip.compress(bad.encode()))
    with pytest.raises(DataError, match=rf"{tmp_path}/bad\.txt\.gz:1: sms_out '0\.2x' is not a number"):
        load(tmp_path / "bad.txt.gz")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(official().encode())[:-9])
    with pytest.raises(DataError, match=r"cut\.txt\.gz cannot be unpacked .*fetch it again"):
        load(tmp_path / "cut.txt.gz")


def test_options_where_they_have_no_use(tmp_path):
    np.savez(tmp_path / "z.npz", internet_z=np.zeros((12, 2)))
    with pytest.raises(DataError, match=r"z\.npz describes its own contents; leave out timezone"):
        load(tmp_path / "z.npz", timezone="UTC")
    written(tmp_path, long().to_csv(index=False))
    with pytest.raises(DataError, match=r"has files of several kinds \(\.npz, table\)"):
        load([tmp_path / "z.npz", tmp_path / "t.csv"])
