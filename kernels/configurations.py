"""Launch configurations of the Triton kernels: a few named ones per kernel, as data in configurations.json.

The file holds, for each kernel by name (`<stem>.<kernel>`, as in `cutting_plane.step`):

    configurations   name -> {"constants": {argument: integer}, "num_warps": 4, "num_stages": 2}
    buckets          bucket -> name of a configuration; buckets are short strings that a launcher derives from shapes
                     rounded up to powers of two, and the dtype: "L4096-D64-bf16"
    default          name of the configuration for every bucket without an entry
    interpreter      name of the configuration that Triton's interpreter runs for every bucket; a configuration called
                     "interpreter" is only for the interpreter: it is neither compiled ahead of time nor tried on a GPU

and once, under `measured`, the device, date, commit and versions that buckets were measured with. While it is null, the
buckets were derived only from the sizes of tiles, registers and shared memory. `python benchmarks gpu --tune` measures
and writes them. This file imports neither torch nor triton.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from simmst.errors import ConfigError

FILE = Path(__file__).with_suffix(".json")


class Configuration(NamedTuple):
    """Meta-parameters of a launch: `kernel[grid](..., **configuration.launch())`."""

    name: str
    constants: Mapping[str, int]  # tl.constexpr arguments of the kernel
    num_warps: int
    num_stages: int

    def launch(self) -> dict[str, int]:
        """Return the keyword arguments of a launch."""
        return {**self.constants, "num_warps": self.num_warps, "num_stages": self.num_stages}


class Choices(NamedTuple):
    """The checked entry of one kernel in the file."""

    configurations: Mapping[str, Configuration]
    buckets: Mapping[str, str]
    default: str
    interpreter: str

    def name(self, bucket: str) -> str:
        """Return the name of the configuration for a bucket."""
        if os.environ.get("TRITON_INTERPRET") == "1":
            return self.interpreter
        return self.buckets.get(bucket, self.default)


_trial: dict[str, str] = {}  # kernel -> configuration on trial in place of the table's
_asked: set[tuple[str, str]] | None = None  # (kernel, bucket) of every request during a trial


def configuration(kernel: str, bucket: str) -> Configuration:
    """Return the launch configuration of a kernel for a bucket of shapes.

    Args:
        kernel: name in configurations.json, such as `"cutting_plane.step"`.
        bucket: short string made of the shapes rounded up to powers of two and the dtype, such as `"N1048576-bf16"`.
            A bucket that is not in the table gets the kernel's default. Triton's interpreter ignores the bucket.

    Raises:
        ConfigError: the file lacks the kernel, or is damaged.

    Example:
        A launcher ends with ``kernel[grid](..., **configuration("cutting_plane.step", bucket).launch())``.
    """
    choices = of(kernel)
    if _asked is not None:
        _asked.add((kernel, bucket))
    return choices.configurations[_trial.get(kernel) or choices.name(bucket)]


def of(kernel: str) -> Choices:
    """Return everything that the file says about a kernel.

    Raises:
        ConfigError: the file lacks the kernel, or is damaged.
    """
    known = _loaded()
    if kernel not in known:
        raise ConfigError(f"{FILE.name} has no kernel {kernel!r}; it has {', '.join(sorted(known)) or 'none'}")
    return known[kernel]


def named(kernel: str) -> tuple[Configuration, ...]:
    """Return a kernel's configurations for GPUs, which are compiled ahead of time and tuned, in the file's order."""
    return tuple(one for name, one in of(kernel).configurations.items() if name != "interpreter")


def kernels() -> tuple[str, ...]:
    """Return the names of the kernels in the file."""
    return tuple(_loaded())


def measured() -> dict[str, Any] | None:
    """Return device, date, commit and versions of the measurement of the buckets, or None if there was none."""
    found: dict[str, Any] | None = json.loads(FILE.read_text())["measured"]
    return found


@contextmanager
def trial(chosen: Mapping[str, str]) -> Iterator[set[tuple[str, str]]]:
    """Try configurations in place of the table's: {kernel: name of a configuration}, for tuning and tests.

    Yields:
        The set to which every (kernel, bucket) requested during the trial is added.

    Raises:
        ConfigError: a kernel or a configuration is not in the file.
    """
    global _asked
    for kernel, name in chosen.items():
        _known(kernel, name, of(kernel).configurations, "the trial")
    before, outer, asked = dict(_trial), _asked, set[tuple[str, str]]()
    _trial.update(chosen)
    _asked = asked
    try:
        yield asked
    finally:
        _trial.clear()
        _trial.update(before)
        _asked = outer


@functools.cache
def _loaded() -> Mapping[str, Choices]:
    return parse(json.loads(FILE.read_text()))


def parse(content: Mapping[str, Any]) -> Mapping[str, Choices]:
    """Check the content of a configurations.json.

    Raises:
        ConfigError: a field is missing or unknown, a number is out of range, or a name is not that of a configuration.
    """
    _fields(content, {"measured", "kernels"}, FILE.name)
    return MappingProxyType({kernel: _choices(kernel, entry) for kernel, entry in content["kernels"].items()})


def _choices(kernel: str, entry: Mapping[str, Any]) -> Choices:
    _fields(entry, {"configurations", "buckets", "default", "interpreter"}, f"kernel {kernel!r}")
    configurations = {name: _configuration(kernel, name, fields) for name, fields in entry["configurations"].items()}
    _known(kernel, entry["interpreter"], configurations, "interpreter")
    on_gpus = {name: one for name, one in configurations.items() if name != "interpreter"}
    _known(kernel, entry["default"], on_gpus, "default")
    for bucket, name in entry["buckets"].items():
        _known(kernel, name, on_gpus, f"bucket {bucket!r}")
    return Choices(MappingProxyType(configurations), dict(entry["buckets"]), entry["default"], entry["interpreter"])


def _configuration(kernel: str, name: str, fields: Mapping[str, Any]) -> Configuration:
    place = f"configuration {name!r} of kernel {kernel!r}"
    _fields(fields, {"constants", "num_warps", "num_stages"}, place)
    for constant, value in fields["constants"].items():
        if type(value) is not int or value < 0:
            raise ConfigError(f"{FILE.name}, {place}: constant {constant} is {value!r}; it must be an integer >= 0")
    warps, stages = fields["num_warps"], fields["num_stages"]
    if warps not in (1, 2, 4, 8, 16, 32):
        raise ConfigError(f"{FILE.name}, {place}: num_warps is {warps!r}; it must be a power of two up to 32")
    if type(stages) is not int or stages < 1:
        raise ConfigError(f"{FILE.name}, {place}: num_stages is {stages!r}; it must be an integer >= 1")
    return Configuration(name, MappingProxyType(dict(fields["constants"])), warps, stages)


def _fields(found: Mapping[str, Any], wanted: set[str], place: str) -> None:
    if set(found) != wanted:
        raise ConfigError(
            f"{FILE.name}, {place}: missing {sorted(wanted - set(found))}, unknown {sorted(set(found) - wanted)}"
        )


def _known(kernel: str, name: str, configurations: Mapping[str, Configuration], place: str) -> None:
    if name not in configurations:
        raise ConfigError(
            f"{FILE.name}, kernel {kernel!r}: {place} names the configuration {name!r}, "
            f"which is none of {', '.join(configurations) or 'none'}"
        )
