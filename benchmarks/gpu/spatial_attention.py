"""Spatial attention on a GPU: 1024 maps of 64 channels, 4 heads, residual and LayerNorm."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from gpu.work import Work, first_words, pick
from harness.checks import excess
from simmst.ops import spatial_attention

CHANNELS, HEADS = 64, 4
CHECKED = 8  # maps that are compared with float64
NAMES = ("in_proj_weight", "in_proj_bias", "out_proj_weight", "out_proj_bias", "norm_weight", "norm_bias")


def layer(device: torch.device, scale: str, positions: int, *, backward: bool) -> Work:
    """Compare with the same layer built from PyTorch's operators, both on tokens (B, N, C)."""
    maps, positions = pick(scale, 1024, 3), pick(scale, positions, 25)
    # Triton's interpreter computes bfloat16 products wrongly.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float16
    generator = torch.Generator(device).manual_seed(positions)

    def draw(*shape: int, width: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, device=device) * width).to(dtype)

    x, gradient = draw(maps, positions, CHANNELS), draw(maps, positions, CHANNELS)
    weights = [draw(3 * CHANNELS, CHANNELS, width=0.125), draw(3 * CHANNELS), draw(CHANNELS, CHANNELS, width=0.125)]
    weights += [draw(CHANNELS), draw(CHANNELS), draw(CHANNELS)]
    if backward:
        for tensor in (x, *weights):
            tensor.requires_grad_()

    def ours(backend: str, x: Tensor = x) -> Tensor:
        in_proj, in_bias, out_proj, out_bias, scale, shift = weights
        options = {"num_heads": HEADS, "residual": True, "norm_weight": scale, "norm_bias": shift, "backend": backend}
        return spatial_attention(x, in_proj, in_bias, out_proj, out_bias, **options)

    def gradients(out: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, leaves, gradient[: len(out)].to(out.dtype))

    def results(backend: str) -> tuple[Tensor, ...]:
        return gradients(ours(backend), x, *weights) if backward else (ours(backend),)

    def peer() -> object:
        return gradients(_chain(x, *weights), x, *weights) if backward else _chain(x, *weights)

    def complaint(backend: str) -> str:
        few = x.detach()[:CHECKED]
        plain, exact = ([tensor.detach().to(kind) for tensor in (few, *weights)] for kind in (dtype, torch.float64))
        if not backward:
            return excess("the output", results(backend)[0][:CHECKED], _chain(*plain), _chain(*exact))
        # The gradient of one map needs no other map, but those of the weights need all maps. The check therefore calls
        # with few maps.
        first = few.clone().requires_grad_()
        ours_few = gradients(ours(backend, first), first, *weights)
        sides = []
        for leaves in (plain, exact):
            attached = [leaf.requires_grad_() for leaf in leaves]
            sides.append(gradients(_chain(*attached), *attached))
        compared = zip(("x", *NAMES), ours_few, *sides, strict=True)
        return first_words(
            excess("the gradient of x", results(backend)[0][:CHECKED], sides[0][0], sides[1][0]),
            *(excess(f"the gradient of {name}", *three) for name, *three in compared),
        )

    timed = results if backward else ours
    moved, flops = _counts(x, backward=backward)
    return Work(timed, peer, results, complaint, moved, flops, dtype)


def _chain(x: Tensor, *weights: Tensor) -> Tensor:
    in_proj, in_bias, out_proj, out_bias, scale, shift = weights
    packed = F.linear(x, in_proj, in_bias).unflatten(-1, (3, HEADS, CHANNELS // HEADS))
    query, key, value = packed.permute(2, 0, 3, 1, 4)
    heads = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    return F.layer_norm(F.linear(heads, out_proj, out_bias) + x, (CHANNELS,), scale, shift)


def _counts(x: Tensor, *, backward: bool) -> tuple[float, float]:
    """Return the bytes of x and tensors of its size, and the operations of the products.

    Backward has two products for each linear layer, and five for the two of attention.
    """
    maps, positions, _ = x.shape
    linear, scores = 8.0 * positions * CHANNELS**2, 4.0 * positions**2 * CHANNELS
    flops = linear + scores + (2.0 * linear + 2.5 * scores if backward else 0.0)
    return float((5 if backward else 2) * x.nbytes), maps * flops
