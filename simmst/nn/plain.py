"""Whether a module is no more than its weights, so that an operator may take them and leave the module uncalled."""

from __future__ import annotations

from torch import nn


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether calling a module does no more than its weights say: it is of one of the kinds, no subclass, has no hook.

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
