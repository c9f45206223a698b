"""The public spatial attention: checks, backends, autocast, compilation, and the library operators behind it."""

import importlib
import re

import pytest
import torch
from torch import nn

from simmst.errors import BackendUnavailableError
from simmst.ops import dispatch
from simmst.ops.spatial_attention import api, spatial_attention
from simmst.reference.spatial_attention import spatial_attention as inline

F64 = torch.float64
OPERATOR = torch.ops.simmst.spatial_attention
BACKWARD = torch.ops.simmst.spatial_attention_backward


def inputs(dtype=F64, shape=(3, 6, 2, 2), seed=0):
    """Return x, the four weights, and the two of the norm."""
    generator = torch.Generator().manual_seed(seed)
    channels = shape[1] if len(shape) == 4 else shape[2]
    shapes = (
        shape,
        (3 * channels, channels),
        (3 * channels,),
        (channels, channels),
        (channels,),
        (channels,),
        (channels,),
    )
    return [(torch.randn(s, generator=generator, dtype=F64) * 0.5).to(dtype) for s in shapes]


def some_mask():
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[0, 1] = True
    mask[1] = True
    return mask


def operator_arguments(tensors, mask=None, norm=True, bias=True):
    x, w_in, b_in, w_out, b_out, w_norm, b_norm = tensors
    biases = (b_in, b_out) if bias else (None, None)
    last = (w_norm, b_norm) if norm else (None, None)
    return (x, w_in, biases[0], w_out, biases[1], mask, *last, 2, True, 1e-5, 0.6, False, "reference")


def public(tensors, mask=None, norm=True, bias=True, **options):
    x, w_in, b_in, w_out, b_out, w_norm, b_norm = tensors
    return spatial_attention(
        x,
        w_in,
        b_in if bias else None,
        w_out,
        b_out if bias else None,
        num_heads=2,
        key_padding_mask=mask,
        residual=True,
        norm_weight=w_norm if norm else None,
        norm_bias=b_norm if norm else None,
        scale=0.6,
        **options,
    )


@pytest.fixture
def seam(monkeypatch):
    """Make backend "cpu" run the reference, behind the library operators."""

    oracle = importlib.import_module("simmst.reference.spatial_attention")
    monkeypatch.setattr(api, "choose", lambda *args, **kwargs: "cpu")
    monkeypatch.setattr(dispatch, "implementation", lambda operator, backend: oracle)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_library_operator_equals_the_inline_reference(seam, norm, bias, masked):
    mask = some_mask() if masked else None
    tensors = [tensor.requires_grad_() for tensor in inputs()]
    behind = public(tensors, mask, norm, bias)
    arguments = operator_arguments(tensors, mask, norm, bias)
    torch.testing.assert_close(behind, OPERATOR(*arguments)[0])
    out = reference_result(tensors, mask, norm, bias)
    torch.testing.assert_close(behind, out, rtol=0, atol=1e-12)
    grad = torch.randn_like(out)
    gradients = [torch.autograd.grad(y, tensors, grad, allow_unused=True) for y in (behind, out)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-11)


def reference_result(tensors, mask, norm, bias):
    x, w_in, b_in, w_out, b_out, w_norm, b_norm = tensors
    last = {"norm_weight": w_norm, "norm_bias": b_norm} if norm else {}
    biases = (b_in, b_out) if bias else (None, None)
    return inline(
        x, w_in, biases[0], w_out, biases[1], num_heads=2, key_padding_mask=mask, residual=True, scale=0.6, **last
    )


@pytest.mark.parametrize("mask", [None, some_mask()], ids=["plain", "masked"])
def test_library_operator_gradcheck(mask):
    tensors = [tensor.requires_grad_() for tensor in inputs()]
    assert torch.autograd.gradcheck(lambda *t: OPERATOR(*operator_arguments(t, mask))[0], tensors, fast_mode=True)


@pytest.mark.parametrize("mask", [None, some_mask()], ids=["plain", "masked"])
@pytest.mark.parametrize("dtype", [F64, torch.bfloat16])
@pytest.mark.parametrize("full", [False, True])
def test_opcheck(mask, dtype, full):
    tensors = [tensor.requires_grad_() for tensor in inputs(dtype)]
    arguments = operator_arguments(tensors, mask, norm=full, bias=full)
    torch.library.opcheck(OPERATOR, arguments)
    constants = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
    out, lse, kept = OPERATOR(*constants)
    wanted = [True, True, full, True, False, full, full]
    torch.library.opcheck(
        BACKWARD, (torch.ones_like(out), *constants[:8], lse, kept, *constants[8:12], wanted, "reference")
    )


