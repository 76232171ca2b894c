from __future__ import annotations

import pytest

from edge.inspection.result import Verdict
from edge.summary import LatencyHistogram
from edge.supervision.report import ArchiveReport, CacheReport, CameraReport, JournalReport, StationReport


@pytest.fixture
def latencies() -> LatencyHistogram:
    made = LatencyHistogram()
    for ms in (0.1, 3.0, 3.0, 40.0, 20_000.0):
        made.add(ms)
    return made


@pytest.fixture
def report(latencies: LatencyHistogram) -> StationReport:
    camera = CameraReport(
        name="cam0",
        state="running",
        verdicts={Verdict.OK: 90, Verdict.NG: 7, Verdict.LATE: 2, Verdict.FAULT: 1},
        skipped=5,
        timeouts=1,
        reconnects=2,
        latencies={"total": latencies},
        queues={"inspector": 1, "publisher": 0},
        silent_s=0.25,
        journal=JournalReport("ok", 123_456, 10, 109, 0),
        archived=10,
        archive_dropped=3,
        bundle_id="b1",
        calibration_id="c1",
    )
    return StationReport(
        cameras=(camera, CameraReport('cam "1"\n', "running")),
        threads={"capture": False, "archive": False},
        archive=ArchiveReport("ok", 5000, 10_000),
        caches={"kernels": CacheReport(8, 2)},
        refused=4,
    )
