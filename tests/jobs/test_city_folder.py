from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from simmst import TrafficDataset
from simmst.data import CityShards
from simmst.errors import ConfigError, DataError
from simmst.jobs import city_folder
from simmst.jobs.city_folder import simulate
from simmst.simulation import DomainPrior, Uniform, simulate_cities, simulate_city

SMALL = {"height": 3, "width": 3, "days": 1}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(city_folder, "CITIES_PER_SHARD", 2)


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_shards_and_manifest(tmp_path):
    seen = []
    paths = simulate(3, tmp_path / "cities", seed=4, city=SMALL, progress=lambda *call: seen.append(call))
    assert [path.name for path in paths] == ["cities-00000.parquet", "cities-00001.parquet"]
    assert seen == [("simulate", 2, 3), ("simulate", 3, 3)]
    shards = CityShards(tmp_path / "cities")
    assert len(shards) == 3
    for read, city in zip(shards, simulate_cities(3, seed=4, **SMALL), strict=True):
        np.testing.assert_array_equal(read.activity, city.activity)
        assert read.surrogate
        assert read.name == city.name
    found = manifest(tmp_path / "cities")
    assert [row["file"] for row in found["cities"]] == [paths[0].name, paths[0].name, paths[1].name]
    row = found["cities"][2]
    config = DomainPrior.default().sample(found["seed"], row["index"], **found["city"])
    np.testing.assert_array_equal(simulate_city(config).activity, shards[2].activity)
    drawn = DomainPrior.default().values(config)
    assert set(row["parameters"]) == set(drawn)
    assert row["parameters"]["carrier_ghz"] == drawn["carrier_ghz"]


def test_finished_cities_are_kept(tmp_path, monkeypatch):
    simulate(2, tmp_path, city=SMALL)
    made = []
    monkeypatch.setattr(city_folder, "simulate_city", lambda config: made.append(config.index) or simulate_city(config))
    assert len(simulate(5, tmp_path, city=SMALL)) == 3
    assert made == [2, 3, 4]
    assert len(simulate(1, tmp_path, city=SMALL)) == 1
    assert made == [2, 3, 4]
    assert len(manifest(tmp_path)["cities"]) == 5, "asking for fewer cities removes none from the list"
    simulate(6, tmp_path, city=SMALL)
    assert made[3:] == [4, 5], "a shard with too few cities is made again"
    assert len(CityShards(tmp_path)) == 6


def test_killed_and_called_again(tmp_path, monkeypatch):
    whole = simulate(5, tmp_path / "whole", city=SMALL)

    def killed(config):
        if config.index == 3:
            (tmp_path / "broken" / ".cities-00001.half-written-x.parquet").write_bytes(b"half")  # what SIGKILL leaves
            raise KeyboardInterrupt
        return simulate_city(config)

    monkeypatch.setattr(city_folder, "simulate_city", killed)
    with pytest.raises(KeyboardInterrupt):
        simulate(5, tmp_path / "broken", city=SMALL)
    monkeypatch.undo()
    monkeypatch.setattr(city_folder, "CITIES_PER_SHARD", 2)
    broken = simulate(5, tmp_path / "broken", city=SMALL)
    assert [path.read_bytes() for path in broken] == [path.read_bytes() for path in whole]
    assert sorted(path.name for path in (tmp_path / "broken").iterdir()) == sorted(
        [*(path.name for path in whole), "manifest.json"]
    )
    assert manifest(tmp_path / "broken") == manifest(tmp_path / "whole")


