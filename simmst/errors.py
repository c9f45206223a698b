"""The errors users meet. Each message names the value, where it was found and the next thing to do."""

from __future__ import annotations


class SimmstError(Exception):
    """Base of every error raised on purpose by simmst."""


class ConfigError(SimmstError, ValueError):
    """A setting is unknown, out of range or contradicts another."""


class DataError(SimmstError, ValueError):
    """A data set or data file does not hold what it should."""


class CheckpointError(SimmstError, ValueError):
    """A checkpoint is damaged, of another version, or does not fit the model."""


class BackendUnavailableError(SimmstError, RuntimeError):
    """A backend was asked for by name and cannot run the call."""


class MissingExtraError(SimmstError, ImportError):
    """A feature needs a package that comes with one of the extras."""


class RayTracingError(SimmstError, RuntimeError):
    """Ray tracing cannot run here; the message says why and what to install."""
