"""Spatial attention in C++ against plain PyTorch: every instruction set, option, dtype, layout and thread count."""

import itertools
import resource

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from simmst.core.spatial_attention import Options
from simmst.nn import SpatialAttention
from simmst.ops import spatial_attention
from simmst.ops.backends import implementation
from simmst.ops.spatial_attention import library
from simmst.reference import spatial_attention as oracle_function
from simmst.reference.spatial_attention import backward as reference_backward
from simmst.reference.spatial_attention import forward as reference_forward

_cpu = pytest.importorskip("simmst._cpu", reason="this installation has no compiled CPU module")
cpu = implementation("spatial_attention", "cpu")

F64 = torch.float64
ISAS = _cpu.instruction_sets()
ALL = [True] * 7


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("SIMMST_CPU_ISA", request.param)
    return request.param


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def poison():
    """Fill every torch.empty with NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def case(shape, heads=2, *, mask=None, bias=True, norm=True, residual=True, scale=None, seed=0, dtype=F64):
    """Return arguments of forward(), with weights in float64 rounded to dtype, and its options."""
    generator = torch.Generator().manual_seed(seed)
    channels = shape[1] if len(shape) == 4 else shape[2]

    def draw(*size, factor=1.0):
        return (torch.randn(size, generator=generator, dtype=F64) * factor).to(dtype)

    arguments = [
        draw(*shape),
        draw(3 * channels, channels, factor=channels**-0.5),
        draw(3 * channels) if bias else None,
        draw(channels, channels, factor=channels**-0.5),
        draw(channels) if bias else None,
        mask,
        draw(channels) if norm else None,
        draw(channels) if norm else None,
    ]
    return arguments, Options(heads, residual, 1e-5, (channels // heads) ** -0.5 if scale is None else scale)


def wide(arguments):
    return [a if a is None or a.dtype == torch.bool else a.double() for a in arguments]


def random_mask(batch, positions, seed=1, share=0.3):
    mask = torch.rand(batch, positions, generator=torch.Generator().manual_seed(seed)) < share
    if batch > 1:
        mask[0] = True
    return mask


def assert_exact(found, expected):
    """Assert equality to 1e-10 of the largest entry (or of 1)."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * max(1.0, finite_peak(expected)))


def finite_peak(tensor):
    finite = tensor[tensor.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


def assert_twice(found, plain, exact):
    """Assert that errors are at most twice those of plain PyTorch in that precision, plus a tiny term; never NaN."""
    assert found.dtype == plain.dtype
    assert not found.isnan().any()
    error, allowed = (found.double() - exact).abs().max(), (plain.double() - exact).abs().max()
    tiny = 4 * torch.finfo(torch.float32).eps * max(1.0, finite_peak(exact))
    assert error <= 2 * allowed + tiny, (error, allowed)


def compare(arguments, options, check=assert_exact):
    """Run forward and backward on both sides in float64, with and without the tensors that forward keeps."""
    out, lse = cpu.forward(*arguments, options)
    *same, kept = cpu.forward_keeping(*arguments, options)
    assert torch.equal(same[0], out)
    assert torch.equal(same[1], lse)
    expected, expected_lse = reference_forward(*arguments, options)
    check(out, expected)
    check(lse, expected_lse)
    grad = torch.randn(out.shape, dtype=F64, generator=torch.Generator().manual_seed(7))
    given_, last = [*arguments[:5], *arguments[6:]], (options, ALL)
    wanted = reference_backward(grad, *arguments, expected_lse, *last)
    for found in (cpu.backward(grad, *arguments, lse, *last), cpu.backward(grad, *arguments, lse, *last, kept)):
        for gradient, correct, of in zip(found, wanted, given_, strict=True):
            assert (gradient is None) == (correct is None) == (of is None)
            if gradient is not None:
                check(gradient, correct)


# (shape, heads): head widths 1, 3, 4, 8, 16, 20, 64; tiles of one to three vectors; more keys than a block; groups of
# two and of three maps, and one remaining map
SHAPES = [
    ((33, 8, 5, 5), 2),
    ((49, 6, 1, 7), 2),
    ((2, 1, 1, 1), 1),
    ((3, 6, 1, 7), 2),
    ((2, 32, 5, 5), 4),
    ((2, 64, 11, 11), 4),
    ((1, 40, 12, 17), 2),
    ((1, 64, 1, 130), 1),
]


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("shape", "heads"), SHAPES)
def test_float64_equals_the_reference(isa, poison, shape, heads, masked, tokens):
    mask = random_mask(shape[0], shape[2] * shape[3]) if masked else None
    arguments, options = case(shape, heads, mask=mask)
    if tokens:
        arguments[0] = arguments[0].flatten(2).mT.contiguous()
    compare(arguments, options)


