"""The chain of PyTorch's fused operators computes what the reference does, for every option."""

import pytest
import torch

from simmst.ops import spatial_attention
from simmst.reference import spatial_attention_chain

F64 = torch.float64


def inputs(shape=(3, 6, 2, 3), dtype=F64):
    generator = torch.Generator().manual_seed(0)
    channels = shape[1] if len(shape) == 4 else shape[2]
    sizes = shape, (3 * channels, channels), (3 * channels,), (channels, channels), *3 * [(channels,)]
    return [torch.randn(size, generator=generator, dtype=F64).to(dtype) for size in sizes]


def some_mask(batch=3, positions=6):
    """Return a mask of some positions, and of all positions of the second map."""
    mask = torch.rand(batch, positions, generator=torch.Generator().manual_seed(1)) < 0.4
    mask[1] = True
    mask[[0, 2], 0] = False
    return mask


def call(backend, tensors, mask=None, *, bias=True, norm=True, norm_bias=True, residual=True, scale=None):
    x, w_in, b_in, w_out, b_out, w_norm, b_norm = tensors
    return spatial_attention(
        *(x, w_in, b_in if bias else None, w_out, b_out if bias else None),
        num_heads=2, key_padding_mask=mask, residual=residual, scale=scale, backend=backend,
        norm_weight=w_norm if norm else None, norm_bias=b_norm if norm and norm_bias else None,
    )  # fmt: skip


OPTIONS = [
    {},
    {"bias": False},
    {"norm": False},
    {"norm_bias": False},
    {"residual": False},
    {"residual": False, "norm": False, "bias": False},
    {"scale": 0.3},
    {"scale": -1.5},
    {"scale": 0.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(3, 6, 2, 3), (3, 6, 8)], ids=str)
def test_it_computes_what_the_reference_does(shape, masked, options):
    mask, results = some_mask() if masked else None, []
    for backend in ("chain", "reference"):
        tensors = [tensor.requires_grad_() for tensor in inputs(shape)]
        out = call(backend, tensors, mask, **options)
        assert out.is_contiguous()
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=F64)
        results.append((out, *torch.autograd.grad(out, tensors, grad, allow_unused=True)))
    for chain, reference in zip(*results, strict=True):
        torch.testing.assert_close(chain, reference, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_keeps_the_dtype(dtype):
    tensors, mask = inputs(dtype=dtype), some_mask()
    out = call("chain", tensors, mask)
    assert out.dtype == dtype
    expected = call("reference", [tensor.double() for tensor in tensors], mask)
    largest = (expected.abs().max() + expected.norm() / expected.numel() ** 0.5).item()
    assert (out - expected).abs().max() < 20 * torch.finfo(dtype).eps * largest


@pytest.mark.parametrize("shape", [(0, 6, 2, 3), (2, 6, 0, 3), (0, 4, 6), (2, 0, 6)], ids=str)
def test_empty(shape):
    tensors = [tensor.requires_grad_() for tensor in inputs(shape)]
    out = call("chain", tensors)
    assert out.shape == shape
    assert not any(grad.any() for grad in torch.autograd.grad(out.sum(), tensors))


@pytest.mark.parametrize("layout", ["channels last", "tokens by channel", "sliced"])
def test_any_layout(layout):
    x, *rest = inputs()
    views = {
        "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
        "tokens by channel": lambda t: t.flatten(2).mT,
        "sliced": lambda t: t.repeat(1, 2, 1, 2)[:, ::2, :, 2:5],
    }
    view = views[layout](x)
    torch.testing.assert_close(call("chain", [view, *rest]), call("chain", [view.contiguous(), *rest]))


def test_more_maps_than_a_grid_of_the_fused_kernels_holds(monkeypatch):
    tensors, mask = inputs((7, 4, 6)), some_mask(7, 4)
    expected = [call("chain", tensors, each) for each in (None, mask)]
    counts = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def counted(query, *rest, **options):
        counts.append(len(query))
        return attend(query, *rest, **options)

    monkeypatch.setattr(spatial_attention_chain, "_MOST_MAPS", 3)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    for each, right in zip((None, mask), expected, strict=True):
        torch.testing.assert_close(call("chain", tensors, each), right)
    assert counts == [3, 3, 1] * 2


def test_what_an_ignored_position_holds_reaches_no_other():
    """This holds even for entries that are finite in x but too large as values in float16."""
    (x, *rest), mask = inputs(dtype=torch.float16), some_mask()
    expected = call("chain", [x, *rest], mask)
    ignored = mask.view(3, 1, 2, 3)
    for held in (6e4, float("inf"), float("nan")):
        out = call("chain", [torch.where(ignored, held, x), *rest], mask)
        assert torch.equal(torch.where(ignored, 0, out), torch.where(ignored, 0, expected))


def test_autocast_rounds_once_and_not_in_between():
    tensors = inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = call("chain", tensors)
    assert torch.equal(out, call("chain", [tensor.bfloat16() for tensor in tensors]))


class Layer(torch.nn.Module):
    def forward(self, *tensors):
        return call("chain", tensors[:-1], tensors[-1])


def test_it_compiles_and_exports_whole():
    tensors = [tensor.requires_grad_() for tensor in inputs(dtype=torch.float32)]
    mask = some_mask()
    expected = call("chain", tensors, mask)
    torch.compiler.reset()
    compiled = torch.compile(lambda *t: call("chain", t, mask), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), expected)
    gradients = [
        torch.autograd.grad(f(*tensors).square().sum(), tensors) for f in (compiled, lambda *t: call("chain", t, mask))
    ]
    torch.testing.assert_close(*gradients)
    if not hasattr(torch.compiler, "is_exporting"):
        pytest.skip("before torch 2.7 the number of maps cannot be left free")
    constants = (*(tensor.detach() for tensor in tensors), mask)
    program = torch.export.export(
        Layer(),
        constants,
        dynamic_shapes={"tensors": ({0: torch.export.Dim("maps")}, *6 * [None], {0: torch.export.Dim("maps")})},
    )
    torch.testing.assert_close(program.module()(*constants), expected)
    names = {str(node.target) for node in program.graph.nodes}
    assert "aten.scaled_dot_product_attention.default" in names


def test_transforms_need_the_reference():
    tensors = inputs()
    with pytest.raises(Exception, match="need backend 'reference'"):
        torch.func.grad(lambda x: call("chain", [x, *tensors[1:]]).sum())(tensors[0])