def test_library_operator_computes_only_the_gradients_wanted():
    tensors = inputs()
    tensors[0].requires_grad_()
    out, lse, _ = OPERATOR(*operator_arguments(tensors))
    assert not lse.requires_grad
    out.sum().backward()
    assert tensors[0].grad is not None
    assert all(tensor.grad is None for tensor in tensors[1:])


def test_second_derivatives_of_the_library_operator_are_refused():
    tensors = [tensor.requires_grad_() for tensor in inputs()]
    (gradient,) = torch.autograd.grad(OPERATOR(*operator_arguments(tensors))[0].sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r'first derivatives only.*backend="reference"'):
        gradient.sum().backward()


@pytest.mark.parametrize("behind_the_seam", [False, True])
def test_compiles_without_a_break(behind_the_seam):
    tensors = [tensor.requires_grad_() for tensor in inputs(torch.float32)]
    mask = some_mask()

    def call(*t):
        if behind_the_seam:
            return OPERATOR(*operator_arguments(t, mask))[0]
        return public(t, mask)

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), call(*tensors))
    gradients = [torch.autograd.grad(f(*tensors).square().sum(), tensors) for f in (compiled, call)]
    torch.testing.assert_close(*gradients)


@pytest.mark.slow(of=("csrc/core", "csrc/cpu", "simmst/core", "simmst/native/cpu", "simmst/ops", "simmst/reference"))
def test_compiles_with_inductor():
    tensors = inputs(torch.float32)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(public, fullgraph=True)(tensors), public(tensors))


class Model(nn.Module):
    def __init__(self, behind_the_seam):
        super().__init__()
        self.weights = nn.ParameterList(inputs(torch.float32)[1:])
        self.behind_the_seam = behind_the_seam

    def forward(self, x):
        if self.behind_the_seam:
            return OPERATOR(*operator_arguments([x, *self.weights]))[0]
        return public([x, *self.weights])


