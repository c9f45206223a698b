"""LSTM, Transformer, Informer and iTransformer next to neuralforecast's (extra `nixtla`), on the same windows.

    python benchmarks baselines.cross_checks
    python benchmarks baselines.cross_checks --models informer --horizons 1 6 24 --epochs 20 --out figures.json

Each network is trained in three forms: ours; neuralforecast's module instead of ours, in the same loop with the same
windows, scale, loss, stopping rule and seeds, so that only the networks differ; and neuralforecast's by its own `fit`,
with its own loss (the mean absolute error), optimiser and scaling of windows, on the same scaled series, with the same
number of steps. A further form of ours sees no more than theirs can: LSTM without its branch for the days before, and
iTransformer without the calendar's tokens. The figures are the MAE of the last step ahead in raw units over the test
slots, with mean and spread over the seeds, and the p-value of the tables' paired test between ours and theirs in the
same loop.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import time
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simmst.baselines.networks import NETWORKS, Network, View
from simmst.data import CALENDAR_FEATURES, TrafficDataset, Windows, calendar_features
from simmst.evaluation import ModelPredictor, Predictor
from simmst.evaluation import protocol as protocol_of
from simmst.evaluation.significance import paired_test
from simmst.forecaster import ForecasterConfig
from simmst.forecaster.plan import Plan, make_plan
from simmst.jobs.inputs import open_data
from simmst.jobs.tables.compute import Known, known_slots, scores
from simmst.training import TrainingConfig, solve
from simmst.training.seeds import derive_seed, seeded

OURS, TOLD_NO_MORE, THEIRS, BY_ITSELF = "ours", "ours, told no more", "theirs in our loop", "theirs by its own fit"
PEERS = {"lstm": "LSTM", "transformer": "VanillaTransformer", "informer": "Informer", "itransformer": "iTransformer"}
SIZES: dict[str, dict[str, Any]] = {
    "lstm": {"encoder_hidden_size": 64, "encoder_n_layers": 2, "decoder_layers": 1, "recurrent": False},
    "transformer": {"hidden_size": 64, "n_head": 4, "conv_hidden_size": 256, "encoder_layers": 2, "decoder_layers": 1},
    "itransformer": {"hidden_size": 64, "n_heads": 4, "d_ff": 128, "e_layers": 2, "d_layers": 1, "dropout": 0.1},
}
SIZES["informer"] = {**SIZES["transformer"], "factor": 5}


class Theirs(Network):
    """A module of neuralforecast that gets what our networks see of a window."""

    def __init__(self, config: Any, module: nn.Module, calendar: bool) -> None:
        super().__init__(config)
        self.module, self.told = module, calendar

    def forecast(self, view: View) -> Tensor:
        values = view.past[:, :, 0, :, 0]  # (B, T_in, N), of the one service
        centre = values.shape[2] // 2
        series = values if self.module.MULTIVARIATE else values[:, :, centre : centre + 1]
        marks = torch.cat((view.past_marks, view.future_marks), dim=1) if self.told else None
        given = {"insample_y": series, "futr_exog": marks, "hist_exog": None, "stat_exog": None}
        # Their ProbSparse attention draws samples in evaluation, too.
        with nullcontext() if self.training else seeded(0):
            found: Tensor = self.module(given)
        return found[:, :, centre : centre + 1] if self.module.MULTIVARIATE else found


def without(name: str, network: Network) -> Network:
    """Limit ours to what neuralforecast's sees: LSTM without the days before, iTransformer without the calendar."""
    whole = network.forecast

    def forecast(view: View) -> Tensor:
        if name == "lstm":
            return whole(view._replace(days=torch.zeros_like(view.days)))
        return whole(view._replace(past_marks=view.past_marks[..., :0], future_marks=view.future_marks[..., :0]))

    network.forecast = forecast  # type: ignore[method-assign]
    return network


