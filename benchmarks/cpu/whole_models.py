"""Whole models of other libraries, unchanged and with our layers swapped in: `python benchmarks cpu.whole_models`.

Informer of Hugging Face transformers, forward and a training step (loss and gradients) at three lengths of context,
with the library's two heads and with eight; and `fit` of neuralforecast's Informer. Libraries that are not installed
are left out. Both sides are timed in turn in one process, after our operators with the library's own selection
(`swap(model, exact=True)`) have given its outputs. `--exact` times that selection. `--bound` also times the library
with a sum between the projections instead of its ProbSparse attention; no attention could reach a higher ratio.
`--threads` sets the team size (1), `--rounds` the rounds (5), `--quick` takes only a short context, `--out` writes the
figures as JSON.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import harness
from harness.machine import conditions, team
from harness.timing import Timing, time_pair
from simmst.compat import restore, swap

CONTEXTS = {336: 3.0, 720: 6.0, 2048: 12.0}  # context: ratio to reach
FIT = {336: 3.0}
HEADS = (2, 8)
BATCH, HORIZON, LAGS = 8, 24, 7
AGREEMENT = 1e-4


def informer(context: int, heads: int) -> nn.Module:
    from transformers import InformerConfig, InformerForPrediction

    settings = {"num_time_features": 4, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
    config = InformerConfig(
        prediction_length=HORIZON,
        context_length=context,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        **settings,
    )
    torch.manual_seed(0)
    model: nn.Module = InformerForPrediction(config)
    return model


def windows(context: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    past = context + LAGS
    return {
        "past_values": torch.rand(BATCH, past, generator=generator) + 0.5,
        "past_time_features": torch.randn(BATCH, past, 4, generator=generator),
        "past_observed_mask": torch.ones(BATCH, past),
        "future_values": torch.rand(BATCH, HORIZON, generator=generator) + 0.5,
        "future_time_features": torch.randn(BATCH, HORIZON, 4, generator=generator),
    }


def check(model: nn.Module, given: dict[str, Tensor]) -> None:
    """Check our operators with the library's selection against the library."""
    found = []
    for change in (restore, lambda model: swap(model, exact=True)):
        change(model)
        torch.manual_seed(2)
        with torch.no_grad():
            out = model.eval()(**given)
        found.append(out.encoder_last_hidden_state)
    restore(model)
    apart = float((found[0] - found[1]).abs().max())
    if not apart < AGREEMENT:
        raise SystemExit(f"the outputs differ by {apart:.2g}; nothing is timed")


def without_attention(model: nn.Module) -> nn.Module:
    """Replace ProbSparse attention by a sum; the layers around it stay and still get gradients."""

    def projected(layer: Any, x: Tensor) -> tuple[Tensor, None]:
        return layer.out_proj(layer.q_proj(x) + layer.k_proj(x) + layer.v_proj(x)), None

    def between(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, None]:
        rest = (
            (keys.mean(1, keepdim=True) + values.mean(1, keepdim=True))
            if keys.shape != queries.shape
            else keys + values
        )
        return queries + rest, None

    for layer in model.modules():
        if type(layer).__name__ == "InformerProbSparseAttention":
            layer.forward = lambda hidden_states, *rest, _layer=layer, **more: projected(_layer, hidden_states)
        if type(layer).__name__ == "ProbAttention":
            layer.forward = lambda queries, keys, values, *rest, **more: between(queries, keys, values)
    return model


def of_hugging_face(
    context: int, heads: int, exact: bool, rounds: int, bound: bool
) -> Iterator[tuple[str, Timing, float | None]]:
    theirs, given = informer(context, heads), windows(context)
    check(theirs, given)
    ours, free = copy.deepcopy(theirs), without_attention(copy.deepcopy(theirs))
    swap(ours, exact=exact)

    def forward(model: nn.Module) -> Callable[[], None]:
        def call() -> None:
            with torch.no_grad():
                model(**given)

        return call

    def training(model: nn.Module) -> Callable[[], None]:
        def call() -> None:
            model.zero_grad()
            model(**given).loss.backward()

        return call

    for name, side, trains in (("forward", forward, False), ("training step", training, True)):
        ours.train(trains), theirs.train(trains), free.train(trains)
        most = time_pair(side(free), side(theirs), rounds).ratio_of_best if bound else None
        yield f"Hugging Face, {heads} heads, {name}", time_pair(side(ours), side(theirs), rounds), most


