"""The simulated line: a conveyor with its camera and reject gate, and the PLC program that owns the shift register."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from tests.edge.bridges.view import View

Values = dict[str, Any]

OK = 1


@dataclass
class Part:
    """A part on the conveyor; `passed` is None until it is at the gate."""

    number: int
    defective: bool
    came_at: float
    passed: bool | None = None


@dataclass
class Line:
    """Parts one after the other; who looks through the camera sees the part that is there, whatever its id.

    They come by time, whether or not anybody asks about them.
    """

    count: int
    spacing_s: float = 0.05
    to_gate_s: float = 0.5
    #: A part stays before the camera until the PLC has its verdict, as on an indexing table; those behind it queue up.
    indexed: bool = False
    #: Which parts have a defect.
    defects: frozenset[int] = frozenset()
    #: Where a station in another process looks.
    view: View | None = None
    parts: list[Part] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._next_at: float | None = None
        self.held = False

    def advance(self, now: float) -> None:
        """Move the conveyor; parts come once the PLC has seen the station ready."""
        with self._lock:
            while self._next_at is not None and now >= self._next_at and len(self.parts) < self.count:
                if self.indexed and self.held:
                    return
                number = 1 + len(self.parts)
                # Those that come by time meanwhile wait behind it.
                came_at = now if self.indexed else self._next_at
                part = Part(number, number in self.defects, came_at)
                if self.view is not None and self.indexed:
                    self.view.show(defective=part.defective)
                self.parts.append(part)
                self.held = True
                self._next_at += self.spacing_s

    def begin(self, now: float) -> None:
        with self._lock:
            if self._next_at is not None:
                return
            self._next_at = now
            if self.view is not None and not self.indexed:
                self.view.run(now, self.spacing_s, [number in self.defects for number in range(1, self.count + 1)])

    def end(self) -> None:
        """Let no more parts come."""
        with self._lock:
            self.count = len(self.parts)

    def in_view(self) -> Part | None:
        """The part in front of the camera, at this moment."""
        self.advance(time.monotonic())
        with self._lock:
            return self.parts[-1] if self.parts else None

    @property
    def done(self) -> bool:
        return len(self.parts) == self.count and all(part.passed is not None for part in self.parts)

    @property
    def passed(self) -> list[int]:
        """The parts that the gate let pass."""
        return [part.number for part in self.parts if part.passed]

    @property
    def wrong(self) -> list[int]:
        """Those of them that it should not have."""
        return [part.number for part in self.parts if part.passed and part.defective]


@dataclass
class Entry:
    """A place of the shift register: rejected unless its own `ok` came in time."""

    number: int
    came_at: float
    asked_at: float
    confirmed: bool = False
    confirmed_at: float = 0.0
    verdict: int = 0
    verdict_at: float = 0.0


class Program:
    """The PLC's program: one scan at a time, see `deploy/plc`.  A new one knows nothing of what was before.

    Args:
        line: what it controls.
        ack_timeout_s: from a part's coming to the station's taking its trigger.
        exposure_s: how long a part stays after that, unless it has its verdict.
        bridge_timeout_s: without a change of the bridge's heartbeat.
    """

    def __init__(
        self, line: Line, *, ack_timeout_s: float, exposure_s: float = 0.0, bridge_timeout_s: float = 1.0
    ) -> None:
        self.line = line
        self.ready_seen = False
        self.register: dict[int, Entry] = {}
        self._ack_timeout_s, self._exposure_s, self._bridge_timeout_s = ack_timeout_s, exposure_s, bridge_timeout_s
        self._out: Values = {"Heartbeat": 0, "Command": 1}
        self._beat: int | None = None
        self._beat_at = -1e9
        self._current: Entry | None = None
        self._reset = True

    def scan(self, seen: Values) -> Values:
        now, out = time.monotonic(), self._out
        self.line.advance(now)
        out["Heartbeat"] = (out["Heartbeat"] + 1) % 65536
        if self._beat is not None and seen["Heartbeat"] != self._beat:
            self._beat_at = now
        self._beat = seen["Heartbeat"]
        alive = now - self._beat_at < self._bridge_timeout_s
        if self._reset:
            # What is there from before this program ran is no result of ours.
            if alive and seen["CommandEcho"] == 1:
                out["Command"], self._reset = 0, False
        else:
            self._take_result(seen, now, alive)
            self._ask(seen, now, alive)
        out["ErrorAck"] = seen["Error"] and not out.get("ErrorAck")
        if alive and seen["Ready"] and not self._reset:
            self.ready_seen = True
            self.line.begin(now)
        self._move(now)
        self._gate(now)
        return dict(out)

    def latencies(self) -> list[float]:
        """Seconds from trigger to verdict, of the parts that have one."""
        return [entry.verdict_at - entry.asked_at for entry in self.register.values() if entry.verdict]

    def _take_result(self, seen: Values, now: float, alive: bool) -> None:
        if alive and seen["ResultValid"] and not self._out.get("ResultAck"):
            for entry in self.register.values():
                if entry.number == seen["PartId"] and entry.verdict in (0, OK):
                    entry.verdict, entry.verdict_at = seen["Verdict"], now
        self._out["ResultAck"] = seen["ResultValid"]

    def _ask(self, seen: Values, now: float, alive: bool) -> None:
        out, entry = self._out, self._current
        if out.get("Trigger"):
            assert entry is not None
            in_time = now - entry.came_at <= self._ack_timeout_s
            if seen["TriggerAck"] or not in_time:
                # What took longer showed the camera another part, perhaps.
                entry.confirmed, entry.confirmed_at, out["Trigger"] = in_time, now, False
            return
        newest = self.line.parts[-1] if self.line.parts else None
        fresh = newest is not None and now - newest.came_at <= self._ack_timeout_s
        if fresh and alive and seen["Ready"] and not seen["TriggerAck"]:
            assert newest is not None
            if newest.number in self.register:
                return
            number = len(self.register) + 1
            self._current = self.register[newest.number] = Entry(number, newest.came_at, now)
            self.line.held = True
            out.update(Trigger=True, PartId=number, Encoder=newest.number * 100 - 1000)

    def _move(self, now: float) -> None:
        """Let an indexed line go on when its part has been seen, or will not be."""
        if not self.line.held or not self.line.parts or self._out.get("Trigger"):
            return
        newest = self.line.parts[-1]
        entry = self.register.get(newest.number)
        if entry is None:
            seen = now - newest.came_at > self._ack_timeout_s
        else:
            seen = not entry.confirmed or entry.verdict != 0 or now - entry.confirmed_at > self._exposure_s
        if seen:
            self.line.held = False

    def _gate(self, now: float) -> None:
        for part in self.line.parts:
            if part.passed is None and now >= part.came_at + self.line.to_gate_s:
                entry = self.register.get(part.number)
                part.passed = entry is not None and entry.confirmed and entry.verdict == OK
