"""What lies before the camera, for a station in another process."""

from __future__ import annotations

import mmap
from pathlib import Path
from types import TracebackType


class View:
    """One byte of memory that two processes share: 0 for a good part, 1 for a defective one."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(b"\0")
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 1)

    @property
    def defective(self) -> bool:
        return self._memory[0] != 0

    def show(self, *, defective: bool) -> None:
        self._memory[0] = defective

    def __enter__(self) -> View:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._memory.close()
