"""Specifics of spatial attention in CUDA: limits, the two forms of softmax, schedule, errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from simmst.core.spatial_attention import Options
from simmst.native.cuda import launch
from simmst.reference.spatial_attention import backward as reference_backward
from simmst.reference.spatial_attention import forward as reference_forward

if not launch.emulated() and not torch.cuda.is_available():
    pytest.skip("needs a GPU, or SIMMST_CUDA_EMULATION=1", allow_module_level=True)
pytest.importorskip("simmst._cuda_emulated" if launch.emulated() else "simmst._cuda")

from simmst.native.cuda import spatial_attention as cuda
from simmst.native.cuda import spatial_attention_long as long

DEVICE = torch.device("cpu" if launch.emulated() else "cuda")
NAMES = ["x", "w_in", "b_in", "w_out", "b_out", "mask", "w_norm", "b_norm"]
OPTIONS = Options(2, True, 1e-5, 0.35)


def arguments(shape=(2, 16, 4, 5), *, dtype=torch.float32, factor=1.0, mask=None):
    generator = torch.Generator().manual_seed(0)
    channels = shape[1] if len(shape) == 4 else shape[2]

    def draw(*size, factor=channels**-0.5):
        return (torch.randn(size, generator=generator) * factor).to(dtype).to(DEVICE)

    weights = draw(3 * channels, channels), draw(3 * channels), draw(channels, channels), draw(channels)
    # `factor` makes the scores large through only queries and keys.
    weights[0][: 2 * channels] *= factor
    return [draw(*shape, factor=1.0), *weights, mask, draw(channels), draw(channels)]


def double(tensors):
    return [t if t is None or t.dtype == torch.bool else t.double().cpu() for t in tensors]


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0, 10.0, 60.0])
def test_softmax_with_and_without_a_maximum(factor):
    """Small scores need no maximum, and large ones would overflow without it; float32 follows both closely."""
    given = arguments(factor=factor)
    out, lse = cuda.forward(*given, OPTIONS)
    expected, expected_lse = reference_forward(*double(given), OPTIONS)
    size = max(1.0, expected_lse.abs().max().item())
    torch.testing.assert_close(lse.double().cpu(), expected_lse, rtol=0, atol=2e-6 * size)
    torch.testing.assert_close(out.double().cpu(), expected, rtol=0, atol=2e-5 * size)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_that_overflow_without_a_maximum(dtype):
    given = arguments(dtype=dtype, factor=20.0)
    out, lse = cuda.forward(*given, OPTIONS)
    expected, _ = reference_forward(*double(given), OPTIONS)
    assert lse.max() > 200  # 2^lse is no float16, and exp(lse) no float32
    assert (out.double().cpu() - expected).abs().median() < 0.05


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_equal_scores_far_from_zero(dtype, sign):
    """Without a maximum, 2^score of every key would be 0 or infinite; the right result is the mean of the values."""
    channels = 16
    x = torch.ones(1, 20, channels, dtype=dtype, device=DEVICE)
    weight = torch.eye(channels, dtype=dtype, device=DEVICE)
    packed = torch.cat([weight * 6, weight * 6 * sign, weight])
    out, lse = cuda.forward(x, packed, None, weight, None, None, None, None, Options(1, False, 0.0, 1.0))
    torch.testing.assert_close(out, x)
    expected = torch.full_like(lse, sign * 36 * channels + torch.tensor(20.0).log().item())
    torch.testing.assert_close(lse, expected, rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_ignored_positions_may_hold_nan(dtype):
    mask = torch.zeros(2, 20, dtype=torch.bool, device=DEVICE)
    mask[0, 3], mask[1, 17:] = True, True
    given = arguments(dtype=dtype, mask=mask)
    clean = cuda.forward(*given, OPTIONS)[0]
    given[0] = given[0].clone().flatten(2).masked_fill(mask[:, None], float("nan")).view_as(given[0])
    out = cuda.forward(*given, OPTIONS)[0]
    kept = ~mask[:, None].expand(2, 16, 20)
    assert torch.equal(out.flatten(2)[kept], clean.flatten(2)[kept])


def test_nan_among_the_keys_reaches_every_position():
    """This holds also if the polynomial, not the special-function unit, computes the weight."""
    for position in range(20):
        given = arguments((1, 16, 4, 5), dtype=torch.bfloat16)
        given[0][0, :, position // 5, position % 5] = float("nan")
        out, lse = cuda.forward(*given, OPTIONS)
        assert out.isnan().all()
        assert lse.isnan().all()


def test_many_positions_agree_with_the_fused_kernels():
    mask = torch.zeros(2, 20, dtype=torch.bool, device=DEVICE)
    mask[0, 5:9], mask[1] = True, True
    x, w_in, b_in, w_out, b_out, _, w_norm, b_norm = given = arguments(mask=mask)
    weights = x, w_in, b_in, w_out, b_out, w_norm, b_norm, mask
    out, lse = cuda.forward(*given, OPTIONS)
    for one, other in zip(long.forward(*weights, OPTIONS), (out, lse), strict=True):
        torch.testing.assert_close(one, other)
    fused = cuda.backward(out, *given, lse, OPTIONS, [True] * 7)
    plain = long.backward(out, *weights, OPTIONS, [True] * 7)
    for one, other in zip(plain, fused, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "positions", "channels", "heads", "reason"),
    [
        (torch.bfloat16, 400, 64, 4, ""),
        (torch.bfloat16, 512, 64, 4, ""),
        (torch.bfloat16, 256, 128, 4, ""),
        (torch.float32, 225, 64, 4, ""),
        (torch.bfloat16, 513, 64, 4, "more than 512 positions"),
        (torch.float32, 257, 32, 4, "more than 256 positions in float32"),
        (torch.bfloat16, 400, 128, 4, "a map does not fit into the shared memory of a block"),
        (torch.bfloat16, 25, 144, 9, "more than 128 channels"),
        (torch.bfloat16, 25, 128, 1, "heads of more than 64 channels"),
    ],
)
def test_what_a_block_holds(dtype, positions, channels, heads, reason):
    """On a device with 227 KB per block, like the emulator's and those of compute capability 9.0."""
    if not launch.emulated() and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("this GPU has less shared memory")
    device = -1 if launch.emulated() else torch.cuda.current_device()
    assert cuda.why_not_fused(dtype, positions, channels, heads, device) == reason


