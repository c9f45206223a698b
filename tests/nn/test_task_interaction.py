"""The layer in which tasks see each other's tokens, against its parts."""

import pytest
import torch
from torch import nn

from simmst.nn.task_interaction import TaskInteraction


def test_is_attention_over_all_tokens_with_residual_and_norm():
    torch.manual_seed(0)
    layer = TaskInteraction(12, 3).double()
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    parts = {name: value for name, value in layer.attention.state_dict().items() if not name.startswith("norm")}
    theirs.load_state_dict(parts)
    x = torch.randn(2, 3, 4, 12, dtype=torch.float64)
    tokens = x.reshape(2, 12, 12)
    expected = layer.attention.norm(tokens + theirs(tokens, tokens, tokens)[0]).reshape(x.shape)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)


def test_a_task_learns_from_the_others():
    layer = TaskInteraction(8, 2)
    x = torch.randn(2, 3, 4, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[:, 0].square().sum(), x)
    assert (gradient[:, 1].abs().sum(-1) > 0).all()
    assert (gradient[:, 2].abs().sum(-1) > 0).all()


def test_ignored_tokens_reach_no_other():
    layer = TaskInteraction(8, 2)
    x = torch.randn(2, 3, 4, 8)
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    mask[:, 1] = True
    changed = x.clone()
    changed[:, 1] = torch.randn(2, 4, 8)
    out, other = layer(x, mask), layer(changed, mask)
    torch.testing.assert_close(out[:, [0, 2]], other[:, [0, 2]])
    assert (out - layer(changed)).abs().max() > 1e-4


@pytest.mark.parametrize("shape", [(2, 1, 4, 8), (2, 3, 1, 8), (0, 3, 4, 8)])
def test_small_shapes(shape):
    assert TaskInteraction(8, 2)(torch.randn(shape)).shape == shape


def test_bad_input():
    layer = TaskInteraction(8, 2)
    with pytest.raises(ValueError, match=r"\(B, K, S, C\) with C = 8, got \(2, 4, 8\)"):
        layer(torch.randn(2, 4, 8))
    with pytest.raises(ValueError, match=r"with C = 8, got \(2, 3, 4, 7\)"):
        layer(torch.randn(2, 3, 4, 7))
    with pytest.raises(ValueError, match=r"\(B, K, S\) = \(2, 3, 4\), got \(2, 12\)"):
        layer(torch.randn(2, 3, 4, 8), torch.zeros(2, 12, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"bool tensor.*got torch\.float32"):
        layer(torch.randn(2, 3, 4, 8), torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="positive multiple"):
        TaskInteraction(8, 3)


def test_device_and_dtype_are_those_of_every_parameter():
    layer = TaskInteraction(8, 2, device="meta", dtype=torch.float64)
    assert {(str(each.device), each.dtype) for each in layer.parameters()} == {("meta", torch.float64)}
