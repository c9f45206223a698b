"""Spatial multi-head attention as one operator."""

from simmst.ops.spatial_attention.api import finite_where_ignored, spatial_attention

__all__ = ["finite_where_ignored", "spatial_attention"]
