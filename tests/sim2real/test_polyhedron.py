"""Planes: their values, which of them are kept, and the memory that they take."""

from __future__ import annotations

import pytest
import torch

from simmst.errors import ConfigError
from simmst.sim2real import polyhedron as polyhedron_module
from simmst.sim2real.polyhedron import Polyhedron, Rows

CPU = torch.device("cpu")
STORAGES = ["float32", "bfloat16", "sign"]


def made(storage="float32", planes=4, weights=6, parameters=13):
    return Polyhedron(weights, parameters, max_planes=planes, storage=storage, device=CPU)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(storage="float32", count=3, planes=4):
    polyhedron = made(storage, planes)
    for number in range(count):
        w, phi = numbers(6, seed=10 + number), numbers(13, seed=20 + number)
        polyhedron.age = polyhedron.age + 1
        polyhedron.add(numbers(6, seed=number), numbers(13, seed=30 + number), value=1.0, weights=w, phi=phi)
    polyhedron.anchor(w, phi)
    return polyhedron, w, phi


@pytest.mark.parametrize("storage", STORAGES)
def test_a_new_plane_touches_whatever_its_storage(storage):
    polyhedron, w, phi = filled(storage)
    assert abs(float(polyhedron.evaluate(w, phi)[-1]) - 1.0) < 1e-12
    assert abs(float(polyhedron.values[-1]) - 1.0) < 1e-12
    assert torch.equal(polyhedron.multipliers, torch.zeros(3))


@pytest.mark.parametrize("storage", STORAGES)
def test_values_are_those_of_the_stored_rows(storage):
    polyhedron, w, phi = filled(storage)
    expected = polyhedron.weight_rows.dense().double() @ w.double()
    expected += polyhedron.model_rows.dense().double() @ phi.double() + polyhedron.offsets
    torch.testing.assert_close(polyhedron.evaluate(w, phi), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("adam", [True, False])
@pytest.mark.parametrize("storage", STORAGES)
def test_a_step_moves_along_the_planes_and_renews_their_values(storage, adam):
    polyhedron, w, phi = filled(storage)
    coefficients = torch.tensor([0.5, 0.0, 2.0])
    a, b = polyhedron.weight_rows.dense(), polyhedron.model_rows.dense()
    before_w, before_phi = w.clone(), phi.clone()
    state = (torch.zeros(6), torch.zeros(6), torch.tensor(0.0)) if adam else None
    polyhedron.step_(coefficients, w, numbers(6), phi, numbers(13), lr_weights=0.1, lr_model=0.2, adam_state=state)
    pull = a.T @ coefficients + numbers(6)
    moved = 0.1 * pull.sign() if adam else 0.1 * pull  # the length of Adam's first step is its learning rate
    torch.testing.assert_close(before_w - w, moved, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(before_phi - phi, 0.2 * (b.float().T @ coefficients + numbers(13)))
    torch.testing.assert_close(polyhedron.values, polyhedron.evaluate(w, phi), rtol=1e-5, atol=1e-5)


def test_drops_planes_without_multiplier_and_old_ones():
    polyhedron, w, phi = filled(count=4)
    polyhedron.multipliers = torch.tensor([1.0, 0.0, 2.0, 3.0])
    offsets = polyhedron.offsets
    polyhedron.age = torch.tensor([19, 3, 20, 1])
    polyhedron.drop(tolerance=1e-12, max_age=20)
    assert sorted(polyhedron.multipliers.tolist()) == [1.0, 3.0]
    kept = {1.0: 0, 3.0: 3}
    for place, multiplier in enumerate(polyhedron.multipliers.tolist()):
        assert polyhedron.offsets[place] == offsets[kept[multiplier]]
    assert sorted(polyhedron.age.tolist()) == [2, 20]
    # Rows moved together with their numbers, so the values before and after are those of the same planes.
    full, _, _ = filled(count=4)
    expected = full.evaluate(w, phi)[[kept[multiplier] for multiplier in polyhedron.multipliers.tolist()]]
    torch.testing.assert_close(polyhedron.evaluate(w, phi), expected)


def test_a_full_polyhedron_evicts_the_oldest_one_after_another():
    polyhedron, w, phi = filled(count=4, planes=4)
    assert polyhedron.age.tolist() == [3, 2, 1, 0]
    polyhedron.multipliers = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for gone in (1.0, 2.0, 3.0):
        polyhedron.age = polyhedron.age + 1
        polyhedron.add(numbers(6, seed=50), numbers(13, seed=60), value=2.0, weights=w, phi=phi)
        assert len(polyhedron) == 4
        assert gone not in polyhedron.multipliers.tolist()
        assert abs(float(polyhedron.evaluate(w, phi)[-1]) - 2.0) < 1e-12
    assert sorted(polyhedron.multipliers.tolist()) == [0.0, 0.0, 0.0, 4.0]


def test_lifting_admits_the_point_and_lowers_nothing_else():
    polyhedron, w, phi = filled()
    before, offsets = polyhedron.evaluate(w, phi), polyhedron.offsets.clone()
    assert (before > 0).any()
    polyhedron.lift(w, phi)
    assert float(polyhedron.evaluate(w, phi).max()) < 1e-12
    torch.testing.assert_close(offsets - polyhedron.offsets, before.clamp(min=0))


@pytest.mark.parametrize("storage", STORAGES)
def test_state_comes_back_bit_for_bit(storage):
    polyhedron, w, phi = filled(storage)
    polyhedron.multipliers = torch.tensor([1.0, 2.0, 3.0])
    other = made(storage)
    other.load_state_dict(polyhedron.state_dict())
    pairs = []
    for each in (polyhedron, other):
        point = w.clone(), phi.clone()
        each.step_(
            each.multipliers, point[0], numbers(6), point[1], numbers(13), lr_weights=0.1, lr_model=0.1, adam_state=None
        )
        pairs.append((*point, each.values))
    for one, two in zip(*pairs, strict=True):
        assert torch.equal(one, two)


def test_gram_and_products():
    for storage in STORAGES:
        polyhedron, _, _ = filled(storage)
        rows = polyhedron.model_rows.dense().double()
        torch.testing.assert_close(polyhedron.gram(), rows @ rows.T)
        torch.testing.assert_close(polyhedron.along(numbers(13)), rows @ numbers(13).double())
    assert made().gram().shape == (0, 0)


def test_too_many_planes_for_the_memory_are_refused_before_they_are_made(monkeypatch):
    with pytest.raises(ConfigError, match=r"4e\+06 GB.*lower max_planes, or set storage"):
        Rows(1000, 10**12, "float32", CPU)
    monkeypatch.setattr(polyhedron_module, "free_memory", lambda device: None)  # a system that does not report it
    with pytest.raises(ConfigError, match=r"4e\+06 GB.*lower max_planes, or set storage"):
        Rows(1000, 10**12, "float32", CPU)


def test_signs_take_one_bit():
    rows = {storage: Rows(8, 80_000, storage, CPU).entries.nbytes for storage in STORAGES}
    assert rows == {"float32": 8 * 320_000, "bfloat16": 8 * 160_000, "sign": 8 * 10_000}
