"""The parts of the cutting planes that only CUDA has: schedule, many blocks, many rows, and checks of the bindings."""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simmst.core.cutting_plane import PackedSigns, pack_signs
from simmst.native.cuda.launch import emulated, layout, module, told
from simmst.reference import cutting_plane as reference

name = "simmst._cuda_emulated" if emulated() else "simmst._cuda_checks"
checks = pytest.importorskip(name, reason=f"{name} is not in this installation")
FORMATS = {"float32": 0, "bfloat16": 2, "float16": 3, "signs": 4}
PACK_COLUMNS = {"float32": 4, "bfloat16": 8, "float16": 8, "signs": 32}


@pytest.fixture
def native():
    if emulated():
        return importlib.import_module("simmst.native.cuda.cutting_plane")
    pytest.skip("runs in the emulator, with SIMMST_CUDA_EMULATION=1")


@settings(deadline=None, max_examples=200)
@given(
    problems=st.one_of(st.integers(1, 300), st.just(70_000)),
    planes=st.integers(0, 2000),
    size=st.one_of(st.integers(0, 10_000), st.integers(2**31 - 5, 2**40)),
    fmt=st.sampled_from(list(FORMATS)),
    multiprocessors=st.sampled_from([1, 4, 108, 132]),
)
def test_the_schedule_covers_everything_once(problems, planes, size, fmt, multiprocessors):
    made = checks.cutting_plane_schedule(FORMATS[fmt], problems, planes, size, multiprocessors)
    width = made["tile_columns"]
    assert width == 32 * PACK_COLUMNS[fmt]
    assert made["tiles"] * width >= size > (made["tiles"] - 1) * width or size == 0
    # Blocks stride through the tiles: every block has work, and the grid fits.
    assert 1 <= made["blocks"] <= max(made["tiles"], 1)
    assert problems * made["blocks"] < 2**31
    assert problems * made["blocks"] <= max(problems, 3 * multiprocessors)
    held = 8 * made["rows_per_warp"]
    assert held in (8, 16, 32, 64, 128)
    assert made["row_blocks"] * 128 >= planes
    assert planes <= held or made["row_blocks"] > 1
    assert held == 8 or planes > held // 2


def problem(shape, fmt, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(size, generator=generator)

    vector = (*shape[:-2], shape[-1])
    drawn = draw(*shape)
    signs = fmt == "signs"
    planes = pack_signs(drawn, draw(*shape[:-1]).abs() + 0.1) if signs else drawn.to(getattr(torch, fmt))
    return planes, draw(*shape[:-1]), draw(*shape[:-1]), draw(*vector), draw(*vector), draw(*vector)


def misaligned(planes):
    """Return the same planes, with rows that begin at odd addresses."""

    def shift(tensor):
        return torch.nn.functional.pad(tensor, (3, 2))[..., 3 : 3 + tensor.shape[-1]]

    if isinstance(planes, PackedSigns):
        return planes._replace(bits=shift(planes.bits))
    return shift(planes)


def forget_plans(native):
    """Pretend to the emulator that the device is another one."""
    for plans in (native._values_plan, native._combine_plan, native._total_plan, native._step_plan):
        plans.cache_clear()


def everything(functions, planes, offsets, multipliers, point, gradient, anchor):
    results = [functions.values(planes, offsets, point)]
    results += functions.penalty_and_values(planes, offsets, multipliers, point)
    results += functions.lagrangian_and_values(planes, offsets, multipliers, point)
    results.append(functions.combine(planes, multipliers, point.dtype))
    for adam in (False, True):
        moved = point.clone()
        state = (gradient.clone(), gradient.square(), torch.tensor(3.0)) if adam else None
        results += [
            functions.step_(planes, multipliers, gradient, moved, anchor, offsets, lr=0.1, adam_state=state),
            moved,
            *(state or ()),
        ]
    return [result.double() for result in results]


# Several tiles for each of several blocks; every number of rows that a thread can have; more rows than a block holds.
@pytest.mark.parametrize(
    "shape", [(5, 9000), (12, 9000), (30, 9000), (64, 5000), (100, 3000), (300, 700), (2, 130, 300)]
)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("lay", [lambda planes: planes, misaligned], ids=["aligned", "misaligned"])
def test_many_blocks_and_many_rows(native, shape, fmt, lay):
    planes, *rest = problem(shape, fmt)
    if fmt == "signs":  # several tiles
        planes, *rest = problem((*shape[:-1], 4 * shape[-1]), fmt)
    exact_planes = planes.unpack(torch.float64) if fmt == "signs" else planes.double()
    exact = everything(reference, exact_planes, *(tensor.double() for tensor in rest))
    plain = everything(reference, planes, *rest)
    for ours, theirs, truth in zip(everything(native, lay(planes), *rest), plain, exact, strict=True):
        allowed = (theirs - truth).abs().max()
        assert (ours - truth).abs().max() <= 2 * allowed + 2.4e-7 * truth.abs().max()


def test_the_number_of_blocks_changes_rounding_alone(native, monkeypatch):
    planes, *rest = problem((20, 9000), "float32")
    results = []
    for multiprocessors in ("1", "4", "132"):
        monkeypatch.setenv("SIMMST_CUDA_EMULATION_MULTIPROCESSORS", multiprocessors)
        forget_plans(native)
        results.append(everything(native, planes, *rest))
    forget_plans(native)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-4)


