from __future__ import annotations

import json

import numpy as np
import pytest

from simmst import TrafficDataset, city_folder
from simmst.city_folder import simulate
from simmst.errors import ConfigError
from simmst.simulation import CityConfig, simulate_cities, simulate_city

SMALL = {"height": 3, "width": 3, "days": 1}


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_files_and_manifest(tmp_path):
    seen = []
    paths = simulate(2, tmp_path / "cities", seed=4, city=SMALL, progress=lambda *call: seen.append(call))
    assert [path.name for path in paths] == ["city-00000.npz", "city-00001.npz"]
    assert seen == [("simulate", 1, 2), ("simulate", 2, 2)]
    for path, city in zip(paths, simulate_cities(2, seed=4, **SMALL), strict=True):
        read = TrafficDataset.from_npz(path)
        np.testing.assert_array_equal(read.activity, city.activity)
        assert read.surrogate
    rows = manifest(tmp_path / "cities")["cities"]
    assert [row.pop("file") for row in rows] == ["city-00000.npz", "city-00001.npz"]
    again = simulate_city(CityConfig.from_dict(rows[1]))
    np.testing.assert_array_equal(again.activity, TrafficDataset.from_npz(paths[1]).activity)


def test_finished_cities_are_kept(tmp_path, monkeypatch):
    simulate(2, tmp_path, city=SMALL)
    made = []
    monkeypatch.setattr(city_folder, "simulate_city", lambda config: made.append(config.index) or simulate_city(config))
    assert len(simulate(4, tmp_path, city=SMALL)) == 4
    assert made == [2, 3]
    assert len(simulate(1, tmp_path, city=SMALL)) == 1
    assert made == [2, 3]
    assert len(manifest(tmp_path)["cities"]) == 4, "fewer cities asked for take none off the list"


def test_killed_and_called_again(tmp_path, monkeypatch):
    whole = simulate(3, tmp_path / "whole", city=SMALL)

    def killed(config):
        if config.index == 1:
            (tmp_path / "broken" / ".city-00001-half.npz").write_bytes(b"half")  # what SIGKILL leaves
            raise KeyboardInterrupt
        return simulate_city(config)

    monkeypatch.setattr(city_folder, "simulate_city", killed)
    with pytest.raises(KeyboardInterrupt):
        simulate(3, tmp_path / "broken", city=SMALL)
    monkeypatch.undo()
    broken = simulate(3, tmp_path / "broken", city=SMALL)
    assert [path.read_bytes() for path in broken] == [path.read_bytes() for path in whole]
    assert sorted(path.name for path in (tmp_path / "broken").iterdir()) == sorted(
        [*(path.name for path in whole), "manifest.json"]
    )
    assert manifest(tmp_path / "broken") == manifest(tmp_path / "whole")


def test_another_family_in_the_folder(tmp_path, monkeypatch):
    simulate(1, tmp_path, seed=1, city={**SMALL, "services": ("sms",)})
    assert len(simulate(1, tmp_path, seed=1, city={**SMALL, "services": ["sms"]})) == 1
    with pytest.raises(ConfigError, match="holds cities made with seed 1, wanted 2; choose another folder"):
        simulate(1, tmp_path, seed=2, city={**SMALL, "services": ["sms"]})
    with pytest.raises(ConfigError, match=r"holds cities made with city .*, wanted"):
        simulate(1, tmp_path, seed=1, city=SMALL)
    monkeypatch.setattr(city_folder, "__version__", "99")
    with pytest.raises(ConfigError, match=r"made with simmst '.*', wanted '99'"):
        simulate(1, tmp_path, seed=1, city={**SMALL, "services": ["sms"]})


@pytest.mark.parametrize(
    ("cities", "city", "message"),
    [
        (0, SMALL, "cities is 0; it must be at least 1"),
        (1, {"dayz": 3}, "CityConfig has no field 'dayz'; did you mean 'days'"),
        (1, {"days": 0}, r"CityConfig\.days is 0"),
        (1, {"seed": 3}, "city holds 'seed', which each city has of its own"),
        (1, {"services": ["video"]}, "names 'video', which is no default service"),
    ],
)
def test_wrong_settings_leave_no_folder(tmp_path, cities, city, message):
    with pytest.raises(ConfigError, match=message):
        simulate(cities, tmp_path / "cities", city=city)
    assert not (tmp_path / "cities").exists()


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "manifest.json").write_text("[1, 2")
    with pytest.raises(ConfigError, match=r"manifest\.json, line 1: .*; choose another folder"):
        simulate(1, tmp_path, city=SMALL)
    (tmp_path / "manifest.json").write_text("[1, 2]")
    with pytest.raises(ConfigError, match="lists no simulated cities"):
        simulate(1, tmp_path, city=SMALL)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "city-00000.npz").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"holds cities but no manifest\.json"):
        simulate(1, tmp_path, city=SMALL)
    assert (tmp_path / "city-00000.npz").read_bytes() == b"mine"
