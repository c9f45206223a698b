"""``InformerProbSparseAttention`` of Hugging Face transformers, without its quadratic measure."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor, nn

from simmst.compat.exchange import SETTINGS, Exchanged
from simmst.compat.rows import attend_rows, dropped, fill_and_place
from simmst.core.prob_sparse_attention import informer_count
from simmst.nn.prob_sparse_attention import evaluation_sample
from simmst.ops import prob_sparse_attend, prob_sparse_select

NAME = "InformerProbSparseAttention"
_PARTS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
    "num_heads",
    "head_dim",
    "scaling",
    "factor",
    "dropout",
    "is_decoder",
)


def fits(layer: nn.Module) -> bool:
    """Tell whether this forward pass can replace that of a layer."""
    return type(layer).__name__ == NAME and all(hasattr(layer, part) for part in _PARTS)


class Fast(Exchanged):
    """The forward pass of Hugging Face's layer on simmst's operators.

    Each query is measured on ``factor * ceil(ln L_K)`` keys, drawn separately for each query as in the paper, or, with
    the setting ``exact``, on the keys that the library draws. Everything else follows the library: the number of
    selected queries, masks, dropout, the fill, the cache of keys and values, and the returned weights.
    """

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    out_proj: nn.Module
    head_dim: int
    scaling: float
    factor: int
    dropout: float
    is_decoder: bool
    layer_idx: int | None

    def forward(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        cache: Any = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            hidden_states: (B, L_Q, C).
            key_value_states: (B, L_K, C) in a cross-attention.
            cache: the library's cache of keys and values. Before version 5.24 its name is ``past_key_values``.
            attention_mask: (B, 1, L_Q, L_K), added to the scores.
            kwargs: other arguments that the library passes.

        Returns:
            (B, L_Q, C), and the weights of the selected queries, (B, H, u, L_K). An encoder layer without a mask
            returns None instead of weights that nobody reads.

        Raises:
            ValueError: the mask has another shape.
        """
        cache = kwargs.get("past_key_values") if cache is None else cache
        query = self._heads(self.q_proj(hidden_states) * self.scaling)
        key, value = self._keys_and_values(hidden_states, key_value_states, cache)
        queries = query.shape[2]
        top = self._select(query, key, min(self.factor * _ceil_log1p(queries), queries))
        if attention_mask is not None and attention_mask.shape[-2:] != (queries, key.shape[2]):
            raise ValueError(
                f"attention_mask must be (B, 1, L_Q, L_K) = ({len(query)}, 1, {queries}, {key.shape[2]}), "
                f"got {tuple(attention_mask.shape)}"
            )
        if attention_mask is None and not self.is_decoder and not self._hands_out_weights(kwargs):
            dropout = self.dropout if self.training else 0.0
            out, weights = prob_sparse_attend(query, key, value, top, scale=1.0, dropout_p=dropout)[0], None
        else:
            weights = attend_rows(query, key, top, scale=1.0, mask=attention_mask)
            rows = dropped(weights, self.dropout, training=self.training) @ value
            out = fill_and_place(rows, top, value, queries, running=self.is_decoder)
        projected: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return projected, weights

    def _hands_out_weights(self, kwargs: dict[str, Any]) -> bool:
        """Tell whether anything may read the weights: a caller, a hook, or the library's recorder of attentions."""
        if kwargs.get("output_attentions") or torch.compiler.is_compiling():
            return True
        if self.training:
            # Activation checkpointing runs this pass again during the backward pass, when no recorder runs, so the
            # answer must depend only on the layer.
            exact: bool = getattr(self, SETTINGS)["exact"]  # draws dropout for the weights
            return exact or bool(self._forward_hooks)
        if any(getattr(hook, "__name__", "") != "output_capturing_hook" for hook in self._forward_hooks.values()):
            return True
        recorder = getattr(sys.modules.get("transformers.utils.output_capturing"), "_active_collector", None)
        recorded = None if recorder is None else recorder.get()  # by kind of output, while a model runs
        return recorded is None or "attentions" in recorded

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, H, L, D]
        return heads

    def _keys_and_values(self, hidden_states: Tensor, others: Tensor | None, cache: Any) -> tuple[Tensor, Tensor]:
        crossed, store = others is not None, cache
        if hasattr(cache, "cross_attention_cache"):  # separate caches for self-attention and cross-attention
            store = cache.cross_attention_cache if crossed else cache.self_attention_cache
            if crossed and cache.is_updated.get(self.layer_idx):
                kept = store.layers[self.layer_idx]
                return kept.keys, kept.values
        source = hidden_states if others is None else others
        key, value = self._heads(self.k_proj(source)), self._heads(self.v_proj(source))
        if store is not None:
            key, value = store.update(key, value, self.layer_idx)
            if crossed and store is not cache:
                cache.is_updated[self.layer_idx] = True
        return key, value

    def _select(self, query: Tensor, key: Tensor, count: int) -> Tensor:
        queries, keys = query.shape[2], key.shape[2]
        if getattr(self, SETTINGS)["exact"]:
            samples = min(self.factor * queries * _ceil_log1p(keys), keys)
            drawn = torch.randint(0, keys, (samples,)).to(query.device)
            return select_as_drawn(query, key, drawn, count)
        if count == queries:
            return torch.arange(queries, device=query.device).expand(*query.shape[:2], queries)
        samples = informer_count(keys, self.factor)
        if self.training:
            sample = torch.randint(keys, (queries, samples), device=query.device)
        else:
            sample = evaluation_sample(queries, keys, samples, shared=False, device=query.device)
        return prob_sparse_select(query, key, sample, u=count)[0]


def select_as_drawn(query: Tensor, key: Tensor, drawn: Tensor, count: int) -> Tensor:
    """Select the queries with the largest measure on keys that all queries share, in torch.topk's order.

    Repeated draws of a key change the sum in the measure, but not the maximum. The measure is therefore computed on the
    distinct keys, and one product adds the repetitions to the sum.

    Args:
        query: (B, H, L_Q, D).
        key: (B, H, L_K, D).
        drawn: drawn keys, int64 (S,), with repetitions.
        count: number of queries to select.

    Returns:
        int64 (B, H, count).
    """
    if torch.compiler.is_exporting():  # a graph cannot hold the number of distinct keys, which depends on the draw
        measure = prob_sparse_select(query, key, drawn, u=1)[1]
        return measure.topk(count, sorted=False).indices
    distinct, times = drawn.unique(return_counts=True)
    measure = prob_sparse_select(query, key, distinct, u=1)[1]
    with torch.no_grad():
        repeated = (key[..., distinct, :] * (times - 1)[:, None]).sum(-2)  # [B, H, D]
        measure = measure - (query @ repeated[..., None]).squeeze(-1) / key.shape[2]
    top: Tensor = measure.topk(count, sorted=False).indices
    return top


def _ceil_log1p(length: int) -> int:
    return math.ceil(math.log1p(length))


__all__ = ["NAME", "Fast", "fits", "select_as_drawn"]
