"""Damaged or malicious files: each gives one clear line or its contents, quickly and with little memory.

SIMMST_MUTATIONS=1000 tries that many per format instead of a few; SIMMST_MUTATIONS_FROM skips the first ones. Mutations
that once went wrong are always tried.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import resource
import signal
import zipfile
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mutator import flipped, mangled_json, mangled_yaml

from simmst import Forecaster, TrafficDataset
from simmst.commands.boundary import explained
from simmst.commands.main import main, parse
from simmst.data import CityShards, load
from simmst.data.readers.archive import MOST_BYTES
from simmst.errors import ConfigError, DataError, SimmstError
from simmst.forecaster.config import ForecasterConfig
from simmst.forecaster.plan import network_config
from simmst.jobs.city_folder import simulate
from simmst.simulation import DomainPrior, surrogate_city
from simmst.training import Checkpoint, RunFolder, TrainingConfig, load_checkpoint, save_checkpoint

pd = pytest.importorskip("pandas")
pytest.importorskip("safetensors")

NUMBER = int(os.environ.get("SIMMST_MUTATIONS", "12"))
FIRST = int(os.environ.get("SIMMST_MUTATIONS_FROM", "0"))
SECONDS = 60
MEMORY = 2 << 30

FOUND = {"npz": (583,), "daily.zip": (818,), "shards": (737,), "forecaster state": (816,)}

Trial = Callable[[Path, random.Random], Any]


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Limit each file to a minute, and to two gigabytes beyond what the process has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def try_all(trial: Trial, folder: Path, seed: str, *, number: int = NUMBER) -> int:
    """Run a trial with many seeds; return how many gave a result. An unclear error fails the test."""

    def late(*_: object) -> None:
        raise TimeoutError

    results = 0
    for count in sorted({*range(FIRST, FIRST + number), *FOUND.get(seed, ())}):
        place = folder / str(count)
        place.mkdir()
        signal.signal(signal.SIGALRM, late)
        signal.alarm(SECONDS)
        try:
            trial(place, random.Random(f"{seed} {count}"))
            results += 1
        except AssertionError:
            raise
        except Exception as error:
            if wrong := _wrong(error):
                pytest.fail(f"{seed} {count} in {place}: {wrong}")
        finally:
            signal.alarm(0)
    return results


def _wrong(error: Exception) -> str | None:
    """Return what is wrong with an error that is not one clear line."""
    message = explained(error)
    if message is None or isinstance(error, MemoryError):
        return f"{type(error).__name__}: {error}"
    if len(message) > 1500:
        return f"a message of {len(message)} characters: {message[:300]}"
    leaks = ("Traceback", "<class", "array([", "Union subtypes", "KeyError", "object at 0x")
    return message if any(leak in message for leak in leaks) else None


@pytest.fixture(scope="module")
def city() -> TrafficDataset:
    return surrogate_city(0, height=3, width=3, days=9)


def same(one: TrafficDataset, other: TrafficDataset) -> bool:
    return np.array_equal(one.activity, other.activity, equal_nan=True) and np.array_equal(one.time, other.time)


def test_data_sets_of_our_own(city, tmp_path):
    raw = city.save(tmp_path / "whole.npz").read_bytes()

    def trial(place, rng):
        (place / "a.npz").write_bytes(flipped(raw, rng))
        assert same(TrafficDataset.from_npz(place / "a.npz"), city), "wrong values without an error"

    try_all(trial, tmp_path, "npz")


def test_headers_of_data_sets(city, tmp_path):
    with np.load(city.save(tmp_path / "whole.npz")) as file:
        arrays = dict(file)
    header = json.loads(str(arrays["simmst"]))

    def trial(place, rng):
        np.savez(place / "a.npz", **{**arrays, "simmst": np.array(mangled_json(header, rng))})
        TrafficDataset.from_npz(place / "a.npz").series()

    try_all(trial, tmp_path, "npz header")


def test_arrays_of_data_sets(city, tmp_path):
    with np.load(city.save(tmp_path / "whole.npz")) as file:
        arrays = dict(file)
    kinds = (
        lambda one, rng: one[..., :0],
        lambda one, rng: one[None],
        lambda one, rng: one.astype("U"),
        lambda one, rng: one.astype(complex),
        lambda one, rng: np.full_like(one, 1 if one.dtype == bool else -5),
        lambda one, rng: one.ravel()[: rng.randrange(1, 20)],
        lambda one, rng: np.array("x"),
        lambda one, rng: one.astype(float) * np.nan,
        lambda one, rng: one.astype(float) * 1e300,
        lambda one, rng: one.astype("datetime64[s]") if one.dtype.kind == "i" else one.astype("f2"),
    )

    def trial(place, rng):
        name = rng.choice(sorted(set(arrays) - {"simmst"}))
        with np.errstate(all="ignore"):
            np.savez(place / "a.npz", **{**arrays, name: rng.choice(kinds)(arrays[name], rng)})
        TrafficDataset.from_npz(place / "a.npz").series()

    try_all(trial, tmp_path, "npz arrays")


def daily_text(city: TrafficDataset) -> str:
    start = int(city.time[0].astype(np.int64)) * 1000
    return "".join(
        f"{cell}\t{start + slot * 600_000}\t39\t{cell / 7}\t0.5\t\t1.5\t{slot + 0.25}\n"
        for cell in range(1, 9)
        for slot in range(36)
    )


@pytest.mark.parametrize("packing", ["", ".gz", ".zip"])
def test_daily_files(city, tmp_path, packing):
    text = daily_text(city).encode()

    def trial(place, rng):
        path = place / f"sms-call-internet-mi-2013-11-01.txt{packing}"
        if packing == ".gz":
            path.write_bytes(flipped(gzip.compress(text), rng))
        elif packing == ".zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(rng.choice((path.stem, f"../../{path.stem}", f"/etc/{path.stem}")), text)
            path.write_bytes(flipped(path.read_bytes(), rng) if rng.random() < 0.8 else path.read_bytes())
        else:
            path.write_bytes(flipped(text, rng))
        load(path)
        assert not (place.parent / path.stem).exists(), "unpacked outside the folder"

    try_all(trial, tmp_path, f"daily{packing}")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables(city, tmp_path, kind):
    frame = city.slice_steps(0, 48).to_dataframe()
    whole = tmp_path / f"whole.{kind}"
    frame.to_csv(whole, index=False) if kind == "csv" else frame.to_parquet(whole)
    raw = whole.read_bytes()

    def trial(place, rng):
        path = place / f"a.{kind}"
        path.write_bytes(flipped(raw, rng))
        load(path).series()

    try_all(trial, tmp_path, kind)


def test_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    whole = tmp_path / "whole.h5"
    with h5py.File(whole, "w") as file:
        file["idx"] = np.arange(48) * 3600 + 1383260400
        file["cell"] = np.arange(1, 9)
        file["net"] = np.random.default_rng(0).random((48, 8))
    raw = whole.read_bytes()

    def trial(place, rng):
        (place / "milan.h5").write_bytes(flipped(raw, rng))
        load(place / "milan.h5").series()

    try_all(trial, tmp_path, "hdf5")


@pytest.fixture(scope="module")
def cities(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cities")
    simulate(2, folder, seed=4, city={"height": 3, "width": 3, "days": 1})
    return folder


def test_shards(cities, tmp_path):
    raw = (cities / "cities-00000.parquet").read_bytes()
    whole = list(CityShards(cities))

    def trial(place, rng):
        (place / "cities-00000.parquet").write_bytes(flipped(raw, rng))
        for read, written in zip(CityShards(place), whole, strict=True):
            assert np.array_equal(read.activity, written.activity, equal_nan=True), "wrong values without an error"

    try_all(trial, tmp_path, "shards")


def test_headers_of_shards(cities, tmp_path):
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(cities / "cities-00000.parquet")
    with pyarrow.parquet.ParquetFile(cities / "cities-00000.parquet") as file:
        header = json.loads(file.metadata.metadata[b"simmst"])
        rows = [file.metadata.row_group(group).num_rows for group in range(2)]

    def trial(place, rng):
        with pyarrow.parquet.ParquetWriter(place / "cities-00000.parquet", table.schema) as writer:
            writer.write_table(table[: rows[0]])
            writer.write_table(table[rows[0] :])
            writer.add_key_value_metadata({"simmst": mangled_json(header, rng).replace("\x00", "")})
        [one.series() for one in CityShards(place)]

    try_all(trial, tmp_path, "shard header")


def test_manifests(cities, tmp_path):
    manifest = json.loads((cities / "manifest.json").read_text())
    raw = (cities / "cities-00000.parquet").read_bytes()

    def trial(place, rng):
        (place / "cities-00000.parquet").write_bytes(raw)
        text = mangled_json(manifest, rng).encode("utf-8", "replace")
        (place / "manifest.json").write_bytes(text if rng.random() < 0.8 else flipped(text, rng))
        CityShards(place)
        simulate(2, place, seed=4, city={"height": 3, "width": 3, "days": 1})

    try_all(trial, tmp_path, "manifest")


CONFIG = ForecasterConfig(
    horizon=3,
    neighbourhood=3,
    start="scratch",
    network={"width": 8, "encoder_layers": 1, "feedforward": 8},
    training=TrainingConfig(epochs=1, samples_per_epoch=64, batch_size=32, validation_samples=64, device="cpu"),
)


@pytest.fixture(scope="module")
def run(city, tmp_path_factory) -> Path:
    folder = RunFolder.create(tmp_path_factory.mktemp("hostile") / "run", {"job": "test"})
    Forecaster(config=CONFIG).fit(city, None, run=folder).save(folder.path)
    return folder.path


def test_saved_forecasters(run, tmp_path):
    weights, recent = ((run / name).read_bytes() for name in ("forecaster.safetensors", "recent.npz"))

    def trial(place, rng):
        first = rng.random() < 0.7
        (place / "forecaster.safetensors").write_bytes(flipped(weights, rng) if first else weights)
        (place / "recent.npz").write_bytes(recent if first else flipped(recent, rng))
        Forecaster.load(place)
        assert (place / "forecaster.safetensors").read_bytes() == weights, "damaged weights without an error"
        assert (place / "recent.npz").read_bytes() == recent, "damaged traffic without an error"

    try_all(trial, tmp_path, "forecaster")


def test_states_of_saved_forecasters(run, tmp_path):
    whole = load_checkpoint(run / "forecaster.safetensors")
    recent = (run / "recent.npz").read_bytes()

    def trial(place, rng):
        save_checkpoint(place / "forecaster.safetensors", whole.tensors, mangled_state(whole, rng))
        (place / "recent.npz").write_bytes(recent)
        Forecaster.load(place).predict()

    try_all(trial, tmp_path, "forecaster state")


def mangled_state(checkpoint: Checkpoint, rng: random.Random) -> dict[str, Any]:
    text = mangled_json(checkpoint.state, rng)
    state = json.loads(text) if "[" * 900 not in text else None
    return state if isinstance(state, dict) else {"kind": state}


def test_checkpoints_to_resume(city, run, tmp_path):
    """A run resumes from a state that was tampered with and has the right checksum."""
    whole = load_checkpoint(run / "checkpoints" / "real.safetensors")
    metrics = (run / "metrics.jsonl").read_text()

    def trial(place, rng):
        folder = RunFolder.create(place / "run", {"job": "test"})
        tensors = dict(whole.tensors)
        if rng.random() < 0.5:
            name = rng.choice(sorted(tensors))
            kinds = (
                lambda one: one.double(),
                lambda one: one[None],
                lambda one: one.ravel()[:1],
                lambda one: one.long(),
            )
            tensors[name] = rng.choice(kinds)(tensors[name])
            state = whole.state
        else:
            state = mangled_state(whole, rng)
        save_checkpoint(folder.checkpoint_path("real"), tensors, state)
        folder.metrics_path.write_text(metrics)
        Forecaster(config=CONFIG).fit(city, None, run=folder)

    try_all(trial, tmp_path, "resume", number=min(NUMBER, 200))


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_run_folders(run, tmp_path, name):
    raw = (run / name).read_bytes()

    def trial(place, rng):
        folder = RunFolder.create(place / "run", {"job": "test"})
        content = mangled_json(json.loads(raw.splitlines()[0] if name != "config.json" else raw), rng) + "\n"
        (folder.path / name).write_bytes(
            content.encode("utf-8", "replace") if rng.random() < 0.7 else flipped(raw, rng)
        )
        folder.config()
        folder.metrics()
        folder.drop_metrics("real", 0)
        RunFolder.create(place / "run", {"job": "test"})

    try_all(trial, tmp_path, name)


SETTINGS = """\
data: traffic.csv
out: run
test_days: 7
services: [call, sms]
forecaster:
  horizon: 6
  recent: 24
  network: {width: 32}
  training:
    epochs: 3
    learning_rate: 0.001
