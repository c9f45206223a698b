"""The path of a call to its kernel: short, the same for every operator, and taken only if nothing watches the call."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from simmst.nn import ProbSparseAttention
from simmst.ops import prob_sparse_attention as attention
from simmst.ops.dispatch import cast, is_unwatched, wants_gradient


class Subclass(Tensor):
    pass


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


def test_every_tensor_is_asked_who_watches_it() -> None:
    plain = torch.ones(2)
    assert is_unwatched(plain, None, torch.nn.Parameter(plain), 3)
    assert not is_unwatched(plain, None, plain.as_subclass(Subclass))
    with Mode():
        assert not is_unwatched(plain)
    assert not wants_gradient(plain, None)
    assert wants_gradient(plain, None, plain.clone().requires_grad_())
    with torch.no_grad():
        assert not wants_gradient(plain.clone().requires_grad_())


def test_casting_leaves_what_is_no_tensor_or_wide_alone() -> None:
    given = torch.ones(1), None, torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.int64)
    assert all(a is b for a, b in zip(cast(*given), given, strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dtypes = [None if each is None else each.dtype for each in cast(*given)]
        assert cast([1.0], torch.ones(1))[1].dtype == torch.float32, "the first tensor decides"
    assert dtypes == [torch.bfloat16, None, torch.float64, torch.int64]


@pytest.mark.parametrize("grad", [False, True])
def test_five_calls_in_four_files_from_the_public_function_to_the_kernel(
    monkeypatch: pytest.MonkeyPatch, grad: bool
) -> None:
    pytest.importorskip("simmst._cpu", reason="this installation has no compiled CPU module")
    from simmst.native.cpu import prob_sparse_attention as native

    walks = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            frame: FrameType | None = sys._getframe(1)
            files = []
            while frame is not None and frame.f_code is not test.__code__:
                if "/torch/" not in frame.f_code.co_filename:
                    files.append(frame.f_code.co_filename)
                frame = frame.f_back
            walks.append([*files, "the compiled module"])
            return getattr(real, name)

    real = native._cpu
    monkeypatch.setattr(native, "_cpu", Watched())
    query, key, value = torch.randn(3, 2, 40, 8).requires_grad_(grad)

    def test() -> Tensor:
        return attention(query, key, value, sample=torch.arange(9), backend="cpu")

    test()
    assert walks
    for walk in walks:
        assert len(walk) <= 5, walk
        assert len(set(walk)) <= 4, walk


def poisoned(transform: Any, layer: ProbSparseAttention, x: Tensor) -> None:
    def total(x: Tensor) -> Tensor:
        return layer(x).sum()

    if transform == "jvp":
        torch.func.jvp(total, (x,), (torch.ones_like(x),))
    elif transform == "grad":
        torch.func.grad(total)(x)
    elif transform == "vmap":
        torch.func.vmap(lambda x: layer(x[None]))(x)
    else:
        with torch.autograd.forward_ad.dual_level():
            layer(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))


@pytest.mark.parametrize("transform", ["jvp", "grad", "vmap", "dual"])
@pytest.mark.parametrize("sampling", ["per_query", "shared"])
def test_a_transform_as_the_first_call_of_a_layer_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, transform: str, sampling: str
) -> None:
    monkeypatch.setattr(sys.modules["simmst.nn.prob_sparse_attention"], "_evaluation_samples", {})
    layer, x = ProbSparseAttention(8, 2, sampling=sampling).eval(), torch.randn(3, 30, 8)
    poisoned(transform, layer, x)
    assert not sys.modules["simmst.nn.prob_sparse_attention"]._evaluation_samples
    out = layer(x)
    out.sum().backward()
    fresh = ProbSparseAttention(8, 2, sampling=sampling).eval()
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(out, fresh(x))
    poisoned(transform, layer, x)
    for sample in sys.modules["simmst.nn.prob_sparse_attention"]._evaluation_samples.values():
        assert not torch._C._functorch.is_functorch_wrapped_tensor(sample)
