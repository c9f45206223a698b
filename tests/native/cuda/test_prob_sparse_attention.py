"""The parts that only the CUDA kernels of ProbSparse attention have: how they divide the work, and each division.

The schedule is arithmetic, so it is tested for sizes that no test could run. The kernels run in the emulator, with the
size of the device chosen so that small inputs take every path.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from simmst.ops.limits import SHARED_BYTES

H200 = 232_448  # bytes of shared memory per block


@pytest.fixture(scope="module")
def cuda() -> ModuleType:
    module = pytest.importorskip("simmst._cuda_emulated", reason="build with SIMMST_CUDA_EMULATION=ON")
    if not hasattr(module, "prob_sparse_spans"):
        pytest.skip("this build has no ProbSparse kernels")
    return module


def test_heads_are_padded_to_four_widths(cuda: ModuleType) -> None:
    for columns in range(1, 129):
        width = cuda.prob_sparse_padded_width(columns)
        assert width in (16, 32, 64, 128)
        assert width / 2 < columns <= width or width == 16
    assert cuda.prob_sparse_padded_width(129) == 0


def test_spans_cover_every_key_and_query_once(cuda: ModuleType) -> None:
    draw = random.Random(0)
    for _ in range(2000):
        keys, queries = (draw.randint(1, 10 ** draw.randint(1, 10)) for _ in range(2))
        blocks = draw.randint(1, 2000)
        size, key_spans, query_spans = cuda.prob_sparse_spans(keys, queries, draw.randint(1, 10**6), blocks)
        assert size > 0
        assert size % 64 == 0
        for count, spans in ((keys, key_spans), (queries, query_spans)):
            assert (spans - 1) * size < count <= spans * size
        assert max(key_spans, query_spans) <= blocks
    # A few entries are divided, many are not.
    assert cuda.prob_sparse_spans(4096, 4096, 64, 528) == (512, 8, 8)
    assert cuda.prob_sparse_spans(4096, 4096, 64, 396) == (704, 6, 6), "seven would not all run at once"
    assert cuda.prob_sparse_spans(4096, 4096, 100_000, 528) == (4096, 1, 1)


def test_chunks_of_queries_fill_the_device_once(cuda: ModuleType) -> None:
    for queries, batch in ((4096, 64), (720, 64), (1, 1), (16384, 8), (2**31 - 1, 1), (300, 1000)):
        chunk = cuda.prob_sparse_chunk(queries, batch, 264, 128, 2048)
        assert chunk % 128 == 0
        assert 0 < chunk <= 2048
        blocks = batch * math.ceil(queries / chunk)
        assert blocks <= 264 or chunk == 2048 or batch > 264, "a block more would wait for all the others"
        assert chunk in (128, 2048) or batch > 132 or blocks > 264 / 2
    assert cuda.prob_sparse_chunk(4096, 64, 264, 128, 2048) == 1024


def test_keys_are_staged_whole_then_in_tiles_then_not_at_all(cuda: ModuleType) -> None:
    def tiles(length: int, samples: int, running: int = 8192) -> Any:
        return cuda.prob_sparse_key_tiles(length, samples, 128, H200, running)

    assert tiles(1600, 40)[0] == "whole"
    assert tiles(1817, 40)[0] == "tiles"
    for length, samples in ((4096, 45), (16_384, 50), (65_536, 60)):
        gather, size, count = tiles(length, samples)
        assert gather == "tiles"
        assert (count - 1) * size < length <= count * size
        assert size % 8 == 0
        assert size * 128 + 8192 <= H200  # the running results too
    assert tiles(2**20, 70)[0] == "straight"
    assert tiles(4096, 45, running=H200)[0] == "straight"


def test_arithmetic_past_32_bits(cuda: ModuleType) -> None:
    big = 2**31 + 5
    turns = cuda.prob_sparse_group_turns(70, 100)
    assert cuda.prob_sparse_list_begin(big, 70, 100) == (big * turns * 16, big * 101)
    assert cuda.prob_sparse_entry_offset([big, 3], [700, big], 3 * (big - 1) + 2) == (big - 1) * 700 + 2 * big
    assert cuda.prob_sparse_entry_offset([], [], 0) == 0
    found = cuda.prob_sparse_workspaces(10**6, 10**8, 10**4, 60, 60, 128, 256, H200, 528)
    assert found["attend"] == 10**6 * 61 * (128 + 2) * 4
    assert found["backward"] == 10**6 * (128 * 8 + 60 * 4 + 60 * 128 * 4)
    how, _, count = cuda.prob_sparse_key_tiles(10**4, 60, 256, H200, 0)
    assert how == "tiles"
    groups, turns = math.ceil(10**8 / 8), cuda.prob_sparse_group_turns(60, count)
    assert found["measure"] == (groups * turns + 1) * 16 * 4 + groups * (count + 1) * 4


def test_a_list_of_samples_keeps_row_and_query(cuda: ModuleType) -> None:
    for row_bytes in (32, 64, 128, 144, 256, 512):
        for row in (0, 1, 7263 * 32 // row_bytes):
            for query in range(9):  # the last belongs to no query
                assert cuda.prob_sparse_list_entry(row, query, row_bytes) == (row * row_bytes, query)


def test_a_turn_of_a_list_holds_its_rows_once(cuda: ModuleType) -> None:
    places = [cuda.prob_sparse_list_place(row) for row in range(64)]
    assert sorted(places) == list(range(64))
    for row, place in enumerate(places):
        assert place // 16 == row // 16
        # A lane reads two adjacent entries: its rows g and g + 8.
        assert place % 2 == row % 16 // 8
        assert place % 16 // 2 == row % 8


def test_lists_have_room_for_whole_turns_of_each_tile(cuda: ModuleType) -> None:
    draw = random.Random(2)
    for _ in range(500):
        samples, tiles = draw.randint(1, 70), draw.randint(2, 40)
        counts = [0] * tiles
        for _ in range(8 * samples):
            counts[min(draw.randrange(tiles), draw.randrange(tiles))] += 1
        assert sum(math.ceil(count / 16) for count in counts) <= cuda.prob_sparse_group_turns(samples, tiles)
    assert cuda.prob_sparse_group_turns(25, 1) == 16, "each query has 32 rows"


def test_radix_passes_find_every_rank(cuda: ModuleType) -> None:
    draw = random.Random(1)
    for top in (3, 2**8, 2**16, 2**32 - 1):
        words = [draw.randint(0, top) for _ in range(300)] + [2**32 - 1, 0, 0]
        for rank in (1, 2, 150, 302, 303):
            assert cuda.prob_sparse_radix_search(words, rank) == sorted(words, reverse=True)[rank - 1]


# Runs in a separate process, for a device with little shared memory: keys staged whole, in tiles, and not at all.
GATHER = """
import json, sys
import torch

