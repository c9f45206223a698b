"""A training step of the default network against its reference, and against a peer built from torch's layers.

    pytest benchmarks/cpu/test_training_step.py

Forward, loss, backward, clipping and AdamW on 128 windows of three services, 24 slots in and 6 out, one thread. The
peer is the same network, with torch's own layers where ours has operators: `TransformerEncoderLayer`;
`MultiheadAttention` in spatial branch, interaction and decoder; linear layers, GELU and LayerNorm as modules.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("simmst._cpu", reason="the compiled module is not installed")
pytest.importorskip("pytest_benchmark", reason="pytest-benchmark comes with the bench extra")

from cpu.gate import Case, compare
from harness.cities import hourly_city
from harness.machine import team
from simmst.data import Batch, Scaler, Windows, WindowSpec
from simmst.models import SimMSTNet, SimMSTNetConfig, task_losses

BATCH, ROUNDS = 128, 9
CONFIG = SimMSTNetConfig(dropout=0.0, backend="cpu")
FLOORS = {"reference": 1.4, "torch's layers": 1.3}  # docs/results/speed.md explains the limit


class Attention(nn.Module):
    """`nn.MultiheadAttention` instead of a ProbSparse layer."""

    def __init__(self, *, is_causal: bool = False) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(CONFIG.width, CONFIG.num_heads, batch_first=True)
        self.is_causal = is_causal

    def forward(self, query: Tensor, key: Tensor | None = None) -> Tensor:
        key = query if key is None else key
        mask = nn.Transformer.generate_square_subsequent_mask(query.shape[1]) if self.is_causal else None
        out: Tensor = self.inner(query, key, key, attn_mask=mask, is_causal=self.is_causal, need_weights=False)[0]
        return out


class Positions(nn.Module):
    """`nn.MultiheadAttention`, residual and LayerNorm instead of spatial attention."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(CONFIG.width, CONFIG.num_heads, batch_first=True)
        self.norm = nn.LayerNorm(CONFIG.width)
        self.embed_dim = CONFIG.width

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        tokens = x.flatten(2).mT if x.dim() == 4 else x
        attended = self.inner(tokens, tokens, tokens, key_padding_mask=key_padding_mask, need_weights=False)[0]
        out: Tensor = self.norm(tokens + attended)
        return out.mT.unflatten(2, x.shape[2:]) if x.dim() == 4 else out


def reference_of(model: SimMSTNet) -> SimMSTNet:
    """Return the network with the reference of every operator."""
    reference = SimMSTNet(SimMSTNetConfig(**{**CONFIG.to_dict(), "backend": "reference"}))
    reference.load_state_dict(model.state_dict())
    return reference


def peer_of(model: SimMSTNet) -> SimMSTNet:
    """Return the network with torch's layers of the same shapes."""
    peer = reference_of(model)
    width, hidden = CONFIG.width, CONFIG.feedforward
    for place in range(CONFIG.encoder_layers):
        peer.encoder.layers[place] = nn.TransformerEncoderLayer(
            width, CONFIG.num_heads, hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
    for layer in peer.decoder.layers:
        layer.self_attention, layer.cross_attention = Attention(is_causal=True), Attention()
    assert peer.spatial is not None
    assert peer.interaction is not None
    peer.spatial.attention = Positions()
    peer.interaction.temporal.attention, peer.interaction.spatial.attention = Positions(), Positions()
    return peer


def loss_of(model: SimMSTNet, batch: Batch) -> Tensor:
    torch.manual_seed(0)  # seeds the samples that the attention draws
    return task_losses(model, batch.values, batch.marks, batch.mask, batch.memory, batch.target, "quantile").mean()


def stepper(model: SimMSTNet, batch: Batch) -> Callable[[], None]:
    parameters = list(model.train().parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(model, batch).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with team(1):
        yield


@pytest.fixture(scope="module")
def batch() -> Batch:
    city = hourly_city(days=12, side=8)
    offsets = tuple(range(-CONFIG.input_length, 0))
    spec = WindowSpec(CONFIG.horizon, offsets, CONFIG.neighbourhood, memory_days=CONFIG.memory_days)
    windows = Windows(city, spec, Scaler.fit(city, range(city.num_steps), "relative"), steps=range(city.num_steps))
    return windows.batch(np.random.default_rng(0).choice(len(windows), BATCH, replace=False))


@pytest.fixture(scope="module")
def model() -> SimMSTNet:
    torch.manual_seed(0)
    return SimMSTNet(CONFIG)


def gradients(model: SimMSTNet, batch: Batch) -> list[Tensor]:
    return list(torch.autograd.grad(loss_of(model.train(), batch), list(model.parameters()), allow_unused=True))


def test_against_the_reference(benchmark: Any, model: SimMSTNet, batch: Batch) -> None:
    ours = copy.deepcopy(model)
    reference = reference_of(ours)
    for one, two in zip(gradients(ours, batch), gradients(reference, batch), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)
    sides = stepper(ours, batch), stepper(reference, batch)
    compare(benchmark, Case("training step, batch 128, reference", *sides, FLOORS["reference"], rounds=ROUNDS))


def test_against_torchs_layers(benchmark: Any, model: SimMSTNet, batch: Batch) -> None:
    ours = copy.deepcopy(model)
    peer = peer_of(ours)
    assert sum(p.numel() for p in peer.parameters()) == sum(p.numel() for p in ours.parameters())
    assert bool(loss_of(peer.train(), batch).isfinite())
    sides = stepper(ours, batch), stepper(peer, batch)
    compare(
        benchmark, Case("training step, batch 128, torch's layers", *sides, FLOORS["torch's layers"], rounds=ROUNDS)
    )
