"""Two linear layers around a GELU, which run as one operator if they are plain modules."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from simmst.models.dropout import FeatureDropout
from simmst.nn.plain import is_plain
from simmst.ops import feed_forward


class FeedForward(nn.Sequential):
    """Two linear layers around a GELU, then dropout.

    Example:
        >>> import torch
        >>> FeedForward(width=8, hidden=16)(torch.zeros(2, 3, 8)).shape
        torch.Size([2, 3, 8])
    """

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width), FeatureDropout(dropout))

    def added(self, tokens: Tensor, norm: nn.Module, backend: str | None) -> Tensor:
        """Return ``tokens + self(norm(tokens))`` for tokens (B, T, C)."""
        first, gelu, second, dropout = self
        if not is_plain(self, FeedForward) or not is_plain(gelu, nn.GELU):
            added: Tensor = tokens + self(norm(tokens))
            return added
        return two_layers(tokens, first, second, norm=norm, dropout=dropout, backend=backend)


def two_layers(
    x: Tensor,
    first: nn.Module,
    second: nn.Module,
    *,
    norm: nn.Module | None = None,
    norm_first: bool = True,
    addend: Tensor | None = None,
    dropout: nn.Module | None = None,
    residual: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Run `simmst.ops.feed_forward` on modules, or call each module if one is not plain (an adapter, a hook).

    Args:
        x: (B, T, C).
        first: linear layer before the GELU.
        second: linear layer after the GELU.
        norm: LayerNorm of x or of the result, or None.
        norm_first: whether to normalise x; otherwise the result is normalised.
        addend: (B, H), added before the GELU, or None.
        dropout: dropout of the branch, a `FeatureDropout`, or None.
        residual: whether to add x.
        backend: name of a backend, or None to choose.

    Example:
        >>> import torch
        >>> two_layers(torch.zeros(2, 3, 4), nn.Linear(4, 8), nn.Linear(8, 4)).shape
        torch.Size([2, 3, 4])
    """
    layers = is_plain(first, nn.Linear) and is_plain(second, nn.Linear)
    if not layers or not (norm is None or is_plain(norm, nn.LayerNorm)) or not _draws_factors(dropout):
        tokens = norm(x) if norm is not None and norm_first else x
        hidden = first(tokens) if addend is None else first(tokens) + addend[:, None]
        branch = second(functional.gelu(hidden))
        branch = branch if dropout is None else dropout(branch)
        out: Tensor = x + branch if residual else branch
        return out if norm is None or norm_first else norm(out)
    assert isinstance(first, nn.Linear)  # noqa: S101 for the type checker
    assert isinstance(second, nn.Linear)  # noqa: S101
    assert norm is None or isinstance(norm, nn.LayerNorm)  # noqa: S101
    scale = dropout.factors(x, second.out_features) if isinstance(dropout, FeatureDropout) else None
    return feed_forward(
        x,
        first.weight,
        first.bias,
        second.weight,
        second.bias,
        norm_weight=None if norm is None else norm.weight,
        norm_bias=None if norm is None else norm.bias,
        norm_first=norm_first,
        addend=addend,
        scale=scale,
        residual=residual,
        eps=1e-5 if norm is None else norm.eps,
        backend=backend,
    )


def _draws_factors(dropout: nn.Module | None) -> bool:
    return dropout is None or is_plain(dropout, FeatureDropout)
