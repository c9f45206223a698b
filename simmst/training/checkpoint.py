"""Checkpoints: one safetensors file each, with the rest of the state as JSON in its metadata. Loading runs no code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simmst.errors import CheckpointError
from simmst.foundation.documents import DocumentError, decode_json
from simmst.foundation.extras import import_extra
from simmst.foundation.files import write_atomically

FORMAT = "simmst-checkpoint"
VERSION = 1


@dataclass
class Checkpoint:
    """The content of a checkpoint file.

    Args:
        tensors: tensors named ``group/name``, such as ``model/head.weight``; groups of the training loop are "model",
            "best", "optimizer", "task_weights" and "generator".
        state: everything else, as values that JSON can hold: configuration, stage, epoch, step, best score.
        path: file it came from, for messages.

    Example:
        >>> checkpoint = Checkpoint({"model/weight": torch.ones(2), "best/weight": torch.zeros(2)})
        >>> checkpoint.group("model")
        {'weight': tensor([1., 1.])}
    """

    tensors: dict[str, torch.Tensor]
    state: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def group(self, name: str) -> dict[str, torch.Tensor]:
        """Return the tensors of one group, without the group's name in theirs."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


def grouped(name: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Put a group's name before the names of its tensors.

    Example:
        >>> list(grouped("model", {"weight": torch.ones(1)}))
        ['model/weight']
    """
    return {f"{name}/{key}": value for key, value in tensors.items()}


def save_checkpoint(path: str | Path, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> Path:
    """Write a checkpoint under a temporary name and rename it into place.

    Args:
        path: file to write, ``*.safetensors``.
        tensors: tensors named ``group/name``, on any device, with any strides.
        state: values that JSON can hold, without NaN or infinity.

    Raises:
        CheckpointError: the name does not end in ``.safetensors``.
        MissingExtraError: the package safetensors is not installed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> load_checkpoint(save_checkpoint(path, {"model/weight": torch.ones(2)}, {"epoch": 3})).state
        {'epoch': 3}
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"a checkpoint's name ends in .safetensors, got {path}; rename it")
    safetensors = import_extra("safetensors.torch", extra="forecast")
    # clones: safetensors refuses tensors that share memory or have gaps
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    text = json.dumps(dict(state), allow_nan=False)
    metadata = {"format": FORMAT, "version": str(VERSION), "state": text, "sha256": _digest(plain, text)}
    return write_atomically(path, lambda temporary: safetensors.save_file(plain, str(temporary), metadata=metadata))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint; its tensors are on the CPU.

    Raises:
        CheckpointError: there is no such file, or it is damaged or cut short, was not written by simmst, or has another
            format version. The message names the file, what it has, what was wanted and what to do.
        MissingExtraError: the package safetensors is not installed.

    Example:
        >>> load_checkpoint("nowhere.safetensors")
        Traceback (most recent call last):
            ...
        simmst.errors.CheckpointError: there is no checkpoint nowhere.safetensors; check the path
    """
    path = Path(path)
    if not path.is_file():
        others = sorted(entry.name for entry in path.parent.glob("[!.]*.safetensors")) if path.parent.is_dir() else []
        hint = f"its folder has: {', '.join(others)}" if others else "check the path"
        raise CheckpointError(f"there is no checkpoint {path}; {hint}")
    safetensors = import_extra("safetensors", extra="forecast")
    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            _check_format(path, metadata)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        text = metadata.get("state", "")
        state = decode_json(text, dict[str, Any])
    except (safetensors.SafetensorError, DocumentError) as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged or cut short: it has {path.stat().st_size} bytes and reading them fails "
            f"with {str(error)!r}, where a whole safetensors file was wanted; copy it again, or delete it and train "
            "again"
        ) from error
    if metadata.get("sha256", digest := _digest(tensors, text)) != digest:  # the first simmst wrote no checksum
        raise CheckpointError(
            f"checkpoint {path} is damaged: its content does not have the checksum that was saved with it; copy it "
            "again, or delete it and train again"
        )
    return Checkpoint(tensors, state, path)


def _digest(tensors: Mapping[str, torch.Tensor], state: str) -> str:
    """Return the SHA-256 of the state and of names, types, shapes and bytes of the tensors."""
    found = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _check_format(path: Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a safetensors file but not a simmst checkpoint: its metadata has format "
            f"{metadata.get('format')!r}, wanted {FORMAT!r}; give the path of a file that simmst wrote"
        )
    if metadata.get("version") != str(VERSION):
        raise CheckpointError(
            f"checkpoint {path} has format version {metadata.get('version')!r}, this simmst reads version "
            f"{VERSION}; load it with the simmst that wrote it, or train again"
        )


def load_into(module: nn.Module, tensors: Mapping[str, torch.Tensor], *, path: Path | None = None) -> None:
    """Copy tensors into a module's parameters and buffers, all or nothing.

    Args:
        module: receiving module; nothing is cast, so dtypes and shapes must match.
        tensors: tensors by the names of `module.state_dict()`.
        path: file they came from, for the message.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape or dtype; the module is left unchanged.

    Example:
        >>> load_into(nn.Linear(2, 1), {"weight": torch.ones(1, 3), "bias": torch.ones(1)})
        Traceback (most recent call last):
            ...
        simmst.errors.CheckpointError: the checkpoint does not fit the model (Linear): weight is (1, 3), wanted \
