"""Compiles the unchanged text of a `.cu` file for this CPU, as `fibers.h` runs it, and calls its kernels."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import edge.inspection
from edge.inspection.cuda.arguments import pack
from edge.inspection.cuda.device import Argument

KERNELS = Path(edge.inspection.__file__).parent / "kernels"
SHIM = Path(__file__).with_name("fibers.h")
FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Wextra", "-Wno-unknown-pragmas")
#: For short kernels that run once: compiled sooner, run slower.
QUICK = tuple(flag.replace("-O2", "-O0") for flag in FLAGS)
SANITIZED = (*QUICK, "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fsanitize-sections=redi_shared")


class EmulatorError(AssertionError):
    """The code under test did what a real device would punish, or silently get wrong."""


def kernel_names(text: str) -> list[str]:
    """Return the kernels that a `.cu` text defines."""
    return re.findall(r"^KERNEL\((\w+)", text, re.MULTILINE)


def cache() -> Path:
    """Return the folder of compiled kernels: one for all test processes of this user."""
    folder = Path(tempfile.gettempdir(), f"redi-fibers-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def build(source: Path, flags: Sequence[str] = FLAGS) -> Path:
    """Compile one `.cu` file together with the headers beside it, once for each text and set of flags."""
    text = source.read_text()
    unit = f'#include "{SHIM}"\n#include "{source.name}"\n'
    unit += "".join(f"EMULATE({name})\n" for name in kernel_names(text))
    digest = hashlib.sha256(repr(flags).encode() + unit.encode())
    # Not the folder: the same text in another one is the same library.
    for path in (SHIM, source, *sorted(source.parent.glob("*.h"))):
        digest.update(path.read_bytes())
    target = cache() / f"{source.stem}-{digest.hexdigest()[:24]}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder, "made.so")
            words = ["g++", *flags, "-I", str(source.parent), "-x", "c++", "-", "-o", str(made)]
            done = subprocess.run(words, input=unit, capture_output=True, text=True, check=False)
            if done.returncode or "warning" in done.stderr:
                raise ValueError(f"{source} does not compile:\n{done.stderr}")
            made.rename(target)
    return target


class Module:
    """The kernels of one `.cu` file."""

    def __init__(self, source: Path, flags: Sequence[str] = FLAGS) -> None:
        self.names = kernel_names(source.read_text())
        self._library = ctypes.CDLL(str(build(source, flags)))
        self._library.fibers_message.restype = ctypes.c_char_p
        self._library.fibers_skip.argtypes = (ctypes.c_char_p, ctypes.c_int)
        self._library.fibers_skipped.restype = ctypes.c_long

    @functools.cache  # noqa: B019 - modules live as long as the tests
    def signature(self, name: str) -> list[str]:
        """Return the kernel's parameters: p is a pointer; i, f or s an integer, float or structure of so many bytes."""
        function = getattr(self._library, f"signature_{name}")
        function.restype = ctypes.c_char_p
        text: bytes = function()
        return text.decode().split()

    def skip_barrier(self, file: str, line: int) -> None:
        """Let the barrier at this line of the text be passed as if it were not there; line 0: none."""
        self._library.fibers_skip(file.encode(), line)

    @property
    def skipped(self) -> int:
        """How often that barrier was passed since."""
        count: int = self._library.fibers_skipped()
        return count

    def run(self, name: str, blocks: int, threads: int, packed: bytes, seed: int) -> None:
        """Run a kernel to its end."""
        function = getattr(self._library, f"emulate_{name}")
        words = ctypes.c_int(len(packed)), ctypes.c_int(blocks), ctypes.c_int(threads), ctypes.c_uint64(seed)
        if function(packed, *words):
            raise EmulatorError(f"{name}: {self._library.fibers_message().decode()}")

    def check(self, name: str, arguments: Sequence[Argument]) -> bytes:
        """Return the packed arguments, after comparing their kinds and sizes with the kernel's."""
        given = [_kind(argument) for argument in arguments]
        wanted = self.signature(name)
        if given != wanted:
            raise EmulatorError(f"{name} takes {' '.join(wanted)}, not {' '.join(given)}")
        return pack(arguments)


def _kind(argument: Argument) -> str:
    if isinstance(argument, ctypes.Structure):
        return f"s{ctypes.sizeof(argument)}"
    if isinstance(argument, ctypes.c_void_p):
        return "p"
    letter = "f" if isinstance(argument, (ctypes.c_float, ctypes.c_double)) else "i"
    return f"{letter}{ctypes.sizeof(argument)}"


def pointers(argument: Any) -> Iterator[int]:
    """Yield the addresses in an argument, those in its structures' fields too; not the nulls."""
    if isinstance(argument, ctypes.c_void_p):
        if argument.value:
            yield argument.value
    elif isinstance(argument, ctypes.Structure):
        for name, kind, *_ in argument._fields_:
            value = getattr(argument, name)
            yield from pointers(kind(value) if issubclass(kind, ctypes.c_void_p) else value)
    elif isinstance(argument, ctypes.Array):
        kind = argument._type_
        for value in argument:
            yield from pointers(kind(value) if issubclass(kind, ctypes.c_void_p) else value)


@functools.cache
def module(source: Path, flags: Sequence[str] = FLAGS) -> Module:
    """Return the compiled file, loaded once."""
    return Module(source, flags)
