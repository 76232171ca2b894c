"""A reject line without a PLC: a digital output at a GPIO chip that lets a part pass on its own fresh `ok` alone.

What a PLC's program would do is done here: with a `trigger` line, each edge is a part that the station is asked about;
without one, each event of the camera is a part.  The reject line is active but for the time in which such a part, and
none that came after it, is at the gate.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Literal
from typing import Protocol as Interface

import msgspec

from edge.bridges.base import EventPlc, Plc, PlcLostError, PlcSettings, Protocol
from edge.bridges.gate import Gate
from edge.bridges.tags import Inputs, Outputs, StateCode, Tag, VerdictCode
from edge.bridges.waker import Waker
from edge.errors import BridgeError, CameraError, UsageError
from edge.events.schema import Event, numbering
from edge.inspection.result import Verdict
from edge.triggers.gpio import EdgeRequest, GpioLine, open_line

_WELL = frozenset({StateCode.INITIALIZED, StateCode.READY, StateCode.SINGLE_EXECUTION, StateCode.CONTINUOUS_EXECUTION})
# The bridge writes at each beat of its heart; when it has not for so many, it hangs.
_BEATS = 4
# Between two messages about refused edges.
_TELL_S = 5.0


class GpioSettings(PlcSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of a digital output.  Lines are `gpio:CHIP:LINE`, such as `gpio:0:17`.

    Attributes:
        reject: the reject line.
        reject_level: the level at which a part is rejected; at `low`, a broken wire rejects too.
        ready: a line that is high while the bridge is ready.
        trigger: a line whose edges, `:rising` where not `:falling`, say that a part is before the camera.
        delay_ms: from a part's trigger, or else its picture, until it comes to the gate.
        pulse_ms: how long it is at the gate; 0: until the next part comes to it.
    """

    reject: str = ""
    reject_level: Literal["low", "high"] = "low"
    ready: str = ""
    trigger: str = ""
    delay_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)] = 0.0
    pulse_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)] = 0.0

    def __post_init__(self) -> None:
        for key in ("reject", "ready"):
            text = getattr(self, key)
            if text and text.count(":") > 2:
                raise UsageError(f"{key} = {text!r} has an edge, but is an output", "write gpio:CHIP:LINE")
        lines = [GpioLine.parse(text) for text in (self.reject, self.ready, self.trigger) if text]
        if len({(line.chip, line.offset) for line in lines}) < len(lines):
            raise ValueError("reject, ready and trigger must be different lines")
        if self.reject and not self.trigger and not self.pulse_ms:
            raise ValueError(
                "without trigger, pulse_ms must say how long a part is at the gate: the next one's coming is not seen"
            )


class OutputLine(Interface):
    """A digital output."""

    def set(self, active: bool) -> None:
        """Set it.  Raises OSError."""
        ...

    def release(self) -> None:
        """Give the line back."""
        ...


class _Asking(Enum):
    """How far the trigger is that the station is asked with."""

    NOTHING = 0
    EDGE = 1
    SHOWN = 2
    ANSWERED = 3
    CLEARED = 4


