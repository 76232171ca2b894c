"""What lies before the camera, for a station in another process."""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

_STANDING, _MOVING = 0, 1
# Standing or moving, the part that lies there, when the first came and the time between two in ns, and how many come.
_HEAD = struct.Struct("<BB6xqqq")
_SIZE = 1 << 18


class View:
    """Memory that two processes share: a part that lies there, or a conveyor that moves on whatever either does."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_SIZE))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _SIZE)

    @property
    def defective(self) -> bool:
        moving, part, begun_ns, spacing_ns, count = _HEAD.unpack_from(self._memory)
        if moving == _STANDING:
            return bool(part)
        index = min((time.monotonic_ns() - begun_ns) // spacing_ns, count - 1)
        return bool(self._memory[_HEAD.size + index])

    def show(self, *, defective: bool) -> None:
        _HEAD.pack_into(self._memory, 0, _STANDING, defective, 0, 0, 0)

    def run(self, begun_s: float, spacing_s: float, defects: Sequence[bool]) -> None:
        self._memory[_HEAD.size : _HEAD.size + len(defects)] = bytes(defects)
        _HEAD.pack_into(self._memory, 0, _MOVING, 0, round(begun_s * 1e9), round(spacing_s * 1e9), len(defects))

    def __enter__(self) -> View:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._memory.close()
