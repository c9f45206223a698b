"""The errors that users meet. Each message names the value, says where it was found and what to do next."""

from __future__ import annotations


class SimmstError(Exception):
    """Base of every error raised on purpose by simmst."""


class ConfigError(SimmstError, ValueError):
    """A setting is unknown, out of range or contradicts another."""


class DataError(SimmstError, ValueError):
    """A data set or data file does not have the expected content."""


class CheckpointError(SimmstError, ValueError):
    """A checkpoint is damaged, of another version, or does not fit the model."""


class BackendUnavailableError(SimmstError, RuntimeError):
    """A backend was requested by name and cannot run the call."""


class MissingExtraError(SimmstError, ImportError):
    """A feature needs a package that one of the extras installs."""


class RayTracingError(SimmstError, RuntimeError):
    """Ray tracing cannot run here; the message says why and what to install."""
