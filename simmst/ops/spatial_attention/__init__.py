"""Spatial multi-head attention as one operator."""

from simmst.ops.spatial_attention.api import spatial_attention

__all__ = ["spatial_attention"]
