"""What `edge-doctor` looks at: one function for each check, each answering with rows.

A check never raises for what it looks at: whatever is missing is a row with the next step.  Heavy packages are imported
by the check that asks after them, so that one that cannot be loaded is a row too.  Only what keeps the portable
runtime from running is a `problem`; all else that is worth knowing is a `note`.
"""

from __future__ import annotations

import errno
import grp
import importlib.util
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any

from edge.cuda_driver import LIBRARY, Driver, DriverError, probe_driver
from edge.errors import EdgeError, RuntimeUnavailableError
from edge.events.endpoint import DEFAULT_ENDPOINT
from edge.machine import (
    clock,
    clock_is_synchronised,
    core_quota,
    cpu_flags,
    cpu_model,
    memory,
    physical_cores,
)

_PYTHON = (3, 10)
_GIB = 1 << 30
#: Below these, a station with its model, its slots and its events becomes tight.
_ENOUGH_MEMORY, _ENOUGH_DISK = _GIB, _GIB // 4
#: Instruction sets that change how fast the station is, as the kernel names them; the others are noise.
_TELLING_FLAGS = (
    *("sse2", "sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "sve", "sve2", "bf16", "i8mm"),
)
_NO_GPU = "nothing: the portable runtime needs none"


class State(str, Enum):
    """What a row means: as it should be, worth knowing, or the portable runtime cannot run."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One row: what was looked at, how it is, what was found, and the next step where one is needed."""

    check: str
    state: State
    found: str
    advice: str = ""


Check = Callable[[], Iterator[Finding]]


def examine(engine: Path | None = None) -> list[Finding]:
    """Run every check, also on the bundle `engine` where one is given; a check that fails itself is a row."""
    checks: list[tuple[str, Check]] = [*_NEEDED]
    others = [*_CHECKS]
    if engine is not None:
        checks.append(("bundle", lambda: check_bundle(engine)))
        others.append(("engine", lambda: check_engine(engine)))
    needed = len(checks)
    findings: list[Finding] = []
    for number, (name, check) in enumerate([*checks, *others]):
        try:
            findings.extend(check())
        except Exception as error:  # noqa: BLE001  the remaining checks are worth as much as this one
            found = f"could not be looked at: {type(error).__name__}: {error}"
            findings.append(Finding(name, State.PROBLEM if number < needed else State.NOTE, found))
    return findings


def check_system() -> Iterator[Finding]:
    """The operating system and Python."""
    linux = sys.platform == "linux"
    advice = "" if linux else "a station runs on Linux"
    yield Finding("system", State.OK if linux else State.PROBLEM, platform.platform(), advice)

    new = sys.version_info >= _PYTHON
    advice = "" if new else "install Python {}.{} or newer".format(*_PYTHON)
    found = f"{platform.python_version()}, {sys.executable}"
    yield Finding("Python", State.OK if new else State.PROBLEM, found, advice)


def check_processor() -> Iterator[Finding]:
    """The processor with its instruction sets, and the cores that this process may use."""
    flags = cpu_flags()
    named = " ".join(flag for flag in _TELLING_FLAGS if flag in flags) or "instruction sets not readable"
    yield Finding("processor", State.OK, f"{cpu_model()} ({platform.machine()}): {named}")

    threads, quota = len(os.sched_getaffinity(0)), core_quota()
    found = f"{physical_cores()} cores, {threads} threads usable of {os.cpu_count()}"
    if quota is not None and quota < threads:
        found += f", time of {quota:g} granted"
        yield Finding("cores", State.NOTE, found, "start edge-run with --threads no higher, or raise the CPU quota")
    else:
        yield Finding("cores", State.OK, found)


def check_memory() -> Iterator[Finding]:
    """The memory that is there and available."""
    total, available = memory()
    found = f"{total / _GIB:.1f} GiB, {available / _GIB:.1f} GiB available"
    if available < _ENOUGH_MEMORY:
        yield Finding("memory", State.NOTE, found, "end other programs: a station wants 1 GiB")
    else:
        yield Finding("memory", State.OK, found)


def check_kernels() -> Iterator[Finding]:
    """The native kernels: can the library be loaded, which instruction set is chosen."""
    from edge.inspection.library import choose_isa, isas

    try:
        chosen, usable = choose_isa(), isas()
    except EdgeError as error:
        yield Finding("native kernels", State.PROBLEM, error.problem, error.hint)
        return
    why = ", chosen by REDI_ISA" if os.environ.get("REDI_ISA") else ""
    yield Finding("native kernels", State.OK, f"{chosen}{why} (this processor can run {', '.join(usable)})")


def check_packages() -> Iterator[Finding]:
    """What the station is built on: NumPy and msgspec, OpenVINO, OpenCV, ZeroMQ."""
    for name, package, install, describe in _PACKAGES:
        try:
            found, advice = describe(import_module(package))
        except ImportError as error:
            yield Finding(name, State.PROBLEM, f"cannot be loaded: {error}", f"pip install {install}")
        except Exception as error:  # noqa: BLE001  a package that cannot even name itself cannot be relied on
            found = f"does not work: {type(error).__name__}: {error}"
            yield Finding(name, State.PROBLEM, found, f"pip install --force-reinstall {install}")
        else:
            yield Finding(name, State.NOTE if advice else State.OK, found, advice)


def _version(module: Any) -> tuple[str, str]:
    return module.__version__, ""


def _openvino(ov: Any) -> tuple[str, str]:
    able = set(ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    # f32 is every CPU's.
    precisions = " or ".join(["f32", *(["bf16"] if "BF16" in able else [])])
    version = ov.__version__.split("-")[0]
    return f"{version}, --precision {precisions} (the CPU plug-in names {', '.join(sorted(able))})", ""


def _opencv(cv2: Any) -> tuple[str, str]:
    registry = cv2.videoio_registry
    backends = dict.fromkeys(registry.getBackendName(backend) for backend in registry.getBackends())
    return f"{cv2.__version__}, video through {', '.join(backends) or 'nothing'}", ""


def _zeromq(zmq: Any) -> tuple[str, str]:
    found = f"{zmq.zmq_version()}, pyzmq {zmq.__version__}, CURVE"
    if zmq.has("curve"):
        return f"{found} available", ""
    return f"{found} missing", "nothing on loopback; to encrypt on a network, install pyzmq's own wheel"


_Describe = Callable[[Any], tuple[str, str]]
#: Name, module, what pip installs, and what returns the finding and the next step, if any.
_PACKAGES: tuple[tuple[str, str, str, _Describe], ...] = (
    ("NumPy", "numpy", "numpy", _version),
    ("msgspec", "msgspec", "msgspec", _version),
    ("OpenVINO", "openvino", "openvino", _openvino),
    ("OpenCV", "cv2", "opencv-python-headless", _opencv),
    ("ZeroMQ", "zmq", "pyzmq", _zeromq),
)


def check_gpu(library: str = LIBRARY) -> Iterator[Finding]:
    """The NVIDIA driver, its devices, what the CUDA runtime is built on, and which runtime `auto` takes."""
    try:
        driver = probe_driver(library)
    except DriverError as error:
        yield Finding("NVIDIA driver", State.NOTE, str(error), _NO_GPU)
        yield from (_unasked(name, module) for name, module in (("PyCUDA", "pycuda"), ("TensorRT", "tensorrt")))
    else:
        runs = "loaded, runs CUDA up to {}.{}, devices: {}".format(*driver.cuda, len(driver.devices))
        yield Finding("NVIDIA driver", State.OK if driver.devices else State.NOTE, runs)
        for number, device in enumerate(driver.devices):
            shared = "integrated" if device.integrated else "with its own memory"
            capability = "compute capability {}.{}".format(*device.compute_capability)
            found = f"{device.name}, {capability}, {device.memory / _GIB:.1f} GiB, {shared}"
            yield Finding(f"GPU {number}", State.OK, found if not number else f"{found}; the first one is used")
        from edge.inspection.cuda.available import require_pycuda
        from edge.inspection.cuda.tensorrt_engine import load_tensorrt

        yield _required("PyCUDA", require_pycuda)
        yield _required("TensorRT", lambda: load_tensorrt(library).__version__)
        if driver.devices:
            yield _required("CUDA compiler", lambda: _compiler(driver))
    from edge.inspection.cuda.available import require_cuda

    try:
        require_cuda(library)
    except RuntimeUnavailableError as error:
        yield Finding("--runtime auto", State.OK, f"portable: {error.problem}")
    else:
        yield Finding("--runtime auto", State.OK, "cuda: this machine has all that it needs")


def _compiler(driver: Driver) -> str:
    from edge.inspection.cuda.compile import choose
    from edge.inspection.cuda.compilers import compilers

    compiler, architecture = choose(compilers(), driver.devices[0].compute_capability, driver.cuda)
    return f"{compiler.name}, makes code for sm_{architecture}"


def _required(name: str, ask: Callable[[], str]) -> Finding:
    """Return the row of something that the CUDA runtime needs."""
    try:
        return Finding(name, State.OK, ask())
    except RuntimeUnavailableError as error:
        return Finding(name, State.NOTE, error.problem, error.hint)


def _unasked(name: str, module: str) -> Finding:
    # Found, not imported: importing needs the driver.
    installed = importlib.util.find_spec(module) is not None
    return Finding(name, State.NOTE, f"{'' if installed else 'not '}installed", _NO_GPU)


def check_cameras(folder: Path = Path("/dev")) -> Iterator[Finding]:
    """The V4L2 devices, and whether this user may read them."""
    devices = sorted(folder.glob("video*"))
    if not devices:
        yield Finding("cameras", State.NOTE, f"no {folder}/video*", "plug one in; streams, files and sim: need none")
        return
    usable = [device for device in devices if os.access(device, os.R_OK | os.W_OK)]
    if usable:
        yield Finding("cameras", State.OK, f"{', '.join(map(str, usable))} readable")
    closed = [device for device in devices if device not in usable]
    if closed:
        groups = sorted({_group(device) for device in closed})
        advice = f"sudo usermod -aG {','.join(groups)} $USER, then log in again"
        yield Finding("cameras", State.NOTE, f"{', '.join(map(str, closed))} not readable by this user", advice)


def _group(path: Path) -> str:
    number = path.stat().st_gid
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def check_endpoint(endpoint: str = DEFAULT_ENDPOINT) -> Iterator[Finding]:
    """Whether a station could publish at the default endpoint now."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    with socket.socket() as probe:
        # As ZeroMQ does: connections of a station that has just ended are in nobody's way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            found = "in use" if error.errno == errno.EADDRINUSE else f"cannot be bound: {error.strerror or error}"
            advice = "stop the station or program that uses it, or name another: edge-run --publish"
            yield Finding("endpoint", State.NOTE, f"{endpoint} {found}", advice)
            return
    yield Finding("endpoint", State.OK, f"{endpoint} free")


def check_folders() -> Iterator[Finding]:
    """Whether temporary and current folder can be written, and what is free there."""
    temporary = Path(os.environ.get("TMPDIR", "/tmp"))
    for name, folder in (("temporary folder", temporary), ("current folder", Path())):
        try:
            path = folder.resolve()
            with tempfile.TemporaryFile(dir=path) as file:
                file.write(b"x")
            free = shutil.disk_usage(path).free
        except OSError as error:
            found = f"{folder}: cannot be written: {error.strerror or error}"
            yield Finding(name, State.NOTE, found, "see its owner, its mode and the free space")
            continue
        found = f"{path}: writable, {free / _GIB:.1f} GiB free"
        if free < _ENOUGH_DISK:
            yield Finding(name, State.NOTE, found, "free space, or keep bundles and pictures elsewhere")
        else:
            yield Finding(name, State.OK, found)


def check_clock() -> Iterator[Finding]:
    """The processor's governor and clock, and whether the wall clock is kept right."""
    speed = clock()
    slow = "powersave" in speed.governors
    advice = "for steadier latencies: sudo cpupower frequency-set -g performance" if slow else ""
    known = bool(speed.governors or speed.mhz)
    yield Finding("power", State.OK if known and not slow else State.NOTE, speed.describe, advice)

    synchronised = clock_is_synchronised()
    if synchronised:
        yield Finding("wall clock", State.OK, "synchronised")
    else:
        found = "not readable" if synchronised is None else "not synchronised"
        yield Finding("wall clock", State.NOTE, found, "events carry it: start an NTP or PTP client, such as chrony")


def check_bundle(path: Path) -> Iterator[Finding]:
    """Whether the bundle is whole and its model can be loaded on this machine, and whether it is calibrated."""
    name = f"bundle {path}"
    try:
        from edge.bundle import Bundle
        from edge.inspection.inspector import Inspector

        with Bundle.open(path) as bundle:
            # The portable runtime, which loads in a moment: on a GPU, an engine might have to be built.
            with Inspector(bundle, runtime="portable", uncalibrated=True) as inspector:
                found = inspector.describe
            calibrated = bundle.calibration is not None
    except EdgeError as error:
        yield Finding(name, State.PROBLEM, error.problem, error.hint)
        return
    except ImportError as error:
        yield Finding(name, State.PROBLEM, f"cannot be loaded: {error}", "mend the rows above first")
        return
    if calibrated:
        yield Finding(
            name, State.OK, f"whole, calibrated, loads: {found}", f"edge-verify {path} checks its scores here"
        )
    else:
        advice = f"calib-threshold {path} --good FOLDER_OF_GOOD_IMAGES"
        yield Finding(name, State.NOTE, f"whole, not calibrated, loads: {found}", advice)


def check_engine(path: Path, library: str = LIBRARY) -> Iterator[Finding]:
    """Where there is a GPU: whether an engine of the bundle's network is there that fits it."""
    from edge.bundle import Bundle
    from edge.inspection.cuda.engines import find_engine, machine_key
    from edge.inspection.cuda.tensorrt_engine import load_tensorrt, require_driver

    name = f"engine of {path}"
    try:
        device = require_driver(library).devices[0]
        version = load_tensorrt(library).__version__
    except RuntimeUnavailableError:
        return
    try:
        with Bundle.open(path) as bundle:
            machine = machine_key(device, version, bundle.manifest.model.core.precision)
            wanted = f"TensorRT {version}, {machine.precision}, {machine.device}"
            engine = next(find_engine(bundle, machine), None)
            others = len(bundle.manifest.engines)
    except EdgeError:
        # The row of the bundle says it.
        return
    if engine is not None:
        yield Finding(name, State.OK, f"for {wanted}, in {engine.path}")
    else:
        found = f"none for {wanted}; the bundle has {others} in all"
        yield Finding(name, State.NOTE, found, f"edge-build {path}; or edge-run builds it when it starts, in minutes")


#: What the portable runtime cannot do without.
_NEEDED: tuple[tuple[str, Check], ...] = (
    ("system", check_system),
    ("native kernels", check_kernels),
    ("packages", check_packages),
)
_CHECKS: tuple[tuple[str, Check], ...] = (
    ("processor", check_processor),
    ("memory", check_memory),
    ("GPU", check_gpu),
    ("cameras", check_cameras),
    ("endpoint", check_endpoint),
    ("folders", check_folders),
    ("clock", check_clock),
)