@pytest.mark.slow
def test_workers_make_the_same_files_and_survive_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(city_folder, "CITIES_PER_SHARD", 16)  # as in the command
    city = {"height": 12, "width": 12, "days": 3}
    command = [sys.executable, "-m", "simmst", "simulate", "--cities", "80", "--workers", "2", "--quiet"]
    command += [f"--city.{key}={value}" for key, value in city.items()]
    process = subprocess.Popen([*command, "--out", str(tmp_path / "two")], start_new_session=True)
    deadline = time.monotonic() + 120
    while not any((tmp_path / "two").glob("cities-*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "two").glob("cities-*.parquet")}
    assert 0 < len(kept) <= 5
    subprocess.run([*command, "--out", str(tmp_path / "two")], check=True)
    assert all(path.stat().st_mtime_ns == changed for path, changed in kept.items())
    one = simulate(80, tmp_path / "one", city=city, workers=1)
    assert [path.read_bytes() for path in one] == [(tmp_path / "two" / path.name).read_bytes() for path in one]
    assert manifest(tmp_path / "one") == manifest(tmp_path / "two")


def test_a_prior_file(tmp_path):
    law = DomainPrior.default().narrow({"tilt_deg": Uniform(3.0, 4.0)})
    simulate(1, tmp_path / "file", city=SMALL, prior=law.to_yaml(tmp_path / "prior.yaml"))
    simulate(1, tmp_path / "given", city=SMALL, prior=law)
    assert manifest(tmp_path / "file") == manifest(tmp_path / "given")
    assert 3.0 <= manifest(tmp_path / "file")["cities"][0]["parameters"]["tilt_deg"] <= 4.0
    with pytest.raises(ConfigError, match=r"holds cities made with prior .*; choose another folder"):
        simulate(1, tmp_path / "file", city=SMALL)
    (tmp_path / "wrong.yaml").write_text("parameters: {tiltdeg: 3}")
    with pytest.raises(ConfigError, match=r"wrong\.yaml: unknown parameter 'tiltdeg'"):
        simulate(1, tmp_path / "none", city=SMALL, prior=tmp_path / "wrong.yaml")
    assert not (tmp_path / "none").exists()


def test_official_files_are_read_back(tmp_path):
    city = {**SMALL, "step_minutes": 10, "missing_share": 0.0, "start": "2013-11-04"}
    paths = simulate(2, tmp_path, city=city, format="official")
    assert [path.name for path in paths] == ["city-00000", "city-00001"]
    files = [sorted(path.iterdir()) for path in paths]
    assert [file.name for file in files[0]] == ["sms-call-internet-mi-2013-11-04.txt"]
    for found, simulated in zip(files, simulate_cities(2, seed=0, **city), strict=True):
        read = TrafficDataset.from_telecom_italia(found, cells="observed")
        np.testing.assert_allclose(read.activity, simulated.select_services(read.services).activity, rtol=1e-5)
    stamp = files[1][0].stat().st_mtime_ns
    (tmp_path / ".half-written-x").mkdir()
    assert simulate(2, tmp_path, city=city, format="official") == paths
    assert files[1][0].stat().st_mtime_ns == stamp
    assert not (tmp_path / ".half-written-x").exists()


def test_official_files_of_cities_they_cannot_hold(tmp_path):
    with pytest.raises(DataError, match="slots of 60 min, but official files have 10"):
        simulate(1, tmp_path, city=SMALL, format="official")
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"], "nothing half-written"


def test_another_family_in_the_folder(tmp_path, monkeypatch):
    simulate(1, tmp_path, seed=1, city={**SMALL, "services": ("sms",)})
    assert len(simulate(1, tmp_path, seed=1, city={**SMALL, "services": ["sms"]})) == 1
    with pytest.raises(ConfigError, match="holds cities made with seed 1, wanted 2; choose another folder"):
        simulate(1, tmp_path, seed=2, city={**SMALL, "services": ["sms"]})
    with pytest.raises(ConfigError, match=r"holds cities made with city .*, wanted"):
        simulate(1, tmp_path, seed=1, city=SMALL)
    with pytest.raises(ConfigError, match="made with format 'shards', wanted 'official'"):
        simulate(1, tmp_path, seed=1, city={**SMALL, "services": ["sms"]}, format="official")
    monkeypatch.setattr(city_folder, "__version__", "99")
    with pytest.raises(ConfigError, match=r"made with simmst '.*', wanted '99'"):
        simulate(1, tmp_path, seed=1, city={**SMALL, "services": ["sms"]})


@pytest.mark.parametrize(
    ("cities", "city", "options", "message"),
    [
        (0, SMALL, {}, "cities is 0; it must be at least 1"),
        (1, {"dayz": 3}, {}, "CityConfig has no field 'dayz'; did you mean 'days'"),
        (1, {"days": 0}, {}, r"CityConfig\.days is 0"),
        (1, {"seed": 3}, {}, "city holds 'seed', which differs from city to city"),
        (1, {"services": ["video"]}, {}, "names 'video', which is not a default service"),
        (1, SMALL, {"workers": 0}, "workers is 0; it must be at least 1"),
        (1, SMALL, {"format": "zarr"}, "format is 'zarr'; it must be one of shards, official"),
    ],
)
def test_wrong_settings_leave_no_folder(tmp_path, cities, city, options, message):
    with pytest.raises(ConfigError, match=message):
        simulate(cities, tmp_path / "cities", city=city, **options)
    assert not (tmp_path / "cities").exists()


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "manifest.json").write_text('{"simmst": ')
    with pytest.raises(
        ConfigError, match=r"manifest\.json lists no simulated cities \(line 1: it is not JSON.*; choose another folder"
    ):
        simulate(1, tmp_path, city=SMALL)
    (tmp_path / "manifest.json").write_text("[1, 2]")
    with pytest.raises(ConfigError, match="lists no simulated cities"):
        simulate(1, tmp_path, city=SMALL)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "cities-00000.parquet").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"holds cities but no manifest\.json"):
        simulate(1, tmp_path, city=SMALL)
    assert (tmp_path / "cities-00000.parquet").read_bytes() == b"mine"


def test_a_damaged_shard_is_named(tmp_path):
    (path,) = simulate(2, tmp_path, city=SMALL)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"cities-00000\.parquet cannot be read as Parquet .*; remove it"):
        simulate(2, tmp_path, city=SMALL)
