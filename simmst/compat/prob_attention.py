"""``ProbAttention``, the layer of Informer2020 that Time-Series-Library, neuralforecast and PyPOTS have adopted."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from simmst.compat.exchange import SETTINGS, Exchanged
from simmst.compat.rows import attend_rows, fill_and_place
from simmst.core.prob_sparse_attention import informer_count
from simmst.nn.prob_sparse_attention import evaluation_sample
from simmst.ops import prob_sparse_attention, prob_sparse_select

NAME = "ProbAttention"
_ORDER = ("queries", "keys", "values")
_SHORT = {"q": "queries", "k": "keys", "v": "values"}  # PyPOTS


def fits(layer: nn.Module) -> bool:
    """Tell whether this forward pass can replace that of a layer."""
    has_parts = all(hasattr(layer, part) for part in ("factor", "scale", "mask_flag"))
    return type(layer).__name__ == NAME and has_parts and next(layer.parameters(), None) is None


class Fast(Exchanged):
    """The forward pass of ``ProbAttention`` on simmst's operators.

    Settings: with ``exact`` samples are drawn as in the library, from torch's global generator on the CPU; ``faulty``
    tells that the library's layer returns (B, H, L, D) instead of (B, L, H, D), and with ``heads_first`` this one does,
    too.
    """

    factor: int
    scale: float | None
    mask_flag: bool

    @staticmethod
    def settings(layer: nn.Module, name: str, exact: bool, keep_layout: bool | None) -> dict[str, Any]:
        """Return the settings of the forward pass, which depend on what the layer returns."""
        faulty = (
            getattr(layer, SETTINGS)["faulty"] if isinstance(layer, Exchanged) else _returns_heads_first(layer, name)
        )
        keep = exact if keep_layout is None else keep_layout
        return {"exact": exact, "faulty": faulty, "heads_first": faulty and keep}

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            args: queries (B, L_Q, H, D), keys (B, L_K, H, D) and values (B, L_K, H, D_V). Further arguments (a mask,
                the factors of a non-stationary attention) are ignored, as in the library.
            kwargs: the same arguments by name.

        Returns:
            (B, L_Q, H, D_V) contiguous, and the weights (B, H, L_Q, L_K) if the layer has ``output_attention``.
        """
        given = {_SHORT.get(name, name): value for name, value in kwargs.items()}
        given.update(zip(_ORDER, args, strict=False))
        query, key, value = (given[name].transpose(1, 2) for name in _ORDER)  # (B, H, L, D)
        settings = getattr(self, SETTINGS)
        sample = self._sample(query.shape[2], key.shape[2], query.device, settings["exact"])
        scale = float(self.scale) if self.scale else 1.0 / math.sqrt(query.shape[3])
        weights = None
        if getattr(self, "output_attention", settings["exact"]):
            out, weights = self._with_weights(query, key, value, sample, scale)
        else:
            out = prob_sparse_attention(
                query, key, value, factor=self.factor, is_causal=self.mask_flag, scale=scale, sample=sample
            )
        return (out if settings["heads_first"] else out.transpose(1, 2)).contiguous(), weights

    def _sample(self, queries: int, keys: int, device: torch.device, exact: bool) -> Tensor:
        samples = informer_count(keys, self.factor)
        if exact:
            return torch.randint(keys, (queries, samples)).to(device)
        if self.training:
            return torch.randint(keys, (queries, samples), device=device)
        return evaluation_sample(queries, keys, samples, shared=False, device=device)

    def _with_weights(
        self, query: Tensor, key: Tensor, value: Tensor, sample: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        queries, keys = query.shape[2], key.shape[2]
        top, _ = prob_sparse_select(query, key, sample, u=informer_count(queries, self.factor))
        rows = attend_rows(query, key, top, scale=scale, is_causal=self.mask_flag)
        out = fill_and_place(rows @ value, top, value, queries, running=self.mask_flag)
        even = rows.new_full((), 1.0 / keys).expand(*rows.shape[:2], queries, keys)
        return out, even.scatter(2, top[..., None].expand_as(rows), rows)


@torch.no_grad()
def _returns_heads_first(layer: nn.Module, name: str) -> bool:
    """Return whether a layer puts heads before time, which a call on five steps of two heads shows."""
    x = torch.ones(2, 5, 2, 3, device="cpu")
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            out = layer(x, x, x, None)[0]
    except Exception as error:  # an unknown layer may raise anything
        raise ValueError(
            f"the ProbAttention {name!r} cannot be swapped, because it fails on 5 steps of 2 heads: {error}"
        ) from error
    shapes = {(2, 2, 5, 3): True, (2, 5, 2, 3): False}
    if tuple(out.shape) not in shapes:
        raise ValueError(
            f"the ProbAttention {name!r} cannot be swapped: it turns (B, L, H, D) = (2, 5, 2, 3) into "
            f"{tuple(out.shape)}"
        )
    return shapes[tuple(out.shape)]


__all__ = ["NAME", "Fast", "fits"]
