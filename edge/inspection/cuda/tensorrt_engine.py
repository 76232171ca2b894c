"""TensorRT, 10.3 to 11.x: the only file that names anything of it.

It keeps to what every one of these versions has.  Networks are built strongly typed: the graph's own types are the
precision, and no flag changes it.  `tests/edge/inspection/cuda/test_tensorrt_contract.py` reads this file and looks up
every name in the real bindings; for that, what comes from TensorRT is kept in variables that are called after its
class: `builder`, `network`, `config`, `parser`, `parser_error`, `cache`, `runtime`, `engine`, `context`.
"""

from __future__ import annotations

import functools
import logging
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from edge.cuda_driver import LIBRARY, Driver, DriverError, probe_driver
from edge.errors import BundleError, BundleMismatchError, CudaError, RuntimeUnavailableError
from edge.inspection.cuda.device import Stream
from edge.inspection.ports import Shapes, core_inputs, core_outputs
from edge.manifest import ModelSpec

#: The first version that this file speaks to, and the first that it does not.
OLDEST, TOO_NEW = (10, 3), (12, 0)

_log = logging.getLogger("edge.tensorrt")

#: Messages of a failure that are shown; the rest is in the log.
_SHOWN = 3


class BuildCancelledError(Exception):
    """The build was cancelled through its progress."""


class EngineRefusedError(Exception):
    """TensorRT does not take these bytes for an engine; the text says why."""


class BuildProgress(Protocol):
    """Who watches a build; called from TensorRT's threads."""

    @property
    def cancelled(self) -> threading.Event:
        """Set it to end the build at its next step."""
        ...

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
        """Begin a phase of so many steps, inside another or by itself."""
        ...

    def step_complete(self, phase: str, step: int) -> None:
        """Take note that the phase's step with this index, from 0, is done."""
        ...

    def phase_finish(self, phase: str) -> None:
        """End a phase, be it done or cancelled."""
        ...


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built; None leaves the choice to TensorRT.

    Attributes:
        dla: the deep-learning accelerator that runs what it can; the GPU runs the rest.
        workspace_mib: scratch memory that a layer may use, in MiB.
        level: builder optimisation level, 0 (builds fast) to 5 (runs fast).
    """

    dla: int | None = None
    workspace_mib: int | None = None
    level: int | None = None


@dataclass(frozen=True)
class Built:
    """A serialised engine, and what was learnt about how fast layers run here."""

    plan: bytes
    timing: bytes


def require_driver(library: str = LIBRARY) -> Driver:
    """Return the driver, which has at least one device.

    Raises:
        RuntimeUnavailableError: there is none, or it has no device.
    """
    try:
        driver = probe_driver(library)
    except DriverError as error:
        raise RuntimeUnavailableError(f"no NVIDIA driver: {error}", "install it, or use --runtime portable") from error
    if not driver.devices:
        raise RuntimeUnavailableError(
            "the NVIDIA driver finds no GPU", "give this process one (nvidia-smi -L), or use --runtime portable"
        )
    return driver


def load_tensorrt(library: str = LIBRARY) -> ModuleType:
    """Return the module, after the driver has answered: without one, TensorRT would crash the process later.

    Raises:
        RuntimeUnavailableError: no driver, no GPU, no TensorRT, or one that is too old or too new.
    """
    require_driver(library)
    try:
        import tensorrt as trt
    # An OSError where one of the libraries that it loads itself is missing.
    except (ImportError, OSError) as error:
        raise RuntimeUnavailableError(
            f"TensorRT cannot be imported: {error}",
            "a Jetson has it from JetPack (python3 -m venv --system-site-packages); elsewhere: pip install tensorrt",
        ) from error
    if not OLDEST <= parsed(trt.__version__) < TOO_NEW:
        oldest, newest = ".".join(map(str, OLDEST)), TOO_NEW[0] - 1
        raise RuntimeUnavailableError(
            f"TensorRT {trt.__version__} is not supported", f"install one from {oldest} to {newest}.x"
        )
    module: ModuleType = trt
    return module


def parsed(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, `(10, 16, 1, 11)`."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


@functools.cache
def _logger(trt: Any) -> Any:
    """Return the process's only logger: TensorRT takes one, and it must outlive all that it was given to."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the module is known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(" ".join(msg.split()))
                level = logging.WARNING
            else:
                level = logging.INFO if severity == trt.ILogger.WARNING else logging.DEBUG
            _log.log(level, "%s", msg)

        def take_errors(self) -> str:
            errors, self.errors = self.errors, []
            more = f" (and {len(errors) - _SHOWN} more)" if len(errors) > _SHOWN else ""
            return "; ".join(errors[:_SHOWN]) + more or "no reason given"

    return Logger()


