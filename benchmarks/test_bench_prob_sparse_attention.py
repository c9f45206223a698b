"""ProbSparse attention in C++ against full attention and the public ProbSparse implementations.

    pytest benchmarks/test_bench_prob_sparse_attention.py -s

64 heads of width 64, factor 5, samples per query, one thread. ``SIMMST_BENCH_ROUNDS`` multiplies the rounds (1).
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from simmst.ops import prob_sparse_attention
from simmst.ops.prob_sparse_counts import informer_count
from simmst.reference import prob_sparse_attention as reference

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark comes with the bench extra")
pytest.importorskip("simmst._cpu", reason="the compiled module is not installed")

sys.path.insert(0, str(Path(__file__).parent))
from harness import Row, record, show, time_in_turn

WIDTH, FACTOR = 64, 5
ROUNDS = {96: 60, 336: 20, 720: 9, 4096: 2}
FORWARD = {96: 1.2, 336: 3.5, 720: 7.0, 4096: 25.0}
FORWARD_BFLOAT16 = {336: 1.5, 720: 3.0, 4096: 8.0}
BOTH_WAYS = {336: 2.5, 720: 5.0, 4096: 20.0}
TABLE: list[str] = []


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    show(TABLE)
    torch.set_num_threads(before)


class Work(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor
    sample: Tensor

    @classmethod
    def draw(cls, length: int, dtype: torch.dtype = torch.float32) -> Work:
        torch.manual_seed(length)
        tensors = [torch.randn(8, 8, length, WIDTH).to(dtype) for _ in range(3)]
        return cls(*tensors, torch.randint(length, (length, informer_count(length, FACTOR))))

    def run(self) -> Tensor:
        return prob_sparse_attention(self.query, self.key, self.value, sample=self.sample, factor=FACTOR, backend="cpp")

    def counts(self) -> tuple[float, float]:
        """Bytes that must move and operations that must be done, forward."""
        heads, length, size = 64, self.query.shape[-2], self.query.element_size()
        selected, samples = informer_count(length, FACTOR), self.sample.shape[-1]
        flops = 2 * length * WIDTH * (samples + 2 * selected) + length * WIDTH
        return 4.0 * heads * length * WIDTH * size, float(heads * flops)

    def check(self) -> None:
        """The result on two heads against the reference in float64, with the selection that was made."""
        query, key, value = (x[0, :2] for x in self[:3])
        out, aux = prob_sparse_attention(
            query, key, value, sample=self.sample, factor=FACTOR, return_aux=True, backend="cpp"
        )
        exact = [x.double() for x in (query, key, value)]
        tolerance = 1e-4 if query.dtype == torch.float32 else 2e-2
        measure = reference.select(*exact[:2], self.sample, u=1)[1]
        torch.testing.assert_close(aux.measure.double(), measure, rtol=0, atol=1e-3)
        torch.testing.assert_close(out.double(), reference.attend(*exact, aux.top)[0], rtol=0, atol=tolerance)
        assert torch.equal(self.run()[0, :2], out)


def rounds(length: int) -> int:
    return max(2, round(ROUNDS[length] * float(os.environ.get("SIMMST_BENCH_ROUNDS", "1"))))


@pytest.mark.parametrize("length", FORWARD)
def test_forward_float32_against_full_attention(benchmark: Any, length: int) -> None:
    _forward(benchmark, length, torch.float32, FORWARD[length])


@pytest.mark.parametrize("length", FORWARD_BFLOAT16)
def test_forward_bfloat16_against_full_attention_in_bfloat16(benchmark: Any, length: int) -> None:
    _forward(benchmark, length, torch.bfloat16, FORWARD_BFLOAT16[length])


def _forward(benchmark: Any, length: int, dtype: torch.dtype, floor: float) -> None:
    work = Work.draw(length, dtype)
    work.check()

    def peer() -> Tensor:
        return F.scaled_dot_product_attention(work.query, work.key, work.value)

    with torch.no_grad():
        medians = time_in_turn(work.run, peer, rounds=rounds(length))
        benchmark.pedantic(work.run, rounds=1)
    name = f"forward {str(dtype).removeprefix('torch.')} L={length} vs SDPA"
    record(benchmark, Row(name, medians, floor, *work.counts(), dtype), TABLE)


@pytest.mark.parametrize("length", BOTH_WAYS)
def test_forward_and_backward_float32_against_full_attention(benchmark: Any, length: int) -> None:
    work = Work.draw(length)
    work.check()
    grad = torch.randn_like(work.query)
    leaves = [x.clone().requires_grad_() for x in work[:3]]
    learning = Work(*leaves, work.sample)

    def ours() -> None:
        torch.autograd.grad(learning.run(), leaves, grad)

    def peer() -> None:
        torch.autograd.grad(F.scaled_dot_product_attention(*leaves), leaves, grad)

    medians = time_in_turn(ours, peer, rounds=rounds(length))
    benchmark.pedantic(ours, rounds=1)
    moved, flops = work.counts()
    # Backward reads q, k, v, out, dO and writes three gradients; five products take the place of two.
    selected = informer_count(length, FACTOR)
    row = Row(
        f"forward+backward float32 L={length} vs SDPA",
        medians,
        BOTH_WAYS[length],
        moved * 3,
        flops + 64 * 10.0 * length * WIDTH * selected,
    )
    record(benchmark, row, TABLE)


@pytest.mark.parametrize("length", FORWARD)
def test_forward_float32_against_neuralforecast(benchmark: Any, length: int) -> None:
    if importlib.util.find_spec("neuralforecast") is None:
        pytest.skip("neuralforecast is not installed (extra 'nixtla')")
    from neuralforecast.models.informer import ProbAttention

    work = Work.draw(length)
    work.check()
    layer = ProbAttention(mask_flag=False, factor=FACTOR, attention_dropout=0.0).eval()
    query, key, value = (x.transpose(1, 2) for x in work[:3])  # it wants (B, L, H, D)

    def peer() -> Any:
        return layer(queries=query, keys=key, values=value, attn_mask=None, tau=None, delta=None)

    with torch.no_grad():
        medians = time_in_turn(work.run, peer, rounds=max(2, rounds(length) // 4))
        benchmark.pedantic(work.run, rounds=1)
    record(benchmark, Row(f"forward float32 L={length} vs neuralforecast", medians, 20.0, *work.counts()), TABLE)


def test_overhead_of_a_tiny_call(benchmark: Any) -> None:
    query, key, value = torch.randn(3, 1, 1, 8, 8)
    work = Work(query, key, value, torch.randint(8, (8, 8)))

    def peer() -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)

    with torch.no_grad():
        medians = time_in_turn(work.run, peer, rounds=40, calls=200)
        benchmark.pedantic(work.run, rounds=1)
    record(benchmark, Row("tiny call, no gradient, vs SDPA", medians, 0.5), TABLE)


_MEMORY = """
import resource, torch
torch.set_num_threads(1)
from simmst.ops import prob_sparse_attention
query = key = value = torch.randn(64, 4096, 64)
sample = torch.randint(4096, (4096, 45))
with torch.no_grad():
    prob_sparse_attention(query[:1], key[:1], value[:1], sample=sample, backend="cpp")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out = prob_sparse_attention(query, key, value, sample=sample, backend="cpp")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024 - out.numel() * out.element_size())
"""


def test_extra_memory_at_4096_is_under_64_mb(benchmark: Any) -> None:
    run = subprocess.run([sys.executable, "-c", _MEMORY], capture_output=True, text=True, check=True)
    extra = float(run.stdout)
    benchmark.extra_info["extra_bytes"] = extra
    benchmark.pedantic(lambda: None, rounds=1)
    assert extra < 64e6
