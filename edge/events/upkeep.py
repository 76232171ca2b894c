"""A thread for what must be done now and then, and for what people should be told, while the line goes on."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from edge.supervision.pulse import Pulse

_PERIOD_S = 1.0
# The write-ahead log is emptied when so much is in it.
_LONG_LOG_BYTES = 4 << 20
# What a commit adds to it beside its events: it is written in whole pages, of tables and indices.
_COMMIT_BYTES = 16 << 10
# Between the steps of long work, so that the line gets its turn.
_BREATH_S = 0.002


class Upkeep:
    """Calls `work` every second and when woken.

    Args:
        work: what is to be done, in steps with `breathe` between them.
        report: called with messages for people; None to drop them.
        pulse: the thread's sign of life.
    """

    def __init__(
        self, work: Callable[[], None], report: Callable[[str], None] | None, pulse: Pulse | None = None
    ) -> None:
        self._work = work
        self._pulse = pulse
        self._report = report
        self._log_bytes = 0
        self._messages: deque[str] = deque(maxlen=100)
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    @property
    def ended(self) -> bool:
        """Whether it was told to end."""
        return self._ended.is_set()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Let it work now."""
        self._wake.set()

    def count_commit(self, size: int) -> None:
        """Note a commit with events of so many bytes; where they are many, the log is emptied soon."""
        self._log_bytes += size + _COMMIT_BYTES
        if self.log_is_long:
            self.wake()

    @property
    def log_is_long(self) -> bool:
        """Whether the write-ahead log should be emptied."""
        return self._log_bytes > _LONG_LOG_BYTES

    def log_is_emptied(self) -> None:
        """Count anew."""
        self._log_bytes = 0

    def breathe(self) -> None:
        """Let the line have its turn."""
        self._ended.wait(_BREATH_S)

    def say(self, message: str) -> None:
        """Report a message, in this thread: whoever reads it may be slow, and the line must not be."""
        self._messages.append(message)
        self._wake.set()

    def end(self) -> None:
        """Tell it to end; `join` waits for it."""
        self._ended.set()
        self._wake.set()

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            if self._pulse is not None:
                self._pulse.beat()
            self._wake.wait(_PERIOD_S)
            self._wake.clear()
            self._work()
            self.tell()

    def tell(self) -> None:
        """Report what was said."""
        while self._messages:
            message = self._messages.popleft()
            if self._report is not None:
                self._report(message)
