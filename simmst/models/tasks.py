"""The embedding of the service, which tells the services apart in a network whose weights they share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simmst.models.noise import uniform

KNOWN_SERVICES = ("call", "sms", "internet")
_UNKNOWN = len(KNOWN_SERVICES)
# Share of training samples with unnamed services, so that the network can also forecast services with other names.
_UNNAMED_SHARE = 0.15


class TaskEmbedding(nn.Module):
    """Embed the services of a model; a service without its own embedding takes that of the unknown service.

    Args:
        services: names of the K tasks.
        width: number of features of a token, C.

    Example:
        >>> tasks = TaskEmbedding(("sms", "voice"), 8).eval()
        >>> tasks(4).shape, tasks.borrowed
        (torch.Size([8, 8]), ('voice',))
    """

    def __init__(self, services: tuple[str, ...], width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(0.1 * torch.randn(_UNKNOWN + 1, width))
        numbers = [KNOWN_SERVICES.index(name) if name in KNOWN_SERVICES else _UNKNOWN for name in services]
        self.borrowed = tuple(name for name in services if name not in KNOWN_SERVICES)
        self.register_buffer("numbers", torch.tensor(numbers), persistent=False)

    numbers: Tensor

    def forward(self, batch: int) -> Tensor:
        """Return the embeddings of the tasks of B samples, (B * K, C), with the tasks of a sample side by side."""
        numbers = self.numbers.repeat(batch)
        if self.training:
            unnamed = uniform(batch, 1, device=numbers.device) < _UNNAMED_SHARE
            numbers = torch.where(unnamed.expand(batch, self.numbers.shape[0]).flatten(), _UNKNOWN, numbers)
        return self.table[numbers]
