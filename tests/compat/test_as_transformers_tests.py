"""The checks that the public tests of Hugging Face transformers make on its Informer, made with our layers in it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from informers import BATCH, CONTEXT, HORIZON, QUIET, batch, gradients, informer, run
from torch import Tensor, nn

from simmst.compat import restore, swap

pytest.importorskip("transformers", reason="comes with the extra huggingface")
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

KINDS = ("InformerModel", "InformerForPrediction")
SELECTED = {"encoder": 10, "decoder": 8}  # 2 * ceil(ln(1 + length))


@pytest.fixture(params=[False, True], ids=["default", "exact"])
def exact(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def swapped(kind: str, exact: bool, **settings: Any) -> nn.Module:
    model = informer(kind, **settings).eval()
    assert swap(model, exact=exact) == 4
    return model


def tensors(output: Any) -> list[Tensor]:
    """Return every tensor of an output, tuples unpacked."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return [each for part in parts for each in tensors(part)]


def assert_same(one: Any, other: Any, **tolerance: float) -> None:
    left, right = tensors(one), tensors(other)
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_is_deterministic_in_evaluation_mode(kind: str, exact: bool) -> None:
    model = swapped(kind, exact)
    assert_same(run(model), run(model), rtol=0, atol=0)
    if not exact:  # the library draws again in every call, which its tests skip
        assert_same(model(**batch()), model(**batch()), rtol=0, atol=0)


def test_a_window_alone_is_as_in_its_batch(kind: str, exact: bool) -> None:
    model = swapped(kind, exact)
    whole = run(model)["encoder_last_hidden_state"]
    for number in range(BATCH):
        alone = run(model, {name: values[number : number + 1] for name, values in batch().items()})
        torch.testing.assert_close(alone["encoder_last_hidden_state"], whole[number : number + 1])


@pytest.mark.parametrize("by_config", [False, True])
def test_attentions_and_hidden_states_have_the_shapes_of_the_library(kind: str, exact: bool, by_config: bool) -> None:
    model = swapped(kind, exact, distil=False)
    options = {"output_attentions": True, "output_hidden_states": True}
    if by_config:
        for name in options:
            setattr(model.config, name, True)
        options = {}
    out = run(model, **options)
    heads = model.config.encoder_attention_heads
    for name, queries, keys in (
        ("encoder_attentions", SELECTED["encoder"], CONTEXT),
        ("decoder_attentions", SELECTED["decoder"], HORIZON),
        ("cross_attentions", HORIZON, CONTEXT),
    ):
        assert [tuple(each.shape) for each in out[name]] == [(BATCH, heads, queries, keys)] * 2, name
        for each in out[name]:
            torch.testing.assert_close(each.sum(-1), torch.ones(each.shape[:-1]))
    for name, length in (("encoder_hidden_states", CONTEXT), ("decoder_hidden_states", HORIZON)):
        assert [tuple(each.shape) for each in out[name]] == [(BATCH, length, 16)] * 3
    restore(model)
    assert list(run(model, **options).keys()) == list(out.keys())


def test_a_tuple_holds_what_the_mapping_holds(kind: str, exact: bool) -> None:
    model = swapped(kind, exact)
    options = {"output_attentions": True, "output_hidden_states": True}
    assert_same(run(model, return_dict=False, **options), run(model, **options), rtol=0, atol=0)


def test_gradients_of_attentions_and_hidden_states_are_kept(exact: bool) -> None:
    model = swapped("InformerForPrediction", exact, **QUIET)
    out = run(model, output_attentions=True, output_hidden_states=True)
    watched = [out[f"{side}_{what}"][0] for side in ("encoder", "decoder") for what in ("attentions", "hidden_states")]
    for each in (*watched, out.cross_attentions[0]):
        each.retain_grad()
    out.loss.backward()
    assert all(each.grad is not None for each in (*watched, out.cross_attentions[0]))


def test_every_parameter_is_trained(exact: bool) -> None:
    model = swapped("InformerForPrediction", exact, encoder_layerdrop=0.0, decoder_layerdrop=0.0).train()
    found = gradients(model)
    assert len(found) == sum(each.requires_grad for each in model.parameters())
    assert all(each.isfinite().all() for each in found)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(exact: bool, reentrant: bool) -> None:
    model = swapped("InformerForPrediction", exact, encoder_layerdrop=0.0, decoder_layerdrop=0.0).train()
    expected = [each.clone() for each in gradients(model)]
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    assert_same(gradients(model), expected)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    assert_same(gradients(model), expected)


def test_layers_may_be_dropped_while_training(exact: bool) -> None:
    model = swapped("InformerForPrediction", exact, encoder_layerdrop=0.5, decoder_layerdrop=0.5).train()
    torch.manual_seed(0)
    for _ in range(6):
        model.zero_grad()
        model(**batch()).loss.backward()


