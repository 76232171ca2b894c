"""The image archive: frames as lossless PNG, each beside its event as JSON, within a budget of bytes.

Frames are whole and as the camera gave them, before any correction, but in colour or grey whatever their pixel format.

    DIR/CAMERA/2026-11-22/20261122T081712.123456789Z-8899aabb-1234-ng.png     time, journal, seq, verdict
    DIR/CAMERA/2026-11-22/20261122T081712.123456789Z-8899aabb-1234-ng.json

Publish threads offer frames and go on: what is kept is copied into memory that is bounded, and a writer of low priority
does the rest.  A disk that is full or fails costs pictures, which are counted, and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import cv2
import numpy as np

from edge.archive_files import ArchiveFiles, picture_name
from edge.archive_policy import KeepPolicy
from edge.events.codec import EventMessage, event_to_json
from edge.events.schema import Event
from edge.frames import U8, PixelFormat, Slot
from edge.images import to_bgr
from edge.inspection.result import Verdict
from edge.machine import lower_priority
from edge.supervision.pulse import Pulse

DEFAULT_BUDGET_BYTES = 10 << 30

# What may wait for the writer.
_POOL_BYTES = 256 << 20
_POOL_FRAMES = 64
_RETRY_S = 2.0
# At the end, for what still waits.
_CLOSE_S = 5.0


class ArchiveState(str, Enum):
    """`DEGRADED`: pictures cannot be written now; what the pool holds will be when that changes."""

    OK = "ok"
    DEGRADED = "degraded"


@dataclass
class _Kept:
    """A copy of a frame that waits to be written."""

    buffer: U8
    pixels: U8
    pixel_format: PixelFormat
    event: Event
    mask: bytes
    failed: bool = False


@dataclass
class _Counts:
    archived: int = 0
    dropped: int = 0


class _Pool:
    """Buffers for frames, used again and again, bounded in number and bytes; one is always granted.

    Attributes:
        taken: how many are in use.
    """

    def __init__(self, limit_bytes: int, limit_frames: int) -> None:
        self._limit_bytes, self._limit_frames = limit_bytes, limit_frames
        self._free: list[U8] = []
        self._bytes = self.taken = 0

    def take(self, size: int) -> U8 | None:
        """Return a buffer of at least `size` bytes, None where there is no room for one."""
        if self.taken >= self._limit_frames:
            return None
        for index, buffer in enumerate(self._free):
            if buffer.size >= size:
                self.taken += 1
                return self._free.pop(index)
        while self._free and self._bytes + size > self._limit_bytes:
            self._bytes -= self._free.pop().size
        if self._bytes and self._bytes + size > self._limit_bytes:
            return None
        buffer = np.empty(size, np.uint8)
        self._bytes += size
        self.taken += 1
        return buffer

    def give(self, buffer: U8) -> None:
        """Take a buffer back."""
        self.taken -= 1
        self._free.append(buffer)


class Archive:
    """Keeps the pictures that a policy wants; nothing of it raises or waits, but for `close`.

    Args:
        folder: of one station alone; made where it does not exist.
        keep: which frames.
        budget_bytes: beyond this size, the oldest pictures are deleted.
        report: called by the writer's thread with messages for people.
        pulse: its thread's sign of life; not a critical one.
        pool_bytes, pool_frames: what may wait for the writer; beyond it, frames are dropped.
        retry_s: pause before a disk that failed is tried again.
    """

    def __init__(
        self,
        folder: Path,
        keep: KeepPolicy,
        *,
        budget_bytes: int = DEFAULT_BUDGET_BYTES,
        report: Callable[[str], None] | None = None,
        pulse: Pulse | None = None,
        pool_bytes: int = _POOL_BYTES,
        pool_frames: int = _POOL_FRAMES,
        retry_s: float = _RETRY_S,
    ) -> None:
        self.folder = folder
        self.keep = keep
        self.state = ArchiveState.OK
        self.problem = ""
        self._files = ArchiveFiles(folder, budget_bytes)
        self._report = report
        self._pulse = pulse
        self._retry_s = retry_s
        self._pool = _Pool(pool_bytes, pool_frames)
        self._oks: dict[str, int] = {}
        self._counts: dict[str, _Counts] = {}
        self._waiting: deque[_Kept] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._give_up_at = 0.0
        self._thread = threading.Thread(target=self._run, name="archive", daemon=True)
        self._thread.start()

    @property
    def size_bytes(self) -> int:
        """What the archive's files take on the disk, in whole blocks; 0 until its folder has been read."""
        return self._files.bytes

    @property
    def budget_bytes(self) -> int:
        """What they may take."""
        return self._files.budget_bytes

    def offer(self, slot: Slot, event: Event, mask: bytes = b"") -> bool:
        """Copy a published frame, if the policy wants it; return whether it will be written if the disk allows.

        May be called by one thread for each camera.  A frame without usable bytes has no picture.

        Args:
            slot: still the caller's.
            event: the frame's.
            mask: its mask's compressed counts, for the JSON file.
        """
        if slot.pixels.size == 0 or event.frame_size == (0, 0):
            return False
        with self._changed:
            number = self._oks.get(event.camera, 0)
            if event.verdict is Verdict.OK:
                self._oks[event.camera] = number + 1
            if not self.keep.wants(event, number):
                return False
            counts = self._counts.setdefault(event.camera, _Counts())
            try:
                buffer = None if self._closing else self._pool.take(slot.pixels.size)
            except MemoryError:
                buffer = None
            if buffer is None:
                counts.dropped += 1
                return False
        # Outside the lock: it takes a millisecond, and other cameras offer too.
        pixels = buffer[: slot.pixels.size].reshape(slot.pixels.shape)
        np.copyto(pixels, slot.pixels)
        with self._changed:
            self._waiting.append(_Kept(buffer, pixels, slot.pixel_format, event, mask))
            self._changed.notify()
        return True

    def counters(self, camera: str) -> dict[str, int]:
        """Return a camera's counts for its status; `archive_state` is 0, or 1 while the archive is degraded."""
        counts = self._counts.get(camera, _Counts())
        return {
            "archived": counts.archived,
            "archive_dropped": counts.dropped,
            "archive_state": int(self.state is not ArchiveState.OK),
        }

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing waits to be written; return whether that came to pass."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._pool.taken, timeout_s)

    def close(self, timeout_s: float = _CLOSE_S) -> None:
        """Write what still waits, for so long at most; what is left then is counted as dropped."""
        with self._changed:
            self._closing = True
            self._give_up_at = time.monotonic() + timeout_s
            self._changed.notify_all()
        # A disk that hangs keeps its thread; it is a daemon.
        self._thread.join(timeout_s + self._retry_s)

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # In the writer's thread

    def _run(self) -> None:
        lower_priority()
        while (kept := self._next()) is not None:
            self._sign("beat")
            if self._closing and time.monotonic() >= self._give_up_at:
                self._finish(kept, archived=False)
            else:
                self._attempt(kept)

    def _next(self) -> _Kept | None:
        """Return the next frame to write, once it is time; None at the end."""
        with self._changed:
            if self.state is ArchiveState.DEGRADED and not self._closing:
                self._sign("idle")
                self._changed.wait_for(lambda: self._closing, self._retry_s)
            while not self._waiting:
                if self._closing:
                    self._sign("idle")
                    return None
                self._sign("idle")
                self._changed.wait()
            return self._waiting.popleft()

    def _attempt(self, kept: _Kept) -> None:
        try:
            written = self._write(kept)
        except (OSError, cv2.error, MemoryError) as error:
            if self.state is ArchiveState.OK and kept.failed:
                # Others could be written since it failed: the trouble is its own.
                self._say(f"{self.folder}: a picture cannot be kept: {_reason(error)}")
                self._finish(kept, archived=False)
                return
            kept.failed = True
            self._degrade(_reason(error))
            if self._closing:
                self._finish(kept, archived=False)
                return
            with self._changed:
                # Behind the others, lest one that can never be written keeps them all waiting.
                self._waiting.append(kept)
            return
        self._finish(kept, archived=written)
        if self.state is ArchiveState.DEGRADED:
            self.state, self.problem = ArchiveState.OK, ""
            self._say(f"pictures are kept in {self.folder} again")

    def _write(self, kept: _Kept) -> bool:
        """Write one picture and its event; return whether the budget has room for it."""
        # OpenCV's own settings: its fastest level, lossless.
        picture = cv2.imencode(".png", to_bgr(kept.pixels, kept.pixel_format))[1].data
        event = event_to_json(EventMessage(kept.event, kept.mask)) + b"\n"
        if self._files.write(kept.event.camera, picture_name(kept.event), picture, event):
            return True
        self._say(f"{self.folder}: a picture of {len(picture)} bytes is above the archive's whole budget")
        return False

    def _finish(self, kept: _Kept, *, archived: bool) -> None:
        with self._changed:
            counts = self._counts[kept.event.camera]
            if archived:
                counts.archived += 1
            else:
                counts.dropped += 1
            self._pool.give(kept.buffer)
            self._changed.notify_all()

    def _degrade(self, problem: str) -> None:
        if self.state is ArchiveState.OK or problem != self.problem:
            self._say(f"pictures cannot be kept in {self.folder} ({problem}): the line goes on without")
        self.state, self.problem = ArchiveState.DEGRADED, problem

    def _say(self, message: str) -> None:
        if self._report is not None:
            self._report(message)

    def _sign(self, sign: str) -> None:
        if self._pulse is not None:
            if sign == "beat":
                self._pulse.beat()
            else:
                self._pulse.idle()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
