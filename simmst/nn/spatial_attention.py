"""Spatial multi-head attention as a layer that loads the weights of nn.MultiheadAttention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simmst.ops.spatial_attention import spatial_attention


class SpatialAttention(nn.Module):
    """Multi-head self-attention over the positions of a map, optionally with residual and LayerNorm.

    The projections are named and laid out as in ``nn.MultiheadAttention``, whose state_dict loads with ``strict=True``
    when ``norm=False``; initialised as there, too. Sim-MSTNet, Eq. 10.

    Args:
        embed_dim: C, the number of channels, a multiple of num_heads.
        num_heads: number of attention heads.
        bias: whether the projections have biases.
        residual: add the input.
        norm: LayerNorm over the channels at the end; parameters ``norm.weight`` and ``norm.bias``.
        eps: of the LayerNorm.
        backend: None to choose, or one of "reference", "cpu", "triton", "cuda".
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: num_heads does not divide embed_dim.

    Example:
        >>> layer = SpatialAttention(16, 4, residual=True, norm=True)
        >>> layer(torch.randn(2, 16, 5, 5)).shape
        torch.Size([2, 16, 5, 5])
        >>> result = SpatialAttention(16, 4).load_state_dict(nn.MultiheadAttention(16, 4).state_dict())
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        bias: bool = True,
        residual: bool = False,
        norm: bool = False,
        eps: float = 1e-5,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:
            raise ValueError(f"embed_dim must be a positive multiple of num_heads, got {embed_dim} and {num_heads}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.residual = residual
        self.eps = eps
        self.backend = backend
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim, device=device, dtype=dtype))
        if bias:
            self.in_proj_bias: nn.Parameter | None = nn.Parameter(
                torch.empty(3 * embed_dim, device=device, dtype=dtype)
            )
        else:
            self.register_parameter("in_proj_bias", None)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(embed_dim, eps, device=device, dtype=dtype) if norm else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as nn.MultiheadAttention does."""
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.out_proj.reset_parameters()
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)
        if self.norm is not None:
            self.norm.reset_parameters()

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Attend over the positions of each map.

        Args:
            x: maps (B, C, H, W) or tokens (B, N, C).
            key_padding_mask: bool (B, N), N = H * W, True where a position is ignored; a map with every position
                ignored has an attention branch of zeros.

        Returns:
            The shape of x.
        """
        return spatial_attention(
            x,
            self.in_proj_weight,
            self.in_proj_bias,
            self.out_proj.weight,
            self.out_proj.bias,
            num_heads=self.num_heads,
            key_padding_mask=key_padding_mask,
            residual=self.residual,
            norm_weight=None if self.norm is None else self.norm.weight,
            norm_bias=None if self.norm is None else self.norm.bias,
            eps=self.eps,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Describe the settings that are not submodules."""
        return f"{self.embed_dim}, num_heads={self.num_heads}, residual={self.residual}, backend={self.backend!r}"
