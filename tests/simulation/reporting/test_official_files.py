from __future__ import annotations

import numpy as np
import pytest

from simmst.data import TrafficDataset
from simmst.errors import ConfigError, DataError
from simmst.simulation import CityConfig, CountryRows, simulate_city, write_official_files


def city(**settings) -> TrafficDataset:
    settings = {"height": 3, "width": 12, "days": 2, "step_minutes": 10, "missing_share": 0.0, **settings}
    return simulate_city(CityConfig(seed=3, **settings))


def test_the_reader_gives_the_city_back(tmp_path):
    written = city(start="2013-03-30")  # the clocks change on the 31st
    seen = []
    paths = write_official_files(written, tmp_path, progress=lambda *call: seen.append(call))
    assert [path.name[-14:-4] for path in paths] == ["2013-03-30", "2013-03-31", "2013-04-01"]
    assert seen == [(1, 3, paths[0]), (2, 3, paths[1]), (3, 3, paths[2])]
    assert min(int(line.split("\t")[1]) for line in paths[1].open()) == 1364684400000  # midnight in Rome
    read = TrafficDataset.from_telecom_italia(paths, cells="observed")
    np.testing.assert_array_equal(read.time, written.time)
    np.testing.assert_allclose(read.activity, written.select_services(read.services).activity, rtol=1e-5, atol=1e-6)
    assert read.cell_id[0, :3].tolist() == [1, 2, 3]
    assert read.cell_id[1, 0] == 101


def test_rows_look_like_the_official_ones(tmp_path):
    (path,) = write_official_files(city(days=1), tmp_path)
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    assert all(len(row) == 8 for row in rows)
    keys = [(row[0], int(row[1]), row[2]) for row in rows]
    assert keys == sorted(keys), "the order is by cell as text, time, country as text"
    home = [row for row in rows if row[2] == "39"]
    none = [row for row in rows if row[2] == "0"]
    assert len(home) > 0.9 * 36 * 144
    assert all(row[3] and not any(row[4:]) for row in none), "messages without a country are incoming"
    received = sum(float(row[3] or 0) for row in rows)
    assert 0.2 < sum(float(row[3]) for row in none) / received < 0.4
    assert len({row[2] for row in rows}) > 8
    assert any("" in row for row in rows)
    assert not any(float(field) == 0 for row in rows for field in row[3:] if field)


def test_the_division_depends_on_the_seed_alone(tmp_path):
    one, two, other = (
        write_official_files(city(days=1), tmp_path / name, seed=seed)[0].read_bytes()
        for name, seed in (("one", 0), ("two", 0), ("other", 1))
    )
    assert one == two != other


def test_without_foreign_rows(tmp_path):
    countries = CountryRows(foreign_probability=0.0, no_country_sms=0.0)
    (path,) = write_official_files(city(days=1), tmp_path, countries=countries)
    assert {line.split("\t")[2] for line in path.read_text().splitlines()} == {"39"}


def test_a_lost_slot(tmp_path):
    whole = city(days=1)
    activity = whole.activity.copy()
    activity[5] = np.nan
    activity[9, :, 1, 1] = np.nan
    read = TrafficDataset.from_telecom_italia(
        write_official_files(whole.with_(activity=activity), tmp_path), cells="observed"
    )
    assert np.isnan(read.activity[5]).all()
    assert (read.activity[9, :, 1, 1] == 0).all(), "the format cannot express a missing slot"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step_minutes": 60}, "slots of 60 min, but official files have 10"),
        ({"services": ["sms"]}, "has the services sms; official files hold call, sms and internet"),
        ({"width": 101, "days": 1}, "has 3 x 101 cells, the milan grid 100 x 100"),
    ],
)
def test_cities_that_the_format_cannot_hold(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        write_official_files(city(**changes), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_wrong_countries():
    with pytest.raises(ConfigError, match=r"CountryRows\.foreign_share is 1\.0"):
        CountryRows(foreign_share=1.0)
    with pytest.raises(ConfigError, match="give country codes other than 39 and 0"):
        CountryRows(codes=(33, 39))