def test_workspaces_do_not_grow_with_the_batch():
    def size(batch, dtype=2, positions=400):
        def array(*shape, dtype=dtype):
            return dtype, shape, (1, *shape[:0:-1])[::-1] if len(shape) < 3 else (shape[1] * shape[2], shape[2], 1), -1

        x, lse = array(batch, positions, 64), array(batch, 4, positions, dtype=0)
        weights = [array(192, 64), None, array(64, 64), None, None, None]
        options = 4, True, 1e-5, 0.25
        return launch.module().spatial_attention_backward(x, x, weights, None, lse, options, -1).workspace

    if not launch.emulated():
        pytest.skip("the emulator's number of multiprocessors is known")
    each = 11 * 400 * 72 * 2 + 4 * 4 * 400 + 4 * (4 * 64 * 64 + 6 * 64)
    assert [size(batch) for batch in (1, 8, 9, 2**40)] == [each, 8 * each, 8 * each, 8 * each]
    assert size(1, 0, 240) == 11 * 240 * 72 * 4 + 4 * 4 * 240 + 4 * (4 * 64 * 64 + 6 * 64)


SCHEDULE = """
import torch
from simmst.native.cuda.spatial_attention import backward, forward
from test_spatial_attention import OPTIONS, arguments
given = arguments((7, 16, 3, 6))
out, lse = forward(*given, OPTIONS)
found = backward(out, *given, lse, OPTIONS, [True] * 7)
torch.save([part.cpu() for part in found], "found.pt")
"""