@pytest.mark.parametrize(("bias", "norm", "residual"), list(itertools.product([False, True], repeat=3)))
def test_every_option(isa, bias, norm, residual):
    for mask in (None, random_mask(3, 15)):
        arguments, options = case((3, 6, 3, 5), mask=mask, bias=bias, norm=norm, residual=residual, scale=0.7)
        compare(arguments, options)
        if norm:
            arguments[-1] = None
            compare(arguments, options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 64, 11, 11), (2, 225, 64), (3, 12, 3, 7)])
def test_lower_precision_is_at_most_twice_as_wrong_as_plain_pytorch(isa, poison, dtype, shape):
    positions = shape[1] if len(shape) == 3 else shape[2] * shape[3]
    for mask in (None, random_mask(shape[0], positions)):
        arguments, options = case(shape, 4, mask=mask, dtype=dtype)
        out, lse = cpu.forward(*arguments, options)
        plain, plain_lse = reference_forward(*arguments, options)
        exact, exact_lse = reference_forward(*wide(arguments), options)
        finite = exact_lse.isfinite()
        assert_twice(out, plain, exact)
        assert torch.equal(lse.isfinite(), finite)
        assert_twice(lse[finite], plain_lse[finite], exact_lse[finite])
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(dtype)
        last = options, ALL
        found = cpu.backward(grad, *arguments, lse, *last)
        by_plain = reference_backward(grad, *arguments, plain_lse, *last)
        by_exact = reference_backward(grad.double(), *wide(arguments), exact_lse, *last)
        kept = cpu.forward_keeping(*arguments, options)[2]
        from_kept = cpu.backward(grad, *arguments, lse, *last, kept)
        for one, other, two, three in zip(found, from_kept, by_plain, by_exact, strict=True):
            assert_twice(one, two, three)
            assert_twice(other, two, three)


LAYOUTS = ["maps", "channels_last", "tokens", "transposed", "rows_apart", "expanded"]


def in_layout(x, layout):
    """Return x (B, C, H, W) with the same values in another layout."""
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    if layout == "tokens":
        return x.flatten(2).mT.contiguous()
    if layout == "transposed":
        return x.mT.contiguous().mT
    if layout == "rows_apart":
        return torch.stack([x, torch.full_like(x, torch.nan)], dim=3).flatten(3)[..., : x.shape[3]]
    if layout == "expanded":
        return x[:1].expand_as(x) if x.shape[0] else x
    return x


