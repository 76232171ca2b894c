"""Memory of the emulated device: each allocation ends at a page that nobody may touch, and no address comes back.

Device memory is out of reach unless work runs.  Memory that the host and the device share has two addresses, so that
the one cannot pass for the other.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from edge.frames import U8
from tests.edge.inspection.cuda.fibers import EmulatorError

PAGE = 4096
ALIGNMENT = 256
_GARBAGE = np.frombuffer(np.uint32(0x7FA5A5A5).tobytes(), np.uint8)
_NONE, _READ_WRITE = 0, 3
_SHARED, _PRIVATE, _FIXED, _ANONYMOUS, _NORESERVE = 1, 2, 0x10, 0x20, 0x4000
_RESERVED = 64 << 30

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def _map(address: int | None, size: int, protection: int, flags: int, file: int = -1) -> int:
    found = _libc.mmap(address, size, protection, flags, file, 0)
    if found in (None, 2**64 - 1):
        raise MemoryError(f"mmap of {size} bytes: {os.strerror(ctypes.get_errno())}")
    return int(found)


@dataclass(frozen=True)
class Block:
    """`size` bytes from `address` on, within whole pages from `base` to `end`."""

    address: int
    size: int
    base: int
    end: int

    def view(self, address: int, size: int) -> U8:
        """Return bytes of it, wherever they lie in its pages."""
        return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)

    def owned_view(self, owner: object) -> U8:
        """Return all of it as an array that keeps `owner` alive."""
        memory = (ctypes.c_uint8 * self.size).from_address(self.address)
        memory.owner = owner
        return np.frombuffer(memory, np.uint8)

    @property
    def slack(self) -> tuple[U8, U8]:
        """Return what lies before and after it in its pages."""
        after = self.address + self.size
        return self.view(self.base, self.address - self.base), self.view(after, self.end - after)


class Arena:
    """One kind of memory: addresses of nothing else, none used twice."""

    def __init__(self, kind: str, *, hidden: bool) -> None:
        self.kind = kind
        self._hidden = hidden
        self._region = _map(None, _RESERVED, _NONE, _PRIVATE | _ANONYMOUS | _NORESERVE)
        weakref.finalize(self, _libc.munmap, self._region, _RESERVED).atexit = False
        self._next = self._region + PAGE
        self._blocks: dict[int, Block] = {}
        self._open = False

    def allocate(self, size: int, file: int = -1) -> Block:
        """Return zeroed memory; with `file`, that file's."""
        if size <= 0:
            raise EmulatorError(f"an allocation of {size} bytes")
        whole = -(-size // ALIGNMENT) * ALIGNMENT
        pages = -(-whole // PAGE) * PAGE
        base = self._next
        self._next += pages + PAGE
        if self._next > self._region + _RESERVED:
            raise MemoryError(f"the emulated device's {self.kind} memory is used up")
        flags = _FIXED | (_PRIVATE | _ANONYMOUS if file < 0 else _SHARED)
        _map(base, pages, _READ_WRITE, flags, file)
        block = Block(base + pages - whole if file < 0 else base, size, base, base + pages)
        for slack in block.slack:
            slack[:] = np.resize(_GARBAGE, slack.size)
        self._blocks[block.address] = block
        if self._hidden and not self._open:
            _libc.mprotect(block.base, pages, _NONE)
        return block

    def free(self, block: Block) -> None:
        """Take it back: from now on every access to it is an error."""
        if self._blocks.pop(block.address, None) is not None:
            _map(block.base, block.end - block.base, _NONE, _FIXED | _PRIVATE | _ANONYMOUS | _NORESERVE)

    def find(self, address: int) -> Block | None:
        """Return the live block that holds `address`."""
        return next((block for block in self.live if block.address <= address < block.address + block.size), None)

    def holds(self, address: int) -> bool:
        """Whether it is, or was, one of this kind."""
        return self._region <= address < self._region + _RESERVED

    @property
    def live(self) -> list[Block]:
        """Return what has not been freed."""
        return list(self._blocks.values())

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Let the memory be touched meanwhile."""
        if self._open or not self._hidden:
            yield
            return
        self._open = True
        for block in self.live:
            _libc.mprotect(block.base, block.end - block.base, _READ_WRITE)
        try:
            yield
        finally:
            self._open = False
            for block in self.live:
                _libc.mprotect(block.base, block.end - block.base, _NONE)

    def check_slack(self, block: Block) -> None:
        """Raise where something was written around the block."""
        for side, slack in zip(("before", "behind"), block.slack, strict=True):
            if not np.array_equal(slack, np.resize(_GARBAGE, slack.size)):
                raise EmulatorError(f"something was written {side} {block.size} bytes of {self.kind} memory")


@contextmanager
def shared_file(size: int) -> Iterator[int]:
    """Give memory as a file, to be mapped at two addresses."""
    file = os.memfd_create("redi")
    try:
        os.truncate(file, -(-size // PAGE) * PAGE)
        yield file
    finally:
        os.close(file)
