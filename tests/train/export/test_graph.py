from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from edge.inspection.portable import openvino_core
from edge.manifest import InputSpec, MapSpec
from train.backbones import ResNet18, freeze
from train.export.graph import HalfCore, RoundedCore, example_inputs, export_graph, fused
from train.redi.model import ReDi


@pytest.fixture(scope="module")
def model() -> ReDi:
    torch.manual_seed(0)
    backbone = ResNet18()
    freeze(backbone)
    model = ReDi(backbone, InputSpec(height=64, width=96), MapSpec())
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2.0)
    return model.eval()


@pytest.fixture(scope="module")
def graph(model: ReDi) -> bytes:
    return export_graph(fused(model), model.spec())


def random_inputs(model: ReDi) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.rand_like(value) for value in example_inputs(model.spec())]


def run_openvino(graph: bytes, inputs: list[torch.Tensor]) -> list[np.ndarray]:
    core = openvino_core()
    compiled = core.compile_model(core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    result = compiled([value.numpy() for value in inputs])
    return [result[i] for i in range(len(result))]


def test_folding_batch_norms_changes_nothing(model: ReDi) -> None:
    inputs = random_inputs(model)
    with torch.no_grad():
        for a, b in zip(model(*inputs), fused(model)(*inputs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules()), "the original must stay as it was"


def test_the_exported_graph_computes_the_same(model: ReDi, graph: bytes) -> None:
    parsed = onnx.load_from_string(graph)
    assert [value.name for value in parsed.graph.input] == ["x", "h", "prompt_key", "prompt_value"]
    assert [value.name for value in parsed.graph.output] == ["fx_0", "fx_1", "fx_2", "fy_0", "fy_1", "fy_2"]
    assert not any(node.op_type == "BatchNormalization" for node in parsed.graph.node)
    inputs = random_inputs(model)
    with torch.no_grad():
        expected = model(*inputs)
    for got, want in zip(run_openvino(graph, inputs), expected, strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=2e-3, atol=2e-4)


def test_no_path_of_this_machine_is_in_the_graph(graph: bytes) -> None:
    parsed = onnx.load_from_string(graph)
    for tensor in parsed.graph.initializer:
        tensor.ClearField("raw_data")  # weights may spell anything
    text = parsed.SerializeToString()
    assert len(text) < 100_000
    assert b".py" not in text
    assert b"site-packages" not in text


def test_the_fp16_graph_keeps_float32_at_its_borders_and_at_its_islands(model: ReDi) -> None:
    graph = export_graph(HalfCore(fused(model)), model.spec())
    parsed = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph))
    borders = [*parsed.graph.input, *parsed.graph.output]
    assert {v.type.tensor_type.elem_type for v in borders} == {onnx.TensorProto.FLOAT}
    types = {v.name: v.type.tensor_type.elem_type for v in parsed.graph.value_info}
    types |= {t.name: t.data_type for t in parsed.graph.initializer}
    for node in parsed.graph.node:
        if node.op_type in ("Softmax", "ReduceL2"):
            assert types[node.input[0]] == onnx.TensorProto.FLOAT, node.op_type
        if node.op_type == "Conv":
            assert types[node.input[1]] == onnx.TensorProto.FLOAT16
    inputs = random_inputs(model)
    with torch.no_grad():
        expected = fused(model)(*inputs)
    for got, want in zip(run_openvino(graph, inputs), expected, strict=True):
        assert np.abs(got - want.numpy()).max() < 0.02 * max(1.0, float(want.abs().max()))


def test_rounding_is_like_fp16_and_overflows_where_fp16_would(model: ReDi) -> None:
    core = fused(model)
    inputs = random_inputs(model)
    with torch.no_grad():
        exact, rounded = core(*inputs), RoundedCore(core)(*inputs)
        differences = [float((a - b).abs().max()) for a, b in zip(exact, rounded, strict=True)]
        assert 0 < max(differences) < 0.05
        huge = RoundedCore(core)(inputs[0] * 1e6, *inputs[1:])
    assert not all(bool(torch.isfinite(f).all()) for f in huge)


def test_weights_beyond_fp16_are_refused(model: ReDi) -> None:
    from edge.errors import TrainingError

    core = fused(model)
    core.frb.out1.weight.data.fill_(1e6)
    with pytest.raises(TrainingError, match="not finite"):
        export_graph(HalfCore(core), model.spec())
