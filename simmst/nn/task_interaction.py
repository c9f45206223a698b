"""Attention between tasks: every task's tokens see the tokens of all tasks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simmst.nn.spatial_attention import SpatialAttention


class TaskInteraction(nn.Module):
    """Let tasks exchange features by attention over the tokens of all tasks, followed by residual and LayerNorm.

    ``Y = LayerNorm(X + MultiHead(X))`` with X the K * S tokens of a sample. Sim-MSTNet, Eq. 11.

    Args:
        embed_dim: C, the width of a token, a multiple of num_heads.
        num_heads: number of attention heads.
        backend: None to choose, or one of "reference", "cpu", "triton", "cuda", "chain".
        device: device of the parameters.
        dtype: dtype of the parameters.

    Example:
        >>> TaskInteraction(16, 4)(torch.randn(2, 3, 10, 16)).shape
        torch.Size([2, 3, 10, 16])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.attention = SpatialAttention(
            embed_dim, num_heads, residual=True, norm=True, backend=backend, device=device, dtype=dtype
        )

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Mix the tokens of all tasks.

        Args:
            x: (B, K, S, C), S tokens of each of K tasks.
            key_padding_mask: bool (B, K, S), True where all other tokens ignore a token.

        Returns:
            (B, K, S, C).

        Raises:
            TypeError: the mask is not a bool tensor.
            ValueError: x or the mask has another shape.
        """
        if x.dim() != 4 or x.shape[-1] != self.attention.embed_dim:
            raise ValueError(
                f"x must have shape (B, K, S, C) with C = {self.attention.embed_dim}, got {tuple(x.shape)}"
            )
        if key_padding_mask is not None:
            if not isinstance(key_padding_mask, Tensor) or key_padding_mask.dtype != torch.bool:
                got = getattr(key_padding_mask, "dtype", type(key_padding_mask).__name__)
                raise TypeError(f"key_padding_mask must be a bool tensor, True where a token is ignored, got {got}")
            if key_padding_mask.shape != x.shape[:3]:
                raise ValueError(
                    f"key_padding_mask must have shape (B, K, S) = {tuple(x.shape[:3])}, "
                    f"got {tuple(key_padding_mask.shape)}"
                )
            key_padding_mask = key_padding_mask.flatten(1)
        tokens = x.flatten(1, 2)  # (B, K * S, C)
        mixed: Tensor = self.attention(tokens, key_padding_mask)
        return mixed.reshape(x.shape)
