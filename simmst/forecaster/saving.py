"""A fitted forecaster in a folder: a checkpoint and the latest traffic; loading them executes no code."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from simmst.data import Scaler, TrafficDataset, WindowSpec
from simmst.errors import CheckpointError, ConfigError
from simmst.evaluation import ErrorQuantiles, ModelPredictor
from simmst.forecaster.architectures import OWN, saved_network
from simmst.forecaster.config import ForecasterConfig
from simmst.forecaster.fitted import FittedForecaster, predictor_class
from simmst.forecaster.plan import network_config
from simmst.forecaster.zero_shot import ZeroShotPredictor
from simmst.foundation.documents import DocumentError, checked
from simmst.training import Checkpoint, load_checkpoint, load_into, resolve_device, save_checkpoint

WEIGHTS_FILE = "forecaster.safetensors"
RECENT_FILE = "recent.npz"


def save_forecaster(fitted: FittedForecaster, folder: str | Path) -> Path:
    """Write a fitted forecaster: see `Forecaster.save`.

    Raises:
        ConfigError: the model is a naive baseline or the shipped weights, which have nothing to save.
    """
    spec, network = fitted.spec, fitted.network
    if isinstance(fitted.predictor, ZeroShotPredictor):
        raise ConfigError("the shipped weights need no saving; call Forecaster.pretrained(horizon) where you need them")
    if network is None:
        raise ConfigError(f"model {fitted.config.model!r} has nothing to save; fit it again where it is needed")
    dataset, predictor = fitted.matched(None), fitted.predictor
    assert isinstance(predictor, ModelPredictor)  # noqa: S101 - a network's
    # A week for the seasonal forecasts in reports, or the reach of the input where that is longer.
    kept = min(dataset.num_steps, max(spec.reach, max(7, spec.memory_days) * dataset.steps_per_day) + spec.horizon)
    recent = dataset.slice_steps(dataset.num_steps - kept, dataset.num_steps).save(Path(folder) / RECENT_FILE)
    tensors = {f"model/{name}": tensor for name, tensor in network.state_dict().items()}
    if fitted.errors is not None:
        tensors["errors/values"] = torch.from_numpy(fitted.errors.values)
    state = {
        "kind": "forecaster",
        "model": fitted.config.model,
        "config": fitted.config.to_dict(),
        "network": network.config.to_dict(),
        "scaler": predictor.scaler.to_dict(),
        "stretch": predictor.stretch,
        "spec": dataclasses.asdict(spec),
        "notes": list(fitted.notes),
        "recent": _digest(recent),
    }
    return save_checkpoint(Path(folder) / WEIGHTS_FILE, tensors, state)


def load_forecaster(folder: str | Path) -> FittedForecaster:
    """Load a forecaster that `save_forecaster` wrote: see `Forecaster.load`.

    Raises:
        CheckpointError: a file is missing, damaged, from another version, or not a forecaster's.
    """
    path = Path(folder) / WEIGHTS_FILE
    checkpoint = load_checkpoint(path)
    if checkpoint.state.get("kind") != "forecaster":
        raise CheckpointError(
            f"{path} is not a saved forecaster; give a folder that Forecaster.save or simmst train wrote"
        )
    try:
        state = checked(checkpoint.state, _State)
    except DocumentError as error:
        raise _of_another_version(path, error) from error
    recent = Path(folder) / RECENT_FILE
    if not recent.is_file():
        raise CheckpointError(f"{recent} is missing beside {path.name}; copy the whole folder")
    if _digest(recent) != state.recent:
        raise CheckpointError(
            f"{recent} is not the file that was saved with {path.name}: it was changed, or saving was cut off; "
            "copy the whole folder again, or train again"
        )
    dataset = TrafficDataset.from_npz(recent)
    try:
        return _restored(checkpoint, state, path, dataset)
    except CheckpointError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _of_another_version(path, error) from error


def _of_another_version(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} holds settings that this version of simmst cannot use ({error}); load it with the version that wrote "
        "it, or train again"
    )


@dataclass
class _State:
    """Settings of a saved forecaster, beside its tensors."""

    kind: Literal["forecaster"]
    config: dict[str, Any]
    network: dict[str, Any]
    scaler: dict[str, Any]
    stretch: float
    spec: dict[str, Any]
    notes: list[str]
    recent: str
    model: str = OWN  # older files name no model


def _restored(checkpoint: Checkpoint, state: _State, path: Path, dataset: TrafficDataset) -> FittedForecaster:
    config = ForecasterConfig.from_dict(state.config)
    model = state.model
    if model != config.model:
        raise CheckpointError(f"{path} has settings of model {config.model!r} and weights of {model!r}; train again")
    network = saved_network(model, state.network)
    if model != OWN:
        wanted = network_config(config, dataset.services).to_dict()
        for name, value in network.config.to_dict().items():
            if value != wanted[name]:
                raise CheckpointError(
                    f"{path} has a network with {name} = {value!r}, its settings ask for {wanted[name]!r}; train again"
                )
    load_into(network, checkpoint.group("model"), path=path)
    spec = checked(state.spec, WindowSpec)
    scaler = Scaler.from_dict(state.scaler)
    network = network.to(resolve_device("auto"))
    predictor = predictor_class(config)(network, scaler, spec, stretch=state.stretch)
    measured = checkpoint.group("errors")
    errors = ErrorQuantiles(measured["values"].numpy(), scaler) if measured else None
    return FittedForecaster(config, dataset, spec, predictor, errors, tuple(state.notes))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
