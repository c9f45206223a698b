"""Whole models of other libraries, as they are and with our layers swapped in: `python benchmarks cpu.whole_models`.

Informer of Hugging Face transformers, forward and a training step (loss and gradients) at three lengths of context,
with the library's two heads and with eight; and `fit` of neuralforecast's Informer, where it is installed. Both sides
are timed in turn in one process, after the library's own selection (`swap(model, exact=True)`) gave its outputs.
`--exact` times that selection. `--threads` sets the team (1), `--rounds` the rounds (5), `--quick` takes a short
context alone, `--out` writes the figures as JSON.
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

CONTEXTS = {336: 3.0, 720: 6.0, 2048: 12.0}  # with the ratio to reach
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
    """Hold the library's selection on our operators against the library."""
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


def of_hugging_face(context: int, heads: int, exact: bool, rounds: int) -> Iterator[tuple[str, Timing]]:
    theirs, given = informer(context, heads), windows(context)
    check(theirs, given)
    ours = copy.deepcopy(theirs)
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
        ours.train(trains), theirs.train(trains)
        yield f"Hugging Face, {heads} heads, {name}", time_pair(side(ours), side(theirs), rounds)


def of_neuralforecast(context: int, exact: bool, rounds: int) -> Timing:
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

    def fit(changed: bool) -> Callable[[], None]:
        quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
        model = Informer(h=24, input_size=context, max_steps=5, batch_size=8, windows_batch_size=32, **quiet)
        forecaster = NeuralForecast(models=[model], freq="h")
        if changed:
            swap(forecaster, exact=exact)
        return lambda: forecaster.fit(frame)

    return time_pair(fit(True), fit(False), rounds)


def row(case: str, context: int, timing: Timing, wanted: float) -> dict[str, Any]:
    peaks = [None if side.peak is None else side.peak / 1e6 for side in timing]
    return {
        "case": case,
        "context": context,
        "ours_ms": 1e3 * timing.ours.median,
        "peer_ms": 1e3 * timing.peer.median,
        "ratio": timing.ratio,
        "ratio_of_best": timing.ratio_of_best,
        "wanted": wanted,
        "ours_peak_mb": peaks[0],
        "peer_peak_mb": peaks[1],
    }


def line(found: dict[str, Any]) -> str:
    peaks = " | ".join("?" if found[key] is None else f"{found[key]:.0f}" for key in ("ours_peak_mb", "peer_peak_mb"))
    return (
        f"| {found['case']} | {found['context']} | {found['ours_ms']:.1f} | {found['peer_ms']:.1f} | "
        f"{found['ratio']:.2f} | {found['ratio_of_best']:.2f} | {found['wanted']:.0f} | {peaks} |"
    )


def figures(contexts: dict[int, float], fits: dict[int, float], exact: bool, rounds: int) -> Iterator[dict[str, Any]]:
    if importlib.util.find_spec("transformers") is not None:
        for heads in HEADS:
            for context, wanted in contexts.items():
                for case, timing in of_hugging_face(context, heads, exact, rounds):
                    yield row(case, context, timing, wanted)
    if importlib.util.find_spec("neuralforecast") is not None:
        for context, wanted in fits.items():
            yield row("neuralforecast, fit of 5 steps", context, of_neuralforecast(context, exact, rounds), wanted)


def main() -> None:
    parser = harness.parser("cpu.whole_models", __doc__)
    parser.add_argument("--exact", action="store_true", help="the library's own selection instead of the paper's")
    parser.add_argument("--quick", action="store_true", help="a short context, to see that it runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file for the figures")
    given = parser.parse_args()
    rows = []
    print("| case | context | ours ms | peer ms | ratio | of best | wanted | ours MB | peer MB |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    with team(given.threads):
        sizes = ({96: 1.0}, {48: 1.0}) if given.quick else (CONTEXTS, FIT)
        for found in figures(*sizes, given.exact, given.rounds):
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
