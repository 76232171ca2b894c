"""A station's metrics as Prometheus reads them; `docs/operations.md` lists them, and a test compares."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from edge import __version__, machine
from edge.inspection.result import Verdict
from edge.supervision.report import CameraReport, Health, StationReport

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: Upper bounds of the latency histograms' buckets, in milliseconds: from a kernel's time to a deadline's.
BOUNDS_MS = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 10_000.0)

_MHZ = 1_000_000


class StationCollector(Collector):
    """Turns a station's report into metrics, anew at each collection.

    Args:
        report: returns the report.
        machine_too: also read this machine's temperatures, clocks and memory.
    """

    def __init__(self, report: Callable[[], StationReport], *, machine_too: bool = True) -> None:
        self._report = report
        self._machine_too = machine_too

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics of one moment."""
        report = self._report()
        yield from _station(report)
        yield from _cameras(report)
        yield from _latencies(report)
        yield from _journals(report)
        yield from _archive(report)
        if self._machine_too:
            yield from _machine()


class MetricsPage:
    """Renders a station's metrics, with those of its process, as Prometheus' text."""

    def __init__(self, report: Callable[[], StationReport]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(StationCollector(report))
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """Return the page."""
        return generate_latest(self._registry)


def _station(report: StationReport) -> Iterator[Metric]:
    info = GaugeMetricFamily("redi_build_info", "1, with the release", labels=("version",))
    info.add_metric((__version__,), 1)
    yield info
    yield GaugeMetricFamily("redi_up", "1 while every camera gives verdicts", value=report.health is not Health.FAILING)
    stalled = GaugeMetricFamily("redi_thread_stalled", "1 while the thread is silent for too long", labels=("thread",))
    for name, is_stalled in report.threads.items():
        stalled.add_metric((name,), is_stalled)
    yield stalled
    yield CounterMetricFamily("redi_refused_connections", "Attempts to connect that were refused", value=report.refused)
    hits = CounterMetricFamily("redi_cache_hits", "Times that a cache had what was asked for", labels=("cache",))
    misses = CounterMetricFamily("redi_cache_misses", "Times that it had not", labels=("cache",))
    promotions = CounterMetricFamily("redi_cache_promotions", "Entries that it took in later", labels=("cache",))
    size = GaugeMetricFamily("redi_cache_bytes", "Memory that its entries take", labels=("cache",))
    for name, cache in report.caches.items():
        hits.add_metric((name,), cache.hits)
        misses.add_metric((name,), cache.misses)
        promotions.add_metric((name,), cache.promotions)
        size.add_metric((name,), cache.bytes)
    yield from (hits, misses, promotions, size)


def _cameras(report: StationReport) -> Iterator[Metric]:
    verdicts = CounterMetricFamily("redi_verdicts", "Verdicts published, by kind", labels=("camera", "verdict"))
    for camera in report.cameras:
        for verdict in Verdict:
            verdicts.add_metric((camera.name, verdict.value), camera.verdicts.get(verdict, 0))
    yield verdicts
    counted: tuple[tuple[str, str, Callable[[CameraReport], int]], ...] = (
        ("redi_frames", "Frames that got a verdict", lambda camera: camera.frames),
        ("redi_skipped_frames", "Frames not inspected because newer ones came", lambda camera: camera.skipped),
        ("redi_camera_timeouts", "Silences of the camera beyond the time-out", lambda camera: camera.timeouts),
        ("redi_camera_reconnects", "Times that a lost camera was opened again", lambda camera: camera.reconnects),
        ("redi_archived_images", "Pictures written to the archive", lambda camera: camera.archived),
        ("redi_archive_dropped_images", "Pictures that it could not take", lambda camera: camera.archive_dropped),
    )
    for name, text, count in counted:
        counter = CounterMetricFamily(name, text, labels=("camera",))
        for camera in report.cameras:
            counter.add_metric((camera.name,), count(camera))
        yield counter
    up = GaugeMetricFamily("redi_camera_up", "1 while the camera gives verdicts", labels=("camera",))
    silent = GaugeMetricFamily("redi_seconds_since_frame", "Time since the camera's last frame", labels=("camera",))
    queues = GaugeMetricFamily("redi_queue_frames", "Frames that wait, by whom they wait for", labels=("camera", "for"))
    bundles = GaugeMetricFamily(
        "redi_bundle_info", "1, with what decides", labels=("camera", "bundle_id", "calibration_id")
    )
    for camera in report.cameras:
        up.add_metric((camera.name,), not camera.reasons)
        if camera.silent_s is not None:
            silent.add_metric((camera.name,), camera.silent_s)
        for name, depth in camera.queues.items():
            queues.add_metric((camera.name, name), depth)
        bundles.add_metric((camera.name, camera.bundle_id, camera.calibration_id), 1)
    yield from (up, silent, queues, bundles)


def _latencies(report: StationReport) -> Iterator[Metric]:
    latencies = HistogramMetricFamily("redi_latency_seconds", "Latencies by stage", labels=("camera", "stage"))
    bounds = [*(str(bound / 1000) for bound in BOUNDS_MS), "+Inf"]
    for camera in report.cameras:
        for stage, histogram in camera.latencies.items():
            counts = histogram.cumulative(BOUNDS_MS)
            buckets = [(bound, float(count)) for bound, count in zip(bounds, counts, strict=True)]
            latencies.add_metric((camera.name, stage), buckets, histogram.sum_ms / 1000)
    yield latencies


def _journals(report: StationReport) -> Iterator[Metric]:
    degraded = GaugeMetricFamily("redi_journal_degraded", "1 while events are only in memory", labels=("camera",))
    size = GaugeMetricFamily("redi_journal_bytes", "The journal's size on the disk", labels=("camera",))
    waiting = GaugeMetricFamily("redi_journal_waiting_events", "Events not on the disk yet", labels=("camera",))
    first = GaugeMetricFamily("redi_journal_first_seq", "Oldest event that can be replayed", labels=("camera",))
    last = GaugeMetricFamily("redi_journal_last_seq", "Last event", labels=("camera",))
    for camera in report.cameras:
        journal = camera.journal
        if journal is not None:
            degraded.add_metric((camera.name,), journal.state != "ok")
            size.add_metric((camera.name,), journal.bytes)
            waiting.add_metric((camera.name,), journal.waiting)
            first.add_metric((camera.name,), journal.first_seq)
            last.add_metric((camera.name,), journal.last_seq)
    yield from (degraded, size, waiting, first, last)


def _archive(report: StationReport) -> Iterator[Metric]:
    archive = report.archive
    degraded = GaugeMetricFamily("redi_archive_degraded", "1 while the archive cannot be written")
    size = GaugeMetricFamily("redi_archive_bytes", "The archive's size")
    budget = GaugeMetricFamily("redi_archive_budget_bytes", "Size from which the oldest pictures are deleted")
    if archive is not None:
        degraded.add_metric((), archive.state != "ok")
        size.add_metric((), archive.bytes)
        budget.add_metric((), archive.budget_bytes)
    yield from (degraded, size, budget)


def _machine() -> Iterator[Metric]:
    celsius = GaugeMetricFamily("redi_temperature_celsius", "Temperatures, where readable", labels=("zone",))
    for zone, degrees in machine.temperatures().items():
        celsius.add_metric((zone,), degrees)
    yield celsius
    speed = machine.clock()
    hertz = GaugeMetricFamily("redi_cpu_clock_hertz", "Clock of the slowest and fastest core now", labels=("core",))
    if speed.mhz is not None:
        for core, mhz in zip(("slowest", "fastest"), speed.mhz, strict=True):
            hertz.add_metric((core,), mhz * _MHZ)
    yield hertz
    available = GaugeMetricFamily("redi_memory_available_bytes", "Memory that is available")
    # Not told everywhere.
    with contextlib.suppress(OSError, KeyError):
        available.add_metric((), machine.memory()[1])
    yield available
