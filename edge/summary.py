"""What a run amounted to: counts, rate and latencies, in memory that does not grow with the frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
from rich.table import Table

from edge.events.schema import Event
from edge.inspection.result import Verdict

#: Stages in the order in which a frame passes them; `total` ends with the verdict, `publish` comes after it.
STAGES = ("capture", "queue", "before", "core", "after", "total", "publish")

PERCENTILES = (50, 95, 99)

# Bins a factor of 1.02 apart from 1 µs to 1000 s: percentiles are right to 1 %.
_LOWEST_MS = 1e-3
_STEP = math.log(1.02)
_BINS = math.ceil(math.log(1e9) / _STEP) + 1


class LatencyHistogram:
    """Counts latencies in fixed logarithmic bins; percentiles come out within 1 %, the maximum exactly."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self.count = 0
        self.max_ms = 0.0
        self.sum_ms = 0.0

    def add(self, ms: float) -> None:
        """Count one latency, in milliseconds."""
        position = round(math.log(max(ms, _LOWEST_MS) / _LOWEST_MS) / _STEP)
        self._counts[min(position, _BINS - 1)] += 1
        self.count += 1
        self.sum_ms += ms
        self.max_ms = max(self.max_ms, ms)

    def percentile(self, percent: float) -> float:
        """Return the latency, in milliseconds, that `percent` of all do not exceed; NaN when there are none."""
        if not self.count:
            return math.nan
        rank = math.ceil(self.count * percent / 100)
        position = int(np.searchsorted(np.cumsum(self._counts), max(rank, 1)))
        return min(_LOWEST_MS * math.exp(position * _STEP), self.max_ms)

    def cumulative(self, bounds_ms: Sequence[float]) -> list[int]:
        """Return how many latencies are at most each bound, within 1 % of it, and in the end how many there are.

        Args:
            bounds_ms: ascending, positive.
        """
        # Of one moment, while another thread may add more.
        totals = np.cumsum(self._counts)
        edges = [math.floor(math.log(bound / _LOWEST_MS) / _STEP) for bound in bounds_ms]
        return [int(totals[min(max(edge, 0), _BINS - 1)]) for edge in edges] + [int(totals[-1])]

    def as_dict(self) -> dict[str, float]:
        """Return p50, p95, p99 and max, in milliseconds."""
        figures = {f"p{percent}": round(self.percentile(percent), 3) for percent in PERCENTILES}
        return {**figures, "max": round(self.max_ms, 3)}


class Summary:
    """Counts of one station's run, from its start."""

    def __init__(self) -> None:
        self._started = self._last = perf_counter()
        self.verdicts = dict.fromkeys(Verdict, 0)
        self.latencies = {stage: LatencyHistogram() for stage in STAGES}
        self.skipped = 0
        self.timeouts = 0
        self.reconnects = 0

    def add(self, event: Event, publish_ms: float) -> None:
        """Count one event that has been published."""
        self._last = perf_counter()
        self.verdicts[event.verdict] += 1
        stages = {**event.latency_ms, "publish": publish_ms}
        for stage, histogram in self.latencies.items():
            if stage in stages:
                histogram.add(stages[stage])

    @property
    def frames(self) -> int:
        """Frames that got a verdict."""
        return sum(self.verdicts.values())

    @property
    def rate(self) -> float:
        """Frames per second, from the start to the last verdict."""
        seconds = self._last - self._started
        return self.frames / seconds if seconds > 0 else 0.0

    def counters(self) -> dict[str, int]:
        """Return all counts by name."""
        return {
            "frames": self.frames,
            **{verdict.value: count for verdict, count in self.verdicts.items()},
            "skipped": self.skipped,
            "timeouts": self.timeouts,
            "reconnects": self.reconnects,
        }

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data: counts, `rate_per_s`, and `latency_ms` as stage → p50, p95, p99, max."""
        return {
            **self.counters(),
            "rate_per_s": round(self.rate, 3),
            "latency_ms": {
                stage: histogram.as_dict() for stage, histogram in self.latencies.items() if histogram.count
            },
        }

    @property
    def headline(self) -> str:
        """Frames, rate and the counts that are not zero, in one line."""
        counts = [f"{name} {count}" for name, count in self.counters().items() if count and name != "frames"]
        return ", ".join([f"{self.frames} frames at {self.rate:.1f} per second", *counts])

    def table(self) -> Table:
        """Return the latencies by stage, in milliseconds."""
        table = Table("latency, ms")
        for heading in (*(f"p{percent}" for percent in PERCENTILES), "max"):
            table.add_column(heading, justify="right")
        for stage, histogram in self.latencies.items():
            if histogram.count:
                values = [*(histogram.percentile(percent) for percent in PERCENTILES), histogram.max_ms]
                table.add_row(stage, *(f"{value:.2f}" for value in values))
        return table
