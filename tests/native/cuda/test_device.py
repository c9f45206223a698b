"""The device functions that the CUDA kernels are written in: in the emulator, and on a GPU if there is one."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from simmst.core.philox import philox4x32
from simmst.native.cuda.launch import array

MODULES = [name for name in ("simmst._cuda_emulated", "simmst._cuda_checks") if importlib.util.find_spec(name)]


@pytest.fixture(params=MODULES or [pytest.param(None, marks=pytest.mark.skip("no CUDA module is installed"))])
def check(request):
    """A function that runs a check on the module's device and returns the words that it writes."""
    module = importlib.import_module(request.param)
    emulated = request.param.endswith("emulated")
    if not emulated and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    device = torch.device("cpu" if emulated else "cuda")

    def run(name, values):
        given = torch.as_tensor(values, dtype=torch.float32, device=device).contiguous()
        out = torch.full((module.device_check_outputs(name, given.numel()),), -1, dtype=torch.int32, device=device)
        stream = 0 if emulated else torch.cuda.current_stream().cuda_stream
        module.device_check(name, array(given), array(out), given.get_device(), stream)
        return out.cpu().numpy()

    return run


@pytest.fixture
def emulated():
    return pytest.importorskip("simmst._cuda_emulated", reason="build with SIMMST_CUDA_EMULATION=ON")


@pytest.fixture(params=["0", "1", "2"])
def seed(request, monkeypatch):
    monkeypatch.setenv("SIMMST_CUDA_EMULATION_SEED", request.param)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def test_reductions(check, seed):
    values = draw(128)
    words = check("reductions", values)
    floats = words.view(np.float32)
    assert floats[0] == pytest.approx(values.sum(dtype=np.float64), rel=1e-5)
    assert floats[1] == values.max()
    groups = values.reshape(16, 8).sum(axis=1, dtype=np.float64)
    np.testing.assert_allclose(floats[2:], np.repeat(groups, 8), rtol=1e-5, atol=1e-6)


def test_shuffles(check, seed):
    values = draw(128)
    found = check("shuffles", values).reshape(5, 128)
    lanes, warps = np.arange(128) % 32, np.arange(128) // 32 * 32
    expected = [
        values[warps + 7 * np.arange(128) % 32],
        values[warps + np.where(lanes >= 3, lanes - 3, lanes)],
        values[warps + np.where(lanes < 27, lanes + 5, lanes)],
        values[warps + (lanes ^ 17)],
    ]
    np.testing.assert_array_equal(found[:4].view(np.float32), np.stack(expected))
    votes = (values > 0).reshape(4, 32) @ (1 << np.arange(32, dtype=np.uint64))
    np.testing.assert_array_equal(found[4].view(np.uint32), np.repeat(votes.astype(np.uint32), 32))


def special_floats():
    """Return every float16 and its neighbours in float32, ties between float16 and bfloat16, zeros, infinities, NaN."""
    halves = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = halves[np.isfinite(halves)]
    ties = np.nextafter(halves, np.float32(np.inf)), (halves[1:] + halves[:-1]) / 2
    words = np.arange(0, 65536, 3, dtype=np.uint32) << 16
    wide = np.concatenate([words | 0x8000, words | 0x7FFF, words | 0x8001]).astype(np.uint32).view(np.float32)
    rest = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 65519.99, 65520.0, 2.0**-25, 2.0**-149], dtype=np.float32)
    return np.concatenate([halves, *ties, wide, rest])


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_conversions_round_to_the_nearest_even(check, name):
    values = special_floats()
    bits, back, pairs = check(name, values).reshape(3, -1)
    rounded = torch.from_numpy(values).to(getattr(torch, name))
    expected = rounded.view(torch.int16).numpy().astype(np.int32) & 0xFFFF
    number = ~np.isnan(values)
    np.testing.assert_array_equal(bits[number], expected[number])
    np.testing.assert_array_equal(back.view(np.float32), rounded.float().numpy())
    np.testing.assert_array_equal((pairs & 0xFFFF)[number], expected[number])
    np.testing.assert_array_equal((pairs >> 16 & 0xFFFF)[number[::-1]], expected[::-1][number[::-1]])


