"""Signs of life: each thread beats, and a watchdog finds those that are silent for too long.

dog = Watchdog(on_change=tell)
pulse = dog.watch("capture", allowed_s=5.0)
with dog:
    while True:
        pulse.idle()       before it waits for as long as it takes
        work = queue.get()
        pulse.beat()       whenever it has got on
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

_log = logging.getLogger(__name__)

#: Between two looks, at most.
LONGEST_PERIOD_S = 1.0


class Pulse:
    """One thread's sign of life; made by `Watchdog.watch`, stalled until its thread beats for too long a time."""

    def __init__(self, name: str, allowed_s: float, critical: bool, now: float, clock: Callable[[], float]) -> None:
        self.name = name
        self.allowed_s = allowed_s
        self.critical = critical
        self.seen = now
        self._clock = clock

    def beat(self) -> None:
        """Say that the thread has got on."""
        self.seen = self._clock()

    def idle(self) -> None:
        """Say that the thread waits for work, for as long as that takes, or has ended: not to be taken for a stall."""
        self.seen = math.inf


@contextmanager
def resting(pulse: Pulse | None) -> Iterator[None]:
    """Wait inside, for as long as it takes, in a thread that is watched if it has a pulse."""
    if pulse is not None:
        pulse.idle()
    yield
    if pulse is not None:
        pulse.beat()


@dataclass(frozen=True)
class Change:
    """A thread that has been silent for too long, or is back; `describe` says it to people."""

    name: str
    stalled: bool
    critical: bool
    silent_s: float

    @property
    def describe(self) -> str:
        """One line for people."""
        return f"stalled: {self.name}, silent for {self.silent_s:.1f} s" if self.stalled else f"recovered: {self.name}"


@dataclass
class _Watched:
    pulse: Pulse
    seen: float
    forgiven_s: float = 0.0
    stalled: bool = False


class Watchdog:
    """Looks at all pulses, in a thread of its own.

    Time in which it did not run itself (a suspended machine, a starved process) is nobody's silence.

    Args:
        on_change: called in its thread when a thread stalls, and when it recovers.
        on_look: called in its thread after each look, with the names of stalled critical threads; such as a
            `Notifier.tick`.
        period_s: between two looks; must be below what `on_look` is needed for.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        on_change: Callable[[Change], None] | None = None,
        on_look: Callable[[Sequence[str]], None] | None = None,
        period_s: float = LONGEST_PERIOD_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_change = on_change
        self._on_look = on_look
        self._period_s = min(period_s, LONGEST_PERIOD_S)
        self._clock = clock
        self._lock = threading.Lock()
        self._watched: list[_Watched] = []
        self._looked_at = clock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def watch(self, name: str, *, allowed_s: float, critical: bool = True) -> Pulse:
        """Return the pulse of one more thread.

        Args:
            name: the thread's, for people, such as `cam0 capture`.
            allowed_s: silence above is a stall: some times the longest work between two beats.
            critical: verdicts depend on it, so that the station should be started again where it stalls.
        """
        now = self._clock()
        pulse = Pulse(name, allowed_s, critical, now, self._clock)
        with self._lock:
            self._watched.append(_Watched(pulse, now))
        return pulse

    def forget(self, pulse: Pulse) -> None:
        """Watch it no more: its thread has ended."""
        with self._lock:
            self._watched = [each for each in self._watched if each.pulse is not pulse]

    def threads(self) -> dict[str, bool]:
        """Return each thread's name, and whether it is stalled."""
        with self._lock:
            return {each.pulse.name: each.stalled for each in self._watched}

    def stalled(self, *, critical: bool = False) -> list[str]:
        """Return the names of stalled threads, of the critical ones alone where asked to."""
        with self._lock:
            return [each.pulse.name for each in self._watched if each.stalled and (each.pulse.critical or not critical)]

    def look(self) -> list[Change]:
        """Look at every pulse now; return what has changed since the last look."""
        now = self._clock()
        held_up_s = max(0.0, now - self._looked_at - 2 * self._period_s)
        self._looked_at = now
        with self._lock:
            found = [self._judge(each, now, held_up_s) for each in self._watched]
        return [change for change in found if change is not None]

    def start(self) -> None:
        """Start looking."""
        self._looked_at = self._clock()
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def __enter__(self) -> Watchdog:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _judge(watched: _Watched, now: float, held_up_s: float) -> Change | None:
        pulse, seen = watched.pulse, watched.pulse.seen
        if seen != watched.seen:
            watched.seen, watched.forgiven_s = seen, 0.0
        else:
            watched.forgiven_s += held_up_s
        silent_s = now - seen - watched.forgiven_s
        stalled = silent_s > pulse.allowed_s
        if stalled == watched.stalled:
            return None
        watched.stalled = stalled
        return Change(pulse.name, stalled, pulse.critical, max(0.0, silent_s))

    def _run(self) -> None:
        while not self._ended.wait(self._period_s):
            for change in self.look():
                if self._on_change is not None:
                    self._call(self._on_change, change)
            if self._on_look is not None:
                self._call(self._on_look, self.stalled(critical=True))

    @staticmethod
    def _call(function: Callable[..., None], argument: object) -> None:
        try:
            function(argument)
        except Exception:  # noqa: BLE001  a failing listener must not end the watch, which would end the station
            _log.exception("what the watchdog calls has failed")
