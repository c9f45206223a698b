"""Dropout of a feature in a whole series."""

from __future__ import annotations

from torch import Tensor, nn

from simmst.models.noise import uniform


class FeatureDropout(nn.Module):
    """Drop features of a token series (B, T, C), the same features for all of its tokens.

    This is the variational dropout of Gal and Ghahramani 2016: noise that differs from token to token averages out over
    a series, and drawing it takes a CPU longer than the layers that it regularises.

    Args:
        p: probability of dropping a feature while training.

    Example:
        >>> import torch
        >>> kept = FeatureDropout(0.5)(torch.ones(2, 3, 4))
        >>> bool((kept == kept[:, :1]).all()), FeatureDropout(0.5).eval()(torch.ones(1, 1, 2)).tolist()
        (True, [[[1.0, 1.0]]])
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.p = p

    def forward(self, tokens: Tensor) -> Tensor:
        """Drop features of tokens (B, T, C) while training, and scale the others by 1 / (1 - p)."""
        factors = self.factors(tokens, tokens.shape[2])
        return tokens if factors is None else tokens * factors[:, None]

    def factors(self, tokens: Tensor, width: int) -> Tensor | None:
        """Draw the factors (B, width) of the features of tokens (B, T, ...), or return None if nothing is dropped."""
        if not self.training or self.p == 0.0:
            return None
        kept = uniform(tokens.shape[0], 1, width, device=tokens.device) >= self.p
        return kept[:, 0].to(tokens.dtype) / (1.0 - self.p)

    def extra_repr(self) -> str:
        """Show the probability."""
        return f"p={self.p}"
