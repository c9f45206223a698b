"""The linear layers before and behind attention as operators."""

from simmst.ops.projection.api import merge_heads, split_heads

__all__ = ["merge_heads", "split_heads"]
