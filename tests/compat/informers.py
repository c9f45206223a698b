"""A small Informer of Hugging Face transformers and windows for it, for tests with transformers installed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CONTEXT, HORIZON, BATCH, LAGS = 60, 30, 3, 3
QUIET = {f"{part}dropout": 0.0 for part in ("", "attention_", "activation_")} | {
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
}


def informer(kind: str = "InformerForPrediction", **settings: Any) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    options = {"num_time_features": 2, "lags_sequence": [1, 2, 3], "d_model": 16, "sampling_factor": 2}
    config = transformers.InformerConfig(
        prediction_length=HORIZON, context_length=CONTEXT, num_parallel_samples=2, **(options | settings)
    )
    return getattr(transformers, kind)(config)


def batch(*, future: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    past = CONTEXT + LAGS
    given = {
        "past_values": torch.rand(BATCH, past, generator=generator) + 0.5,
        "past_time_features": torch.randn(BATCH, past, 2, generator=generator),
        "past_observed_mask": (torch.rand(BATCH, past, generator=generator) < 0.9).float(),
        "future_values": torch.rand(BATCH, HORIZON, generator=generator) + 0.5,
        "future_time_features": torch.randn(BATCH, HORIZON, 2, generator=generator),
    }
    if not future:
        given.pop("future_values")
    return given


def run(model: nn.Module, given: dict[str, Tensor] | None = None, **options: Any) -> Any:
    torch.manual_seed(3)
    return model(**(batch() if given is None else given), **options)


def gradients(model: nn.Module) -> list[Tensor]:
    model.zero_grad()
    run(model).loss.backward()
    return [each.grad for each in model.parameters() if each.grad is not None]
