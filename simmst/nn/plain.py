"""The check that a module is fully described by its weights, so that an operator may replace the call of the module."""

from __future__ import annotations

from torch import nn


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Tell whether a module is exactly of one of the kinds (no subclass) and has no hook.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> is_plain(layer, nn.Linear), is_plain(nn.Identity(), nn.Linear)
        (True, False)
        >>> handle = layer.register_forward_hook(lambda *args: None)
        >>> is_plain(layer, nn.Linear)
        False
    """
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return type(module) in kinds and not any(hooks)


__all__ = ["is_plain"]
