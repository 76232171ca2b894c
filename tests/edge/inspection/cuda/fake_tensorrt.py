"""TensorRT's Python interface, played: a module whose engines run the graph with OpenVINO on an emulated GPU.

It has the part of the interface that `edge/inspection/cuda/tensorrt_engine.py` uses, and no more; a test compares it
with the real bindings.  Like those it refuses attributes that it does not have, wrong types, and subclasses that do not
call their base; where the real one crashes (a builder or runtime without a driver), it raises `Crash`.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import onnx
from google.protobuf.message import DecodeError

MAGIC = b"played engine"


class Crash(BaseException):
    """What would have ended the process."""


@dataclass
class World:
    """The machine that the played TensorRT finds, and what goes wrong on it."""

    version: str = "10.3.0"
    device: str = "sm_86"
    gpu: Any = None
    #: The emulated device's streams by their handles.
    streams: dict[int, Any] = field(default_factory=dict)
    driver_asked: bool = False
    dla_cores: int = 0
    #: Operators that the parser refuses.
    unsupported: set[str] = field(default_factory=set)
    build_fails: str = ""
    no_builder: bool = False
    no_memory: bool = False
    refuses_addresses: bool = False
    enqueue_fails: bool = False
    #: Called before each step of a build, in the thread that builds.
    on_step: Callable[[int], None] = lambda step: None
    steps: int = 4
    #: What builds were asked for.
    built: list[dict[str, Any]] = field(default_factory=list)
    #: Changes what an engine says of its inputs and outputs: name → (mode, type, location, shape).
    twist: Callable[[dict[str, list[Any]]], None] = lambda ports: None

    def plug_in(self, gpu: Any) -> Any:
        """Let engines run on an emulated GPU, and return it."""
        if self.gpu is gpu:
            return gpu
        make = gpu.stream

        def stream() -> Any:
            made = make()
            self.streams[made.handle] = made
            return made

        self.gpu, gpu.stream = gpu, stream
        return gpu


class _Strict:
    """Takes no attribute that its class does not name, as the bindings' objects do."""

    def __setattr__(self, name: str, value: object) -> None:
        if not hasattr(type(self), name) and not name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        object.__setattr__(self, name, value)


