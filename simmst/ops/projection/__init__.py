"""The linear layers before and after attention as operators."""

from simmst.ops.projection.api import merge_heads, split_heads

__all__ = ["merge_heads", "split_heads"]
