"""Export of the network: torch.export with a dynamic batch, and ONNX on the reference backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_windows import build, inputs, memory_of, small
from torch.export import Dim

from simmst.foundation.memory import Memory
from simmst.models import SimMSTNet

pytestmark = pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="before torch 2.7 nothing tells that a program is exported"
)
F32 = torch.float32
NAMES = ("values", "marks", "mask", "memory")


def of_a_batch(batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    values, marks, mask = inputs(batch=batch, dtype=F32)
    values[0, 3:5] = float("nan")
    mask[-1, 0] = False
    return (values, marks), {"mask": mask, "memory": memory_of(batch=batch, dtype=F32)}


def network() -> tuple[SimMSTNet, dict[str, Any]]:
    """Return a network that selects queries, and the shapes of its arguments with a dynamic batch."""
    batch = {0: Dim("batch", min=1, max=512)}
    shapes = {name: Memory(*[batch] * len(Memory._fields)) if name == "memory" else batch for name in NAMES}
    return build(small(factor=1, backend="reference"), dtype=F32), shapes


def test_the_batch_of_the_exported_network_is_free() -> None:
    model, shapes = network()
    arguments, options = of_a_batch(5)
    program = torch.export.export(model, arguments, options, dynamic_shapes=shapes, strict=False)
    assert "simmst" not in str(program.graph)
    with torch.no_grad():
        for batch in (1, 5, 9):
            given, options = of_a_batch(batch)
            torch.testing.assert_close(program.module()(*given, **options), model(*given, **options))


@pytest.mark.slow(
    of=("simmst/core", "simmst/models", "simmst/nn", "simmst/ops")
)  # the converter needs half a minute for the network's 700 nodes
def test_the_network_runs_in_onnx() -> None:
    runtime = pytest.importorskip("onnxruntime", reason="comes with the extra onnx")
    pytest.importorskip("onnxscript", reason="comes with the extra onnx")
    model, shapes = network()
    arguments, options = of_a_batch(5)
    program = torch.onnx.export(
        model, arguments, kwargs=options, dynamo=True, dynamic_shapes=shapes, verbose=False, optimize=True
    )
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    for batch in (5, 2):
        arguments, options = of_a_batch(batch)
        names = [each.name for each in session.get_inputs()]
        given = [each.numpy() for each in (*arguments, options["mask"], *options["memory"])]
        (out,) = session.run(None, dict(zip(names, given, strict=True)))
        expected = model(*arguments, **options).detach()
        torch.testing.assert_close(torch.from_numpy(out), expected, rtol=0, atol=1e-4)
