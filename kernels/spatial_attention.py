"""Spatial attention in Triton, with the functions of ``simmst.reference.spatial_attention``.

With up to 512 positions, 128 channels and heads of 64, one program computes a map. It writes [X Q K V] to its own
stage, which the second-level cache holds. It goes through tiles of queries and heads with scores and softmax in
registers, adds up the heads' shares of the output projection in registers, and finishes with bias, residual and
LayerNorm. A map of one tile (N <= 128) needs no stage. There are as many programs as run at a time, and each takes one
map after another, so there is one stage, and one partial sum of the weights' gradients, per program and not per map.
``spatial_attention_long`` computes all other maps.

The table counts 1024 maps of C = 64 in 4 heads, bfloat16, in units of B N C elements (U), against linear, SDPA, linear,
addition and LayerNorm under autograd. It leaves out the stage, which is meant to stay in cache:

                      memory      launches   exponentials   products in the attention (times 2 B N N C flops)
    forward           2 U         1          1 B h N N      2
    chain             18 U        6 or more  1              2, 4 as FlashAttention computes with D >= 32
    backward          3 U         2          2              7
    chain             about 40 U  15 or more 1              5, 10

    N                 121       225       400
    U                 15.9 MB   29.5 MB   52.4 MB
    scores, padded    67e6      268e6     822e6    tiles of 64
    stage, forward    -         30 MB     54 MB    264 programs, 4 U each of one map; 50 MB is the cache
    stage, backward   37 MB     68 MB     122 MB   [X Q K V O dY dO] and dQ in float32; what exceeds the cache leaves it

An H200 (132 multiprocessors at 1.7 GHz) computes 16 exponentials per clock on each of them. The forward pass takes at
least 0.019, 0.075 and 0.23 ms for exponentials and 0.007, 0.014 and 0.024 ms for memory; the chain takes 0.07, 0.12 and
0.22 ms for memory alone, before its attention. So exponentials limit these kernels and memory limits the chain: the
longer the maps, the smaller the gain. Keeping only x and lse costs three sets of exponentials instead of two, for
forward and backward together.

Compiled for sm_80 and sm_90, the forward kernels spill nothing, and the backward kernel spills up to 750 bytes per
thread between its phases. On sm_100 they spill up to 170 and 1,090 bytes in the chosen configurations
(tests/kernels/resources.json holds every figure).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from simmst.core.spatial_attention import Gradients, Options
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


def forward(
    x: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    key_padding_mask: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """Return the output and lse, like ``simmst.reference.spatial_attention.forward``.

    Example:
        ``out, lse = forward(x, *weights, None, None, None, Options(num_heads=4, residual=True, eps=1e-5, scale=0.25))``
    """
    size = sizes(x, options.num_heads)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    lse = torch.empty((size.maps, size.heads, size.positions), dtype=torch.float32, device=x.device)
    if x.numel() == 0:
        return out, lse
    w_in, w_out = in_proj_weight.contiguous(), out_proj_weight.contiguous()
    b_in, b_out = contiguous(in_proj_bias), contiguous(out_proj_bias)
    mask, empty = empty_maps(key_padding_mask)
    last = contiguous(norm_weight), contiguous(norm_bias)
    with torch.cuda.device_of(x):
        if is_fused(size, x.device):
            _launch_forward(size, x, (w_in, b_in, w_out, b_out, mask, empty, *last), out, lse, options)
        else:
            given = long.Given(x, w_in, b_in, w_out, b_out, mask, empty, *last, options)
            long.forward(size, given, out, lse)
    return out, lse


def _launch_forward(
    size: Sizes,
    x: Tensor,
    weights: tuple[Tensor | None, ...],
    out: Tensor,
    lse: Tensor,
    options: Options,
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
        options.scale * LOG2_E,
        options.eps,
        HEADS=size.heads,
        WIDTH=size.width,
        RESIDUAL=options.residual,
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
    options: Options,
    output_mask: list[bool],
) -> Gradients:
    """Return the wanted gradients, like ``simmst.reference.spatial_attention.backward``.

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
        size = sizes(x, options.num_heads)
        mask, empty = empty_maps(key_padding_mask)
        w_in, w_out = in_proj_weight.contiguous(), out_proj_weight.contiguous()
        b_in, b_out = contiguous(in_proj_bias), contiguous(out_proj_bias)
        last = contiguous(norm_weight), contiguous(norm_bias)
        lse = lse.contiguous()
        everything = long.Given(x, w_in, b_in, w_out, b_out, mask, empty, *last, options)
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
    f32: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
    stage = torch.empty((count, 7, area), dtype=x.dtype, device=x.device)
    partials = None
    if any(gradient is not None for gradient in found[1:]):
        partials = torch.empty((count, (4 * size.channels + 6) * size.channels), **f32)
    tokens, grads = matrices(x), matrices(grad)
    # The layout of the gradient of x: contiguous in the shape of x.
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
        given.options.scale * LOG2_E,
        given.options.scale,
        given.options.eps,
        HEADS=size.heads,
        WIDTH=size.width,
        RESIDUAL=given.options.residual,
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