def test_saves_and_loads_with_no_key_missing_or_left_over(kind: str, exact: bool, tmp_path) -> None:
    model = swapped(kind, exact)
    expected = run(model)
    model.save_pretrained(tmp_path)
    loaded, told = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert not told["mismatched_keys"]
    assert swap(loaded.eval(), exact=exact) == 4
    assert_same(run(loaded), expected)
    fresh = swapped(kind, exact)
    nn.init.normal_(next(fresh.parameters()))
    assert str(fresh.load_state_dict(model.state_dict(), strict=True)) == "<All keys matched successfully>"
    assert_same(run(fresh), expected)
    again = pickle.loads(pickle.dumps(model))  # as torch.save does with a whole model
    assert_same(run(again), expected)


def test_holds_no_tensor_of_its_own(kind: str, exact: bool) -> None:
    plain, model = informer(kind), swapped(kind, exact)
    run(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    for (name, one), (_, other) in zip(model.named_modules(), plain.named_modules(), strict=True):
        stray = {key for key, value in vars(one).items() if isinstance(value, Tensor)}
        assert stray == {key for key, value in vars(other).items() if isinstance(value, Tensor)}, name


def test_encoder_and_decoder_stand_alone(exact: bool, tmp_path) -> None:
    from transformers.models.informer.modeling_informer import InformerDecoder, InformerEncoder

    model = swapped("InformerModel", exact)
    given = batch()
    whole = run(model, given)
    inputs = model.create_network_inputs(**given)[0]
    parts = {}
    for name, part, kind in (
        ("encoder", model.get_encoder(), InformerEncoder),
        ("decoder", model.get_decoder(), InformerDecoder),
    ):
        part.save_pretrained(tmp_path / name)
        parts[name] = kind.from_pretrained(tmp_path / name).eval()
        assert swap(parts[name], exact=exact) == 2
    torch.manual_seed(3)
    encoded = parts["encoder"](inputs_embeds=inputs[:, :CONTEXT])[0]
    torch.testing.assert_close(encoded, whole.encoder_last_hidden_state)
    decoded = parts["decoder"](inputs_embeds=inputs[:, CONTEXT:], encoder_hidden_states=encoded)[0]
    torch.testing.assert_close(decoded, whole.last_hidden_state)


def test_the_way_of_full_attention_is_chosen_as_before(exact: bool) -> None:
    model = swapped("InformerModel", exact)
    expected = run(model)
    model.set_attn_implementation("eager")  # for the cross-attention, which is full
    assert sum("Fast" in type(each).__name__ for each in model.modules()) == 4
    assert_same(run(model), expected)
    with pytest.raises(ValueError, match="does not support an attention implementation"):  # as without our layers
        model.set_attn_implementation("sdpa")


def test_is_made_on_a_device_that_holds_nothing(kind: str, exact: bool) -> None:
    with torch.device("meta"):
        model = informer(kind)
        assert swap(model, exact=exact) == 4
    assert {each.device.type for each in model.parameters()} == {"meta"}
    model = model.to_empty(device="cpu").eval()
    filled = swapped(kind, exact)
    model.load_state_dict(filled.state_dict())
    for one, other in zip(model.modules(), filled.modules(), strict=True):  # some are outside the state dict
        one._buffers.update({name: buffer.clone() for name, buffer in other._buffers.items() if buffer is not None})
    assert_same(run(model), run(filled))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(exact: bool, dtype: torch.dtype) -> None:
    model = swapped("InformerModel", exact).to(dtype)
    given = {name: values.to(dtype) for name, values in batch().items()}
    out = run(model, given)
    assert out.last_hidden_state.dtype == dtype
    expected = run(swapped("InformerModel", exact)).last_hidden_state
    apart = (out.last_hidden_state.float() - expected).abs().mean()
    assert apart < (0.15 if dtype == torch.bfloat16 else 1e-5)  # bfloat16 may select other queries


def test_generates_paths_of_the_asked_number(exact: bool) -> None:
    model = swapped("InformerForPrediction", exact)
    torch.manual_seed(5)
    first = model.generate(**batch(future=False), output_attentions=True, output_hidden_states=True).sequences
    assert first.shape == (BATCH, model.config.num_parallel_samples, HORIZON)
    assert first.isfinite().all()
    torch.manual_seed(5)
    torch.testing.assert_close(model.generate(**batch(future=False)).sequences, first, rtol=0, atol=1e-4)


def test_a_copy_is_independent(exact: bool) -> None:
    model = swapped("InformerForPrediction", exact)
    other = copy.deepcopy(model)
    assert restore(other) == 4
    assert restore(model) == 4
