"""The public functions of compat, which put our layers into a model of another library and take them out again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from simmst.compat import hugging_face, prob_attention
from simmst.compat.exchange import Exchanged, exchange, forward_of, give_back


def swap(model: Any, exact: bool = False, *, keep_layout: bool | None = None) -> int:
    """Run the ProbSparse attention of a model on simmst's operators.

    The function recognises the layers ``InformerProbSparseAttention`` of Hugging Face transformers and
    ``ProbAttention`` of Informer2020, Time-Series-Library, neuralforecast and PyPOTS, anywhere in the model. Their
    parameters, buffers, hooks and names stay, so state dicts, optimizers and checkpoints still fit.

    Args:
        model: an ``nn.Module``, or an object with a list of them in ``models``, such as ``NeuralForecast``.
        exact: whether to select the same queries as the library, with the same draws from torch's global generator and
            the same outputs up to rounding. Otherwise each query is measured on its own sample of keys, as in the
            paper: drawn again in each training step, and fixed in evaluation mode, so that forecasts do not change from
            call to call.
        keep_layout: whether to keep a fault of Time-Series-Library and neuralforecast, whose layer returns heads and
            time in the wrong order, so that the layer around it mixes them up. True keeps the order, for weights that
            were trained with it; False corrects it. None keeps it if ``exact`` is set, and corrects it otherwise.

    Returns:
        Number of layers that now run on simmst's operators, including those that already did and have new settings.

    Raises:
        TypeError: model is not a module.
        ValueError: a ``ProbAttention`` does not compute like any known one; the message names it.

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
    """Give every layer that :func:`swap` changed the forward pass of its library again.

    Args:
        model: a model as for :func:`swap`.

    Returns:
        Number of layers that were changed back.

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
