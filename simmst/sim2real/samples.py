"""Data sets as the algorithm sees them: samples that are gathered by number."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from simmst.errors import DataError


@runtime_checkable
class Samples(Protocol):
    """Samples that are gathered by number, such as `simmst.data.Windows`."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def batch(self, indices: Any) -> Any:
        """Gather samples by number, in the form that the loss takes."""
        ...


class TensorSamples:
    """Tensors with one entry per sample along their first dimension; a batch is the tuple of their rows.

    Raises:
        DataError: there is no tensor, or they have different lengths.

    Example:
        >>> samples = TensorSamples(torch.arange(6.0).view(3, 2), torch.tensor([1, 2, 3]))
        >>> len(samples), samples.batch(torch.tensor([2]))
        (3, (tensor([[4., 5.]]), tensor([3])))
    """

    def __init__(self, *tensors: Tensor) -> None:
        lengths = sorted({len(tensor) for tensor in tensors})
        if len(lengths) != 1:
            raise DataError(f"give tensors of the same length, with one entry per sample; their lengths are {lengths}")
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def batch(self, indices: Any) -> tuple[Tensor, ...]:
        """Return the rows with these numbers."""
        index = torch.as_tensor(indices)
        return tuple(tensor[index.to(tensor.device)] for tensor in self.tensors)


class _MapSamples:
    """A torch data set of the map style, collated as by its `DataLoader`."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Any) -> Any:
        return torch.utils.data.default_collate([self.dataset[int(i)] for i in indices])


def as_samples(data: Any, name: str) -> Samples:
    """Return tensors or a torch data set of the map style as samples that are gathered by number.

    Args:
        data: a tensor, a sequence of tensors, a data set with ``__getitem__`` and ``__len__``, or `Samples`.
        name: name of the data, for messages.

    Raises:
        DataError: there is no sample, or ``data`` is none of these.

    Example:
        >>> len(as_samples((torch.zeros(4, 2), torch.zeros(4)), "real"))
        4
    """
    if isinstance(data, Tensor):
        samples: Samples = TensorSamples(data)
    elif isinstance(data, Sequence) and data and all(isinstance(part, Tensor) for part in data):
        samples = TensorSamples(*data)
    elif isinstance(data, Samples):
        samples = data
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        samples = _MapSamples(data)
    else:
        raise DataError(
            f"the {name} data are a {type(data).__name__}; give tensors, a torch data set, or an object with __len__ "
            "and batch(indices)"
        )
    if len(samples) == 0:
        raise DataError(f"the {name} data hold no sample; give at least one")
    return samples


def refuse_overlap(real: Samples, validation: Samples) -> None:
    """Raise if a validation sample is among those trained on.

    An overlap is found in data that are the same object, in subsets of one torch data set, and in tensors that hold
    equal rows. Data sets of another kind are not checked.

    Raises:
        DataError: a validation sample is a real sample too; the message names the first such pair.

    Example:
        >>> refuse_overlap(TensorSamples(torch.arange(4)), TensorSamples(torch.arange(3, 6)))
        Traceback (most recent call last):
            ...
        simmst.errors.DataError: validation sample 0 is real sample 3 as well (1 of 3 are); the validation samples ...
    """
    names: tuple[Sequence[Any], Sequence[Any]]
    if _origin(real) is _origin(validation):
        names = _numbers(real), _numbers(validation)
    elif isinstance(real, TensorSamples) and isinstance(validation, TensorSamples):
        names = _rows(real), _rows(validation)
    else:
        return
    trained = {name: number for number, name in enumerate(names[0])}
    shared = [(number, trained[name]) for number, name in enumerate(names[1]) if name in trained]
    if shared:
        raise DataError(
            f"validation sample {shared[0][0]} is real sample {shared[0][1]} as well ({len(shared)} of "
            f"{len(validation)} are); the validation samples choose among models, so none may be a real one"
        )


def _origin(samples: Samples) -> Any:
    data = samples.dataset if isinstance(samples, _MapSamples) else samples
    while isinstance(data, torch.utils.data.Subset):
        data = data.dataset
    return data


def _numbers(samples: Samples) -> list[int]:
    """Return the number of every sample in its original data set."""
    data = samples.dataset if isinstance(samples, _MapSamples) else samples
    numbers = list(range(len(samples)))
    while isinstance(data, torch.utils.data.Subset):
        numbers, data = [int(data.indices[number]) for number in numbers], data.dataset
    return numbers


def _rows(samples: TensorSamples) -> list[bytes]:
    """Return a hash of the bytes of every sample."""
    parts = [
        tensor.detach().cpu().contiguous().reshape(len(samples), math.prod(tensor.shape[1:])).view(torch.uint8).numpy()
        for tensor in samples.tensors
    ]
    return [hashlib.sha256(b"".join(part[i].tobytes() for part in parts)).digest() for i in range(len(samples))]


class Draws:
    """The samples of each step, a function of (seed, stream, step) alone, so that a resumed run draws the same.

    Args:
        total: number of samples.
        size: samples per step; None takes all of them, in order.
        seed: seed of the run.
        stream: name of the draw.

    Example:
        >>> Draws(5, None, seed=0, stream="real")(3).tolist()
        [0, 1, 2, 3, 4]
        >>> len(set(Draws(100, 10, seed=0, stream="real")(3).tolist()))
        10
    """

    def __init__(self, total: int, size: int | None, *, seed: int, stream: str) -> None:
        self.total, self.size = total, None if size is None or size >= total else size
        self.key = [seed, *stream.encode()]

    @property
    def count(self) -> int:
        """Number of samples per step."""
        return self.total if self.size is None else self.size

    def __call__(self, step: int) -> Tensor:
        """Return the samples of a step, int64, ascending."""
        if self.size is None:
            return torch.arange(self.total)
        chosen = np.random.default_rng([*self.key, step]).choice(self.total, self.size, replace=False)
        return torch.from_numpy(np.sort(chosen).astype(np.int64))
