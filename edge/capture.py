"""The capture thread: camera → slot, freely or one frame for each triggered part."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass

from edge.cameras.base import Camera, EndOfStream
from edge.cameras.ring import FrameRing
from edge.errors import CameraError, FrameError
from edge.frames import FrameMeta, PixelFormat, Slot
from edge.parts import Parts, Ticket, TriggerRefusedError
from edge.summary import Summary
from edge.supervision.pulse import Pulse

#: How long a thread waits for its next slot or frame before it looks whether it should stop.
WAIT_S = 0.25

# Pauses between attempts to open a lost camera again.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0


class StopFlag:
    """A flag that any thread or signal handler may set, and that the capture thread alone reads.

    Unlike `threading.Event`, whose lock is not reentrant, it may be set by a handler that interrupts its being set.
    """

    def __init__(self) -> None:
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        """Set it."""
        self._tokens.put(None)

    def is_set(self) -> bool:
        """Return whether it is set."""
        return not self._tokens.empty()

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is set, at most so long; return whether it is."""
        try:
            self._tokens.put(self._tokens.get(timeout=timeout_s))
        except queue.Empty:
            return False
        return True


@dataclass(frozen=True)
class Triggering:
    """Each part gets one frame and one verdict.

    `by_camera`: every frame that the camera delivers is a part, as its own hardware trigger asked for it; otherwise
    parts come from `Parts.trigger`.  `window_ms`: a live camera's frame shows the part if it was taken no later after
    the trigger.
    """

    parts: Parts
    by_camera: bool = False
    window_ms: float = 1000.0


