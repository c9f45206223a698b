"""The checks of a result before it is timed: as exact as plain PyTorch, repeatable, and capturable in a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def excess(name: str, ours: Tensor, plain: Tensor, exact: Tensor) -> str:
    """Say what is wrong with a result; empty if its error is at most twice that of plain PyTorch, plus a rounding."""
    if ours.shape != exact.shape:
        return f"{name} has shape {tuple(ours.shape)}, expected {tuple(exact.shape)}"
    if not bool(ours.isfinite().all()):
        return f"{name} holds values that are not finite"
    error, allowed = ((side.double() - exact).abs().max().item() for side in (ours, plain))
    rounding = max(1e-6, torch.finfo(ours.dtype).eps) * exact.abs().max().item()
    if error <= 2 * allowed + rounding:
        return ""
    return f"{name} is off by {error:.3g}, plain PyTorch by {allowed:.3g}"


def differences(call: Callable[[], Sequence[Tensor]]) -> str:
    """Say whether two calls differ in their bits; empty if they do not."""
    first, second = call(), call()
    differing = [index for index, (one, two) in enumerate(zip(first, second, strict=True)) if not torch.equal(one, two)]
    return f"two runs differ in result {differing}" if differing else ""


def graph_problem(call: Callable[[], Sequence[Tensor]], device: torch.device) -> str:
    """Say why a call cannot be captured in a CUDA graph whose replay gives the eager result; empty if it can."""
    if device.type != "cuda":
        return ""
    eager = call()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            captured = call()
    except RuntimeError as error:
        return f"it cannot be captured in a graph: {str(error).splitlines()[0]}"
    for out in captured:
        out.zero_()
    graph.replay()
    torch.cuda.synchronize(device)
    same = all(torch.equal(one, two) for one, two in zip(eager, captured, strict=True))
    return "" if same else "the replay of its graph differs from the eager call"
