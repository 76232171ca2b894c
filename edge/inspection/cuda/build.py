"""Engines are opened where one fits this machine, and built, in sight, where none does."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from rich.errors import LiveError
from rich.markup import escape
from rich.progress import TaskID

from edge.bundle import CORE, Bundle
from edge.cli import console, progress
from edge.errors import BundleError
from edge.inspection.cuda.device import Gpu
from edge.inspection.cuda.engine import Engine
from edge.inspection.cuda.engines import Found, find_engine, keep_engine, keep_timing, machine_key, read_timing
from edge.inspection.cuda.tensorrt_engine import (
    BuildCancelledError,
    BuildOptions,
    Built,
    EngineRefusedError,
    TensorRtEngine,
    build_plan,
    load_tensorrt,
)
from edge.manifest import EngineKey

_log = logging.getLogger("edge.engines")


def this_machine(bundle: Bundle, gpu: Gpu, dla: int | None = None) -> EngineKey:
    """Return the key of the engines of this bundle's precision that run here.

    Raises:
        RuntimeUnavailableError: there is no TensorRT that this release speaks to.
    """
    return machine_key(gpu.facts, load_tensorrt().__version__, bundle.manifest.model.core.precision, dla)


def open_engine(bundle: Bundle, gpu: Gpu) -> Engine:
    """Return the bundle's core, ready to be bound: from the bundle, else from the cache, else built and kept there.

    Args:
        bundle: whose graph it is.
        gpu: the device, current in the calling thread.

    Raises:
        RuntimeUnavailableError, CudaError: no driver, GPU or TensorRT that can run it.
        BundleError: TensorRT cannot read the graph.
        BundleMismatchError: the engine's inputs and outputs are not the manifest's.
    """
    machine = this_machine(bundle, gpu)
    for found in find_engine(bundle, machine):
        try:
            return load_engine(bundle, found)
        except EngineRefusedError as error:
            _log.warning("the engine in %s is not used: %s", found.path, error)
            console.print(escape(f"the engine in {found.path} is refused and will be built again: {error}"))
    found = build_engine(bundle, gpu, BuildOptions())
    try:
        kept = keep_engine(bundle, found.key, found.plan)
    except OSError as error:
        console.print(
            f"[yellow]warning[/]: the engine cannot be kept, the next start builds it again: {escape(str(error))}"
        )
    else:
        console.print(escape(f"kept in {kept}; edge-build {bundle.path} would put it into the bundle"))
    return load_engine(bundle, found)


def load_engine(bundle: Bundle, found: Found) -> TensorRtEngine:
    """Return an engine from its bytes.

    Raises:
        EngineRefusedError: TensorRT does not take it.
        BundleMismatchError, CudaError, RuntimeUnavailableError: as `open_engine`.
    """
    describe = f"TensorRT {found.key.version} {found.key.precision}"
    if found.dla is not None:
        describe += f" with DLA {found.dla}"
    return TensorRtEngine(found.plan, bundle.manifest.model, describe=describe, dla=found.dla)


def build_engine(bundle: Bundle, gpu: Gpu, options: BuildOptions) -> Found:
    """Build the bundle's engine for this device, in sight; Ctrl-C ends it at TensorRT's next step.

    Raises:
        BundleError: TensorRT cannot read the graph.
        CudaError: it cannot build it.
        KeyboardInterrupt: it was cancelled.
    """
    key = this_machine(bundle, gpu, options.dla)
    console.print(
        escape(f"building the engine: TensorRT {key.version}, {key.precision}, for {key.device}; this takes minutes")
    )
    if key.precision == "fp32":
        console.print("[yellow]note[/]: the bundle's network is fp32; train-export --fp16 makes a faster one")
    timing = read_timing(key)

    def build(shown: ShownProgress) -> Built:
        gpu.make_current()
        try:
            return build_plan(bundle.read(CORE), options, timing, shown)
        except BundleError as error:
            raise BundleError(f"{bundle.path}: {error.problem}", "use --runtime portable, and report it") from error

    start = time.monotonic()
    with ShownProgress() as shown:
        built = _in_thread(lambda: build(shown), shown.cancelled)
    console.print(f"built in {time.monotonic() - start:.0f} s, {len(built.plan) / 1e6:.1f} MB")
    try:
        keep_timing(key, built.timing)
    except OSError as error:
        _log.info("what the build has learnt cannot be kept: %s", error)
    return Found(built.plan, key)


def _in_thread(build: Callable[[], Built], cancelled: threading.Event) -> Built:
    """Run the build in a thread of its own: TensorRT would not let this one see a signal for minutes."""
    outcome: list[Built] = []
    failure: list[BaseException] = []
    # Waited for instead of the thread: a `join` that is interrupted takes the thread for ended.
    done = threading.Event()

    def run() -> None:
        try:
            outcome.append(build())
        except BaseException as error:  # noqa: BLE001  raised again in the thread that waits
            failure.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=run, name="build-engine", daemon=True)
    try:
        thread.start()
        done.wait()
    except KeyboardInterrupt:
        cancelled.set()
        console.print("cancelling the build; Ctrl-C again ends at once")
        done.wait()
        raise
    if failure:
        if isinstance(failure[0], BuildCancelledError):
            raise KeyboardInterrupt from failure[0]
        raise failure[0]
    return outcome[0]


class ShownProgress:
    """A build's phases as progress bars, one below the other while they last."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self._bar = progress(transient=True)
        self._tasks: dict[str, TaskID] = {}
        self._depth: dict[str, int] = {}

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
        """Begin a phase of so many steps, inside another or by itself."""
        depth = self._depth[phase] = self._depth.get(parent or "", -1) + 1
        self._tasks[phase] = self._bar.add_task("  " * depth + escape(phase), total=max(steps, 1), note="")

    def step_complete(self, phase: str, step: int) -> None:
        """Take note that the phase's step with this index, from 0, is done."""
        if phase in self._tasks:
            self._bar.update(self._tasks[phase], completed=step + 1)

    def phase_finish(self, phase: str) -> None:
        """End a phase, be it done or cancelled."""
        self._depth.pop(phase, None)
        task = self._tasks.pop(phase, None)
        if task is not None:
            self._bar.remove_task(task)

    def __enter__(self) -> ShownProgress:
        # A station that changes its bundle while it runs already shows a bar of its own.
        with suppress(LiveError):
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
