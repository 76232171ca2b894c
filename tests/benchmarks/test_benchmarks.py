"""The long-running measurements, in short: that they still measure, and that nothing leaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.bench_events import load
from tests.benchmarks.soak import soak, verdicts
from tests.tiny_bundle import TinyBundle


@pytest.mark.slow
def test_two_minutes_at_full_rate_leave_the_station_as_it_was(tiny: TinyBundle) -> None:
    result = soak(tiny.path, 120.0, "sim:width=128,height=128", shared=True)
    assert result["not_flat"] == []
    assert result["events"] > 1200


def test_what_is_not_flat_is_named() -> None:
    start = {"memory_mib": 100.0, "files": 20, "threads": 10, "latency_p50_ms": 4.0}
    assert verdicts(start, start, brief=False) == []
    grown = {"memory_mib": 104.0, "files": 21, "threads": 11, "latency_p50_ms": 9.0}
    assert [reason.split()[0] for reason in verdicts(start, grown, brief=False)] == ["memory", "20", "10", "latency"]
    assert len(verdicts(start, grown, brief=True)) == 2


@pytest.mark.slow
def test_every_subscriber_gets_every_event_of_every_camera(tiny: TinyBundle, tmp_path: Path) -> None:
    result = load(tiny.path, tmp_path, cameras=2, subscribers=6, seconds=1.0, rate=50.0)
    assert result["subscribers"] == 6
    assert result["missed"] == 0
    assert result["verdicts_per_s"] > 0
