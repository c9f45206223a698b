"""The whole Informer of Hugging Face transformers, if it is installed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from informers import BATCH, CONTEXT, HORIZON, QUIET, batch, gradients, informer, run
from torch import Tensor

from simmst.compat import restore, swap

transformers = pytest.importorskip("transformers", reason="comes with the extra huggingface")


@pytest.mark.parametrize("kind", ["InformerModel", "InformerForPrediction"])
@pytest.mark.parametrize("training", [False, True])
def test_exact_gives_every_output_of_the_library(kind: str, training: bool) -> None:
    model = informer(kind).train(training)
    options = {"output_attentions": True, "output_hidden_states": True}
    expected = run(model, **options)
    assert swap(model, exact=True) == 4
    found = run(model, **options)
    assert found.keys() == expected.keys()
    for name in expected:
        pairs = (
            zip(found[name], expected[name], strict=True)
            if isinstance(expected[name], tuple)
            else [(found[name], expected[name])]
        )
        for one, other in pairs:
            if isinstance(other, Tensor):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-5, msg=name)


def test_exact_trains_as_the_library() -> None:
    model = informer().train()
    expected = gradients(model)
    swap(model, exact=True)
    for one, other in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_exact_generates_as_the_library() -> None:
    model, samples = informer().eval(), []
    for change in (restore, lambda model: swap(model, exact=True)):
        change(model)
        torch.manual_seed(4)
        samples.append(model.generate(**batch(future=False)).sequences)
    assert samples[0].shape == (BATCH, 2, HORIZON)
    torch.testing.assert_close(samples[1], samples[0], rtol=0, atol=1e-4)


def test_by_default_outputs_have_the_shapes_of_the_library_and_do_not_change() -> None:
    model = informer().eval()
    theirs = run(model, output_attentions=True)
    assert swap(model) == 4
    ours = run(model, output_attentions=True)
    for name in ("encoder_attentions", "decoder_attentions", "cross_attentions"):
        assert [each.shape for each in ours[name]] == [each.shape for each in theirs[name]]
    assert torch.equal(run(model).loss, ours.loss)
    assert torch.equal(model(**batch()).loss, ours.loss)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=0.2, atol=0.2)
    assert model.generate(**batch(future=False)).sequences.isfinite().all()


def test_attentions_are_recorded_and_carry_gradients() -> None:
    model = informer(**QUIET).eval()
    swap(model)
    run(model, output_hidden_states=True)  # the library's hooks stay from here on
    out = run(model, output_attentions=True, output_hidden_states=True)
    assert (len(out.encoder_attentions), len(out.encoder_hidden_states)) == (2, 3)
    watched = (out.encoder_attentions[0], out.encoder_hidden_states[1])
    for each in watched:
        each.retain_grad()
    out.loss.backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in watched)
    model.config.output_attentions = True
    assert len(run(model).encoder_attentions) == 2


def test_a_forward_hook_sees_the_weights() -> None:
    model, seen = informer().eval(), []
    swap(model)
    run(model)
    model.get_encoder().layers[0].self_attn.register_forward_hook(lambda module, args, out: seen.append(out[1]))
    run(model)
    assert seen[0].shape == (BATCH, 2, 10, CONTEXT)


@pytest.mark.parametrize("exact", [False, True])
def test_gradient_checkpointing(exact: bool) -> None:
    model = informer().train()
    swap(model, exact=exact)
    expected = [each.clone() for each in gradients(model)]
    model.gradient_checkpointing_enable()
    for one, other in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_save_and_load(tmp_path) -> None:
    model = informer().eval()
    swap(model)
    expected = run(model).loss
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert swap(loaded) == 4
    assert torch.equal(run(loaded).loss, expected)
    assert torch.equal(run(copy.deepcopy(model)).loss, expected)
    restore(model)
    assert not any("simmst" in type(each).__module__ for each in model.modules())


def test_a_model_that_swaps_itself_when_it_is_made(tmp_path) -> None:
    class Swapped(transformers.InformerModel):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            swap(self)

    model = Swapped(informer().config).eval()
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(
        run(Swapped.from_pretrained(tmp_path).eval()).last_hidden_state, run(model).last_hidden_state
    )


def test_full_attention_has_nothing_to_swap() -> None:
    assert swap(informer(attention_type="full")) == 0


def test_learns() -> None:
    model = informer(**QUIET).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)  # made before the layers are swapped
    swap(model)
    losses = []
    for _ in range(15):
        loss = model(**batch()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.3
