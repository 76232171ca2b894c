"""Changing the bundle while stations run, and several stations in one process."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from edge.bundle import Bundle, set_calibration
from edge.cameras.base import Camera, place
from edge.errors import CameraError
from edge.events import requests
from edge.events.client import ControlClient
from edge.events.control import Control
from edge.events.publisher import Publisher
from edge.events.requests import RequestError, Switch, Switched
from edge.events.schema import Event
from edge.frames import Slot
from edge.inspection.inspector import Inspector
from edge.line import Line
from edge.manifest import CanvasSpec
from edge.recipe import BundleFollower, Recipes, serve_recipes
from edge.station import Station
from tests.tiny_bundle import TinyBundle, TinyProduct, write_tiny_bundle

LIMIT_S = 30.0
PRODUCT = TinyProduct()


class Belt(Camera):
    """The same good part again and again; lost where it is told so."""

    def __init__(self, name: str) -> None:
        super().__init__(name, live=True)
        self.lost = threading.Event()

    def capture(self, slot: Slot, timeout_s: float) -> bool:
        if self.lost.wait(0.003):
            raise CameraError("the cable is out")
        place(slot, PRODUCT.good(0))
        self._stamp(slot, "part", time.monotonic_ns())
        return True


class Plant:
    """Stations that inspect, and the events of each."""

    def __init__(self, bundle: Path, names: tuple[str, ...]) -> None:
        self.said: list[str] = []
        self.bundles: list[Bundle] = []
        self.events: dict[str, list[Event]] = {name: [] for name in names}
        self._arrived = threading.Condition()
        self.cameras = {name: Belt(name) for name in names}
        self.recipes = Recipes(
            self._open, lambda bundle, share: Inspector(bundle, threads=1, share=share), self.said.append
        )
        inspectors = self.recipes.load(bundle, len(names))
        self.stations = [
            Station(self.cameras[name], inspector, Publisher(None, camera=name), on_event=self._note)
            for name, inspector in zip(names, inspectors, strict=True)
        ]
        self.recipes.attach(self.stations)
        self.line = Line(self.stations)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _open(self, path: Path) -> Bundle:
        self.bundles.append(Bundle.open(path, resident=True))
        return self.bundles[-1]

    def _run(self) -> None:
        try:
            self.line.run()
        except CameraError as error:
            self.error = error

    def _note(self, event: Event, mask: bytes, slot: Slot | None) -> None:
        with self._arrived:
            self.events[event.camera].append(event)
            self._arrived.notify_all()

    def wait(self, name: str, ready: Callable[[Event], bool] = lambda event: True) -> Event:
        """Return the next event of a camera that is as wanted."""
        with self._arrived:
            seen = len(self.events[name])
            assert self._arrived.wait_for(lambda: any(map(ready, self.events[name][seen:])), LIMIT_S)
            return next(filter(ready, self.events[name][seen:]))

    def end(self) -> None:
        self.line.stop()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()
        self.recipes.close()


@pytest.fixture
def plant(tiny: TinyBundle) -> Iterator[Plant]:
    plant = Plant(tiny.path, ("left", "right"))
    yield plant
    plant.end()


@pytest.fixture
def stricter(tiny: TinyBundle, tmp_path: Path) -> Path:
    """The same model with another threshold."""
    path = Path(shutil.copy(tiny.path, tmp_path / "stricter.plan"))
    with Bundle.open(path) as bundle:
        rule = bundle.calibration
    assert rule is not None
    set_calibration(path, replace(rule, threshold=rule.threshold / 2, pixel_threshold=rule.pixel_threshold / 2))
    return path


def test_cameras_share_one_copy_of_the_weights(plant: Plant) -> None:
    left, right = (station.inspector for station in plant.stations)
    assert left is not right
    assert left._runtime._model is right._runtime._model  # type: ignore[attr-defined]
    assert plant.wait("left").score == plant.wait("right").score


def test_a_calibration_takes_over_between_two_frames(plant: Plant, stricter: Path) -> None:
    before = plant.wait("left")
    model = plant.stations[0].inspector._runtime._model  # type: ignore[attr-defined]
    switched = plant.recipes.switch(stricter)
    after = plant.wait("left", lambda event: event.calibration_id == switched.calibration_id)
    assert (after.bundle_id, after.threshold) == (before.bundle_id, before.threshold and before.threshold / 2)
    # Nothing was compiled anew, and nothing of the bundle before is still open.
    assert plant.stations[0].inspector._runtime._model is model  # type: ignore[attr-defined]
    plant.wait("right", lambda event: event.calibration_id == switched.calibration_id)
    ids = [event.calibration_id for event in plant.events["left"]]
    assert ids == sorted(ids, key=[before.calibration_id, switched.calibration_id].index)
    assert [event.seq for event in plant.events["left"]] == list(range(1, len(ids) + 1))


def test_a_bundle_of_another_size_takes_over_on_one_camera(plant: Plant, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "tiles.plan", canvas=CanvasSpec(columns=2, overlap=32))
    plant.wait("left")
    switched = plant.recipes.switch(tmp_path / "tiles.plan", "left")
    after = plant.wait("left", lambda event: event.bundle_id == switched.bundle_id)
    assert after.mask_size != plant.wait("right").mask_size
    assert plant.wait("right").bundle_id != switched.bundle_id


@pytest.mark.parametrize("fault", ["torn", "moved", "uncalibrated"])
def test_a_bundle_that_fails_changes_nothing(plant: Plant, tiny: TinyBundle, tmp_path: Path, fault: str) -> None:
    bad = tmp_path / "bad.plan"
    if fault == "torn":
        bad.write_bytes(tiny.path.read_bytes()[:-500])
    else:
        write_tiny_bundle(bad, golden_factor=1.5 if fault == "moved" else 1.0, calibrated=fault == "moved")
    before = plant.wait("left")
    with pytest.raises(RequestError) as caught:
        plant.recipes.switch(bad)
    assert caught.value.code == requests.REFUSED_BUNDLE
    assert "bad.plan" in caught.value.problem
    assert plant.wait("left").bundle_id == before.bundle_id


def test_a_station_that_cannot_take_over_rolls_the_others_back(plant: Plant, stricter: Path) -> None:
    before = plant.wait("left")
    right = plant.stations[1]
    right.stop()
    limit = time.monotonic() + LIMIT_S
    while not right._ring.drained and time.monotonic() < limit:
        threading.Event().wait(0.01)
    with pytest.raises(RequestError, match="right has ended"):
        plant.recipes.switch(stricter)
    # Until it was rolled back the left one may have inspected with the new bundle, and such an event be on its way.
    limit, in_a_row = time.monotonic() + LIMIT_S, 0
    while in_a_row < 10:
        same = plant.wait("left").calibration_id == before.calibration_id
        in_a_row = in_a_row + 1 if same else 0
        assert time.monotonic() < limit


def test_the_bundle_is_changed_by_request(plant: Plant, stricter: Path) -> None:
    with Control("tcp://127.0.0.1:*") as control:
        serve_recipes(control, plant.recipes)
        control.start()
        with ControlClient(control.endpoint) as client:
            switched = client.call("switch", Switch(str(stricter)), Switched, LIMIT_S)
            assert plant.wait("left").calibration_id == switched.calibration_id
            with pytest.raises(RequestError, match="no camera 'top'"):
                client.call("switch", Switch(str(stricter), "top"), Switched, LIMIT_S)


def test_a_file_in_the_place_of_the_bundle_is_taken_over(
    tiny: TinyBundle, stricter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.recipe._LOOK_S", 0.02)
    path = Path(shutil.copy(tiny.path, tmp_path / "redi.plan"))
    plant = Plant(path, ("left",))
    warnings: list[str] = []
    refused = threading.Event()

    def warn(message: str) -> None:
        warnings.append(message)
        refused.set()

    with BundleFollower(path, plant.recipes, warn):
        before = plant.wait("left")
        # Over the file that is in use: what runs must not notice.
        path.write_bytes(b"half a bundle")
        assert refused.wait(LIMIT_S)
        assert "not taken over" in warnings[0]
        assert plant.wait("left").calibration_id == before.calibration_id
        os.replace(stricter, path)
        after = plant.wait("left", lambda event: event.calibration_id != before.calibration_id)
        assert after.bundle_id == before.bundle_id
    plant.end()


def test_a_camera_that_is_lost_leaves_the_others_running(tiny: TinyBundle) -> None:
    plant = Plant(tiny.path, ("left", "right"))
    plant.wait("left")
    plant.cameras["right"].lost.set()
    fault = plant.wait("right", lambda event: event.score is None)
    assert "the cable is out" in fault.reason
    for _ in range(3):
        assert plant.wait("left").verdict.value == "ok"
    plant.end()
    assert isinstance(plant.error, CameraError)