def make_tensorrt(world: World) -> ModuleType:
    """Return the module for a machine."""
    trt = ModuleType("tensorrt")
    old = int(world.version.split(".")[0]) < 11

    class ILogger:
        class Severity(enum.IntEnum):
            INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

        def __init__(self) -> None:
            self._made = True

        def log(self, severity: Severity, msg: str) -> None:
            raise NotImplementedError

    class IProgressMonitor:
        def __init__(self) -> None:
            self._made = True

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            raise NotImplementedError

        def step_complete(self, phase_name: str, step: int) -> bool:
            raise NotImplementedError

        def phase_finish(self, phase_name: str) -> None:
            raise NotImplementedError

    flags = ["GPU_FALLBACK", "TF32"] + (["FP16", "INT8"] if old else [])
    BuilderFlag = enum.IntEnum("BuilderFlag", flags)
    creation = ["EXPLICIT_BATCH"] * old + ["STRONGLY_TYPED"]
    NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", creation, start=int(not old))
    MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE", "TACTIC_DRAM"])
    DeviceType = enum.Enum("DeviceType", ["GPU", "DLA"])
    DataType = enum.Enum("DataType", ["FLOAT", "HALF"])
    TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
    TensorLocation = enum.Enum("TensorLocation", ["DEVICE", "HOST"])

    def checked_logger(logger: Any) -> Any:
        if not isinstance(logger, ILogger) or not getattr(logger, "_made", False):
            raise TypeError("incompatible constructor arguments")
        if not world.driver_asked:
            raise Crash("no driver has been asked for")
        return logger

    class IHostMemory:
        """Bytes; the binding's object has a buffer and no more, a `memoryview` is what that looks like here."""

        def __new__(cls, data: bytes) -> Any:
            return memoryview(data)

    class ITimingCache(_Strict):
        def __init__(self, data: bytes) -> None:
            self._data = data

        def serialize(self) -> Any:
            return IHostMemory(self._data)

    class IBuilderConfig(_Strict):
        progress_monitor: Any = None
        builder_optimization_level = 3
        default_device_type = DeviceType.GPU
        DLA_core = -1

        def __init__(self) -> None:
            self._flags, self._pools, self._cache = {BuilderFlag["TF32"]}, {}, None

        def set_flag(self, flag: Any) -> None:
            self._flags.add(BuilderFlag(flag))

        def clear_flag(self, flag: Any) -> None:
            self._flags.discard(BuilderFlag(flag))

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            self._pools[MemoryPoolType(pool).name] = pool_size

        def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
            data = bytes(serialized_timing_cache)
            return None if data.startswith(b"torn") else ITimingCache(data)

        def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
            mine = f"{world.version} {world.device} ".encode()
            if cache._data and not cache._data.startswith(mine) and not ignore_mismatch:
                return False
            self._cache = ITimingCache(cache._data or mine)
            return True

        def get_timing_cache(self) -> ITimingCache | None:
            return self._cache

    class INetworkDefinition(_Strict):
        def __init__(self, flags: int) -> None:
            self._flags, self._graph = flags, b""

    class ParserError(_Strict):
        def __init__(self, number: int, node: onnx.NodeProto | None, text: str) -> None:
            self._number, self._node, self._text = number, node, text

        def desc(self) -> str:
            return self._text

        def node(self) -> int:
            return self._number

        def node_name(self) -> str:
            return self._node.name if self._node else ""

        def node_operator(self) -> str:
            return self._node.op_type if self._node else ""

    class OnnxParser(_Strict):
        num_errors = 0

        def __init__(self, network: INetworkDefinition, logger: Any) -> None:
            self._network, self._logger, self._errors = network, checked_logger(logger), []

        def parse(self, model: bytes, path: str | None = None) -> bool:
            try:
                nodes = onnx.load_from_string(bytes(model)).graph.node
            except DecodeError:
                self._logger.log(ILogger.ERROR, "ModelImporter: the file\nis no model")
                return False
            self._errors = [
                ParserError(number, node, f"no importer for {node.op_type}")
                for number, node in enumerate(nodes)
                if node.op_type in world.unsupported
            ]
            self.num_errors = len(self._errors)
            self._network._graph = bytes(model)
            return not self._errors

        def get_error(self, index: int) -> ParserError:
            return self._errors[index]

    class Builder(_Strict):
        num_DLA_cores = 0

        def __init__(self, logger: Any) -> None:
            self._logger = checked_logger(logger)
            self.num_DLA_cores = world.dla_cores
            if world.no_builder:
                self._logger.log(ILogger.INTERNAL_ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            return INetworkDefinition(flags)

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> Any:
            monitor = config.progress_monitor
            strongly_typed = 1 << int(NetworkDefinitionCreationFlag["STRONGLY_TYPED"])
            asked = {
                "strongly_typed": network._flags == strongly_typed,
                "flags": {flag.name for flag in config._flags},
                "pools": dict(config._pools),
                "level": config.builder_optimization_level,
                "dla": config.DLA_core if config.default_device_type is DeviceType["DLA"] else None,
                "timing": config._cache._data if config._cache else None,
            }
            world.built.append(asked)
            if monitor is not None and not _watched(world, monitor):
                self._logger.log(ILogger.WARNING, "the build was cancelled")
                return None
            if world.build_fails:
                for line in world.build_fails.splitlines():
                    self._logger.log(ILogger.ERROR, line)
                return None
            config._cache._data += f"layer{len(world.built)} ".encode()
            head = {"version": world.version, "device": world.device, "dla": asked["dla"]}
            return IHostMemory(seal({**head, "sha": hashlib.sha256(network._graph).hexdigest()}, network._graph))

    class Runtime(_Strict):
        engine_host_code_allowed = True
        DLA_core = -1

        def __init__(self, logger: Any) -> None:
            self._logger = checked_logger(logger)

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
            assert self.engine_host_code_allowed is False
            data = bytes(serialized_engine)
            try:
                head, graph = unseal(data)
            except ValueError as error:
                self._logger.log(ILogger.ERROR, f"IRuntime::deserializeCudaEngine: Error Code 1: {error}")
                return None
            if (head["version"], head["device"]) != (world.version, world.device):
                self._logger.log(ILogger.ERROR, f"built by {head['version']} for {head['device']}")
                return None
            if head["dla"] is not None and self.DLA_core != head["dla"]:
                self._logger.log(ILogger.ERROR, "built for a DLA")
                return None
            return ICudaEngine(self, graph)

    class ICudaEngine(_Strict):
        num_io_tensors = 0

        def __init__(self, runtime: Runtime, graph: bytes) -> None:
            self._runtime, self._graph = runtime, graph
            model = onnx.load_from_string(graph).graph
            self._ports: dict[str, list[Any]] = {}
            for mode, values in ((TensorIOMode["INPUT"], model.input), (TensorIOMode["OUTPUT"], model.output)):
                for value in values:
                    shape = tuple(side.dim_value for side in value.type.tensor_type.shape.dim)
                    self._ports[value.name] = [mode, DataType["FLOAT"], TensorLocation["DEVICE"], shape]
            world.twist(self._ports)
            self._names = list(self._ports)
            self.num_io_tensors = len(self._names)

        def get_tensor_name(self, index: int) -> str:
            return self._names[index]

        def get_tensor_mode(self, name: str) -> Any:
            return self._ports[name][0]

        def get_tensor_dtype(self, name: str) -> Any:
            return self._ports[name][1]

        def get_tensor_location(self, name: str) -> Any:
            return self._ports[name][2]

        def get_tensor_shape(self, name: str) -> Any:
            return list(self._ports[name][3])

        def create_execution_context(self) -> Any:
            if world.no_memory:
                self._runtime._logger.log(ILogger.ERROR, "out of memory")
                return None
            return IExecutionContext(self)

    class IExecutionContext(_Strict):
        def __init__(self, engine: ICudaEngine) -> None:
            self._engine, self._addresses, self._run = engine, {}, None

        def set_tensor_address(self, name: str, memory: int) -> bool:
            if world.refuses_addresses or name not in self._engine._ports or not memory:
                self._engine._runtime._logger.log(ILogger.ERROR, f"setTensorAddress: {name}")
                return False
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            if world.enqueue_fails or self._addresses.keys() != self._engine._ports.keys() or not stream_handle:
                self._engine._runtime._logger.log(ILogger.ERROR, "enqueueV3: an address is missing")
                return False
            self._run = self._run or _compiled(self._engine._graph)
            world.gpu.call(world.streams[stream_handle], self._infer)
            return True

        def _infer(self) -> None:
            import numpy as np

            views = {
                name: world.gpu.view(address, np.float32, self._engine._ports[name][3])
                for name, address in self._addresses.items()
            }
            ports = self._engine._ports
            given = {name: view.copy() for name, view in views.items() if ports[name][0] is TensorIOMode["INPUT"]}
            for name, values in self._run(given).items():
                views[name][...] = values

    for made in (ILogger, IProgressMonitor, IHostMemory, ITimingCache, IBuilderConfig, INetworkDefinition, ParserError):
        setattr(trt, made.__name__, made)
    for made in (OnnxParser, Builder, Runtime, ICudaEngine, IExecutionContext):
        setattr(trt, made.__name__, made)
    for kind in (BuilderFlag, NetworkDefinitionCreationFlag, MemoryPoolType, DeviceType, DataType, TensorIOMode):
        setattr(trt, kind.__name__, kind)
    trt.TensorLocation = TensorLocation  # type: ignore[attr-defined]
    trt.__version__ = world.version  # type: ignore[attr-defined]
    return trt


def seal(head: dict[str, Any], graph: bytes) -> bytes:
    """Return an engine's bytes."""
    return MAGIC + json.dumps(head).encode() + b"\n" + graph


def unseal(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return an engine's head and graph; `ValueError` where it is none, or torn."""
    if not data.startswith(MAGIC):
        raise ValueError("magicTag: serialization assertion failed")
    text, _, graph = data[len(MAGIC) :].partition(b"\n")
    head = json.loads(text)
    if hashlib.sha256(graph).hexdigest() != head["sha"]:
        raise ValueError("the engine is torn")
    return head, graph


def _watched(world: World, monitor: Any) -> bool:
    """Go through a build's phases; False where it was cancelled, the phases that had begun being ended."""
    if not getattr(monitor, "_made", False):
        raise Crash("the monitor's base was not made")
    monitor.phase_start("Building Engine", None, 2)
    monitor.phase_start("Tactic Selection", "Building Engine", world.steps)
    going = True
    for step in range(world.steps):
        world.on_step(step)
        going = monitor.step_complete("Tactic Selection", step)
        if not going:
            break
    monitor.phase_finish("Tactic Selection")
    going = going and monitor.step_complete("Building Engine", 0) and monitor.step_complete("Building Engine", 1)
    monitor.phase_finish("Building Engine")
    return bool(going)


def _compiled(graph: bytes) -> Callable[[dict[str, Any]], dict[str, Any]]:
    from edge.inspection.portable import core_settings, openvino_core

    compiled = openvino_core().compile_model(openvino_core().read_model(graph), "CPU", core_settings(1, "f32"))

    def run(inputs: dict[str, Any]) -> dict[str, Any]:
        results = compiled(inputs)
        return {port.get_any_name(): results[port] for port in compiled.outputs}

    return run


def install(monkeypatch: Any, world: World, *, devices: int = 1) -> None:
    """Let the adapter find the played TensorRT, on a machine whose driver names so many devices."""
    import sys

    from edge.cuda_driver import Device, Driver
    from edge.inspection.cuda import tensorrt_engine

    def probe(library: str = "") -> Driver:
        world.driver_asked = True
        return Driver((13, 0), (Device("Emulated", (8, 6), 8 << 30, False),) * devices)

    monkeypatch.setitem(sys.modules, "tensorrt", make_tensorrt(world))
    monkeypatch.setattr(tensorrt_engine, "probe_driver", probe)


def play_machine(monkeypatch: Any, world: World, gpu: Any) -> None:
    """Let the whole CUDA runtime run here: the played TensorRT, an emulated GPU, and all else that it asks for."""
    import sys

    from edge.inspection.cuda import available, pycuda_device

    install(monkeypatch, world)
    pycuda: Any = ModuleType("pycuda")
    pycuda.VERSION_TEXT, pycuda.driver = "2026.1", ModuleType("pycuda.driver")
    monkeypatch.setitem(sys.modules, "pycuda", pycuda)
    monkeypatch.setitem(sys.modules, "pycuda.driver", pycuda.driver)
    monkeypatch.setattr(available, "choose", lambda *asked: None)
    monkeypatch.setattr(pycuda_device, "own_gpu", lambda: world.plug_in(gpu))
