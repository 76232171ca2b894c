from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from edge.events.build import Origin, build_unseen
from edge.events.schema import Event
from edge.inspection.result import Verdict
from edge.parts import Ticket, Unseen
from edge.summary import STAGES, LatencyHistogram, Summary


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=300), st.sampled_from([1, 50, 95, 99, 100]))
def test_percentiles_are_right_to_one_percent(values: list[float], percent: int) -> None:
    histogram = LatencyHistogram()
    for value in values:
        histogram.add(value)
    expected = np.percentile(values, percent, method="inverted_cdf")
    assert histogram.percentile(percent) == pytest.approx(expected, rel=0.0101)
    assert histogram.max_ms == max(values)


def test_extremes_are_counted_too() -> None:
    histogram = LatencyHistogram()
    assert math.isnan(histogram.percentile(50))
    histogram.add(0.0)
    assert histogram.percentile(50) == 0.0
    histogram.add(1e12)
    assert (histogram.count, histogram.max_ms) == (2, 1e12)


def event(verdict: Verdict, **latency_ms: float) -> Event:
    unseen = Unseen(Ticket("P1", None, 0, 0), verdict, "")
    made = build_unseen(unseen, Origin("boot", "journal", 1, "cam0", "", "", 1.0, 1.0, 0))
    made.latency_ms = {"capture": 4.0, **latency_ms}
    return made


def test_a_summary_counts_and_shows() -> None:
    summary = Summary()
    for _ in range(3):
        summary.add(event(Verdict.OK, before=1.0, core=10.0, after=2.0, queue=0.5, total=17.5), publish_ms=0.1)
    summary.add(event(Verdict.FAULT, queue=0.5, total=5.0), publish_ms=0.1)
    summary.skipped = 7

    told = summary.as_dict()
    assert (told["frames"], told["ok"], told["ng"], told["late"], told["fault"], told["skipped"]) == (4, 3, 0, 0, 1, 7)
    assert told["rate_per_s"] > 0
    assert list(told["latency_ms"]) == ["capture", "queue", "before", "core", "after", "total", "publish"]
    assert told["latency_ms"]["core"] == pytest.approx({"p50": 10.0, "p95": 10.0, "p99": 10.0, "max": 10.0}, rel=0.01)
    assert told["latency_ms"]["total"]["p50"] == pytest.approx(17.5, rel=0.01)

    assert summary.headline.startswith("4 frames at ")
    assert summary.headline.endswith(" per second, ok 3, fault 1, skipped 7")
    text = "".join(segment.text for segment in Console(width=100).render(summary.table()))
    assert all(word in text for word in ("p50", "p95", "p99", "max", *STAGES))
    assert "17.50" in text


def test_a_run_without_frames_has_a_table_too() -> None:
    summary = Summary()
    assert summary.as_dict()["latency_ms"] == {}
    assert summary.table().row_count == 0
