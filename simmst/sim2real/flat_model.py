"""A module as a function of one vector of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from simmst.errors import ConfigError

PerSampleLoss = Callable[[nn.Module, Any], Tensor]


class _Losses(nn.Module):
    """Module for `functional_call`: the per-sample loss around the model."""

    def __init__(self, module: nn.Module, per_sample_loss: PerSampleLoss) -> None:
        super().__init__()
        self.module = module
        self.per_sample_loss = per_sample_loss

    def forward(self, batch: Any) -> Tensor:
        return self.per_sample_loss(self.module, batch)


class FlatModel:
    """A module and its loss as a function of one vector phi of its trainable parameters.

    The module is put into evaluation mode, so that a loss is a function of phi and the sample alone (no dropout).

    Args:
        module: the model; its parameters are only read until `store` is called.
        per_sample_loss: called as ``per_sample_loss(module, batch)``, returns (B,).

    Raises:
        ConfigError: the module has nothing to train, parameters of several dtypes or devices, or a layer whose result
            for a sample depends on the other samples.

    Example:
        >>> flat = FlatModel(nn.Linear(2, 1, bias=False), lambda module, batch: module(batch).squeeze(1))
        >>> flat.losses(torch.tensor([2.0, 3.0]), torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
        tensor([5., 3.])
    """

    def __init__(self, module: nn.Module, per_sample_loss: PerSampleLoss) -> None:
        for name, layer in module.named_modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                raise ConfigError(
                    f"the module's layer {name!r} is a {type(layer).__name__}, whose result for a sample depends on "
                    "the others, so that samples cannot be weighted one by one; use LayerNorm or GroupNorm"
                )
        self.module = module.eval()
        self._losses = _Losses(module, per_sample_loss)
        trainable = {f"module.{name}": p for name, p in module.named_parameters() if p.requires_grad}
        if not trainable:
            raise ConfigError("the module has no trainable parameter; set requires_grad on those to train")
        kinds = {(p.dtype, p.device) for p in trainable.values()}
        if len(kinds) != 1:
            raise ConfigError(f"the module's parameters are of several kinds: {sorted(map(str, kinds))}; convert them")
        ((self.dtype, self.device),) = kinds
        self.shapes = {name: p.shape for name, p in trainable.items()}
        self.sizes = [p.numel() for p in trainable.values()]
        self._parameters = trainable

    @property
    def size(self) -> int:
        """Number of entries of phi."""
        return sum(self.sizes)

    def flatten(self) -> Tensor:
        """Return the module's current parameters as a new vector (N,)."""
        return torch.cat([p.detach().reshape(-1) for p in self._parameters.values()]).clone()

    def losses(self, phi: Tensor, batch: Any) -> Tensor:
        """Return the losses of a batch's samples at phi, (B,).

        Raises:
            ConfigError: the loss does not return one number per sample.
        """
        parts = {name: p.view(self.shapes[name]) for name, p in zip(self.shapes, phi.split(self.sizes), strict=True)}
        losses: Tensor = functional_call(self._losses, parts, (batch,))
        if losses.dim() != 1:
            raise ConfigError(
                f"per_sample_loss must return one number per sample, (B,), got shape {tuple(losses.shape)}; "
                "average over everything but the samples"
            )
        return losses

    def weighted_loss(self, batch: Any, weights: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the sum of the batch's losses times weights (B,), as a function of phi."""

        def total(phi: Tensor) -> Tensor:
            return weights.to(phi.dtype) @ self.losses(phi, batch)

        return total

    @torch.no_grad()
    def store(self, phi: Tensor) -> None:
        """Copy phi into the module."""
        for parameter, part in zip(self._parameters.values(), phi.split(self.sizes), strict=True):
            parameter.copy_(part.view_as(parameter))
