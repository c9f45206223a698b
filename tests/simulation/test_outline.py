from __future__ import annotations

import numpy as np
import pytest

from simmst.data import load_grid
from simmst.errors import ConfigError, RayTracingError
from simmst.simulation import CityConfig, city, simulate_city
from simmst.simulation.outline import outline_mask


def test_cells_outside_are_not_published():
    disc = simulate_city(CityConfig(height=9, width=12, days=1, outline="disc", missing_share=0.0))
    whole = simulate_city(CityConfig(height=9, width=12, days=1, missing_share=0.0))
    assert 0.7 < disc.mask.mean() < 0.85  # pi / 4
    assert np.isnan(disc.activity[:, :, ~disc.mask]).all()
    np.testing.assert_array_equal(disc.activity[:, :, disc.mask], whole.activity[:, :, disc.mask])
    assert (disc.cell_id[~disc.mask] == -1).all()
    np.testing.assert_array_equal(disc.cell_id[disc.mask], whole.cell_id[disc.mask])


def test_the_official_raster():
    official = load_grid("trento")
    if not official.official:
        with pytest.raises(ConfigError, match="needs the official grids file"):
            outline_mask(CityConfig(outline="trento"))
        pytest.skip("the official grids file is not in the data folder")
    same = outline_mask(CityConfig(height=98, width=117, outline="trento"))
    np.testing.assert_array_equal(same, official.mask)
    small = outline_mask(CityConfig(height=20, width=24, outline="trento"))
    assert abs(small.mean() - official.mask.mean()) < 0.05
    province = simulate_city(CityConfig(height=20, width=24, days=1, cell_m=5000.0, outline="trento"))
    assert province.num_cells == small.sum()


def test_unknown_outlines_and_radios_are_refused():
    with pytest.raises(ConfigError, match=r"CityConfig\.outline is 'star'; choose one of rectangle, disc, trento"):
        CityConfig(outline="star")
    with pytest.raises(ConfigError, match=r"CityConfig\.radio is 'magic'; choose one of statistical, ray-traced"):
        CityConfig(radio="magic")


def test_the_config_names_the_radio(monkeypatch):
    class Refusing:
        def coverage(self, config, rng):
            raise RayTracingError("not here")

    monkeypatch.setitem(city.RADIOS, "ray-traced", Refusing())
    with pytest.raises(RayTracingError, match="not here"):
        simulate_city(CityConfig(height=3, width=3, days=1, radio="ray-traced"))
    simulate_city(CityConfig(height=3, width=3, days=1))
