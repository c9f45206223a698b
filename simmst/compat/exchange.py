"""A layer of another library takes up our forward pass, and gives it back: its class changes, its state does not.

Parameters, submodules, hooks, training mode and place in the model stay what and where they are, so state dicts,
optimizers, checkpoints and what others have attached to the layer are as before. No library is imported here: the class
to derive from is that of the layer at hand.
"""

from __future__ import annotations

from typing import Any

from torch import nn

_CLASSES: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}
SETTINGS = "_simmst"  # where a layer that has taken up our forward pass keeps its settings


class Exchanged(nn.Module):
    """What our forward passes derive from, together with the class whose place they take.

    Attributes:
        original: the class whose place is taken.
    """

    original: type[nn.Module]

    @staticmethod
    def settings(layer: nn.Module, name: str, exact: bool, keep_layout: bool | None) -> dict[str, Any]:
        """What the forward pass is to know of a layer; plain values."""
        return {"exact": exact}

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class is made while the program runs, so pickle cannot find it by its name.
        state = self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__
        return _empty, (forward_of(self), self.original), state


def exchange(layer: nn.Module, ours: type[Exchanged], settings: dict[str, Any]) -> None:
    """Give a layer our forward pass, or other settings where it has it.

    Args:
        layer: of another library.
        ours: the forward pass.
        settings: what it is to know.
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
    """Which of our forward passes a layer has taken up."""
    return next(base for base in type(layer).__bases__ if issubclass(base, Exchanged))


def _exchanged_class(ours: type[Exchanged], original: type[nn.Module]) -> type[nn.Module]:
    """The class of a layer of ``original`` that computes as ``ours``; one for every pair."""
    pair = ours, original
    if pair not in _CLASSES:
        members = {"original": original, "__module__": __name__, "__doc__": ours.__doc__}
        _CLASSES[pair] = type(f"{ours.__name__}{original.__name__}", (ours, original), members)
    return _CLASSES[pair]


def _empty(ours: type[Exchanged], original: type[nn.Module]) -> nn.Module:
    kind = _exchanged_class(ours, original)
    return kind.__new__(kind)


__all__ = ["SETTINGS", "Exchanged", "exchange", "forward_of", "give_back"]
