"""A multi-head layer around ProbSparse attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from simmst.core.exporting import is_exporting
from simmst.core.philox import philox_indices
from simmst.core.prob_sparse_attention import FILLS, NORMALIZERS, SAMPLINGS, informer_count
from simmst.nn.plain import is_plain
from simmst.ops.backends import BACKENDS, is_transformed
from simmst.ops.checks import check_choice, check_dropout, check_integer, describe_all
from simmst.ops.prob_sparse_attention import prob_sparse_attention
from simmst.ops.projection import merge_heads, split_heads

# The Philox seed of every layer's samples in evaluation mode. The value is arbitrary, but forecasts depend on it.
EVALUATION_SEED = (0x51E57, 0x2021)

_SampleKey = tuple[int, int, int, bool, torch.device]
_evaluation_samples: dict[_SampleKey, Tensor] = {}
_MAX_CACHED = 64


def evaluation_sample(queries: int, keys: int, samples: int, *, shared: bool, device: torch.device) -> Tensor:
    """Return the fixed sample of evaluation mode, which is the same on every machine, device and call.

    Args:
        queries: number of queries, L_Q.
        keys: number of keys, L_K.
        samples: number of sampled keys, S.
        shared: whether all queries share one sample.
        device: device of the sample.

    Returns:
        int64 (L_Q, S), or (S,) when shared. Eager calls share one tensor; do not write to it.

    Example:
        >>> evaluation_sample(4, 96, 3, shared=True, device=torch.device("cpu"))
        tensor([74,  1, 32])
    """
    # A compiled graph holds the operator and not a tensor of this process; a tensor made inside a transform of
    # torch.func belongs to the transform. An exported program holds the numbers, so that it runs without simmst.
    if is_exporting() and all(type(size) is int for size in (queries, keys, samples)):
        return torch.tensor(_evaluation_numbers(queries, keys, samples, shared), device=device)
    if torch.compiler.is_compiling() or is_transformed():
        sample: Tensor = _opaque_evaluation_sample(queries, keys, samples, shared, device)
        return sample
    key = (queries, keys, samples, shared, device)
    cached = _evaluation_samples.get(key)
    if cached is None:
        with torch.inference_mode(False):
            cached = _draw_evaluation_sample(queries, keys, samples, shared, device)
        if type(cached) is Tensor:  # a fake tensor must not outlive its tracing
            if len(_evaluation_samples) >= _MAX_CACHED:
                _evaluation_samples.clear()
            _evaluation_samples[key] = cached
    return cached


def _draw_evaluation_sample(queries: int, keys: int, samples: int, shared: bool, device: torch.device) -> Tensor:
    seed = torch.tensor(EVALUATION_SEED, dtype=torch.int64, device=device)
    sample = philox_indices(1 if shared else queries, samples, keys, key=seed)
    return sample[0].clone() if shared else sample


# Opaque to the compiler, because inductor inlines the ten rounds into each other and doubles the work with each. Eager
# calls bypass the operator, because the first call of any custom operator imports torch._dynamo, which takes more than
# a second.
_opaque_evaluation_sample = torch.library.custom_op(
    "simmst::evaluation_sample",
    _draw_evaluation_sample,
    mutates_args=(),
    schema="(int queries, int keys, int samples, bool shared, Device device) -> Tensor",
)


@_opaque_evaluation_sample.register_fake
def _(queries: int, keys: int, samples: int, shared: bool, device: torch.device) -> Tensor:
    return torch.empty((samples,) if shared else (queries, samples), dtype=torch.int64, device=device)


def _evaluation_numbers(queries: int, keys: int, samples: int, shared: bool) -> list[int] | list[list[int]]:
    with _disable_current_modes():  # the tensors of an export hold no numbers
        sample = _draw_evaluation_sample(queries, keys, samples, shared, torch.device("cpu"))
        numbers: list[int] | list[list[int]] = sample.tolist()
    return numbers


_evaluation_numbers._dynamo_marked_constant = True  # type: ignore[attr-defined]


class ProbSparseAttention(nn.Module):
    """Multi-head ProbSparse attention: projections around :func:`simmst.ops.prob_sparse_attention`.

    In training every call draws fresh samples from torch's global generator; in evaluation a fixed sample is used, so
    that forecasts are deterministic.

    Args:
        embed_dim: width C of query and output.
        num_heads: number of heads, a divisor of embed_dim.
        kdim: width of key; None is embed_dim.
        vdim: width of value; None is embed_dim.
        dropout: probability of dropping an attention weight in training.
        bias: whether the four projections have biases.
        factor: Informer's c. It and the next four arguments mean the same as in
            :func:`simmst.ops.prob_sparse_attention`.
        is_causal: whether row i sees only the keys j <= i.
        fill: fill of the rows that are not selected.
        normalizer: divisor of the sum in the measure.
        sampling: ``"per_query"`` or ``"shared"``.
        backend: name of a backend, or None to choose at each call.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Source: Informer, Zhou et al. 2021; Sim-MSTNet's temporal branch and decoder, Eq. 9 and 12.

    Example:
        >>> layer = ProbSparseAttention(32, 4).eval()
        >>> x = torch.randn(2, 96, 32)
        >>> layer(x).shape, torch.equal(layer(x), layer(x))
        (torch.Size([2, 96, 32]), True)
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        factor: int = 5,
        is_causal: bool = False,
        fill: str | None = None,
        normalizer: str = "keys",
        sampling: str = "per_query",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_integer("embed_dim", embed_dim, minimum=1)
        check_integer("num_heads", num_heads, minimum=1)
        if embed_dim % num_heads:
            raise ValueError(f"num_heads must divide embed_dim, got embed_dim={embed_dim} and num_heads={num_heads}")
        kdim, vdim = embed_dim if kdim is None else kdim, embed_dim if vdim is None else vdim
        check_integer("kdim", kdim, minimum=1)
        check_integer("vdim", vdim, minimum=1)
        check_integer("factor", factor, minimum=1)
        check_dropout(dropout)
        check_choice("fill", fill, (None, *FILLS))
        check_choice("normalizer", normalizer, NORMALIZERS)
        check_choice("sampling", sampling, SAMPLINGS)
        check_choice("backend", backend, (None, *BACKENDS))
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.kdim, self.vdim = kdim, vdim
        self.dropout, self.factor, self.is_causal = dropout, factor, is_causal
        self.fill, self.normalizer, self.sampling, self.backend = fill, normalizer, sampling, backend
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        self.k_proj = nn.Linear(self.kdim, embed_dim, bias=bias, device=device, dtype=dtype)
        self.v_proj = nn.Linear(self.vdim, embed_dim, bias=bias, device=device, dtype=dtype)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)

    def forward(self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None) -> Tensor:
        """Attend from query to key and value.

        Args:
            query: (B, L_Q, embed_dim).
            key: (B, L_K, kdim); None is query.
            value: (B, L_K, vdim); None is key.

        Returns:
            (B, L_Q, embed_dim).

        Raises:
            ValueError: a shape does not fit.
        """
        key = query if key is None else key
        value = key if value is None else value
        self._check_shapes(query, key, value)
        heads = self._split_heads(self.q_proj(query)), self._split_heads(self.k_proj(key))
        out = self._attend(*heads, self._split_heads(self.v_proj(value)))
        projected: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return projected

    def added(
        self, tokens: Tensor, norm: nn.Module, memory: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        """Return ``tokens + scale * self(norm(tokens), memory)``, as in a transformer layer, in fewer operators.

        Args:
            tokens: (B, L_Q, embed_dim).
            norm: LayerNorm of the tokens.
            memory: (B, L_K, kdim), keys and values; None uses the normalised tokens.
            scale: (B, embed_dim), the factors drawn by dropout, or None.

        Returns:
            (B, L_Q, embed_dim).
        """
        layers = [self.q_proj, self.k_proj, self.v_proj]
        if not all(is_plain(each, nn.Linear) for each in (*layers, self.out_proj)) or not is_plain(norm, nn.LayerNorm):
            attended = self(norm(tokens), memory)
            summed: Tensor = tokens + (attended if scale is None else attended * scale[:, None])
            return summed
        assert isinstance(norm, nn.LayerNorm)  # noqa: S101 for the type checker
        own = layers if memory is None else layers[:1]
        heads = split_heads(
            tokens,
            [each.weight for each in own],
            [each.bias for each in own],
            self.num_heads,
            norm_weight=norm.weight,
            norm_bias=norm.bias,
            eps=norm.eps,
            backend=self.backend,
        )
        if memory is not None:
            self._check_shapes(tokens, memory, memory)
            weights, biases = [each.weight for each in layers[1:]], [each.bias for each in layers[1:]]
            heads = (*heads, *split_heads(memory, weights, biases, self.num_heads, backend=self.backend))
        query, key, value = heads
        return merge_heads(
            self._attend(query, key, value),
            self.out_proj.weight,
            self.out_proj.bias,
            residual=tokens,
            scale=scale,
            backend=self.backend,
        )

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend with heads (B, H, L, D)."""
        queries, keys = query.shape[2], key.shape[2]
        sample = None
        if not self.training:
            samples = informer_count(keys, self.factor)
            shared = self.sampling == "shared"
            sample = evaluation_sample(queries, keys, samples, shared=shared, device=query.device)
        return prob_sparse_attention(
            query,
            key,
            value,
            factor=self.factor,
            is_causal=self.is_causal,
            dropout_p=self.dropout if self.training else 0.0,
            sample=sample,
            sampling=self.sampling,
            fill=self.fill,
            normalizer=self.normalizer,
            backend=self.backend,
        )

    def _split_heads(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        return x.view(batch, length, self.num_heads, width // self.num_heads).transpose(1, 2)  # [B, H, L, D]

    def _check_shapes(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        widths = (self.embed_dim, self.kdim, self.vdim)
        fits = all(x.dim() == 3 and x.shape[2] == width for x, width in zip((query, key, value), widths, strict=True))
        if not fits or not (query.shape[0] == key.shape[0] == value.shape[0]) or key.shape[1] != value.shape[1]:
            raise ValueError(
                f"query must be (B, L_Q, {widths[0]}), key (B, L_K, {widths[1]}) and value (B, L_K, {widths[2]}), got "
                + describe_all(query=query, key=key, value=value)
            )
        if key.shape[1] == 0:
            raise ValueError(f"key must have at least one position, got {describe_all(key=key)}")

    def extra_repr(self) -> str:
        """Describe the settings for print(layer)."""
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, factor={self.factor}, dropout={self.dropout}, "
            f"is_causal={self.is_causal}, fill={self.fill!r}, normalizer={self.normalizer!r}, "
            f"sampling={self.sampling!r}, backend={self.backend!r}"
        )
