"""Environment variables that name a backend or an instruction set, checked before any work is done."""

from __future__ import annotations

import os

from simmst.errors import ConfigError


def check_environment() -> None:
    """Refuse names that nothing here has.

    Raises:
        ConfigError: ``SIMMST_BACKEND`` names no backend, or ``SIMMST_CPU_ISA`` no instruction set of this machine.
    """
    backend, instruction_set = os.environ.get("SIMMST_BACKEND"), os.environ.get("SIMMST_CPU_ISA")
    if backend:
        from simmst.ops.backends import BACKENDS

        if backend not in BACKENDS:
            names = ", ".join(BACKENDS)
            raise ConfigError(f"the environment variable SIMMST_BACKEND is {backend!r}; it must be one of {names}")
    if instruction_set:
        from simmst.ops.backends import load_native

        native, _ = load_native("simmst._cpu")
        if native is not None:
            try:
                native.instruction_set()
            except ValueError as error:
                raise ConfigError(str(error)) from error