from simmst.ops.limits import SHARED_BYTES
from simmst.native.cuda import launch, prob_sparse_attention as native
from simmst.reference import prob_sparse_attention as reference
torch.manual_seed(0)
worst = {}
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for width, keys, samples in ((16, 90, 40), (64, 300, 33), (20, 500, 40), (64, 700, 2), (128, 200, 30)):
        row = launch.module().prob_sparse_padded_width(width) * dtype.itemsize
        how, _, tiles = launch.module().prob_sparse_key_tiles(keys, samples, row, int(sys.argv[1]), 768)
        query, key = torch.randn(2, 45, width).to(dtype), torch.randn(2, keys, width).to(dtype)
        sample = torch.randint(keys, (45, samples))
        top, measure = native.select(query, key, sample, u=20)
        again = native.select(query, key, sample, u=20)
        assert torch.equal(measure, again[1]) and torch.equal(top, again[0])
        exact = reference.select(query.double(), key.double(), sample, u=20)[1]
        plain = reference.select(query, key, sample, u=20)[1]
        order = measure.sort(dim=-1, descending=True, stable=True).indices[..., :20].sort(-1).values
        assert torch.equal(order, top)
        error, allowed = (measure - exact).abs().max(), 2 * (plain - exact).abs().max() + 2e-6 * (1 + exact.abs().max())
        assert error <= allowed, (how, dtype, width, float(error), float(allowed))
        worst[how] = max(worst.get(how, 0), tiles)