def test_ordered_bits_exponentials_and_random_numbers(check):
    values = np.concatenate([draw(500) * 20, np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -126.5], np.float32)])
    ordered, powers, *words = check("numbers", values).view(np.uint32).reshape(6, -1)
    order = np.argsort(values[:-2], kind="stable")
    assert np.all(np.diff(ordered[:-2][order].astype(np.int64)) >= 0)
    assert ordered[500] == ordered[501]
    assert ordered[-2] == 0xFFFFFFFF
    # ex2.approx is exact to 2 units in the last place; results below the normal numbers are zero
    with np.errstate(over="ignore"):
        exact = np.exp2(values.astype(np.float64))
    expected = np.where(exact < 2.0**-126, 0.0, exact.astype(np.float32))
    np.testing.assert_allclose(powers.view(np.float32), expected, rtol=3e-7)
    counter = [torch.arange(values.size), *(torch.tensor(word) for word in (1, 2, 3))]
    key = torch.tensor([int(values[:1].view(np.uint32)[0]), 5])
    for ours, theirs in zip(words, philox4x32(tuple(counter), key), strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("count", [1, 4, 511, 512, 513, 4000])
def test_asynchronous_copies_arrive_whole_and_pad_with_zeros(check, seed, count):
    values = draw(count)
    padded = np.zeros(-(-count // 512) * 512, np.float32)
    padded[:count] = values
    found = check("copies", values).view(np.float32).reshape(-1, 512)
    np.testing.assert_array_equal(found, padded.reshape(-1, 512)[:, ::-1])


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_products_on_tensor_cores(check, seed, name):
    values = torch.from_numpy(draw(2, 16, 16)).to(getattr(torch, name))
    exact = (values[0].double() @ values[1].double()).numpy()
    found = check(f"products {name}", values.float().flatten()).view(np.float32).reshape(4, 16, 16)
    for way in found:
        np.testing.assert_allclose(way, exact, rtol=1e-5, atol=1e-5)


def test_a_wrong_call_is_refused_before_the_launch(check):
    with pytest.raises(ValueError, match="there is no check 'nothing'"):
        check("nothing", [1.0])
    with pytest.raises(ValueError, match="reductions takes 128 inputs, got 3"):
        check("reductions", [1.0, 2.0, 3.0])


MISTAKES = {
    "copies left": r"returns with copies that nobody waited for, in thread \d+ of block \(0, 0, 0\)",
    "early return": r"thread \d+ waits in sync_block\(\) at device_check.cu:\d+ for ever: thread 5 has returned",
    "two barriers": r"sync_block\(\) at device_check.cu:\d+ meets the one at device_check.cu:\d+ of thread \d+",
    "half a warp": r"thread \d+ waits in ballot\(\) at device_check.cu:\d+ for ever: thread \d+ has returned",
    "not aligned": r"a load of 16 bytes from an address that is no multiple of it at device_check.cu:\d+",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_emulator_says_what_is_wrong_and_where(emulated, seed, name):
    out = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=rf"{name} \(words=64\) on a grid of 1 x 1 x 1 blocks of 64 threads.*") as e:
        emulated.device_misuse(name, array(out))
    assert e.match(MISTAKES[name])


def test_a_write_past_shared_memory_is_found(emulated):
    if "libasan" in Path("/proc/self/maps").read_text():
        pytest.skip("AddressSanitizer ends the process there")
    with pytest.raises(RuntimeError, match="wrote past its 256 bytes of shared memory"):
        emulated.device_misuse("past the end", array(torch.zeros(64, dtype=torch.int32)))


def test_a_missing_barrier_or_wait_leaves_wrong_results(emulated, seed):
    out = torch.zeros(64, dtype=torch.int32)
    emulated.device_misuse("no barrier", array(out))
    assert (out == -1).sum() > 10  # entries that had not arrived yet
    emulated.device_misuse("no wait", array(out))
    assert (out[:4] == -1).all()


def test_launches_that_no_device_accepts(emulated):
    given = torch.zeros(128)
    with pytest.raises(ValueError, match=r"in float32 .* lies on device -1, the call is for device 0"):
        emulated.device_check("shuffles", array(given), array(torch.zeros(640, dtype=torch.int32)), 0, 0)
    with pytest.raises(TypeError, match=r"in float64 \(128\) must hold one of float32"):
        emulated.device_check("shuffles", array(given.double()), array(torch.zeros(640, dtype=torch.int32)), -1, 0)
    with pytest.raises(ValueError, match=r"out int32 \(639\) must have shape \(640\)"):
        emulated.device_check("shuffles", array(given), array(torch.zeros(639, dtype=torch.int32)), -1, 0)


ERRORS = {
    2: "the device is out of memory; free tensors or use a smaller batch",
    35: r"(no NVIDIA driver is installed|the NVIDIA driver supports CUDA up to \d+\.\d+); this build needs CUDA \d+\.0",
    100: "this process sees no CUDA device",
    101: r"no such device; this process sees \d+",
    209: r"this build of simmst._cuda has no code that device \d+ \(sm_\d+\) can run; it was compiled for .*"
    "Rebuild simmst from source with CUDAARCHS=",
    222: r"no code that device \d+ \(sm_\d+\) can run, and its driver is too old to make some; it was compiled for",
    700: r"illegal memory access.*cudaErrorIllegalAddress",
}


@pytest.mark.parametrize("number", ERRORS)
def test_errors_of_the_runtime_are_told_in_words(number):
    module = pytest.importorskip("simmst._cuda", reason="this installation was built without a CUDA compiler")
    assert re.search(ERRORS[number], module.explain_error(number))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_call_without_a_gpu_says_so():
    module = pytest.importorskip("simmst._cuda", reason="this installation was built without a CUDA compiler")
    tensors = torch.zeros(2, 8), torch.zeros(3, 8), torch.zeros(2, 1, dtype=torch.int64)
    query, key, sample = ((*array(tensor)[1:4], 0) for tensor in tensors)
    with pytest.raises(
        RuntimeError, match=r"making device 0 current: (no NVIDIA driver is installed|this process sees no)"
    ):
        module.prob_sparse_select(query, key, sample, 3.0, 1, 0)
