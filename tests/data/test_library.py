from __future__ import annotations

import numpy as np
import pytest

from simmst.data import (
    available,
    data_directory,
    load,
    read_published_predictions,
    read_undated_frames,
)
from simmst.errors import DataError


@pytest.fixture
def no_folder(monkeypatch):
    monkeypatch.delenv("SIMMST_DATA", raising=False)


def test_data_directory_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMMST_DATA", str(tmp_path))
    assert data_directory() == tmp_path.resolve()
    assert available() == []
    monkeypatch.setenv("SIMMST_DATA", str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"SIMMST_DATA=.*gone is not a folder"):
        data_directory()


def test_the_data_folder_is_never_guessed(tmp_path, monkeypatch, no_folder):
    (tmp_path / "shared" / "data").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(DataError, match="set SIMMST_DATA"):
        data_directory()
    assert available() == []


def test_unknown_names(tmp_path, monkeypatch):
    np.savez(tmp_path / "one.npz", internet_z=np.zeros((12, 2)))
    monkeypatch.setenv("SIMMST_DATA", str(tmp_path))
    assert load("one").num_cells == load("one.npz").num_cells == 2
    with pytest.raises(DataError, match="two does not exist; give a file, or a name: the data folder has one"):
        load("two")
    with pytest.raises(DataError, match="is a folder, not a file"):
        load(tmp_path)
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(DataError, match=r"none of \.npz"):
        load(tmp_path / "notes.md")


def test_names_without_a_folder(no_folder):
    told = "there is no file milan_block5x5_internet_10min, nor a data set of that name: there is no data folder; set"
    with pytest.raises(DataError, match=told):
        load("milan_block5x5_internet_10min")


def test_csv_by_path(tmp_path):
    pd = pytest.importorskip("pandas")
    pd.DataFrame({"ds": pd.date_range("2013-11-01", periods=6, freq="h"), "a": range(6)}).to_csv(
        tmp_path / "a.csv", index=False
    )
    data = load(tmp_path / "a.csv")
    assert data.activity.reshape(-1).tolist() == [0, 1, 2, 3, 4, 5]
    assert data.name == "a"


def test_grids_file_is_not_traffic(real_file):
    real_file("milan_trento_grids.npz")
    with pytest.raises(DataError, match="load_grid"):
        load("milan_trento_grids")


def test_block(real_file):
    data = load(real_file("milan_block5x5_internet_10min.npz").stem)
    assert data.activity.shape == (3312, 1, 5, 5)
    assert data.services == ("internet",)
    assert data.geometry == "grid"
    assert data.cell_id[0].tolist() == [4142, 4143, 4144, 4145, 4146]
    assert data.cell_id[4, 4] == 4546
    hourly = data.resample(60)
    assert hourly.num_steps == 552
    # The only true burst: cell 4344, 11 November 00:50 local.
    row, col = np.argwhere(data.cell_id == 4344)[0]
    peak = data.activity[:, 0, row, col].argmax()
    assert data.time[peak] == np.datetime64("2013-11-10T23:50:00")
    assert data.activity[peak, 0, row, col] == pytest.approx(3136, abs=1)


def test_three_cells(real_file):
    data = load(real_file("milan_three_services_3cells_hourly.npz").stem)
    assert data.services == ("call", "sms", "internet")
    assert data.activity.shape == (168, 3, 6, 57)
    assert data.cell_id[data.mask].tolist() == [4259, 4456, 4703]
    assert data.cells.tolist() == [[0, 56], [2, 53], [5, 0]]
    assert (data.geometry, data.step_minutes) == ("grid", 60)
    assert data.lonlat is not None or "milan_trento_grids" not in available()


def test_city_totals(real_file):
    data = load(real_file("milan_city_total_three_services_10min.npz").stem)
    assert data.activity.shape == (1008, 3, 1, 1)
    assert data.geometry == "points"
    assert data.activity[0, 2, 0, 0] == pytest.approx(603319.6)


def test_frames_of_the_whole_city(real_file):
    path = real_file("milan_city100x100_internet_10min_frames.npz")
    data = load(path.name)
    assert data.activity.shape == (28, 1, 100, 100)
    assert data.step_minutes == 10
    assert data.mask.all()
    assert data.cell_id[99, 99] == 10_000
    assert read_undated_frames(path).shape == (30, 100, 100)
    with pytest.raises(DataError, match="has no published_fedgcc"):
        read_published_predictions(path)


