"""The fused step over cutting planes on a GPU: 64 planes of ten million columns, SGD."""

from __future__ import annotations

import torch
from torch import Tensor

from gpu.work import Work, first_words, pick
from harness.checks import excess
from simmst.core.cutting_plane import PackedSigns, Planes, pack_signs
from simmst.ops import cutting_plane_step_

PLANES, LR = 64, 1e-3


def step(device: torch.device, scale: str, stored: str) -> Work:
    """Compare with two products and the update in float32, whatever ours stores."""
    size = pick(scale, 10_000_000, 1000)
    generator = torch.Generator(device).manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    matrix, coefficients = draw(PLANES, size), draw(PLANES).abs()
    gradient, anchor, values = draw(size), draw(size), draw(PLANES)
    planes: Planes = pack_signs(matrix) if stored == "signs" else matrix.to(getattr(torch, stored))
    state = {"ours": anchor.clone(), "peer": anchor.clone()}

    def ours(backend: str, point: Tensor | None = None) -> Tensor:
        point = state["ours"] if point is None else point
        return cutting_plane_step_(planes, coefficients, gradient, point, anchor, values, lr=LR, backend=backend)

    def peer() -> Tensor:
        direction = torch.addmv(gradient, matrix.T, coefficients)
        state["peer"].add_(direction, alpha=-LR)
        return torch.addmv(values, matrix, state["peer"] - anchor)

    def results(backend: str) -> tuple[Tensor, ...]:
        point = anchor.clone()
        return ours(backend, point), point

    def complaint(backend: str) -> str:
        found = results(backend)
        rows = planes.unpack() if isinstance(planes, PackedSigns) else planes
        inputs = rows, coefficients, gradient, anchor, values
        sides = [_plainly(*inputs, dtype) for dtype in (torch.float32, torch.float64)]
        compared = zip(("the values", "the point"), found, *sides, strict=True)
        return first_words(*(excess(name, *three) for name, *three in compared))

    held = planes.bits.nbytes + planes.scale.nbytes if isinstance(planes, PackedSigns) else planes.nbytes
    # Gradient, anchor and point are each read once, and the point is written once.
    return Work(ours, peer, results, complaint, float(held + 4 * anchor.nbytes), 4.0 * PLANES * size, torch.float32)


def _plainly(
    rows: Tensor, coefficients: Tensor, gradient: Tensor, anchor: Tensor, values: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return values and point of one step in plain PyTorch, row by row, so that no planes are held in float64."""
    start = anchor.to(dtype)
    direction = gradient.to(dtype)
    for row, coefficient in zip(rows, coefficients.to(dtype), strict=True):
        direction = direction + coefficient * row.to(dtype)
    point = start - LR * direction
    moved = torch.stack([row.to(dtype) @ (point - start) for row in rows])
    return values.to(dtype) + moved, point
