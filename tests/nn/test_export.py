"""Export of layers: torch.export with a dynamic batch, and ONNX on the reference backend."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim

from simmst.nn import ProbSparseAttention, SpatialAttention, TaskInteraction

pytestmark = pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="before torch 2.7 nothing tells that a program is exported"
)
MASK = torch.zeros(3, 20, dtype=torch.bool)
MASK[0, :4] = True
MASK[1] = True
X = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(0))
LAYERS = {
    "selecting": (lambda: ProbSparseAttention(8, 2, factor=1, backend="reference"), (X,)),
    "causal": (lambda: ProbSparseAttention(8, 2, factor=1, is_causal=True, backend="reference"), (X,)),
    "shared": (lambda: ProbSparseAttention(8, 2, factor=1, sampling="shared", backend="reference"), (X,)),
    "cross": (lambda: ProbSparseAttention(8, 2, factor=1, backend="reference"), (X[:, :9].clone(), X)),
    "spatial": (lambda: SpatialAttention(8, 2, residual=True, norm=True, backend="reference"), (X, MASK)),
    "maps": (lambda: SpatialAttention(8, 2, backend="reference"), (X.mT.reshape(3, 8, 4, 5), MASK)),
    "tasks": (lambda: TaskInteraction(8, 2, backend="reference"), (X.view(3, 2, 10, 8), MASK.view(3, 2, 10))),
}
ARGUMENTS = {
    ProbSparseAttention: ("query", "key"),
    SpatialAttention: ("x", "key_padding_mask"),
    TaskInteraction: ("x", "key_padding_mask"),
}


def layer_and_arguments(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...], dict[str, dict[int, Dim]]]:
    torch.manual_seed(1)
    make, arguments = LAYERS[name]
    layer, batch = make().eval(), Dim("batch", min=1, max=64)
    names = ARGUMENTS[type(layer)][: len(arguments)]
    return layer, arguments, {each: {0: batch} for each in names}


def other_batch(arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.cat((each, each[:2])) for each in arguments)


@pytest.mark.parametrize(
    ("name", "strict"), [("selecting", False), ("selecting", True), ("cross", False), ("maps", True), ("tasks", False)]
)
def test_the_batch_of_an_exported_layer_is_free(name: str, strict: bool) -> None:
    layer, arguments, shapes = layer_and_arguments(name)
    program = torch.export.export(layer, arguments, dynamic_shapes=shapes, strict=strict)
    assert "simmst" not in str(program.graph)  # running it needs only torch
    for given in (arguments, other_batch(arguments)):
        torch.testing.assert_close(program.module()(*given), layer(*given))


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_runs_in_onnx(name: str) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="comes with the extra onnx")
    pytest.importorskip("onnxscript", reason="comes with the extra onnx")
    layer, arguments, shapes = layer_and_arguments(name)
    program = torch.onnx.export(layer, arguments, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    for given in (arguments, other_batch(arguments)):
        inputs = dict(zip((each.name for each in session.get_inputs()), (each.numpy() for each in given), strict=True))
        (out,) = session.run(None, inputs)
        torch.testing.assert_close(torch.from_numpy(out), layer(*given).detach(), rtol=0, atol=1e-5)
