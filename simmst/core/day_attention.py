"""Definitions of day attention that every backend shares."""

from __future__ import annotations

from torch import Tensor

# Gradients of query, key, bias and alike_weight.
Gradients = tuple[Tensor, Tensor, Tensor, Tensor]

__all__ = ["Gradients"]