@settings(
    max_examples=min(120, settings.default.max_examples),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(data=st.data())
def test_any_shape_and_layout(monkeypatch, data):
    sizes = data.draw(st.tuples(*(st.integers(0, 9),) * 2))
    batch, heads, width = (data.draw(st.integers(low, high)) for low, high in ((0, 4), (1, 3), (1, 20)))
    flags = {name: data.draw(st.booleans()) for name in ("bias", "norm", "residual")}
    mask = random_mask(batch, sizes[0] * sizes[1], share=0.5) if data.draw(st.booleans()) else None
    monkeypatch.setenv("SIMMST_CPU_ISA", data.draw(st.sampled_from(ISAS)))
    arguments, options = case((batch, heads * width, *sizes), heads, mask=mask, **flags)
    arguments[0] = in_layout(arguments[0], data.draw(st.sampled_from(LAYOUTS)))
    compare(arguments, options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts_give_the_same_bits(isa, layout, dtype):
    arguments, options = case((3, 24, 5, 7), 2, dtype=dtype)
    if layout == "expanded":
        arguments[0] = arguments[0][:1].repeat(3, 1, 1, 1)
    plain, _ = cpu.forward(*arguments, options)
    arguments[0] = in_layout(arguments[0], layout)
    other, _ = cpu.forward(*arguments, options)
    assert torch.equal(other if other.dim() == 4 else other.mT.reshape(plain.shape), plain)


def test_weights_and_gradient_of_any_strides():
    arguments, options = case((2, 12, 3, 3), 2, mask=random_mask(2, 9))
    for index in (1, 3):
        arguments[index] = arguments[index].mT.contiguous().mT
    arguments[5] = torch.stack([arguments[5], arguments[5]], dim=-1)[..., 0]
    compare(arguments, options)
    _, lse = cpu.forward(*arguments, options)
    grad = torch.randn(12, 2, 3, 3, dtype=F64).transpose(0, 1)
    last = options, ALL
    for one, two in zip(
        cpu.backward(grad, *arguments, lse, *last),
        cpu.backward(grad.contiguous(), *arguments, lse, *last),
        strict=True,
    ):
        assert torch.equal(one, two)


def test_runs_and_thread_counts_agree_to_the_bit(isa, threads):
    arguments, options = case((150, 16, 5, 5), 2, mask=random_mask(150, 25), dtype=torch.float32)
    grad = torch.randn(arguments[0].shape)
    results = []
    for count in (1, 2, 1, 2):
        threads(count)
        out, lse = cpu.forward(*arguments, options)
        results.append((out, lse, *cpu.backward(grad, *arguments, lse, options, ALL)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("count", [1, 2])
def test_float64_on_threads(threads, count):
    threads(count)
    arguments, options = case((7, 12, 4, 5), 3, mask=random_mask(7, 20))
    compare(arguments, options)


def test_more_maps_than_a_grid_holds():
    arguments, options = case((65_540, 1, 2), 1)
    compare(arguments, options)


def test_what_an_ignored_position_or_another_map_holds_reaches_nobody(isa, poison):
    mask = torch.zeros(4, 15, dtype=torch.bool)
    mask[1, 3] = mask[2, 14] = True
    arguments, options = case((4, 6, 3, 5), mask=mask)
    clean, clean_lse = cpu.forward(*arguments, options)
    dirty = arguments[0].clone()
    dirty[0] = torch.nan
    dirty.flatten(2)[1, :, 3] = torch.nan
    dirty.flatten(2)[2, :, 14] = torch.inf
    out, lse = cpu.forward(dirty, *arguments[1:], options)
    assert out[0].isnan().all()
    others = ~mask
    others[0] = False
    assert torch.equal(out.flatten(2).mT[others], clean.flatten(2).mT[others])
    assert torch.equal(lse.mT[others], clean_lse.mT[others])


def test_infinite_and_nan_scores_do_as_plain_pytorch(isa):
    arguments, options = case((2, 4, 1, 5), dtype=torch.float32)
    arguments[0][0, 1, 0, 2] = torch.inf
    arguments[0][1, 0, 0, 4] = torch.nan
    out, _ = cpu.forward(*arguments, options)
    expected, _ = reference_forward(*arguments, options)
    assert torch.equal(out.isnan(), expected.isnan())


def test_large_scores_do_not_overflow(isa):
    arguments, options = case((2, 8, 4, 30), scale=300.0, norm=False, dtype=torch.float32)
    out, lse = cpu.forward(*arguments, options)
    assert out.isfinite().all()
    assert lse.isfinite().all()
    arguments, options = case((2, 8, 4, 30), scale=300.0, norm=False)
    compare(arguments, options)


def test_map_without_a_position_left(isa):
    arguments, options = case((2, 6, 2, 3), mask=torch.ones(2, 6, dtype=torch.bool), norm=False)
    out, lse = cpu.forward(*arguments, options)
    assert torch.equal(out, arguments[0])
    assert (lse == torch.inf).all()
    compare(arguments, options)
    compare(*case((2, 6, 2, 3), mask=torch.ones(2, 6, dtype=torch.bool), residual=False))


@pytest.mark.parametrize("wanted", range(7))
def test_only_the_gradients_wanted(wanted):
    arguments, options = case((3, 6, 2, 3), mask=random_mask(3, 6))
    _, lse = cpu.forward(*arguments, options)
    grad = torch.randn(3, 6, 2, 3, dtype=F64)
    everything = cpu.backward(grad, *arguments, lse, options, ALL)
    mask = [index == wanted for index in range(7)]
    found = cpu.backward(grad, *arguments, lse, options, mask)
    assert [gradient is not None for gradient in found] == mask
    assert torch.equal(found[wanted], everything[wanted])


def test_ten_thousand_positions_in_bounded_memory():
    arguments, options = case((1, 8, 100, 100), 1, bias=False, norm=False, residual=False, dtype=torch.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out, _ = cpu.forward(*arguments, options)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # KiB; scores alone are 400 MB
    query, key, value = F.linear(arguments[0].flatten(2).mT, arguments[1]).chunk(3, dim=-1)
    heads = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
    expected = F.linear(heads, arguments[3]).mT.reshape(out.shape)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


# --- through the public operator ------------------------------------------------------------------------------------


def public(tensors, mask=None, **options):
    x, w_in, b_in, w_out, b_out, w_norm, b_norm = tensors
    last = {"num_heads": 2, "residual": True, "norm_weight": w_norm, "norm_bias": b_norm, "key_padding_mask": mask}
    return spatial_attention(x, w_in, b_in, w_out, b_out, **last, **options)


def leaves(dtype=F64, shape=(3, 6, 2, 3)):
    arguments, _ = case(shape, dtype=dtype)
    return [a.requires_grad_() for a in (*arguments[:5], *arguments[6:])]


def test_it_is_the_automatic_choice():
    assert "spatial_attention" in _cpu.operators()
    tensors = leaves()
    assert torch.equal(public(tensors), public(tensors, backend="cpu"))


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def test_all_ways_to_the_kernel_give_the_same_bits(monkeypatch):
    tensors, mask = leaves(torch.float32), random_mask(3, 6)
    with Watching():
        through_the_library = public(tensors, mask, backend="cpu")
        gradients = torch.autograd.grad(through_the_library.square().sum(), tensors)
    for operator in (library.forward, library.backward):
        monkeypatch.setattr(operator, "_overload", None)  # removed
    plain = [tensor.detach() for tensor in tensors]
    assert torch.equal(public(plain, mask, backend="cpu"), through_the_library)
    with torch.no_grad():
        assert torch.equal(public(tensors, mask, backend="cpu"), through_the_library)
    out = public(tensors, mask, backend="cpu")
    assert torch.equal(out, through_the_library)
    for a, b in zip(torch.autograd.grad(out.square().sum(), tensors), gradients, strict=True):
        assert torch.equal(a, b)
    with Watching(), pytest.raises(TypeError):
        public(tensors, mask, backend="cpu")


@pytest.mark.parametrize("mask", [None, random_mask(3, 6)], ids=["plain", "masked"])
def test_gradcheck_and_opcheck(mask):
    tensors = leaves()
    assert torch.autograd.gradcheck(lambda *t: public(t, mask, backend="cpu"), tensors, fast_mode=True)
    x, w_in, b_in, w_out, b_out, w_norm, b_norm = tensors
    arguments = (x, w_in, b_in, w_out, b_out, mask, w_norm, b_norm, 2, True, 1e-5, 0.6)
    operator = torch.ops.simmst.spatial_attention
    torch.library.opcheck(operator, (*arguments, False, "cpu"))
    # The kept tensors have entries that are never written, which the other checks would compare.
    torch.library.opcheck(operator, (*arguments, True, "cpu"), test_utils=("test_schema", "test_faketensor"))


def test_compiles_without_a_break():
    tensors, mask = leaves(torch.float32), random_mask(3, 6)

    def call(*t):
        return public(t, mask, backend="cpu")

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*tensors), call(*tensors))
    gradients = [torch.autograd.grad(f(*tensors).square().sum(), tensors) for f in (compiled, call)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    with torch.autocast("cpu", dtype=dtype):
        out = public(leaves(torch.float32), backend="cpu")
    assert out.dtype == dtype
    assert torch.equal(out, public(leaves(dtype), backend="cpu"))


def test_layer_loads_and_equals_multihead_attention():
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(32, 4, batch_first=True, dtype=F64)
    nn.init.normal_(theirs.in_proj_bias)
    nn.init.normal_(theirs.out_proj.bias)
    ours = SpatialAttention(32, 4, backend="cpu", dtype=F64)
    ours.load_state_dict(theirs.state_dict())
    x, mask = torch.randn(3, 25, 32, dtype=F64, requires_grad=True), random_mask(3, 25)
    mask[0] = False
    expected = theirs(x, x, x, key_padding_mask=mask, need_weights=False)[0]
    torch.testing.assert_close(ours(x, mask), expected, rtol=0, atol=1e-10)
    maps = x.mT.reshape(3, 32, 5, 5)
    torch.testing.assert_close(ours(maps, mask).flatten(2).mT, expected, rtol=0, atol=1e-10)
    losses = ours(x, mask).square().sum(), expected.square().sum()
    gradients = [
        torch.autograd.grad(losses[0], (x, *ours.parameters())),
        torch.autograd.grad(losses[1], (x, *theirs.parameters())),
    ]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_public_operator_equals_the_inline_reference():
    tensors, mask = leaves(), random_mask(3, 6)
    x, w_in, b_in, w_out, b_out, w_norm, b_norm = tensors
    last = {"num_heads": 2, "residual": True, "norm_weight": w_norm, "norm_bias": b_norm, "key_padding_mask": mask}
    both = public(tensors, mask, backend="cpu"), oracle_function.spatial_attention(x, w_in, b_in, w_out, b_out, **last)
    torch.testing.assert_close(*both, rtol=0, atol=1e-10)
    grad = torch.randn_like(both[0])
    torch.testing.assert_close(*(torch.autograd.grad(y, tensors, grad) for y in both), rtol=0, atol=1e-9)


# --- bad input, checked in C++ in addition to Python --------------------------------------------------------------


def raw(**changes):
    arguments, _ = case((2, 4, 3, 3), dtype=torch.float32)
    x, *weights, _mask, w_norm, b_norm = arguments
    out, lse = torch.empty_like(x), torch.empty(2, 2, 9)
    values = {
        "dtype": 0,
        "x": x.data_ptr(),
        "shape": x.shape,
        "strides": x.stride(),
        "weights": [(t.data_ptr(), t.nbytes) for t in (*weights, w_norm, b_norm)],
        "mask": (0, 0),
        "out": (out.data_ptr(), out.nbytes),
        "lse": (lse.data_ptr(), lse.nbytes),
        "kept": (0, 0),
        "heads": 2,
        "residual": True,
        "eps": 1e-5,
        "scale": 0.5,
        "threads": 1,
    }
    _cpu.spatial_attention_forward(*{**values, **changes}.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": 4}, "dtype must be a code from 0 to 3, got 4"),
        ({"dtype": 1}, r"in_proj_weight must hold 384 bytes, got 192"),
        ({"shape": (2, 4), "strides": (4, 1)}, r"x float32 \(2, 4\) must have shape \(B, C, H, W\) or \(B, N, C\)"),
        ({"shape": (2, -4, 3, 3)}, r"x float32 \(2, -4, 3, 3\) must have no negative size"),
        ({"strides": (1, 1)}, "a stride for each, got 4 and 2"),
        ({"shape": (2, 4, 3, 4)}, "lse must hold 192 bytes, got 144"),
        ({"shape": (2, 6, 3, 3)}, "in_proj_weight must hold 432 bytes, got 192"),
        ({"heads": 3}, "positive multiple of num_heads=3"),
        ({"heads": 0}, "positive multiple of num_heads=0"),
        ({"weights": []}, "six weights are needed, got 0"),
        ({"mask": (64, 3)}, "key_padding_mask must hold 18 bytes, got 3"),
        ({"kept": (64, 3)}, "kept must hold 9600 bytes, got 3"),
        ({"out": (0, 0)}, "out must hold 288 bytes, got 0"),
        ({"x": 0}, r"x float32 \(2, 4, 3, 3\) has no address"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
    ],
)
def test_bad_calls_are_refused(changes, message):
    raw()
    with pytest.raises(ValueError, match=message):
        raw(**changes)


def test_mixed_dtypes_and_unknown_instruction_sets_are_refused(monkeypatch):
    arguments, options = case((2, 4, 3, 3), dtype=torch.float32)
    with pytest.raises(TypeError, match=r"expected torch.float32 on cpu like x, got torch.float64 \(4, 4\)"):
        cpu.forward(*arguments[:3], arguments[3].double(), *arguments[4:], options)
    _, lse = cpu.forward(*arguments, options)
    grad = torch.ones(2, 4, 3, 3, dtype=F64)
    with pytest.raises(TypeError, match=r"gradient must be torch.float32 on cpu like x, got torch.float64"):
        cpu.backward(grad, *arguments, lse, options, ALL)
    monkeypatch.setenv("SIMMST_CPU_ISA", "quantum")
    with pytest.raises(ValueError, match="SIMMST_CPU_ISA is 'quantum'; this machine can run: portable"):
        cpu.forward(*arguments, options)
