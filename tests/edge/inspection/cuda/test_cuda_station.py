"""A station on the emulated device: its threads, its verdicts, and its end when the device fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.bundle import Bundle
from edge.cameras.base import Camera
from edge.cameras.memory import MemoryCamera
from edge.commands.bench import main
from edge.errors import CudaError
from edge.events.publisher import Publisher
from edge.events.schema import Event
from edge.frames import Slot
from edge.inspection.cuda.runtime import CudaRuntime
from edge.inspection.inspector import Inspector
from edge.inspection.result import Verdict
from edge.line import Line
from edge.station import Station
from tests.edge.inspection.cuda.cases import FRAME_BYTES, PRODUCT
from tests.edge.inspection.cuda.emulated import EmulatedGpu, EmulatedGraph
from tests.edge.inspection.cuda.network import NetworkEngine
from tests.tiny_bundle import TinyBundle


class Silent(Camera):
    """A camera of whose parts none comes."""

    def __init__(self) -> None:
        super().__init__("silent", live=True)
        self._never = threading.Event()

    def capture(self, slot: Slot, timeout_s: float) -> bool:
        return self._never.wait(min(timeout_s, 0.05))


@pytest.fixture
def inspectors(tiny: TinyBundle) -> Iterator[list[Inspector]]:
    """Two of one model, on a device that does its work in any order."""
    with Bundle.open(tiny.path) as bundle:
        gpu = EmulatedGpu(seed=2)
        first = CudaRuntime(bundle, gpu=gpu, engine=NetworkEngine(bundle, gpu))
        made = [Inspector(bundle, runtime=runtime) for runtime in (first, CudaRuntime(bundle, share=first))]
        yield made
        for inspector in made:
            inspector.close()


def station(camera: Camera, inspector: Inspector, events: list[Event]) -> Station:
    publisher = Publisher(None, camera=camera.name)
    return Station(camera, inspector, publisher, slots=3, on_event=lambda event, mask, slot: events.append(event))


def test_every_frame_gets_its_verdict_while_others_are_under_way(
    inspectors: list[Inspector], tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspector, events = inspectors[0], list[Event]()
    inspector.verify_golden()
    threads = set()
    upload = CudaRuntime._upload

    def noted(self: CudaRuntime, *args: object) -> None:
        threads.add(threading.current_thread().name)
        upload(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(CudaRuntime, "_upload", noted)
    frames = [PRODUCT.defective(index) if index % 3 == 2 else PRODUCT.good(index) for index in range(8)]
    station(MemoryCamera("cam", frames, 8), inspector, events).run()
    assert [event.verdict for event in events] == [Verdict.NG if index % 3 == 2 else Verdict.OK for index in range(8)]
    for event, image in zip(events, frames, strict=True):
        assert event.score == pytest.approx(tiny.score(image)[0], rel=2e-3)
    assert threads == {"capture"}, "frames are on their way before the inspector takes them"
    assert inspector.traffic.bytes > 8 * FRAME_BYTES
    assert inspector.caches["prompts"].hits == 8 + len(inspector.golden)


def test_a_gpu_that_fails_ends_all_stations_and_no_frame_passes(
    inspectors: list[Inspector], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = 0
    launch = EmulatedGraph.launch

    def failing(self: EmulatedGraph, stream: object) -> None:
        nonlocal launched
        launched += 1
        if launched > 14:
            raise CudaError("cuGraphLaunch: CUDA_ERROR_ILLEGAL_ADDRESS")
        launch(self, stream)  # type: ignore[arg-type]

    monkeypatch.setattr(EmulatedGraph, "launch", failing)
    events: list[Event] = []
    frames = [PRODUCT.good(index) for index in range(40)]
    camera = MemoryCamera("cam", frames, 40)
    line = Line([station(camera, inspectors[0], events), station(Silent(), inspectors[1], [])])
    with pytest.raises(CudaError, match="ILLEGAL_ADDRESS") as caught:
        line.run()
    assert caught.value.exit_code == 6, "for which the service starts it again"
    verdicts = [event.verdict for event in events]
    good = verdicts.index(Verdict.FAULT)
    # Each of three slots is recorded, and timed in three parts, at its first frame.
    assert good == 8
    assert set(verdicts[good:]) == {Verdict.FAULT}
    assert "ILLEGAL_ADDRESS" in events[good].reason
    assert all(event.score is None for event in events[good:])


def test_the_station_is_timed_with_its_copies(
    tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def open_emulated(bundle: Bundle, name: str, **settings: object) -> tuple[CudaRuntime, str]:
        assert (name, settings["timed"]) == ("cuda", True)
        gpu = EmulatedGpu()
        return CudaRuntime(bundle, gpu=gpu, engine=NetworkEngine(bundle, gpu), timed=True), "asked for"

    monkeypatch.setattr("edge.bench.open_runtime", open_emulated)
    monkeypatch.setattr("edge.bench.WARM_UP", 1)
    arguments = [str(tiny.path), "--runtime", "cuda", "--frames", "2", "--side", "64"]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["runtime"].startswith("cuda: a network of tests on Emulated")
    assert report["gpu_copies_per_frame"] == 2
    # The frame; and map, mask, score, peak and prompt.
    assert report["bytes_per_frame"]["to_and_from_gpu"] == 64 * 64 * 3 + 64 * 64 * 4 + 64 * 64 // 8 + 12
    assert set(report["gpu"]) >= {"mhz", "power_w", "mode"}
    assert main(arguments) == 0
    assert "2.0 copies of 29196 bytes" in capsys.readouterr().out


def test_the_service_starts_again_after_a_failed_gpu() -> None:
    unit = Path(__file__).parents[4] / "deploy/systemd/redi-station@.service"
    settings = dict(line.split("=", 1) for line in unit.read_text().splitlines() if "=" in line and line[0].isalpha())
    assert settings["Restart"] == "always"
    assert str(CudaError.exit_code) not in settings["RestartPreventExitStatus"].split()
