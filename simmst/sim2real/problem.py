"""The problem that every solver is given, and the protocol that every solver follows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from simmst.distributed import ALONE, ProcessGroup
from simmst.errors import ConfigError, DataError
from simmst.sim2real.config import ReweightingConfig
from simmst.sim2real.flat_model import FlatModel, PerSampleLoss
from simmst.sim2real.inner import Inner, gradient_and_value, move
from simmst.sim2real.samples import Draws, Samples, as_samples

Record = dict[str, float]


class Mean:
    """G, the mean loss over samples, and its gradient.

    Example:
        >>> from simmst.sim2real.samples import TensorSamples
        >>> flat = FlatModel(nn.Linear(1, 1, bias=False), lambda m, batch: m(batch[0]).squeeze(1) ** 2)
        >>> mean = Mean(flat, TensorSamples(torch.ones(4, 1)), size=None, chunk=3, seed=0, stream="real")
        >>> mean.gradient(torch.tensor([2.0]), step=0)
        (tensor([4.]), 4.0)
    """

    def __init__(
        self,
        model: FlatModel,
        samples: Samples,
        *,
        size: int | None,
        chunk: int,
        seed: int,
        stream: str,
        processes: ProcessGroup = ALONE,
    ) -> None:
        self.model, self.samples, self.chunk, self.processes = model, samples, chunk, processes
        self.draws = Draws(len(samples), size, seed=seed, stream=stream)

    def gradient(self, phi: Tensor, step: int) -> tuple[Tensor, float]:
        """Return the gradient and value of G over the samples drawn for a step."""
        index = self.draws(step)
        gradient, value = torch.zeros_like(phi), torch.zeros((), dtype=phi.dtype, device=phi.device)
        for part in self._parts(index):
            batch = move(self.samples.batch(part), self.model.device)
            shares = torch.full((len(part),), 1 / len(index), dtype=phi.dtype, device=phi.device)
            piece, loss = gradient_and_value(self.model.weighted_loss(batch, shares), phi)
            gradient, value = gradient + piece, value + loss
        return self.processes.all_reduce(gradient), float(self.processes.all_reduce(value))

    def value(self, phi: Tensor) -> float:
        """Return G over all samples."""
        return float(self.processes.all_reduce(self.losses(phi).double().sum())) / len(self.samples)

    @torch.no_grad()
    def losses(self, phi: Tensor) -> Tensor:
        """Return the losses of all samples, (n,), or of this rank's share of them."""
        parts = self._parts(torch.arange(len(self.samples)))
        losses = [self.model.losses(phi, move(self.samples.batch(p), self.model.device)) for p in parts]
        return torch.cat(losses) if losses else phi.new_zeros(0)

    def first_bad_gradient(self, phi: Tensor) -> int | None:
        """Return the first sample whose gradient is not finite at phi; None if none is, or if losses are not finite."""
        total = len(self.samples)
        if not self.processes.all_reduce_min(int(torch.isfinite(self.losses(phi)).all()), self.model.device):
            return None
        found = (self._bad_among(part, phi) for part in self._parts(torch.arange(total)))
        first = self.processes.all_reduce_min(
            next((number for number in found if number is not None), total), self.model.device
        )
        return None if first == total else first

    def _bad_among(self, index: Tensor, phi: Tensor) -> int | None:
        """Return the first of the samples `index` whose gradient is not finite, found by bisection."""
        batch = move(self.samples.batch(index), self.model.device)
        shares = torch.full((len(index),), 1 / len(index), dtype=phi.dtype, device=phi.device)
        gradient, _ = gradient_and_value(self.model.weighted_loss(batch, shares), phi)
        if bool(torch.isfinite(gradient).all()):
            return None
        if len(index) == 1:
            return int(index)
        halves = (self._bad_among(half, phi) for half in index.tensor_split(2))
        return next((number for number in halves if number is not None), None)

    def _parts(self, index: Tensor) -> list[Tensor]:
        """Return this rank's share of the samples `index`, cut into chunks."""
        return [part for part in self.processes.shard(index).split(self.chunk) if len(part)]