def test_the_order_of_threads_and_blocks_changes_nothing(native, monkeypatch):
    planes, *rest = problem((20, 3000), "bfloat16")
    results = []
    for seed in ("0", "1", "2"):
        monkeypatch.setenv("SIMMST_CUDA_EMULATION_SEED", seed)
        results.append(everything(native, planes, *rest))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))


def test_the_bindings_refuse_what_does_not_fit(native):
    planes, offsets, _, point, *_ = problem((3, 40), "float32")
    out = torch.empty(3)

    def plan(planes=planes, scale=None, offsets=offsets, point=point, out=out, device=-1):
        given = [tensor if tensor is None else told(layout(tensor)) for tensor in (planes, scale, offsets, point, out)]
        return module().cutting_plane_values(*given, device)

    made = plan()
    room = torch.empty(made.workspace, dtype=torch.uint8)
    places = [tensor.data_ptr() for tensor in (planes, point, offsets, out, room)]
    made(places[0], 0, *places[1:], 0)
    torch.testing.assert_close(out, planes @ point + offsets)
    for message, wrong in {
        "point has no address": (places[0], 0, 0, *places[2:], 0),
        "out begins at an address that is no multiple of 4": (places[0], 0, *places[1:3], places[3] + 1, places[4], 0),
        "workspace has no address": (places[0], 0, *places[1:4], 0, 0),
    }.items():
        with pytest.raises(ValueError, match=message.replace("out", "values")):
            made(*wrong)
    with pytest.raises(TypeError, match="the call takes 6 addresses and a stream, got 2 numbers"):
        made(1, 2)
    refusals = {
        r"planes float32 \(3, 40\) must have 39 in its last dimension, for 39 columns": {"point": point[:39]},
        r"planes float32 \(3, 20\) must have stride 1 along its last dimension, got 2": {
            "planes": planes[:, ::2], "point": point[:20],
        },
        r"offsets float32 \(2\) must have shape \(3\)": {"offsets": offsets[:2]},
        r"values is written to, but several of its entries share one place": {"out": out[:1].expand(3)},
        r"point float32 \(40\) lies on device -1, the call is for device 0": {"device": 0},
    }  # fmt: skip
    for message, changed in refusals.items():
        with pytest.raises(ValueError, match=message):
            plan(**changed)
    for message, changed in {
        r"point int64 \(40\) must hold one of float32, bfloat16, float16": {"point": point.long()},
        r"planes float64 \(3, 40\) must hold one of": {"planes": planes.double()},
        r"scale goes with packed signs": {"scale": offsets},
    }.items():
        with pytest.raises(TypeError, match=message):
            plan(**changed)
