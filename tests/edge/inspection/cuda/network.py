"""The portable runtime's network in the place of a GPU's: graph and arithmetic are the same, so that all else shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edge.bundle import CORE, Bundle
from edge.errors import BundleMismatchError
from edge.inspection.cuda.device import Stream
from edge.inspection.portable import core_settings, openvino_core
from edge.inspection.ports import core_inputs, core_outputs
from tests.edge.inspection.cuda.emulated import EmulatedGpu


class NetworkEngine:
    """An `Engine` on the emulated device."""

    def __init__(self, bundle: Bundle, gpu: EmulatedGpu) -> None:
        model = bundle.manifest.model
        graph = openvino_core().read_model(bytes(bundle.read(CORE)))
        self._compiled: Any = openvino_core().compile_model(graph, "CPU", core_settings(1, "f32"))
        self._inputs, self._outputs = core_inputs(model), core_outputs(model)
        self._gpu = gpu
        self._addresses: Mapping[str, int] = {}
        self.inferences = 0
        self.closed = False

    @property
    def describe(self) -> str:
        return "a network of tests"

    def bind(self, addresses: Mapping[str, int]) -> None:
        if addresses.keys() != self._inputs.keys() | self._outputs.keys():
            raise BundleMismatchError(f"not these: {sorted(addresses)}")
        assert all(address % 256 == 0 for address in addresses.values())
        self._addresses = dict(addresses)

    def enqueue(self, stream: Stream) -> None:
        self._gpu.call(stream, self._infer)

    def _infer(self) -> None:
        given = {
            name: self._gpu.view(self._addresses[name], np.float32, shape).copy()
            for name, shape in self._inputs.items()
        }
        found = self._compiled(given)
        for name, shape in self._outputs.items():
            self._gpu.view(self._addresses[name], np.float32, shape)[...] = found[name]
        self.inferences += 1

    def close(self) -> None:
        assert not self.closed
        self.closed = True
