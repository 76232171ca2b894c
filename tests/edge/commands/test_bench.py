from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import edge.bench
from edge.bench import Moved, Timing, time_station
from edge.bundle import Bundle
from edge.cameras.base import EndOfStream
from edge.cameras.memory import MemoryCamera
from edge.commands.bench import _parser, main
from edge.errors import EdgeError, FrameError
from edge.events.subscriber import Subscriber
from edge.frames import PixelFormat, Slot, aligned_bytes, aligned_f32
from edge.inspection.portable import PRECISIONS
from edge.summary import LatencyHistogram
from tests.tiny_bundle import TinyBundle, Weights, core_graph, write_tiny_bundle

STAGES = ["before", "core", "after", "total", "publish"]


def test_json_has_every_stage_and_all_bytes(tiny: TinyBundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny.path), "--frames", "7", "--side", "80", "--threads", "1", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    assert (report["frames"], report["frame"]) == (7, [80, 80])
    assert report["runtime"].startswith("portable: OpenVINO")
    assert 0 < report["not_core"] < 1
    assert report["frames_per_s"] > 0
    assert list(report["latency_ms"]) == STAGES
    for row in report["latency_ms"].values():
        assert 0 < row["p50"] <= row["p95"] <= row["p99"] <= row["max"]
    latest = {stage: row["max"] for stage, row in report["latency_ms"].items()}
    assert latest["total"] >= max(latest["before"], latest["core"], latest["after"])
    # The tiny model's input is 64 x 64: a float32 map, a mask of bits.
    moved = report["bytes_per_frame"]
    assert (moved["frame"], moved["map"], moved["mask"]) == (80 * 80 * 3, 64 * 64 * 4, 64 * 64 // 8)
    assert moved["event"] > 100
    assert set(report["cpu"]) == {"governors", "mhz"}


def test_the_table(tiny: TinyBundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny.path), "--frames", "2", "--side", "64", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    for word in (*STAGES, "p50", "p95", "p99", "max", "frames/s", "not core", "copied into the slot", "governor"):
        assert word in out


def test_figures_are_what_their_names_say() -> None:
    timing = Timing(
        runtime="",
        stages={"before": np.array([1.0, 2, 1]), "core": np.array([8.0, 5, 6]), "after": np.array([1.0, 3, 1])},
        publish=LatencyHistogram(),
        periods=np.array([20.0, 40, 1000]),
        moved=Moved(0, 0, 0, 0),
    )
    assert timing.total.tolist() == [10, 10, 8]
    assert timing.not_core == pytest.approx(0.25)
    assert timing.frames_per_s == pytest.approx(25)


def test_the_memory_camera_goes_round_and_ends() -> None:
    frames = [np.full((4, 6, 3), value, np.uint8) for value in (10, 20)] + [np.full((5, 3), 30, np.uint8)]
    slot = Slot(0, aligned_bytes(10), aligned_f32(1, 8), aligned_bytes(1).reshape(1, 1))
    with MemoryCamera("mem", frames, 4) as camera:
        assert (camera.live, camera.total, camera.name) == (False, 4, "mem")
        for number in range(4):
            before_ns = time.monotonic_ns()
            assert camera.capture(slot, 0.0)
            assert np.array_equal(slot.pixels, frames[number % 3])
            assert slot.pixels.base is not frames[number % 3]
            assert slot.pixel_format is (PixelFormat.MONO8 if number == 2 else PixelFormat.BGR8)
            assert (slot.meta.frame_id, slot.meta.error) == (number, None)
            assert before_ns <= slot.meta.captured_ns <= time.monotonic_ns()
        with pytest.raises(EndOfStream):
            camera.capture(slot, 0.0)


def test_frames_that_cannot_be_inspected_end_it(tiny: TinyBundle) -> None:
    black = np.zeros((64, 64, 3), np.uint8)
    with Bundle.open(tiny.path) as bundle, pytest.raises(FrameError, match="all black"):
        time_station(bundle, [black], 5, threads=1)
    assert "subscriber" not in {thread.name for thread in threading.enumerate()}


def test_a_network_that_cannot_judge_has_no_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = Weights()
    weights.down[0][:] = np.nan
    path = write_tiny_bundle(tmp_path / "redi.plan", core=core_graph(weights)).path
    assert main([str(path), "--frames", "2", "--side", "64", "--threads", "1"]) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "not finite" in captured.err


def test_lost_events_are_no_measurement(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(Subscriber):
        def receive(self, timeout_s: float):
            message = super().receive(timeout_s)
            lost = getattr(getattr(message, "event", None), "seq", 0) == 3
            return super().receive(timeout_s) if lost else message

    monkeypatch.setattr(edge.bench, "Subscriber", Forgetful)
    monkeypatch.setattr(edge.bench, "_ARRIVAL_S", 0.3)
    with Bundle.open(tiny.path) as bundle, pytest.raises(EdgeError, match="11 of 12 events"):
        time_station(bundle, [tiny.product.good(0)], 2, threads=1)


def test_a_missing_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.plan")]) == 3
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--frames", "1"], ["--frames", "-3"], ["--side", "63"], ["--side", "5000"]])
def test_arguments_that_make_no_sense(tiny: TinyBundle, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(tiny.path), *arguments])
    assert ended.value.code == 2


def test_help_lists_exit_codes_and_precisions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "exit codes" in capsys.readouterr().out
    assert next(a.choices for a in _parser()._actions if a.dest == "precision") == PRECISIONS
