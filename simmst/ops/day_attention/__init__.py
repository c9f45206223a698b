"""Attention from slots to the days before as one operator."""

from simmst.ops.day_attention.api import day_attention

__all__ = ["day_attention"]