def _monitor(trt: Any, progress: BuildProgress) -> Any:
    # An exception must not reach TensorRT, which would end the process: it is the progress that breaks, not the build.
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the module is known at run time only
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._tell(progress.phase_start, phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(progress.step_complete, phase_name, step)
            return not progress.cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._tell(progress.phase_finish, phase_name)

        def _tell(self, function: Any, *arguments: Any) -> None:
            try:
                function(*arguments)
            except KeyboardInterrupt:
                progress.cancelled.set()
            except Exception:  # noqa: BLE001  TensorRT must not see it
                _log.exception("the progress of a build cannot be shown")

    return Monitor()


def build_plan(graph: bytes | memoryview, options: BuildOptions, timing: bytes, progress: BuildProgress) -> Built:
    """Compile an ONNX graph for the calling thread's current device.  Takes minutes.

    Args:
        graph: as in the bundle; its types are the engine's.
        options: how.
        timing: `Built.timing` of an earlier build, which makes this one faster; empty, or ignored where it is not of
            this device and version.
        progress: is told, and may cancel.

    Raises:
        BundleError: TensorRT cannot read the graph; names the nodes.
        CudaError: it cannot build it.
        BuildCancelledError: it was cancelled.
        RuntimeUnavailableError: as `load_tensorrt`.
    """
    trt = load_tensorrt()
    logger = _logger(trt)
    logger.take_errors()
    builder = _create(trt.Builder, logger, "builder")
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    # It holds the weights that the network refers to: it must live until the end of the build.
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        raise BundleError(f"TensorRT {trt.__version__} cannot read the graph: {_parser_errors(parser, logger)}")
    config = builder.create_builder_config()
    # TF32 keeps 10 bits: what the graph states as float32 would be so in name only.
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.dla is not None:
        _use_dla(trt, builder, config, options.dla)
    monitor = _monitor(trt, progress)
    config.progress_monitor = monitor
    cache = config.create_timing_cache(timing)
    if cache is None or not config.set_timing_cache(cache, False):
        _log.info("a timing cache of %d bytes does not fit here and is not used", len(timing))
        config.set_timing_cache(config.create_timing_cache(b""), False)
        logger.take_errors()

    plan = builder.build_serialized_network(network, config)
    if progress.cancelled.is_set():
        raise BuildCancelledError
    if plan is None:
        raise CudaError(
            f"TensorRT {trt.__version__} cannot build the engine: {logger.take_errors()}",
            "more memory: end other programs, or --workspace; else use --runtime portable",
        )
    cache = config.get_timing_cache()
    return Built(bytes(memoryview(plan)), b"" if cache is None else bytes(memoryview(cache.serialize())))


def _create(kind: Any, logger: Any, what: str) -> Any:
    """Return a builder or runtime; the binding says no more than that its factory returned nothing."""
    try:
        return kind(logger)
    except (TypeError, RuntimeError) as error:
        raise CudaError(
            f"TensorRT makes no {what}: {logger.take_errors()}",
            "is the driver new enough for this TensorRT? edge-doctor shows both",
        ) from error


def _parser_errors(parser: Any, logger: Any) -> str:
    shown = []
    for index in range(min(parser.num_errors, _SHOWN)):
        parser_error = parser.get_error(index)
        name = parser_error.node_name() or parser_error.node()
        description = " ".join(parser_error.desc().split())
        shown.append(f"node {name} ({parser_error.node_operator() or 'no operator'}): {description}")
    more = f" (and {parser.num_errors - _SHOWN} more)" if parser.num_errors > _SHOWN else ""
    return "; ".join(shown) + more or str(logger.take_errors())


def _use_dla(trt: Any, builder: Any, config: Any, core: int) -> None:
    if core >= builder.num_DLA_cores:
        raise CudaError(
            f"DLA {core}: TensorRT {trt.__version__} finds {builder.num_DLA_cores} of them here",
            "leave --dla out; not every Jetson has one, nor does every TensorRT use it",
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


class TensorRtEngine:
    """A compiled core in TensorRT; see `edge.inspection.cuda.engine.Engine`.  One thread uses it.

    Its memory belongs to its execution context and is allocated here, once.

    Args:
        plan: a serialised engine, from this machine's own cache or from a bundle that is trusted.
        model: what its inputs and outputs must be.
        describe: for people.
        dla: the accelerator that it was built for.

    Raises:
        EngineRefusedError: TensorRT does not take it: damaged, or of another version or device.
        BundleMismatchError: its inputs or outputs are not the model's.
        CudaError: the device cannot hold it.
        RuntimeUnavailableError: as `load_tensorrt`.
    """

    def __init__(
        self, plan: bytes | memoryview, model: ModelSpec, *, describe: str = "TensorRT", dla: int | None = None
    ) -> None:
        trt = load_tensorrt()
        self._logger = _logger(trt)
        self._logger.take_errors()
        self._describe = describe
        runtime = _create(trt.Runtime, self._logger, "runtime")
        # No code of the host's from a file.
        runtime.engine_host_code_allowed = False
        if dla is not None:
            runtime.DLA_core = dla
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineRefusedError(self._logger.take_errors())
        _check_ports(trt, engine, model)
        self._runtime, self._engine = runtime, engine
        self._names = core_inputs(model).keys() | core_outputs(model).keys()
        self._context = engine.create_execution_context()
        if self._context is None:
            raise CudaError(
                f"the GPU cannot hold the engine: {self._logger.take_errors()}", "end other programs that use the GPU"
            )

    @property
    def describe(self) -> str:
        """For people: what runs it, its version and precision."""
        return self._describe

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Say once where each input and output lies on the device.

        Raises:
            BundleMismatchError: the engine's inputs and outputs are not these.
            CudaError: TensorRT refuses an address.
        """
        if addresses.keys() != self._names:
            raise BundleMismatchError(f"the engine has {sorted(self._names)}, not {sorted(addresses)}")
        context = self._context
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise CudaError(f"TensorRT refuses the address of {name}: {self._logger.take_errors()}")

    def enqueue(self, stream: Stream) -> None:
        """Queue one inference on `stream`, which may be recording a graph, though not the first inference of all.

        Raises:
            CudaError: it cannot be queued.
        """
        context = self._context
        if not context.execute_async_v3(stream.handle):
            raise CudaError(f"TensorRT cannot run the engine: {self._logger.take_errors()}")

    def close(self) -> None:
        """Free it, in the order that TensorRT asks for."""
        self._context = None
        self._engine = None
        self._runtime = None


def _check_ports(trt: Any, engine: Any, model: ModelSpec) -> None:
    """Refuse an engine whose inputs and outputs are not the model's, in float32, on the device."""
    found: dict[Any, Shapes] = {trt.TensorIOMode.INPUT: {}, trt.TensorIOMode.OUTPUT: {}}
    hint = "build it again: edge-build --rebuild"
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        found[engine.get_tensor_mode(name)][name] = tuple(engine.get_tensor_shape(name))
        if engine.get_tensor_dtype(name) != trt.DataType.FLOAT:
            raise BundleMismatchError(f"the engine's {name} is {engine.get_tensor_dtype(name)}, not float32", hint)
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise BundleMismatchError(f"the engine wants {name} in host memory", hint)
    for kind, mode, promised in (
        ("inputs", trt.TensorIOMode.INPUT, core_inputs(model)),
        ("outputs", trt.TensorIOMode.OUTPUT, core_outputs(model)),
    ):
        if found[mode] != promised:
            raise BundleMismatchError(
                f"the engine has the {kind} {found[mode]}, its manifest promises {promised}", hint
            )
