"""A module's exported graph, run by OpenVINO in float32."""

from __future__ import annotations

import io

import numpy as np
import torch

from edge.inspection.portable import openvino_core


def run_graph(module: torch.nn.Module, *inputs: torch.Tensor) -> list[np.ndarray]:
    """Export `module` to ONNX, run it on `inputs`, and return its outputs."""
    with torch.no_grad():
        program = torch.onnx.export(module, inputs, dynamo=True, verbose=False)
    assert program is not None
    file = io.BytesIO(program.model_proto.SerializeToString())
    core = openvino_core()
    compiled = core.compile_model(core.read_model(file.getvalue()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    result = compiled([value.numpy() for value in inputs])
    return [np.array(result[index]) for index in range(len(result))]
