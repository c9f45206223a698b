"""The task weights at each step: by the losses, by torchjd's scalarizers, or by the gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from simmst.errors import ConfigError
from simmst.foundation.extras import import_extra
from simmst.foundation.task_weights import GRADIENT_WEIGHTS, SIMPLEX_WEIGHTS
from simmst.models import TaskWeights

_TEMPERATURE = 2.0  # of DWA (Liu, Johns & Davison 2019)
_SMOOTHING = 0.1  # of STCH: among the values of Lin et al. 2024


class TaskWeighting:
    """Weights of the tasks from their losses alone: Sim-MSTNet's Eq. 13, or all the same.

    The loop passes a step's losses to `weigh` and differentiates the weighted sum; it also reports the end of each step
    and of each epoch.

    Args:
        tasks: task weights, which are kept here.
    """

    by_gradients = False

    def __init__(self, tasks: TaskWeights) -> None:
        self.tasks = tasks

    def weigh(self, losses: Tensor, observed: Tensor) -> Tensor:
        """Return the weights of a step, (K,).

        Args:
            losses: losses of the whole batch, (K,).
            observed: whether a task had any target in the batch, bool (K,).
        """
        return self.tasks.update(losses)

    def after_step(self, losses_now: Callable[[], Tensor]) -> None:
        """Learn from what the step changed: `losses_now` forecasts the same batch again."""

    def after_epoch(self) -> None:
        """Learn from the epoch."""

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold besides the weights."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore the state that `state` returned."""


class ScalarizedWeighting(TaskWeighting):
    """The weights that a scalarizer of torchjd gives the losses: its derivative with respect to each loss.

    "uncertainty" (Kendall et al. 2018) and "imtl-l" (Liu et al. 2021) have parameters of their own, which Adam trains
    along with the network. "dwa" (Liu et al. 2019) compares epochs. "famo" (Liu et al. 2023) compares the losses before
    and after a step, for which the batch is forecast once more. "stch" (Lin et al. 2024) is a smooth maximum.

    Args:
        tasks: task weights.
        learning_rate: learning rate of the scalarizer's parameters.
    """

    def __init__(self, tasks: TaskWeights, learning_rate: float) -> None:
        super().__init__(tasks)
        library = import_extra("torchjd.scalarization", extra="mtl")
        count = len(tasks.weights)
        make: dict[str, Callable[[], nn.Module]] = {
            "uncertainty": lambda: library.UW(count),
            "dwa": lambda: library.DWA(_TEMPERATURE),
            "imtl-l": lambda: library.IMTLL(count),
            "famo": lambda: library.FAMO(count),
            "stch": lambda: library.STCH(_SMOOTHING),
        }
        self.scalarizer: Any = make[tasks.mode]().to(tasks.weights.device)
        self.learns = tasks.mode in ("uncertainty", "imtl-l")
        self.optimizer = (
            torch.optim.Adam(self.scalarizer.parameters(), lr=learning_rate, betas=(0.9, 0.99)) if self.learns else None
        )
        self.losses: list[Tensor] = []  # of this epoch
        self.means: list[Tensor] = []  # of the last two epochs

    def weigh(self, losses: Tensor, observed: Tensor) -> Tensor:
        """Return the scalarizer's derivatives with respect to the losses, (K,); see `TaskWeighting.weigh`."""
        leaf = _filled(losses, observed).requires_grad_()
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            self.scalarizer(leaf).backward()
        assert leaf.grad is not None  # noqa: S101 - backward has just left it
        if self.optimizer is not None:
            self.optimizer.step()
        self.losses.append(leaf.detach())
        return self.tasks.keep(leaf.grad)

    def after_step(self, losses_now: Callable[[], Tensor]) -> None:
        """Let FAMO compare the losses before and after the step."""
        if self.tasks.mode == "famo":
            now = losses_now()
            self.scalarizer.update(torch.where(torch.isfinite(now) & (now > 0), now, self.losses[-1]))

    def after_epoch(self) -> None:
        """Let DWA compare the epochs."""
        if self.losses:
            self.means = [*self.means, torch.stack(self.losses).mean(0)][-2:]
        self.losses = []
        if self.tasks.mode == "dwa":
            self._replay()

    def state(self) -> dict[str, Tensor]:
        """Return the parameters, the moments of their optimiser and the losses of the last epochs."""
        tensors = {f"scalarizer/{name}": tensor.detach() for name, tensor in self.scalarizer.state_dict().items()}
        tensors |= {f"mean/{number}": mean for number, mean in enumerate(self.means)}
        optimizer = self._optimizer()
        moments = {} if optimizer is None else optimizer.state_dict()["state"]
        for number, values in moments.items():
            tensors |= {f"moment/{number}/{name}": torch.as_tensor(value) for name, value in values.items()}
        return tensors

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore the state that `state` returned."""
        self.scalarizer.load_state_dict(
            {
                name.removeprefix("scalarizer/"): tensor
                for name, tensor in state.items()
                if name.startswith("scalarizer/")
            }
        )
        device = self.tasks.weights.device
        self.means = [state[f"mean/{number}"].to(device) for number in range(2) if f"mean/{number}" in state]
        if self.tasks.mode == "dwa":
            self._replay()
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            if key.startswith("moment/"):
                _, number, name = key.split("/")
                moments.setdefault(int(number), {})[name] = tensor
        if moments:
            optimizer = self._optimizer(make=True)
            assert optimizer is not None  # noqa: S101 - the moments are an optimiser's
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})

    def _replay(self) -> None:
        """Tell DWA the mean losses of the last epochs, which its state does not hold.

        One call with the mean of an epoch stands for the epoch's calls, because DWA averages them.
        """
        self.scalarizer.reset()
        for mean in self.means:
            self.scalarizer(mean)
            self.scalarizer.step()

    def _optimizer(self, *, make: bool = False) -> torch.optim.Optimizer | None:
        """Return the optimiser of the scalarizer's parameters; FAMO has its own, made at its first step."""
        if self.tasks.mode != "famo":
            return self.optimizer
        famo = self.scalarizer
        if make and famo._optimizer is None:
            famo._optimizer = torch.optim.Adam(famo.parameters(), lr=famo.lr, weight_decay=famo.weight_decay)
        optimizer: torch.optim.Optimizer | None = famo._optimizer
        return optimizer


