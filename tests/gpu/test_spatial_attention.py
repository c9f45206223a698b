"""Spatial attention on the GPU backends against plain PyTorch: sizes, options, dtypes, layouts."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from drawn import Draw, drawn
from torch import Tensor

from simmst.core.spatial_attention import Options
from simmst.nn import SpatialAttention
from simmst.ops import spatial_attention
from simmst.ops.backends import implementation, why_not
from simmst.reference.spatial_attention import backward as reference_backward
from simmst.reference.spatial_attention import forward as reference_forward

ALL = [True] * 7


@pytest.fixture(autouse=True)
def _can_be_assembled(world) -> None:
    if world.backend == "triton" and not world.slow:
        reason = why_not("spatial_attention", "triton", device=world.device, dtype=torch.float16)
        if reason is not None:
            pytest.skip(reason)


NAMES = ("out", "lse", "x", "w_in", "b_in", "w_out", "b_out", "w_norm", "b_norm")


class Case(NamedTuple):
    """Arguments of forward(), its options, and a gradient of the output."""

    arguments: list[Tensor | None]
    options: Options
    grad: Tensor

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Case:
        def move(tensor: Tensor | None) -> Tensor | None:
            return (
                tensor if tensor is None else tensor.to(device, tensor.dtype if tensor.dtype == torch.bool else dtype)
            )

        return Case([move(tensor) for tensor in self.arguments], self.options, move(self.grad))


def case(
    world, shape, heads=2, *, seed=0, mask=None, bias=True, norm=True, norm_bias=True, residual=True, scale=None,
    dtype=torch.float32,
):  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    channels = shape[1] if len(shape) == 4 else shape[2]

    def draw(*size, factor=1.0):
        return (torch.randn(size, generator=generator) * factor).to(dtype).to(world.device)

    arguments = [
        draw(*shape),
        draw(3 * channels, channels, factor=channels**-0.5),
        draw(3 * channels) if bias else None,
        draw(channels, channels, factor=channels**-0.5),
        draw(channels) if bias else None,
        None if mask is None else mask.to(world.device),
        draw(channels) if norm else None,
        draw(channels) if norm and norm_bias else None,
    ]
    scale = (channels // heads) ** -0.5 if scale is None else scale
    return Case(arguments, Options(heads, residual, 1e-5, scale), draw(*shape))


def random_mask(batch, positions, seed=1, share=0.3):
    """Return a mask of some ignored positions, and all positions of the first map if there is another."""
    mask = torch.rand(batch, positions, generator=torch.Generator().manual_seed(seed)) < share
    mask[-1] &= torch.arange(positions) > 0
    if batch > 1:
        mask[0] = True
    return mask


def run(world, given: Case, wanted=ALL) -> list[Tensor | None]:
    """Return out, lse and the gradients; memory that a kernel does not write holds NaN."""
    module = implementation("spatial_attention", world.backend)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills torch.empty with NaN; cuBLAS may warn
    try:
        out, lse = module.forward(*given.arguments, given.options)
        gradients = module.backward(given.grad, *given.arguments, lse, given.options, wanted)
    finally:
        torch.use_deterministic_algorithms(False)
    return [out, lse, *gradients]


def exact(given: Case) -> list[Tensor | None]:
    """Compute the reference in float64."""
    arguments, options, grad = given.to(torch.float64, "cpu")
    out, lse = reference_forward(*arguments, options)
    return [out, lse, *reference_backward(grad, *arguments, lse, options, ALL)]


def plain(given: Case, *, fused: bool = False) -> list[Tensor | None]:
    """Compute the obvious chain of operators in the given precision, with autograd; lse is from its float32 scores.

    fused: Attention by `scaled_dot_product_attention`, which computes dS as these kernels do, from rowsum(dO * O).
    """
    x, w_in, b_in, w_out, b_out, mask, w_norm, b_norm = given.arguments
    tensors = dict(zip(NAMES[2:], (x, w_in, b_in, w_out, b_out, w_norm, b_norm), strict=True))
    at = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items() if tensor is not None}
    heads, width = given.options.num_heads, w_out.shape[0] // given.options.num_heads
    tokens = at["x"].flatten(2).mT if x.dim() == 4 else at["x"]
    packed = F.linear(tokens, at["w_in"], at.get("b_in")).unflatten(2, (3, heads, width)).permute(2, 0, 3, 1, 4)
    query, key, value = packed.unbind(0)
    scores = torch.matmul(query, key.mT) * given.options.scale
    empty = ignored = None
    if mask is not None:
        empty = mask.all(1)[:, None, None]
        ignored = (mask & ~empty[..., 0])[:, None, None]
        scores = scores.masked_fill(ignored, float("-inf"))
    lse = scores.float().logsumexp(-1)
    if fused:
        seen = None if ignored is None else ~ignored
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=given.options.scale)
    else:
        attended = torch.matmul(scores.softmax(-1), value)
    branch = F.linear(attended.transpose(1, 2).flatten(2), at["w_out"], at.get("b_out"))
    if empty is not None:
        branch = branch.masked_fill(empty, 0.0)
        lse = lse.masked_fill(empty, float("inf"))
    if given.options.residual:
        branch = branch + tokens
    if w_norm is not None:
        branch = F.layer_norm(branch, branch.shape[-1:], at["w_norm"], at.get("b_norm"), given.options.eps)
    out = branch.mT.reshape(x.shape) if x.dim() == 4 else branch
    gradients = torch.autograd.grad(out, list(at.values()), given.grad, allow_unused=True)
    found = dict(zip(at, gradients, strict=True))
    return [out.detach(), lse.detach(), *(found.get(name) for name in NAMES[2:])]


def compare(world, given: Case) -> None:
    judge(run(world, given), given)


def judge(found: list[Tensor | None], given: Case) -> None:
    """Assert that errors are at most twice those of plain PyTorch in that precision, plus a tiny term; never NaN.

    Plain PyTorch attends in two ways, and the worse of them counts. Both cancel in dS = P (dP - delta). A delta summed
    from P and dP shares their rounding errors; one from dO and O does not, and its dS is up to ten times less exact.
    """
    naive, fused, truth = plain(given), plain(given, fused=True), exact(given)
    given_dtype = given.arguments[0].dtype
    # Scores are rounded in float32 at best, which changes a weight, and what depends on it, by eps times the score.
    scores = truth[1][truth[1].isfinite()]
    by_scores = torch.finfo(torch.float32).eps * (scores.abs().max().item() if scores.numel() else 0.0)
    for name, ours, theirs, other, right in zip(NAMES, found, naive, fused, truth, strict=True):
        if right is None:
            assert ours is None, name
            continue
        assert ours.shape == right.shape, name
        assert ours.dtype == (torch.float32 if name == "lse" else given_dtype), name
        assert ours.is_contiguous(), name
        ours = ours.double().cpu()
        theirs, other = (torch.zeros_like(right) if each is None else each.double().cpu() for each in (theirs, other))
        assert torch.equal(ours.isinf(), right.isinf()), name
        finite = right.isfinite()
        ours, theirs, other, right = ours[finite], theirs[finite], other[finite], right[finite]
        if not right.numel():
            continue
        error = (ours - right).abs().max()
        allowed = (theirs - right).abs().max()
        if other.isfinite().all():  # not every kernel of PyTorch stays finite with a negative scale and a mask
            allowed = torch.maximum(allowed, (other - right).abs().max())
        # Plain PyTorch may be exact by luck after cancellation, so a few roundings of the largest entry are allowed.
        tiny = max(4 * torch.finfo(given_dtype).eps, by_scores) * max(1.0, right.abs().max().item())
        assert error <= 2 * allowed + tiny, (name, error, allowed)


# --- sizes and options ------------------------------------------------------------------------------------------------

# Maps and tokens of one tile and of several, full and partial tiles, channels and widths that are not powers of two.
# The last rows are too wide or too long for one program to compute a map.
SHAPES = [
    ((1, 4, 1, 1), 1),
    ((3, 6, 2, 3), 3),
    ((2, 16, 4, 4), 1),
    ((2, 20, 5, 5), 2),
    ((3, 18, 12), 4),
    ((1, 48, 1, 17), 3),
    ((2, 5, 132), 2),
]
LARGE = [
    ((1024, 64, 11, 11), 4),
    ((300, 64, 15, 15), 4),
    ((200, 128, 20, 20), 4),
    ((40, 32, 20, 20), 8),
    ((2, 2000, 96), 3),
]


@pytest.mark.parametrize(("shape", "heads"), SHAPES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_sizes(world, shape, heads, masked):
    positions = shape[1] if len(shape) == 3 else shape[2] * shape[3]
    mask = random_mask(shape[0], positions) if masked else None
    for dtype in world.dtypes[masked:] if world.slow else world.dtypes:
        compare(world, case(world, shape, heads, mask=mask, dtype=dtype))


@pytest.mark.parametrize(("shape", "heads"), LARGE, ids=str)
def test_large_sizes(world, shape, heads):
    if world.slow:
        pytest.skip("too much for an interpreter or emulator")
    positions = shape[1] if len(shape) == 3 else shape[2] * shape[3]
    for dtype in world.dtypes:
        compare(world, case(world, shape, heads, mask=random_mask(shape[0], positions), dtype=dtype))


@pytest.mark.parametrize("kept_bits", [7, 10], ids=["bfloat16", "TF32"])
@pytest.mark.parametrize("scale", [None, -1.5])
def test_the_rule_notices_products_of_fewer_bits(world, kept_bits, scale):
    given = case(world, (2, 20, 5, 5), scale=scale)

    def rounded(tensor):
        unit = 2.0 ** (torch.frexp(tensor).exponent - 1 - kept_bits)
        return torch.round(tensor / unit) * unit

    def contiguous(found):
        return [each if each is None else each.contiguous() for each in found]

    judge(contiguous(plain(given)), given)
    coarse = [tensor if index not in (0, 1) else rounded(tensor) for index, tensor in enumerate(given.arguments)]
    with pytest.raises(AssertionError, match="'out', tensor"):
        judge(contiguous(plain(given._replace(arguments=coarse))), given)


@drawn(40, slow=8)
def test_drawn(world, draw: Draw):
    heads = draw.integer(1, 4)
    channels = heads * draw.integer(1, 4 if world.slow else 40)
    batch = draw.integer(1, 3)
    sides = draw.integer(1, 4 if world.slow else 21), draw.integer(1, 5 if world.slow else 21)
    shape = draw.choice([(batch, channels, *sides), (batch, sides[0] * sides[1], channels)])
    mask = random_mask(batch, sides[0] * sides[1], draw.seed) if draw.boolean() else None
    options = {name: draw.boolean() for name in ("bias", "norm", "norm_bias", "residual")}
    scale, dtype = draw.choice([None, 0.3, -1.5]), draw.choice(world.dtypes)
    compare(world, case(world, shape, heads, seed=draw.seed, mask=mask, scale=scale, dtype=dtype, **options))


@drawn(60, slow=2)
def test_drawn_maps_of_one_program(world, draw: Draw):
    """Half precision at every width of a head: where an assembler went wrong, a tenth of the widths showed it."""
    positions = draw.choice([28, 64, 100, 121, 128] if not world.slow else [6, 20])
    heads = draw.integer(1, 8 if not world.slow else 2)
    channels = heads * draw.integer(1, min(64, 128 // heads) if not world.slow else 9)
    mask = random_mask(3, positions, draw.seed) if draw.boolean() else None
    options = {name: draw.boolean() for name in ("bias", "norm", "norm_bias", "residual")}
    shape = draw.choice([(3, channels, 1, positions), (3, positions, channels)])
    dtype = draw.choice([dtype for dtype in world.dtypes if dtype != torch.float32])
    compare(world, case(world, shape, heads, seed=draw.seed, mask=mask, dtype=dtype, **options))


@pytest.mark.parametrize("layout", ["channels last", "channels first", "sliced", "transposed map"])
def test_strides(world, layout):
    given = case(world, (3, 8, 3, 5), mask=random_mask(3, 15))
    x = given.arguments[0]
    views = {
        "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
        "channels first": lambda t: t.flatten(2).contiguous().mT,  # tokens whose positions lie side by side
        "sliced": lambda t: torch.cat([torch.full_like(t, torch.nan), t], -1).repeat(1, 2, 1, 1)[:, 1::2][..., 5:],
        "transposed map": lambda t: t.mT.contiguous().mT,
    }
    view = views[layout]
    given.arguments[0], grad = view(x), view(given.grad)
    assert not given.arguments[0].is_contiguous()
    for index in (1, 3):
        given.arguments[index] = given.arguments[index].mT.contiguous().mT
    found = run(world, given._replace(grad=grad))
    given.arguments[0] = given.arguments[0].contiguous()
    for ours, expected in zip(found, run(world, given._replace(grad=grad.contiguous())), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_an_expanded_gradient(world):
    given = case(world, (2, 6, 2, 3))
    expanded = run(world, given._replace(grad=torch.ones((), device=world.device).expand(2, 6, 2, 3)))
    whole = run(world, given._replace(grad=torch.ones(2, 6, 2, 3, device=world.device)))
    for one, other in zip(expanded, whole, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [(0, 6, 2, 3), (0, 5, 6), (2, 0, 6)])
def test_empty(world, shape):
    given = case(world, shape)
    found = run(world, given)
    for ours, expected in zip(found, exact(given), strict=True):
        assert ours.shape == expected.shape
        assert not ours.any()


@pytest.mark.parametrize("shape", [(3, 6, 2, 3), (2, 130, 1, 2)], ids=str)
@pytest.mark.parametrize("wanted", range(7))
def test_only_the_gradients_wanted(world, shape, wanted):
    given = case(world, shape, mask=random_mask(shape[0], shape[2] * shape[3]))
    everything = run(world, given)[2:]
    mask = [index == wanted for index in range(7)]
    found = run(world, given, mask)[2:]
    assert [gradient is not None for gradient in found] == mask
    assert torch.equal(found[wanted], everything[wanted])


# --- masks and unusual numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 6, 2, 3), (2, 4, 1, 40), (2, 130, 1, 3)], ids=str)
def test_a_map_without_a_position_left(world, shape):
    mask = torch.ones(2, shape[2] * shape[3], dtype=torch.bool)
    given = case(world, shape, mask=mask, norm=False)
    out, lse, grad_x, *rest = run(world, given)
    assert torch.equal(out, given.arguments[0])
    assert (lse == torch.inf).all()
    assert torch.equal(grad_x, given.grad)
    assert not any(gradient.any() for gradient in rest if gradient is not None)
    compare(world, case(world, shape, mask=mask, residual=False))


def test_what_an_ignored_position_or_another_map_holds_reaches_nobody(world):
    mask = torch.zeros(4, 20, dtype=torch.bool)
    mask[1, 3] = mask[2, 19] = True
    given = case(world, (4, 6, 4, 5), mask=mask)
    clean, clean_lse = run(world, given)[:2]
    dirty = given.arguments[0].clone()
    dirty[0] = torch.nan
    dirty.flatten(2)[1, :, 3] = torch.nan
    dirty.flatten(2)[2, :, 19] = torch.inf
    given.arguments[0] = dirty
    out, lse = run(world, given)[:2]
    assert out[0].isnan().all()
    others = ~mask.to(world.device)
    others[0] = False
    assert torch.equal(out.flatten(2).mT[others], clean.flatten(2).mT[others])
    seen = others[:, None].expand_as(lse)
    assert torch.equal(lse[seen], clean_lse[seen])


def test_infinite_and_nan_numbers_do_as_plain_pytorch(world):
    given = case(world, (2, 4, 1, 20))
    given.arguments[0][0, 1, 0, 2] = torch.inf
    given.arguments[0][1, 0, 0, 17] = torch.nan
    assert torch.equal(run(world, given)[0].isnan().cpu(), exact(given)[0].isnan())


def test_large_scores_do_not_overflow(world):
    given = case(world, (2, 8, 4, 6), scale=300.0, norm=False)
    assert all(found.isfinite().all() for found in run(world, given) if found is not None)


def test_runs_agree_to_the_bit(world):
    for shape in ((5, 16, 4, 5), (2, 130, 2, 3)) if world.slow else ((700, 64, 11, 11), (3, 700, 64), (300, 64, 200)):
        given = case(world, shape)
        first = run(world, given)
        for one, other in zip(first, run(world, given), strict=True):
            assert torch.equal(one, other)


# --- through the public operator ------------------------------------------------------------------------------------


def leaves(world, shape=(3, 6, 2, 3), dtype=torch.float32):
    arguments = case(world, shape, dtype=dtype).arguments
    return [tensor.requires_grad_() for tensor in (*arguments[:5], *arguments[6:])]


def public(tensors, mask=None, **options):
    x, w_in, b_in, w_out, b_out, w_norm, b_norm = tensors
    last = {"num_heads": 2, "residual": True, "norm_weight": w_norm, "norm_bias": b_norm, "key_padding_mask": mask}
    return spatial_attention(x, w_in, b_in, w_out, b_out, **last, **options)


def test_autograd_through_the_operator(world):
    mask = random_mask(3, 6).to(world.device)
    tensors = leaves(world)
    outs = [public(tensors, mask, backend=name) for name in (world.backend, "reference")]
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-5)
    grad = torch.randn(outs[0].shape).to(world.device)
    gradients = [torch.autograd.grad(out, tensors, grad) for out in outs]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 6, 2, 3), (2, 9, 8)])
def test_a_call_that_was_seen_before_gives_the_same_bits(world, shape):
    """The first call goes through every check; the others may take a shorter path."""
    if world.slow and world.backend == "triton":
        pytest.skip("the interpreter has only one path")
    tensors = leaves(world, shape)
    grad = torch.randn(shape).to(world.device)
    runs = []
    for _ in range(3):
        out = public(tensors, backend=world.backend)
        with torch.no_grad():
            assert torch.equal(public(tensors, backend=world.backend), out)
        some = torch.autograd.grad(public(tensors, backend=world.backend)[..., :1].expand(shape).sum(), tensors[1:3])
        runs.append([out, *torch.autograd.grad(out, tensors, grad), *some])
    for run_ in runs:
        assert all(torch.equal(a, b) for a, b in zip(run_, runs[0], strict=True))
    assert not torch.equal(public(tensors, backend=world.backend, scale=0.01), runs[0][0])
    for wrong in ({"eps": True}, {"residual": 1}):
        with pytest.raises(TypeError):
            spatial_attention(*tensors[:5], num_heads=2, backend=world.backend, **wrong)
    found = torch.autograd.grad(public(tensors, backend=world.backend), tensors, grad, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        found[0].sum().backward()


def test_the_layer_equals_multihead_attention(world):
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True, device=world.device)
    ours = SpatialAttention(16, 4, backend=world.backend, device=world.device)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 9, 16).to(world.device).requires_grad_()
    expected = theirs(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5)
    maps = ours(x.mT.reshape(2, 16, 3, 3))
    torch.testing.assert_close(maps.flatten(2).mT, expected, rtol=1e-5, atol=1e-5)
    losses = ours(x).square().sum(), expected.square().sum()
    gradients = [
        torch.autograd.grad(losses[0], (x, *ours.parameters())),
        torch.autograd.grad(losses[1], (x, *theirs.parameters())),
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


# --- on a GPU alone ---------------------------------------------------------------------------------------------------

GPU_SHAPES = [(300, 64, 11, 11), (200, 64, 15, 15), (3, 700, 64)]


@pytest.fixture
def gpu(world):
    if world.device.type != "cuda":
        pytest.skip("needs a GPU")
    return world


@pytest.mark.parametrize("shape", [(65_540, 3, 4), (65_540, 2, 130)], ids=str)
def test_more_maps_than_a_grid_holds(gpu, shape):
    given = case(gpu, shape, 1 if shape[2] < 100 else 2)
    found = run(gpu, given)
    last = given.to(torch.float32, gpu.device)
    last.arguments[0] = last.arguments[0][-3:]
    expected = exact(last._replace(grad=last.grad[-3:]))
    for ours, right in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(ours[-3:].double().cpu(), right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
def test_graph_capture(gpu, shape):
    given = case(gpu, shape)
    expected = run(gpu, given)
    module = implementation("spatial_attention", gpu.backend)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = module.forward(*given.arguments, given.options)
        gradients = module.backward(given.grad, *given.arguments, lse, given.options, ALL)
    captured = [out, lse, *gradients]
    for tensor in captured:
        tensor.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    for one, other in zip(expected, captured, strict=True):
        assert torch.equal(one, other)


def test_another_stream(gpu):
    given = case(gpu, (300, 64, 11, 11))
    expected = run(gpu, given)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = run(gpu, given)
    stream.synchronize()
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)


def test_nothing_waits_for_the_device(gpu):
    given = case(gpu, (300, 64, 11, 11), mask=random_mask(300, 121))
    run(gpu, given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(gpu, given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiles_without_a_break(gpu):
    tensors, mask = leaves(gpu, (4, 16, 5, 5)), random_mask(4, 25).to(gpu.device)

    def call(*t):
        return public(t, mask, backend=gpu.backend)

    compiled = torch.compile(call, fullgraph=True)
    assert torch.equal(compiled(*tensors), call(*tensors))
    gradients = [torch.autograd.grad(f(*tensors).square().sum(), tensors) for f in (compiled, call)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("shape", [(300, 64, 11, 11), (3, 700, 64), (20_000, 4, 16)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_the_chain(gpu, shape, masked):
    """The chain, which the automatic choice may use in place of the kernels, with the GPU's fused operators."""
    positions = shape[1] if len(shape) == 3 else shape[2] * shape[3]
    mask = random_mask(shape[0], positions).to(gpu.device) if masked else None
    for dtype in gpu.dtypes:
        given = case(gpu, shape, 4, mask=mask, dtype=dtype)
        naive, truth = plain(given), exact(given)
        tensors = [tensor.requires_grad_() for tensor in (*given.arguments[:5], *given.arguments[6:])]
        x, w_in, b_in, w_out, b_out, w_norm, b_norm = tensors
        out = spatial_attention(
            *(x, w_in, b_in, w_out, b_out), num_heads=4, key_padding_mask=mask, residual=True,
            norm_weight=w_norm, norm_bias=b_norm, backend="chain",
        )  # fmt: skip
        found = [out, *torch.autograd.grad(out, tensors, given.grad)]
        for ours, theirs, right in zip(found, (naive[0], *naive[2:]), (truth[0], *truth[2:]), strict=True):
            error, allowed = ((each.double().cpu() - right).abs().max() for each in (ours, theirs))
            assert error <= 3 * allowed + 8 * torch.finfo(dtype).eps * max(1.0, right.abs().max().item())


def test_the_chain_has_room_for_more_maps_than_a_grid(gpu):
    tensors = leaves(gpu, (70_000, 4, 8), torch.bfloat16)
    out = public(tensors, backend="chain")
    last = public([tensors[0][-3:], *tensors[1:]], backend="chain")
    torch.testing.assert_close(out[-3:], last)
    assert torch.autograd.grad(out.sum(), tensors)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(gpu, dtype):
    with torch.autocast("cuda", dtype=dtype):
        out = public(leaves(gpu), backend=gpu.backend)
    assert out.dtype == dtype
