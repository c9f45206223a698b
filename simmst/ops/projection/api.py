"""The public functions of the projections, which check their arguments and choose a backend."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from simmst.core.projection import Options
from simmst.ops.backends import choose
from simmst.ops.checks import check_float_tensors, check_integer, check_number, describe
from simmst.ops.dispatch import is_any_autocast
from simmst.ops.projection.library import PATH, forward
from simmst.reference import projection as reference

_MOST = 3


def split_heads(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    num_heads: int,
    *,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    r"""Project tokens for the heads of attention: :math:`\mathrm{LN}(x) W_i^T + b_i` for up to three layers at once.

    The C++ kernels of backend "cpu" take float32: tokens are read and normalised once for all layers, and results have
    the memory layout that attention reads. Plain PyTorch runs every call that a backend has no kernel for (another
    dtype or device, ``torch.func``, autocast). With backend "reference" it runs all calls, and derivatives of any order
    work.

    Args:
        x: tokens (N, T, C); float32, bfloat16, float16 or float64.
        weights: one to three tensors (O, C), as in nn.Linear. All tensors have the dtype and device of x.
        biases: the bias of each layer, (O,) or None.
        num_heads: number of heads, a divisor of O.
        norm_weight: (C,), scale of a LayerNorm of x; None for no LayerNorm.
        norm_bias: (C,), shift of the LayerNorm, or None.
        eps: LayerNorm epsilon.
        backend: None to choose, or one of "reference", "cpu", "triton", "cuda".

    Returns:
        One tensor (N, num_heads, T, O / num_heads) for each layer.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes, devices or options do not fit.

    Example:
        >>> x, layers = torch.randn(2, 5, 8), [torch.nn.Linear(8, 8) for _ in range(2)]
        >>> key, value = split_heads(x, [each.weight for each in layers], [each.bias for each in layers], 2)
        >>> torch.allclose(key[:, 1], layers[0](x)[..., 4:], atol=1e-5)
        True
    """
    if not 1 <= len(weights) <= _MOST or len(biases) != len(weights):
        raise ValueError(f"one to {_MOST} weights and as many biases are needed, got {len(weights)} and {len(biases)}")
    check_integer("num_heads", num_heads, minimum=1)
    check_number("eps", eps)
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"eps must be at least 0 and finite, got {eps}")
    named = {f"weights[{i}]": weight for i, weight in enumerate(weights)}
    named |= {f"biases[{i}]": bias for i, bias in enumerate(biases) if bias is not None}
    norms = {"norm_weight": norm_weight, "norm_bias": norm_bias}
    named |= {name: tensor for name, tensor in norms.items() if tensor is not None}
    cast = _is_autocast(x)
    if not cast:
        check_float_tensors(x=x, **named)
    if x.dim() != 3 or weights[0].dim() != 2 or 0 in weights[0].shape or weights[0].shape[1] != x.shape[2]:
        raise ValueError(f"x must be (N, T, C) and weights (O, C), got {describe(x)} and {describe(weights[0])}")
    outputs, inputs = weights[0].shape
    if outputs % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide the {outputs} features of {describe(weights[0])}")
    if norm_bias is not None and norm_weight is None:
        raise ValueError("norm_bias was given without norm_weight; give norm_weight too (ones for a plain LayerNorm)")
    for name, tensor in named.items():
        wanted = (outputs, inputs) if name[0] == "w" else (outputs,) if name[0] == "b" else (inputs,)
        _check_shape(name, tensor, wanted, x)
    chosen = "reference" if cast or 0 in x.shape else choose(PATH, backend, device=x.device, dtype=x.dtype)
    if chosen == "reference":
        return reference.split_heads(
            *(x, weights, biases, num_heads), norm_weight=norm_weight, norm_bias=norm_bias, eps=eps
        )
    layers: list[Tensor | None] = [each for layer in zip(weights, biases, strict=True) for each in layer]
    layers += [None] * (2 * (_MOST - len(weights)))
    found = forward(x, *layers, norm_weight, norm_bias, None, None, Options(0, num_heads, float(eps)), chosen)
    return tuple(found[: len(weights)])


def merge_heads(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Project the outputs of the heads of attention: :math:`r + s \odot (x W^T + b)`.

    Backends and dtypes are the same as for `split_heads`.

    Args:
        x: (N, heads, T, D); float32, bfloat16, float16 or float64.
        weight: (O, heads * D), as in nn.Linear. All tensors have the dtype and device of x.
        bias: (O,) or None.
        residual: (N, T, O), the term r, or None.
        scale: (N, O), factors s of every token of a series, as dropout draws them, or None. They get no gradient.
        backend: None to choose, or one of "reference", "cpu", "triton", "cuda".

    Returns:
        (N, T, O).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes or devices do not fit.

    Example:
        >>> layer, x = torch.nn.Linear(8, 8), torch.randn(2, 2, 5, 4)
        >>> tokens = x.transpose(1, 2).flatten(2)
        >>> torch.allclose(merge_heads(x, layer.weight, layer.bias, residual=tokens), tokens + layer(tokens), atol=1e-5)
        True
    """
    optional = {"bias": bias, "residual": residual, "scale": scale}
    named = {name: tensor for name, tensor in optional.items() if tensor is not None}
    cast = _is_autocast(x)
    if not cast:
        check_float_tensors(x=x, weight=weight, **named)
    if x.dim() != 4 or weight.dim() != 2 or 0 in weight.shape or weight.shape[1] != x.shape[1] * x.shape[3]:
        raise ValueError(
            f"x must be (N, heads, T, D) and weight (O, heads * D), got {describe(x)} and {describe(weight)}"
        )
    series, heads, steps, _ = x.shape
    outputs = weight.shape[0]
    wanted = {"bias": (outputs,), "residual": (series, steps, outputs), "scale": (series, outputs)}
    for name, tensor in named.items():
        _check_shape(name, tensor, wanted[name], x)
    if scale is not None and scale.requires_grad:
        raise ValueError("scale requires a gradient but gets none; multiply the result without a residual instead")
    chosen = "reference" if cast or 0 in x.shape else choose(PATH, backend, device=x.device, dtype=x.dtype)
    if chosen == "reference":
        return reference.merge_heads(x, weight, bias, residual=residual, scale=scale)
    rest = None, None, None, None, None, None, residual, scale
    out: Tensor = forward(x, weight, bias, *rest, Options(heads, 0, 0.0), chosen)[0]
    return out


def _is_autocast(x: Tensor) -> bool:
    return is_any_autocast() and isinstance(x, Tensor) and not x.is_meta and torch.is_autocast_enabled(x.device.type)


def _check_shape(name: str, tensor: Tensor, wanted: tuple[int, ...], x: Tensor) -> None:
    if tuple(tensor.shape) != wanted:
        raise ValueError(f"{name} must have shape {wanted} for x {describe(x)}, got {describe(tensor)}")
