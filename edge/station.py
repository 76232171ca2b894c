"""The station: one camera, one bundle, one publisher.

    capture thread     camera → slot          waits for a free slot; a live camera takes back the oldest instead
    caller's thread    slot → verdict         the inspector
    publish thread     verdict → event        ZeroMQ, then the slot is free again

A slot goes round this circle and has one owner at a time (`edge.cameras.ring`).  The three overlap: while one frame
is inspected, the next is captured and the last is published.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from edge.cameras.base import Camera, EndOfStream
from edge.cameras.ring import FrameRing
from edge.errors import CameraError, FrameError
from edge.events.build import build_event
from edge.events.publisher import Publisher
from edge.frames import FrameMeta, PixelFormat, Slot
from edge.inspection.inspector import Inspector
from edge.inspection.result import Inspection
from edge.summary import Summary

#: How long a thread waits for its next slot or frame before it looks whether it should stop.
_WAIT_S = 0.25

#: Memory of a slot at the start.  A slot that meets a larger frame grows once.
_FRAME_BYTES = 1920 * 1080 * 3

#: For `sys.setswitchinterval` where a station runs: a thread that comes back from a kernel or a wait must not stand
#: behind another's Python code for the usual 5 ms.
SWITCH_INTERVAL_S = 2e-4

#: Pauses between attempts to open a lost camera again.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0


class _StopFlag:
    """A flag that any thread or signal handler may set, and that the capture thread alone reads.

    Unlike `threading.Event`, whose lock is not reentrant, it may be set by a handler that interrupts its being set.
    """

    def __init__(self) -> None:
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        self._tokens.put(None)

    def is_set(self) -> bool:
        return not self._tokens.empty()

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is set, at most so long; return whether it is."""
        try:
            self._tokens.put(self._tokens.get(timeout=timeout_s))
        except queue.Empty:
            return False
        return True


