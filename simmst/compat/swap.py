"""The one door: put our layers into a model of another library, and take them out again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from simmst.compat import hugging_face, prob_attention
from simmst.compat.exchange import Exchanged, exchange, forward_of, give_back


def swap(model: Any, exact: bool = False, *, keep_layout: bool | None = None) -> int:
    """Let the ProbSparse attention of a model compute on simmst's operators.

    Recognised are the layers ``InformerProbSparseAttention`` of Hugging Face transformers, and ``ProbAttention`` as
    Informer2020, Time-Series-Library, neuralforecast and PyPOTS have it, wherever they stand in the model. Their
    parameters, buffers, hooks and names stay, so state dicts, optimizers and checkpoints fit as before.

    Args:
        model: an ``nn.Module``, or an object with such ``models``, as ``NeuralForecast`` is.
        exact: select what the library would: same draws from torch's global generator, same outputs up to rounding.
            Otherwise each query is measured on keys of its own, as the paper has it, drawn anew in each training step
            and fixed in evaluation mode, so that forecasts do not change from call to call.
        keep_layout: Time-Series-Library and neuralforecast hand heads and time on in the wrong order, which the layer
            around then mixes up. True keeps that, for weights that were trained with it; False mends it. None keeps it
            where ``exact`` asks for the library's own outputs, and mends it otherwise.

    Returns:
        How many layers compute on simmst's operators now; with settings other than before where they already did.

    Raises:
        TypeError: model is no module.
        ValueError: a ``ProbAttention`` does not compute as any that is known; names it.

    Example:
        >>> swap(nn.Sequential(nn.Linear(2, 2)))
        0
    """
    count = 0
    for name, layer in list(_layers(model)):
        if isinstance(layer, Exchanged):
            found = forward_of(layer)
        elif hugging_face.fits(layer):
            found = hugging_face.Fast
        elif prob_attention.fits(layer):
            found = prob_attention.Fast
        else:
            continue
        exchange(layer, found, found.settings(layer, name, exact, keep_layout))
        count += 1
    return count


def restore(model: Any) -> int:
    """Let every layer that :func:`swap` changed compute as its library does again.

    Args:
        model: as for :func:`swap`.

    Returns:
        How many layers were changed back.

    Example:
        >>> restore(nn.Linear(2, 2))
        0
    """
    changed = [layer for _, layer in _layers(model) if isinstance(layer, Exchanged)]
    for layer in changed:
        give_back(layer)
    return len(changed)


def _layers(model: Any) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(model, nn.Module):
        yield from model.named_modules()
        return
    models = getattr(model, "models", None)
    if not isinstance(models, (list, tuple)) or not all(isinstance(each, nn.Module) for each in models):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for each in models:
        yield from each.named_modules()


__all__ = ["restore", "swap"]
