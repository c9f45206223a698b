"""Published HDF5 files: FedDA's and STCNet's."""

from __future__ import annotations

import numpy as np
import pytest

from simmst.data import load
from simmst.errors import DataError

h5py = pytest.importorskip("h5py")
pytest.importorskip("holidays")

WALL = np.datetime64("2013-11-01T00:00:00").astype("datetime64[s]").astype(np.int64) + np.arange(48) * 3600


def fedda(path, **changes):
    net = np.full((48, 10_000), 7.0)
    net[:, 4455] = np.arange(48)
    net[3, 4456] = np.nan
    arrays = {
        "idx": (WALL - 3600)[:, None],
        "cell": np.array([4456, 4457]),
        "net": net,
        "sms": net / 2,
        "call": net / 4,
    }
    with h5py.File(path, "w") as file:
        for name, values in (arrays | {"lng": np.zeros(2), "lat": np.zeros(2)} | changes).items():
            file[name] = values
    return path


def stcnet(path, data, idx=None):
    with h5py.File(path, "w") as file:
        file["idx"] = np.array([str(one.astype("datetime64[s]")).encode() for one in WALL]) if idx is None else idx
        file["data"] = data
    return path


def test_fedda(tmp_path):
    data = load(fedda(tmp_path / "milano.h5"))
    assert data.services == ("call", "sms", "internet")
    assert (data.geometry, data.cell_id.tolist(), data.step_minutes) == ("grid", [[4456, 4457]], 60)
    assert data.time[0] == np.datetime64("2013-10-31T23:00:00")
    assert data.activity[5, :, 0, 0].tolist() == [1.25, 2.5, 5.0]
    assert data.activity[3, 2, 0, 1] == 0  # no activity
    counted_on_the_wall = load(fedda(tmp_path / "milano.h5", idx=WALL))
    np.testing.assert_array_equal(counted_on_the_wall.time, data.time)
    narrow = np.ones((48, 2))
    assert load(fedda(tmp_path / "m.h5", net=narrow, sms=narrow, call=narrow)).activity.mean() == 1
    trento = load(fedda(tmp_path / "trento.h5", net=np.ones((48, 11_466)), sms=narrow, call=narrow))
    assert trento.cell_size_m == 1000


def test_stcnet(tmp_path):
    data = np.zeros((48, 10_000, 3), dtype=np.float32)
    data[:, 1, 0], data[:, 1, 1], data[:, 100, 2] = 3, 2, np.arange(48)
    whole = load(stcnet(tmp_path / "data_git_version.h5", data))
    assert whole.services == ("call", "sms", "internet")
    assert whole.activity.shape == (48, 3, 100, 100)
    assert whole.activity[7, :, 0, 1].tolist() == [2, 3, 0]
    assert whole.activity[7, 2, 1, 0] == 7
    assert whole.time[0] == np.datetime64("2013-10-31T23:00:00")
    directions = np.zeros((48, 20, 20, 5), dtype=np.float32)
    directions[:, 0, 1] = [1, 2, 0.5, 0.25, 9]
    cut = load(stcnet(tmp_path / "all_data_sliced.h5", directions))
    assert cut.activity[0, :, 0, 1].tolist() == [0.75, 3, 9]
    assert cut.cell_id[1, 0] == 101


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: fedda(path, cell=np.array([4456, 10_001])), "cell 10001 is not on the milan grid"),
        (lambda path: fedda(path, idx=WALL[:40] - 3600), "has 40 times in idx for 48 slots"),
        (lambda path: fedda(path, net=np.full((48, 2), -1.0)), "net of cell 4456 in slot 0 is -1; activity cannot be"),
        (lambda path: stcnet(path, np.full((48, 10_000, 3), np.inf)), "call of cell 1 in slot 0 is inf"),
        (lambda path: stcnet(path, np.zeros((48, 900, 3))), r"data \(48, 900, 3\) is not of the milan grid"),
        (lambda path: stcnet(path, np.zeros((48, 10_000, 4))), "holds data, idx; wanted idx, cell and net"),
        (
            lambda path: stcnet(path, np.zeros((48, 10_000, 3)), idx=np.array([b"soon"] * 48)),
            "idx 'soon' is not a time",
        ),
        (lambda path: path.write_bytes(b"no HDF5") and path, "cannot be read as HDF5"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, write, message):
    with pytest.raises(DataError, match=rf"x\.h5.*{message}"):
        load(write(tmp_path / "x.h5"))
