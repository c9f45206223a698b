from __future__ import annotations

import dataclasses
import types

import numpy as np
import pytest

from simmst.errors import ConfigError, MissingExtraError, RayTracingError
from simmst.simulation import CityConfig, StatisticalRadio
from simmst.simulation.radio import ray_tracing, ray_tracing_probe
from simmst.simulation.radio.built_environment import BuiltEnvironment, write_scene
from simmst.simulation.radio.ray_tracing import RayTracedRadio
from simmst.simulation.radio.statistical import Sites

CITY = CityConfig(seed=5, height=6, width=8, inter_site_distance_m=600.0)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def ray_tracing_here() -> None:
    try:
        ray_tracing_probe.require_ray_tracing()
    except (MissingExtraError, RayTracingError) as error:
        pytest.skip(str(error))


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[CityConfig]:
    """A tracer without dependencies: sector 0 of every site is received at -90 dB in the western half."""
    calls = []

    def trace(self, config, sites):
        calls.append(config)
        gain = np.full((sites.azimuth_rad.size, 3, config.height, config.width), np.nan, np.float32)
        gain[:, 0, :, : config.width // 2] = -90 - np.arange(sites.azimuth_rad.size)[:, None, None]
        return gain.reshape(*gain.shape[:2], -1)

    monkeypatch.setattr(ray_tracing, "require_ray_tracing", lambda: None)
    monkeypatch.setattr(ray_tracing.importlib.metadata, "version", lambda name: "0")
    monkeypatch.setattr(RayTracedRadio, "_trace", trace)
    return calls


def test_cells_without_a_ray_are_those_of_the_statistical_radio(traced, tmp_path):
    found = RayTracedRadio(cache=False).coverage(CITY, rng())
    plain = StatisticalRadio().coverage(CITY, rng())
    east = np.arange(48).reshape(6, 8)[:, 4:].ravel()
    np.testing.assert_array_equal(found.sinr_db[east], plain.sinr_db[east])
    assert not np.isclose(found.sinr_db, plain.sinr_db)[np.arange(48).reshape(6, 8)[:, :4]].any()
    cells = np.ones((48, 1), np.float32)
    np.testing.assert_allclose(found.association.spread(found.association.gather(cells)).sum(), 48, rtol=1e-5)


def test_results_are_kept_by_all_they_depend_on(traced, tmp_path):
    radio = RayTracedRadio(cache=tmp_path)
    first = radio.coverage(CITY, rng())
    again = RayTracedRadio(cache=tmp_path).coverage(CITY, rng())
    np.testing.assert_array_equal(first.sinr_db, again.sinr_db)
    assert len(traced) == 1
    radio.coverage(dataclasses.replace(CITY, transmit_power_dbm=40.0), rng())
    assert len(traced) == 1, "the power is added afterwards"
    radio.coverage(dataclasses.replace(CITY, tilt_deg=3.25), rng())
    RayTracedRadio(BuiltEnvironment(height_m=40.0), cache=tmp_path).coverage(CITY, rng())
    assert len(traced) == 3
    for file in tmp_path.iterdir():
        file.write_bytes(b"damaged")
    radio.coverage(CITY, rng())
    radio.coverage(CITY, rng())
    assert len(traced) == 4, "traced again, once"


def test_a_city_of_boxes(tmp_path):
    buildings = BuiltEnvironment(built_share=0.5).build(1000.0, rng())
    count = len(buildings.height_m)
    assert 10 < count < 40
    vertices, triangles = buildings.mesh()
    assert vertices.shape == (8 * count, 3)
    assert vertices[:, :2].min() > 0
    assert vertices[:, :2].max() < 1000
    # The divergence theorem gives the volume inside a closed surface that faces outwards; the missing floors lie at
    # z = 0.
    a, b, c = (vertices[triangles[:, i]].astype(float) for i in range(3))
    volume = np.einsum("ni,ni->n", a, np.cross(b, c)).sum() / 6
    assert volume == pytest.approx((4 * buildings.half_m.prod(1) * buildings.height_m).sum(), rel=1e-5)
    np.testing.assert_allclose(buildings.roof_at(buildings.centre_m), buildings.height_m)
    assert buildings.roof_at(np.array([-5.0, 50.0])) == 0
    scene = write_scene(tmp_path, buildings)
    assert scene.read_text().count("<shape") == 2
    assert b"element vertex %d" % (8 * count) in (tmp_path / "buildings.ply").read_bytes()
    empty = BuiltEnvironment(built_share=0.0).build(1000.0, rng())
    assert write_scene(tmp_path, empty).read_text().count("<shape") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"built_share": 1.5}, r"BuiltEnvironment\.built_share is 1\.5"),
        ({"block_m": float("nan")}, r"BuiltEnvironment\.block_m is nan"),
        ({"greatest_width": 0.3}, r"BuiltEnvironment\.greatest_width is 0\.3; it must lie between 0\.45"),
    ],
)
def test_impossible_buildings(changes, message):
    with pytest.raises(ConfigError, match=message):
        BuiltEnvironment(**changes)


