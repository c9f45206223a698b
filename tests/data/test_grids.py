from __future__ import annotations

import numpy as np
import pytest

from simmst.data import load_grid
from simmst.errors import ConfigError, DataError


def test_grids_without_the_file(monkeypatch):
    monkeypatch.delenv("SIMMST_DATA", raising=False)
    milan = load_grid("milan")
    assert milan.official
    assert milan.mask.all()
    assert milan.positions(np.array([4142])).tolist() == [[41, 41]]
    assert milan.cell_id[41, 41] == 4142
    trento = load_grid("trento")
    assert not trento.official
    assert trento.positions(np.array([38, 154])).tolist() == [[0, 37], [1, 36]]
    with pytest.raises(ConfigError, match="'rome'; give one of milan, trento"):
        load_grid("rome")
    with pytest.raises(DataError, match="cell 11467 is not on the trento grid"):
        trento.positions(np.array([5, 11467]))


def test_official_grids(real_file):
    file = real_file("milan_trento_grids.npz")
    arrays = np.load(file)
    for name in ("milan", "trento"):
        grid = load_grid(name)
        assert grid.official
        np.testing.assert_array_equal(grid.cell_id[grid.mask], arrays[f"{name}_cell_id"])
        np.testing.assert_array_equal(grid.lonlat[grid.mask], arrays[f"{name}_lonlat"])
    trento = load_grid("trento", file.parent)
    assert trento.mask.sum() == 6575
    places = trento.positions(arrays["trento_cell_id"])
    np.testing.assert_array_equal(places[:, 0], arrays["trento_row"])
    np.testing.assert_array_equal(places[:, 1], arrays["trento_col"])
    with pytest.raises(DataError, match="cell 1 is not on the trento grid"):
        trento.positions(np.array([1]))
    # Rows go north and columns go east.
    lonlat = load_grid("milan").lonlat
    assert (np.diff(lonlat[:, 0, 1]) > 0).all()
    assert (np.diff(lonlat[0, :, 0]) > 0).all()
