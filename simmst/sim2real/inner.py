r"""The inner problem: K weighted gradient steps, and what the sample weights have to do with where they lead.

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
from torch.func import grad, grad_and_value, jvp

from simmst.errors import ConfigError
from simmst.sim2real.config import ReweightingConfig
from simmst.sim2real.flat_model import FlatModel
from simmst.sim2real.samples import Draws, Samples

_DIFFERENCE = {torch.float64: 1e-5, torch.float32: 3e-3}  # of the parameters' scale: eps^(1/3)
_AGREEMENT = 0.02  # relative, between forward mode and the difference at the start


class Path(NamedTuple):
    """The points theta_0 .. theta_K and the samples B_0 .. B_{K-1} of the steps between them."""

    points: list[Tensor]
    draws: list[Tensor]

    @property
    def end(self) -> Tensor:
        """Where the steps lead: psi."""
        return self.points[-1]


class Inner:
    """The inner problem of a model, a loss and weighted samples.

    Args:
        model: the flat model.
        samples: the simulated samples.
        config: the settings.

    Attributes:
        derivative: how products with psi's derivative are taken: "forward", "difference" or "double-backward".

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

    def __init__(self, model: FlatModel, samples: Samples, config: ReweightingConfig) -> None:
        self.model, self.samples, self.config = model, samples, config
        self.draws = Draws(len(samples), config.simulated_batch, seed=config.seed, stream="simulated")
        self.derivative = config.derivative if config.derivative != "auto" else "forward"

    def unroll(self, weights: Tensor, start: Tensor, step: int) -> Path:
        """Take K steps from `start` on samples drawn for outer step `step`."""
        points, draws = [start], []
        for k in range(self.config.inner_steps):
            draws.append(self.draws(step * self.config.inner_steps + k))
            gradient, _ = self.gradient(points[-1], weights, draws[-1])
            points.append(points[-1] - self.config.inner_lr * gradient)
        return Path(points, draws)

    def gradient(self, phi: Tensor, weights: Tensor, index: Tensor) -> tuple[Tensor, float]:
        """Return the gradient and value of g at phi, over the samples `index`."""
        share = torch.sigmoid(weights)
        gradient, value = self.config.ridge * phi, 0.5 * self.config.ridge * float(phi @ phi)
        for part, batch in self._chunks(index):
            scale = share[part.to(share.device)] / len(index)
            piece, loss = grad_and_value(lambda p, b=batch, s=scale: s.to(p.dtype) @ self.model.losses(p, b))(phi)
            gradient, value = gradient + piece, value + float(loss)
        return gradient, value

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
            place = index.to(weights.device)
            pulled[place] += self.config.inner_lr / len(index) * slope[place] * along.to(weights.dtype)
            if k > 0:
                direction = direction - self.config.inner_lr * self._curvature(point, weights, index, direction)
        return pulled

    def directional(self, phi: Tensor, direction: Tensor, index: Tensor) -> Tensor:
        """Return <grad L_j(phi), u> of the samples `index`."""
        return torch.cat([self._slopes(phi, direction, batch) for _, batch in self._chunks(index)])

    def check_derivative(self, phi: Tensor) -> None:
        """Compare forward mode with a difference on a few samples, and take the difference where it fails.

        Warns:
            UserWarning: forward mode fails or disagrees with the difference; says how.
        """
        if self.config.derivative != "auto":
            return
        index = self.draws(0)[: min(64, len(self.samples))]
        generator = torch.Generator().manual_seed(self.config.seed)
        direction = torch.randn(phi.shape, generator=generator, dtype=torch.float64).to(phi)
        self.derivative = "difference"
        expected = self.directional(phi, direction, index)
        try:
            self.derivative = "forward"
            found = self.directional(phi, direction, index)
        except (RuntimeError, NotImplementedError) as error:
            problem = f"it fails: {str(error).splitlines()[0]}"
        else:
            wrong = float((found - expected).norm() / expected.norm().clamp(min=1e-30))
            problem = "" if wrong < _AGREEMENT else f"it differs from a finite difference by {wrong:.2g}"
        if problem:
            self.derivative = "difference"
            warnings.warn(
                f"forward-mode differentiation of the model cannot be used ({problem}); its finite difference is taken "
                "instead. Set derivative='difference' to expect that",
                stacklevel=3,
            )

    def _slopes(self, phi: Tensor, direction: Tensor, batch: Any) -> Tensor:
        def losses(p: Tensor) -> Tensor:
            return self.model.losses(p, batch)

        if self.derivative == "forward":
            with torch.no_grad():
                slopes: Tensor = jvp(losses, (phi,), (direction,))[1]
            return slopes
        with torch.no_grad():
            return self._difference(losses, phi, direction)

    def _curvature(self, phi: Tensor, weights: Tensor, index: Tensor, direction: Tensor) -> Tensor:
        """H u, with H the Hessian of g over the samples `index`."""
        share = torch.sigmoid(weights)
        product = self.config.ridge * direction
        for part, batch in self._chunks(index):
            scale = (share[part.to(share.device)] / len(index)).to(phi.dtype)
            slope = grad(lambda p, b=batch, s=scale: s @ self.model.losses(p, b))
            if self.derivative == "forward":
                product = product + jvp(slope, (phi,), (direction,))[1]
            else:
                product = product + self._difference(slope, phi, direction)
        return product

    @staticmethod
    def _difference(function: Callable[[Tensor], Tensor], phi: Tensor, direction: Tensor) -> Tensor:
        size = float(direction.abs().max())
        if size == 0.0:
            return torch.zeros_like(function(phi))
        step = _DIFFERENCE.get(phi.dtype, 1e-2) * max(float(phi.square().mean().sqrt()), 0.1) / size
        return (function(phi + step * direction) - function(phi - step * direction)) / (2 * step)

    def _by_double_backward(self, path: Path, weights: Tensor, direction: Tensor) -> Tensor:
        """The same product through the graph of all K steps, which is kept whole; for comparison."""
        with torch.enable_grad():
            leaf = weights.detach().clone().requires_grad_()
            point = path.points[0].detach().clone().requires_grad_()
            for index in path.draws:
                share = torch.sigmoid(leaf).to(point.dtype)
                loss = 0.5 * self.config.ridge * (point @ point)
                for part, batch in self._chunks(index):
                    loss = loss + share[part.to(share.device)] @ self.model.losses(point, batch) / len(index)
                (gradient,) = torch.autograd.grad(loss, point, create_graph=True)
                point = point - self.config.inner_lr * gradient
            (pulled,) = torch.autograd.grad(point @ direction, leaf)
        return -pulled

    def _chunks(self, index: Tensor) -> Iterator[tuple[Tensor, Any]]:
        for part in index.split(self.config.chunk):
            batch = self.samples.batch(part)
            yield part, move(batch, self.model.device)


def move(batch: Any, device: torch.device) -> Any:
    """Move a batch to a device: tensors, tuples, lists and mappings of them, or what has ``to``."""
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: move(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(move(value, device) for value in batch)
    raise ConfigError(f"a batch is a {type(batch).__name__}; give tensors, or tuples, lists or mappings of them")