print(json.dumps(worst))
"""


def run_emulated(script: str, *arguments: str, **environment: str) -> Any:
    run = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd="/",  # not the sources, which have no compiled modules
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"SIMMST_CUDA_EMULATION": "1"} | environment,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


@pytest.mark.parametrize("seed", ["0", "1"])
def test_the_measure_is_the_same_however_keys_are_gathered(cuda: ModuleType, seed: str) -> None:
    found = run_emulated(GATHER, "12000", SIMMST_CUDA_EMULATION_SHARED_BYTES="12000", SIMMST_CUDA_EMULATION_SEED=seed)
    assert sorted(found) == ["straight", "tiles", "whole"]
    assert found["tiles"] > 4


# One launch, several launches, and the two calls give the same result; in each, a tie goes to the lower index.
FORWARD = """
import json
import torch

from simmst.core.prob_sparse_attention import Options
from simmst.ops.limits import SHARED_BYTES
from simmst.native.cuda import launch, prob_sparse_attention as native
from simmst.reference import prob_sparse_attention as reference
torch.manual_seed(0)
ways = set()
cuda = launch.module()
def launches(*arguments, **options):
    cuda.only_note_launches(True)
    native.forward(*arguments, **options)
    cuda.only_note_launches(False)
    return len(cuda.take_noted_launches())
for dtype in (torch.float32, torch.bfloat16):
    for queries, keys, width, u in ((70, 90, 32, 25), (100, 300, 64, 30), (64, 64, 100, 64), (300, 70, 16, 30)):
        query, key, value = (torch.randn(2, n, width).to(dtype) for n in (queries, keys, keys))
        for sample in (torch.randint(keys, (20,)), torch.randint(keys, (queries, 20))):
            seed = torch.tensor([1, 2])
            for options in (Options(), Options(is_causal=True, dropout_p=0.3), Options(fill="cummean")):
                ways.add(launches(query, key, value, sample, seed, u, options=options) == 1)
                out, lse, top, measure = native.forward(query, key, value, sample, seed, u, options=options)
                order = measure.sort(dim=-1, descending=True, stable=True).indices[..., :u].sort(-1).values
                assert torch.equal(order, top)
                wide = [x.double() for x in (query, key, value)]
                exact, plain = (reference.attend(*x, top, seed, options) for x in (wide, (query, key, value)))
                for a, b, c in zip((out, lse), plain, exact):
                    assert not a.isnan().any()
                    assert (a - c).abs().max() <= 2 * (b - c).abs().max() + 2e-6 * (1 + c.abs().max())
same = torch.ones(1, 50, 16)
for sample in (torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3]).expand(50, 3)):
    assert native.forward(same, same, same, sample, None, 9)[2].tolist() == [list(range(9))]
print(json.dumps(sorted(ways)))
"""


@pytest.mark.parametrize("shared_bytes", ["120000", "232448"])
def test_forward_takes_one_launch_where_there_is_room(cuda: ModuleType, shared_bytes: str) -> None:
    ways = run_emulated(FORWARD, SIMMST_CUDA_EMULATION_SHARED_BYTES=shared_bytes)
    assert ways == [False, True]


# Through the operators, in blocks with no more shared memory than the choice of the backend requires.
LITTLE = """
import json
import sys
import torch

from simmst.ops.limits import SHARED_BYTES
from simmst.ops import prob_sparse_attention
torch.manual_seed(0)
dtype = getattr(torch, sys.argv[1])
for length, width in ((96, 128), (500, 64), (500, 128)):
    for sampling in ("shared", "per_query"):
        x = [torch.randn(1, length, width, dtype=dtype, requires_grad=True) for _ in range(3)]
        prob_sparse_attention(*x, sampling=sampling, backend="cuda").float().sum().backward()
        assert all(tensor.grad.isfinite().all() for tensor in x)
print(json.dumps(True))
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernels_need_no_more_shared_memory_than_is_asked_for(cuda: ModuleType, dtype: str) -> None:
    needed = SHARED_BYTES["cuda"]["prob_sparse_attention"].get(getattr(torch, dtype), 99 * 1024)
    assert run_emulated(LITTLE, dtype, SIMMST_CUDA_EMULATION_SHARED_BYTES=str(needed))


