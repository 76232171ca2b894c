"""The portable runtime: native *before* and *after* kernels, *core* on OpenVINO, on any CPU.

Every array between the frame slot and the result is allocated once and bound once.  OpenVINO reads its inputs from
the arrays that *before* writes and writes its outputs into the arrays that *after* reads; choosing a prompt binds
another, already made view of the bank: a pointer moves, no data does.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import openvino as ov

from edge.bundle import CORE, Bundle
from edge.errors import BundleError, BundleMismatchError, RuntimeUnavailableError, UsageError
from edge.frames import F32, U8, Slot, aligned_bytes, aligned_f32, frame_memory
from edge.inspection.corrections import NOTHING, Corrections
from edge.inspection.native import Comparer, Preprocessor
from edge.inspection.prompts import PromptBank
from edge.inspection.runtime import CacheReport, Outcome, Traffic, model_digests
from edge.machine import physical_cores

#: Arithmetic of the core, by its name on the command line.
PRECISIONS = ("f32", "bf16")

_MAX_THREADS = 1024


@dataclass(frozen=True)
class _Model:
    """What several cameras share: the compiled graph, its ports by name, and the prompt bank.

    `key` tells models apart: digests of the graph and of the bank, threads and precision.
    """

    key: tuple[object, ...]
    compiled: Any
    inputs: dict[str, int]
    outputs: dict[str, int]
    bank: PromptBank | None


class PortableRuntime:
    """A bundle's model on this machine's CPU; see `edge.inspection.runtime.Runtime`.

    Args:
        bundle: where the graph and the prompt bank are; keep it open as long as the runtime is in use.
        threads: of the core; default: the physical cores that this process may use.
        precision: `f32`, the same numbers on every CPU, or `bf16` where the CPU has it: faster, scores move a little.
        share: another runtime, whose compiled graph and prompt bank are used where they are the same model's.
        corrections: made of every frame that is not corrected already.

    Raises:
        BundleError: the graph cannot be read.
        BundleMismatchError: the graph's inputs or outputs are not those that the manifest promises.
        RuntimeUnavailableError: this CPU lacks the asked-for precision.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        precision: str = "f32",
        share: PortableRuntime | None = None,
        corrections: Corrections = NOTHING,
    ) -> None:
        spec = bundle.manifest.model
        if precision not in PRECISIONS:
            raise UsageError(f"unknown precision {precision!r}", f"one of {', '.join(PRECISIONS)}")
        if threads is not None and not 1 <= threads <= _MAX_THREADS:
            raise UsageError(f"{threads} threads", f"1 to {_MAX_THREADS} are possible")
        height, width = spec.input.height, spec.input.width
        self._preprocess = Preprocessor(spec.input, spec.map, spec.canvas, corrections=corrections)
        self._compare = Comparer(spec.compare, height, width, spec.canvas)
        self._descriptor = aligned_f32(self._preprocess.descriptor_size)
        # With the batch axis that the graph has; the kernels take the arrays without it.
        self._inputs = {"x": aligned_f32(1, 3, height, width)}
        h = aligned_f32(1, *self._preprocess.map_shape)
        if spec.core.uses_map:
            self._inputs["h"] = h
        self._x, self._h = self._inputs["x"][0], h[0]
        self._outputs = {
            f"{side}_{level}": aligned_f32(1, *shape)
            for side in ("fx", "fy")
            for level, shape in enumerate(spec.compare.scales)
        }
        levels = range(len(spec.compare.scales))
        self._fx = [self._outputs[f"fx_{level}"][0] for level in levels]
        self._fy = [self._outputs[f"fy_{level}"][0] for level in levels]

        key = (*model_digests(bundle), threads or physical_cores(), precision)
        shared = share is not None and share._model.key == key
        self._model: _Model = (
            share._model if share and shared else self._load(bundle, key, threads or physical_cores(), precision)
        )
        self._bank = self._model.bank
        inputs, outputs = self._model.inputs, self._model.outputs
        features = self._bank.features if self._bank else {}
        self._request = self._model.compiled.create_infer_request()
        for name, array in self._inputs.items():
            self._request.set_input_tensor(inputs[name], _shared(array))
        for name, array in self._outputs.items():
            self._request.set_output_tensor(outputs[name], _shared(array))
        self._prompts = [
            [(inputs[f"prompt_{name}"], _shared(entries[index : index + 1])) for name, entries in features.items()]
            for index in range(len(self._bank) if self._bank else 0)
        ]
        self._prompt = -1

    def _load(self, bundle: Bundle, key: tuple[object, ...], threads: int, precision: str) -> _Model:
        bank = PromptBank.load(bundle) if bundle.manifest.model.core.uses_prompt else None
        core = openvino_core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise RuntimeUnavailableError("this CPU has no bf16 arithmetic", "use --precision f32")
        taken = {name: array.shape for name, array in self._inputs.items()}
        if bank is not None:
            taken |= {f"prompt_{name}": (1, *entries.shape[1:]) for name, entries in bank.features.items()}
        given = {name: array.shape for name, array in self._outputs.items()}
        with _compiling(bundle):
            graph = core.read_model(bytes(bundle.read(CORE)))
            # Asked of the graph as written: compiling adds names of its own.  The order stays.
            inputs = _ports(bundle, "input", graph.inputs, taken)
            outputs = _ports(bundle, "output", graph.outputs, given)
            compiled = core.compile_model(graph, "CPU", core_settings(threads, precision))
        return _Model(key, compiled, inputs, outputs, bank)

    @property
    def describe(self) -> str:
        """One line for people: runtime, device, precision, threads, kernels."""
        device = openvino_core().get_property("CPU", "FULL_DEVICE_NAME")
        precision = self._model.compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        threads = self._model.compiled.get_property("INFERENCE_NUM_THREADS")
        version = ov.__version__.split("-")[0]
        return (
            f"portable: OpenVINO {version} {precision} on {device}, "
            f"{threads} thread{'s' if threads > 1 else ''}, {self._preprocess.isa} kernels"
        )

    def make_slots(self, count: int, frame_bytes: int) -> list[Slot]:
        """Allocate frame slots: plain memory, for here the slot is what the kernels read."""
        return [Slot(index, frame_memory(frame_bytes), *self._results()) for index in range(count)]

    def fit(self, slot: Slot) -> None:
        """Give a slot that was made for another model the arrays that this one fills; nothing where it has them."""
        if slot.anomaly_map.shape != self._compare.shape:
            slot.anomaly_map, slot.mask = self._results()

    def stage(self, slot: Slot) -> None:
        """Do nothing: the pixels are where they are inspected."""

    @property
    def caches(self) -> Mapping[str, CacheReport]:
        """None: a prompt is read where the bundle's file is mapped."""
        return {}

    @property
    def traffic(self) -> Traffic:
        """None: there is no other memory to copy to."""
        return Traffic()

    def _results(self) -> tuple[F32, U8]:
        height, width = self._compare.shape
        return aligned_f32(height, width), aligned_bytes(height * width // 8).reshape(height, width // 8)

    def run(self, slot: Slot, pixel_threshold: float) -> Outcome:
        """Inspect the slot's pixels: fill its `anomaly_map`, `mask` (map above `pixel_threshold`) and `area`.

        Raises:
            FrameError: the frame cannot be used (size zero, wrong channel count).
        """
        tables = self._preprocess.tables(slot.pixels, slot.pixel_format, corrected=slot.corrected)
        first, last = -1, len(tables.tiles) - 1
        before_ns = core_ns = after_ns = 0
        start = perf_counter_ns()
        for tile in range(last + 1):
            self._before(slot, tile)
            first = self._prompt if tile == 0 else first
            prepared = perf_counter_ns()
            # Without share_outputs the binding copies every output into a fresh array.
            self._request.infer(share_outputs=True, decode_strings=False)
            inferred = perf_counter_ns()
            if tile < last:
                self._compare.add(tile, self._fx, self._fy, slot.anomaly_map)
            else:
                slot.area = tables.area
                found = self._compare.finish(
                    self._fx, self._fy, slot.area, pixel_threshold, slot.anomaly_map, slot.mask
                )
            end = perf_counter_ns()
            before_ns += prepared - start
            core_ns += inferred - prepared
            after_ns += end - inferred
            start = end
        latency_ms = {"before": before_ns / 1e6, "core": core_ns / 1e6, "after": after_ns / 1e6}
        return Outcome(found.score, found.peak, first, latency_ms)

    def _before(self, slot: Slot, tile: int) -> None:
        """Turn one tile of the slot's pixels into the core's inputs and choose its prompt."""
        self._preprocess(
            slot.pixels,
            slot.pixel_format,
            self._x,
            self._h,
            self._descriptor,
            tile,
            corrected=slot.corrected,
        )
        if self._bank:
            prompt = self._bank.choose(self._descriptor)
            if prompt != self._prompt:
                for port, tensor in self._prompts[prompt]:
                    self._request.set_input_tensor(port, tensor)
                self._prompt = prompt

    def close(self) -> None:
        """Free the model; the slots' memory stays valid as long as it is referenced."""
        self._prompts.clear()
        self._request = None


@functools.cache
def openvino_core() -> ov.Core:
    """Return the process's only one, which is never let go of.

    OpenVINO's CPU plugin gives the thread that loads it a stack for signal handlers, and unmaps it with its last use,
    in whatever thread that is: the next signal in the first thread would then end the process.
    """
    return ov.Core()


def core_settings(threads: int, precision: str) -> dict[str, Any]:
    """Return OpenVINO's settings for one frame at a time with the same numbers on every CPU."""
    return {
        # OpenVINO would choose bf16 by itself where AMX exists: scores must not depend on the machine.
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": threads,
        # Pinned threads wait for their own core even when another is idle: bad on a machine that is shared.
        "ENABLE_CPU_PINNING": False,
    }


@contextmanager
def _compiling(bundle: Bundle) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        # A `ValueError` where a damaged graph holds names that are no text.  The binding's message is a stack of
        # source lines; its last line says what went wrong.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise BundleError(
            f"{bundle.path}: {CORE} cannot be compiled: {lines[-1] if lines else 'no reason given'}",
            "export the run again with this release",
        ) from error


def _ports(bundle: Bundle, kind: str, ports: list[Any], shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Return each port's index by name, after checking that the graph has these ports, in float32, and no others."""
    found = {
        next((name for name in sorted(port.get_names()) if name in shapes), port.get_any_name()): index
        for index, port in enumerate(ports)
    }
    if found.keys() != shapes.keys():
        raise BundleMismatchError(
            f"{bundle.path}: {CORE} has the {kind}s {sorted(found)}, its manifest promises {sorted(shapes)}",
            "engine and manifest belong to different models: export the run again",
        )
    for name, index in found.items():
        shape = tuple(size.get_length() if size.is_static else -1 for size in ports[index].get_partial_shape())
        element = ports[index].get_element_type().get_type_name()
        if shape != shapes[name] or element != "f32":
            raise BundleMismatchError(
                f"{bundle.path}: {CORE} has {kind} {name} of {element} {shape}, "
                f"its manifest promises f32 {shapes[name]}",
                "engine and manifest belong to different models: export the run again",
            )
    return found


def _shared(array: F32) -> Any:
    """Return a tensor over the array's own memory.  Unlike the `shared_memory` form, this one takes read-only maps."""
    return ov.Tensor(array, ov.Shape(array.shape), ov.Type.f32)
