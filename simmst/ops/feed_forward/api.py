"""The public function of the feed-forward part, which checks its arguments and chooses a backend."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simmst.core.feed_forward import Options
from simmst.ops.backends import choose
from simmst.ops.checks import check_flag, check_float_tensors, check_number, describe, describe_all
from simmst.ops.dispatch import is_any_autocast
from simmst.ops.feed_forward.library import PATH, forward, in_plain_torch


def feed_forward(
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    *,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm_first: bool = True,
    addend: Tensor | None = None,
    scale: Tensor | None = None,
    residual: bool = True,
    eps: float = 1e-5,
    backend: str | None = None,
) -> Tensor:
    r"""Apply two linear layers around a GELU, with residual, LayerNorm, addend and scale in the same operator.

    .. math:: y = x + s \odot (W_2\, \mathrm{GELU}(W_1\, \mathrm{LN}(x) + b_1 + a) + b_2)

    The GELU is exact, :math:`x \Phi(x)`. With ``norm_first=False`` the LayerNorm is applied to the sum instead of x.
    This is the feed-forward part of a transformer layer (Vaswani et al. 2017; normalised first: Xiong et al. 2020).

    The C++ kernels of backend "cpu" take float32: blocks of tokens pass both layers while they are in the cache, and
    the backward pass computes the hidden layer again, so that it is never kept. Plain PyTorch runs every call that a
    backend has no kernel for (another dtype or device, ``torch.func``, autocast). With backend "reference" it runs all
    calls, and derivatives of any order work.

    Args:
        x: tokens (..., C); float32, bfloat16, float16 or float64.
        in_weight: (H, C), as in nn.Linear. All tensors have the dtype and device of x.
        in_bias: (H,) or None.
        out_weight: (O, H).
        out_bias: (O,) or None.
        norm_weight: scale of the LayerNorm, (C,), or (O,) with ``norm_first=False``; None for no LayerNorm.
        norm_bias: shift of the LayerNorm, of the same shape, or None.
        norm_first: whether to normalise the input; otherwise the output is normalised.
        addend: term a for the hidden layer of every token of a series, (..., H) for x (..., T, C), or None.
        scale: factors s of the branch for every token of a series, (..., O) for x (..., T, C), as dropout draws them,
            or None. They get no gradient.
        residual: whether to add x; then O must be C.
        eps: LayerNorm epsilon.
        backend: None to choose, or one of "reference", "cpu", "triton", "cuda".

    Returns:
        (..., O), of the dtype of x.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes, devices or options do not fit.

    Example:
        >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True, norm_first=True)
        >>> x, norm = torch.randn(2, 5, 8), layer.norm2
        >>> weights = layer.linear1.weight, layer.linear1.bias, layer.linear2.weight, layer.linear2.bias
        >>> out = feed_forward(x, *weights, norm_weight=norm.weight, norm_bias=norm.bias)
        >>> torch.allclose(out, x + layer._ff_block(norm(x)), atol=1e-5)
        True
    """
    given = {"x": x, "in_weight": in_weight, "out_weight": out_weight}
    named = {
        "in_bias": in_bias,
        "out_bias": out_bias,
        "norm_weight": norm_weight,
        "norm_bias": norm_bias,
        "addend": addend,
        "scale": scale,
    }
    present = {name: tensor for name, tensor in named.items() if tensor is not None}
    cast = is_any_autocast() and isinstance(x, Tensor) and not x.is_meta and torch.is_autocast_enabled(x.device.type)
    if not cast:
        check_float_tensors(**given, **present)
    check_flag("residual", residual)
    check_flag("norm_first", norm_first)
    _check_shapes(x, in_weight, out_weight, present, residual, norm_first)
    check_number("eps", eps)
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"eps must be at least 0 and finite, got {eps}")
    if scale is not None and scale.requires_grad:
        raise ValueError("scale requires a gradient but gets none; multiply the result without a residual instead")
    options = Options(residual, norm_first, float(eps))
    operands = x, in_weight, in_bias, out_weight, out_bias, norm_weight, norm_bias, addend, scale
    if cast:
        return in_plain_torch(*operands, options)
    out: Tensor = forward(*operands, options, choose(PATH, backend, device=x.device, dtype=x.dtype))
    return out


def _check_shapes(
    x: Tensor,
    in_weight: Tensor,
    out_weight: Tensor,
    present: dict[str, Tensor],
    residual: bool,
    norm_first: bool,
) -> None:
    if x.dim() < 1 or in_weight.dim() != 2 or out_weight.dim() != 2:
        raise ValueError(
            f"x must be (..., C), in_weight (H, C) and out_weight (O, H), got {describe(x)}, {describe(in_weight)} and "
            f"{describe(out_weight)}"
        )
    hidden, inputs = in_weight.shape
    outputs = out_weight.shape[0]
    if x.shape[-1] != inputs or out_weight.shape[1] != hidden or 0 in (hidden, inputs, outputs):
        raise ValueError(
            f"x must be (..., C), in_weight (H, C) and out_weight (O, H) with C, H, O of at least 1, got "
            f"{describe_all(x=x, in_weight=in_weight, out_weight=out_weight)}"
        )
    if residual and inputs != outputs:
        raise ValueError(f"residual=True needs as many outputs as inputs, got {outputs} and {inputs}")
    if "norm_bias" in present and "norm_weight" not in present:
        raise ValueError("norm_bias was given without norm_weight; give norm_weight too (ones for a plain LayerNorm)")
    normed, series = inputs if norm_first else outputs, tuple(x.shape[:-2])
    wanted = {
        "in_bias": (hidden,),
        "out_bias": (outputs,),
        "norm_weight": (normed,),
        "norm_bias": (normed,),
        "addend": (*series, hidden),
        "scale": (*series, outputs),
    }
    for name, tensor in present.items():
        if name in ("addend", "scale") and x.dim() < 2:
            raise ValueError(f"{name} belongs to a series of tokens, x (..., T, C), got x {describe(x)}")
        if tuple(tensor.shape) != wanted[name]:
            raise ValueError(f"{name} must have shape {wanted[name]} for x {describe(x)}, got {describe(tensor)}")
