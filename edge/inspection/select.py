"""Which runtime inspects on this machine, and why."""

from __future__ import annotations

from edge.bundle import Bundle
from edge.errors import RuntimeUnavailableError, UsageError
from edge.inspection.runtime import Runtime

#: Names on the command line.
RUNTIMES = ("auto", "portable", "cuda")


def usable_runtimes() -> tuple[str, ...]:
    """Return the names of the runtimes that this release has on this machine, the one that `auto` takes first."""
    return ("portable",)


def open_runtime(
    bundle: Bundle,
    name: str = "auto",
    *,
    threads: int | None = None,
    precision: str = "f32",
    share: Runtime | None = None,
) -> tuple[Runtime, str]:
    """Return the runtime of this name, loaded with the bundle's model, and one line that explains the choice.

    Weights are shared with the runtime `share` where it is of the same kind and model.

    Raises:
        RuntimeUnavailableError: it is not on this machine.
        BundleError: the bundle's model cannot be loaded.
    """
    if name not in RUNTIMES:
        raise UsageError(f"unknown runtime {name!r}", f"one of {', '.join(RUNTIMES)}")
    if name == "cuda":
        raise RuntimeUnavailableError(
            "this release has no CUDA runtime", "use --runtime portable, which runs on any CPU"
        )
    # Imported here: loading OpenVINO takes a moment that a refusal above need not wait for.
    try:
        from edge.inspection.portable import PortableRuntime
    except ImportError as error:
        raise RuntimeUnavailableError(f"OpenVINO cannot be loaded: {error}", "pip install openvino") from error

    why = "asked for" if name == "portable" else "auto: the only runtime of this release, any CPU"
    shared = share if isinstance(share, PortableRuntime) else None
    return PortableRuntime(bundle, threads=threads, precision=precision, share=shared), why
