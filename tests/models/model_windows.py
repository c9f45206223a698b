"""A small model, and drawn windows with their memory."""

from __future__ import annotations

import dataclasses

import torch

from simmst.foundation.memory import Memory
from simmst.models import SimMSTNet, SimMSTNetConfig

NAN = float("nan")
SMALL = SimMSTNetConfig(
    services=("call", "internet"),
    input_length=14,
    horizon=3,
    label_length=4,
    neighbourhood=3,
    num_marks=2,
    width=8,
    num_heads=2,
    encoder_layers=1,
    feedforward=12,
    factor=2,
    dropout=0.0,
    memory_days=8,
)


def small(**changes) -> SimMSTNetConfig:
    return dataclasses.replace(SMALL, **changes)


def randomise(model: SimMSTNet, *, seed: int = 0, size: float = 0.1) -> SimMSTNet:
    """Change every parameter, because the highway and the biases of the days start at zero by design."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += size * noise.to(parameter)
    return model


def build(config: SimMSTNetConfig = SMALL, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> SimMSTNet:
    """Return an untrained model in which every part has an effect."""
    torch.manual_seed(seed)
    return randomise(SimMSTNet(config).to(dtype).eval(), seed=seed)


def inputs(config: SimMSTNetConfig = SMALL, *, batch: int = 5, seed: int = 1, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    side, steps = config.neighbourhood, config.input_length + config.horizon
    values = torch.randn(batch, config.input_length, config.num_tasks, side, side, generator=generator, dtype=dtype)
    marks = torch.randn(batch, steps, config.num_marks, generator=generator, dtype=dtype)
    return values, marks, torch.ones(batch, side, side, dtype=torch.bool)


def memory_of(
    config: SimMSTNetConfig = SMALL,
    *,
    batch: int = 5,
    seed: int = 2,
    days: int = 5,
    dtype: torch.dtype = torch.float64,
) -> Memory:
    """Return the memory of a series that reaches back some days."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator, dtype=torch.float64).to(dtype)

    side, tasks, steps = config.neighbourhood, config.num_tasks, config.input_length + config.horizon
    past = drawn(config.memory_days, steps, tasks)
    past[:, days:] = NAN
    return Memory(
        days=past,
        same_day=(drawn(config.memory_days, config.horizon, 2) > 0).to(dtype),
        usual=drawn(config.input_length, tasks, side, side),
        city=drawn(config.input_length, tasks),
        level=drawn(tasks, side, side),
        spread=drawn(tasks, side, side).abs() + 0.1,
        context=torch.full((batch,), float(days), dtype=dtype),
        steps_per_day=torch.full((batch,), 24.0, dtype=dtype),
    )


def of_tasks(memory: Memory, tasks: list[int]) -> Memory:
    """Return the memory of some of the tasks."""
    return memory._replace(
        days=memory.days[..., tasks],
        usual=memory.usual[:, :, tasks],
        city=memory.city[..., tasks],
        level=memory.level[:, tasks],
        spread=memory.spread[:, tasks],
    )


def without_tasks(memory: Memory, tasks: list[int]) -> Memory:
    """Return the memory with nothing known about some tasks."""
    memory = Memory(*(tensor.clone() for tensor in memory))
    memory.days[..., tasks] = NAN
    memory.usual[:, :, tasks] = NAN
    memory.city[..., tasks] = NAN
    memory.level[:, tasks] = NAN
    memory.spread[:, tasks] = NAN
    return memory
