"""CUDA compilers on this machine: NVRTC, from a Python package, the CUDA toolkit or JetPack; else nvcc.

Both read the same text with the same options.  Nothing may change what the arithmetic means: no fused multiply-add, no
flushing of denormals, divisions and roots rounded as IEEE 754 says.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from edge.errors import CudaError

OPTIONS = ("--std=c++17", "-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true")
_ERROR = re.compile(r"\berror\b|\bfatal\b", re.IGNORECASE)
#: A toolkit's folders of libraries; the last two are JetPack's and Debian's.
_LIBRARY_FOLDERS = ("lib64", "lib", "targets/*/lib", "lib/*-linux-gnu")
_DEFAULT_ROOTS = ("/usr/local/cuda", "/usr")


class Compiler(Protocol):
    """One installed compiler."""

    @property
    def name(self) -> str:
        """What it is and its version, as `NVRTC 13.0`: another one may make other code."""
        ...

    @property
    def version(self) -> tuple[int, int]:
        """The CUDA version that it belongs to."""
        ...

    @property
    def architectures(self) -> frozenset[int]:
        """The compute capabilities that it makes code for, as 87 for 8.7."""
        ...

    def compile(self, path: Path, architecture: int, extra: tuple[str, ...] = ()) -> bytes:
        """Return the machine code (cubin) of a `.cu` file that includes no more than the headers beside it.

        Raises:
            CudaError: it does not compile; names the line.
        """
        ...


class Nvrtc:
    """The compiler as a library: needs neither a toolkit nor a C++ compiler.

    Raises:
        OSError: the library cannot be loaded.
        AttributeError: it is too old.
        CudaError: it does not answer.
    """

    def __init__(self, path: str) -> None:
        self._library = library = ctypes.CDLL(path)
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        known = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", known)
        self.version = major.value, minor.value
        self.architectures = frozenset(known)
        self.name = f"NVRTC {major.value}.{minor.value}"

    def compile(self, path: Path, architecture: int, extra: tuple[str, ...] = ()) -> bytes:
        """See `Compiler`."""
        headers = sorted(path.parent.glob("*.h"))
        texts = (ctypes.c_char_p * len(headers))(*(header.read_bytes() for header in headers))
        names = (ctypes.c_char_p * len(headers))(*(os.fsencode(header.name) for header in headers))
        words = [word.encode() for word in (f"--gpu-architecture=sm_{architecture}", *OPTIONS, *extra)]
        program = ctypes.c_void_p()
        source = path.read_bytes(), os.fsencode(path.name)
        self._call("nvrtcCreateProgram", ctypes.byref(program), *source, len(headers), texts, names)
        try:
            code = self._library.nvrtcCompileProgram(program, len(words), (ctypes.c_char_p * len(words))(*words))
            if code:
                log = self._text("nvrtcGetProgramLogSize", "nvrtcGetProgramLog", program)
                raise _refused(path, architecture, self.name, log.rstrip(b"\0").decode(errors="replace"))
            return self._text("nvrtcGetCUBINSize", "nvrtcGetCUBIN", program)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, ask_size: str, ask: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(ask_size, program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(ask, program, buffer)
        return buffer.raw

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise CudaError(f"{name}: {self._library.nvrtcGetErrorString(code).decode(errors='replace')}")


class Nvcc:
    """The toolkit's command, which needs a C++ compiler as well.

    Raises:
        OSError: it cannot be run.
        CudaError: it does not say what it is.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        release = re.search(r"release (\d+)\.(\d+)", self._run("--version").stdout)
        if release is None:
            raise CudaError(f"{path} does not say its version")
        self.version = int(release[1]), int(release[2])
        self.architectures = frozenset(map(int, re.findall(r"^sm_(\d+)$", self._run("--list-gpu-code").stdout, re.M)))
        self.name = f"nvcc {release[1]}.{release[2]}"

    def compile(self, path: Path, architecture: int, extra: tuple[str, ...] = ()) -> bytes:
        """See `Compiler`."""
        with tempfile.TemporaryDirectory(prefix="redi-nvcc-") as folder:
            made = Path(folder, "made.cubin")
            done = self._run(f"-arch=sm_{architecture}", "-cubin", *OPTIONS, *extra, str(path), "-o", str(made))
            if done.returncode:
                raise _refused(path, architecture, self.name, done.stderr + done.stdout)
            return made.read_bytes()

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self._path, *words], capture_output=True, text=True, errors="replace", check=False)


def compilers() -> Iterator[Compiler]:
    """Yield the compilers that answer here, the preferred ones first: NVRTC before nvcc, packages before toolkits."""
    seen: set[str] = set()
    for make, paths in ((Nvrtc, nvrtc_paths()), (Nvcc, nvcc_paths())):
        for path in paths:
            try:
                compiler: Compiler = make(path)
            except (OSError, AttributeError, CudaError):
                continue
            if compiler.name not in seen:
                seen.add(compiler.name)
                yield compiler


def nvrtc_paths() -> Iterator[str]:
    """Yield where NVRTC may be."""
    package = importlib.util.find_spec("nvidia")
    for root in (package.submodule_search_locations or ()) if package else ():
        for folder in ("cu*/lib", "cuda_nvrtc/lib"):
            yield from _files(Path(root), f"{folder}/libnvrtc.so.*")
    for root in _roots():
        for folder in _LIBRARY_FOLDERS:
            yield from _files(Path(root), f"{folder}/libnvrtc.so*")
    # Wherever else the system's linker looks.
    yield from ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")


def nvcc_paths() -> Iterator[str]:
    """Yield where nvcc may be."""
    for path in (shutil.which("nvcc"), *(os.path.join(root, "bin", "nvcc") for root in _roots())):
        if path is not None and os.access(path, os.X_OK):
            yield path


def _roots() -> list[str]:
    named = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
    return list(dict.fromkeys(root for root in (*named, *_DEFAULT_ROOTS) if os.path.isabs(root)))


def _files(root: Path, pattern: str) -> list[str]:
    # One library has several names, by links: the first will do.
    found = {path.resolve(): path for path in sorted(root.glob(pattern), reverse=True) if "alt" not in path.name}
    return [str(path) for path in found.values()]


def _refused(path: Path, architecture: int, compiler: str, log: str) -> CudaError:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    line = next((line for line in lines if _ERROR.search(line)), lines[0] if lines else "it does not say why")
    return CudaError(f"{path} does not compile for sm_{architecture} with {compiler}: {line}")
