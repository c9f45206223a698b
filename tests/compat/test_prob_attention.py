"""Our replacement of ProbAttention, against modules with the interfaces of four libraries."""

from __future__ import annotations

import copy
import pickle

import lookalikes
import pytest
import torch
from lookalikes import AttentionLayer
from torch import nn

from simmst.compat import restore, swap

MAKERS = (lookalikes.informer2020, lookalikes.time_series_library, lookalikes.pypots)


def heads(length: int = 70, *, batch: int = 3, count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, length, count, 8, generator=torch.Generator().manual_seed(seed))


def run(model: nn.Module, *args, **kwargs):
    torch.manual_seed(5)
    return model[0](*args, **kwargs)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    "settings", [{"mask_flag": False}, {"mask_flag": True}, {"mask_flag": False, "factor": 1, "scale": 0.7}]
)
def test_exact_gives_the_results_of_the_library(make, settings) -> None:
    model = nn.Sequential(make(**settings))
    query, key, value = (heads(seed=seed).requires_grad_() for seed in range(3))
    out, weights = run(model, query, key, value, None)
    gradients = torch.autograd.grad(out.square().sum(), (query, key, value))
    assert swap(model, exact=True) == 1
    ours, ours_weights = run(model, query, key, value, None)
    torch.testing.assert_close(ours, out, rtol=0, atol=1e-5)
    assert ours.is_contiguous()
    assert (weights is None) == (ours_weights is None)
    if weights is not None:
        torch.testing.assert_close(ours_weights, weights, rtol=0, atol=1e-6)
    for one, other in zip(torch.autograd.grad(ours.square().sum(), (query, key, value)), gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("make", MAKERS)
def test_cross_attention(make) -> None:
    model = nn.Sequential(make(mask_flag=False))
    query, key = heads(30), heads(70, seed=1)
    if make is not lookalikes.pypots:
        out = run(model, query, key, key, None)[0]
        swap(model, exact=True)
        torch.testing.assert_close(run(model, query, key, key, None)[0], out, rtol=0, atol=1e-5)
    else:
        swap(model)
        assert run(model, query, key, key)[0].shape == query.shape


@pytest.mark.parametrize("causal", [False, True])
def test_the_layout_is_mended_by_default_and_kept_on_request(causal: bool) -> None:
    """A layer that passes heads first, inside the layer around it, against the same weights in the right layout."""
    torch.manual_seed(0)
    faulty = AttentionLayer(lookalikes.time_series_library(mask_flag=causal, factor=30), 16, 2, named=True)
    right = AttentionLayer(lookalikes.informer2020(mask_flag=causal, factor=30), 16, 2)
    right.load_state_dict(faulty.state_dict())
    x = torch.randn(3, 70, 16)
    before, wanted = faulty(x, x, x)[0], right(x, x, x)[0]  # every query is selected, so samples do not matter
    assert (before - wanted).abs().max() > 0.01
    for settings, expected in (
        ({}, wanted),
        ({"keep_layout": True}, before),
        ({"exact": True}, before),
        ({"exact": True, "keep_layout": False}, wanted),
    ):
        assert swap(faulty, **settings) == 1
        torch.testing.assert_close(faulty(x, x, x)[0], expected, msg=str(settings))
    assert restore(faulty) == 1
    torch.testing.assert_close(faulty(x, x, x)[0], before)
    swap(right, keep_layout=True)
    torch.testing.assert_close(right(x, x, x)[0], wanted)


def test_evaluation_is_deterministic_and_training_draws() -> None:
    model, x = nn.Sequential(lookalikes.informer2020(mask_flag=False, factor=1)), heads(100)
    swap(model)
    model.train()
    assert not torch.equal(model[0](x, x, x, None)[0], model[0](x, x, x, None)[0])
    model.eval()
    state = torch.get_rng_state()
    out = model[0](x, x, x, None)[0]
    assert torch.equal(model[0](x, x, x, None)[0], out)
    assert torch.equal(torch.get_rng_state(), state)


def test_one_head_in_a_batch_and_one_step() -> None:
    """The originals fail on a squeeze and on the logarithm of one."""
    model = nn.Sequential(lookalikes.time_series_library(mask_flag=False))
    swap(model)
    one = heads(70, count=1)
    together = model.eval()[0](one, one, one, None)[0]
    for number in range(3):
        alone = one[number : number + 1]
        torch.testing.assert_close(model[0](alone, alone, alone, None)[0], together[number : number + 1])
    single = heads(1)
    torch.testing.assert_close(model[0](single, single, single, None)[0], single)


def test_asking_a_layer_draws_nothing_and_changes_nothing() -> None:
    model = nn.Sequential(lookalikes.time_series_library()).train()
    torch.manual_seed(2)
    before = vars(model[0]).copy()
    swap(model)
    assert torch.initial_seed() == 2
    expected = torch.Generator().manual_seed(2)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=expected))
    restore(model)
    assert vars(model[0]) == before


def test_copies_are_swapped_too() -> None:
    model, x = nn.Sequential(nn.Identity(), lookalikes.informer2020()).eval(), heads()
    swap(model)
    other = copy.deepcopy(model)
    assert torch.equal(other[1](x, x, x, None)[0], model[1](x, x, x, None)[0])
    with pytest.raises(AttributeError):  # pickle cannot find a class inside a function
        pickle.dumps(model)


def test_layers_that_compute_something_else_are_named() -> None:
    class ProbAttention(lookalikes._Base):
        def forward(self, queries, keys, values, attn_mask):
            if self.factor == 1:
                raise RuntimeError("no such thing")
            return queries.flatten(2), None

    for factor, message in ((1, r"'0\.1' cannot be swapped, because it fails .*such thing"), (5, r"into \(2, 5, 6\)")):
        with pytest.raises(ValueError, match=message):
            swap(nn.Sequential(nn.Sequential(nn.Identity(), ProbAttention(factor=factor))))


def test_a_layer_with_weights_of_its_own_is_another() -> None:
    class ProbAttention(lookalikes._Base):
        def __init__(self):
            super().__init__()
            self.projection = nn.Linear(2, 2)

    assert swap(nn.Sequential(ProbAttention())) == 0
