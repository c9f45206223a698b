"""Spatial attention in Triton: the functions of ``simmst.reference.spatial_attention``. Not run on a GPU yet."""

from __future__ import annotations

import torch
import triton
from simmst.kernels import spatial_attention_long as long
from simmst.kernels.spatial_attention_backward import fused_backward, reduce_partials
from simmst.kernels.spatial_attention_forward import fused_forward
from simmst.kernels.spatial_attention_sizes import (
    Sizes,
    contiguous,
    empty_maps,
    is_fused,
    matrices,
    programs,
    sizes,
)
from simmst.kernels.spatial_attention_tiles import LOG2_E
from torch import Tensor

Gradients = tuple[
    Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None
]


def forward(
    x: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    key_padding_mask: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    *,
    num_heads: int,
    residual: bool,
    eps: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return the output and lse, as ``simmst.reference.spatial_attention.forward``.

    Example:
        ``out, lse = forward(x, *weights, None, None, None, num_heads=4, residual=True, eps=1e-5, scale=0.25)``
    """
    size = sizes(x, num_heads)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    lse = torch.empty((size.maps, num_heads, size.positions), dtype=torch.float32, device=x.device)
    if x.numel() == 0:
        return out, lse
    weights = in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias
    w_in, b_in, w_out, b_out = (contiguous(weight) for weight in weights)
    mask, empty = empty_maps(key_padding_mask)
    last = contiguous(norm_weight), contiguous(norm_bias)
    with torch.cuda.device_of(x):
        if is_fused(size, x.device):
            _launch_forward(size, x, (w_in, b_in, w_out, b_out, mask, empty, *last), out, lse, residual, eps, scale)
        else:
            given = long.Given(x, w_in, b_in, w_out, b_out, mask, empty, *last, residual, eps, scale)  # type: ignore[arg-type]
            long.forward(size, given, out, lse)
    return out, lse


def _launch_forward(
    size: Sizes,
    x: Tensor,
    weights: tuple[Tensor | None, ...],
    out: Tensor,
    lse: Tensor,
    residual: bool,
    eps: float,
    scale: float,
) -> None:
    chosen = size.configuration("forward")
    is_resident = size.positions <= min(chosen.constants["BLOCK_M"], chosen.constants["BLOCK_N"])
    if is_resident:
        count, stage = size.maps, None
    else:
        count = programs(size.maps, chosen.num_warps, x.device)
        stage = torch.empty((count, 4, size.positions, size.channels), dtype=x.dtype, device=x.device)
    tokens, results = matrices(x), matrices(out)
    fused_forward[(count,)](
        tokens.tensor,
        *weights,
        out,
        lse,
        stage,
        size.maps,
        size.positions,
        tokens.batch,
        tokens.row,
        tokens.column,
        results.row,
        results.column,
        scale * LOG2_E,
        eps,
        HEADS=size.heads,
        WIDTH=size.width,
        RESIDUAL=residual,
        RESIDENT=is_resident,
        PRECISION=size.precision,
        BLOCK_C=size.block_c,
        BLOCK_D=size.block_d,
        CHUNK=size.chunk,
        **chosen.launch(),
    )


def backward(
    grad: Tensor,
    x: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    key_padding_mask: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    lse: Tensor,
    *,
    num_heads: int,
    residual: bool,
    eps: float,
    scale: float,
    output_mask: list[bool],
) -> Gradients:
    """Return the gradients wanted, as ``simmst.reference.spatial_attention.backward``.

    Example:
        ``grads = backward(grad, x, *weights, None, None, None, lse, **options, output_mask=[True] * 7)``
    """
    given = x, in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, norm_weight, norm_bias
    found = [
        torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) if want and tensor is not None else None
        for tensor, want in zip(given, output_mask, strict=True)
    ]
    if x.numel() == 0:
        found = [None if gradient is None else gradient.zero_() for gradient in found]
    elif any(gradient is not None for gradient in found):
        size = sizes(x, num_heads)
        mask, empty = empty_maps(key_padding_mask)
        weights = in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias
        w_in, b_in, w_out, b_out = (contiguous(weight) for weight in weights)
        last = contiguous(norm_weight), contiguous(norm_bias)
        lse = lse.contiguous()
        everything = long.Given(x, w_in, b_in, w_out, b_out, mask, empty, *last, residual, eps, scale)  # type: ignore[arg-type]
        with torch.cuda.device_of(x):
            if is_fused(size, x.device):
                _launch_backward(size, grad, everything, lse, found)
            else:
                long.backward(size, grad, everything, lse, found)
    return found[0], found[1], found[2], found[3], found[4], found[5], found[6]


def _launch_backward(size: Sizes, grad: Tensor, given: long.Given, lse: Tensor, found: list[Tensor | None]) -> None:
    chosen = size.configuration("backward")
    x = given.x
    count = programs(size.maps, chosen.num_warps, x.device)
    area = size.positions * size.channels
    f32 = {"dtype": torch.float32, "device": x.device}
    stage = torch.empty((count, 7, area), dtype=x.dtype, device=x.device)
    partials = None
    if any(gradient is not None for gradient in found[1:]):
        partials = torch.empty((count, (4 * size.channels + 6) * size.channels), **f32)
    tokens, grads = matrices(x), matrices(grad)
    # Laid out as its result will be: contiguous in the shape of x.
    target = matrices(torch.empty(x.shape, dtype=x.dtype, device="meta"))
    fused_backward[(count,)](
        grads.tensor,
        tokens.tensor,
        given.w_in,
        given.b_in,
        given.w_out,
        given.b_out,
        given.mask,
        given.empty,
        given.w_norm,
        lse,
        stage,
        torch.empty((count, area), **f32),
        torch.empty((count, 2, size.heads, size.positions), **f32),
        partials,
        found[0],
        size.maps,
        size.positions,
        grads.batch,
        grads.row,
        grads.column,
        tokens.batch,
        tokens.row,
        tokens.column,
        target.row,
        target.column,
        given.scale * LOG2_E,
        given.scale,
        given.eps,
        HEADS=size.heads,
        WIDTH=size.width,
        RESIDUAL=given.residual,
        PRECISION=size.precision,
        BLOCK_C=size.block_c,
        BLOCK_D=size.block_d,
        CHUNK=size.chunk,
        **chosen.launch(),
    )
    if partials is not None:
        chosen = size.configuration("reduce")
        blocks = triton.cdiv(3 * size.channels**2, chosen.constants["BLOCK_N"])
        wanted = found[1], found[3], found[2], found[4], found[5], found[6]
        reduce_partials[(blocks, 6)](partials, *wanted, count, size.channels, **chosen.launch())
