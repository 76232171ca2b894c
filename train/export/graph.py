"""The core as a portable ONNX graph, in fp32 or in mixed fp16."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edge.errors import TrainingError
from edge.manifest import ModelSpec
from train.detector import D, Detector, input_shapes, output_names

#: TensorRT 10.3's parser and OpenVINO 2025 both read it whole.
OPSET = 18


class HalfCore(nn.Module):
    """The core in fp16, with float32 inputs and outputs.

    Norms and softmax stay in float32 (see `train.redi.recover`): in fp16 a sum of squares overflows at 65504.
    """

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.core = copy.deepcopy(model).half().eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Take and return float32; compute in fp16."""
        outputs = self.core(*(value.half() for value in inputs))
        return tuple(output.float() for output in outputs)


class RoundedCore(nn.Module):
    """The fp16 core's arithmetic at fp32 speed: fp16 operands and results, float32 sums, as tensor cores compute.

    Every weight and every leaf module's output is rounded to fp16 (and becomes infinite where fp16 would).  CPUs run
    real fp16 convolutions hundreds of times slower than this.
    """

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = copy.deepcopy(core)
        for parameter in self.core.parameters():
            parameter.data = parameter.data.half().float()
        for module in self.core.modules():
            if not any(True for _ in module.children()):
                module.register_forward_hook(_round_output)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Take and return float32."""
        outputs = self.core(*(value.half().float() for value in inputs))
        return tuple(output.half().float() for output in outputs)


def _round_output(_module: nn.Module, _inputs: object, output: Any) -> Tensor | None:
    # What passes several tensors through unchanged needs no rounding.
    return output.half().float() if isinstance(output, Tensor) else None


def fuse_batch_norms(module: nn.Module) -> None:
    """Fold every `Conv2d, BatchNorm2d` pair inside a Sequential into the convolution, in place."""
    for child in module.modules():
        if not isinstance(child, nn.Sequential):
            continue
        for place in range(len(child) - 1):
            first, second = child[place], child[place + 1]
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                child[place], child[place + 1] = fuse_conv_bn_eval(first, second), nn.Identity()


def fused(model: D) -> D:
    """Return a frozen copy of the core with every batch norm folded."""
    core = copy.deepcopy(model).eval()
    fuse_batch_norms(core)
    return core


def example_inputs(spec: ModelSpec) -> tuple[Tensor, ...]:
    """Zero inputs of the core's shapes, batch 1."""
    return tuple(torch.zeros(1, *shape) for shape in input_shapes(spec).values())


def export_graph(core: nn.Module, spec: ModelSpec) -> bytes:
    """Export `core`, which has the inputs and outputs that `spec` states, to ONNX, one file, checked.

    Raises:
        TrainingError: the graph does not pass ONNX's checker, or holds a value that is not finite.
    """
    with _quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            core,
            example_inputs(spec),
            input_names=list(input_shapes(spec)),
            output_names=output_names(spec),
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    graph = program.model_proto
    _strip(graph)
    try:
        onnx.checker.check_model(graph, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise TrainingError(
            f"the exported graph is not valid ONNX: {error}", "this is a bug; please report it"
        ) from error
    for tensor in graph.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and not bool((abs(values) < float("inf")).all()):
            raise TrainingError(f"weight {tensor.name} is not finite in this precision", "export without --fp16")
    return bytes(graph.SerializeToString())


def _strip(graph: onnx.ModelProto) -> None:
    """Drop what the exporter notes for debugging: source paths of this machine do not belong in a bundle."""
    graph.doc_string = ""
    graph.graph.doc_string = ""
    del graph.metadata_props[:], graph.graph.metadata_props[:]
    for node in graph.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        value.doc_string = ""
        del value.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own notes (absent torchvision operators, deprecations inside torch) off the console."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(open(os.devnull, "w", encoding="utf-8")),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
