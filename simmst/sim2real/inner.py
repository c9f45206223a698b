r"""The inner problem: K weighted gradient steps, and the derivative of their end with respect to the sample weights.

.. math:: g(w, \phi) = \frac1n \sum_j \sigma(w_j) L_j(\phi) + \frac\lambda2 |\phi|^2, \qquad
          \theta_{k+1} = \theta_k - \eta \nabla_\phi g(w, \theta_k), \qquad \psi(w) = \theta_K

On a batch B the mean is taken over B, an unbiased estimate of the same g. With
:math:`a = -(\partial\psi/\partial w)^T u`

.. math:: a_j = \sum_k \frac\eta{|B_k|} \sigma'(w_j) \langle\nabla L_j(\theta_k), \lambda_{k+1}\rangle, \qquad
          \lambda_K = u, \quad \lambda_k = \lambda_{k+1} - \eta H_k \lambda_{k+1}

Source: Sim-MSTNet, Eq. 3-5; the products by forward mode and forward-over-reverse, without second derivatives of psi.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from simmst.distributed import ALONE, ProcessGroup
from simmst.errors import ConfigError
from simmst.sim2real.config import ReweightingConfig
from simmst.sim2real.flat_model import FlatModel
from simmst.sim2real.samples import Draws, Samples

_DIFFERENCE = {torch.float64: 1e-5, torch.float32: 3e-3}  # step relative to the parameters' scale: eps^(1/3)
_AGREEMENT = 0.02  # relative, between forward mode and the difference at the start


class Path(NamedTuple):
    """The points theta_0 .. theta_K and the samples B_0 .. B_{K-1} of the steps between them."""

    points: list[Tensor]
    draws: list[Tensor]
    rate: float  # eta of the steps

    @property
    def end(self) -> Tensor:
        """The point that the steps lead to: psi."""
        return self.points[-1]


class Inner:
    """The inner problem of a model, a loss and weighted samples.

    Args:
        model: the flat model.
        samples: the simulated samples.
        config: the settings.
        processes: processes that share the samples; each keeps the weights of its own samples.

    Attributes:
        derivative: method for products with psi's derivative: "forward", "difference" or "double-backward".

    Example:
        >>> from torch import nn
        >>> from simmst.sim2real.samples import TensorSamples
        >>> flat = FlatModel(nn.Linear(1, 1, bias=False), lambda m, batch: (m(batch[0]).squeeze(1) - batch[1]) ** 2 / 2)
        >>> samples = TensorSamples(torch.ones(2, 1), torch.tensor([1.0, 3.0]))
        >>> inner = Inner(flat, samples, ReweightingConfig(inner_lr=1.0, ridge=0.0, derivative="forward"))
        >>> path = inner.unroll(torch.zeros(2), torch.zeros(1), step=0)
        >>> path.end, inner.pull_back(path, torch.zeros(2), torch.ones(1))
        (tensor([1.]), tensor([-0.1250, -0.3750]))
    """

    def __init__(
        self, model: FlatModel, samples: Samples, config: ReweightingConfig, processes: ProcessGroup = ALONE
    ) -> None:
        self.model, self.samples, self.config, self.processes = model, samples, config, processes
        if processes.world_size > 1 and config.derivative == "double-backward":
            raise ConfigError("derivative 'double-backward' is for one process; use 'auto' under torchrun")
        self.draws = Draws(len(samples), config.simulated_batch, seed=config.seed, stream="simulated")
        self.derivative = config.derivative if config.derivative != "auto" else "forward"

    def unroll(self, weights: Tensor, start: Tensor, step: int, *, pace: float = 1.0) -> Path:
        """Take K steps from `start` on samples drawn for outer step `step`, with `pace` times the learning rate."""
        points, draws, rate = [start], [], pace * self.config.inner_lr
        for k in range(self.config.inner_steps):
            draws.append(self.own_draws(step * self.config.inner_steps + k))
            gradient, _ = self.gradient(points[-1], weights, draws[-1])
            points.append(points[-1] - rate * gradient)
        return Path(points, draws, rate)

    def own_draws(self, number: int) -> Tensor:
        """Return the samples of a draw that this rank owns."""
        return self.processes.select(self.draws(number))

    def gradient(self, phi: Tensor, weights: Tensor, index: Tensor) -> tuple[Tensor, float]:
        """Return the gradient and value of g at phi, over the samples `index` (and those that other ranks drew)."""
        share = torch.sigmoid(weights)
        gradient, value = self.processes.partial(self.config.ridge * phi), 0.5 * self.config.ridge * float(phi @ phi)
        losses = torch.zeros((), dtype=phi.dtype, device=phi.device)
        for part, batch in self._chunks(index):
            piece, loss = gradient_and_value(self.model.weighted_loss(batch, self._scale(share, part, index)), phi)
            gradient, losses = gradient + piece, losses + loss
        return self.processes.all_reduce(gradient), value + float(self.processes.all_reduce(losses))

    def _scale(self, share: Tensor, part: Tensor, index: Tensor) -> Tensor:
        """Return the weight of each sample of `part` in the mean over a draw; this rank has its part `index`."""
        return share[self.processes.local(part).to(share.device)] / self._drawn(index)

    def _drawn(self, index: Tensor) -> int:
        return len(index) if self.processes.world_size == 1 else self.draws.count

    def losses(self, phi: Tensor, index: Tensor) -> Tensor:
        """Return the losses of the samples `index` at phi, without gradient."""
        with torch.no_grad():
            return torch.cat([self.model.losses(phi, batch) for _, batch in self._chunks(index)])

    def pull_back(self, path: Path, weights: Tensor, direction: Tensor) -> Tensor:
        """Return a = -(d psi / d w)^T u for a direction u of phi: (n,), zero where no step saw the sample."""
        if self.derivative == "double-backward":
            return self._by_double_backward(path, weights, direction)
        share = torch.sigmoid(weights)
        slope, pulled = share * (1 - share), torch.zeros_like(weights)
        for k in reversed(range(len(path.draws))):
            point, index = path.points[k], path.draws[k]
            along = self.directional(point, direction, index)
            place = self.processes.local(index).to(weights.device)
            pulled[place] += path.rate / self._drawn(index) * slope[place] * along.to(weights.dtype)
            if k > 0:
                direction = direction - path.rate * self.curvature(point, weights, index, direction)
        return pulled

    def directional(self, phi: Tensor, direction: Tensor, index: Tensor) -> Tensor:
        """Return <grad L_j(phi), u> of the samples `index`."""
        slopes = [self._slopes(phi, direction, batch) for _, batch in self._chunks(index)]
        return torch.cat(slopes) if slopes else phi.new_zeros(0)

    def curvature(self, phi: Tensor, weights: Tensor, index: Tensor, direction: Tensor) -> Tensor:
        """Return H u, with H the Hessian of g over the samples `index`."""
        share = torch.sigmoid(weights)
        product = self.processes.partial(self.config.ridge * direction)
        for part, batch in self._chunks(index):
            loss = self.model.weighted_loss(batch, self._scale(share, part, index))

            def slope(p: Tensor, loss: Callable[[Tensor], Tensor] = loss) -> Tensor:
                return gradient_and_value(loss, p)[0]

            with torch.enable_grad():
                product = product + self._along(slope, phi, direction)
        return self.processes.all_reduce(product.detach())

    def check_derivative(self, phi: Tensor) -> None:
        """Compare forward mode with a finite difference on a few samples, and use the difference if forward mode fails.

        Warns:
            UserWarning: forward mode fails or disagrees with the difference; the message says how.
        """
        if self.config.derivative != "auto":
            return
        index = self.draws(0)[: min(64, len(self.samples))]
        generator = torch.Generator().manual_seed(self.config.seed)
        signs = torch.randint(0, 2, phi.shape, generator=generator, dtype=torch.int8)
        direction = (2 * signs - 1).to(phi)
        self.derivative = "difference"
        expected = self._products(phi, direction, index)
        try:
            self.derivative = "forward"
            found = self._products(phi, direction, index)
        except (RuntimeError, NotImplementedError) as error:
            problem = f"it fails: {str(error).splitlines()[0]}"
        else:
            wrong = max(
                float((one - other).norm() / other.norm().clamp(min=1e-30))
                for one, other in zip(found, expected, strict=True)
            )
            problem = "" if wrong < _AGREEMENT else f"it differs from a finite difference by {wrong:.2g}"
        if problem:
            self.derivative = "difference"
            warnings.warn(
                f"forward-mode differentiation of the model cannot be used ({problem}); finite differences are used "
                "instead. Set derivative='difference' to avoid this warning",
                stacklevel=3,
            )

    def _products(self, phi: Tensor, direction: Tensor, index: Tensor) -> list[Tensor]:
        """Return every kind of product that `pull_back` takes."""
        products = [self.directional(phi, direction, index)]
        if self.config.inner_steps > 1:
            uniform = torch.zeros(len(self.samples), device=phi.device)
            products.append(self.curvature(phi, uniform, index, direction))
        return products

    def _slopes(self, phi: Tensor, direction: Tensor, batch: Any) -> Tensor:
        with torch.no_grad():
            return self._along(lambda p: self.model.losses(p, batch), phi, direction)

    def _along(self, function: Callable[[Tensor], Tensor], phi: Tensor, direction: Tensor) -> Tensor:
        """Return the derivative of a function of phi along a direction."""
        if self.derivative == "difference":
            return self._difference(function, phi, direction)
        primal = phi.detach().requires_grad_(torch.is_grad_enabled())
        with forward_ad.dual_level():
            value, slope = forward_ad.unpack_dual(function(forward_ad.make_dual(primal, direction.to(phi.dtype))))
        return torch.zeros_like(value) if slope is None else slope

    @staticmethod
    def _difference(function: Callable[[Tensor], Tensor], phi: Tensor, direction: Tensor) -> Tensor:
        size = float(direction.abs().max())
        if size == 0.0:
            return torch.zeros_like(function(phi))
        step = _DIFFERENCE.get(phi.dtype, 1e-2) * max(float(phi.square().mean().sqrt()), 0.1) / size
        return (function(phi + step * direction) - function(phi - step * direction)) / (2 * step)

    def _by_double_backward(self, path: Path, weights: Tensor, direction: Tensor) -> Tensor:
        """Return the product of `pull_back` through the graph of all K steps, which is kept in full; for comparison."""
        with torch.enable_grad():
            leaf = weights.detach().clone().requires_grad_()
            point = path.points[0].detach().clone().requires_grad_()
            for index in path.draws:
                share = torch.sigmoid(leaf).to(point.dtype)
                loss = 0.5 * self.config.ridge * (point @ point)
                for part, batch in self._chunks(index):
                    loss = loss + share[part.to(share.device)] @ self.model.losses(point, batch) / len(index)
                (gradient,) = torch.autograd.grad(loss, point, create_graph=True)
                point = point - path.rate * gradient
            (pulled,) = torch.autograd.grad(point @ direction, leaf)
        return -pulled

    def _chunks(self, index: Tensor) -> Iterator[tuple[Tensor, Any]]:
        for part in index.split(self.config.chunk):
            if len(part):
                yield part, move(self.samples.batch(part), self.model.device)


def gradient_and_value(function: Callable[[Tensor], Tensor], phi: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of a scalar function at phi, and its value.

    It uses plain autograd, which takes modules with custom functions that `torch.func` refuses. If phi is a dual number
    that requires its gradient, the gradient is a dual number too: forward over reverse.

    Example:
        >>> gradient_and_value(lambda p: p @ p, torch.tensor([1.0, 2.0]))
        (tensor([2., 4.]), tensor(5.))
    """
    with torch.enable_grad():
        leaf = phi if phi.requires_grad else phi.detach().requires_grad_()
        value = function(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
    return gradient, value.detach()


def move(batch: Any, device: torch.device) -> Any:
    """Move a batch to a device: tensors, tuples, lists and mappings of them, or an object with a method ``to``."""
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: move(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(move(value, device) for value in batch)
    raise ConfigError(f"a batch is a {type(batch).__name__}; give tensors, or tuples, lists or mappings of them")