# Many multiprocessors cut the keys into more spans; 166912 bytes is what a block has on compute capability 8.0.
SPANS = """
import json
import torch

from simmst.core.prob_sparse_attention import Options
from simmst.ops.limits import SHARED_BYTES
from simmst.native.cuda import prob_sparse_attention as native
from simmst.reference import prob_sparse_attention as reference
torch.manual_seed(0)
for queries, keys, u, width in ((700, 600, 40, 24), (300, 900, 70, 16), (900, 300, 20, 30), (90, 300, 40, 128)):
    tensors = [torch.randn(1, n, width) for n in (queries, keys, keys)]
    top = torch.rand(1, queries).argsort(-1)[:, :u]
    for options in (Options(), Options(is_causal=True), Options(fill="cummean", is_causal=True)):
        results = []
        for module in (native, reference):
            out, lse = module.attend(*tensors, top, options=options)
            results.append([out, lse, *module.attend_backward(out.cos(), *tensors, top, out, lse, options=options)])
        for a, b in zip(*results):
            assert (a - b).abs().max() <= 2e-5 * (1 + b.abs().max()), (queries, keys, options)
print(json.dumps(True))
"""


@pytest.mark.parametrize("multiprocessors", ["1", "132"])
def test_spans_add_up_to_the_whole(cuda: ModuleType, multiprocessors: str) -> None:
    assert run_emulated(
        SPANS, SIMMST_CUDA_EMULATION_MULTIPROCESSORS=multiprocessors, SIMMST_CUDA_EMULATION_SHARED_BYTES="166912"
    )


def test_wrong_arguments_are_refused_in_words(cuda: ModuleType) -> None:
    def array(shape: tuple[int, ...], dtype: int = 0) -> tuple[Any, ...]:
        return dtype, torch.Size(shape), torch.empty(shape, device="meta").stride(), -1

    def attend(query: Any, key: Any, value: Any, top: Any, fill: int = 0, dropout_p: float = 0.0) -> None:
        out, u = array((*query[1][:-1], value[1][-1])), top[1][-1]
        cuda.prob_sparse_attend(query, key, value, top, out, (False, 1.0, fill, dropout_p), u, -1)

    good = array((2, 5, 4)), array((2, 6, 4)), array((2, 6, 4)), array((2, 3), 5)
    for bad, text in (
        ((array((5,)), *good[1:]), "query float32 .5. must have at least two dimensions"),
        ((good[0], array((2, 6, 3)), *good[2:]), "key float32 .2, 6, 3. must have any rows and 4 columns"),
        ((good[0], array((3, 6, 4)), *good[2:]), "leading sizes of query"),
        ((good[0], array((2, 6, 4), 3), *good[2:]), "key float16 .* must hold one of float32"),
        ((*good[:3], array((2, 6), 5)), "top must have at most 5 columns"),
        ((*good[:3], array((1, 3), 5)), "must have 2 rows of 3"),
        ((array((1, 2, 130)), array((1, 2, 130)), array((1, 2, 4)), array((1, 1), 5)), "at most 128 columns, got 130"),
        ((*good, 3), "fill must be a code from 0 to 2, got 3"),
        ((*good, 0, 1.0), "dropout_p must be at least 0 and less than 1, got 1"),
    ):
        with pytest.raises((TypeError, ValueError), match=text):
            attend(*bad)


OPERATOR = """
import torch

from simmst.ops.limits import SHARED_BYTES
from simmst.ops import prob_sparse_attention
x = [torch.randn(2, n, 16, requires_grad=True) for n in (60, 70, 70)]
sample, seed = torch.randint(70, (20,)), torch.tensor([1, 2])
options = (seed, 25, "keys", True, 0.25, "cumsum", 0.3, "cuda")
torch.library.opcheck(torch.ops.simmst.prob_sparse_forward.default, (*x, sample, *options))
out, aux = prob_sparse_attention(*x, sample=sample, backend="cuda", return_aux=True)
assert aux.measure.shape == (2, 60) and not aux.lse.requires_grad
try:
    torch.autograd.grad(out.sum(), x, create_graph=True)[0].sum().backward()
except RuntimeError as error:
    assert "first derivatives" in str(error)
else:
    raise AssertionError("a second derivative was made")
print("true")
"""


def test_the_operator_that_does_both_at_once(cuda: ModuleType) -> None:
    assert run_emulated(OPERATOR)
