"""The training flags of other people's modules, set for a while and then restored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode inside the block, then restore the flag of every layer.

    ``module.train()`` would not do, because it would train a layer again that was frozen in evaluation mode, such as a
    BatchNorm.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with evaluating(model):
        ...     model.training
        False
        >>> [layer.training for layer in model.modules()]
        [True, True, False]
    """
    flags = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, flag in flags:
            layer.training = flag


__all__ = ["evaluating"]