class GradientWeighting(TaskWeighting):
    """The task weights that torchjd finds from the inner products of the tasks' gradients.

    "upgrad" projects each gradient so that it conflicts with none (Quinton & Rey 2024), "mgda" takes the shortest
    convex combination (Désidéri 2012), "pcgrad" projects conflicts out pair by pair (Yu et al. 2020).
    """

    by_gradients = True

    def __init__(self, tasks: TaskWeights) -> None:
        super().__init__(tasks)
        library = import_extra("torchjd.aggregation", extra="mtl")
        if tasks.mode == "upgrad":
            import_extra("quadprog", extra="mtl")
            import_extra("qpsolvers", extra="mtl")
        names = {"upgrad": "UPGradWeighting", "mgda": "MGDAWeighting", "pcgrad": "PCGradWeighting"}
        self.weighting: Any = getattr(library, names[tasks.mode])()

    def weigh_gradients(self, gradients: Tensor, observed: Tensor) -> Tensor:
        """Return the weights of a step, (K,); a task without any target has weight 0.

        Args:
            gradients: gradient of each task's loss, (K, P).
            observed: whether a task had any target in the batch, bool (K,).
        """
        weights = gradients.new_zeros(len(gradients))
        if bool(observed.any()) and bool(torch.isfinite(gradients).all()):
            rows = gradients[observed]
            weights[observed] = self.weighting(rows @ rows.t()).to(weights)
        else:
            weights.fill_(1 / len(weights))  # the loop refuses what is not finite
        return self.tasks.keep(weights)


def task_weighting(tasks: TaskWeights, *, learning_rate: float, world_size: int = 1) -> TaskWeighting:
    """Return the task weighting that the mode of the task weights names.

    Args:
        tasks: task weights.
        learning_rate: learning rate of parameters of the weighting itself.
        world_size: number of processes that share the training.

    Raises:
        MissingExtraError: the mode needs torchjd, which is not installed.
        ConfigError: the mode needs the gradient of each task, and several processes share the training.

    Example:
        >>> weighting = task_weighting(TaskWeights(2), learning_rate=1e-3)
        >>> weighting.weigh(torch.tensor([1.0, 3.0]), torch.tensor([True, True])).tolist()
        [0.25, 0.75]
    """
    if tasks.mode in SIMPLEX_WEIGHTS:
        return TaskWeighting(tasks)
    if tasks.mode not in GRADIENT_WEIGHTS:
        return ScalarizedWeighting(tasks, learning_rate)
    if world_size > 1:
        raise ConfigError(
            f"task_weights {tasks.mode!r} needs the gradient of each task in one process, but {world_size} were "
            "started; start it without torchrun, or take loss_share, average or a scalarizer such as famo"
        )
    return GradientWeighting(tasks)


def refuse_changing_weights(mode: str) -> None:
    """Refuse task weights that change at every step, because re-weighting windows needs fixed ones.

    Example:
        >>> refuse_changing_weights("loss_share")
    """
    if mode not in SIMPLEX_WEIGHTS:
        raise ConfigError(
            f"task_weights {mode!r} changes the task weights at every step, and re-weighting windows needs fixed ones; "
            f"take one of: {', '.join(SIMPLEX_WEIGHTS)}"
        )


def task_gradients(losses: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the gradient of each task's loss with respect to all parameters, one below the other, (K, P)."""
    rows = []
    for number in range(len(losses)):
        found = torch.autograd.grad(
            losses[number], parameters, retain_graph=number < len(losses) - 1, materialize_grads=True
        )
        rows.append(torch.cat([one.reshape(-1) for one in found]))
    return torch.stack(rows)


def set_gradient(parameters: Sequence[nn.Parameter], gradient: Tensor) -> None:
    """Write a gradient (P,) into the parameters."""
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, part in zip(parameters, gradient.split(sizes), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)


def _filled(losses: Tensor, observed: Tensor) -> Tensor:
    """Return the losses as constants, with the mean of the others for tasks without any target."""
    losses = losses.detach().clone()
    if bool(observed.any()):
        losses[~observed] = losses[observed].mean()
    return losses
