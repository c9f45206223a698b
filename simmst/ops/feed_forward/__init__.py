"""The feed-forward part as one operator."""

from simmst.ops.feed_forward.api import feed_forward

__all__ = ["feed_forward"]
