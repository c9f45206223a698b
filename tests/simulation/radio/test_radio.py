from __future__ import annotations

import numpy as np
import pytest

from simmst.simulation import Association, CityConfig, StatisticalRadio
from simmst.simulation.radio.statistical import MAX_SERVING


def coverage_of(seed=0, **fields):
    return StatisticalRadio().coverage(CityConfig(**fields), np.random.default_rng(seed))


def test_every_cell_is_served_in_full_by_a_few_sectors():
    association = coverage_of(height=12, width=17).association
    dense = association.dense()
    assert dense.shape == (association.num_sectors, 12 * 17)
    np.testing.assert_allclose(dense.sum(axis=0), 1.0, atol=1e-6)
    assert (dense >= 0).all()
    assert (dense.sum(axis=1) > 0).all()  # no idle sectors
    assert ((dense > 0).sum(axis=0) <= MAX_SERVING).all()
    np.testing.assert_allclose(association.area, dense.sum(axis=1), rtol=1e-6)


def test_sparse_products_equal_dense_ones():
    association = coverage_of(height=9, width=8).association
    dense, rng = association.dense().astype(np.float64), np.random.default_rng(1)
    cells, sectors = rng.random((72, 5)), rng.random((association.num_sectors, 5))
    np.testing.assert_allclose(association.gather(cells), dense @ cells, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(association.average(sectors), dense.T @ sectors, rtol=1e-5, atol=1e-6)
    spread = (dense / dense.sum(axis=1, keepdims=True)).T @ sectors
    np.testing.assert_allclose(association.spread(sectors), spread, rtol=1e-5, atol=1e-6)


def test_products_do_not_depend_on_how_they_are_cut_up(monkeypatch):
    association = coverage_of(height=9, width=8).association
    values = np.random.default_rng(1).random((72, 50), dtype=np.float32)
    whole = association.gather(values)
    monkeypatch.setattr("simmst.simulation.radio.association._CHUNK_VALUES", 7 * len(association.cell))
    np.testing.assert_array_equal(association.gather(values), whole)


def test_association_refuses_a_cell_without_service():
    with pytest.raises(ValueError, match="cell 1 has no share"):
        Association.from_shares(np.array([[0], [1]]), np.array([[1.0], [0.0]]))
    with pytest.raises(ValueError, match=r"\(2, 1\)"):
        Association.from_shares(np.zeros((2, 1), int), np.zeros((1, 2)))


def test_denser_sites_give_more_and_smaller_sectors():
    dense, sparse = coverage_of(inter_site_distance_m=300.0), coverage_of(inter_site_distance_m=1200.0)
    assert dense.association.num_sectors > 2 * sparse.association.num_sectors
    assert np.median(dense.association.area) < np.median(sparse.association.area)


def test_softness_of_handover_shares_cells_among_more_sectors():
    def strongest(softness):
        return float(coverage_of(handover_softness_db=softness).association.dense().max(axis=0).mean())

    assert strongest(1.0) > strongest(4.0) + 0.1 > strongest(12.0) + 0.2


def test_power_lifts_the_signal_where_noise_matters():
    far = {"inter_site_distance_m": 5000.0, "carrier_ghz": 3.5}
    weak, strong = coverage_of(transmit_power_dbm=25.0, **far), coverage_of(transmit_power_dbm=49.0, **far)
    assert np.median(strong.sinr_db) > np.median(weak.sinr_db) + 5


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (40, 3), (50, 50)])
def test_any_grid_shape(shape):
    coverage = coverage_of(height=shape[0], width=shape[1], inter_site_distance_m=400.0)
    assert coverage.sinr_db.shape == (shape[0] * shape[1],)
    assert np.isfinite(coverage.sinr_db).all()
    assert coverage.association.num_cells == shape[0] * shape[1]
