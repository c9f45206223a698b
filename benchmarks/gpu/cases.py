"""The cases of the GPU benchmarks: the sides of each comparison, the work, and the ratio to reach.

The sizes suit a large GPU. `scale="tiny"` draws the same work small enough for a CPU, Triton's interpreter or a
sanitizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from gpu.work import Work

# Only the functions that build a case import simmst, because the list is read before simmst is installed.


class Case(NamedTuple):
    """One line of the table per backend of ours."""

    name: str
    operator: str
    dtype: torch.dtype
    size: int  # determines the bucket of the measured choice
    peer: str
    floors: Mapping[str, float]  # backend -> ratio of the peer's time to ours; without one, the case is only reported
    build: Callable[[torch.device, str], Work]
    shares: Mapping[str, float] = {}  # backend -> share of the copy bandwidth to reach
    cold: bool = False  # the cache is overwritten before each call


SPARSE, SPATIAL, PLANES = "prob_sparse_attention", "spatial_attention", "cutting_plane"
FLASH, PLAIN, CHAIN = "SDPA (Flash)", "plain-torch ProbSparse", "linear + SDPA + linear + residual + LayerNorm"
GEMV = "torch, two GEMV and the update"
BF16 = torch.bfloat16


def _sparse_forward(length: int, sampling: str, peer: str, **floors: float) -> Case:
    name = f"ProbSparse forward, {sampling.replace('_', '-')} samples, L={length}"

    def build(device: torch.device, scale: str) -> Work:
        from gpu import prob_sparse_attention

        return prob_sparse_attention.forward(device, scale, length, sampling, flash=peer == FLASH)

    return Case(name, SPARSE, BF16, length, peer, floors, build)


def _sparse_both(length: int, **floors: float) -> Case:
    def build(device: torch.device, scale: str) -> Work:
        from gpu import prob_sparse_attention

        return prob_sparse_attention.forward_and_backward(device, scale, length)

    return Case(
        f"ProbSparse forward + backward, shared samples, L={length}", SPARSE, BF16, length, FLASH, floors, build
    )


def _spatial(positions: int, direction: str, **floors: float) -> Case:
    backward = direction == "forward + backward"

    def build(device: torch.device, scale: str) -> Work:
        from gpu import spatial_attention

        return spatial_attention.layer(device, scale, positions, backward=backward)

    return Case(f"spatial {direction}, 1024 maps, N={positions}", SPATIAL, BF16, positions, CHAIN, floors, build)


def _step(stored: str, share: tuple[float, float] | None, **floors: float) -> Case:
    def build(device: torch.device, scale: str) -> Work:
        from gpu import cutting_plane

        return cutting_plane.step(device, scale, stored)

    shares = {} if share is None else dict(zip(("triton", "cuda"), share, strict=True))
    dtype = BF16 if stored == "bfloat16" else torch.float32
    return Case(f"plane step, L=64, N=1e7, {stored}", PLANES, dtype, 10**7, GEMV, floors, build, shares, cold=True)


CASES: tuple[Case, ...] = (
    _sparse_forward(96, "per_query", FLASH, cuda=0.8),
    _sparse_forward(336, "per_query", FLASH, cuda=1.0),
    _sparse_forward(96, "shared", FLASH, cuda=0.8),
    _sparse_forward(336, "shared", FLASH, cuda=1.0),
    _sparse_forward(720, "shared", FLASH, triton=1.2, cuda=1.4),
    _sparse_forward(4096, "shared", FLASH, triton=10.0, cuda=14.0),
    _sparse_forward(16384, "shared", FLASH, triton=50.0, cuda=70.0),
    _sparse_forward(720, "per_query", FLASH, cuda=1.0),
    _sparse_forward(4096, "per_query", FLASH, triton=2.0, cuda=5.0),
    _sparse_forward(16384, "per_query", FLASH, triton=6.0, cuda=8.0),
    _sparse_both(336, cuda=1.0),
    _sparse_both(720, triton=1.8, cuda=2.2),
    _sparse_both(4096, triton=15.0, cuda=20.0),
    _sparse_forward(96, "per_query", PLAIN, triton=10.0),
    _sparse_forward(720, "per_query", PLAIN, triton=10.0),
    _sparse_forward(4096, "per_query", PLAIN, triton=10.0),
    _spatial(121, "forward", triton=3.0, cuda=3.5),
    _spatial(225, "forward", triton=2.5, cuda=3.0),
    _spatial(400, "forward", triton=2.0, cuda=2.3),
    _spatial(121, "forward + backward", triton=2.0),
    _spatial(225, "forward + backward", triton=1.8),
    _spatial(400, "forward + backward", triton=1.5),
    _step("float32", (0.80, 0.85), triton=1.8, cuda=1.9),
    _step("bfloat16", (0.80, 0.85), triton=3.3, cuda=3.5),
    _step("signs", None, triton=8.0, cuda=12.0),
)


def chosen(pattern: str) -> tuple[Case, ...]:
    """Return the cases whose name contains the pattern, in any case of letters.

    Raises:
        ValueError: If no case does.
    """
    found = tuple(case for case in CASES if pattern.lower() in case.name.lower())
    if not found:
        names = "; ".join(case.name for case in CASES)
        raise ValueError(f"no case has {pattern!r} in its name; the cases are: {names}")
    return found
