"""Waking a thread that waits in a poll."""

from __future__ import annotations

import contextlib
import os
import threading


class Waker:
    """Wakes one thread's wait, from any thread.

    Attributes:
        descriptor: readable from `wake` until `clear`.
    """

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._closed = False

    def wake(self) -> None:
        """End the wait, or the next one."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self.descriptor, 1)

    def clear(self) -> None:
        """Let the next wait be one."""
        # Where nobody has called, there is nothing to read.
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.descriptor)

    def close(self) -> None:
        """Close; waking does nothing any more."""
        with self._lock:
            self._closed = True
            os.close(self.descriptor)
