"""What a station says of itself to those who supervise it: one snapshot, from which health and metrics are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from edge.inspection.result import Verdict
from edge.inspection.runtime import CacheReport
from edge.summary import LatencyHistogram


class Health(Enum):
    """The whole station in one word.

    `OK` and `DEGRADED` give verdicts; with the latter something beside the line fails, such as the disk of the
    archive.  `FAILING`: a camera gives no verdicts, or a thread that they depend on is stalled.
    """

    OK = "ok"
    DEGRADED = "degraded"
    FAILING = "failing"


@dataclass(frozen=True)
class JournalReport:
    """One camera's journal: its `JournalState` by value, its size on the disk, and its events.

    `waiting` events are in memory, not on the disk yet.
    """

    state: str
    bytes: int = 0
    first_seq: int = 0
    last_seq: int = 0
    waiting: int = 0


@dataclass(frozen=True)
class ArchiveReport:
    """The image archive: `ok` or `degraded` and why, what it holds, and what it may hold."""

    state: str
    bytes: int = 0
    budget_bytes: int = 0
    problem: str = ""


@dataclass(frozen=True)
class CameraReport:
    """One camera and its line.

    Attributes:
        name: the camera's.
        state: as in its status: `starting`, `running`, `blind` (without frames) or `stopped`.
        verdicts: published, by kind.
        skipped, timeouts, reconnects: as `Summary` counts them.
        latencies: by stage; may be added to while they are read.
        queues: slots that wait, by whom they wait for: `inspector`, `publisher`.
        silent_s: seconds since its last frame; None before the first.
        journal: None where it keeps none.
        archived, archive_dropped: pictures written, and those that could not be.
        bundle_id, calibration_id: what decides now.
        problems: why it gives no verdicts, for people; empty while it does.
    """

    name: str
    state: str
    verdicts: Mapping[Verdict, int] = field(default_factory=dict)
    skipped: int = 0
    timeouts: int = 0
    reconnects: int = 0
    latencies: Mapping[str, LatencyHistogram] = field(default_factory=dict)
    queues: Mapping[str, int] = field(default_factory=dict)
    silent_s: float | None = None
    journal: JournalReport | None = None
    archived: int = 0
    archive_dropped: int = 0
    bundle_id: str = ""
    calibration_id: str = ""
    problems: Sequence[str] = ()

    @property
    def frames(self) -> int:
        """Frames that got a verdict."""
        return sum(self.verdicts.values())

    @property
    def reasons(self) -> list[str]:
        """Why it gives no verdicts; empty while it does."""
        if self.problems:
            return list(self.problems)
        return [] if self.state == "running" else [f"the camera is {self.state}"]


@dataclass(frozen=True)
class StationReport:
    """The station.

    Attributes:
        cameras: each of them.
        threads: all that are watched, by name: whether each is stalled (`Watchdog.threads`).
        stalled: those of the stalled on which verdicts depend (`Watchdog.stalled(critical=True)`).
        archive: None where there is none.
        caches: by name.
        refused: attempts to connect that were refused.
        problems: why the station gives no verdicts, beside what cameras and threads say.
    """

    cameras: Sequence[CameraReport] = ()
    threads: Mapping[str, bool] = field(default_factory=dict)
    stalled: Sequence[str] = ()
    archive: ArchiveReport | None = None
    caches: Mapping[str, CacheReport] = field(default_factory=dict)
    refused: int = 0
    problems: Sequence[str] = ()

    @property
    def reasons(self) -> list[str]:
        """Why verdicts are missing, for people; empty while all is well."""
        found = [*self.problems, *(f"stalled: {name}" for name in self.stalled)]
        if not self.cameras:
            found.append("no camera has been opened yet")
        return found + [f"{camera.name}: {reason}" for camera in self.cameras for reason in camera.reasons]

    @property
    def warnings(self) -> list[str]:
        """What fails beside the line, for people."""
        found = [f"stalled: {name}" for name, stalled in self.threads.items() if stalled and name not in self.stalled]
        found += [
            f"{camera.name}: the journal is {camera.journal.state}"
            for camera in self.cameras
            if camera.journal is not None and camera.journal.state != "ok"
        ]
        if self.archive is not None and self.archive.state != "ok":
            found.append(f"the archive is {self.archive.state}: {self.archive.problem}".rstrip(": "))
        return found

    @property
    def health(self) -> Health:
        """All of it in one word."""
        if self.reasons:
            return Health.FAILING
        return Health.DEGRADED if self.warnings else Health.OK
