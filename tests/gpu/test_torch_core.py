"""PyTorch's reading of the tiny network is OpenVINO's; this needs no GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edge.bundle import CORE, Bundle
from edge.inspection.portable import core_settings, openvino_core
from edge.inspection.ports import core_inputs, core_outputs
from tests.gpu.torch_core import Graph
from tests.tiny_bundle import write_tiny_bundle


@pytest.mark.parametrize(("uses_prompt", "half"), [(True, False), (True, True), (False, False)])
def test_the_graph_means_the_same(tmp_path: Path, uses_prompt: bool, half: bool) -> None:
    path = write_tiny_bundle(tmp_path / "redi.plan", uses_prompt=uses_prompt, half=half, calibrated=False).path
    with Bundle.open(path) as bundle:
        core, model = bytes(bundle.read(CORE)), bundle.manifest.model
    rng = np.random.default_rng(0)
    given = {name: rng.random(shape, np.float32) for name, shape in core_inputs(model).items()}
    compiled = openvino_core().compile_model(openvino_core().read_model(core), "CPU", core_settings(1, "f32"))
    expected = compiled(given)
    with torch.no_grad():
        found = Graph(core, "cpu")({name: torch.from_numpy(array) for name, array in given.items()})
    assert found.keys() == core_outputs(model).keys()
    for name, tensor in found.items():
        np.testing.assert_allclose(
            tensor.numpy(), expected[name], rtol=1e-2 if half else 1e-4, atol=1e-3 if half else 1e-5
        )