def peer(name: str, horizon: int, config: ForecasterConfig, cells: int, **further: Any) -> nn.Module:
    """Build the model of neuralforecast, with the size of ours."""
    from neuralforecast import models

    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    options = {"h": horizon, "input_size": config.recent, **SIZES[name], **quiet, "enable_model_summary": False}
    if name == "itransformer":
        options["n_series"] = cells
    elif name != "lstm":
        options["futr_exog_list"] = list(CALENDAR_FEATURES)
    found: nn.Module = getattr(models, PEERS[name])(**options, **further)
    return found


def in_our_loop(network: Network, plan: Plan, known: Known, config: TrainingConfig) -> Predictor:
    """Train a network as `Forecaster.fit` does."""
    sets = {
        "real_train": Windows(known.past, plan.spec, plan.scaler, steps=plan.train),
        "real_validation": Windows(known.past, plan.spec, plan.scaler, steps=plan.validation),
    }
    solve("real-only", network, **sets, config=config)
    return ModelPredictor(network, plan.scaler, plan.spec)


def by_itself(name: str, plan: Plan, known: Known, config: ForecasterConfig) -> tuple[np.ndarray, float]:
    """Let neuralforecast train its model and forecast the test, one step at a time.

    Returns:
        The mean absolute error of the last step ahead for each origin, (n, 1), in raw units, and its mean.
    """
    import pandas as pd
    from neuralforecast import NeuralForecast

    dataset, training = known.dataset, config.training
    model = peer(
        name,
        config.horizon,
        config,
        dataset.num_cells,
        max_steps=training.epochs * (training.samples_per_epoch or 4096) // training.batch_size,
        learning_rate=training.learning_rate,
        num_lr_decays=3,
        windows_batch_size=training.batch_size,
        batch_size=dataset.num_cells,
        scaler_type="identity" if name == "itransformer" else "standard",  # iTransformer has its own norm
        random_seed=training.seed,
    )
    frame = frame_of(dataset, plan)
    forecaster = NeuralForecast(models=[model], freq=f"{dataset.step_minutes}min")
    split = known.split
    found = forecaster.cross_validation(
        frame, n_windows=None, val_size=len(split.validation), test_size=len(split.test), step_size=1
    )
    last = found[found["ds"] == found["cutoff"] + pd.Timedelta(minutes=config.horizon * dataset.step_minutes)]
    table = last.pivot_table(index="ds", columns="unique_id", values=PEERS[name])
    forecast = plan.scaler.inverse(table.to_numpy(np.float32)[:, None], axis=1)[:, 0]
    truth = dataset.activity[split.test.start + config.horizon - 1 : split.test.stop, 0][..., dataset.mask]
    error = np.abs(forecast.astype(np.float64) - truth).mean(1, keepdims=True)
    return error, float(error.mean())


def frame_of(dataset: TrafficDataset, plan: Plan) -> Any:
    """Return the series of all cells on the networks' scale, with the calendar, in neuralforecast's format."""
    import pandas as pd

    marks = calendar_features(dataset.time, dataset.timezone, dataset.country, events=dataset.events)
    scaled = plan.scaler.transform(dataset.activity, axis=1)[:, 0][..., dataset.mask]  # (T, C)
    columns = {name: marks[:, number] for number, name in enumerate(CALENDAR_FEATURES)}
    cells = [
        pd.DataFrame({"unique_id": f"{number:04}", "ds": dataset.time, "y": scaled[:, number], **columns})
        for number in range(scaled.shape[1])
    ]
    return pd.concat(cells)


