"""`edge-build`, whole: an engine for this machine, checked by the golden frames, in the bundle or in the cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from edge.bundle import Bundle, update_bundle
from edge.cli import console
from edge.errors import BundleError, BundleMismatchError, EdgeError
from edge.inspection.cuda.build import build_engine, load_engine, this_machine
from edge.inspection.cuda.device import Gpu
from edge.inspection.cuda.engines import Found, find_engine, keep_engine, member_name
from edge.inspection.cuda.runtime import CudaRuntime
from edge.inspection.cuda.tensorrt_engine import BuildOptions, EngineRefusedError
from edge.inspection.inspector import Inspector
from edge.manifest import EngineKey


@dataclass(frozen=True)
class Provided:
    """An engine and where it is now: `new` if it was built, `worst` is the golden frames' largest difference."""

    key: EngineKey
    path: Path
    size: int
    new: bool
    worst: float


def provide_engine(
    path: Path,
    gpu: Gpu,
    options: BuildOptions,
    *,
    out: Path | None = None,
    rebuild: bool = False,
    into_cache: bool = False,
) -> Provided:
    """Build the engine of a bundle for this device unless one is there, check it, and keep it.

    It goes into the bundle, or a copy of it at `out`; into the cache where that is asked for, where the bundle is
    signed (no signature covers an engine, so that none of a signed bundle is used), or cannot be written.

    Raises:
        GoldenError: a golden frame scores differently with it; it is not kept.
        BundleError: the bundle cannot be used, or has changed meanwhile.
        CudaError: the engine cannot be built or run.
        EdgeError: it can be kept nowhere.
    """
    gpu.make_current()
    with Bundle.open(path) as bundle:
        machine = this_machine(bundle, gpu)
        before = None if rebuild else _present(bundle, machine, options)
        found = before or build_engine(bundle, gpu, options)
        worst = _check(bundle, gpu, found)
        if before is not None and before.path == path and not into_cache and out is None:
            return Provided(found.key, path, len(found.plan), False, worst)
        if bundle.signature is not None and not into_cache:
            console.print("the bundle is signed, and a signature covers no engine: it goes into the cache")
        elif not into_cache:
            try:
                _put(bundle, machine, found, out)
            except BundleError as error:
                if out is not None or not isinstance(error.__cause__, OSError):
                    raise
                console.print(escape(f"{error.problem}: the engine goes into the cache"))
            else:
                return Provided(found.key, out or path, len(found.plan), before is None, worst)
        try:
            kept = keep_engine(bundle, found.key, found.plan)
        except OSError as error:
            raise EdgeError(f"the engine cannot be kept: {error}", "free space, or set XDG_CACHE_HOME") from error
        return Provided(found.key, kept, len(found.plan), before is None, worst)


def _present(bundle: Bundle, machine: EngineKey, options: BuildOptions) -> Found | None:
    """Return the engine that is there already and was built for the same accelerator, if TensorRT takes it."""
    for found in find_engine(bundle, machine):
        if found.dla == options.dla:
            try:
                load_engine(bundle, found).close()
            except EngineRefusedError as error:
                console.print(escape(f"the engine in {found.path} is refused: {error}"))
            else:
                return found
    return None


def _check(bundle: Bundle, gpu: Gpu, found: Found) -> float:
    """Score the golden frames with the engine; return the largest difference, NaN where there are none."""
    runtime = CudaRuntime(bundle, gpu=gpu, engine=load_engine(bundle, found))
    with Inspector(bundle, runtime=runtime, uncalibrated=True) as inspector:
        return max((result.error for result in inspector.verify_golden()), default=math.nan)


def _put(bundle: Bundle, machine: EngineKey, found: Found, out: Path | None) -> None:
    with Bundle.open(bundle.path, verify=False) as now:
        if now.bundle_id != bundle.bundle_id:
            raise BundleMismatchError(f"{bundle.path}: its model has changed while the engine was built", "build again")
    member = member_name(bundle, machine)
    update_bundle(bundle.path, {member: found.plan}, {member: found.key}, out=out)
