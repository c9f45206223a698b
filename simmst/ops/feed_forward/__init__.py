"""The feed-forward part of a transformer layer as one operator."""

from simmst.ops.feed_forward.api import feed_forward

__all__ = ["feed_forward"]