@dataclass
class Problem:
    """A model, a per-sample loss, simulated and real samples, and the settings.

    Args:
        module: the model; trained in place at the end.
        per_sample_loss: called as ``per_sample_loss(module, batch)``, returns (B,).
        simulated: samples to be weighted.
        real: samples that decide the weights and are also trained on.
        config: the settings.
        groups: int64 (n,), group of each simulated sample; the samples of a group share a weight. None gives each
            sample a weight of its own.
        features: (G, P), known features of each group; the weights of the groups are then ``features @ w``, with P
            entries of w. None gives each group a weight of its own.
        processes: processes that share the work.

    Raises:
        ConfigError: the module does not allow weighted samples, or the groups or features do not fit.
        DataError: there are no simulated or no real samples.
    """

    module: nn.Module
    per_sample_loss: PerSampleLoss
    simulated: Any
    real: Any
    config: ReweightingConfig
    groups: Tensor | None = None
    processes: ProcessGroup = ALONE
    features: Tensor | None = None
    model: FlatModel = field(init=False)
    inner: Inner = field(init=False)
    outer: Mean = field(init=False)
    own_groups: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.simulated = as_samples(self.simulated, "simulated")
        self.real = as_samples(self.real, "real")
        self.model = FlatModel(self.module, self.per_sample_loss)
        if self.processes.world_size > 1:
            self.model.store(self.processes.broadcast(self.model.flatten()))
        self.inner = Inner(self.model, self.simulated, self.config, self.processes)
        self.outer = self.mean(self.real, self.config.real_batch, "real")
        if self.groups is not None:
            self.groups = torch.as_tensor(self.groups, dtype=torch.int64)
            if self.groups.shape != (len(self.simulated),) or int(self.groups.min()) < 0:
                raise ConfigError(
                    f"groups must give each of the {len(self.simulated)} simulated samples a number from 0 on, "
                    f"got shape {tuple(self.groups.shape)}"
                )
            self.own_groups = self.processes.shard(self.groups).to(self.model.device)
        if self.features is not None:
            self._check_features()

    def _check_features(self) -> None:
        assert self.features is not None  # noqa: S101 - by its caller
        features = torch.as_tensor(self.features, dtype=torch.float32)
        number = None if self.groups is None else int(self.groups.max()) + 1
        if features.ndim != 2 or features.shape[0] != number or not bool(torch.isfinite(features).all()):
            raise ConfigError(
                f"features must give each of the {number or 0} groups a row of finite numbers, got shape "
                f"{tuple(features.shape)}; features need groups too"
            )
        self.features = features.to(self.model.device)

    def mean(self, samples: Samples, size: int | None, stream: str) -> Mean:
        """Return the mean loss over samples."""
        config = self.config
        return Mean(
            self.model,
            samples,
            size=size,
            chunk=config.chunk,
            seed=config.seed,
            stream=stream,
            processes=self.processes,
        )

    @property
    def total_weights(self) -> int:
        """Number of weights on all ranks: of samples, of groups, or of the groups' features."""
        if self.features is not None:
            return self.features.shape[1]
        return len(self.simulated) if self.groups is None else int(self.groups.max()) + 1

    @property
    def weight_processes(self) -> ProcessGroup:
        """The ranks that the weights are sharded over; the weights of groups are the same on every rank."""
        return self.processes if self.groups is None else ALONE

    @property
    def num_weights(self) -> int:
        """Number of weights that this rank keeps."""
        return self.weight_processes.shard_size(self.total_weights)

    def by_group(self, weights: Tensor) -> Tensor:
        """Return the weight of each group, computed from its features if there are any."""
        return weights if self.features is None else self.features.to(weights.dtype) @ weights

    def spread(self, weights: Tensor) -> Tensor:
        """Return the weight of each of this rank's samples, (n_r,): that of its group if there are groups."""
        return weights if self.own_groups is None else self.by_group(weights)[self.own_groups]

    def gather(self, per_sample: Tensor) -> Tensor:
        """Sum over the samples of each group, and over the groups by their features: the chain rule of `spread`."""
        if self.own_groups is None:
            return per_sample
        assert self.groups is not None  # noqa: S101 - own_groups are some of them
        own = per_sample.new_zeros(int(self.groups.max()) + 1).index_add_(0, self.own_groups, per_sample)
        return self._by_feature(self.processes.all_reduce(own))

    def decay(self, weights: Tensor) -> Tensor:
        """Return the gradient for w of the penalties that draw weights of samples or groups towards uniform ones."""
        tied, config = self.by_group(weights), self.config
        share = torch.sigmoid(tied)
        pull = config.weight_decay * tied + config.share_decay * share * (1 - share) * (share - 0.5)
        number = self.total_weights if self.features is None else len(tied)
        return self._by_feature(pull / number)

    def _by_feature(self, per_group: Tensor) -> Tensor:
        return per_group if self.features is None else self.features.to(per_group.dtype).T @ per_group

    def refuse_bad_samples(self, phi: Tensor, validation: Samples | None) -> None:
        """Raise if a sample's loss is not finite at phi.

        Raises:
            ConfigError: phi itself is not finite.
            DataError: a sample's loss is not finite; the message names the first such sample.
        """
        if not bool(torch.isfinite(phi).all()):
            raise ConfigError("the module's parameters are not all finite; start from a fresh module")
        for name, samples in (("simulated", self.simulated), ("real", self.real), ("validation", validation)):
            if samples is None:
                continue
            bad = ~torch.isfinite(self.mean(samples, None, name).losses(phi))
            number = self.processes.shard(torch.arange(len(samples), device=bad.device))[bad]
            first = self.processes.all_reduce_min(int(number[0]) if len(number) else len(samples), phi.device)
            if first < len(samples):
                count = int(self.processes.all_reduce(bad.sum()))
                raise DataError(
                    f"the loss of {name} sample {first} is not finite ({count} of "
                    f"{len(samples)} are not); leave the sample out, or mask its missing values in the loss"
                )

    def refuse_bad_gradients(self, points: Collection[Tensor]) -> None:
        """Raise if a sample's gradient is not finite at one of the points, where all losses are finite.

        Raises:
            DataError: a sample's gradient is not finite; the message names the first such sample.
        """
        for name, samples in (("simulated", self.simulated), ("real", self.real)):
            mean = self.mean(samples, None, name)
            for phi in points:
                first = mean.first_bad_gradient(phi)
                if first is not None:
                    raise DataError(
                        f"the loss of {name} sample {first} is finite, but its gradient is not; leave the sample out, "
                        "or make the loss smooth there (a root or a norm at 0: add a small number inside)"
                    )


class Solver(Protocol):
    """Method that finds weights and a model. It is made for one problem and advanced step by step.

    Attributes:
        problem: problem with the settings that hold for this solver.
        strided: names of the state's tensors with a column for each weight of this rank.
        blocked: names of the state's tensors with a column for each parameter of this rank's part of the model.
    """

    problem: Problem
    strided: frozenset[str]
    blocked: frozenset[str]

    def step(self, number: int) -> Record:
        """Take outer step `number` and return its record for the log."""
        ...

    def weights(self) -> Tensor:
        """Return w, with one entry for each sample of this rank or each group; zeros if the solver weights nothing."""
        ...

    def candidates(self) -> dict[str, Tensor]:
        """Return the models that can be chosen, as vectors, by name."""
        ...

    def slow_down(self) -> None:
        """Halve the step sizes, after a number was not finite."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the result of `state_dict`."""
        ...


MakeSolver = Callable[[Problem], Solver]
