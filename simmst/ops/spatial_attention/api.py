"""The public function of spatial attention, which checks its arguments and chooses a backend."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from simmst.core.spatial_attention import Options, pays_to_keep
from simmst.ops.backends import choose, concrete, is_transformed
from simmst.ops.checks import check_flag, check_float_tensors, check_integer, check_number, describe
from simmst.ops.dispatch import cast, is_any_autocast, is_unwatched, wants_gradient
from simmst.ops.measured_choice import bucket
from simmst.ops.spatial_attention.library import PATH, forward
from simmst.ops.spatial_attention.short import remember, run, seen_before


def spatial_attention(
    x: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    *,
    num_heads: int,
    key_padding_mask: Tensor | None = None,
    residual: bool = False,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Apply multi-head self-attention to the positions of each map, with projections, residual and LayerNorm.

    For every map, with the heads side by side in C = num_heads * D channels::

        [Q K V] = x W_in^T + b_in,   O = softmax(scale Q K^T) V,   y = O W_out^T + b_out
        y = x + y  (residual),       y = LayerNorm(y) over C  (norm_weight given)

    The result is computed in float32 (float64 for float64 inputs) and rounded to the dtype of x at the end. Autocast
    first casts all inputs except float64 ones. Sim-MSTNet, Eq. 10; weights as in nn.MultiheadAttention.

    With backend "reference", derivatives of any order, forward mode and ``torch.func`` work; the other backends have
    first derivatives in reverse mode. The mask has no gradient. Backend "chain" is the code that one would write
    without this operator: linear, ``scaled_dot_product_attention``, linear, LayerNorm. It rounds to the dtype of x
    after each of them.

    Args:
        x: maps (B, C, H, W), N = H * W positions, or tokens (B, N, C); float32, bfloat16, float16 or float64.
        in_proj_weight: (3C, C), the rows of query, key and value in this order. All weights have the dtype and device
            of x.
        in_proj_bias: (3C,) or None.
        out_proj_weight: (C, C).
        out_proj_bias: (C,) or None.
        num_heads: number of heads, a divisor of C.
        key_padding_mask: bool (B, N), True where all other positions ignore a position. The position's own output is
            computed like any other. NaN and infinity in it count as zero and reach no gradient. If every position of a
            map is ignored, its attention branch is zero (after the output projection).
        residual: whether to add x.
        norm_weight: (C,), scale of the LayerNorm; None for no LayerNorm.
        norm_bias: (C,), shift of the LayerNorm, or None.
        eps: LayerNorm epsilon.
        scale: factor of the scores, 1 / sqrt(D) when None.
        backend: None to choose, or one of "reference", "cpu", "triton", "cuda", "chain".

    Returns:
        A contiguous tensor of the shape and dtype of x.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes, devices or options do not fit.
        BackendUnavailableError: the named backend cannot run this call.

    Example:
        >>> layer = torch.nn.MultiheadAttention(16, 4, batch_first=True)
        >>> weights = layer.in_proj_weight, layer.in_proj_bias, layer.out_proj.weight, layer.out_proj.bias
        >>> maps = torch.randn(2, 16, 5, 5)
        >>> out = spatial_attention(maps, *weights, num_heads=4, backend="reference")
        >>> tokens = maps.flatten(2).transpose(1, 2)
        >>> torch.allclose(out.flatten(2).mT, layer(tokens, tokens, tokens)[0], atol=1e-5)
        True
    """
    if is_any_autocast():
        x, in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, norm_weight, norm_bias = cast(
            x, in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, norm_weight, norm_bias
        )
    operands = x, in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, key_padding_mask, norm_weight, norm_bias
    asked = num_heads, residual, eps, scale, backend
    prepared = seen_before(operands, *asked)
    if prepared is not None:
        return run(prepared, operands)
    parameters: dict[str, Any] = {
        "in_proj_weight": in_proj_weight,
        "in_proj_bias": in_proj_bias,
        "out_proj_weight": out_proj_weight,
        "out_proj_bias": out_proj_bias,
        "norm_weight": norm_weight,
        "norm_bias": norm_bias,
    }
    optional = ("in_proj_bias", "out_proj_bias", "norm_weight", "norm_bias")
    given = {name: tensor for name, tensor in parameters.items() if tensor is not None or name not in optional}
    check_float_tensors(x=x, **given)
    _check_shapes(x, parameters, num_heads)
    _check_mask(x, key_padding_mask)
    check_flag("residual", residual)
    check_number("eps", eps)
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"eps must be at least 0 and finite, got {eps}")
    if scale is None:
        scale = (_channels(x) // num_heads) ** -0.5
    else:
        check_number("scale", scale)
        if math.isinf(scale):
            raise ValueError(f"scale must be finite, got {scale}")
    chosen = choose(
        PATH,
        backend,
        device=x.device,
        dtype=x.dtype,
        bucket=bucket(_positions(x)),
        head_width=concrete(_channels(x) // num_heads),
        training=_on_gpu(x) and wants_gradient(x, *parameters.values()),
    )
    options = Options(num_heads, residual, float(eps), float(scale))
    out: Tensor = forward(
        x if key_padding_mask is None else finite_where_ignored(x, key_padding_mask),
        *operands[1:],
        options,
        chosen == "cpu" and is_unwatched(x) and pays_to_keep(*_sizes(x)) and wants_gradient(x, *parameters.values()),
        chosen,
    )[0]
    if chosen == "cuda":
        remember(operands, *asked, options)
    return out


def finite_where_ignored(x: Tensor, key_padding_mask: Tensor) -> Tensor:
    """Put zeros where an ignored position holds NaN or infinity, because 0 * NaN would spread through the gradients.

    Args:
        x: maps (B, C, H, W) or tokens (B, N, C).
        key_padding_mask: bool (B, N), True where a position is ignored.

    Returns:
        x itself if a cheap check finds only finite values, else a new tensor of its shape and dtype.

    Example:
        >>> x = torch.tensor([[[1.0], [torch.nan]]])
        >>> finite_where_ignored(x, torch.tensor([[False, True]])).flatten().tolist()
        [1.0, 0.0]
    """
    if x.is_cpu and is_unwatched(x) and not is_transformed() and math.isfinite(float(x.detach().sum())):
        return x
    ignored = key_padding_mask.unflatten(1, x.shape[2:])[:, None] if x.dim() == 4 else key_padding_mask[..., None]
    return torch.where(ignored, x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0), x)


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda


def _sizes(x: Tensor) -> tuple[int, int]:
    return _channels(x), _positions(x)


def _channels(x: Tensor) -> int:
    return x.shape[1] if x.dim() == 4 else x.shape[2]


def _positions(x: Tensor) -> int:
    return x.shape[2] * x.shape[3] if x.dim() == 4 else x.shape[1]


def _check_shapes(x: Tensor, parameters: dict[str, Any], num_heads: int) -> None:
    if x.dim() not in (3, 4):
        raise ValueError(f"x must have shape (B, C, H, W) or (B, N, C), got {describe(x)}")
    check_integer("num_heads", num_heads, minimum=1)
    channels = _channels(x)
    if channels < 1 or channels % num_heads:
        raise ValueError(
            f"the channels of x must be a positive multiple of num_heads={num_heads}, got {channels} in {describe(x)}"
        )
    if parameters["norm_bias"] is not None and parameters["norm_weight"] is None:
        raise ValueError("norm_bias was given without norm_weight; give norm_weight too (ones for a plain LayerNorm)")
    shapes: dict[str, tuple[int, ...]] = {
        "in_proj_weight": (3 * channels, channels),
        "in_proj_bias": (3 * channels,),
        "out_proj_weight": (channels, channels),
        "out_proj_bias": (channels,),
        "norm_weight": (channels,),
        "norm_bias": (channels,),
    }
    for name, tensor in parameters.items():
        if tensor is not None and tuple(tensor.shape) != shapes[name]:
            raise ValueError(
                f"{name} must have shape {shapes[name]} for x of {channels} channels, got {describe(tensor)} "
                f"with x {describe(x)}"
            )


def _check_mask(x: Tensor, mask: Tensor | None) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = describe(mask) if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"key_padding_mask must be a bool tensor, True where a position is ignored, got {got}")
    expected = (x.shape[0], _positions(x))
    if tuple(mask.shape) != expected:
        raise ValueError(
            f"key_padding_mask must have shape (B, N) = {expected} for x {describe(x)}, got {describe(mask)}"
        )
    if mask.device != x.device:
        raise ValueError(f"key_padding_mask must be on the device of x, {x.device}, got {describe(mask)}")
