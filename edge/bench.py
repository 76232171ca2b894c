"""Time the station, camera bytes to published event, on frames from memory.

The station runs as `edge-run` runs it: capture, inspection and publishing overlap, and a subscriber reads every event
over TCP on loopback.  Nothing is decided: both thresholds are infinite, as most parts of a line are good.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.bundle import Bundle
from edge.cameras.memory import MemoryCamera
from edge.cameras.sim import SimLine
from edge.errors import EdgeError, FrameError
from edge.events.codec import EventMessage, encode_event
from edge.events.publisher import Publisher
from edge.events.schema import Event
from edge.events.subscriber import Subscriber
from edge.frames import U8, Slot
from edge.inspection.inspector import Inspector
from edge.inspection.result import Verdict
from edge.inspection.runtime import STAGES, Runtime
from edge.inspection.select import open_runtime
from edge.station import SWITCH_INTERVAL_S, Station
from edge.summary import LatencyHistogram

#: Frames before the first that counts: caches, clocks and the ring come to rest.
WARM_UP = 10

_NAME = "bench"
_DIFFERENT_FRAMES = 8
_POLL_S = 0.2
# How long the last events may take from the publisher to the subscriber.
_ARRIVAL_S = 10.0

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Moved:
    """Bytes for one frame: copied into its slot, written as map and mask, and sent as an event (mean).

    `copies` between host and GPU, and `copied` bytes: means over the frames.
    """

    frame: int
    anomaly_map: int
    mask: int
    event: float
    copies: float = 0.0
    copied: float = 0.0


@dataclass(frozen=True)
class Timing:
    """What was measured, one value for each frame, in milliseconds.

    `stages` has `before`, `core` and `after`; `publish` is counted in bins of 2 %; `periods` lie between one frame's
    publishing and the next one's, so that there is one fewer.
    """

    runtime: str
    stages: dict[str, F64]
    publish: LatencyHistogram
    periods: F64
    moved: Moved

    @property
    def total(self) -> F64:
        """Camera bytes to verdict: before + core + after.  Frames from memory always queue; that is left out."""
        total: F64 = np.sum([self.stages[stage] for stage in STAGES], axis=0)
        return total

    @property
    def not_core(self) -> float:
        """The share of `total` that is not the network: the median over the frames."""
        return 1 - float(np.median(self.stages["core"] / self.total))

    @property
    def frames_per_s(self) -> float:
        """Frames per second: one over the median period."""
        return 1e3 / float(np.median(self.periods))


def simulated_frames(side: int) -> list[U8]:
    """Return a few different frames, uint8 BGR `(side, side, 3)`, of the simulated line."""
    line = SimLine(seed=0, width=side, height=side)
    return [line.part(index).image for index in range(_DIFFERENT_FRAMES)]


def time_station(
    bundle: Bundle,
    frames: Sequence[U8],
    count: int,
    *,
    runtime: str | Runtime = "auto",
    threads: int | None = None,
    precision: str = "f32",
) -> Timing:
    """Run the station over `count` frames, at least 2, after a warm-up.

    `runtime` is a name, or one that is open, which is closed at the end; `threads` and `precision` are for a name.

    Raises:
        BundleError: the bundle's model cannot be loaded.
        FrameError: a frame could not be inspected.
        RuntimeUnavailableError: the precision is not on this machine.
        EdgeError: an event was lost on loopback.
    """
    why = "given"
    if isinstance(runtime, str):
        runtime, why = open_runtime(bundle, runtime, threads=threads, precision=precision, timed=True)
    with (
        _as_edge_run(),
        Publisher("tcp://127.0.0.1:*", camera=_NAME) as publisher,
        Inspector(bundle, runtime=runtime, uncalibrated=True) as inspector,
        Subscriber(publisher.endpoint) as subscriber,
        _reading(subscriber, WARM_UP + count) as received,
    ):
        publisher.settle()
        _run(inspector, publisher, frames, WARM_UP)
        before = inspector.traffic
        timing = _run(inspector, publisher, frames, count)
        after = inspector.traffic
        description = f"{runtime.describe} ({why})"
    if [message.event.seq for message in received] != list(range(1, WARM_UP + count + 1)):
        raise EdgeError(
            f"{len(received)} of {WARM_UP + count} events arrived over loopback",
            "free the machine of other work and measure again",
        )
    sent = [sum(map(len, encode_event(message.event, message.mask))) for message in received[WARM_UP:]]
    stages, publish, ends, slot = timing
    return Timing(
        runtime=description,
        stages={stage: np.asarray(values) for stage, values in stages.items()},
        publish=publish,
        periods=np.diff(ends) * 1e3,
        moved=Moved(
            slot.pixels.nbytes,
            slot.anomaly_map.nbytes,
            slot.mask.nbytes,
            float(np.mean(sent)),
            (after.copies - before.copies) / count,
            (after.bytes - before.bytes) / count,
        ),
    )


def _run(
    inspector: Inspector, publisher: Publisher, frames: Sequence[U8], count: int
) -> tuple[dict[str, list[float]], LatencyHistogram, list[float], Slot]:
    """Run a station once; return its stages in ms, its publishing, when each result was out, in s, and a used slot."""
    stages: dict[str, list[float]] = {stage: [] for stage in STAGES}
    ends: list[float] = []
    used: list[Slot] = []

    def note(event: Event, mask: bytes, slot: Slot | None) -> None:
        ends.append(time.perf_counter())
        if slot is None or event.verdict is Verdict.FAULT:
            raise FrameError(f"a frame could not be inspected: {event.reason}")
        for stage, values in stages.items():
            values.append(event.latency_ms[stage])
        used[:] = [slot]

    station = Station(MemoryCamera(_NAME, frames, count), inspector, publisher, on_event=note)
    summary = station.run()
    return stages, summary.latencies["publish"], ends, used[0]


@contextmanager
def _reading(subscriber: Subscriber, count: int) -> Iterator[list[EventMessage]]:
    """Read events in a thread of their own; at the end wait until `count` have come, or none comes any more."""
    received: list[EventMessage] = []
    given_up = threading.Event()

    def read() -> None:
        while len(received) < count and not given_up.is_set():
            message = subscriber.receive(_POLL_S)
            if isinstance(message, EventMessage):
                received.append(message)

    reader = threading.Thread(target=read, name="subscriber")
    reader.start()
    try:
        yield received
        reader.join(_ARRIVAL_S)
    finally:
        given_up.set()
        reader.join()


@contextmanager
def _as_edge_run() -> Iterator[None]:
    """Let threads change places as often as they do in `edge-run`."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
