"""Environment variables that name a backend or an instruction set, or say how idle threads wait."""

from __future__ import annotations

import os
import sys

from simmst.errors import ConfigError

# Every OpenMP runtime knows the first variable. GCC's runtime, which torch for Linux bundles, then looks for work this
# many times (some 25 microseconds) before a thread sleeps, about as long as falling asleep and waking takes. Its own
# default is 300,000.
_WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
_CHOICES = (*_WAITING, "KMP_BLOCKTIME")


def sleep_while_waiting() -> None:
    """Let waiting threads sleep, because a spinning thread takes the core that others need on a busy machine.

    The OpenMP runtimes read these variables when they are loaded, so setting them has no effect once torch is imported.
    Where the user has set one of them, none is changed. Only the commands call this: a library does not decide for the
    program that imports it.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _CHOICES):
        os.environ.update(_WAITING)


def check_environment() -> None:
    """Refuse a backend or an instruction set that does not exist here.

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
