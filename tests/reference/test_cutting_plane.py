"""The reference of the cutting planes against loops in numpy, torch's optimisers and finite differences."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simmst.core.cutting_plane import PackedSigns, pack_signs
from simmst.reference.cutting_plane import combine, lagrangian, penalty, step_, values

F64 = torch.float64


def problem(shape, dtype=F64, seed=0):
    """Return planes (..., L, N), offsets, multipliers (..., L) and point (..., N)."""
    generator = torch.Generator().manual_seed(seed)
    rows, point = shape[:-1], (*shape[:-2], shape[-1])
    planes = torch.randn(shape, generator=generator, dtype=F64).to(dtype)
    offsets = torch.randn(rows, generator=generator, dtype=F64).to(dtype)
    multipliers = torch.rand(rows, generator=generator, dtype=F64).to(dtype)
    return planes, offsets, multipliers, torch.randn(point, generator=generator, dtype=F64).to(dtype)


def loop(planes, offsets, multipliers, point):
    """Compute values, penalty and Lagrangian of one problem, entry by entry in float64."""
    plane_values = []
    for row, offset in zip(planes.double().numpy(), offsets.double().numpy(), strict=True):
        total = np.float64(offset)
        for entry, x in zip(row, point.double().numpy(), strict=True):
            total += entry * x
        plane_values.append(total)
    weights = multipliers.double().numpy()
    return (
        np.array(plane_values),
        sum(m * max(0.0, v) ** 2 for m, v in zip(weights, plane_values, strict=True)),
        sum(m * v for m, v in zip(weights, plane_values, strict=True)),
    )


@settings(max_examples=40, deadline=None)
@given(
    problems=st.one_of(st.none(), st.integers(0, 3)),
    planes=st.integers(0, 5),
    size=st.integers(0, 19),
    packed=st.booleans(),
    strided=st.booleans(),
)
def test_equals_loops(problems, planes, size, packed, strided):
    shape = (planes, size) if problems is None else (problems, planes, size)
    matrix, offsets, multipliers, point = problem(shape)
    if strided:
        matrix, point = matrix.mT.contiguous().mT, torch.stack([point, point], -1)[..., 0]
    if packed:
        matrix = pack_signs(matrix, torch.rand(shape[:-1], dtype=F64) + 0.5)
    written = matrix.unpack() if packed else matrix
    results = (
        values(matrix, offsets, point),
        penalty(matrix, offsets, multipliers, point),
        lagrangian(matrix, offsets, multipliers, point),
    )
    batch = problems is not None
    for p in range(problems if batch else 1):
        one = [tensor[p] if batch else tensor for tensor in (written, offsets, multipliers, point)]
        for result, expected in zip(results, loop(*one), strict=True):
            np.testing.assert_allclose((result[p] if batch else result).numpy(), expected, rtol=1e-10, atol=1e-10)
    assert results[0].shape == shape[:-1]
    assert results[1].shape == results[2].shape == shape[:-2]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 64, 101])
def test_packing_keeps_every_sign(size):
    planes = torch.randn(2, 3, size, generator=torch.Generator().manual_seed(size))
    if size:
        planes[0, 0, 0] = 0.0
        planes[1, 2, -1] = -0.0
    scale = torch.rand(2, 3) + 0.1
    packed = pack_signs(planes, scale)
    assert packed.shape == planes.shape
    assert packed.bits.shape == (2, 3, -(-size // 8))
    assert packed.bits.dtype == torch.uint8
    expected = torch.where(planes < 0, -1.0, 1.0) * scale.unsqueeze(-1)  # sign(0) is +1
    assert torch.equal(packed.unpack(), expected)
    assert packed.unpack(F64).dtype == F64
    assert torch.equal(pack_signs(packed.unpack(), scale).bits, packed.bits)


def test_packed_layout():
    planes = torch.ones(1, 11)
    planes[0, [0, 9]] = -1.0
    packed = pack_signs(planes)
    assert packed.bits.tolist() == [[0b1, 0b10]]  # entry 8 i + b is bit b of byte i; the rest of the last byte is zero
    assert packed.scale.tolist() == [1.0]
    assert pack_signs(-planes).bits.tolist() == [[0b11111110, 0b101]]
    np_bits = np.packbits((planes < 0).numpy(), axis=-1, bitorder="little")
    assert np.array_equal(packed.bits.numpy(), np_bits)


@pytest.mark.parametrize(
    ("planes", "scale", "error", "message"),
    [
        (
            torch.ones(2, 3, dtype=torch.int64),
            None,
            TypeError,
            "planes must be a floating-point tensor, got torch.int64",
        ),
        ([1.0], None, TypeError, "planes must be a floating-point tensor, got list"),
        (torch.ones(3), None, ValueError, r"shape \(\.\.\., L, N\), got \(3,\)"),
        (torch.tensor([[1.0, float("nan")]]), None, ValueError, r"\(1, 2\) hold NaN"),
        (torch.ones(2, 3), torch.ones(3), ValueError, r"scale must have shape \(2,\).*got \(3,\)"),
        (torch.ones(2, 3), torch.ones(2).half(), TypeError, "float32 or float64 tensor, got torch.float16"),
    ],
)
def test_packing_refuses(planes, scale, error, message):
    with pytest.raises(error, match=message):
        pack_signs(planes, scale)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("function", [penalty, lagrangian])
@pytest.mark.parametrize("packed", [False, True])
def test_derivatives(function, packed):
    planes, offsets, multipliers, point = problem((2, 3, 5))
    planes = pack_signs(planes) if packed else planes
    arguments = (multipliers.requires_grad_(), point.requires_grad_())

    def call(m, x):
        return function(planes, offsets, m, x)

    assert torch.autograd.gradcheck(call, arguments, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, arguments)


def test_planes_and_offsets_are_constants():
    planes, offsets, multipliers, point = (tensor.requires_grad_() for tensor in problem((3, 5)))
    for result in (values(planes, offsets, point).sum(), penalty(planes, offsets, multipliers, point)):
        gradients = torch.autograd.grad(result, (planes, offsets, point), allow_unused=True)
        assert gradients[0] is None
        assert gradients[1] is None
        assert gradients[2] is not None


@pytest.mark.parametrize(
    ("planes", "offsets", "point", "result"),
    [
        (torch.float32, torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float64, torch.float32, torch.float64),
        (torch.float64, torch.float32, torch.float32, torch.float32),
    ],
)
def test_dtypes(planes, offsets, point, result):
    matrix, c, mu, x = problem((3, 50), F64)
    matrix, c, mu, x = matrix.to(planes), c.to(offsets), mu.to(offsets), x.to(point)
    out = values(matrix, c, x)
    assert out.dtype == result
    assert penalty(matrix, c, mu, x).dtype == result
    exact = matrix.double() @ x.double() + c.double()
    plain = (matrix.to(result) @ x.to(result) + c.to(result)).double()
    assert torch.isfinite(out).all()
    assert (out - exact).abs().max() <= 2 * (plain - exact).abs().max() + 1e-5


def test_combine_skips_rows_without_coefficient():
    planes, _, coefficients, _ = problem((4, 6))
    coefficients[1] = 0.0
    expected = coefficients @ planes
    planes[1, 2], planes[1, 3] = float("inf"), float("nan")
    torch.testing.assert_close(combine(planes, coefficients, F64), expected)


@pytest.mark.parametrize("shape", [(4, 30), (3, 4, 30)])
@pytest.mark.parametrize("packed", [False, True])
def test_gradient_descent_equals_two_products_and_an_update(shape, packed):
    planes, anchor_values, coefficients, point = problem(shape)
    stored = pack_signs(planes, torch.full(shape[:-1], 0.3, dtype=F64)) if packed else planes
    matrix = stored.unpack() if packed else planes
    anchor, expected = point.clone(), point.clone()
    generator = torch.Generator().manual_seed(9)
    for _ in range(5):
        gradient = torch.randn(point.shape, generator=generator, dtype=F64)
        out = step_(stored, coefficients, gradient, point, anchor, anchor_values, lr=0.1)
        expected = expected - 0.1 * (gradient + torch.einsum("...ln,...l->...n", matrix, coefficients))
        torch.testing.assert_close(point, expected, rtol=0, atol=1e-12)
        product = torch.einsum("...ln,...n->...l", matrix, expected - anchor)
        torch.testing.assert_close(out, anchor_values + product, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_adam_is_torchs_to_the_bit(dtype):
    planes, anchor_values, coefficients, point = problem((3, 257), dtype)
    parameter = point.clone().requires_grad_()
    optimiser = torch.optim.Adam([parameter], lr=0.05, foreach=False)
    state = (torch.zeros_like(point), torch.zeros_like(point), torch.tensor(0.0))
    anchor = point.clone()
    for _ in range(20):
        gradient = torch.randn_like(point)
        parameter.grad = gradient + combine(planes, coefficients, dtype)
        step_(planes, coefficients, gradient, point, anchor, anchor_values, lr=0.05, adam_state=state)
        optimiser.step()
        if dtype == torch.float32:
            assert torch.equal(point, parameter.detach())
        else:  # the bias corrections are powers in float64, whose last bit depends on the library that computes them
            torch.testing.assert_close(point, parameter.detach(), rtol=1e-13, atol=1e-14)
    kept = optimiser.state[parameter]
    assert torch.equal(state[0], kept["exp_avg"])
    assert torch.equal(state[1], kept["exp_avg_sq"])
    assert state[2].item() == kept["step"].item() == 20


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
def test_adam_on_a_half_precision_point(state_dtype):
    planes, anchor_values, coefficients, point = problem((3, 64), torch.bfloat16)
    exact = point.double()
    state = (torch.zeros(64, dtype=state_dtype), torch.zeros(64, dtype=state_dtype), torch.tensor(0.0))
    exact_state = (torch.zeros(64, dtype=F64), torch.zeros(64, dtype=F64), torch.tensor(0.0))
    start, wide = point.clone(), [planes.double(), coefficients.double()]
    gradient = torch.randn(64).bfloat16()
    out = step_(planes, coefficients, gradient, point, start, anchor_values, lr=0.05, adam_state=state)
    step_(*wide, gradient.double(), exact, start.double(), anchor_values.double(), lr=0.05, adam_state=exact_state)
    assert point.dtype == out.dtype == torch.bfloat16
    assert state[0].dtype == state_dtype
    torch.testing.assert_close(point.double(), exact, rtol=2**-8, atol=1e-6)
    # The values are those of the point as stored.
    stored = anchor_values.double() + planes.double() @ (point.double() - start.double())
    torch.testing.assert_close(out.double(), stored, rtol=2**-8, atol=1e-5)


def test_a_step_skips_broken_rows_without_coefficient():
    planes, anchor_values, coefficients, point = problem((4, 6))
    coefficients[2] = 0.0
    planes[2] = float("nan")
    anchor = point.clone()
    out = step_(planes, coefficients, torch.zeros(6, dtype=F64), point, anchor, anchor_values, lr=0.1)
    assert torch.isfinite(point).all()
    assert torch.isfinite(out[[0, 1, 3]]).all()
    assert torch.isnan(out[2])


def test_values_from_an_anchor_do_not_drift():
    planes, offsets, coefficients, point = problem((8, 500), torch.float32)
    coefficients *= 0.01
    # Far from the origin the products of the whole point are large, and so are their rounding errors.
    point += 1000.0
    anchor = point.double()
    anchor_values = planes.double() @ anchor + offsets.double()
    running = anchor_values.float()
    generator = torch.Generator().manual_seed(2)
    for _ in range(500):
        before = point.clone()
        gradient = torch.randn(500, generator=generator)
        out = step_(planes, coefficients, gradient, point, anchor, anchor_values, lr=1e-2)
        running = running + planes @ (point - before)
    exact = planes.double() @ point.double() + offsets.double()
    assert out.dtype == F64
    error = (out - exact).abs().max()
    assert error < 1e-3
    assert error < (running - exact).abs().max() / 5
    assert error < (values(planes, offsets, point) - exact).abs().max() / 5


def test_packed_signs_are_a_tuple():
    packed = pack_signs(torch.randn(2, 9))
    assert isinstance(packed, PackedSigns)
    bits, scale, size = packed
    assert (bits.shape, scale.shape, size) == ((2, 2), (2,), 9)
