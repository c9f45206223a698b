"""Spatial multi-head attention as a layer that loads the weights of nn.MultiheadAttention."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn

from simmst.nn.plain import is_plain
from simmst.ops.spatial_attention import finite_where_ignored, spatial_attention


class SpatialAttention(nn.Module):
    """Multi-head self-attention over the positions of a map, optionally with residual and LayerNorm.

    The projections have the names, the shapes and the initialisation of ``nn.MultiheadAttention``, whose state_dict
    loads with ``strict=True`` when ``norm=False``. Sim-MSTNet, Eq. 10.

    Args:
        embed_dim: C, the number of channels, a multiple of num_heads.
        num_heads: number of attention heads.
        bias: whether the projections have biases.
        residual: whether to add the input.
        norm: whether to end with a LayerNorm over the channels, with parameters ``norm.weight`` and ``norm.bias``.
        eps: LayerNorm epsilon.
        backend: None to choose, or one of "reference", "cpu", "triton", "cuda", "chain".
        device: device of the parameters.
        dtype: dtype of the parameters.

    ``out_proj`` and ``norm`` run inside the operator while they are a plain ``nn.Linear`` and ``nn.LayerNorm``. Any
    replacement (an adapter, a quantised layer, another norm) or a layer with a hook is called as a module.

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

    @classmethod
    def from_torch(
        cls, module: nn.MultiheadAttention | nn.TransformerEncoderLayer, *, backend: str | None = None
    ) -> SpatialAttention:
        """Build the layer from the self-attention of a torch module, with a copy of its weights.

        Args:
            module: an ``nn.MultiheadAttention``, or an ``nn.TransformerEncoderLayer``, whose first half,
                ``norm1(x + self_attn(x, x, x))``, the layer computes.
            backend: None to choose, or one of "reference", "cpu", "triton", "cuda", "chain".

        Returns:
            A layer with the device, dtype and mode of the module. It takes maps or tokens with the batch first,
            regardless of the module's ``batch_first``, and has no dropout.

        Raises:
            TypeError: module is neither of these.
            ValueError: the module uses something that the layer lacks: keys of another width, ``add_bias_kv``,
                ``add_zero_attn``, ``norm_first``.

        Warns:
            UserWarning: the module has dropout, which the layer leaves out.

        Example:
            >>> theirs = nn.TransformerEncoderLayer(16, 4, dropout=0.0, batch_first=True)
            >>> ours = SpatialAttention.from_torch(theirs)
            >>> x = torch.randn(2, 25, 16)
            >>> torch.allclose(ours(x), theirs.norm1(x + theirs.self_attn(x, x, x)[0]), atol=1e-5)
            True
        """
        if isinstance(module, nn.TransformerEncoderLayer):
            if module.norm_first:
                raise ValueError(
                    "the TransformerEncoderLayer has norm_first=True, which normalises in another order; use "
                    "from_torch(layer.self_attn) and compute x + attention(layer.norm1(x))"
                )
            attention, norm, dropout = module.self_attn, module.norm1, module.dropout1.p
        elif isinstance(module, nn.MultiheadAttention):
            attention, norm, dropout = module, None, 0.0
        else:
            raise TypeError(
                f"module must be a MultiheadAttention or TransformerEncoderLayer, got {type(module).__name__}"
            )
        _refuse_what_is_missing(attention)
        dropout = max(dropout, attention.dropout)
        if dropout > 0.0:
            warnings.warn(
                f"the {type(module).__name__} drops {dropout:g} of what it computes while training; SpatialAttention "
                "drops nothing. Its results in evaluation mode are the same",
                stacklevel=2,
            )
        weight = attention.in_proj_weight
        layer = cls(
            attention.embed_dim,
            attention.num_heads,
            bias=attention.in_proj_bias is not None,
            residual=norm is not None,
            backend=backend,
            device=weight.device,
            dtype=weight.dtype,
        )
        if not is_plain(attention.out_proj, *_LINEAR):
            layer.out_proj = copy.deepcopy(attention.out_proj)
        layer.load_state_dict(attention.state_dict())
        layer.norm = copy.deepcopy(norm)
        given = dict(attention.named_parameters())
        for name, parameter in layer.named_parameters():
            if name in given:
                parameter.requires_grad_(given[name].requires_grad)
        return layer.train(module.training)

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
            key_padding_mask: bool (B, N), N = H * W, True where a position is ignored. If every position of
                a map is ignored, its attention branch is zero.

        Returns:
            A tensor of the shape of x.
        """
        if is_plain(self.out_proj, *_LINEAR) and (self.norm is None or _is_plain_norm(self.norm, self.embed_dim)):
            return self._fused(x, key_padding_mask)
        return self._in_parts(x, key_padding_mask)

    def _fused(self, x: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        norm = self.norm
        return spatial_attention(
            x,
            self.in_proj_weight,
            self.in_proj_bias,
            self.out_proj.weight,
            self.out_proj.bias,
            num_heads=self.num_heads,
            key_padding_mask=key_padding_mask,
            residual=self.residual,
            norm_weight=None if norm is None else norm.weight,
            norm_bias=None if norm is None else norm.bias,
            eps=0.0 if norm is None else norm.eps,
            backend=self.backend,
        )

    def _in_parts(self, x: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        """Call out_proj and norm as modules: they may be adapters, quantised layers or layers with hooks."""
        heads = spatial_attention(
            x,
            self.in_proj_weight,
            self.in_proj_bias,
            torch.eye(self.embed_dim, dtype=self.in_proj_weight.dtype, device=x.device),
            None,
            num_heads=self.num_heads,
            key_padding_mask=key_padding_mask,
            backend=self.backend,
        )
        out: Tensor = self.out_proj(_to_tokens(heads))
        if key_padding_mask is not None:
            x = finite_where_ignored(x, key_padding_mask)
            out = out.masked_fill(key_padding_mask.all(dim=-1)[:, None, None], 0.0)
        if self.residual:
            out = out + _to_tokens(x)
        if self.norm is not None:
            out = self.norm(out)
        out = out.to(heads.dtype)
        return out if x.dim() == 3 else out.transpose(1, 2).reshape(x.shape)

    def extra_repr(self) -> str:
        """Describe the settings that are not submodules."""
        return f"{self.embed_dim}, num_heads={self.num_heads}, residual={self.residual}, backend={self.backend!r}"


_LINEAR = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)


def _refuse_what_is_missing(attention: nn.MultiheadAttention) -> None:
    if not attention._qkv_same_embed_dim:
        found = f"kdim={attention.kdim} and vdim={attention.vdim} with embed_dim={attention.embed_dim}"
    elif attention.bias_k is not None:
        found = "add_bias_kv=True"
    elif attention.add_zero_attn:
        found = "add_zero_attn=True"
    else:
        return
    raise ValueError(
        f"the MultiheadAttention has {found}; SpatialAttention only attends from a map to itself, "
        "so keep torch's module here"
    )


def _to_tokens(x: Tensor) -> Tensor:
    """Reshape (B, C, H, W) to (B, N, C), and leave (B, N, C) unchanged."""
    return x.flatten(2).transpose(1, 2) if x.dim() == 4 else x


def _is_plain_norm(norm: nn.Module, width: int) -> bool:
    return is_plain(norm, nn.LayerNorm) and norm.weight is not None and norm.normalized_shape == (width,)