def compare(
    name: str, horizon: int, known: Known, training: Mapping[str, Any], seeds: int
) -> dict[str, dict[str, Any]]:
    """Train each form of a network with every seed; return MAEs, errors by origin and seconds of each form."""
    rows: dict[str, dict[str, Any]] = {}
    for seed in range(seeds):
        config = ForecasterConfig.from_dict(
            {"model": name, "horizon": horizon, "training": {"device": "cpu", "seed": seed, **training}}
        )
        plan = make_plan(config, known.past, validation_steps=known.validation_steps)
        for form in forms_of(name):
            began = time.process_time()
            with seeded(derive_seed(seed, "weights")):
                network = built(form, name, plan, config)
            found = scores(in_our_loop(network, plan, known, config.training), known, horizon)
            keep(rows, form, found["mae"][0], np.array(found["errors"]), began)
            rows[form]["parameters"] = sum(one.numel() for one in network.parameters())
        began = time.process_time()
        error, mae = by_itself(name, plan, known, config)
        keep(rows, BY_ITSELF, mae, error, began)
    return rows


def forms_of(name: str) -> tuple[str, ...]:
    """Return the forms of a network that are trained in our loop."""
    more = (TOLD_NO_MORE,) if name in ("lstm", "itransformer") else ()
    return (OURS, *more, THEIRS)


def built(form: str, name: str, plan: Plan, config: ForecasterConfig) -> Network:
    """Build a network with random weights."""
    if form == THEIRS:
        module = peer(name, config.horizon, config, config.neighbourhood**2)
        return Theirs(plan.network, module, calendar=name in ("transformer", "informer"))
    network = NETWORKS[name](plan.network)
    return without(name, network) if form == TOLD_NO_MORE else network


def keep(rows: dict[str, dict[str, Any]], form: str, mae: float, errors: np.ndarray, began: float) -> None:
    """Add the results of a training with one seed."""
    row = rows.setdefault(form, {"mae": [], "errors": [], "cpu_seconds": 0.0})
    row["mae"].append(float(mae))
    row["errors"].append(errors[:, 0])
    row["cpu_seconds"] = round(row["cpu_seconds"] + time.process_time() - began, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python benchmarks baselines.cross_checks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", default="milan_block5x5_internet_10min", help="a traffic file of one service")
    parser.add_argument("--protocol", default="hourly", help="a protocol of the package, for windows and split")
    parser.add_argument("--models", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--horizons", nargs="+", type=int, default=[1, 6])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5, help="epochs of 1,024 windows")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    if importlib.util.find_spec("neuralforecast") is None:
        print("neuralforecast is not installed: pip install 'simmst[nixtla]'")
        return
    import neuralforecast

    for noisy in ("pytorch_lightning", "lightning_fabric", "lightning"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    chosen = protocol_of(options.protocol)
    known = known_slots(open_data(options.data, table=None).resample(chosen.step_minutes), chosen, None)
    training = {"epochs": options.epochs, "samples_per_epoch": 1024, "validation_samples": 512}
    training |= {"batch_size": 32, "learning_rate": 0.003}
    figures: list[dict[str, Any]] = []
    print(f"neuralforecast {neuralforecast.__version__}, torch {torch.__version__}; {known.dataset.name}")
    for name in options.models:
        for horizon in options.horizons:
            rows = compare(name, horizon, known, training, options.seeds)
            peer_errors = np.mean(rows[THEIRS]["errors"], axis=0)
            for form, row in rows.items():
                errors, mae = np.mean(row.pop("errors"), axis=0), row["mae"]
                same = form == THEIRS
                p = None if same else paired_test(errors, peer_errors, steps_per_day=known.dataset.steps_per_day)[0]
                spread = float(np.std(mae, ddof=1)) if len(mae) > 1 else None
                figures.append({"model": name, "horizon": horizon, "form": form, "spread": spread, "p": p, **row})
                told = f"{np.mean(mae):8.1f} +- {spread or 0:.1f}" + ("" if p is None else f"   p = {p:.3f}")
                print(f"{name:<13} h = {horizon:<3} {form:<22} {told}   {row['cpu_seconds']:.0f} s", flush=True)
            if options.out is not None:
                settings = {"data": known.dataset.name, "protocol": chosen.name, "training": training}
                options.out.write_text(json.dumps({**settings, "rows": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
