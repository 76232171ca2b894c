"""Kernel text → machine code for one GPU, compiled once on each machine and then read from this user's cache.

What is kept is named by all that it was made of: text, headers, options, architecture and compiler.  A file that is
torn, changed, or lies where others could have put it is compiled anew.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

import edge.inspection
from edge.errors import RuntimeUnavailableError
from edge.files import atomic_write
from edge.inspection.cuda.compilers import OPTIONS, Compiler, compilers
from edge.inspection.cuda.engines import cache_folder, require_private

_log = logging.getLogger("edge.kernels")

KERNELS = Path(edge.inspection.__file__).parent / "kernels"
_MAGIC = b"redi-cubin-1\n"
_HINT = "pip install 'redi-edge[gpu]', or install the CUDA toolkit of the driver's version"


def compile_kernels(
    source: str, capability: tuple[int, int], driver: tuple[int, int], *, folder: Path = KERNELS
) -> bytes:
    """Return the machine code (cubin) of `SOURCE.cu`.

    Args:
        source: name of the file, without `.cu`.
        capability: the device's compute capability.
        driver: the newest CUDA version that the driver runs: code of a compiler of a newer major version will not load.
        folder: where the text and its headers are.

    Raises:
        RuntimeUnavailableError: there is no compiler for this device and driver.
        CudaError: the text does not compile.
    """
    compiler, architecture = choose(compilers(), capability, driver)
    path = folder / f"{source}.cu"
    key = _key(path, compiler, architecture)
    kept = cache_folder() / "kernels" / f"{source}-sm_{architecture}-{key.hex()[:16]}.cubin"
    code = _read(kept, key)
    if code is None:
        _log.info("compiling %s for sm_%d with %s", path.name, architecture, compiler.name)
        code = compiler.compile(path, architecture)
        _write(kept, key, code)
    return code


def choose(among: Iterable[Compiler], capability: tuple[int, int], driver: tuple[int, int]) -> tuple[Compiler, int]:
    """Return the first compiler that can make code for this device and driver, and for which architecture.

    Code for a lower minor version of the same compute capability runs too, and stands in where the compiler is older
    than the device.

    Raises:
        RuntimeUnavailableError: there is none; says why each that is there will not do.
    """
    major, minor = capability
    reasons = []
    older: tuple[Compiler, int] | None = None
    for compiler in among:
        fitting = [known for known in compiler.architectures if known // 10 == major and known % 10 <= minor]
        if compiler.version[0] > driver[0]:
            reasons.append(f"{compiler.name} is too new for the driver, which runs CUDA {driver[0]}.{driver[1]}")
        elif not fitting:
            reasons.append(f"{compiler.name} knows no sm_{major}{minor}")
        elif max(fitting) == 10 * major + minor:
            return compiler, max(fitting)
        else:
            older = older or (compiler, max(fitting))
    if older is None:
        raise RuntimeUnavailableError(f"no CUDA compiler: {'; '.join(reasons) or 'neither NVRTC nor nvcc'}", _HINT)
    return older


def _key(path: Path, compiler: Compiler, architecture: int) -> bytes:
    digest = hashlib.sha256(repr((compiler.name, architecture, OPTIONS)).encode())
    for text in (path, *sorted(path.parent.glob("*.h"))):
        digest.update(hashlib.sha256(text.read_bytes()).digest())
    return digest.digest()


def _read(kept: Path, key: bytes) -> bytes | None:
    """Return the kept code, None where it is missing or not to be trusted."""
    try:
        content = kept.read_bytes()
        require_private(kept.parent)
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.warning("%s is not used: %s", kept, error)
        return None
    head = _MAGIC + key
    code = content[len(head) + 32 :]
    if content[: len(head)] != head or content[len(head) : len(head) + 32] != hashlib.sha256(code).digest():
        _log.warning("%s is not used: its content has changed", kept)
        return None
    return code


def _write(kept: Path, key: bytes, code: bytes) -> None:
    try:
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_private(kept.parent)
        with atomic_write(kept) as file:
            file.write(_MAGIC + key + hashlib.sha256(code).digest() + code)
    except OSError as error:
        # Compiled anew at each start, then.
        _log.warning("the compiled kernels cannot be kept: %s", error)