class TestProbe:
    @pytest.fixture(autouse=True)
    def fresh(self):
        ray_tracing_probe.require_ray_tracing.cache_clear()
        yield
        ray_tracing_probe.require_ray_tracing.cache_clear()

    def test_a_missing_extra_is_named(self, monkeypatch):
        monkeypatch.setattr(ray_tracing_probe.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match=r"pip install 'simmst\[raytracing\]'"):
            RayTracedRadio(cache=False).coverage(CITY, rng())

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("import os; os.abort()", "the process was ended by signal 6"),
            ("raise ImportError('LLVM 14 is too old')", "ImportError: LLVM 14 is too old"),
            ("raise SystemExit(3)", "it ended with status 3"),
        ],
    )
    def test_what_went_wrong_in_the_other_process_is_told(self, monkeypatch, text, said):
        monkeypatch.setattr(ray_tracing_probe.importlib.util, "find_spec", lambda name: types.SimpleNamespace())
        monkeypatch.setattr(ray_tracing_probe, "_PROBE", text)
        monkeypatch.setenv("DRJIT_LIBLLVM_PATH", "/no/libLLVM.so")
        with pytest.raises(RayTracingError, match=f"does not run with /no/libLLVM.so: {said}; install LLVM 19"):
            ray_tracing_probe.require_ray_tracing()

    def test_a_library_that_works_is_kept(self, monkeypatch, tmp_path):
        (tmp_path / "libLLVM.so.19.1").touch()
        (tmp_path / "libLLVM-17.so").touch()
        monkeypatch.setattr(ray_tracing_probe.importlib.util, "find_spec", lambda name: types.SimpleNamespace())
        monkeypatch.setattr(ray_tracing_probe, "_FOLDERS", (str(tmp_path),))
        monkeypatch.setattr(
            ray_tracing_probe, "_PROBE", "import os; assert 'libLLVM' in os.environ['DRJIT_LIBLLVM_PATH']"
        )
        monkeypatch.setenv("DRJIT_LIBLLVM_PATH", "")  # so that it is restored afterwards
        ray_tracing_probe.require_ray_tracing()
        assert ray_tracing_probe.os.environ["DRJIT_LIBLLVM_PATH"] == str(tmp_path / "libLLVM.so.19.1")


@pytest.mark.usefixtures("ray_tracing_here")
class TestTraced:
    def test_the_same_city_every_time(self):
        one, two = (RayTracedRadio(cache=False, rays=200_000).coverage(CITY, rng()) for _ in range(2))
        np.testing.assert_array_equal(one.sinr_db, two.sinr_db)
        assert np.isfinite(one.sinr_db).all()

    def test_rows_go_north_and_columns_east(self):
        # A single site in the south-west; its power falls towards the north and the east.
        position = np.full((1, 1, 2), 100.0)
        sites = Sites(position, np.zeros((1, 1)), np.zeros(2))
        open_field = BuiltEnvironment(built_share=0.0)
        power = RayTracedRadio(open_field, cache=False, rays=3_000_000).power_dbm(CITY, sites)
        power = np.nanmax(power[0], axis=0).reshape(6, 8)
        assert np.nanmax(power[:2, :2]) == np.nanmax(power), "under the mast itself a tilted beam is weak"
        assert power[0, 6] < power[0, 3] < power[0, 1]
        assert power[5, 0] < power[3, 0] < power[1, 0]

    def test_sector_zero_points_along_its_azimuth(self):
        centre = np.array([[[8 * 235.0 / 2, 6 * 235.0 / 2]]])
        sites = Sites(centre, np.zeros((1, 1)), np.zeros(2))  # sector 0 looks east
        open_field = BuiltEnvironment(built_share=0.0)
        power = RayTracedRadio(open_field, cache=False, rays=3_000_000).power_dbm(CITY, sites)[0, 0].reshape(6, 8)
        assert np.nanmean(power[2:4, 6]) > np.nanmean(power[2:4, 1]) + 10