@pytest.mark.skipif(not launch.emulated(), reason="sets the emulator's number of multiprocessors")
@pytest.mark.parametrize("multiprocessors", [1, 2, 5])
def test_any_number_of_blocks_gives_the_gradients(tmp_path, multiprocessors):
    """7 maps on 2, 4 and 7 blocks, each in a different order of threads."""
    environment = os.environ | {
        "SIMMST_CUDA_EMULATION_MULTIPROCESSORS": str(multiprocessors),
        "SIMMST_CUDA_EMULATION_SEED": str(multiprocessors),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    subprocess.run([sys.executable, "-c", SCHEDULE], cwd=tmp_path, env=environment, check=True)
    given = double(arguments((7, 16, 3, 6)))
    out, lse = cuda.forward(*arguments((7, 16, 3, 6)), OPTIONS)
    expected = reference_backward(out.double(), *given, lse.double(), OPTIONS, [True] * 7)
    for one, right in zip(torch.load(tmp_path / "found.pt"), expected, strict=True):
        torch.testing.assert_close(one.double(), right, rtol=1e-4, atol=1e-4)


def test_shared_memory_of_compute_capability_8_holds_fewer_positions(tmp_path):
    if not launch.emulated():
        pytest.skip("sets the emulator's shared memory")
    code = (
        "import torch\nfrom simmst.native.cuda.spatial_attention import why_not_fused as why\n"
        "print([why(torch.bfloat16, n, 64, 4, -1) == '' for n in (352, 353)])"
    )
    environment = os.environ | {"SIMMST_CUDA_EMULATION_SHARED_BYTES": str(163 * 1024)}
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,  # not the sources, which have no compiled modules
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == "[True, False]", found.stderr[-2000:]


def plain(tensor):
    return None if tensor is None else launch.told(launch.layout(tensor))


class TestErrors:
    def call(self, **changes):
        given = dict(zip(NAMES, arguments(), strict=True)) | changes
        return cuda.forward(*given.values(), OPTIONS)

    def test_wrong_sizes(self):
        with pytest.raises(ValueError, match=r"in_proj_weight float32 \(48, 15\) must have shape \(48, 16\)"):
            self.call(w_in=torch.ones(48, 15, device=DEVICE))

    def test_wrong_dtype(self):
        with pytest.raises(TypeError, match=r"out_proj_weight float16 \(16, 16\) must hold one of float32"):
            self.call(w_out=torch.ones(16, 16, device=DEVICE, dtype=torch.float16))

    def test_wrong_mask(self):
        with pytest.raises(ValueError, match=r"key_padding_mask bool \(2, 19\) must have shape \(2, 20\)"):
            self.call(mask=torch.zeros(2, 19, dtype=torch.bool, device=DEVICE))

    def test_beyond_the_kernels(self):
        x = torch.ones(1, 600, 16, device=DEVICE)
        weights = [plain(part) for part in arguments()[1:5]] + [None, None]
        with pytest.raises(ValueError, match=r"x float32 \(1, 600, 16\) with num_heads=2 .* more than 256 positions"):
            launch.module().spatial_attention_forward(plain(x), weights, None, (2, True, 1e-5, 0.35), launch.on(x)[0])

    def test_wrong_lse(self):
        x, *rest = arguments()
        weights = [plain(part) for part in (*rest[:4], *rest[5:])]
        lse = plain(torch.empty(2, 2, 19, device=DEVICE))
        with pytest.raises(ValueError, match=r"lse float32 \(2, 2, 19\) must have shape \(2, 2, 20\)"):
            launch.module().spatial_attention_backward(
                plain(x), plain(x), weights, None, lse, (2, True, 1e-5, 0.35), launch.on(x)[0]
            )
