"""Reading and writing the shipped weights and the record of how they were made."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from simmst.errors import CheckpointError, ConfigError
from simmst.foundation.documents import DocumentError, checked, read_json
from simmst.foundation.files import write_atomically
from simmst.models import SimMSTNet, SimMSTNetConfig
from simmst.training import load_checkpoint, save_checkpoint

WEIGHTS_FILE = "weights.safetensors"
RECORD_FILE = "weights.json"
_KIND = "pretrained"
# What a network that starts from the weights may have of its own.
_OWN = "task_weights."
_FREE = ("services", "horizon", "backend", "factor", "dropout", "task_weights")


@dataclass(frozen=True, eq=False)
class Pretrained:
    """Weights that a network can start from.

    Attributes:
        config: the network they were learned with.
        tensors: its state.
        record: how they were made: seed, prior, number of cities, settings, commit, time.

    Example:
        >>> from simmst.pretrained import load_pretrained
        >>> load_pretrained().network(services=("internet",), horizon=2).config.horizon
        2
    """

    config: SimMSTNetConfig
    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]

    def network(self, services: tuple[str, ...], horizon: int, **changes: Any) -> SimMSTNet:
        """Build a network of these weights for some services and a horizon.

        Args:
            services: its tasks; one that the weights do not know takes the embedding of an unknown service.
            horizon: slots to forecast.
            **changes: further fields of its configuration, as `fits` allows.

        Raises:
            ConfigError: a change that the weights cannot serve.
            CheckpointError: the weights are of a network that this version of simmst does not have.
        """
        config = dataclasses.replace(self.config, services=services, horizon=horizon, **changes)
        different = self.differences(config)
        if different:
            raise ConfigError(f"the shipped weights cannot serve another {', '.join(different)}; set start='scratch'")
        network = SimMSTNet(config)
        own = network.state_dict()
        state = {name: tensor for name, tensor in self.tensors.items() if not name.startswith(_OWN)}
        state |= {name: own[name] for name in own if name.startswith(_OWN)}
        wrong = [name for name in own if name not in state or state[name].shape != own[name].shape]
        if wrong or len(state) > len(own):
            wrong += [name for name in state if name not in own]
            raise CheckpointError(
                f"the weights are of another version of simmst ({wrong[0]} does not fit); install simmst again, or "
                "make the weights again with simmst pretrain"
            )
        network.load_state_dict(state)
        network.learned = True
        return network.eval()

    def differences(self, config: SimMSTNetConfig) -> list[str]:
        """Name the fields in which a network's configuration differs from what the weights can serve."""
        mine, other = self.config.to_dict(), config.to_dict()
        return [name for name in mine if name not in _FREE and mine[name] != other[name]]


def save_pretrained(folder: str | Path, pretrained: Pretrained) -> Path:
    """Write weights and their record into a folder, each under a temporary name and renamed.

    Returns:
        The path of the weights.
    """
    state = {"kind": _KIND, "config": pretrained.config.to_dict(), "record": dict(pretrained.record)}
    path = save_checkpoint(Path(folder) / WEIGHTS_FILE, pretrained.tensors, state)
    record = {"file": WEIGHTS_FILE, "sha256": _digest(path), "network": state["config"], **pretrained.record}
    text = json.dumps(record, indent=2, sort_keys=True) + "\n"
    write_atomically(Path(folder) / RECORD_FILE, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))
    return path


@dataclass
class _Record:
    """What the file beside the weights has to tell; the rest is for people."""

    sha256: str


@dataclass
class _State:
    """What the weights hold beside their tensors."""

    kind: str
    config: dict[str, Any]
    record: dict[str, Any]


@lru_cache(maxsize=2)
def load_pretrained(folder: str | Path | None = None) -> Pretrained:
    """Read weights; those that ship with the package when no folder is named.

    Raises:
        CheckpointError: the weights are not there, damaged, of another version or of another kind.
    """
    home = Path(__file__).parent if folder is None else Path(folder)
    path, record = home / WEIGHTS_FILE, home / RECORD_FILE
    for file in (path, record):
        if not file.is_file():
            what = "the weights that ship with simmst are" if folder is None else f"{file.name} is"
            raise CheckpointError(f"{what} not in {home}; install simmst again, or train with start='scratch'")
    checkpoint = load_checkpoint(path)
    try:
        wanted = read_json(record, _Record).sha256
    except DocumentError as error:
        raise CheckpointError(f"{record} is no record of weights ({error}); copy the folder again") from error
    if checkpoint.state.get("kind") != _KIND or wanted != _digest(path):
        raise CheckpointError(f"{path} is not the file that {record.name} describes; copy the folder again")
    try:
        state = checked(checkpoint.state, _State)
        return Pretrained(SimMSTNetConfig.from_dict(state.config), checkpoint.tensors, state.record)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is of another version of simmst ({error}); make the weights again") from error


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
