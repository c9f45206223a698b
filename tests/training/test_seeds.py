from __future__ import annotations

import torch

from simmst.training.seeds import derive_seed, generator_state, seeded, set_generator_state


def test_every_purpose_has_its_own_seed():
    seeds = {derive_seed(seed, name, part) for seed in range(5) for name in ("a", "b") for part in range(3)}
    assert len(seeds) == 30
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_callers_generator_is_given_back():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with seeded(99):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    assert not torch.equal(inside, expected)


def test_a_stored_state_continues_the_stream():
    with seeded(5):
        torch.rand(7)
        state = generator_state(torch.device("cpu"))
        expected = torch.rand(4)
    with seeded(6):
        set_generator_state(state, torch.device("cpu"))
        assert torch.equal(torch.rand(4), expected)
