"""ProbSparse attention on a GPU: 64 heads of width 64, factor 5."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu.work import Work, first_words, pick
from harness.checks import excess
from simmst.core.prob_sparse_attention import informer_count
from simmst.ops import prob_sparse_attend, prob_sparse_attention, prob_sparse_select

FACTOR, WIDTH = 5, 64
CHECKED = 2  # heads that are compared with float64


class _Inputs(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor
    sample: Tensor

    @classmethod
    def draw(cls, device: torch.device, scale: str, length: int, sampling: str) -> _Inputs:
        heads, length = pick(scale, 8, 2), pick(scale, length, 40)
        generator = torch.Generator(device).manual_seed(length)
        shape = (heads, heads, length, WIDTH)
        tensors = [torch.randn(shape, generator=generator, device=device).to(_dtype(device)) for _ in range(3)]
        samples = informer_count(length, FACTOR)
        rows = (length, samples) if sampling == "per_query" else (samples,)
        return cls(*tensors, torch.randint(length, rows, generator=generator, device=device))

    def counts(self, sides: int) -> tuple[float, float]:
        """Return the bytes of `sides` tensors as large as the query, and the operations of the forward pass."""
        heads, length = self.query.shape[0] * self.query.shape[1], self.query.shape[2]
        selected, samples = informer_count(length, FACTOR), self.sample.shape[-1]
        flops = heads * length * WIDTH * (2.0 * samples + 4.0 * selected + 1.0)
        return float(sides * self.query.nbytes), flops

    def few(self) -> list[Tensor]:
        """Return query, key and value of the heads that are checked."""
        return [tensor[0, :CHECKED] for tensor in self[:3]]


def _dtype(device: torch.device) -> torch.dtype:
    # Triton's interpreter computes bfloat16 products wrongly.
    return torch.bfloat16 if device.type == "cuda" else torch.float16


def forward(device: torch.device, scale: str, length: int, sampling: str, *, flash: bool) -> Work:
    """Compare with full attention, or with the same attention in plain PyTorch."""
    inputs = _Inputs.draw(device, scale, length, sampling)

    def ours(backend: str) -> Tensor:
        out: Tensor = prob_sparse_attention(*inputs[:3], sample=inputs.sample, factor=FACTOR, backend=backend)
        return out

    def results(backend: str) -> list[Tensor]:
        out, aux = prob_sparse_attention(
            *inputs[:3], sample=inputs.sample, factor=FACTOR, return_aux=True, backend=backend
        )
        return [out, *aux]

    def peer() -> Tensor:
        return _full_attention(*inputs[:3]) if flash else ours("reference")

    def complaint(backend: str) -> str:
        out, top, _, measure = (result[0, :CHECKED] for result in results(backend))
        query, key, value = inputs.few()
        u = top.shape[-1]
        plain = prob_sparse_select(query, key, inputs.sample, u=u, backend="reference")[1]
        exact = prob_sparse_select(query.double(), key.double(), inputs.sample, u=u, backend="reference")[1]
        wanted = measure.sort(dim=-1, descending=True, stable=True)[1][..., :u].sort()[0]
        return first_words(
            excess("the measure", measure, plain, exact),
            "" if torch.equal(wanted, top) else "the selected queries are not those with the largest measure",
            excess("the output", out, *_attended(query, key, value, top)),
        )

    return Work(ours, peer, results, complaint, *inputs.counts(4), inputs.query.dtype)


def forward_and_backward(device: torch.device, scale: str, length: int) -> Work:
    inputs = _Inputs.draw(device, scale, length, "shared")
    leaves = [tensor.requires_grad_() for tensor in inputs[:3]]
    gradient = torch.randn(inputs.query.shape, device=device).to(inputs.query.dtype)

    def ours(backend: str) -> tuple[Tensor, ...]:
        out = prob_sparse_attention(*leaves, sample=inputs.sample, factor=FACTOR, backend=backend)
        return torch.autograd.grad(out, leaves, gradient)

    def peer() -> tuple[Tensor, ...]:
        return torch.autograd.grad(_full_attention(*leaves), leaves, gradient)

    def complaint(backend: str) -> str:
        with torch.no_grad():
            sample = inputs.sample
            top = prob_sparse_attention(*leaves, sample=sample, factor=FACTOR, return_aux=True, backend=backend)[1].top
        grads = []
        for dtype in (inputs.query.dtype, torch.float64):
            few = [part.detach().to(dtype).requires_grad_() for part in inputs.few()]
            out = prob_sparse_attend(*few, top[0, :CHECKED], backend="reference")[0]
            grads.append(torch.autograd.grad(out, few, gradient[0, :CHECKED].to(out.dtype)))
        found = [grad[0, :CHECKED] for grad in ours(backend)]
        names = ("query", "key", "value")
        compared = zip(names, found, *grads, strict=True)
        return first_words(*(excess(f"the gradient of {name}", *three) for name, *three in compared))

    moved, flops = inputs.counts(12)
    # Five products instead of two; the measure is not differentiated.
    heads, selected = inputs.query.shape[0] * inputs.query.shape[1], informer_count(inputs.query.shape[2], FACTOR)
    flops += 10.0 * heads * inputs.query.shape[2] * WIDTH * selected
    return Work(ours, peer, ours, complaint, moved, flops, inputs.query.dtype)


def _attended(query: Tensor, key: Tensor, value: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """Return attention with a given selection in plain PyTorch: at the inputs' precision and in float64."""
    plain = prob_sparse_attend(query, key, value, top, backend="reference")[0]
    return plain, prob_sparse_attend(query.double(), key.double(), value.double(), top, backend="reference")[0]


def _full_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    if not query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(query, key, value)
