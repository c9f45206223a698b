"""The choice of the backend that runs a call. One predicate per backend says why it cannot run the call, or None."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from operator import index
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch.autograd import forward_ad

from simmst.core import dtypes
from simmst.errors import BackendUnavailableError
from simmst.native.checkout import warn_of_hidden_installation
from simmst.native.cuda.launch import emulated as emulated
from simmst.ops import measured_choice
from simmst.ops.limits import why_too_large, why_too_little_memory

BACKENDS = ("reference", "cpu", "triton", "cuda", "chain")
GPU_OPERATORS = ("prob_sparse_attention", "spatial_attention", "cutting_plane")
# Layers whose C++ kernels take only float32. The reference runs what a named backend has no kernel for.
PLAIN_LAYERS = ("feed_forward", "day_attention", "projection")
OPERATORS = GPU_OPERATORS + PLAIN_LAYERS

# The module with the functions of a backend; {operator} is one of OPERATORS. Imported on first use.
_MODULES = {
    "reference": "simmst.reference.{operator}",
    "chain": "simmst.reference.{operator}_chain",
    "cpu": "simmst.native.cpu.{operator}",
    "triton": "simmst.kernels.{operator}",
    "cuda": "simmst.native.cuda.{operator}",
}
# Operators that can be built from PyTorch's fused operators, which is what backend "chain" does.
CHAINED = ("spatial_attention",)
# Tried in this order when no backend is named. On a GPU, backends that measured_choice.json lists as faster come first.
_PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "chain", "reference")}


class Availability(NamedTuple):
    """One row of the operator x backend table."""

    operator: str
    backend: str
    available: bool
    reason: str


@functools.cache
def load_native(name: str) -> tuple[ModuleType | None, str]:
    """Import a compiled module once; keep the reason when it cannot be imported.

    Args:
        name: ``"simmst._cpu"`` or ``"simmst._cuda"``.

    Returns:
        The module and an empty reason, or None and the reason.
    """
    try:
        return importlib.import_module(name), ""
    except ImportError as error:
        if name == "simmst._cpu":
            warn_of_hidden_installation()
        remedy = "; on a machine with nvcc, build it: SIMMST_CUDA=ON pip install ." if name == "simmst._cuda" else ""
        return None, f"the compiled module {name} is not in this installation ({error}){remedy}"


def _why_not_reference(operator: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if dtype not in dtypes.FLOATS:
        return f"dtype {dtype} is none of {', '.join(map(str, dtypes.FLOATS))}"
    return None


def _why_not_chain(operator: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if operator not in CHAINED:
        return f"{operator} cannot be built from PyTorch's fused operators; the chain runs {', '.join(CHAINED)}"
    return _why_not_reference(operator, device, dtype)


def _why_not_cpu(operator: str, device: torch.device, dtype: torch.dtype) -> str | None:
    module, reason = load_native("simmst._cpu")
    if module is None:
        return reason
    if operator not in module.operators():
        return f"this build of simmst._cpu has no {operator} kernel"
    if device.type != "cpu":
        return f"it runs on CPU tensors, got device {str(device)!r}"
    if operator in PLAIN_LAYERS and dtype != torch.float32:
        return f"its {operator} kernel takes float32, got {dtype}"
    return _why_not_reference(operator, device, dtype)


def _why_not_triton(operator: str, device: torch.device, dtype: torch.dtype) -> str | None:
    # Only look for the file, which imports neither triton nor the kernel.
    if not any(Path(folder, f"{operator}.py").is_file() for folder in _kernel_folders()):
        return f"this version of simmst has no Triton kernel for {operator}"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed; install it with: pip install triton"
    if device.type == "cpu" and interpreted():
        return _why_not_interpreted(operator, dtype)
    return _why_not_gpu(device, dtype) or _why_not_assembled(operator, device, dtype)


def _why_not_assembled(operator: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if dtype == torch.float32:  # exact products do not use the instructions in question, and TF32 is not used then
        return None
    major, minor = torch.cuda.get_device_capability(device)
    assembler = importlib.import_module("simmst.kernels.assembler")
    reason: str | None = assembler.why_not_trusted(operator, 10 * major + minor)
    return reason


def _why_not_interpreted(operator: str, dtype: torch.dtype) -> str | None:
    if dtype == torch.bfloat16 and operator != "cutting_plane":
        return "Triton's interpreter computes bfloat16 matrix products wrongly; use float32 or float16"
    return None if dtype in dtypes.GPU_FLOATS else _not_among_gpu_dtypes(dtype)


def interpreted() -> bool:
    """Tell whether Triton kernels run in Triton's interpreter, which takes CPU tensors and is slow: for tests only.

    The variable ``TRITON_INTERPRET=1`` must be set before triton is first imported.
    """
    return os.environ.get("TRITON_INTERPRET") == "1"


def _why_not_cuda(operator: str, device: torch.device, dtype: torch.dtype) -> str | None:
    name = "simmst._cuda_emulated" if emulated() else "simmst._cuda"
    module, reason = load_native(name)
    if module is None:
        return reason
    if operator not in module.operators():
        return f"this build of {name} has no {operator} kernel"
    if emulated():
        if device.type != "cpu":
            return f"the emulator runs on CPU tensors, got device {str(device)!r}"
        why, number = None if dtype in dtypes.GPU_FLOATS else _not_among_gpu_dtypes(dtype), -1
    else:
        why, number = _why_not_gpu(device, dtype), device.index
    if why is not None:
        return why
    if number is None:
        number = torch.cuda.current_device()
    return why_too_little_memory(operator, "cuda", dtype, module.shared_bytes(number))


def _kernel_folders() -> list[str]:
    spec = importlib.util.find_spec("simmst.kernels")
    return list(spec.submodule_search_locations or []) if spec is not None else []


def _why_not_gpu(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type == "cuda" and not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if device.type != "cuda":
        return f"it runs on CUDA tensors, got device {str(device)!r}"
    if dtype not in dtypes.GPU_FLOATS:
        return _not_among_gpu_dtypes(dtype)
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"it needs compute capability 8.0 or newer, {device} has {major}.{minor}"
    return None


def _not_among_gpu_dtypes(dtype: torch.dtype) -> str:
    return f"dtype {dtype} is none of {', '.join(map(str, dtypes.GPU_FLOATS))}"


_PREDICATES = {
    "reference": _why_not_reference,
    "cpu": _why_not_cpu,
    "triton": _why_not_triton,
    "cuda": _why_not_cuda,
    "chain": _why_not_chain,
}


def why_not(operator: str, backend: str, *, device: torch.device, dtype: torch.dtype, **sizes: int) -> str | None:
    """Say why a backend cannot run an operator with this device, dtype and sizes; None if it can.

    Example:
        >>> why_not("cutting_plane", "cuda", device=torch.device("cpu"), dtype=torch.float32) is None
        False
    """
    return _PREDICATES[backend](operator, device, dtype) or why_too_large(operator, backend, sizes)


def choose(
    operator: str,
    backend: str | None,
    *,
    device: torch.device,
    dtype: torch.dtype,
    bucket: int | None = None,
    head_width: int | None = None,
    training: bool = False,
) -> str:
    """Choose the backend of a call.

    Args:
        operator: one of ``OPERATORS``.
        backend: name of a backend (never replaced silently), or None for the value of the environment variable
            ``SIMMST_BACKEND`` or, if that is not set, for the first backend that can run the call.
        device: device of the inputs.
        dtype: dtype of the inputs.
        bucket: :func:`simmst.ops.measured_choice.bucket` of the size that the work grows with.
        head_width: D, which kernels limit (:mod:`simmst.ops.limits`), as a plain integer; while torch.compile traces,
            :func:`concrete` makes it one.
        training: whether gradients are wanted, because another backend may then be the fastest.

    Raises:
        ValueError: the name is not that of a backend.
        BackendUnavailableError: the named backend cannot run the call; the message says why.

    Example:
        >>> choose("cutting_plane", "reference", device=torch.device("cpu"), dtype=torch.float32)
        'reference'
    """
    if backend is None:
        named, source = os.environ.get("SIMMST_BACKEND") or None, "the environment variable SIMMST_BACKEND"
    else:
        named, source = backend, "the argument backend"
    return _resolve(operator, named, source, device, dtype, is_transformed(), bucket, head_width, training)


# torch.compile evaluates the choice while it traces, instead of tracing the imports and look-ups in it. This has the
# effect of torch.compiler.assume_constant_result without importing the compiler, which takes longer than all of simmst.
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]

_transforms = torch._C._functorch.peek_interpreter_stack

# Makes a size a plain integer. torch.compile then makes one program per value; a head has few different widths.
concrete = index


def is_transformed() -> bool:
    """Tell whether a torch.func transform or forward-mode AD is active.

    Only plain PyTorch works inside a transform. A tensor made inside must not outlive it, so never cache one.
    """
    return _transforms() is not None or forward_ad._current_level >= 0


@functools.lru_cache(maxsize=1024)
def _resolve(
    operator: str,
    named: str | None,
    source: str,
    device: torch.device,
    dtype: torch.dtype,
    transformed: bool,
    bucket: int | None,
    head_width: int | None,
    training: bool,
) -> str:
    sizes = {} if head_width is None else {"head_width": head_width}

    def reason_against(name: str) -> str | None:
        if transformed and name != "reference":
            return "torch.func transforms and forward-mode AD need backend 'reference'"
        return why_not(operator, name, device=device, dtype=dtype, **sizes)

    if named is None:
        candidates = _candidates(operator, device, dtype, bucket, training)
        reasons = {name: reason_against(name) for name in candidates}
        for name, reason in reasons.items():
            if reason is None:
                return name
        details = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise BackendUnavailableError(f"no backend can run {operator} here: {details}")
    if named not in BACKENDS:
        raise ValueError(f"{source} is {named!r}; it must be one of {', '.join(BACKENDS)}")
    reason = reason_against(named)
    if reason is not None and operator in PLAIN_LAYERS and reason_against("reference") is None:
        return "reference"
    if reason is not None:
        raise BackendUnavailableError(f"backend {named!r} ({source}) cannot run {operator}: {reason}")
    return named


def _candidates(
    operator: str, device: torch.device, dtype: torch.dtype, bucket: int | None, training: bool
) -> tuple[str, ...]:
    documented = _PREFERENCE.get(device.type, ("reference",))
    faster = measured_choice.order(operator, dtype, bucket, training=training) if device.type == "cuda" else ()
    return (*faster, *(name for name in documented if name not in faster))


@functools.cache
def implementation(operator: str, backend: str) -> ModuleType:
    """Import the module with an operator's functions for a backend.

    Example:
        >>> implementation("prob_sparse_attention", "reference").__name__
        'simmst.reference.prob_sparse_attention'
    """
    return importlib.import_module(_MODULES[backend].format(operator=operator))


def availability() -> list[Availability]:
    """List every operator and backend, whether it can run float32 tensors here, and if not, why.

    Example:
        >>> [row.backend for row in availability() if row.operator == "cutting_plane"]
        ['reference', 'cpu', 'triton', 'cuda', 'chain']
    """
    rows = []
    for operator in OPERATORS:
        for backend in BACKENDS:
            device = torch.device("cuda" if backend in ("triton", "cuda") else "cpu")
            reason = why_not(operator, backend, device=device, dtype=torch.float32)
            rows.append(Availability(operator, backend, reason is None, reason or ""))
    return rows
