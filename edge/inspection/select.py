"""Which runtime inspects on this machine, and why."""

from __future__ import annotations

from edge.bundle import Bundle
from edge.errors import CudaError, RuntimeUnavailableError, UsageError
from edge.inspection.corrections import NOTHING, Corrections
from edge.inspection.runtime import Runtime

#: Names on the command line.
RUNTIMES = ("auto", "portable", "cuda")

_PORTABLE_ONLY = "--precision bf16 is of the portable runtime; on a GPU the bundle's own precision counts"


def usable_runtimes() -> tuple[str, ...]:
    """Return the names of the runtimes that this machine has, the one that `auto` takes first."""
    return ("portable",) if _why_not_cuda() else ("cuda", "portable")


def open_runtime(
    bundle: Bundle,
    name: str = "auto",
    *,
    threads: int | None = None,
    precision: str = "f32",
    share: Runtime | None = None,
    corrections: Corrections = NOTHING,
    timed: bool = False,
    prompt_bytes: int | None = None,
) -> tuple[Runtime, str]:
    """Return the runtime of this name, loaded with the bundle's model, and one line that explains the choice.

    Weights are shared with the runtime `share` where it is of the same kind and model.  `threads` and `precision` are
    the portable runtime's; `auto` takes it where `precision` is not the default.
    `corrections` are made of every frame that is not corrected already.  `timed`: each stage is measured, which costs
    a GPU a little.  `prompt_bytes` of a GPU's memory are for prompts; None: as many as are usual.

    Raises:
        RuntimeUnavailableError: it is not on this machine.
        BundleError: the bundle's model cannot be loaded.
        UsageError: no such name, or options that it does not have.
    """
    if name not in RUNTIMES:
        raise UsageError(f"unknown runtime {name!r}", f"one of {', '.join(RUNTIMES)}")
    if name == "portable":
        return _open_portable(bundle, threads, precision, share, corrections), "asked for"
    if precision != "f32":
        if name == "cuda":
            raise UsageError(f"--runtime cuda with --precision {precision}", _PORTABLE_ONLY)
        why = f"auto: {precision} was asked for, which is of the CPU"
        return _open_portable(bundle, threads, precision, share, corrections), why
    missing = _why_not_cuda()
    if missing is None:
        try:
            why = "asked for" if name == "cuda" else "auto: this machine has all that it needs"
            return _open_cuda(bundle, share, corrections, timed, prompt_bytes), why
        except CudaError:
            # What is there and fails is to be mended: a line must not become slow unseen.
            raise
        except RuntimeUnavailableError as error:
            missing = error
    if name == "cuda":
        raise RuntimeUnavailableError(f"no CUDA runtime here: {missing.problem}", missing.hint) from missing
    return _open_portable(bundle, threads, precision, share, corrections), f"auto: {missing.problem}"


def _why_not_cuda() -> RuntimeUnavailableError | None:
    """Return what the CUDA runtime lacks on this machine; nothing of CUDA is touched before the driver has answered."""
    from edge.inspection.cuda.available import require_cuda

    try:
        require_cuda()
    except RuntimeUnavailableError as error:
        return error
    return None


def _open_cuda(
    bundle: Bundle, share: Runtime | None, corrections: Corrections, timed: bool, prompt_bytes: int | None
) -> Runtime:
    from edge.inspection.cuda.runtime import CudaRuntime

    shared = share if isinstance(share, CudaRuntime) else None
    return CudaRuntime(bundle, share=shared, corrections=corrections, timed=timed, prompt_bytes=prompt_bytes)


def _open_portable(
    bundle: Bundle, threads: int | None, precision: str, share: Runtime | None, corrections: Corrections
) -> Runtime:
    # Imported here: loading OpenVINO takes a moment that a refusal need not wait for.
    try:
        from edge.inspection.portable import PortableRuntime
    except ImportError as error:
        raise RuntimeUnavailableError(f"OpenVINO cannot be loaded: {error}", "pip install openvino") from error

    shared = share if isinstance(share, PortableRuntime) else None
    return PortableRuntime(bundle, threads=threads, precision=precision, share=shared, corrections=corrections)