def of_neuralforecast(context: int, exact: bool, rounds: int, bound: bool) -> tuple[Timing, float | None]:
    import numpy as np
    import pandas as pd
    from neuralforecast import NeuralForecast
    from neuralforecast.models import Informer

    hours = pd.date_range("2013-11-01", periods=2 * context, freq="h")
    series = (
        pd.DataFrame({"unique_id": name, "ds": hours, "y": np.sin(np.arange(len(hours)) / 4 + name)})
        for name in range(8)
    )
    frame = pd.concat(series)

    def fit(change: Callable[[Any], Any]) -> Callable[[], None]:
        quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
        model = Informer(h=24, input_size=context, max_steps=5, batch_size=8, windows_batch_size=32, **quiet)
        forecaster = NeuralForecast(models=[model], freq="h")
        change(forecaster)
        return lambda: forecaster.fit(frame)

    theirs = fit(restore)
    most = time_pair(fit(lambda one: without_attention(one.models[0])), theirs, rounds).ratio_of_best if bound else None
    return time_pair(fit(lambda one: swap(one, exact=exact)), theirs, rounds), most


def row(case: str, context: int, timing: Timing, wanted: float, most: float | None) -> dict[str, Any]:
    peaks = [None if side.peak is None else side.peak / 1e6 for side in timing]
    return {
        "case": case,
        "context": context,
        "ours_ms": 1e3 * timing.ours.median,
        "peer_ms": 1e3 * timing.peer.median,
        "ratio": timing.ratio,
        "ratio_of_best": timing.ratio_of_best,
        "wanted": wanted,
        "without_attention": most,
        "ours_peak_mb": peaks[0],
        "peer_peak_mb": peaks[1],
    }


def line(found: dict[str, Any]) -> str:
    peaks = " | ".join("?" if found[key] is None else f"{found[key]:.0f}" for key in ("ours_peak_mb", "peer_peak_mb"))
    most = "?" if found["without_attention"] is None else f"{found['without_attention']:.2f}"
    return (
        f"| {found['case']} | {found['context']} | {found['ours_ms']:.1f} | {found['peer_ms']:.1f} | "
        f"{found['ratio']:.2f} | {found['ratio_of_best']:.2f} | {found['wanted']:.0f} | {most} | {peaks} |"
    )


def figures(
    contexts: dict[int, float], fits: dict[int, float], exact: bool, rounds: int, bound: bool
) -> Iterator[dict[str, Any]]:
    if importlib.util.find_spec("transformers") is not None:
        for heads in HEADS:
            for context, wanted in contexts.items():
                for case, timing, most in of_hugging_face(context, heads, exact, rounds, bound):
                    yield row(case, context, timing, wanted, most)
    if importlib.util.find_spec("neuralforecast") is not None:
        for context, wanted in fits.items():
            timing, most = of_neuralforecast(context, exact, rounds, bound)
            yield row("neuralforecast, fit of 5 steps", context, timing, wanted, most)


def main() -> None:
    parser = harness.parser("cpu.whole_models", __doc__)
    parser.add_argument("--exact", action="store_true", help="the library's own selection instead of the paper's")
    parser.add_argument("--bound", action="store_true", help="also time the library with a sum instead of attention")
    parser.add_argument("--quick", action="store_true", help="a short context, to check that it runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file for the figures")
    given = parser.parse_args()
    rows = []
    print("| case | context | ours ms | peer ms | ratio | of best | wanted | without attention | ours MB | peer MB |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    with team(given.threads):
        sizes = ({96: 1.0}, {48: 1.0}) if given.quick else (CONTEXTS, FIT)
        for found in figures(*sizes, given.exact, given.rounds, given.bound):
            rows.append(found)
            print(line(found), flush=True)
        about = conditions()
    if not rows:
        print("neither transformers nor neuralforecast is installed; pip install 'simmst[huggingface,nixtla]'")
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    if given.out:
        given.out.write_text(json.dumps({"rows": rows, "conditions": about}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