"""


def test_configurations(tmp_path, capsys):
    def trial(place, rng):
        (place / "settings.yaml").write_bytes(mangled_yaml(SETTINGS.replace("traffic", str(place / "absent")), rng))
        assert main(["train", "--config", str(place / "settings.yaml"), "--quiet"]) == 2
        told = capsys.readouterr().err
        if wrong := _wrong(ConfigError(told)):
            pytest.fail(wrong)
        assert told.count("\n") == 1, told
        assert not Path("hacked").exists()

    assert try_all(trial, tmp_path, "yaml") == NUMBER


@pytest.mark.parametrize(
    "settings",
    [
        {"recent": 10_000_000_000},
        {"horizon": 100_000_000},
        {"cities": 10**12},
        {"training": {"learning_rate": 1e300}},
        {"training": {"batch_size": 10_000_000_000}},
        {"network": {"width": 1_000_000}},
        {"network": {"feedforward": 1_000_000_000}},
        {"network": {"encoder_layers": 100_000}},
        {"network": {"encoder_layers": 100, "width": 8192}},
        {"recent": 20_000, "neighbourhood": 101},
        {"model": "lstm", "network": {"width": 100_000_000}},
    ],
    ids=str,
)
def test_sizes_that_nothing_can_serve(settings):
    def network():
        return network_config(ForecasterConfig.from_dict(settings), ("call", "sms", "internet"))

    with pytest.raises(ConfigError, match=r"it must be at most|more than the .* allowed; make"):
        network()


def test_more_cities_than_anyone_simulates(tmp_path):
    with pytest.raises(SimmstError, match="cities is 1000000000000; it must be at most 1000000"):
        simulate(10**12, tmp_path / "cities")
    assert not (tmp_path / "cities").exists()


def test_priors(tmp_path):
    text = DomainPrior.default().to_yaml(tmp_path / "whole.yaml").read_text()

    def trial(place, rng):
        (place / "prior.yaml").write_bytes(mangled_yaml(text, rng))
        DomainPrior.from_yaml(place / "prior.yaml").sample(0, 0)

    try_all(trial, tmp_path, "prior")


def test_files_that_unfold_to_gigabytes(tmp_path):
    head = {"descr": "<f4", "fortran_order": False, "shape": (MOST_BYTES, 1)}
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("activity.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, head)
        for _ in range(MOST_BYTES // (64 << 20) + 1):
            file.write(bytes(64 << 20))
    with pytest.raises(DataError, match=r"bomb\.npz unpacks to [\d,]+ bytes, at most"):
        TrafficDataset.from_npz(tmp_path / "bomb.npz")
    path = tmp_path / "sms-call-internet-mi-2013-11-01.txt.gz"
    with gzip.open(path, "wb", compresslevel=1) as packed:
        for _ in range(3):
            packed.write(bytes(64 << 20))
    with pytest.raises(DataError, match="unpacks to more than 100 times its size"):
        load(path)


def test_files_with_code_in_them(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harmed"),)

    np.savez(tmp_path / "a.npz", activity=np.array([Harm()], dtype=object))
    with pytest.raises(DataError):
        TrafficDataset.from_npz(tmp_path / "a.npz")
    torch.save({"model": Harm()}, tmp_path / "forecaster.safetensors")
    with pytest.raises(SimmstError):
        Forecaster.load(tmp_path)
    (tmp_path / "a.yaml").write_text(f"seed: !!python/object/apply:os.mkdir ['{tmp_path / 'harmed'}']\n")
    with pytest.raises(ArgumentError, match="could not determine a constructor"):
        parse(["demo", "--config", str(tmp_path / "a.yaml")])
    assert not (tmp_path / "harmed").exists()