(1, 2); build the model with the config stored in the checkpoint, or train again
    """
    wanted = module.state_dict()
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is not in the model" for name in tensors if name not in wanted]
    for name, tensor in tensors.items():
        target = wanted.get(name)
        if target is None:
            continue
        if tensor.shape != target.shape:
            problems.append(f"{name} is {tuple(tensor.shape)}, wanted {tuple(target.shape)}")
        elif tensor.dtype != target.dtype:
            problems.append(f"{name} is {tensor.dtype}, wanted {target.dtype}")
    if problems:
        more = f" (and {len(problems) - 4} more)" if len(problems) > 4 else ""
        source = f"checkpoint {path}" if path is not None else "the checkpoint"
        raise CheckpointError(
            f"{source} does not fit the model ({type(module).__name__}): {'; '.join(problems[:4])}{more}; "
            "build the model with the config stored in the checkpoint, or train again"
        )
    module.load_state_dict(dict(tensors))


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Flatten an optimiser's state into tensors named ``parameter name/entry``.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> optimizer = torch.optim.AdamW(layer.parameters())
        >>> layer(torch.ones(1, 2)).sum().backward(); optimizer.step()
        >>> sorted(optimizer_tensors(layer, optimizer))[:3]
        ['bias/exp_avg', 'bias/exp_avg_sq', 'bias/step']
    """
    flat = {}
    for name, parameter in model.named_parameters():
        for entry, value in optimizer.state.get(parameter, {}).items():
            flat[f"{name}/{entry}"] = value if isinstance(value, torch.Tensor) else torch.tensor(value)
    return flat


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], *, path: Path | None = None
) -> None:
    """Restore a state from `optimizer_tensors`, each entry on its parameter's device.

    "step" stays on the CPU, unless the optimiser is fused.

    Raises:
        CheckpointError: an entry belongs to no parameter of the model, or has another shape.
    """
    parameters = dict(model.named_parameters())
    fused = bool(optimizer.defaults.get("fused"))
    states: dict[nn.Parameter, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or (entry != "step" and tensor.shape != parameter.shape):
            found = "no such parameter" if parameter is None else f"the parameter is {tuple(parameter.shape)}"
            raise CheckpointError(
                f"checkpoint {path} holds optimiser state {key!r} of shape {tuple(tensor.shape)}, but {found}; "
                "build the model with the config stored in the checkpoint, or train again"
            )
        states.setdefault(parameter, {})[entry] = (
            tensor.clone() if entry == "step" and not fused else tensor.to(parameter.device, copy=True)
        )
    for parameter, state in states.items():
        optimizer.state[parameter] = state
