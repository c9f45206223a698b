"""Our replacement of the layer of Hugging Face's Informer, against a module with the same interface."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from lookalikes import Cache, InformerProbSparseAttention
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from simmst.compat import restore, swap
from simmst.nn.prob_sparse_attention import evaluation_sample
from simmst.ops import prob_sparse_select

LENGTH = 90  # 25 queries are selected


def layer(**settings) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(InformerProbSparseAttention(16, 2, **settings))


def series(length: int = LENGTH, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, length, 16, generator=torch.Generator().manual_seed(1))


def causal(length: int, batch: int = 3) -> torch.Tensor:
    return torch.full((batch, 1, length, length), torch.finfo(torch.float32).min).triu(1)


def run(model: nn.Module, *args, **kwargs):
    torch.manual_seed(7)
    return model[0](*args, **kwargs)


CALLS = {
    "encoder": ({}, {}),
    "decoder": ({"is_decoder": True}, {"attention_mask": causal(LENGTH)}),
    "decoder without a mask": ({"is_decoder": True}, {}),
    "cross": ({}, {"key_value_states": series(40)}),
    "dropout": ({"dropout": 0.3}, {}),
    "few": ({"sampling_factor": 1}, {}),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_exact_gives_the_results_of_the_library(name: str, training: bool) -> None:
    settings, options = CALLS[name]
    model, x = layer(**settings).train(training), series().requires_grad_()
    out, weights = run(model, x, **options)
    after = torch.rand(1)
    gradients = torch.autograd.grad(out.square().sum(), [x, *model.parameters()])
    assert swap(model, exact=True) == 1
    ours, ours_weights = run(model, x, **options)
    assert torch.equal(torch.rand(1), after)  # the stream continues from the same place
    torch.testing.assert_close(ours, out, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours_weights, weights, rtol=0, atol=1e-5)
    found = torch.autograd.grad(ours.square().sum(), [x, *model.parameters()])
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_by_default_every_query_is_measured_on_keys_of_its_own() -> None:
    model, x = layer().eval(), series()
    swap(model)
    attention = model[0]
    query, key = (
        projection(x).view(3, LENGTH, 2, 8).transpose(1, 2) for projection in (attention.q_proj, attention.k_proj)
    )
    samples = 5 * math.ceil(math.log(LENGTH))
    sample = evaluation_sample(LENGTH, LENGTH, samples, shared=False, device=x.device)
    top, _ = prob_sparse_select(query, key, sample, u=25)
    scores = (query.gather(2, top[..., None].expand(3, 2, 25, 8)) * 8**-0.5) @ key.mT
    out, weights = attention(x)
    torch.testing.assert_close(weights, scores.softmax(-1))
    assert torch.equal(attention(x)[0], out)
    attention.train()
    assert not torch.equal(attention(x)[0], attention(x)[0])


class Sizes(TorchDispatchMode):
    """Records the largest tensor that is made inside."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(each, torch.Tensor):
                self.largest = max(self.largest, each.untyped_storage().nbytes() // each.element_size())
        return result


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_nothing_quadratic_is_kept(exact: bool, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMMST_BACKEND", backend)
    model, x = layer().train(), series(1200, batch=1)
    quadratic = 2 * 1200 * 1200
    with Sizes() as theirs:
        run(model, x)
    assert theirs.largest >= quadratic
    swap(model, exact=exact)
    with Sizes() as ours:
        run(model, x)[0].sum().backward()
    assert ours.largest < quadratic / 4


def test_everything_that_is_not_the_forward_pass_stays() -> None:
    model = layer(dropout=0.1)
    state, parameters = copy.deepcopy(model.state_dict()), list(model.parameters())
    calls = []
    model[0].register_forward_hook(lambda module, args, out: calls.append(out[1].shape))
    assert swap(model) == 1
    assert swap(model, exact=True) == 1  # swap again, with the other setting
    assert isinstance(model[0], InformerProbSparseAttention)
    assert type(model[0]).__name__ == "FastInformerProbSparseAttention"
    assert [*map(id, model.parameters())] == [*map(id, parameters)]
    assert list(model.state_dict()) == list(state)
    model.load_state_dict(state)
    x = series()
    expected = run(model, x)[0]
    assert calls == [(3, 2, 25, LENGTH)]
    assert restore(model) == 1
    assert type(model[0]) is InformerProbSparseAttention
    assert vars(model[0]).keys() == vars(layer()[0]).keys()
    torch.testing.assert_close(run(model, x)[0], expected, rtol=0, atol=1e-5)
    assert restore(model) == 0


def test_copies_and_checkpoints_of_a_swapped_model_compute_as_it_does(tmp_path) -> None:
    model, x = layer().eval(), series()
    swap(model)
    torch.save(model, tmp_path / "model.pt")
    for other in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert torch.equal(other[0](x)[0], model[0](x)[0])
        assert type(other[0]) is type(model[0])
        assert restore(other) == 1
    assert type(model[0]).__name__ == "FastInformerProbSparseAttention"


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(exact: bool, reentrant: bool) -> None:
    model, x = layer(dropout=0.2).train(), series()
    swap(model, exact=exact)
    found = []
    for call in (lambda x: model[0](x)[0], lambda x: checkpoint(lambda x: model[0](x)[0], x, use_reentrant=reentrant)):
        leaf = x.clone().requires_grad_()
        torch.manual_seed(3)
        call(leaf).square().sum().backward()
        found.append(leaf.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_keys_and_values_are_kept_between_steps(name: str) -> None:
    model, x = layer(is_decoder=True, layer_idx=0, sampling_factor=10).eval(), series(6)
    swap(model)
    whole = run(model, x, attention_mask=causal(6))[0]
    cache, steps = Cache(), []
    for step in range(6):
        mask = torch.zeros(3, 1, 1, step + 1)
        steps.append(model[0](x[:, step : step + 1], attention_mask=mask, **{name: cache})[0])
    torch.testing.assert_close(torch.cat(steps, 1), whole)


def test_a_cross_attention_reads_its_cache_once_it_is_filled() -> None:
    model, x, others = layer(layer_idx=0).eval(), series(6), series(8)
    swap(model)
    cache = SimpleNamespace(cross_attention_cache=Cache(), self_attention_cache=Cache(), is_updated={})
    first = model[0](x, key_value_states=others, cache=cache)[0]
    assert cache.is_updated == {0: True}
    assert not cache.self_attention_cache.layers
    assert torch.equal(model[0](x, key_value_states=torch.zeros_like(others), cache=cache)[0], first)


def test_training_drops_weights_and_hands_them_out_on_request() -> None:
    model, x = layer(dropout=0.5), series()
    swap(model)
    out, weights = run(model, x)
    assert weights is None
    assert (out - run(layer(), x)[0]).abs().max() > 0.01
    weights = run(model, x, output_attentions=True)[1]
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 25))
    assert run(model.eval(), x)[1].shape == (3, 2, 25, LENGTH)  # outside a model nothing asks for weights


def test_a_mask_of_another_shape_is_refused() -> None:
    model = layer()
    swap(model)
    with pytest.raises(ValueError, match=r"attention_mask must be .* = \(3, 1, 90, 90\), got \(3, 1, 4, 4\)"):
        model[0](series(), attention_mask=causal(4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model, x = layer(is_decoder=True).to(dtype), series().to(dtype)
    swap(model)
    assert run(model, x)[0].dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert run(model.float(), x.float())[0].dtype == torch.bfloat16


def test_compiles() -> None:
    torch.compiler.reset()
    model, x = layer(dropout=0.0).train(), series()
    swap(model, exact=True)
    compiled = torch.compile(model[0], backend="aot_eager")
    torch.manual_seed(7)
    torch.testing.assert_close(compiled(x)[0], run(model, x)[0])


@pytest.mark.parametrize("exact", [False, True])
def test_exports(exact: bool) -> None:
    model, x = layer().eval(), series()
    swap(model, exact=exact)
    exported = torch.export.export(model[0], (x,), strict=False).module()
    torch.manual_seed(7)
    torch.testing.assert_close(exported(x)[0], run(model, x)[0])


def test_what_is_no_such_layer_is_left_alone() -> None:
    class InformerProbSparseAttention(nn.Module):
        """A class with only the name."""

    assert swap(nn.Sequential(InformerProbSparseAttention(), nn.MultiheadAttention(4, 1))) == 0
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got dict"):
        swap({})
    with pytest.raises(TypeError, match="got SimpleNamespace"):
        restore(SimpleNamespace(models=[1]))
    assert swap(SimpleNamespace(models=[layer(), layer()])) == 2