class Station:
    """Inspects what a camera sees and publishes one event per frame.

    Args:
        camera: the station closes it at the end.
        inspector: used by the thread that calls `run`.
        publisher: None to publish nothing.
        slots: frame slots; at least `MIN_SLOTS` for a live camera, so that capture, inspection and publishing overlap.
        count: end after so many frames; None: when the camera ends, or `stop` is called.
        frame_timeout_s: silence of the camera for so long is reported by one `fault` event.
        reopen: opens the camera again after a live one was lost; None: a loss ends the station.
        on_result: called by the publish thread with each published slot, before it is free again.
    """

    def __init__(
        self,
        camera: Camera,
        inspector: Inspector,
        publisher: Publisher | None,
        *,
        slots: int = 4,
        count: int | None = None,
        frame_timeout_s: float = 5.0,
        reopen: Callable[[], Camera] | None = None,
        on_result: Callable[[Slot], None] | None = None,
    ) -> None:
        self.summary = Summary()
        self._camera = camera
        self._inspector = inspector
        self._publisher = publisher
        self._count = count
        self._frame_timeout_s = frame_timeout_s
        self._reopen = reopen
        self._on_result = on_result
        self._ring = FrameRing(inspector.make_slots(slots, _FRAME_BYTES), newest_wins=camera.live)
        self._stop = _StopFlag()
        self._error: BaseException | None = None
        self._broken = ""
        # Wall clock and total milliseconds at the verdict, by slot index.
        self._decided: dict[int, tuple[int, float]] = {}

    def run(self) -> Summary:
        """Inspect until the camera ends, `count` is reached, or `stop` is called; every captured frame gets its event.

        Raises:
            CameraError: the camera was lost and cannot be opened again; its last event is a `fault`.
            Exception: whatever ended one of the threads.
        """
        self.summary = Summary()
        self._status("running")
        threads = [
            threading.Thread(target=self._capture, name="capture", daemon=True),
            threading.Thread(target=self._publish, name="publish", daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            self._inspect()
        except BaseException:
            self._ring.close()
            raise
        finally:
            self.stop()
            for thread in threads:
                thread.join()
            self._camera.close()
            self.summary.skipped = self._ring.skipped
            self._status("stopped")
        if self._error is not None:
            raise self._error
        return self.summary

    def stop(self) -> None:
        """End the run: capture no more, finish what was captured.  May be called from any thread or signal handler."""
        self._stop.set()

    # The caller's thread

    def _inspect(self) -> None:
        while not self._ring.drained:
            slot = self._ring.take(_WAIT_S)
            if slot is None:
                continue
            taken_ns = time.monotonic_ns()
            inspection = self._inspect_or_fault(slot)
            captured_ns, capture_ms = slot.meta.captured_ns, slot.meta.capture_ms
            inspection.latency_ms["queue"] = max(0.0, (taken_ns - captured_ns) / 1e6 - capture_ms)
            self._decided[slot.index] = (time.time_ns(), (time.monotonic_ns() - captured_ns) / 1e6)
            self._ring.hand_over(slot)

    def _inspect_or_fault(self, slot: Slot) -> Inspection:
        if not self._broken:
            try:
                return self._inspector.inspect(slot)
            except Exception as error:  # noqa: BLE001  `run` raises it, but not before each frame has its verdict
                self._broken = f"the inspector failed: {error}"
                self._fail(error)
        slot.inspection = self._inspector.fault(self._broken)
        return slot.inspection

    # The capture thread

    def _capture(self) -> None:
        try:
            self._capture_all()
        except BaseException as error:  # noqa: BLE001  `run` raises it
            self._fail(error)
        finally:
            self._ring.finish()

    def _capture_all(self) -> None:
        captured = 0
        pause_s = _FIRST_PAUSE_S
        silent_since: float | None = None
        silences = 0
        while not self._stop.is_set() and captured != self._count:
            slot = self._ring.acquire(_WAIT_S)
            if slot is None:
                continue
            asked = time.monotonic()
            try:
                came = self._camera.capture(slot, _WAIT_S)
            except EndOfStream:
                self._ring.discard(slot)
                return
            except FrameError as error:
                self._commit_fault(slot, error.problem)
                captured += 1
                continue
            except CameraError as error:
                self._commit_fault(slot, error.problem)
                if not self._camera.live or self._reopen is None:
                    raise
                pause_s = self._reconnect(self._reopen, pause_s)
                continue
            except BaseException:
                # Given back, or the ring would wait for its frame for ever.
                self._ring.discard(slot)
                raise
            if came:
                self._ring.commit(slot)
                captured += 1
                pause_s, silent_since, silences = _FIRST_PAUSE_S, None, 0
                continue
            silent_since = asked if silent_since is None else silent_since
            if time.monotonic() - silent_since >= self._frame_timeout_s * (silences + 1):
                silences += 1
                self.summary.timeouts += 1
                if silences == 1:
                    self._commit_fault(slot, f"no frame for {self._frame_timeout_s:g} s")
                    continue
            self._ring.discard(slot)

    def _commit_fault(self, slot: Slot, reason: str) -> None:
        """Send a slot without a frame round, so that the reason becomes an event like every other."""
        slot.shape_pixels(0, 0, PixelFormat.BGR8)
        slot.meta = FrameMeta(
            source=self._camera.name,
            captured_ns=time.monotonic_ns(),
            captured_at_ns=time.time_ns(),
            error=reason,
        )
        self._ring.commit(slot)

    def _reconnect(self, reopen: Callable[[], Camera], pause_s: float) -> float:
        """Open the camera again, after ever longer pauses; return the next pause, should it be lost again at once."""
        self._camera.close()
        while not self._stop.wait(pause_s):
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            try:
                self._camera = reopen()
            except CameraError:
                continue
            self.summary.reconnects += 1
            break
        return pause_s

    # The publish thread

    def _publish(self) -> None:
        try:
            while not self._ring.done:
                slot = self._ring.take_inspected(_WAIT_S)
                if slot is not None:
                    self._publish_one(slot)
                    self._ring.release(slot)
        except BaseException as error:  # noqa: BLE001  `run` raises it
            self._fail(error)
            # Nothing can be published any more: let nobody wait for it.
            self._publisher = None
            self._ring.close()

    def _publish_one(self, slot: Slot) -> None:
        decided_at_ns, total_ms = self._decided[slot.index]
        start_ns = time.monotonic_ns()
        if self._publisher is not None:
            event, mask = build_event(
                slot,
                boot_id=self._publisher.boot_id,
                seq=self._publisher.next_seq(),
                camera=self._camera.name,
                bundle_id=self._inspector.bundle_id,
                calibration_id=self._inspector.calibration_id,
                pixel_threshold=self._inspector.pixel_threshold,
                skipped=self._ring.skipped,
                decided_at_ns=decided_at_ns,
                total_ms=total_ms,
            )
            self._publisher.publish(event, mask)
        self.summary.add(slot, total_ms, (time.monotonic_ns() - start_ns) / 1e6)
        if self._on_result is not None:
            try:
                self._on_result(slot)
            except BaseException as error:  # noqa: BLE001  `run` raises it, but not before each frame has its event
                self._on_result = None
                self._fail(error)

    def _status(self, state: str) -> None:
        if self._publisher is not None:
            self._publisher.status(
                state,
                self.summary.counters(),
                bundle_id=self._inspector.bundle_id,
                calibration_id=self._inspector.calibration_id,
            )

    def _fail(self, error: BaseException) -> None:
        """Keep the first error for `run` to raise, and end the capture."""
        self._error = self._error or error
        self._stop.set()
