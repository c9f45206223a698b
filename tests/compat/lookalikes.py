"""Layers with the interface and the results of the libraries that compat knows, written for these tests.

They follow the published description of each: what is drawn from torch's generator and in which order, what is
returned and in which layout. They are dense and slow on purpose.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import nn


def _measure(query, key, sample):
    """Return (B, H, L_Q): max over the sampled keys minus their sum over L_K; sample (L_Q, S)."""
    scores = (query @ key.transpose(-1, -2)).gather(-1, sample.expand(*query.shape[:2], *sample.shape))
    return scores.amax(-1) - scores.sum(-1) / key.shape[2]


def _prob_attention(layer, query, key, value):
    """Compute what all ProbAttention layers do, heads first: the context and the selected rows' weights in place."""
    (batch, heads, queries, width), keys = query.shape, key.shape[2]
    drawn = min(layer.factor * math.ceil(math.log(keys)), keys)
    count = min(layer.factor * math.ceil(math.log(queries)), queries)
    sample = torch.randint(keys, (queries, drawn))
    top = _measure(query, key, sample).topk(count, sorted=False).indices[..., None]
    scores = (query @ key.transpose(-1, -2)) * (layer.scale or 1 / math.sqrt(width))
    if layer.mask_flag:
        scores = scores.masked_fill(torch.ones(queries, keys, dtype=torch.bool).triu(1), -math.inf)
    weights = torch.full_like(scores, 1 / keys)
    weights = weights.scatter(
        2, top.expand(batch, heads, count, keys), scores.softmax(-1).gather(2, top.expand(batch, heads, count, keys))
    )
    rest = (
        value.cumsum(2)
        if layer.mask_flag
        else value.mean(2, keepdim=True).expand(batch, heads, queries, value.shape[-1])
    )
    rows = weights.gather(2, top.expand(batch, heads, count, keys)) @ value
    return rest.scatter(2, top.expand(batch, heads, count, value.shape[-1]), rows), weights


class _Base(nn.Module):
    def __init__(self, mask_flag=True, factor=5, scale=None, attention_dropout=0.1, output_attention=False):
        super().__init__()
        self.factor, self.scale, self.mask_flag, self.output_attention = factor, scale, mask_flag, output_attention
        self.dropout = nn.Dropout(attention_dropout)


def informer2020(**settings):
    """(B, L, H, D) in and out; the mask is a positional argument."""

    class ProbAttention(_Base):
        def forward(self, queries, keys, values, attn_mask):
            out, weights = _prob_attention(self, *(each.transpose(1, 2) for each in (queries, keys, values)))
            return out.transpose(1, 2).contiguous(), weights if self.output_attention else None

    return ProbAttention(**settings)


def time_series_library(**settings):
    """Passes the heads first; two more arguments."""

    class ProbAttention(_Base):
        def forward(self, queries, keys, values, attn_mask, tau=None, delta=None):
            out, weights = _prob_attention(self, *(each.transpose(1, 2) for each in (queries, keys, values)))
            return out.contiguous(), weights if self.output_attention else None

    return ProbAttention(**settings)


def pypots(**settings):
    """Other names, another order of settings, and weights that are always returned."""

    class ProbAttention(_Base):
        def __init__(self, **settings):
            super().__init__(**settings)
            del self.output_attention

        def forward(self, q, k, v, attn_mask=None, **kwargs):
            out, weights = _prob_attention(self, *(each.transpose(1, 2) for each in (q, k, v)))
            return out.transpose(1, 2).contiguous(), weights

    return ProbAttention(**settings)


class AttentionLayer(nn.Module):
    """The projections around a ProbAttention; a view merges the heads, in any order of the axes."""

    def __init__(self, attention, width, heads, named=False):
        super().__init__()
        self.inner_attention, self.heads, self.named = attention, heads, named
        self.query_projection, self.key_projection, self.value_projection, self.out_projection = (
            nn.Linear(width, width) for _ in range(4)
        )

    def forward(self, queries, keys, values):
        parts = [
            projection(each).view(*each.shape[:2], self.heads, -1)
            for projection, each in (
                (self.query_projection, queries),
                (self.key_projection, keys),
                (self.value_projection, values),
            )
        ]
        if self.named:
            named = dict(zip(("queries", "keys", "values"), parts, strict=True))
            out, weights = self.inner_attention(**named, attn_mask=None, tau=None, delta=None)
        else:
            out, weights = self.inner_attention(*parts, None)
        return self.out_projection(out.view(*queries.shape[:2], -1)), weights


class InformerProbSparseAttention(nn.Module):
    """The layer of Hugging Face transformers: one sample for all queries, as long as the keys, and a dense measure."""

    def __init__(self, embed_dim, num_heads, dropout=0.0, is_decoder=False, sampling_factor=5, layer_idx=None):
        super().__init__()
        self.factor, self.embed_dim, self.num_heads, self.dropout = sampling_factor, embed_dim, num_heads, dropout
        self.head_dim = embed_dim // num_heads
        self.scaling, self.is_decoder, self.layer_idx = self.head_dim**-0.5, is_decoder, layer_idx
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(embed_dim, embed_dim) for _ in range(4))

    def forward(self, hidden_states, key_value_states=None, cache=None, attention_mask=None, **kwargs):
        batch, queries, width = hidden_states.shape
        source = hidden_states if key_value_states is None else key_value_states

        def heads(x):
            return x.view(batch, -1, self.num_heads, self.head_dim).transpose(1, 2)

        query, key, value = (
            heads(self.q_proj(hidden_states) * self.scaling),
            heads(self.k_proj(source)),
            heads(self.v_proj(source)),
        )
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        keys = key.shape[2]
        drawn = min(self.factor * queries * math.ceil(math.log1p(keys)), keys)
        count = min(self.factor * math.ceil(math.log1p(queries)), queries)
        sample = torch.randint(0, keys, (drawn,)).expand(queries, drawn)
        top = _measure(query, key, sample).topk(count, sorted=False).indices[..., None]
        scores = (query @ key.transpose(-1, -2)).gather(2, top.expand(-1, -1, count, keys))
        if attention_mask is not None:
            mask = attention_mask.expand(batch, self.num_heads, queries, keys)
            scores = scores + mask.gather(2, top.expand(-1, -1, count, keys))
        weights = scores.softmax(-1)
        rows = nn.functional.dropout(weights, self.dropout, self.training) @ value
        rest = value.cumsum(2) if self.is_decoder else value.mean(2, keepdim=True).expand_as(query)
        out = rest.scatter(2, top.expand_as(rows), rows)
        return self.out_proj(out.transpose(1, 2).reshape(batch, queries, width)), weights


class Cache:
    """Keys and values of the earlier steps."""

    def __init__(self):
        self.layers = {}

    def update(self, key, value, layer, *args, **kwargs):
        kept = self.layers.get(layer)
        if kept is not None:
            key, value = torch.cat((kept.keys, key), 2), torch.cat((kept.values, value), 2)
        self.layers[layer] = SimpleNamespace(keys=key, values=value)
        return key, value