class Capture:
    """Fills slots until the camera ends, `count` frames have come, or it is told to stop.

    Args:
        camera: closed and opened again where it is lost.
        ring: the frame slots.
        summary: counts silences and reconnections.
        stop: ends it.
        count: end after so many frames; None for no end.
        frame_timeout_s: silence of a free-running camera for so long is reported by one `fault`.
        reopen: opens the camera again after a live one was lost; None: a loss ends the capture.
        triggering: None where the camera runs freely.
        report: called with why there are no frames, "" once there are frames again.
        stage: called with each captured frame that will be inspected, before the inspector gets it.
        pulse: the thread's sign of life.
    """

    def __init__(
        self,
        camera: Camera,
        ring: FrameRing,
        summary: Summary,
        stop: StopFlag,
        *,
        count: int | None,
        frame_timeout_s: float,
        reopen: Callable[[], Camera] | None,
        triggering: Triggering | None,
        report: Callable[[str], None],
        stage: Callable[[Slot], None],
        pulse: Pulse | None = None,
    ) -> None:
        self.camera = camera
        self._ring = ring
        self._summary = summary
        self._stop = stop
        self._left = count
        self._frame_timeout_s = frame_timeout_s
        self._reopen = reopen
        self._parts = None if triggering is None else triggering.parts
        self._by_camera = triggering is not None and triggering.by_camera
        self._window_ns = 0 if triggering is None else int(triggering.window_ms * 1e6)
        self._report = report
        self._stage = stage
        self._pulse = pulse
        #: When the last frame came, on the monotonic clock in seconds; None before the first.
        self.seen_at: float | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._silent_since: float | None = None
        self._silences = 0
        # The slot in which no frame came yet, where the camera may still write into it.
        self._held: Slot | None = None
        # The part that an asked camera is to take next.
        self._asked: Ticket | None = None
        #: Frames of the camera's own trigger for which there was no room.
        self.refused = 0

    def run(self) -> None:
        """Capture until the end.

        Raises:
            CameraError: the camera was lost and cannot be opened again.
        """
        try:
            self._run()
        finally:
            if self._held is not None:
                self.camera.recall()
                self._ring.discard(self._held)

    def _run(self) -> None:
        while not self._stop.is_set() and self._left != 0:
            if self._pulse is not None:
                self._pulse.beat()
            if self._asks and not self._ask():
                continue
            slot = self._held or self._ring.acquire(WAIT_S)
            self._held = None
            if slot is None:
                continue
            asked_at = time.monotonic()
            try:
                came = self.camera.capture(slot, WAIT_S)
            except EndOfStream:
                self._ring.discard(slot)
                return
            except FrameError as error:
                self._commit_fault(slot, error.problem)
                continue
            except CameraError as error:
                self._lose(slot, error)
                continue
            except BaseException:
                # Given back, or the ring would wait for its frame for ever.
                self._ring.discard(slot)
                raise
            if came:
                self._arrived(slot)
            else:
                self._silent(slot, asked_at)

    @property
    def _asks(self) -> bool:
        """Whether the camera waits to be asked for a frame, and is asked for one by each part."""
        return self._parts is not None and not self._by_camera and not self.camera.live

    def _ask(self) -> bool:
        """Wait for a part; return whether there is one."""
        assert self._parts is not None
        self._asked = self._parts.next(WAIT_S)
        if self._asked is None:
            return False
        self.camera.expect(self._asked)
        return True

    def _arrived(self, slot: Slot) -> None:
        if self._silences or self._pause_s != _FIRST_PAUSE_S:
            self._report("")
        self._pause_s, self._silent_since, self._silences = _FIRST_PAUSE_S, None, 0
        self.seen_at = time.monotonic()
        if self._parts is not None:
            slot.meta.ticket = self._ticket(slot.meta)
            if slot.meta.ticket is None:
                # A frame of no part: between two triggers, or of one that has its verdict already.
                self._ring.discard(slot)
                return
        try:
            self._stage(slot)
        except BaseException:
            self._ring.discard(slot)
            raise
        self._ring.commit(slot)
        self._count()

    def _ticket(self, meta: FrameMeta) -> Ticket | None:
        """Return the part that a frame shows."""
        parts = self._parts
        assert parts is not None
        if self._by_camera:
            self._open_part(meta)
        elif self.camera.live:
            return parts.claim(meta.captured_ns, self._window_ns)
        ticket = parts.next(0) if self._by_camera else self._asked
        return ticket if ticket is not None and parts.take(ticket) else None

    def _open_part(self, meta: FrameMeta) -> None:
        assert self._parts is not None
        self._parts.see()
        try:
            self._parts.trigger_timed(self.camera.name, meta.captured_at_ns, meta.captured_ns)
        except TriggerRefusedError:
            self.refused += 1

    def _count(self) -> None:
        if self._left is not None:
            self._left -= 1

    def _silent(self, slot: Slot, asked_at: float) -> None:
        if self._parts is not None and self.camera.live and not self._by_camera:
            self._parts.expire(time.monotonic_ns(), self._window_ns)
        self._silent_since = asked_at if self._silent_since is None else self._silent_since
        silent_s = time.monotonic() - self._silent_since
        # A camera that waits for its own trigger is silent as long as no part comes.
        if not self._by_camera and silent_s >= self._frame_timeout_s * (self._silences + 1):
            self._silences += 1
            self._summary.timeouts += 1
            reason = f"no frame for {self._frame_timeout_s:g} s"
            if self._silences == 1:
                self._report(reason)
                if self._parts is None:
                    self.camera.recall()
                    self._commit_fault(slot, reason, counts=False)
                    return
            if self._parts is not None and self._asked is not None:
                self._parts.fail(self._asked, reason)
        if self.camera.holds_slot:
            self._held = slot
        else:
            self._ring.discard(slot)

    def _commit_fault(self, slot: Slot, reason: str, *, counts: bool = True) -> None:
        """Send a slot without a frame round, so that the reason becomes an event like every other."""
        meta = FrameMeta(
            source=self.camera.name, captured_ns=time.monotonic_ns(), captured_at_ns=time.time_ns(), error=reason
        )
        if self._parts is not None:
            meta.ticket = self._ticket(meta)
            if meta.ticket is None:
                self._ring.discard(slot)
                return
        slot.shape_pixels(0, 0, PixelFormat.BGR8)
        slot.meta = meta
        self._ring.commit(slot)
        if counts:
            self._count()

    def _lose(self, slot: Slot, error: CameraError) -> None:
        """Report a lost camera and open it again, after ever longer pauses.

        Raises:
            CameraError: it cannot be opened again.
        """
        recoverable = self.camera.live and self._reopen is not None
        self._report(error.problem)
        if self._parts is None:
            self._commit_fault(slot, error.problem, counts=False)
        else:
            self._ring.discard(slot)
            self._parts.blind(error.problem)
        if not recoverable or self._reopen is None:
            raise error
        if self._pulse is not None:
            # Opening takes as long as the driver or the network lets it, and the loss is known.
            self._pulse.idle()
        self.camera.close()
        while not self._stop.wait(self._pause_s):
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            try:
                self.camera = self._reopen()
            except CameraError:
                continue
            self._summary.reconnects += 1
            if self._parts is not None:
                self._parts.see()
            break
