from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from edge import machine
from edge.summary import LatencyHistogram
from edge.supervision.metrics import BOUNDS_MS, MetricsPage, StationCollector
from edge.supervision.report import StationReport

DOCS = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")


def samples(report: StationReport) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    page = MetricsPage(lambda: report).render().decode()
    found = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_the_report_comes_out(report: StationReport) -> None:
    found = samples(report)
    cam0 = ("camera", "cam0")
    assert found["redi_up", ()] == 1
    assert found["redi_frames_total", (cam0,)] == 100
    assert found["redi_verdicts_total", (cam0, ("verdict", "ng"))] == 7
    assert found["redi_verdicts_total", (("camera", 'cam "1"\n'), ("verdict", "late"))] == 0
    assert found["redi_skipped_frames_total", (cam0,)] == 5
    assert found["redi_queue_frames", (cam0, ("for", "inspector"))] == 1
    assert found["redi_seconds_since_frame", (cam0,)] == 0.25
    assert found["redi_journal_bytes", (cam0,)] == 123_456
    assert found["redi_archive_dropped_images_total", (cam0,)] == 3
    assert found["redi_cache_hits_total", (("cache", "kernels"),)] == 8
    assert found["redi_bundle_info", (("bundle_id", "b1"), ("calibration_id", "c1"), cam0)] == 1
    assert found["redi_refused_connections_total", ()] == 4
    assert found["redi_memory_available_bytes", ()] > 0
    assert found["process_open_fds", ()] > 0


def test_latencies_are_cumulative_in_seconds(report: StationReport, latencies: LatencyHistogram) -> None:
    found = samples(report)
    labels = (("camera", "cam0"), ("stage", "total"))

    def bucket(bound: str) -> float:
        return found["redi_latency_seconds_bucket", (labels[0], ("le", bound), labels[1])]

    assert [bucket(le) for le in ("0.00025", "0.0025", "0.005", "0.025", "0.05", "10.0", "+Inf")] == [
        1,
        1,
        3,
        3,
        4,
        4,
        5,
    ]
    assert found["redi_latency_seconds_count", labels] == 5
    assert found["redi_latency_seconds_sum", labels] == pytest.approx(20.0461)


def test_buckets_count_what_is_at_most_their_bound_within_a_bin() -> None:
    values = np.exp(np.random.default_rng(0).uniform(np.log(1e-3), np.log(1e5), 3000))
    histogram = LatencyHistogram()
    for value in values:
        histogram.add(value)
    counted = histogram.cumulative(BOUNDS_MS)
    assert counted[-1] == 3000
    for bound, count in zip(BOUNDS_MS, counted, strict=False):
        assert np.sum(values <= bound / 1.0101) <= count <= np.sum(values <= bound * 1.0101)


def documented() -> dict[str, tuple[str, set[str]]]:
    rows = re.findall(r"^\| `(redi_\w+)` \| (\w+) \| ([^|]*)\|", DOCS, re.MULTILINE)
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def test_the_table_lists_the_metrics(report: StationReport, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    zone = tmp_path / "class/thermal/thermal_zone0"
    core = tmp_path / "devices/system/cpu/cpu0/cpufreq"
    for folder in (zone, core):
        folder.mkdir(parents=True)
    (zone / "temp").write_text("47250\n")
    (zone / "type").write_text("cpu-thermal\n")
    (core / "scaling_cur_freq").write_text("1500000\n")
    monkeypatch.setattr(machine, "_SYS", tmp_path)
    families = {}
    for family in StationCollector(lambda: report).collect():
        assert family.samples, family.name
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = set().union(*(sample.labels for sample in family.samples)) - {"le"}
        families[name] = (family.type, labels)
        if family.name == "redi_temperature_celsius":
            assert [(sample.labels, sample.value) for sample in family.samples] == [
                ({"zone": "thermal_zone0 cpu-thermal"}, 47.25)
            ]
        if family.name == "redi_cpu_clock_hertz":
            assert {sample.value for sample in family.samples} == {1.5e9}
    assert documented() == families


def test_an_empty_station_has_metrics_too() -> None:
    found = samples(StationReport())
    assert found["redi_up", ()] == 0


def test_zones_that_cannot_be_read_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_SYS", tmp_path)
    assert machine.temperatures() == {}
    for number, text in enumerate(["-5000", "", "hot", "61000"]):
        zone = tmp_path / f"class/thermal/thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "temp").write_text(text)
    assert machine.temperatures() == {"thermal_zone0": -5.0, "thermal_zone3": 61.0}
