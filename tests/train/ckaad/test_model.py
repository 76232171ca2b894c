from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from edge.inspection.portable import openvino_core
from edge.manifest import InputSpec, MapSpec
from train.backbones import ARCHITECTURES, Backbone
from train.ckaad.blocks import InstanceNorm, Residual
from train.ckaad.discriminators import Discriminators, PatchDiscriminator
from train.ckaad.model import AutoEncoder, Ckaad
from train.detector import input_shapes, output_names
from train.export.graph import HalfCore, RoundedCore, example_inputs, export_graph, fused


def make(layers: tuple[int, ...] = (1, 2, 3), height: int = 64, width: int = 96) -> Ckaad:
    torch.manual_seed(0)
    model = Ckaad(Backbone("resnet18"), InputSpec(height=height, width=width), MapSpec(), layers, "ckaad")
    for module in model.modules():
        if isinstance(module, InstanceNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.3, 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Ckaad:
    """Of two layers: a quarter of the weights that three have."""
    return make((1, 2))


@pytest.mark.parametrize("layers", [(1, 2, 3), (2, 3), (1,)])
def test_outputs_have_the_shapes_that_the_spec_states(layers: tuple[int, ...]) -> None:
    model = make(layers)
    spec = model.spec()
    assert spec.core.prompt_features == {}
    assert not spec.core.uses_prompt
    assert not spec.core.uses_map
    assert list(input_shapes(spec)) == ["x"]
    with torch.no_grad():
        outputs = model(torch.randn(2, 3, 64, 96))
    assert [tuple(f.shape[1:]) for f in outputs] == [*spec.compare.scales, *spec.compare.scales]
    assert len(output_names(spec)) == 2 * len(layers)
    assert [scale[0] for scale in spec.compare.scales] == [(64, 128, 256)[layer - 1] for layer in layers]


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_the_auto_encoder_mirrors_every_backbone(name: str) -> None:
    scales = ARCHITECTURES[name].scales
    with torch.device("meta"):
        features = [torch.zeros(1, channels, 64 // stride * 2, 64 // stride) for channels, stride in scales]
        rebuilt = AutoEncoder(name, (1, 2, 3))(features)
    assert [f.shape for f in rebuilt] == [f.shape for f in features]


def test_the_first_outputs_are_those_of_phi(model: Ckaad) -> None:
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for got, want in zip(model(x)[:2], model.phi(x)[:2], strict=True):
            assert torch.equal(got, want)


def test_instance_norm_is_that_of_the_formula() -> None:
    norm = InstanceNorm(4)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    torch.nn.init.uniform_(norm.bias, -1, 1)
    x = 3 * torch.randn(2, 4, 5, 6) + 1
    wide = x.double().numpy()
    mean, variance = wide.mean((2, 3), keepdims=True), wide.var((2, 3), keepdims=True)
    scale, shift = (p.detach().double().numpy()[:, None, None] for p in (norm.weight, norm.bias))
    expected = (wide - mean) / np.sqrt(variance + 1e-5) * scale + shift
    np.testing.assert_allclose(norm(x).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inner", [None, 4])
@pytest.mark.parametrize(("stride", "shape"), [(1, (6, 8)), (2, (3, 4)), (-2, (12, 16))])
def test_a_block_halves_or_doubles(stride: int, shape: tuple[int, int], inner: int | None) -> None:
    assert Residual(8, 12, stride, inner)(torch.randn(2, 8, 6, 8)).shape == (2, 12, *shape)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96), (256, 320)])
def test_energies_are_never_negative_and_one_per_place(height: int, width: int) -> None:
    torch.manual_seed(0)
    scales = ((16, 4), (32, 8), (64, 16))
    judge = Discriminators(scales, (height, width))
    features = [torch.randn(3, channels, height // stride, width // stride) for channels, stride in scales]
    found = judge(features)
    assert [tuple(e.shape) for e in found] == [*((3, 1, height // s, width // s) for _, s in scales), (3, 1)]
    assert all(bool((energy >= 0).all()) for energy in found)
    assert all(float(energy.detach().std()) > 0 for energy in found)


def test_a_patchs_energy_depends_on_its_own_direction_alone() -> None:
    torch.manual_seed(0)
    judge = PatchDiscriminator(16)
    features = torch.randn(1, 16, 4, 4)
    other = 7 * features
    other[..., 0, 0] = torch.randn(16)
    with torch.no_grad():
        one, two = judge(features), judge(other)
    torch.testing.assert_close(one[..., 1:, :], two[..., 1:, :])
    assert not torch.allclose(one[..., 0, 0], two[..., 0, 0])
    assert not any("bias" in name for name, _ in judge.named_parameters())


def run_openvino(graph: bytes, inputs: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    core = openvino_core()
    compiled = core.compile_model(core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    result = compiled([value.numpy() for value in inputs])
    return [result[place] for place in range(len(result))]


def test_the_exported_graph_computes_the_same(model: Ckaad) -> None:
    graph = export_graph(fused(model), model.spec())
    parsed = onnx.load_from_string(graph)
    assert [value.name for value in parsed.graph.input] == ["x"]
    assert [value.name for value in parsed.graph.output] == output_names(model.spec())
    inputs = tuple(torch.rand_like(value) for value in example_inputs(model.spec()))
    with torch.no_grad():
        expected = model(*inputs)
    for got, want in zip(run_openvino(graph, inputs), expected, strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=2e-3, atol=2e-3)


def test_the_fp16_graph_keeps_its_norms_in_float32(model: Ckaad) -> None:
    core = fused(model)
    graph = export_graph(HalfCore(core), model.spec())
    parsed = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph))
    types = {v.name: v.type.tensor_type.elem_type for v in (*parsed.graph.value_info, *parsed.graph.input)}
    types |= {t.name: t.data_type for t in parsed.graph.initializer}
    norms = [node for node in parsed.graph.node if node.op_type == "InstanceNormalization"]
    assert len(norms) > 15
    for node in parsed.graph.node:
        if node.op_type == "InstanceNormalization":
            assert types[node.input[0]] == onnx.TensorProto.FLOAT
        if node.op_type == "Conv":
            assert types[node.input[1]] == onnx.TensorProto.FLOAT16
    inputs = tuple(torch.rand_like(value) for value in example_inputs(model.spec()))
    with torch.no_grad():
        expected, rounded = model(*inputs), RoundedCore(core)(*inputs)
    for got, near, want in zip(run_openvino(graph, inputs), rounded, expected, strict=True):
        for value in (got, near.numpy()):
            assert np.abs(value - want.numpy()).max() < 0.03 * max(1.0, float(want.abs().max()))
