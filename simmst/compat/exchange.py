"""The exchange of a layer's forward pass for ours and back. Only the class of the layer changes, not its state.

Parameters, submodules, hooks, training mode and the layer's place in the model stay the same, so state dicts,
optimizers, checkpoints and everything attached to the layer still work. This module imports no other library: the new
class derives from the class of the given layer.
"""

from __future__ import annotations

from typing import Any

from torch import nn

_CLASSES: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}
SETTINGS = "_simmst"  # attribute with the settings of a layer that has our forward pass


class Exchanged(nn.Module):
    """Base class of our forward passes, which also derive from the class that they replace.

    Attributes:
        original: the replaced class.
    """

    original: type[nn.Module]

    @staticmethod
    def settings(layer: nn.Module, name: str, exact: bool, keep_layout: bool | None) -> dict[str, Any]:
        """Return the settings of the forward pass for a layer, as plain values."""
        return {"exact": exact}

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class is made at run time, so pickle cannot find it by its name.
        state = self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__
        return _empty, (forward_of(self), self.original), state


def exchange(layer: nn.Module, ours: type[Exchanged], settings: dict[str, Any]) -> None:
    """Give a layer our forward pass, or new settings if it has our forward pass already.

    Args:
        layer: layer of another library.
        ours: class of our forward pass.
        settings: settings of the forward pass.
    """
    if not isinstance(layer, Exchanged):
        layer.__class__ = _exchanged_class(ours, type(layer))
    setattr(layer, SETTINGS, settings)


def give_back(layer: Exchanged) -> None:
    """Give a layer its own forward pass back."""
    delattr(layer, SETTINGS)
    as_before: nn.Module = layer
    as_before.__class__ = layer.original


def forward_of(layer: Exchanged) -> type[Exchanged]:
    """Return which of our forward passes a layer has."""
    return next(base for base in type(layer).__bases__ if issubclass(base, Exchanged))


def _exchanged_class(ours: type[Exchanged], original: type[nn.Module]) -> type[nn.Module]:
    """Return the class that computes as ``ours`` in place of ``original``; there is one class per pair."""
    pair = ours, original
    if pair not in _CLASSES:
        members = {"original": original, "__module__": __name__, "__doc__": ours.__doc__}
        _CLASSES[pair] = type(f"{ours.__name__}{original.__name__}", (ours, original), members)
    return _CLASSES[pair]


def _empty(ours: type[Exchanged], original: type[nn.Module]) -> nn.Module:
    kind = _exchanged_class(ours, original)
    return kind.__new__(kind)


__all__ = ["SETTINGS", "Exchanged", "exchange", "forward_of", "give_back"]