@pytest.mark.parametrize(
    ("name", "places", "reported"),
    [("milan_88_quarters", 88, (0.0824, 0.0939)), ("trento_223_communes", 223, (0.379, 0.446))],
)
def test_z_scored_places(real_file, name, places, reported):
    path = real_file(f"{name}_internet_10min_zscored.npz")
    data = load(path.name)
    assert data.activity.shape == (720, 1, 1, places)
    assert (data.unit, data.geometry) == ("z-score", "points")
    assert data.time[0] == np.datetime64("2013-12-25T23:00:00")
    predicted = read_published_predictions(path)
    z = data.series()[:, 0]
    # The published model's error on these five days is close to that on its whole week, and above persistence.
    model, naive = np.abs(predicted - z).mean(), np.abs(np.diff(z, axis=0)).mean()
    assert model == pytest.approx(reported[1], rel=0.2)
    assert naive == pytest.approx(reported[0], rel=0.2)
    if places == 223:
        assert data.unique_ids()[0] == "Ala"
        assert data.lonlat.shape == (1, 223, 2)


def test_z_scored_days_rise_as_their_weekdays_do(real_file):
    """The documented start: the mornings of a holiday, Saturday and Sunday are later than on Friday and Monday."""
    data = load(real_file("milan_88_quarters_internet_10min_zscored.npz").stem)
    days = data.series().mean(axis=(1, 2)).reshape(5, 144)
    morning = days[:, 48:54].mean(axis=1)  # 8 to 9
    assert morning[[1, 4]].min() > morning[[0, 2, 3]].max()


def test_raw_rows(real_file):
    pytest.importorskip("polars")
    data = load(real_file("milan_raw_sample_rows.txt").stem)
    assert data.services == ("call", "sms", "internet")
    assert data.cell_id[data.mask].tolist() == [1, 10, 100, 1000]
    assert data.num_steps == 144
    assert data.time[0] == np.datetime64("2013-10-31T23:00:00")
    assert data.activity[0, 2, 0, 0] == pytest.approx(11.028366, rel=1e-6)
    missing = np.isnan(data.series()).all(axis=1)  # (T, C): the file ends during the morning of cell 1000
    assert missing[:, :3].sum() == 0
    assert missing[:, 3].sum() == 99


@pytest.mark.parametrize(
    ("file", "patches", "steps", "minutes", "cells", "start"),
    [
        ("shandong_12_patches_hourly.npz", 12, 168, 60, 151, "2013-11-07T16:00:00"),  # a Friday, 00:00 in Shanghai
        ("nanjing_8_patches_15min.npz", 8, 672, 15, 64, "2013-11-05T16:00:00"),  # a Wednesday
    ],
)
def test_patches_lie_apart_on_one_grid(real_file, file, patches, steps, minutes, cells, start):
    path = real_file(file)
    data = load(path.stem)
    assert data.activity.shape == (steps, 1, 4, 8 * patches - 4)
    assert (data.geometry, data.step_minutes, data.num_cells, data.services) == ("grid", minutes, cells, ("internet",))
    assert (data.timezone, data.country, data.unit) == ("Asia/Shanghai", None, "unknown unit")
    assert data.time[0] == np.datetime64(start)
    with np.load(path) as arrays:
        traffic, mask = arrays["traffic"], arrays["mask"]
    for (row, column), name in zip(data.cells, data.unique_ids(), strict=True):
        patch, place = name.split("/")
        assert place == f"{row},{column % 8}"
        np.testing.assert_array_equal(data.activity[:, 0, row, column], traffic[int(patch), :, row, column % 8])
        assert mask[int(patch), row, column % 8]


def test_presence_in_zones(real_file):
    path = real_file("paris_6zones_presence_30min.npz")
    data = load(path.stem)
    assert data.activity.shape == (2544, 1, 1, 6)
    assert (data.geometry, data.services, data.unit) == ("points", ("presence",), "users")
    assert (data.timezone, data.country) == ("Europe/Paris", "FR")
    assert data.time[0] == np.datetime64("2020-08-23T22:00:00")
    assert data.unique_ids()[0] == "Commune Montreuil"
    missing = np.isnan(data.series()).all(axis=(1, 2))  # 17 September
    assert data.time[missing][[0, -1]].tolist() == [
        np.datetime64("2020-09-16T22:00:00").item(),
        np.datetime64("2020-09-17T21:30:00").item(),
    ]
    assert np.isnan(data.series()).sum() == 48 * 6


@pytest.mark.parametrize(
    "file",
    [
        "milan_3cells_internet_10min_november.npz",
        "milan_88_quarters_internet_10min_zscored.npz",
        "milan_block5x5_internet_10min.npz",
        "milan_city100x100_internet_10min_frames.npz",
        "milan_city_total_three_services_10min.npz",
        "milan_raw_sample_rows.txt",
        "milan_three_services_3cells_hourly.npz",
        "nanjing_8_patches_15min.npz",
        "paris_6zones_presence_30min.npz",
        "shandong_12_patches_hourly.npz",
        "trento_223_communes_internet_10min_zscored.npz",
    ],
)
def test_every_extract_loads_by_name(real_file, file):
    pytest.importorskip("polars")
    name = real_file(file).stem
    assert name in available()
    assert load(name).num_steps >= 2
