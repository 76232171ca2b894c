"""PyTorch in TensorRT's place: the tiny bundle's network, on the runtime's own stream and memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper

from edge.bundle import CORE, Bundle
from edge.errors import BundleMismatchError
from edge.inspection.cuda.device import Stream
from edge.inspection.ports import Shapes, core_inputs, core_outputs

Tensors: TypeAlias = "dict[str, torch.Tensor]"


class Graph:
    """The ONNX graphs that `tests.tiny_bundle` writes, node by node."""

    def __init__(self, model: bytes, device: str) -> None:
        graph = onnx.load_from_string(model).graph
        self._nodes = list(graph.node)
        self.outputs = [output.name for output in graph.output]
        self._constants: Tensors = {
            constant.name: torch.from_numpy(numpy_helper.to_array(constant).copy()).to(device)
            for constant in graph.initializer
        }

    def __call__(self, inputs: Tensors) -> Tensors:
        """Return the outputs by name."""
        values = {**self._constants, **inputs}
        for node in self._nodes:
            attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            given = [values[name] for name in node.input]
            values[node.output[0]] = _apply(node.op_type, given, attributes)
        return {name: values[name] for name in self.outputs}


def _apply(kind: str, given: list[torch.Tensor], attributes: dict[str, Any]) -> torch.Tensor:
    if kind == "Conv":
        return F.conv2d(*given, stride=attributes["strides"])
    if kind == "ConvTranspose":
        return F.conv_transpose2d(*given, stride=attributes["strides"])
    if kind == "ReduceMean":
        return given[0].mean(dim=tuple(attributes["axes"]), keepdim=True)
    if kind == "Cast":
        return given[0].to({1: torch.float32, 10: torch.float16}[attributes["to"]])
    operations = {"Tanh": torch.tanh, "Log": torch.log, "Add": torch.add, "Mul": torch.mul}
    return operations[kind](*given)


@contextmanager
def on(stream: Stream) -> Iterator[Any]:
    """Let PyTorch queue on a stream of the runtime's meanwhile; give `torch.cuda`."""
    cuda: Any = torch.cuda
    with cuda.stream(cuda.ExternalStream(stream.handle)):
        yield cuda


class _Memory:
    """Device memory of somebody else's, as PyTorch takes it."""

    def __init__(self, address: int, shape: tuple[int, ...]) -> None:
        self.__cuda_array_interface__ = {"shape": shape, "typestr": "<f4", "data": (address, False), "version": 3}


class TorchEngine:
    """An `Engine`: a function of PyTorch between the runtime's inputs and outputs.

    What it allocates while a graph is recorded comes from a pool of its own, which the first inference has filled.  The
    thread that records is the one that made it: PyTorch prepares libraries for each thread at their first use there.

    Args:
        function: of inputs by name to outputs by name.
        inputs: shapes by name.
        outputs: likewise.
    """

    def __init__(self, function: Any, inputs: Shapes, outputs: Shapes) -> None:
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self._function, self._inputs, self._outputs = function, inputs, outputs
        self._pool = torch.cuda.MemPool()
        self._tensors: Tensors = {}

    @classmethod
    def of(cls, bundle: Bundle) -> TorchEngine:
        """Return the engine of a tiny bundle."""
        model = bundle.manifest.model
        return cls(Graph(bytes(bundle.read(CORE)), "cuda"), core_inputs(model), core_outputs(model))

    @property
    def describe(self) -> str:
        return f"PyTorch {torch.__version__}"

    def bind(self, addresses: Mapping[str, int]) -> None:
        shapes = {**self._inputs, **self._outputs}
        if addresses.keys() != shapes.keys():
            raise BundleMismatchError(f"{sorted(shapes)}, not {sorted(addresses)}")
        self._tensors = {
            name: torch.as_tensor(_Memory(addresses[name], shape), device="cuda") for name, shape in shapes.items()
        }
        for name, tensor in self._tensors.items():
            assert tensor.data_ptr() == addresses[name], "PyTorch made a copy"

    def enqueue(self, stream: Stream) -> None:
        with torch.no_grad(), torch.cuda.use_mem_pool(self._pool), on(stream):
            found = self._function({name: self._tensors[name] for name in self._inputs})
            for name in self._outputs:
                self._tensors[name].copy_(found[name])

    def close(self) -> None:
        self._tensors.clear()