@pytest.mark.parametrize("behind_the_seam", [False, True])
def test_exports(behind_the_seam):
    model, x = Model(behind_the_seam), inputs(torch.float32)[0]
    program = torch.export.export(model, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=2)}})
    other = torch.randn(5, 6, 2, 2)
    torch.testing.assert_close(program.module()(other), model(other))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_and_runs_in_that_precision(dtype):
    tensors = inputs(torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        out = public(tensors)
        half = public([tensor.to(dtype) for tensor in tensors])
        wide = public(inputs(F64))
    assert out.dtype == half.dtype == dtype
    assert wide.dtype == F64
    assert torch.equal(out, half)
    # Cast once, then computed in float32, so the same cast outside autocast gives the same numbers.
    assert torch.equal(out, public([tensor.to(dtype) for tensor in tensors]))


def test_backends_are_explicit(monkeypatch):
    tensors = inputs()
    torch.testing.assert_close(public(tensors, backend="reference"), reference_result(tensors, None, True, True))
    with pytest.raises(BackendUnavailableError, match=r"backend 'cuda' .* cannot run spatial_attention: "):
        public(tensors, backend="cuda")
    with pytest.raises(ValueError, match="'fast'; it must be one of reference, cpu, triton, cuda"):
        public(tensors, backend="fast")
    monkeypatch.setenv("SIMMST_BACKEND", "triton")
    with pytest.raises(BackendUnavailableError, match="SIMMST_BACKEND"):
        public(tensors)


def test_two_runs_are_equal_to_the_bit():
    tensors = inputs(torch.float32)
    assert torch.equal(public(tensors, some_mask()), public(tensors, some_mask()))


x, w_in, b_in, w_out, b_out, w_norm, b_norm = inputs(torch.float32)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a torch.Tensor, got list"),
        ({"x": x.long()}, TypeError, "x must hold one of .*, got int64 (3, 6, 2, 2) on cpu"),
        ({"x": x.double()}, TypeError, "must have one dtype, got x float64 .*in_proj_weight float32"),
        ({"x": x[0, 0]}, ValueError, "(B, C, H, W) or (B, N, C), got float32 (2, 2)"),
        ({"x": x[:, :5]}, ValueError, "positive multiple of num_heads=2, got 5"),
        ({"x": x[:, :0]}, ValueError, "positive multiple of num_heads=2, got 0"),
        ({"x": x[:, :4]}, ValueError, "in_proj_weight must have shape (12, 4) .*got float32 (18, 6)"),
        ({"out_proj_weight": w_out.to("meta")}, ValueError, "must be on one device, got .*(6, 6) on meta"),
        ({"in_proj_weight": None}, TypeError, "in_proj_weight must be a torch.Tensor, got NoneType"),
        ({"out_proj_weight": None}, TypeError, "out_proj_weight must be a torch.Tensor, got NoneType"),
        ({"in_proj_bias": b_in[:-1]}, ValueError, "in_proj_bias must have shape (18,) .*got float32 (17,)"),
        ({"out_proj_weight": w_out[:3]}, ValueError, "out_proj_weight must have shape (6, 6) .*got float32 (3, 6)"),
        ({"out_proj_bias": b_out[:3]}, ValueError, "out_proj_bias must have shape (6,) .*got float32 (3,)"),
        ({"norm_bias": b_norm}, ValueError, "norm_bias was given without norm_weight"),
        ({"norm_weight": w_norm[:2]}, ValueError, "norm_weight must have shape (6,) .*got float32 (2,)"),
        ({"num_heads": 0}, ValueError, "num_heads must be at least 1, got 0"),
        ({"num_heads": 2.0}, TypeError, "num_heads must be an int, got 2.0"),
        ({"num_heads": 4}, ValueError, "positive multiple of num_heads=4, got 6"),
        ({"key_padding_mask": torch.ones(3, 4)}, TypeError, "must be a bool tensor.* got float32 (3, 4)"),
        ({"key_padding_mask": [True]}, TypeError, "must be a bool tensor.* got list"),
        ({"key_padding_mask": torch.ones(3, 5).bool()}, ValueError, "(B, N) = (3, 4) .*got bool (3, 5)"),
        (
            {"key_padding_mask": torch.ones(3, 4).bool().to("meta")},
            ValueError,
            "device of x, cpu, got bool (3, 4) on meta",
        ),
        ({"residual": 1}, TypeError, "residual must be True or False, got 1"),
        ({"eps": -1.0}, ValueError, "eps must be at least 0 and finite, got -1.0"),
        ({"scale": float("nan")}, ValueError, "scale must be a number, got NaN"),
        ({"scale": float("inf")}, ValueError, "scale must be finite, got inf"),
        ({"scale": "big"}, TypeError, "scale must be a number, got 'big'"),
    ],
)
def test_bad_input(changes, error, message):
    arguments = {
        "x": x,
        "in_proj_weight": w_in,
        "in_proj_bias": b_in,
        "out_proj_weight": w_out,
        "out_proj_bias": b_out,
        "num_heads": 2,
        **changes,
    }
    with pytest.raises(error, match=re.escape(message).replace(r"\.\*", ".*")):
        spatial_attention(**arguments)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("hidden", [float("nan"), float("inf")])
@pytest.mark.parametrize("tokens", [False, True])
def test_what_an_ignored_position_holds_reaches_no_gradient(backend, hidden, tokens):
    x, *weights = inputs()
    if tokens:
        x = x.flatten(2).mT.contiguous()
    mask = some_mask()
    ignored = mask[:, :, None] if tokens else mask.view(3, 1, 2, 2)
    seen = ~ignored

    def run(x):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, *weights)]
        out = public(leaves, mask, backend=backend)
        return out, torch.autograd.grad(torch.where(seen, out, 0.0).square().sum(), leaves)

    out, clean = run(torch.where(ignored, 0.0, x))
    spoilt, gradients = run(torch.where(ignored, hidden, x))
    assert torch.equal(spoilt, out)
    for gradient, expected in zip(gradients, clean, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_a_nan_that_is_not_ignored_still_shows():
    x, *weights = inputs()
    mask = some_mask()
    x[0, :, 0, 0] = float("nan")
    x[0, :, 0, 1] = float("nan")  # ignored
    out = public((x, *weights), mask)
    assert out[0].isnan().all()
    assert not out[1:].isnan().any()


def test_under_transforms_and_compilers_nothing_is_looked_at():
    x, *weights = inputs()
    mask = some_mask()
    expected = public((x, *weights), mask)
    x.flatten(2)[0, :, 1] = float("nan")
    expected[0] = public((torch.nan_to_num(x), *weights), mask)[0]
    mapped = torch.func.vmap(lambda x, mask: public((x[None], *weights), mask[None])[0])(x, mask)
    torch.testing.assert_close(mapped, expected)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: public((x, *weights), mask), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