class DigitalOutput(Plc):
    """The lines, and a thread that drives them in time: the bridge's own may be busy with the station.

    Args:
        settings: which lines, and when.
        wake: wakes the bridge's thread.
        open_output: opens an output, by line, whether its active level is low, and whether it is active at first.
        open_trigger: opens an input's edges.
        clock: seconds, as the edges' times.

    Attributes:
        refused: edges that came while the one before was still being handed on; these parts are rejected.
    """

    def __init__(
        self,
        settings: GpioSettings,
        wake: Callable[[], None],
        *,
        open_output: Callable[[GpioLine, bool, bool], OutputLine] | None = None,
        open_trigger: Callable[[GpioLine], EdgeRequest] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._wake, self._clock = settings, wake, clock
        self._open_output, self._open_trigger = open_output or open_gpiod_output, open_trigger or open_line
        self._lock = threading.Lock()
        self._gate = Gate(settings.delay_ms / 1000, settings.pulse_ms / 1000 or None)
        self._number = self._beat = 0
        self._silence_s = _BEATS * settings.heartbeat_ms / 1000
        self._opened = False
        self._reject: OutputLine | None = None
        self._ready: OutputLine | None = None
        self._edges: EdgeRequest | None = None
        self._waker: Waker | None = None
        self._thread: threading.Thread | None = None
        self._begin()

    def _begin(self) -> None:
        self._gate.reject_all()
        self._well = self._released = self._is_ready = self._shown_ready = self._stopping = False
        self._asking, self._asked = _Asking.NOTHING, 0
        self._result_ack = self._error_seen = self._error_ack = False
        self._written_at = self._clock()
        self._problem: OSError | None = None
        self.refused = self._refused_told = 0
        self._refused_told_at = -_TELL_S

    def open(self) -> None:
        """Take the lines; the reject line is active from the first moment on."""
        settings = self._settings
        self._begin()
        try:
            self._reject = self._open_output(GpioLine.parse(settings.reject), settings.reject_level == "low", True)
            if settings.ready:
                self._ready = self._open_output(GpioLine.parse(settings.ready), False, False)
            if settings.trigger:
                self._edges = self._open_trigger(GpioLine.parse(settings.trigger))
        except CameraError as error:
            self.close()
            if self._opened:
                raise PlcLostError(error.problem) from error
            raise BridgeError(error.problem, error.hint) from error
        self._opened = True
        self._waker = Waker()
        self._thread = threading.Thread(
            target=self._run, args=(self._waker,), name=f"gpio-{settings.name}", daemon=True
        )
        self._thread.start()

    def read(self) -> Inputs:
        """Return what a PLC's program would write."""
        with self._lock:
            self._check()
            self._tell_refused()
            self._beat = (self._beat + 1) % 0x1_0000
            if self._asking is _Asking.EDGE:
                self._asking = _Asking.SHOWN
            elif self._asking is _Asking.ANSWERED:
                self._asking = _Asking.CLEARED
            self._error_ack = self._error_seen and not self._error_ack
            return Inputs(
                trigger=self._asking is _Asking.SHOWN,
                part_id=self._asked,
                result_ack=self._result_ack,
                error_ack=self._error_ack,
                heartbeat=self._beat,
            )

    def write(self, outputs: Outputs) -> None:
        """Take what a PLC's program would read, and act on it."""
        with self._lock:
            before = (self._asking, self._result_ack)
            self._written_at = self._clock()
            self._well = outputs.state in _WELL
            if not self._well:
                self._gate.reject_all()
            elif outputs.result_valid and outputs.verdict == VerdictCode.OK and self._settings.trigger:
                self._gate.passes(outputs.part_id)
            self._result_ack, self._error_seen = outputs.result_valid, outputs.error
            if self._asking is _Asking.SHOWN and outputs.trigger_ack:
                self._asking = _Asking.ANSWERED
            elif self._asking is _Asking.CLEARED and not outputs.trigger_ack:
                self._asking = _Asking.NOTHING
            self._is_ready = outputs.ready
            self._drive()
            self._check()
            changed = before != (self._asking, self._result_ack)
        if self._waker is not None:
            self._waker.wake()
        if changed:
            self._wake()

    def close(self) -> None:
        """Give the lines back, the reject line active before."""
        self._stopping = True
        if self._waker is not None and self._thread is not None:
            self._waker.wake()
            self._thread.join()
            self._waker.close()
        self._waker = self._thread = None
        with self._lock:
            self._gate.reject_all()
            self._is_ready = False
            self._drive()
            for line in (self._reject, self._ready, self._edges):
                if line is not None:
                    line.release()
            self._reject = self._ready = self._edges = None

    # The thread

    def _run(self, waker: Waker) -> None:
        edges = self._edges
        inputs: list[int] = [waker.descriptor] + ([] if edges is None else [edges.fileno()])
        while not self._stopping:
            with self._lock:
                wait = self._drive()
            if self._problem is not None:
                # The bridge closes and opens again.
                self._wake()
                return
            ready, _, _ = select.select(inputs, [], [], wait)
            waker.clear()
            if edges is not None and edges.fileno() in ready:
                try:
                    times = [event.timestamp_ns / 1e9 for event in edges.read_edge_events()]
                except OSError as error:
                    self._problem = error
                    continue
                with self._lock:
                    for triggered in times:
                        self._note_edge(triggered)
                self._wake()

    def _note_edge(self, triggered: float) -> None:
        self._gate.part(self._next_number(), triggered)
        if self._asking is _Asking.NOTHING:
            self._asking, self._asked = _Asking.EDGE, self._number
        else:
            # Handed on later, it would show the camera another part.
            self.refused += 1

    def _tell_refused(self) -> None:
        """Say how many parts were refused, at most once in a while: a line that bounces must not flood the log."""
        now = self._clock()
        count = self.refused - self._refused_told
        if count and now >= self._refused_told_at + _TELL_S:
            self._refused_told, self._refused_told_at = self.refused, now
            which = "a part is" if count == 1 else f"{count} parts are"
            self.report(f"{which} rejected: {self._settings.trigger} came while the one before was being handed on")

    def _next_number(self) -> int:
        self._number = self._number % 0xFFFF_FFFF + 1
        return self._number

    def _drive(self) -> float:
        """Set the lines as they must be now; return in how many seconds, at most, to do so again."""
        now = self._clock()
        left = self._written_at + self._silence_s - now
        if left <= 0:
            # The bridge hangs: what it would say by now nobody knows.
            self._gate.reject_all()
        self._set(self._gate.released(now), self._is_ready and left > 0)
        wait, due = left if left > 0 else self._silence_s, self._gate.due(now)
        return wait if due is None else min(wait, due)

    def _set(self, released: bool, ready: bool) -> None:
        try:
            if self._reject is not None and released != self._released:
                self._reject.set(not released)
                self._released = released
            if self._ready is not None and ready != self._shown_ready:
                self._ready.set(ready)
                self._shown_ready = ready
        except OSError as error:
            self._problem = error

    def _check(self) -> None:
        if self._problem is not None:
            settings = self._settings
            lines = ", ".join(line for line in (settings.reject, settings.ready, settings.trigger) if line)
            raise PlcLostError(f"a line of {lines} cannot be used: {self._problem}") from self._problem


class EventOutput(DigitalOutput, EventPlc):
    """A reject line of a camera whose station triggers itself: each event is a part."""

    _last: tuple[str, int] = ("", 0)

    def event(self, event: Event) -> None:
        """Let the event's part pass if it is `ok`, not seen before, and within the deadline."""
        key = (numbering(event), event.seq)
        if key[0] == self._last[0] and key[1] <= self._last[1]:
            return
        self._last = key
        begun_ns = event.captured_at_ns if event.triggered_at_ns is None else event.triggered_at_ns
        age_s = (time.time_ns() - begun_ns) / 1e9
        with self._lock:
            number = self._next_number()
            self._gate.part(number, self._clock() - max(0.0, age_s))
            # A picture from the future was taken by another clock: how old it is nobody knows.
            if self._well and event.verdict is Verdict.OK and 0 <= age_s <= self._settings.deadline_ms / 1000:
                self._gate.passes(number)
            self._drive()
            self._check()
        if self._waker is not None:
            self._waker.wake()


class _GpiodOutput:
    """An output through the kernel's character device."""

    def __init__(self, line: GpioLine, active_low: bool, active: bool) -> None:
        import gpiod

        self._offset = line.offset
        self._values = (gpiod.line.Value.INACTIVE, gpiod.line.Value.ACTIVE)
        settings = gpiod.LineSettings(
            direction=gpiod.line.Direction.OUTPUT, active_low=active_low, output_value=self._values[active]
        )
        self._request = gpiod.request_lines(line.chip, consumer="redi-bridge", config={line.offset: settings})

    def set(self, active: bool) -> None:
        """Set it."""
        self._request.set_value(self._offset, self._values[active])

    def release(self) -> None:
        """Give the line back."""
        self._request.release()


def open_gpiod_output(line: GpioLine, active_low: bool, active: bool) -> OutputLine:
    """Take an output from the kernel, with its first value.

    Raises:
        UsageError: gpiod is not installed.
        CameraError: the line cannot be used.
    """
    try:
        return _GpiodOutput(line, active_low, active)
    except ImportError as error:
        raise UsageError("gpiod is not installed", "pip install 'redi-edge[gpio]'") from error
    except (OSError, ValueError) as error:
        raise CameraError(
            f"GPIO line {line.offset} of {line.chip} cannot be used: {error}",
            "gpioinfo lists the lines; the user needs access to the device",
        ) from error


def _connect(settings: GpioSettings, wake: Callable[[], None]) -> Plc:
    if not settings.reject:
        raise UsageError(f"{settings.name}: the key reject is missing", 'such as reject = "gpio:0:17"')
    return DigitalOutput(settings, wake) if settings.trigger else EventOutput(settings, wake)


def _address(settings: GpioSettings, tag: Tag) -> str:
    keys = {"trigger": "trigger", "ready": "ready", "verdict": "reject"}
    return (getattr(settings, keys[tag.field]) or f"key {keys[tag.field]}") if tag.field in keys else "none"


PROTOCOL = Protocol(settings=GpioSettings, connect=_connect, address=_address)
